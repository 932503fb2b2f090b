"""ResNet against two oracles: numpy written from the definition, and torchvision's definition in PyTorch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from plan_jax.config import ImageEncoderConfig
from plan_jax.encoders.resnet import ResNet, _centred_init, receptive_field

RESNET18 = ImageEncoderConfig(block="basic", stages=(2, 2, 2, 2), channels=3)
RESNET50 = ImageEncoderConfig(channels=3)
TINY = ImageEncoderConfig(block="basic", stages=(1, 2), width=3)
PATCHIFY = dataclasses.replace(TINY, stem="patchify", patch=4)
MOMENTUM = 0.1  # torch's: the weight of the new batch


def random_variables(config, channels, seed=0):
    """Parameters and statistics in which no scale is 1 and no bias 0, so that a swap or an omission shows."""
    rng = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: ResNet(config).init(key, x, train=False), jax.random.key(0), image)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(size=leaf.shape).astype("f4") * np.float32((2 / np.prod(leaf.shape[:3])) ** 0.5)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype("f4")
        return rng.normal(size=leaf.shape).astype("f4") * np.float32(0.2)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@partial(jax.jit, static_argnums=(0, 3))
def apply(config, variables, image, train):
    """(maps, statistics after)."""
    maps, changed = ResNet(config).apply(variables, image, train=train, mutable=["batch_stats"])
    return maps, changed.get("batch_stats", variables["batch_stats"])


def shapes_of(config, size, channels=1):
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda k, x: ResNet(config).init_with_output(k, x, train=False), jax.random.key(0), image)


# An oracle in numpy, float64, loops over the output positions.


def np_sliding(x, reduce, kernel, stride, padding, fill):
    """reduce([B kernel kernel c]) -> [B d] at every position."""
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), constant_values=fill)
    tops, lefts = (range(0, side - kernel + 1, stride) for side in x.shape[1:3])
    rows = [[reduce(x[:, i : i + kernel, j : j + kernel]) for j in lefts] for i in tops]
    return np.array(rows).transpose(2, 0, 1, 3)


def np_conv(x, params, stride, padding):
    kernel = np.float64(params["kernel"])
    return np_sliding(x, lambda w: np.einsum("bijc,ijcd->bd", w, kernel), len(kernel), stride, padding, 0.0)


class NumpyResNet:
    def __init__(self, config, variables, train):
        self.config, self.train, self.updated = config, train, {}
        self.params, self.stats = variables["params"], variables["batch_stats"]

    def norm(self, x, *path):
        params, stats = self.params, self.stats
        for name in path:
            params, stats = params[name], stats[name]
        mean, var = np.float64(stats["mean"]), np.float64(stats["var"])
        if self.train:
            samples = x.reshape(-1, x.shape[-1])
            unbiased = samples.var(0, ddof=1)
            update = [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in ((mean, samples.mean(0)), (var, unbiased))]
            self.updated[path] = dict(zip(("mean", "var"), update, strict=True))
            mean, var = samples.mean(0), samples.var(0)
        return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]

    def block(self, x, name, stride):
        params, basic = self.params[name], self.config.block == "basic"
        strides, paddings = ((stride, 1), (1, 1)) if basic else ((1, stride, 1), (0, 1, 0))
        y = x
        for i, (s, padding) in enumerate(zip(strides, paddings, strict=True), start=1):
            y = self.norm(np_conv(y, params[f"conv{i}"], s, padding), name, f"norm{i}")
            y = np.maximum(y, 0) if i < len(strides) else y
        if "downsample_conv" in params:
            x = self.norm(np_conv(x, params["downsample_conv"], stride, 0), name, "downsample_norm")
        return np.maximum(x + y, 0)

    def __call__(self, x):
        imagenet, maps = self.config.stem == "imagenet", []
        stride, padding = (2, 3) if imagenet else (self.config.patch, 0)
        x = np_conv(np.float64(x), self.params["stem_conv"], stride, padding)
        x = np.maximum(self.norm(x, "stem_norm"), 0)
        x = np_sliding(x, lambda w: w.max(axis=(1, 2)), 3, 2, 1, -np.inf) if imagenet else x
        for stage, blocks in enumerate(self.config.stages, start=1):
            for i in range(blocks):
                x = self.block(x, f"stage{stage}_block{i}", 2 if stage > 1 and i == 0 else 1)
            maps.append(x)
        return maps


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["imagenet", "patchify"])
def test_maps_and_statistics_equal_numpy(stem, block, train):
    config = dataclasses.replace(TINY, stem=stem, block=block, channels=3)
    variables = random_variables(config, channels=3)
    image = np.random.default_rng(1).normal(size=(2, 21, 18, 3)).astype("f4")
    oracle = NumpyResNet(config, variables, train)
    expected = oracle(image)
    maps, stats = apply(config, variables, image, train)
    assert len(maps) == len(expected) == 2
    for got, want in zip(maps, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert len(oracle.updated) == (len(jax.tree.leaves(stats)) // 2 if train else 0)
    for path, want in oracle.updated.items():
        got = stats
        for name in path:
            got = got[name]
        np.testing.assert_allclose(got["mean"], want["mean"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got["var"], want["var"], rtol=1e-5)


def test_frozen_statistics_are_used_and_kept_in_training():
    variables = random_variables(PATCHIFY, channels=1)
    image = np.random.default_rng(1).normal(size=(2, 16, 16, 1)).astype("f4")
    frozen = ResNet(dataclasses.replace(PATCHIFY, batch_norm="frozen"))
    maps = frozen.apply(variables, image, train=True)  # nothing is mutable: an update would raise
    expected = ResNet(PATCHIFY).apply(variables, image, train=False)
    for got, want in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(got, want)


# torchvision's published counts, 11,689,512 and 25,557,032, less the classifier: (512 + 1) and (2048 + 1) * 1000.
@pytest.mark.parametrize(("config", "published"), [(RESNET18, 11_176_512), (RESNET50, 23_508_032)])
@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_are_as_many_as_torchvision_has(config, published, channels):
    _, variables = shapes_of(dataclasses.replace(config, channels=channels), 64)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == published - (3 - channels) * 7 * 7 * 64
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("config", "size", "shapes"),
    [
        (RESNET18, 224, [(56, 64), (28, 128), (14, 256), (7, 512)]),
        (RESNET50, 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        (RESNET50, 299, [(75, 256), (38, 512), (19, 1024), (10, 2048)]),
        (PATCHIFY, 65, [(16, 3), (8, 6)]),  # whole patches only, and stage 1 keeps their grid
    ],
)
def test_maps_have_the_sides_and_channels_of_the_definition(config, size, shapes):
    maps, _ = shapes_of(config, size)
    assert [m.shape for m in maps] == [(2, side, side, channels) for side, channels in shapes]


def test_bfloat16_is_computed_but_not_stored():
    config = dataclasses.replace(PATCHIFY, dtype="bfloat16")
    variables = random_variables(config, channels=1)
    image = np.random.default_rng(1).normal(size=(2, 32, 32, 1)).astype("f4")
    maps, stats = apply(config, variables, image, True)
    expected, _ = apply(PATCHIFY, variables, image, True)
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    for got, want in zip(maps, expected, strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.linalg.norm(got.astype("f4") - want) < 0.02 * np.linalg.norm(want)


@pytest.mark.parametrize("policy", ["products", "block"])
def test_blocks_computed_again_change_neither_names_nor_values_nor_gradients(policy):
    variables = random_variables(TINY, channels=1)
    structure = jax.tree.structure(random_variables(dataclasses.replace(TINY, remat=policy), channels=1))
    assert structure == jax.tree.structure(variables)
    config = dataclasses.replace(TINY, dtype="float64")
    again = dataclasses.replace(config, remat=policy)
    image = np.random.default_rng(1).normal(size=(2, 32, 32, 1))

    def scalar(config, params):
        maps, stats = apply(config, {**variables, "params": params}, image, True)
        return sum((m**2).sum() for m in maps), stats

    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        gradient = jax.jit(jax.grad(scalar, argnums=1, has_aux=True), static_argnums=0, compiler_options=oracle.QUICK)
        want, got = (jax.device_get(gradient(c, variables["params"])) for c in (config, again))
        program = str(jax.make_jaxpr(partial(scalar, again))(variables["params"]))
    assert program.count("prevent_cse=True") == sum(config.stages)  # the mark of a block that is computed again
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), got, want)


def test_kernels_start_as_torchvision_starts_them():
    config = dataclasses.replace(RESNET18, stages=(1,))
    init = jax.jit(partial(ResNet(config).init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for kernel in (params["stem_conv"]["kernel"], params["stage1_block0"]["conv1"]["kernel"]):
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        assert float(kernel.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_receptive_field_by_hand():
    # 7x7/2: 7; pool 3x3/2: 7+2*2 = 11, stride 4. Per stage of ResNet-18, four 3x3s, the first at the stride before:
    # 11+4*8 = 43; 43+8+3*16 = 99; 99+16+3*32 = 211; 211+32+3*64 = 435.
    assert receptive_field(RESNET18) == [43, 99, 211, 435]
    # ResNet-50 has one 3x3 per block: 11+3*8 = 35; 35+8+3*16 = 91; 91+16+5*32 = 267; 267+32+2*64 = 427.
    assert receptive_field(RESNET50) == [35, 91, 267, 427]
    # 4x4/4: 4; a basic block at stride 4: 4+2*8 = 20; then 20+8+3*16 = 76.
    assert receptive_field(PATCHIFY) == [20, 76]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["imagenet", "patchify"])
def test_receptive_field_is_the_footprint_of_the_gradient(stem, block):
    config = dataclasses.replace(TINY, stem=stem, block=block, width=1)
    variables = jax.tree.map(jnp.ones_like, random_variables(config, channels=1))  # positive: no relu is shut
    ramp = jnp.broadcast_to(jnp.linspace(1.0, 2.0, 160)[:, None], (160, 160))  # the pool follows the maximum:
    ramps = jnp.stack([ramp, ramp[::-1]])[..., None]  # one ramp reaches the last pixel, the other the first
    for stage, field in enumerate(receptive_field(config)):

        def cell(x, stage=stage):
            out = ResNet(config).apply(variables, x, train=False)[stage]
            return out[:, out.shape[1] // 2, out.shape[2] // 2].sum()

        rows = np.flatnonzero(np.abs(jax.jit(jax.grad(cell))(ramps)).sum(axis=(0, 2, 3)))
        assert rows[-1] - rows[0] + 1 == field


# torchvision.models.resnet, written out in PyTorch over the names of its state dict.


def torch_maps(torch, state, config, x, train):
    def norm(x, name):
        stats = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return torch.batch_norm(x, state[f"{name}.weight"], state[f"{name}.bias"], *stats, train, 0.1, 1e-5, False)

    def conv(x, name, stride, padding):
        return torch.conv2d(x, state[f"{name}.weight"], None, stride, padding)

    def block(x, name, stride):
        if config.block == "basic":
            y = torch.relu(norm(conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1"))
            y = norm(conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
        else:
            y = torch.relu(norm(conv(x, f"{name}.conv1", 1, 0), f"{name}.bn1"))
            y = torch.relu(norm(conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3", 1, 0), f"{name}.bn3")
        if stride != 1 or x.shape[1] != y.shape[1]:
            x = norm(conv(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")
        return torch.relu(x + y)

    x, maps = torch.relu(norm(conv(x, "conv1", 2, 3), "bn1")), []
    x = torch.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate(config.stages, start=1):
        for i in range(blocks):
            x = block(x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1)
        maps.append(x.permute(0, 2, 3, 1))
    return maps


def torch_name(path):
    """The name in torchvision's state dict of a parameter or statistic."""
    *modules, leaf = [key.key for key in path]
    if modules[0].startswith("stage"):
        stage, block = modules[0].removeprefix("stage").split("_block")
        modules[0] = f"layer{stage}.{block}"
    name = ".".join(modules).replace("stem_conv", "conv1").replace("stem_norm", "bn1")
    name = name.replace("downsample_conv", "downsample.0").replace("downsample_norm", "downsample.1")
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
    return f"{name.replace('norm', 'bn')}.{leaf}"


