import dataclasses
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plan_jax.checkpoint import saved_steps
from plan_jax.compilation.programs import batch_shapes
from plan_jax.config import Config, OptimConfig, load_config, save_config
from plan_jax.config_checks import Rule
from plan_jax.config_file import read_config
from plan_jax.errors import InputError
from plan_jax.model import PlanModel, initial_variables
from plan_jax.train.loop import fit
from plan_jax.train.rules import parameter_factors, parameter_paths
from plan_jax.train.state import TrainState, create_state, learning_rate, make_optimizer
from plan_jax.train.step import train_step

CONFIG = Path(__file__).parents[1] / "configs" / "phantom.py"
SMALL = (
    "--config.data.batch_size=4",
    "--config.mesh.devices=1",
    "--config.data.image_size=16",
    "--config.data.max_tokens=16",
    "--config.data.max_words=12",
    "--config.image_encoder.width=4",
    "--config.image_encoder.stages=(1,)",
    "--config.text_encoder.vocab_size=50",
    "--config.text_encoder.hidden=32",
    "--config.text_encoder.layers=3",
    "--config.text_encoder.intermediate=64",
    "--config.alignment.dim=8",
    "--config.alignment.early_temperatures=()",
    "--config.optim.learning_rate=1e-2",
    "--config.optim.warmup_steps=0",
    "--config.train.steps=4",
    "--config.train.checkpoint_every=2",
)
DEFAULT = OptimConfig().rules
NO_IMAGES, NO_TEXTS = ("^image_encoder/", 0.0, 1.0), ("^text_encoder/", 0.0, 1.0)

# A tree with a stack of three layers, for rules whose outcome is written out by hand.
TREE = {
    "image_projection": {"bias": np.zeros(2), "kernel": np.zeros((2, 2))},
    "text_encoder": {"layers": {"output": {"kernel": np.zeros((3, 2, 2))}}, "word": {"embedding": np.zeros((5, 2))}},
}
STACK = "text_encoder/layers/output/kernel"


def with_rules(*more: Rule, **optim) -> Config:
    """The small configuration with rules after the default one, and other fields of `optim`."""
    config = read_config(CONFIG, SMALL)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, rules=(*DEFAULT, *more), **optim))


def by_path(tree) -> dict[str, np.ndarray]:
    """Path -> leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def bits(tree) -> dict[str, bytes]:
    return {path: leaf.tobytes() for path, leaf in by_path(tree).items()}


def factors(*rules: Rule) -> dict[str, tuple]:
    """Path -> (learning-rate factor, weight-decay factor) in TREE; one number, or a list of shape [3 1 1]."""
    found = parameter_factors(TREE, rules=rules)
    rates, decays = by_path(found.learning_rate), by_path(found.weight_decay)
    return {path: (rates[path].tolist(), decays[path].tolist()) for path in rates}


def random_like(tree, seed: int):
    """Normal numbers in the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def random_batch(config: Config):
    """Random films and reports of one sentence; every piece is a word, the last ones are one."""
    rng, batch, words = np.random.default_rng(0), batch_shapes(config), config.data.max_words
    shape = batch.token_ids.shape
    return batch.replace(
        image=rng.integers(0, 256, batch.image.shape, np.uint8),
        token_ids=rng.integers(0, config.text_encoder.vocab_size, shape, np.int32),
        word_ids=np.broadcast_to(np.minimum(np.arange(shape[1], dtype=np.int32), words - 1), shape),
        token_mask=np.ones(shape, bool),
        sentence_ids=np.zeros(shape, np.int32),
        record=np.arange(shape[0], dtype=np.int32),
    )


def test_a_stack_of_layers_has_a_path_for_each_layer():
    assert parameter_paths(TREE) == [
        ["image_projection/bias"],
        ["image_projection/kernel"],
        [f"text_encoder/layers/{layer}/output/kernel" for layer in range(3)],
        ["text_encoder/word/embedding"],
    ]


def test_the_default_decays_kernels_alone_and_scales_no_rate():
    params = jax.eval_shape(lambda: initial_variables(with_rules(), 0)["params"])
    found = parameter_factors(params, rules=DEFAULT)
    assert set(jax.tree.leaves(found.learning_rate)) == {1.0}
    names = {(path.rpartition("/")[2], float(decay)) for path, decay in by_path(found.weight_decay).items()}
    assert names == {("kernel", 1.0), ("bias", 0.0), ("scale", 0.0), ("embedding", 0.0)}


