"""Can the findings of a phantom level be learnt at all? A supervised probe, and the limit that the feature grid sets.

The probe is the project's own image path, trained on the exact masks for a few hundred steps. What it does not detect
cannot be asked of a network that learns from reports: a grounding number of that level would say nothing of the method.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from plan_jax.config import Config, DataConfig, ImageEncoderConfig, OptimConfig, TrainConfig
from plan_jax.data.image import model_input
from plan_jax.data.phantom import LEVELS, make_phantom
from plan_jax.encoders.resnet import ResNet, receptive_field
from plan_jax.errors import InputError
from plan_jax.evaluation.grounding import box_mask
from plan_jax.evaluation.progress import progress
from plan_jax.evaluation.readouts import covered
from plan_jax.geometry import Letterbox
from plan_jax.metrics.grounding import auroc, cnr, pointing, scorable
from plan_jax.model import GRAY_MEAN, GRAY_STD, PatchProjection
from plan_jax.tables.model import Cell, Column, Table
from plan_jax.train.state import TrainState, make_optimizer

IMAGES, STEPS = 4000, 300
QUICK_IMAGES, QUICK_STEPS = 2000, 150
HELD_OUT = 0.15  # held-out images per training image
BATCH = 32
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=30)
BELIEVED = 0.9  # a finding whose presence AUROC is lower counts as not learnable

COLUMNS = (
    Column("findings", "findings", 0),
    Column("presence AUROC", "presence_auroc", 3),
    Column("pointing", "pointing", 3),
    Column("signed CNR", "cnr_signed", 2),
    Column("ceiling: pointing", "ceiling_pointing", 3),
    Column("ceiling: signed CNR", "ceiling_cnr_signed", 2),
)
MAP_SCORES = tuple(column.name for column in COLUMNS[2:])


def bench(configs: Mapping[str, Config], *, quick: bool = False, seed: int = 0) -> list[dict]:
    """The rows of `probe` for every level, with few images and steps if `quick`."""
    images, steps = (QUICK_IMAGES, QUICK_STEPS) if quick else (IMAGES, STEPS)
    found = (probe(level, config, images=images, steps=steps, seed=seed) for level, config in configs.items())
    return list(itertools.chain.from_iterable(found))


def probe(level: str, config: Config, *, images: int, steps: int, seed: int) -> list[dict]:
    """Trains on the masks of `images` phantoms of a level and scores phantoms of other patients.

    Returns one row per class, ready for JSON: `level`, `class`; `presence_auroc` of the class's highest patch logit;
    `confused_with`, the class among whose images its absence is hardest to tell, and `confused_auroc` there; `findings`
    that were scored; `pointing` and `cnr_signed` of the class's map against the finding's box; `ceiling_pointing` and
    `ceiling_cnr_signed` of the box itself on the grid (a map may have more contrast: a box cut into cells has blurred
    edges); `images`, `held_out`, `steps`, `receptive_field` in pixels of the model's input, `grid` [h, w]. None where
    nothing could be scored.
    """
    if level not in LEVELS:
        raise InputError(f"level must be one of {', '.join(LEVELS)}, got {level!r}; choose one of them")
    classes, encoder = LEVELS[level][1], encoder_of(config)
    model = Probe(encoder, dim=config.alignment.dim, classes=len(classes))
    grid = _grid(model, config.data.image_size)
    train, held_out = (
        read_phantoms(level, progress(indices, f"{level}: {name}", "image"), seed=seed, data=config.data, grid=grid)
        for indices, name in zip(split_indices(images), ("images", "held out"), strict=True)
    )
    state = fit_probe(model, train, steps=steps, seed=seed, name=level)
    rows = score_probe(np.asarray(probe_logits(model, state, held_out.image)), held_out, classes=classes)
    setting = {"images": images, "held_out": len(held_out.image), "steps": steps}
    setting |= {"receptive_field": receptive_field(encoder)[-1], "grid": list(grid)}
    return [{"level": level, **row, **setting} for row in rows]


# Phantoms


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Images as the network sees them, and what is true of them.

    Attributes:
        image: gray levels in the model's square.
        share: how much of each cell the mask of each class covers.
        findings: (image, class, boxes in pixels of the original) of every finding.
        letterbox: from the originals, which have one size, to the square.
    """

    image: UInt8[np.ndarray, "I S S 1"]
    share: Float32[np.ndarray, "I h w C"]
    findings: tuple[tuple[int, int, tuple[tuple[float, float, float, float], ...]], ...]
    letterbox: Letterbox


