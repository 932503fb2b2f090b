"""ViT against numpy in float64 written from the definition, and against timm; what the model promises with it."""

import dataclasses
from functools import partial
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from plan_jax.config import AlignmentConfig, Config, DataConfig, ImageEncoderConfig, TextEncoderConfig
from plan_jax.encoders.vit import ViT, position_on
from plan_jax.errors import InputError
from plan_jax.model import PlanModel
from plan_jax.train.state import create_state, make_optimizer
from plan_jax.train.step import train_step
from plan_jax.types import Batch

VIT_B16 = ImageEncoderConfig(kind="vit", patch=16, channels=3, local_stage=6)
TINY = ImageEncoderConfig(
    kind="vit", patch=4, hidden=24, layers=2, heads=3, intermediate=40, grid=3, local_stage=1, channels=3
)


def random_params(config, seed=0, spread=0.3):
    """Parameters in which no scale is 1 and no bias 0, and attention is far from uniform."""
    rng = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct((1, config.patch, config.patch, config.channels), jnp.float32)
    shapes = jax.eval_shape(partial(ViT(config).init, train=False), jax.random.key(0), image)

    def fill(path, leaf):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype("f4")
        return rng.normal(size=leaf.shape).astype(leaf.dtype) * np.float32(spread)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def images(height=12, width=12, channels=3, count=2):
    return np.random.default_rng(1).normal(size=(count, height, width, channels)).astype("f4")


@partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
def apply(config, params, image):
    return ViT(config).apply(params, image, train=False)


# An oracle in numpy: one image at a time, one patch at a time, one head at a time.


def np_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def np_dense(x, p):
    return x @ p["kernel"] + p["bias"]


def np_block(x, p, heads):
    y = np_norm(x, p["attention_norm"])
    q, k, v = (np_dense(y, p["attention"][name]) for name in ("query", "key", "value"))
    size, mixed = x.shape[1] // heads, np.zeros_like(x)
    for start in range(0, x.shape[1], size):
        head = slice(start, start + size)
        scores = np.exp(q[:, head] @ k[:, head].T / np.sqrt(size))
        mixed[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, head]
    x = x + np_dense(mixed, p["attention"]["output"])
    y = np_dense(np_norm(x, p["mlp_norm"]), p["intermediate"])
    return x + np_dense(y * 0.5 * (1 + np.vectorize(erf)(y / np.sqrt(2))), p["output"])