def test_the_default_optimizer_is_adamw_with_a_mask_bit_for_bit():
    config = with_rules(clip_norm=3.0, weight_decay=0.3)
    optim = config.optim
    oracle = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=optim.beta1,
            b2=optim.beta2,
            weight_decay=optim.weight_decay,
            mask=lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree),
        ),
    )
    start = random_like(TREE | {"norm": {"scale": np.zeros(2), "bias": np.zeros(2)}}, seed=0)
    ends = []
    for optimizer in (oracle, make_optimizer(config)):
        params, state, update = start, optimizer.init(start), jax.jit(optimizer.update)
        for step in range(3):
            updates, state = update(random_like(params, seed=step + 1), state, params)
            params = optax.apply_updates(params, updates)
        ends.append((bits(params), bits(state), jax.tree.structure(state)))  # the structure: checkpoints stay readable
    assert ends[0] == ends[1]
    assert ends[0][0] != bits(start)


def test_the_factors_of_all_rules_that_match_are_multiplied():
    found = factors(("text_encoder/", 0.5, 2.0), ("kernel$", 0.5, 0.25), ("word", 3.0, 0.0), ("^image", 0.0, 1.0))
    assert found == {
        "image_projection/bias": (0.0, 1.0),
        "image_projection/kernel": (0.0, 0.25),
        STACK: (0.25, 0.5),
        "text_encoder/word/embedding": (1.5, 0.0),
    }


def test_layer_wise_rates_are_rules_of_the_layers():
    found = factors(*((f"text_encoder/layers/{i}/", 0.5 ** (2 - i), 1.0) for i in range(3)), ("layers/1", 1.0, 0.0))
    assert found[STACK] == ([[[0.25]], [[0.5]], [[1.0]]], [[[1.0]], [[0.0]], [[1.0]]])
    assert {pair for path, pair in found.items() if path != STACK} == {(1.0, 1.0)}


def some_rules() -> st.SearchStrategy[list[Rule]]:
    patterns = st.sampled_from(["text_encoder/", "kernel$", "layers/0/", "layers/[12]/", "bias", "", "word|image"])
    numbers = st.floats(0, 1e200) | st.sampled_from([0.0, 0.1, 0.3, 1.0])
    return st.lists(st.tuples(patterns, numbers, numbers), max_size=6)


@given(rules=some_rules(), data=st.data())
def test_the_order_of_rules_changes_no_bit(rules, data):
    mixed = data.draw(st.permutations(rules))
    with np.errstate(over="ignore"):  # a product may overflow float32
        try:
            found = factors(*rules)
        except InputError:
            assume(False)
            return
        assert found == factors(*mixed)


def by_hand(param, gradients, *, config: Config, rate, decay):
    """AdamW in float64; `gradients` after clipping, one per step."""
    optim, m, v = config.optim, 0.0, 0.0
    for step, gradient in enumerate(gradients):
        m = optim.beta1 * m + (1 - optim.beta1) * gradient
        v = optim.beta2 * v + (1 - optim.beta2) * gradient**2
        adam = m / (1 - optim.beta1 ** (step + 1)) / (np.sqrt(v / (1 - optim.beta2 ** (step + 1))) + 1e-8)
        peak = optim.learning_rate * (1 + math.cos(math.pi * step / config.train.steps)) / 2
        param = param - peak * rate * (adam + optim.weight_decay * decay * param)
    return param


def test_factors_of_a_layer_act_on_that_layer_as_adamw_by_hand_says():
    rules = (("layers/0/", 0.1, 1.0), ("layers/2/", 3.0, 0.5), ("bias", 2.0, 1.0), ("word|image.*kernel", 0.0, 1.0))
    config = with_rules(*rules, weight_decay=0.4, clip_norm=2.0)
    optimizer, start = make_optimizer(config), random_like(TREE, seed=0)
    gradients = [random_like(TREE, seed=seed) for seed in (1, 2)]
    params, state, update = start, optimizer.init(start), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    norms = [math.sqrt(sum((leaf**2).sum() for leaf in by_path(gradient).values())) for gradient in gradients]
    assert min(norms) > config.optim.clip_norm
    rates, decays = np.array([0.1, 1, 3])[:, None, None], np.array([1, 1, 0.5])[:, None, None]
    for path, rate, decay in ((STACK, rates, decays), ("image_projection/bias", 2.0, 0.0)):
        clipped = [by_path(each)[path] * (2.0 / norm) for each, norm in zip(gradients, norms, strict=True)]
        expected = by_hand(by_path(start)[path], clipped, config=config, rate=rate, decay=decay)
        np.testing.assert_allclose(by_path(params)[path], expected, rtol=2e-6, atol=1e-7)
    frozen = {"image_projection/kernel", "text_encoder/word/embedding"}
    assert {path for path, leaf in bits(params).items() if leaf == bits(start)[path]} == frozen
    assert by_path(state[1][0].mu).keys() == by_path(state[1][0].nu).keys() == by_path(start).keys() - frozen