def split_indices(images: int) -> tuple[range, range]:
    """Indices of phantoms to train on and, of other patients, to score."""
    first = -(-images // 3) * 3  # three consecutive images show two patients
    return range(images), range(first, first + max(1, round(HELD_OUT * images)))


def read_phantoms(
    level: str, indices: Iterable[int], *, seed: int, data: DataConfig, grid: tuple[int, int]
) -> Phantoms:
    """Makes the phantoms of a level, as the model sees them."""
    classes = LEVELS[level][1]
    images, shares, findings = [], [], []
    for number, index in enumerate(indices):
        scene = make_phantom(seed, index, level=level).scene
        square, letterbox = model_input(scene.image, data)
        share = np.zeros((*grid, len(classes)), np.float32)
        for finding in scene.findings:
            column = classes.index(finding.category)
            share[..., column] = covered(finding.mask, grid, letterbox)
            findings.append((number, column, finding.boxes))
        images.append((square, letterbox))
        shares.append(share)
    squares, letterboxes = zip(*images, strict=True)
    return Phantoms(np.stack(squares)[..., None], np.stack(shares), tuple(findings), letterboxes[0])


# The probe


class Probe(nn.Module):
    """The image path of `PlanModel` into the joint space, then a linear map of each patch to the classes."""

    encoder: ImageEncoderConfig
    dim: int
    classes: int

    @nn.compact
    def __call__(self, image: UInt8[Array, "I S S 1"], *, train: bool) -> Float[Array, "I h w C"]:
        """The logit of every cell and class."""
        pixels = (image.astype(jnp.float32) / 255 - GRAY_MEAN) / GRAY_STD
        local = ResNet(self.encoder, name="image_encoder")(pixels, train=train)[-1].astype(jnp.float32)
        count, height, width, channels = local.shape
        patch = PatchProjection(self.dim, name="patch_projection")(local.reshape(count, height * width, channels))
        return nn.Dense(self.classes, name="classifier")(patch).reshape(count, height, width, self.classes)


def encoder_of(config: Config) -> ImageEncoderConfig:
    """The ResNet up to the stage of the patch features; later stages would only cost time."""
    encoder = config.image_encoder
    if encoder.kind != "resnet":
        raise InputError(f"image_encoder.kind must be resnet for the probe, got {encoder.kind!r}; change it")
    if encoder.local_stage > len(encoder.stages):
        raise InputError(
            f"image_encoder.local_stage must be from 1 to {len(encoder.stages)}, the number of image_encoder.stages, "
            f"got {encoder.local_stage}; change one of them"
        )
    return dataclasses.replace(encoder, stages=encoder.stages[: encoder.local_stage])


def cell_weights(share: Float32[np.ndarray, "I h w C"]) -> Float32[np.ndarray, " C"]:
    """What the covered part of a cell counts per class, the bare part counting 1: 1 / sqrt(mean share).

    A class covers about a hundredth of the cells. With weight 1 the probe says for most of its few steps that nothing
    is anywhere; with 1 / mean share false alarms cost little, and presence is read from the highest patch. The root
    detected more than either.
    """
    mean = np.maximum(share.mean((0, 1, 2)), 1 / share[..., 0].size)  # a class may be absent from a few images
    return (1 / np.sqrt(mean)).astype(np.float32)


def cell_loss(
    logits: Float[Array, "B h w C"], share: Float[Array, "B h w C"], weight: Float[Array, " C"]
) -> Float[Array, ""]:
    """Mean sigmoid cross-entropy with the share as soft target, its covered part weighted."""
    weighted = weight[None, None, None, :] * share
    return -(weighted * jax.nn.log_sigmoid(logits) + (1 - share) * jax.nn.log_sigmoid(-logits)).mean()


def fit_probe(model: Probe, train: Phantoms, *, steps: int, seed: int, name: str) -> TrainState:
    """The probe after `steps` random batches, with a progress bar; the seed decides everything."""
    state = _first_state(model, train.image[:1], seed, steps=steps)
    data = jax.device_put((train.image, train.share, cell_weights(train.share)))
    rng = np.random.default_rng(seed)
    for _ in progress(range(steps), f"{name}: probe", "step"):
        rows = rng.choice(len(train.image), min(BATCH, len(train.image)), replace=False)
        state, loss = _step(state, rows, data, model=model, steps=steps)
        loss.block_until_ready()  # or the bar would show how fast steps are asked for
    return state


@functools.partial(jax.jit, static_argnames="model")
def probe_logits(model: Probe, state: TrainState, image: UInt8[Array, "I S S 1"]) -> Float[Array, "I h w C"]:
    """The logits of all images, computed a batch at a time."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.lax.map(lambda one: model.apply(variables, one[None], train=False)[0], image, batch_size=BATCH)


def _grid(model: Probe, size: int) -> tuple[int, int]:
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.uint8)
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), image)
    return logits.shape[1:3]


def _optimizer(steps: int) -> optax.GradientTransformation:
    return make_optimizer(Config(optim=OPTIM, train=TrainConfig(steps=steps)))


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def _first_state(model: Probe, image: Array, seed: Array | int, *, steps: int) -> TrainState:
    variables: Any = model.init(jax.random.key(seed), image, train=False)
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], _optimizer(steps).init(params))


@functools.partial(jax.jit, static_argnames=("model", "steps"), donate_argnames="state")
def _step(
    state: TrainState, rows: Int[Array, " B"], data: tuple, *, model: Probe, steps: int
) -> tuple[TrainState, Float[Array, ""]]:
    """The next state, and the loss, of the images `rows`."""
    image, share, weight = data

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, image[rows], train=True, mutable=["batch_stats"])
        return cell_loss(logits, share[rows], weight), updated.get("batch_stats", state.batch_stats)

    (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = _optimizer(steps).update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state), loss


# Scores and tables


def score_probe(logits: Float[np.ndarray, "I h w C"], phantoms: Phantoms, *, classes: Sequence[str]) -> list[dict]:
    """A row per class: what `probe` says of it, without the setting."""
    highest, present = logits.max((1, 2)), phantoms.share.max((1, 2)) > 0
    maps: list[list[tuple[float, ...]]] = [[] for _ in classes]
    for image, column, boxes in phantoms.findings:
        truth = box_mask(boxes, phantoms.letterbox.height, phantoms.letterbox.width)
        if scorable(truth):
            maps[column].append(_map_scores(logits[image, ..., column], truth, phantoms.letterbox))
    rows = []
    for column, name in enumerate(classes):
        scores, own = highest[:, column], present[:, column]
        among = [
            (_auroc(scores, own, among=own | shown), other) for shown, other in zip(present.T, classes, strict=True)
        ]
        value, other = min((pair for pair in among if pair[0] is not None), default=(None, None))
        means = np.mean(maps[column], axis=0).tolist() if maps[column] else [None] * len(MAP_SCORES)
        row = {"class": name, "findings": len(maps[column]), "presence_auroc": _auroc(scores, own)}
        row |= {"confused_with": other, "confused_auroc": value}
        rows.append(row | dict(zip(MAP_SCORES, means, strict=True)))
    return rows


def _map_scores(logits: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "H W"], letterbox: Letterbox) -> tuple:
    """MAP_SCORES of one finding."""
    best = covered(truth, logits.shape, letterbox)
    maps = [letterbox.map_to_original(grid_map) for grid_map in (logits, best)]
    return tuple(metric(full, truth) for full in maps for metric in (pointing, cnr))


def _auroc(scores: np.ndarray, labels: np.ndarray, *, among: np.ndarray | slice = slice(None)) -> float | None:
    """AUROC among some images; None where they are all of one kind."""
    scores, labels = scores[among], labels[among]
    return auroc(scores, labels) if labels.any() and not labels.all() else None


def bench_tables(rows: Sequence[dict]) -> list[Table]:
    """A table per level: every class, then the averages over the classes."""
    tables = []
    for _, group in itertools.groupby(rows, operator.itemgetter("level")):
        every = list(group)
        known = [[row[column.name] for row in every if row[column.name] is not None] for column in COLUMNS]
        cells: list[tuple[Cell, ...]] = [(row["class"], *(row[column.name] for column in COLUMNS)) for row in every]
        cells.append(("macro average", *(float(np.mean(values)) if values else None for values in known)))
        title = (
            "Level {level}: supervised probe, {steps} steps on the masks of {images} images, {held_out} held out "
            "(grid {grid[0]} x {grid[1]}, receptive field {receptive_field} px)"
        ).format_map(every[0])
        tables.append(Table(title, (Column("class", "class"), *COLUMNS), tuple(cells)))
    return tables


def bench_verdicts(rows: Sequence[dict]) -> list[str]:
    """A line per level: the findings whose presence AUROC is below BELIEVED, and what each is taken for."""
    lines = []
    for level, every in itertools.groupby(rows, operator.itemgetter("level")):
        weak = [_weakness(row) for row in every if row["presence_auroc"] is None or row["presence_auroc"] < BELIEVED]
        said = f"{', '.join(weak)}. Not to be believed" if weak else "no finding"
        lines.append(f"{level}: presence AUROC below {BELIEVED} for {said}.")
    return lines


def _weakness(row: dict) -> str:
    if row["presence_auroc"] is None:
        return f"{row['class']} (not scored)"
    other = f"; {row['confused_auroc']:.3f} among images of {row['confused_with']}" if row["confused_with"] else ""
    return f"{row['class']} ({row['presence_auroc']:.3f}{other})"
