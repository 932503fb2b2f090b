import ast
import dataclasses
import json
import string
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plan_jax.config import (
    Config,
    DataConfig,
    at_step,
    config_hash,
    default_config,
    freeze,
    load_config,
    save_config,
)
from plan_jax.config_checks import SHARES
from plan_jax.config_file import read_config
from plan_jax.errors import InputError

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
PHANTOM = Path(__file__).parents[1] / "configs" / "phantom.py"


def fields(config, prefix: str = "") -> dict[str, object]:
    """Dotted name -> value of every field of the dataclasses."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = fields(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else {}
        found |= inner or {prefix + field.name: value}
    return found


DEFAULTS = fields(Config())


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read_config(path, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message
    return message


def written(folder: Path, body: str) -> Path:
    """A config file whose get_config has this body; `config` holds the defaults."""
    path = folder / "mine.py"
    lines = ["from plan_jax.config import default_config", "def get_config():", "    config = default_config()"]
    path.write_text("\n".join([*lines, *(f"    {line}" for line in body.splitlines())]) + "\n")
    return path


def other_value(name: str, value: object) -> object:
    """An allowed value that is not the default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        free = {"data.dir": "elsewhere", "evaluation.prompt": "we see {}"}
        if name.rpartition(".")[2].startswith("weights"):
            return "some/where"
        return free[name] if name in free else next(choice for choice in choices(name) if choice != value)
    if name == "optim.rules":
        return (("text_encoder/", 0.5, 1.0), (r"\d", 0.0, 1.0))
    if name == "data.mixture":
        return (("elsewhere", 2.0), ("further", 0.5))
    if isinstance(value, tuple):
        if name.endswith("fractions"):
            return (0.25, 0.5)
        return (0.5, 0.25) if name.endswith("early_temperatures") else (2, 1)
    if name.rpartition(".")[2] in SHARES:
        return value / 2 + 0.125  # pyright: ignore[reportOperatorIssue]
    return value + 1 if isinstance(value, int) else value + 0.25  # pyright: ignore[reportOperatorIssue]


def choices(name: str) -> tuple[str, ...]:
    group, _, field = name.partition(".")
    (found,) = (f for f in dataclasses.fields(getattr(Config(), group)) if f.name == field)
    return found.metadata["choices"]


def test_the_defaults_of_the_config_files_are_those_of_the_dataclasses():
    assert freeze(default_config()) == Config()


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_field_can_be_overridden_and_changes_nothing_else(name, tmp_path):
    value = other_value(name, DEFAULTS[name])
    path = written(tmp_path, "return config")
    changed = fields(read_config(path, [f"--config.{name}={value}"]))
    assert changed[name] == value
    assert type(changed[name]) is type(DEFAULTS[name])
    assert changed | {name: DEFAULTS[name]} == DEFAULTS


def test_a_whole_number_is_accepted_where_a_fraction_is_the_default():
    value = read_config(PHANTOM, ["--config.optim.learning_rate=1"]).optim.learning_rate
    assert (value, type(value)) == (1.0, float)


def test_the_last_of_two_overrides_wins():
    assert read_config(PHANTOM, ["--config.seed=3", "--config.seed=4"]).seed == 4


@pytest.mark.parametrize(
    "override",
    [
        "--config.seed=abc",
        "--config.data.batch_size=1.5",
        "--config.optim.learning_rate=fast",
        "--config.evaluation.untrained=maybe",
        "--config.data.sentences=few",
        "--config.data.text=both",
        "--config.data.prefetch=two",
        "--config.image_encoder.stages=(a,b)",
        "--config.image_encoder.stages=(2,1.5)",
        "--config.image_encoder.stages=()",
    ],
)
def test_an_override_of_another_type_is_refused_with_the_field_named(override):
    name = override.removeprefix("--").partition("=")[0]
    assert name in refusal(PHANTOM, override)


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("--config.optim.learnin_rate=1e-3", "--config.optim.learning_rate"),
        ("--config.optm.learning_rate=1e-3", "--config.optim.learning_rate"),
        ("--config.learning_rate=1e-3", "--config.optim.learning_rate"),
        ("--config.sed=1", "--config.seed"),
        ("--config.data=1", "--config.data.dir"),
        ("--config.alignment.round=1", "--config.alignment.rounds"),
    ],
)
def test_a_misspelt_override_names_the_near_field(override, near):
    message = refusal(PHANTOM, override)
    assert override.partition("=")[0] in message
    assert f"did you mean {near}?" in message