# A run whose encoders are frozen, and a step that learns some layers of the text encoder: fixtures, for the compiling.


@pytest.fixture(scope="module")
def run(phantom_data, tmp_path_factory):
    """(run directory, its configuration, its last state); checkpoints after 2 and 4 steps."""
    config, workdir = with_rules(NO_IMAGES, NO_TEXTS), tmp_path_factory.mktemp("frozen") / "run"
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(phantom_data)))
    state = fit(config, workdir)
    return workdir, load_config(workdir / "config.json"), state


def compiled_step(config: Config, state: TrainState):
    """The step's program; call it with a state and a batch."""
    optimizer = make_optimizer(config)
    lowered = train_step.lower(state, random_batch(config), model=PlanModel(config), optimizer=optimizer, config=config)
    return lowered.compile()


@pytest.fixture(scope="module")
def partly():
    """(configuration, shapes of its state, its step): images, the words' embedding and the first layer are frozen."""
    config = with_rules(NO_IMAGES, ("text_encoder/(layers/0|word)/", 0.0, 1.0), clip_norm=1e6, weight_decay=0.5)
    shapes = jax.eval_shape(lambda: create_state(config))
    return config, shapes, compiled_step(config, shapes)


def test_frozen_parameters_end_as_they_began_and_have_no_moments(run):
    _, config, state = run
    start, end = initial_variables(config, config.seed), bits(state.params)
    frozen = {path for path in end if path.startswith(("image_encoder/", "text_encoder/"))}
    assert {path for path, leaf in end.items() if leaf == bits(start["params"])[path]} == frozen
    adam = state.opt_state[1][0]
    assert by_path(adam.mu).keys() == by_path(adam.nu).keys() == end.keys() - frozen
    assert bits(state.batch_stats) != bits(start["batch_stats"])  # image_encoder.batch_norm = "frozen" would hold them


def test_a_run_with_frozen_parts_continues_to_the_same_bits(run, tmp_path):
    workdir, config, state = run
    again = shutil.copytree(workdir, tmp_path / "again")
    assert saved_steps(again) == [2, 4]
    shutil.rmtree(again / "checkpoints" / "4")
    assert bits(fit(config, again)) == bits(state)
    assert saved_steps(again) == [2, 4]


def test_frozen_layers_of_a_stack_keep_every_bit_and_count_in_no_norm(partly):
    config, shapes, step = partly
    params = random_like(shapes.params, seed=0)
    odd = np.array([-0.0, 1e-40, -1e-45], np.float32)  # a sum would lose the sign, or flush to zero
    params["text_encoder"]["layers"]["intermediate"]["kernel"][0, 0, :3] = odd
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = state.replace(params=params, batch_stats=jax.tree.map(np.ones_like, state.batch_stats))
    norms = []
    for _ in range(2):
        state, metrics = step(state, random_batch(config))
        norms.append((float(metrics["gradient_norm"]), by_path(state.opt_state[1][0].mu)))
    frozen, start = ("image_encoder/", "text_encoder/word/"), by_path(params)
    for path, leaf in by_path(state.params).items():
        assert (leaf.tobytes() == start[path].tobytes()) == path.startswith(frozen), path
        if "/layers/" in path:
            same = [leaf[i].tobytes() == start[path][i].tobytes() for i in range(3)]
            assert same == [True, False, False], path
            assert not norms[-1][1][path][0].any()
    norm, moments = norms[0]  # after one step they are (1 - beta1) times the gradients
    used = math.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in moments.values())) / (1 - config.optim.beta1)
    assert norm == pytest.approx(used, rel=1e-5)