def torch_tree(tree):
    """{name in torchvision: array in torch's order of axes}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {torch_name(k): np.array(v.transpose(3, 2, 0, 1) if v.ndim == 4 else v) for k, v in leaves}


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(
    ("config", "size", "train"),
    [(RESNET18, 224, True), (RESNET18, 299, False), (RESNET50, 224, False), (RESNET50, 299, True)],
    ids=["resnet18-224-train", "resnet18-299-eval", "resnet50-224-eval", "resnet50-299-train"],
)
def test_maps_gradients_and_statistics_equal_torchvision(config, size, train):
    torch = pytest.importorskip("torch", reason="parity with torchvision's definition needs PyTorch (CPU)")
    # In float64: in float32 rounding opens and shuts a few relus, which alone moves gradients by about 1e-2.
    single = random_variables(config, channels=3)
    variables = jax.tree.map(np.float64, single)
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2 if size == 224 else 1, size, size, 3))
    state = {k: torch.tensor(v) for part in variables.values() for k, v in torch_tree(part).items()}
    learned = {name: state[name].requires_grad_() for name in torch_tree(variables["params"])}
    want_maps = torch_maps(torch, state, config, torch.tensor(image.transpose(0, 3, 1, 2)), train)
    weights = [rng.normal(size=m.shape) for m in want_maps]
    sum((m * torch.tensor(w)).sum() for m, w in zip(want_maps, weights, strict=True)).backward()
    want_maps = [m.detach().numpy() for m in want_maps]

    def scalar(params):
        double = dataclasses.replace(config, dtype="float64")
        maps, stats = apply(double, {**variables, "params": params}, image, train)
        return sum((m * w).sum() for m, w in zip(maps, weights, strict=True)), (maps, stats)

    with jax.enable_x64(True):
        gradient, (maps, stats) = jax.device_get(jax.jit(jax.grad(scalar, has_aux=True))(variables["params"]))
    assert max(map(relative, maps, want_maps)) < 1e-11
    gradient, stats = torch_tree(gradient), torch_tree(stats)
    assert max(relative(gradient[name], leaf.grad.numpy()) for name, leaf in learned.items()) < 1e-11
    assert max(relative(value, state[name].numpy()) for name, value in stats.items()) < 1e-11
    maps, _ = jax.device_get(apply(config, single, np.float32(image), train))
    # In train mode ResNet-50 amplifies rounding: torch's own float32 is 2e-4 from its float64.
    assert max(map(relative, maps, want_maps)) < (5e-4 if train else 1e-5)


def kernels(side_taps: float) -> dict[str, np.ndarray]:
    config = ImageEncoderConfig(stem="patchify", width=64, stages=(1,), side_taps=side_taps)
    params = ResNet(config).init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)), train=False)["params"]
    return {name: np.asarray(leaf["kernel"]) for name, leaf in params["stage1_block0"].items() if "conv" in name}


def test_a_centred_start_scales_the_side_taps_and_keeps_the_size_of_the_weights():
    usual, centred = kernels(1.0), kernels(0.1)
    middle = usual["conv2"][1, 1]
    np.testing.assert_allclose(centred["conv2"][1, 1], middle * np.sqrt(9 - 8 * 0.01), rtol=1e-6)
    np.testing.assert_allclose(centred["conv2"][0, 2], usual["conv2"][0, 2] * 0.1, rtol=1e-6)
    assert np.square(centred["conv2"]).sum() == pytest.approx(np.square(usual["conv2"]).sum(), rel=0.02)
    for name in ("conv1", "conv3"):  # 1 x 1: nothing beside the centre
        np.testing.assert_array_equal(centred[name], usual[name])


def test_the_default_start_is_he_normal_over_the_fan_out():
    he = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(jax.random.key(3), (3, 3, 8, 8))
    np.testing.assert_array_equal(_centred_init(1.0)(jax.random.key(3), (3, 3, 8, 8)), he)