@pytest.mark.parametrize("name", [name for name in DEFAULTS if len(name.rpartition(".")[2]) > 4])
def test_a_field_with_two_letters_swapped_names_itself_as_near(name):
    group, _, field = name.rpartition(".")
    wrong_field = field[:2] + field[3] + field[2] + field[4:]
    if wrong_field == field:
        wrong_field = field[:2] + field[3:]
    wrong = ".".join(filter(None, (group, wrong_field)))
    assert f"did you mean --config.{name}?" in refusal(PHANTOM, f"--config.{wrong}=1")


@given(st.text(string.ascii_lowercase + "._", max_size=20))
def test_no_override_of_an_unknown_name_is_accepted(name):
    assume(name not in DEFAULTS)
    assert f"--config.{name} must name a field" in refusal(PHANTOM, f"--config.{name}=1")


@pytest.mark.parametrize("argument", ["stray", "--nothing", "--config.seed", "-x", "--seed=1", "--config=other.py"])
def test_an_argument_that_is_no_override_is_refused_by_name(argument):
    assert repr(argument) in refusal(PHANTOM, argument)


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("data.batch_size=0", "at least 1"),
        ("data.batch_size=-8", "at least 1"),
        ("train.steps=0", "at least 1"),
        ("train.log_every=0", "at least 1"),
        ("train.checkpoint_every=0", "at least 1"),
        ("train.keep_checkpoints=0", "at least 1"),
        ("image_encoder.local_stage=0", "at least 1"),
        ("evaluation.gallery=0", "at least 1"),
        ("data.workers=-1", "at least 0"),
        ("data.prefetch=-1", "at least 0"),
        ("alignment.rounds=-1", "at least 0"),
        ("seed=-1", "at least 0"),
        ("optim.learning_rate=nan", "finite"),
        ("optim.learning_rate=inf", "finite"),
        ("optim.weight_decay=-0.1", "at least 0"),
        ("loss.local_temperature=0", "above 0"),
        ("alignment.region_temperature=0.0", "above 0"),
        ("data.crop=0", "above 0 and at most 1"),
        ("data.crop=1.5", "above 0 and at most 1"),
        ("augment.scale=1.5", "at least 0 and at most 1"),
        ("augment.rotation=90", "at least 0 and at most 45"),
        ("augment.gain=-0.1", "at least 0"),
        ("evaluation.fractions=(0.1,1.5)", "above 0 and at most 1"),
        ("evaluation.fractions=()", "above 0 and at most 1"),
        ("evaluation.memory=-1.0", "at least 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_field_and_bound(override, bound):
    message = refusal(PHANTOM, f"--config.{override}")
    assert f"config.{override.partition('=')[0]} " in message
    assert bound in message


def test_zero_is_accepted_where_it_means_none():
    zeros = ["seed", "data.workers", "data.prefetch", "alignment.rounds", "optim.warmup_steps", "evaluation.pool"]
    config = fields(read_config(PHANTOM, [f"--config.{name}=0" for name in zeros]))
    assert [config[name] for name in zeros] == [0] * len(zeros)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("config.optim.learning_rat = 1.0\nreturn config", 'Did you mean "learning_rate"'),
        ("config.optm.learning_rate = 1.0\nreturn config", "optm"),
        ("config.optim.learning_rate = 'fast'\nreturn config", "learning_rate"),
        ("config.data.sentences = 'few'\nreturn config", "config.data.sentences must be one of all, shuffled, one"),
        ("config.unlock()\nconfig.data.colour = 'red'\nreturn config", "'colour'"),
        ("config = (\nreturn config", "mine.py, line 4"),
        ("return config.data.workers / 0", "ZeroDivisionError"),
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        ("pass", "NoneType"),
        ("return {}", "dict"),
    ],
)
def test_a_config_file_that_is_wrong_is_named_with_what_is_wrong(body, told, tmp_path):
    path = written(tmp_path, body)
    message = refusal(path)
    assert told in message
    assert message.startswith((str(path), "config.", f"get_config() of {path}", "config must"))
    assert len(message) < 500