def test_a_frozen_text_encoder_is_not_differentiated(partly):
    """The saving is at least a layer's backward pass, two matrix products for each of the forward pass."""
    whole = with_rules(NO_IMAGES, NO_TEXTS)
    none = compiled_step(whole, jax.eval_shape(lambda: create_state(whole)))
    saved = partly[2].cost_analysis()["flops"] - none.cost_analysis()["flops"]
    text, tokens = whole.text_encoder, whole.data.batch_size * whole.data.max_tokens
    forward = 2 * tokens * (4 * text.hidden**2 + 2 * text.hidden * text.intermediate)
    assert saved > 2 * forward  # the compiler counts the body of a scan once


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("text_encoder/layer/", "text_encoder/layers"),
        ("text_encoder/layers/3/", "text_encoder/layers/"),  # there are three, from 0
        ("^text_encoder/layers/output", "text_encoder/layers/2/output"),
        ("kernal$", "kernel"),
        ("image_encodr/", "image_encoder"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_the_nearest_path(pattern, near):
    with pytest.raises(InputError) as caught:
        jax.eval_shape(lambda: create_state(with_rules((pattern, 0.1, 1.0))))
    message = str(caught.value)
    assert f"config.optim.rules must each match a parameter, got {pattern!r}" in message
    assert f"you probably mistyped it, the nearest path is {near}" in message


def test_rules_that_freeze_everything_are_refused():
    with pytest.raises(InputError, match=r"config\.optim\.rules must leave a parameter to learn"):
        jax.eval_shape(lambda: create_state(with_rules(("", 0.0, 1.0))))


def written(folder: Path, line: str) -> Path:
    """A config file that changes the defaults by one line."""
    path = folder / "mine.py"
    path.write_text(
        f"from plan_jax.config import default_config\ndef get_config():\n    config = default_config()\n    {line}\n"
        "    return config\n"
    )
    return path


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("config.optim.rules += ((r'text_encoder/', 0.1, 1),)", (*DEFAULT, ("text_encoder/", 0.1, 1.0))),
        ("config.optim.rules = [[r'\\d', 0, 1]]", ((r"\d", 0.0, 1.0),)),
        ("config.optim.rules = ()", ()),
        (
            "config.optim.rules += tuple((f'layers/{i}/', 0.5 ** (2 - i), 1.0) for i in range(2))",
            (*DEFAULT, ("layers/0/", 0.25, 1.0), ("layers/1/", 0.5, 1.0)),
        ),
    ],
)
def test_rules_of_a_config_file_survive_the_run_directory(line, rules, tmp_path):
    config = read_config(written(tmp_path, line))
    save_config(tmp_path / "config.json", config)
    found = load_config(tmp_path / "config.json")
    assert found.optim.rules == config.optim.rules == rules
    assert all([type(each) for each in rule] == [str, float, float] for rule in found.optim.rules)
    assert (found, hash(found)) == (config, hash(config))


def test_rules_of_the_command_line_replace_those_of_the_file():
    config = read_config(CONFIG, ["--config.optim.rules=(('text_encoder/',0,1),(r'\\d',0.5,1.0))"])
    assert config.optim.rules == (("text_encoder/", 0.0, 1.0), (r"\d", 0.5, 1.0))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("'text_encoder/'", "rules of a pattern, a learning-rate factor and a weight-decay factor"),
        ("('text_encoder/',0.1,1.0)", "(('text_encoder/', 0.1, 1.0),), best in the config file"),
        ("((text_encoder,0.1,1.0),)", "best in the config file"),
        ("(('text_encoder/',0.1),)", "got ('text_encoder/', 0.1)"),
        ("((0.1,'text_encoder/',1.0),)", "rules of a pattern"),
        ("(('text_encoder/(',0.1,1.0),)", "regular expressions as patterns, got 'text_encoder/('"),
        ("(('a',-0.1,1.0),)", "finite and at least 0, got ('a', -0.1, 1.0)"),
        ("(('a',0.1,1e999),)", "finite and at least 0, got ('a', 0.1, inf)"),
        ("(('a',True,1.0),)", "finite and at least 0, got ('a', True, 1.0)"),
        ("(('a',None,1.0),)", "finite and at least 0, got ('a', None, 1.0)"),
    ],
)
def test_a_rule_that_is_none_is_refused_with_what_is_wrong(value, told):
    with pytest.raises(InputError) as caught:
        read_config(CONFIG, [f"--config.optim.rules={value}"])
    message = str(caught.value)
    assert message.startswith("config.optim.rules must ")
    assert told in message
    assert len(message.splitlines()) == 1
