"""The compiled programs: a head's first state, a step of its training, the boxes in a batch of films."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8

from plan_jax.config import Config
from plan_jax.detection.anchors import anchors_of
from plan_jax.detection.boxes import Detections, decode, suppress
from plan_jax.detection.head import YoloHead, scales_of
from plan_jax.detection.loss import Boxes, yolo_loss
from plan_jax.model import PlanModel
from plan_jax.train.state import TrainState


@functools.partial(jax.jit, static_argnames=("config", "classes"))
def first_state(encoder: Any, *, config: Config, classes: int) -> TrainState:
    """The head before its first step, drawn from `detection.seed`."""
    size = config.detection.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.uint8)
    maps = jax.eval_shape(functools.partial(_frozen_maps, config=config), encoder, image)
    variables = _head(config, classes).lazy_init(jax.random.key(config.detection.seed), maps, train=False)
    params = variables["params"]
    # The state of AdamW does not depend on the learning rate.
    opt_state = _optimizer(config, 0.0).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], opt_state)


@functools.partial(jax.jit, static_argnames=("config", "classes"), donate_argnames="state")
def head_step(
    state: TrainState,
    encoder: Any,
    image: UInt8[Array, "I S S 1"],
    boxes: Boxes,
    *,
    config: Config,
    classes: int,
    learning_rate: Float[Array, ""] | float,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The next state of the head, whose buffers are donated, and the step's loss and its parts.

    The encoder (the variables of a PlanModel) is only read: no gradient, its BatchNorm by the running statistics.
    """
    maps, head = _frozen_maps(encoder, image, config=config), _head(config, classes)
    anchors = anchors_of(config.detection, len(maps))

    def loss_of(params: Any) -> tuple[Array, tuple[dict[str, Array], Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, updated = head.apply(variables, maps, train=True, mutable=["batch_stats"])
        loss, parts = yolo_loss(outputs, boxes, anchors=anchors, config=config.detection)
        return loss, (parts, updated["batch_stats"])

    (loss, (parts, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = _optimizer(config, learning_rate).update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), {"loss": loss, **parts}


@functools.partial(jax.jit, static_argnames=("config", "classes"))
def detect_batch(
    head: Any, encoder: Any, image: UInt8[Array, "I S S 1"], *, config: Config, classes: int
) -> Detections:
    """The boxes in films, by the variables of a head and of a PlanModel."""
    maps = _frozen_maps(encoder, image, config=config)
    outputs: Any = _head(config, classes).apply(head, maps, train=False)
    anchors = anchors_of(config.detection, len(maps))
    return suppress(*decode(outputs, anchors=anchors, size=config.detection.image_size), config=config.detection)


def _frozen_maps(encoder: Any, image: UInt8[Array, "I S S 1"], *, config: Config) -> list[Float[Array, "I _ _ _"]]:
    """The last stages that the head reads, fine to coarse."""
    maps: Any = PlanModel(config).apply(encoder, image, train=False, method="stage_maps")
    return maps[-scales_of(config) :]


def _head(config: Config, classes: int) -> YoloHead:
    return YoloHead(classes, config.detection.width)


def _optimizer(config: Config, learning_rate: Array | float) -> optax.GradientTransformation:
    """As torch's AdamW, which decays every parameter."""
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, weight_decay=config.detection.weight_decay)