def test_a_config_file_without_get_config_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("config = 1\n")
    assert "get_config" in refusal(path)


@pytest.mark.parametrize("name", ["nowhere.py", "."])
def test_a_config_file_that_is_no_file_is_refused(name, tmp_path):
    assert str(tmp_path / name) in refusal(tmp_path / name)


def test_the_config_of_a_file_that_was_wrong_before_is_read_anew(tmp_path):
    refusal(written(tmp_path, "config.sed = 1\nreturn config"))
    assert read_config(written(tmp_path, "config.seed = 7\nreturn config")).seed == 7


def test_a_saved_config_is_read_back_equal(tmp_path):
    config = read_config(PHANTOM, [f"--config.{n}={other_value(n, v)}" for n, v in DEFAULTS.items()])
    save_config(tmp_path / "config.json", config)
    found = load_config(tmp_path / "config.json")
    assert found == config
    assert hash(found) == hash(config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_field_that_a_saved_config_lacks_has_its_default(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 5}')
    assert load_config(tmp_path / "config.json") == dataclasses.replace(Config(), seed=5)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "JSON"),
        (b'{"seed": 1', "JSON"),
        (b"\xff\xfe\x00", "JSON"),
        (b"[]", "group of fields"),
        (b'{"data": 3}', "config.json.data must be a group"),
        (b'{"sede": 3}', "config.json.seed"),
        (b'{"optim": {"learning_rat": 0.1}}', "config.json.optim.learning_rate"),
        (b'{"seed": "0"}', "config.json.seed must be a int"),
        (b'{"seed": null}', "config.json.seed"),
        (b'{"seed": true}', "config.json.seed"),
        (b'{"data": {"sentences": ["all"]}}', "config.json.data.sentences must be one of"),
        (b'{"image_encoder": {"stages": [2, "x"]}}', "config.json.image_encoder.stages"),
        (b'{"optim": {"learning_rate": NaN}}', "config.json.optim.learning_rate must be finite"),
    ],
)
def test_a_damaged_saved_config_is_named_with_the_field(content, told, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_saved_config_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "config.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("saved") / "config.json"


@given(
    name=st.sampled_from(sorted(DEFAULTS)),
    value=st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=4),
)
def test_any_value_of_a_field_is_either_refused_or_read_as_the_type_of_its_default(name, value, saved):
    group, _, field = name.rpartition(".")
    saved.write_text(json.dumps({group: {field: value}} if group else {field: value}))
    try:
        outcome = fields(load_config(saved))[name]
    except InputError as error:
        outcome = error
    assert f"{saved}.{name} " in str(outcome) or type(outcome) is type(DEFAULTS[name])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_config_file_has_the_fields_that_scripts_set(path):
    overrides = {
        "data.dir": "d",
        "train.steps": 3,
        "data.batch_size": 4,
        "optim.learning_rate": 0.5,
        "seed": 6,
        "alignment.rounds": 2,
    }
    found = fields(read_config(path, [f"--config.{name}={value}" for name, value in overrides.items()]))
    assert {name: found[name] for name in overrides} == overrides


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_config_file_only_changes_fields_that_exist(path):
    """Defaults have one home: a file starts from them, assigns fields and returns."""
    module = ast.parse(path.read_text())
    (function,) = (node for node in module.body if isinstance(node, ast.FunctionDef))
    targets = [ast.unparse(t) for node in ast.walk(function) if isinstance(node, ast.Assign) for t in node.targets]
    assert {target.removeprefix("config.") for target in targets if target != "config"} <= DEFAULTS.keys()
    assert not [node for node in ast.walk(module) if isinstance(node, ast.Call | ast.ClassDef) and calls_more(node)]


