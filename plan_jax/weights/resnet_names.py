"""torchvision's names of a ResNet's tensors, which are timm's too, and ours."""

from collections.abc import Iterator

from plan_jax.config import ImageEncoderConfig
from plan_jax.errors import InputError
from plan_jax.weights.links import CONV, SAME, Link

ANCHORS = ("conv1.weight", "layer1.0.conv1.weight")  # what every ResNet's tensors include, after any prefix


def resnet_links(config: ImageEncoderConfig) -> list[Link]:
    """All tensors but the classifier and the counters of batches.

    Raises:
        InputError: the encoder is no ResNet of torchvision.
    """
    if config.stem != "imagenet":
        raise InputError(
            f"image_encoder.stem must be imagenet for weights of torchvision, got {config.stem}; set it or do without"
        )
    links = [*_conv("conv1", "stem_conv"), *_norm("bn1", "stem_norm")]
    convs = 2 if config.block == "basic" else 3
    for stage, blocks in enumerate(config.stages, start=1):
        for block in range(blocks):
            theirs, ours = f"layer{stage}.{block}", f"stage{stage}_block{block}"
            for i in range(1, convs + 1):
                links += [*_conv(f"{theirs}.conv{i}", ours, f"conv{i}"), *_norm(f"{theirs}.bn{i}", ours, f"norm{i}")]
            if block == 0 and (stage > 1 or config.block == "bottleneck"):
                links += _conv(f"{theirs}.downsample.0", ours, "downsample_conv")
                links += _norm(f"{theirs}.downsample.1", ours, "downsample_norm")
    return links


def _conv(theirs: str, *ours: str) -> Iterator[Link]:
    yield Link(f"{theirs}.weight", (("params", *ours, "kernel"),), CONV)


def _norm(theirs: str, *ours: str) -> Iterator[Link]:
    leaves = {"weight": ("params", "scale"), "bias": ("params", "bias")}
    leaves |= {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
    for name, (collection, leaf) in leaves.items():
        yield Link(f"{theirs}.{name}", ((collection, *ours, leaf),), SAME)
