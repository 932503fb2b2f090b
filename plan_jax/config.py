"""Every setting and its default, once. `[paper]` and `[ours]` say where a value comes from.

A config file (configs/*.py) calls `default_config()` and changes fields; the result is an ml_collections
ConfigDict, locked and typed. `freeze` turns it into the dataclasses below, which are hashable (static
arguments of jit) and which all code reads.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import typing
from pathlib import Path

from ml_collections import ConfigDict

from plan_jax.config_checks import Rule, Source, checked, choice
from plan_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut into batches."""

    dir: str = ""  # a folder written by `python -m plan_jax build`
    mixture: tuple[Source, ...] = ()  # further such folders; `dir`, whose tokenizer is used, has weight 1 beside them
    level: str = choice("easy", "easy", "cooc", "realistic")  # of the phantom that `ablate` builds where dir is empty
    batch_size: int = 32  # global, over all processes
    image_size: int = 224  # side of the square input in pixels (GLoRIA, MGCA)
    crop: float = 0.875  # share of the loaded square's side that the model sees: 224 of 256 (GLoRIA, MGCA); 1 is all
    fit_side: str = choice("long", "long", "short")  # of an image, that fills the loaded square; short: BioViL
    max_tokens: int = 128  # T: word pieces per report, special pieces included
    max_words: int = 97  # L: words per report
    # of a report, what training reads: this section, or the whole report where it is missing or has no sentence [ours]
    text: str = choice("report", "report", "findings", "impression")
    # and of that, anew in each step: all, all in random order, one at random, or some in their order [ours]
    sentences: str = choice("shuffled", "all", "shuffled", "one", "some")
    workers: int = 0  # Grain worker processes; 0 reads in threads of the main process
    prefetch: int = 2  # batches on their way to the device ahead of the step


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How much training images are changed beside the random crop of `data.crop` (`plan_jax.augment`); 0 is not at all.

    There is no mirroring: left and right are words of the reports. Off by default [ours: nothing measured favours it].
    """

    scale: float = 0.0  # enlarged by a factor from 1 / (1 + scale) to 1 + scale, its logarithm uniform
    rotation: float = 0.0  # turned by at most so many degrees either way; needs a gather, slow on a TPU
    gain: float = 0.0  # gray levels times a factor, drawn as that of scale, and cut at 255
    gamma: float = 0.0  # gray levels, as shares of 255, to the power of a factor that is drawn so


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """ResNet by size, stem and stages, or ViT by size. Defaults: ResNet-50 [paper: a ResNet; ours: which]."""

    kind: str = choice("resnet", "resnet", "vit")
    channels: int = 1  # of the first kernel: 3 as published weights have, whose sum then meets the gray image; or 1
    stem: str = choice("imagenet", "imagenet", "patchify")  # 7x7/2 + max pool, or one patch-sized convolution
    patch: int = 4  # side of the patchify stem's kernel and its stride; of a ViT's patches, 16 as published
    width: int = 64  # channels of the first stage, doubled in each later one
    stages: tuple[int, ...] = (3, 4, 6, 3)  # blocks per stage
    block: str = choice("bottleneck", "basic", "bottleneck")
    local_stage: int = 3  # 1-based stage, or block of a ViT, whose map gives the patch features [ours]
    side_taps: float = 1.0  # scale, 0 to 1, of a 3x3 kernel's initial weights beside its centre (resnet._centred_init)
    # train: statistics of the global batch, over all devices (synchronised BatchNorm, which jit over a mesh gives for
    # free); local: of each device's part, no collective but the running ones' mean; frozen: the running ones
    batch_norm: str = choice("train", "train", "local", "frozen")
    hidden: int = 768  # from here on of a ViT; defaults: ViT-B
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    grid: int = 14  # side of the grid of stored position embeddings, 224 px / 16; other images meet it interpolated
    # what a block keeps for the backward pass, which computes the rest again: everything; only the results of its
    # convolutions and products with a kernel; only what enters it (`plan_jax.encoders.remat`)
    remat: str = choice("none", "none", "products", "block")
    dtype: str = choice("float32", "float32", "bfloat16")  # of the computation; parameters are float32
    weights: str = ""  # what it starts from: a file, a folder, or OWNER/NAME at the Hugging Face Hub; "" is random
    weights_prefix: str = ""  # of the tensors' names, where a file holds several encoders


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """BERT by size. Defaults: BERT-base, as BioClinicalBERT [paper]."""

    vocab_size: int = 28996  # set from the tokenizer when training starts
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    dropout: float = 0.1
    context: str = choice("report", "report", "sentence")  # what a word's feature may depend on [ours]
    last_layers: int = 1  # hidden states summed into the token features: 1 or 4
    remat: str = choice("none", "none", "products", "block")  # the same for a layer
    dtype: str = choice("float32", "float32", "bfloat16")
    weights: str = ""  # as image_encoder.weights; the vocabulary beside them replaces that of the data
    weights_prefix: str = ""


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """The fields of the method's equations (`plan_jax.alignment.reference`). All forms and values are [ours]."""

    dim: int = 256  # D, the joint space
    rounds: int = 3  # K, refinement rounds [paper: iterate; ours: how many]
    history: float = 0.5  # rho, weight of S_k in S_{k+1}
    evidence: float = 0.5  # gamma, weight of the region in the updated word
    region_temperature: float = 0.1  # tau_region
    early_temperatures: tuple[float, ...] = ()  # tau_region of equal parts of the first train.early_share of the steps
    word_importance: str = choice("text", "text", "pair", "uniform")
    word_temperature: float = 0.1  # tau_word, used by word_importance = pair
    word_keep: float = 1.0  # share of a report's words that enter the local similarity
    importance: float = 0.0  # exponent of the patch importance in the attention; 0 switches it off
    patch_temperature: float = 0.1  # tau_patch
    aggregation: str = choice("mean", "mean", "logsumexp")  # over words
    aggregation_temperature: float = 0.2
    map_words: str = choice("max", "max", "mean")  # how a phrase's words make one map (`grounding_map`)
    map_spread: float = 0.0  # sigma in patches of the Gaussian mean that every map is given; 0 is none
    region_norm: bool = True  # cosine <r/|r|, w> or plain <r, w>
    dtype: str = choice("float32", "float32", "bfloat16")  # of the matrix products' operands; sums are float32
    implementation: str = choice("auto", "auto", "reference", "scan", "pallas")  # auto: by platform
    exchange: str = choice("gather", "gather", "ring")  # of reports between devices; ring holds one shard at a time


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and temperatures of the two contrastive losses."""

    global_weight: float = 1.0
    local_weight: float = 1.0
    global_temperature: float = 0.1
    local_temperature: float = 0.1
    deep_supervision: float = 0.0  # weight of the local loss of every round before the last


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warmup, cosine decay to zero and clipping by global norm.

    The pattern of a rule is a regular expression, searched in a parameter's path: "image_encoder/.*/kernel$",
    f"text_encoder/layers/{i}/" for layer i. The factors of all rules that match a parameter are multiplied, so their
    order says nothing, and a file adds its own to these: config.optim.rules += (("text_encoder/", 0.1, 1.0),).

    A learning-rate factor of 0 freezes a parameter, and nothing else: image_encoder.batch_norm = "frozen" also holds
    the batch statistics, text_encoder.dropout = 0.0 the activations.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    rules: tuple[Rule, ...] = ((r"(?<!/kernel)$", 1.0, 0.0),)  # no decay of biases, norms and embeddings
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How training lies on the devices: a mesh of data x fsdp, over both of which the batch is spread."""

    devices: int = 0  # of this machine, the first so many; 0 is all of all machines
    fsdp: int = 1  # devices that share one copy of the parameters and moments, each holding a part; it divides devices


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what is written when."""

    steps: int = 10000
    early_share: float = 0.5  # of the steps, in which alignment.early_temperatures are used in turn
    rounds_from: float = 0.0  # share of the steps after which the refinement rounds begin; inference always has them
    # parts of a batch that go through the encoders one after the other, for memory; all of them are negatives still
    micro_batches: int = 1
    spike: float = 10.0  # a step is left out whose loss is so many standard deviations above the recent mean; 0: none
    skip_limit: int = (
        10  # steps left out in a row, for a spike or a value that is not finite, after which the run stops
    )
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # the newest; the best by validation is kept beside them
    validate_every: int = 500  # steps; 0 is never
    validation_pairs: int = 256  # of the validation split, the same every time
    pictures: int = 4  # of their grounding maps in TensorBoard
    stall_seconds: float = 900.0  # without a step, after which every process says where it waits


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How held-out data is scored."""

    split: str = choice("test", "train", "tune", "validation", "test")
    batch_size: int = 64  # images or texts that are encoded or grounded at once
    block: int = 256  # images and texts that are scored against each other at once
    memory: float = 4.0  # GiB of a split's features that are kept in memory; more lies in temporary files
    pool: int = 1000  # retrieval is also scored on pools of this size (LIMITR); 0 scores the full pool only
    bootstrap: int = 1000
    global_weight: float = 0.5  # of the cosine of global features in an image-text score
    local_weight: float = 0.5  # of the local similarity in an image-text score
    prompt_aggregation: str = choice("mean", "mean", "max")  # of a class's prompts; max: GLoRIA
    # of zero-shot scores; over the test set: GLoRIA, so that a score depends on the other images
    normalise: str = choice("none", "none", "zscore_over_test_set")
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)  # of the training patients, for the linear probe (GLoRIA, MGCA)
    prompt: str = "{}"  # the sentence that a phrase is put into before it is grounded, as reports would say it [ours]
    competition: float = 0.5  # eta, how much a map gives way to those of other findings (`competition` read-out) [ours]
    competition_temperature: float = 0.1
    untrained: bool = False  # also score a freshly initialised network
    gallery: int = 24  # examples in gallery.html


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """A YOLOv3 detector on the frozen image encoder. Values are those of MGCA's detector where nothing else is said."""

    image_size: int = 224  # side in pixels of the square that holds the whole film: data.crop does not apply; or 416
    anchors: tuple[int, ...] = (  # width, height at 416 px (YOLOv3): three a scale, that of the coarsest map first
        *(116, 90, 156, 198, 373, 326),
        *(30, 61, 62, 45, 59, 119),
        *(10, 13, 16, 30, 33, 23),
    )
    width: int = 512  # channels of the 1x1 blocks at the coarsest scale, halved at each finer one
    xy_weight: float = 2.5  # of the cross-entropy of a box's centre within its cell
    wh_weight: float = 2.5  # of the squared error of the logarithm of its size by its anchor's
    object_weight: float = 1.0
    background_weight: float = 0.5
    class_weight: float = 1.0
    ignore_iou: float = 0.5  # an anchor that is this much like a box in its cell is no background
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)  # shares of the training patients, each part of the next
    seed: int = 42  # of the fractions, the first parameters and the order of the images
    epochs: int = 50
    patience: int = 10  # epochs without a better validation mAP after which training ends
    batch_size: int = 16
    learning_rate: float = 5e-4  # AdamW, constant
    weight_decay: float = 1e-6
    small_fraction: float = 0.01  # up to this share of the patients the values below hold
    small_batch_size: int = 8
    small_learning_rate: float = 2e-4  # on RSNA, and here on all others but
    small_learning_rate_objects: float = 2.5e-4  # on Object-CXR
    candidates: int = 300  # boxes of an image, those of highest score, that enter the suppression [ours]
    kept: int = 100  # boxes of an image that may leave it, as in COCO
    nms_iou: float = 0.5  # a box that overlaps a better one of its class so much is dropped
    lowest_score: float = 0.001  # of a detection; a higher one cuts the recall [ours]
    compat_score: float = 0.5  # of a detection in `map_compat`, which knows no others


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run needs to be repeated."""

    seed: int = 0
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    detection: DetectionConfig = DetectionConfig()


def at_step(config: Config, step: int) -> Config:
    """The configuration of a training step: early steps may have a larger tau_region, and no rounds.

    A word's region starts wide, so that every patch takes part, and narrows in a few whole steps. The last part is the
    configuration itself, which inference uses too.
    """
    alignment, train = config.alignment, config.train
    early, steps = alignment.early_temperatures, train.early_share * train.steps
    part = int(step / steps * len(early)) if steps else len(early)
    if part < len(early):
        alignment = dataclasses.replace(alignment, region_temperature=early[part])
    if step < train.rounds_from * train.steps:
        alignment = dataclasses.replace(alignment, rounds=0)
    return dataclasses.replace(config, alignment=alignment)


def default_config() -> ConfigDict:
    """The defaults as a locked ConfigDict, for configs/*.py to change."""
    return ConfigDict(dataclasses.asdict(Config())).lock()


def freeze(config: ConfigDict) -> Config:
    """The dataclasses of a ConfigDict.

    Raises:
        InputError: a field is unknown, or its value is not one of its choices.
    """
    return _build(Config, config.to_dict(), "config")


def save_config(path: Path, config: Config) -> None:
    """Writes a run's config.json; a kill leaves the file before or the whole new one."""
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    os.replace(partial, path)


def config_hash(config: Config) -> str:
    """SHA-256 of every setting but the data's folders, in hex: names a configuration, whatever the machine."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(placeless(config)), sort_keys=True).encode()).hexdigest()


def placeless(config: Config) -> Config:
    """The configuration without the names of the data's folders, which may be moved; weights stay."""
    mixture = tuple(("DIR", weight) for _, weight in config.data.mixture)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir="", mixture=mixture))


def load_config(path: Path) -> Config:
    """Reads a run's config.json.

    Raises:
        InputError: the file is missing, is not JSON, or holds a field this version does not know.
    """
    if not path.is_file():
        raise InputError(f"{path} must be a run's configuration, got no such file; train first or check --workdir")
    try:
        values = json.loads(path.read_text(), object_hook=_with_present_names)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be JSON, got {error}; restore the file that training wrote") from error
    return _build(Config, values, str(path))


def _with_present_names(fields: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Fields as an earlier version wrote them: `remat` once said whether, and not what is kept."""
    if isinstance(fields.get("remat"), bool):
        fields["remat"] = "block" if fields["remat"] else "none"
    return fields


def _build(kind: type, values: typing.Any, where: str) -> typing.Any:
    """`kind` filled from a dictionary; fields that are absent keep their default."""
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a group of fields, got {values!r}; see plan_jax/config.py")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    filled = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"choose from {', '.join(fields)}"
            raise InputError(f"{where} must have only known fields, got {name!r}; {hint}")
        field = fields[name]
        if dataclasses.is_dataclass(field.type):
            filled[name] = _build(typing.cast(type, field.type), value, f"{where}.{name}")
        else:
            filled[name] = checked(field, value, f"{where}.{name}")
    return kind(**filled)