def np_vit(config, params, image):
    """The maps [h w E] after every block and the final norm, of one image [H W C]."""
    p = jax.tree.map(np.float64, params["params"])
    side, kernel = config.patch, p["patch_conv"]["kernel"].reshape(-1, config.hidden)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    tokens = [p["class_token"][0, 0]]
    for r in range(rows):
        for c in range(columns):
            patch = image[r * side : (r + 1) * side, c * side : (c + 1) * side]
            tokens.append(patch.ravel() @ kernel + p["patch_conv"]["bias"])
    own, grid = p["position"][0, :1], p["position"][0, 1:].reshape(config.grid, config.grid, -1)
    x = np.array(tokens) + np.concatenate([own, np_resized(grid, (rows, columns)).reshape(rows * columns, -1)])
    maps = []
    for i in range(config.layers):
        x = np_block(x, jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"]), config.heads)
        maps.append(np_norm(x, p["final_norm"])[1:].reshape(rows, columns, -1))
    return maps


def np_cubic(t):
    """Keys' kernel with a = -1/2."""
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def np_resized(x, grid):
    """A map [h w E] on another grid as Pillow does it: the kernel is widened where the map shrinks, and cut at the
    border, where what is left of its weights is scaled to a sum of 1."""
    for axis, after in enumerate(grid):
        before = x.shape[axis]
        scale = before / after
        wide, weights = max(scale, 1.0), np.zeros((after, before))
        for i in range(after):
            centre = (i + 0.5) * scale
            for j in range(max(0, int(centre - 2 * wide + 0.5)), min(before, int(centre + 2 * wide + 0.5))):
                weights[i, j] = np_cubic((j + 0.5 - centre) / wide)
        weights /= weights.sum(1, keepdims=True)
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x


@pytest.mark.parametrize(
    ("layers", "local_stage", "height", "width"), [(2, 1, 12, 12), (2, 2, 12, 12), (5, 3, 8, 20), (1, 1, 4, 4)]
)
def test_maps_equal_numpy(layers, local_stage, height, width):
    config = dataclasses.replace(TINY, layers=layers, local_stage=local_stage)
    params, image = random_params(config), images(height, width)
    found = apply(config, params, image)
    assert [m.shape for m in found] == [(2, height // 4, width // 4, 24)] * 2
    for i in range(len(image)):
        want = np_vit(config, params, np.float64(image[i]))
        for got, expected in zip(found, (want[local_stage - 1], want[-1]), strict=True):
            np.testing.assert_allclose(got[i], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_vit_b16_has_the_parameters_of_the_reference():
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    maps, variables = jax.eval_shape(partial(ViT(VIT_B16).init_with_output, train=False), jax.random.key(0), image)
    # timm's vit_base_patch16_224 is published with 86,567,656, of which the classifier is 768 * 1000 + 1000.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 86_567_656 - 769_000
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert [m.shape for m in maps] == [(1, 14, 14, 768)] * 2


def test_parameters_start_as_timm_starts_them_and_layers_differ():
    config = dataclasses.replace(TINY, hidden=96, intermediate=200, grid=8)
    params = jax.jit(partial(ViT(config).init, train=False))(jax.random.key(0), images())["params"]
    kernels = params["layers"]["intermediate"]["kernel"]
    for leaf in (kernels, params["layers"]["attention"]["query"]["kernel"], params["position"]):
        assert float(leaf.std()) == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(kernels[0], kernels[1])
    # torch's convolution: uniform up to 1 / sqrt(4 * 4 * 3).
    patch = np.abs(params["patch_conv"]["kernel"])
    assert 0.99 < patch.max() * 48**0.5 <= 1
    assert patch.mean() * 48**0.5 == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("grid", [(3, 3), (6, 7), (9, 14), (14, 14), (20, 5), (31, 40)], ids=str)
def test_positions_on_another_grid_are_those_of_pillow(grid):
    position = np.random.default_rng(2).normal(size=(1 + 14**2, 5)).astype("f4")
    got = position_on(jnp.asarray(position), grid)
    np.testing.assert_array_equal(got[0], position[0])
    want = np_resized(np.float64(position[1:]).reshape(14, 14, 5), grid)
    np.testing.assert_allclose(got[1:], want.reshape(-1, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(9, 14), (18, 18), (7, 7)], ids=str)
def test_positions_on_another_grid_are_those_of_torch(grid):
    torch = pytest.importorskip("torch", reason="parity with torch's antialiased bicubic needs PyTorch (CPU)")
    position = np.random.default_rng(2).normal(size=(1 + 14**2, 5)).astype("f4")
    stored = torch.tensor(position[1:].reshape(1, 14, 14, 5).transpose(0, 3, 1, 2))
    want = torch.nn.functional.interpolate(stored, size=grid, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    got = position_on(jnp.asarray(position), grid)[1:]
    np.testing.assert_allclose(got, want.reshape(-1, 5).numpy(), rtol=0, atol=1e-5)


def test_positions_on_their_own_grid_are_not_touched():
    position = jnp.zeros((10, 4))
    assert position_on(position, (3, 3)) is position


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gray_image_is_the_same_image_in_three_channels(dtype):
    config = dataclasses.replace(TINY, dtype=dtype)
    params, gray = random_params(config), images(channels=1)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for one, three in zip(apply(config, params, gray), apply(config, params, gray.repeat(3, axis=-1)), strict=True):
        assert np.linalg.norm(np.float32(one - three)) < tolerance * np.linalg.norm(np.float32(three))


def test_bfloat16_is_computed_but_not_stored():
    half, image = dataclasses.replace(TINY, dtype="bfloat16"), images()
    params = random_params(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    for got, want in zip(apply(half, params, image), apply(TINY, params, image), strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.linalg.norm(got.astype("f4") - want) < 0.03 * np.linalg.norm(want)


def equations(jaxpr):
    """Every equation of a jaxpr, those inside scans and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for leaf in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def program(config, transform=lambda f: f):
    image = images()

    def features(params):
        return sum(m.sum(dtype="f4") for m in ViT(config).apply(params, image, train=True))

    return list(equations(jax.make_jaxpr(transform(features))(random_params(config)).jaxpr))


def test_softmax_and_norms_are_float32_in_bfloat16_too():
    found = program(dataclasses.replace(TINY, dtype="bfloat16"))
    results = {name: [e.outvars[0].aval for e in found if e.primitive.name == name] for name in ("exp", "rsqrt")}
    assert [(e.dtype, e.shape) for e in results["exp"]] == [(jnp.dtype("float32"), (2, 3, 10, 10))]  # B heads M M
    assert [e.dtype for e in results["rsqrt"]] == [jnp.dtype("float32")] * 4  # two in a block, the final one twice


def test_depth_is_one_scan_and_does_not_grow_the_program():
    deep = dataclasses.replace(TINY, layers=7)
    found = program(deep)
    assert [e.params["length"] for e in found if e.primitive.name == "scan"] == [7]
    assert len(found) == len(program(TINY))
    assert len(program(deep, jax.grad)) == len(program(TINY, jax.grad))


@pytest.mark.parametrize("policy", ["products", "block"])
def test_blocks_computed_again_change_neither_names_nor_values_nor_gradients(policy):
    again = dataclasses.replace(TINY, remat=policy)
    params, image = random_params(TINY), images()
    assert jax.tree.structure(random_params(again)) == jax.tree.structure(params)

    @partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
    @partial(jax.value_and_grad, argnums=1)
    def scalar(config, params):
        return sum((m**3).sum() for m in ViT(config).apply(params, image, train=True))

    want, got = (scalar(config, params) for config in (TINY, again))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-2), got, want)
    names = [[e.primitive.name for e in program(c, jax.grad)] for c in (TINY, again)]
    assert ["remat2" in n or "checkpoint" in n for n in names] == [False, True]


def kept_by_blocks(policy: str) -> list[tuple[int, ...]]:
    """Shapes of what all blocks keep for the backward pass."""
    forward = next(e for e in program(dataclasses.replace(TINY, remat=policy), jax.grad) if e.primitive.name == "scan")
    return [v.aval.shape for v in forward.outvars[forward.params["num_carry"] :]]


def test_blocks_computed_again_keep_only_what_enters_them():
    """In particular not the tokens of the local block, once for every block."""
    assert kept_by_blocks("block") == [(TINY.layers, 2, 10, 24)]


def test_blocks_that_keep_products_keep_what_kernels_give_and_nothing_that_attention_does():
    tokens, wide = (TINY.layers, 2, 10, 24), (TINY.layers, 2, 10, TINY.intermediate)
    found = kept_by_blocks("products")
    # What enters; query, key, value and the output of attention; of the MLP what its activation is applied to.
    assert sorted(found) == sorted([tokens] * 5 + [wide])
    assert any(shape[-2:] == (10, 10) for shape in kept_by_blocks("none"))  # tokens by tokens: these it computes again


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        ({}, (13, 12), "multiple of image_encoder.patch = 4, got 13 x 12; change"),
        ({}, (12, 14), "multiple of image_encoder.patch = 4, got 12 x 14; change"),
        ({"heads": 5}, (12, 12), "multiple of image_encoder.heads, got 24 and 5; change"),
        ({"local_stage": 3}, (12, 12), "from 1 to image_encoder.layers = 2, got 3; change"),
        ({"local_stage": 0}, (12, 12), "from 1 to image_encoder.layers = 2, got 0; change"),
    ],
)
def test_a_config_that_cannot_work_says_what_to_change(change, size, words):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(InputError, match=words):
        ViT(config).init(jax.random.key(0), images(*size), train=False)


# The model around it.

MODEL_CONFIG = Config(
    data=DataConfig(image_size=16, crop=1.0, max_tokens=6, max_words=4, batch_size=3),
    image_encoder=TINY,
    text_encoder=TextEncoderConfig(
        vocab_size=30, hidden=8, layers=1, heads=2, intermediate=16, max_positions=16, dropout=0.0
    ),
    alignment=AlignmentConfig(dim=6, rounds=0),
)


def first_state():
    """As training makes it, but with parameters in which no scale is 1 and no bias 0."""
    rng = np.random.default_rng(5)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: create_state(MODEL_CONFIG)))
    return state.replace(params=jax.tree.map(lambda x: x + rng.normal(size=x.shape) * np.float32(0.3), state.params))


def pairs():
    rng = np.random.default_rng(3)
    return Batch(
        image=rng.integers(0, 256, (3, 16, 16, 1), np.uint8),
        token_ids=rng.integers(1, 30, (3, 6), np.int32),
        word_ids=np.array([[-1, 0, 1, 2, 3, -1]] * 3, np.int32),
        token_mask=np.ones((3, 6), bool),
        sentence_ids=np.zeros((3, 6), np.int32),
        record=np.arange(3),
        words_cut=np.zeros(3, np.int32),
    )


@partial(jax.jit, static_argnums=(0, 3), compiler_options=oracle.QUICK)
def encoded(config, params, image, method="encode_image"):
    return PlanModel(config).apply({"params": params}, image, method=method)


def test_the_model_s_patches_are_the_local_map_and_its_global_feature_is_the_mean_of_the_last():
    params, batch = first_state().params, pairs()
    found = encoded(MODEL_CONFIG, params, batch.image)
    assert (found.grid, found.patch.shape, found.pooled.shape) == ((4, 4), (3, 16, 6), (3, 6))
    pixels = (np.float32(batch.image) / 255 - np.float32(0.449)) / np.float32(0.226)
    local, last = apply(TINY, {"params": params["image_encoder"]}, pixels)
    projection = params["image_projection"]
    cells = encoded(MODEL_CONFIG, params, batch.image, "global_cells")
    np.testing.assert_allclose(cells, last @ projection["kernel"] + projection["bias"][None, None, None], atol=1e-5)
    mean = np.mean(cells, axis=(1, 2))
    np.testing.assert_allclose(found.pooled, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)
    other = dataclasses.replace(MODEL_CONFIG, image_encoder=dataclasses.replace(TINY, local_stage=2))
    deeper = encoded(other, params, batch.image)
    np.testing.assert_allclose(deeper.pooled, found.pooled, atol=1e-5)
    assert np.abs(deeper.patch - found.patch).max() > 1e-2
    assert np.abs(local - last).max() > 1e-2


def test_a_step_of_training_is_finite_and_moves_every_part_of_the_encoder():
    state, batch, model, optimizer = first_state(), pairs(), PlanModel(MODEL_CONFIG), make_optimizer(MODEL_CONFIG)
    before = jax.tree.map(np.array, state.params["image_encoder"])
    step = train_step.lower(state, batch, model=model, optimizer=optimizer, config=MODEL_CONFIG).compile(oracle.QUICK)
    state, _ = step(state, batch)  # the warmup begins with a rate of 0
    state, metrics = step(state, batch)
    assert {name for name, value in metrics.items() if not np.isfinite(value)} == set()
    assert metrics["gradient_norm"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert state.batch_stats == {}
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.params["image_encoder"])
    del moved["layers"]["attention"]["key"]["bias"]  # the softmax does not see it: its gradient is rounding
    assert all(jax.tree.leaves(moved))


# timm itself, where it is installed.


@pytest.fixture
def timm(monkeypatch):
    torch = pytest.importorskip("torch", reason="parity with timm needs PyTorch (CPU)")
    register = torch.library.register_fake

    def register_known(op, *arguments, **options):
        """A torchvision without its compiled operators, which some platforms have, would refuse to import."""
        known = not (isinstance(op, str) and op.startswith("torchvision::"))
        return register(op, *arguments, **options) if known else lambda function: function

    monkeypatch.setattr(torch.library, "register_fake", register_known)
    return pytest.importorskip("timm", reason="parity with timm needs timm and torchvision")


def timm_state(config, params):
    """{name in timm: array in torch's order of axes}."""
    p = jax.tree.map(np.asarray, params["params"])
    state = {"cls_token": p["class_token"], "pos_embed": p["position"]}
    state |= {"patch_embed.proj.weight": p["patch_conv"]["kernel"].transpose(3, 2, 0, 1)}
    state |= {"patch_embed.proj.bias": p["patch_conv"]["bias"]}
    state |= {"norm.weight": p["final_norm"]["scale"], "norm.bias": p["final_norm"]["bias"]}
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        attention = layer["attention"]
        qkv = [attention[name] for name in ("query", "key", "value")]
        joined = {name: np.concatenate([part[name] for part in qkv], axis=-1) for name in ("kernel", "bias")}
        dense = {"attn.qkv": joined, "attn.proj": attention["output"]}
        dense |= {"mlp.fc1": layer["intermediate"], "mlp.fc2": layer["output"]}
        for name, part in dense.items():
            state |= {f"blocks.{i}.{name}.weight": part["kernel"].T, f"blocks.{i}.{name}.bias": part["bias"]}
        for name, part in {"norm1": layer["attention_norm"], "norm2": layer["mlp_norm"]}.items():
            state |= {f"blocks.{i}.{name}.weight": part["scale"], f"blocks.{i}.{name}.bias": part["bias"]}
    return state


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("size", [224, 288])
def test_maps_and_gradients_of_vit_b16_equal_timm(size, timm):
    torch = pytest.importorskip("torch")
    params, image = random_params(VIT_B16, spread=0.03), images(size, size, count=1)
    theirs = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in timm_state(VIT_B16, params).items()})
    blocks = [VIT_B16.local_stage - 1, VIT_B16.layers - 1]
    want = (
        theirs.double()
        .eval()
        .forward_intermediates(
            torch.tensor(image.transpose(0, 3, 1, 2)).double(), blocks, norm=True, intermediates_only=True
        )
    )
    weights = [np.random.default_rng(4).normal(size=m.shape).transpose(0, 2, 3, 1) for m in want]
    sum((m.permute(0, 2, 3, 1) * torch.tensor(w)).sum() for m, w in zip(want, weights, strict=True)).backward()

    def scalar(params):
        maps = ViT(VIT_B16).apply(params, image, train=False)
        return sum((m * w.astype("f4")).sum() for m, w in zip(maps, weights, strict=True)), maps

    gradient, maps = jax.jit(jax.grad(scalar, has_aux=True))(params)
    assert max(relative(m, w.detach().numpy().transpose(0, 2, 3, 1)) for m, w in zip(maps, want, strict=True)) < 1e-5
    found = timm_state(VIT_B16, gradient)
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    errors = {name: relative(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-4, max(errors, key=errors.get)