def calls_more(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) or ast.unparse(node) not in ("default_config()", "get_config()")


def test_early_steps_take_the_early_temperatures_in_turn_and_the_rest_the_final_one():
    config = read_config(PHANTOM, ["--config.train.steps=12", "--config.train.early_share=0.5"])
    wide = dataclasses.replace(config.alignment, early_temperatures=(0.5, 0.25), region_temperature=0.1)
    config = dataclasses.replace(config, alignment=wide)
    found = [at_step(config, step).alignment.region_temperature for step in range(12)]
    assert found == [0.5] * 3 + [0.25] * 3 + [0.1] * 6
    assert at_step(config, 6) == at_step(config, 10**6) == config
    plain = dataclasses.replace(config, alignment=dataclasses.replace(wide, early_temperatures=()))
    none = dataclasses.replace(config, train=dataclasses.replace(config.train, early_share=0.0))
    assert at_step(plain, 0) == plain
    assert at_step(none, 0) == none


def test_the_rounds_begin_after_their_share_of_the_steps_and_inference_always_has_them():
    config = read_config(PHANTOM, ["--config.train.steps=10", "--config.train.rounds_from=0.35"])
    config = dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, rounds=2))
    assert [at_step(config, step).alignment.rounds for step in range(10)] == [0] * 4 + [2] * 6
    assert at_step(config, 10**6) == config
    never = dataclasses.replace(config, train=dataclasses.replace(config.train, rounds_from=1.0))
    assert at_step(never, 9).alignment.rounds == 0


@pytest.mark.parametrize("value", ["(0.5,0.0)", "(0.5,-1.0)", "(0.5,'a')"])
def test_an_early_temperature_that_divides_nothing_is_refused(value):
    with pytest.raises(InputError, match="early_temperatures must be numbers above 0"):
        read_config(PHANTOM, [f"--config.alignment.early_temperatures={value}"])


@pytest.mark.parametrize("value", ["()", "(0.0,1.0)", "(0.5,1.5)", "(1.0,0.5)", "(0.5,0.5)", "(1,)"])
def test_fractions_are_rising_shares(value):
    with pytest.raises(InputError, match=r"detection\.fractions must be rising numbers above 0"):
        read_config(PHANTOM, [f"--config.detection.fractions={value}"])


@pytest.mark.parametrize(
    "value", ["('a',1.0)", "(('a',),)", "(('',1.0),)", "(('a',0.0),)", "(('a',-1),)", "(('a',True),)", "(('a',1e999),)"]
)
def test_a_source_of_a_mixture_needs_a_folder_and_a_weight_above_0(value):
    message = refusal(PHANTOM, f"--config.data.mixture={value}")
    assert "config.data.mixture must hold pairs of a folder that build wrote and a weight above 0" in message


def test_a_configuration_has_the_same_name_wherever_its_data_lies():
    def name(*mixture, folder: str = "here") -> str:
        return config_hash(dataclasses.replace(Config(), data=DataConfig(dir=folder, mixture=mixture)))

    assert name(("a", 1.0)) == name(("b", 1.0), folder="there")
    assert len({name(), name(("a", 1.0)), name(("a", 2.0)), name(("a", 1.0), ("b", 1.0))}) == 4


@pytest.mark.parametrize("value", ["", "there is it", "{} and {}"])
def test_a_prompt_without_one_place_for_the_phrase_is_refused(value):
    with pytest.raises(InputError, match=r"evaluation\.prompt must hold \{\} once"):
        read_config(PHANTOM, [f"--config.evaluation.prompt={value}"])


@pytest.mark.parametrize(("was", "kept"), [(False, "none"), (True, "block")])
def test_a_run_that_only_said_whether_blocks_are_computed_again_is_read(tmp_path, was, kept):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"image_encoder": {"remat": was}, "text_encoder": {"remat": was}}))
    config = load_config(path)
    assert (config.image_encoder.remat, config.text_encoder.remat) == (kept, kept)
