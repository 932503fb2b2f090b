"""How a training state lies on a mesh: a table of rules by path, outside of the model.

Devices along the axis `fsdp` share one copy of what the table cuts, parameters and moments alike (a moment's path ends
in its parameter's); devices along `data` each have a copy.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plan_jax.sharding import FSDP

# (pattern of a path, axis that is cut); the first that is found in a path holds. An axis that the devices do not divide
# is left whole. Kernels are cut along what they give: a vocabulary or three gray channels are seldom divided evenly.
RULES = (
    (r"/layers/.*/kernel$", 2),  # [layers in out/fsdp]
    (r"/embedding$", 1),  # [words E/fsdp], as positions and token types
    (r"conv[^/]*/kernel$", 3),  # [height width in out/fsdp], also of a stem or a shortcut
    (r"/kernel$", -1),  # [in out/fsdp], [kh kw in out/fsdp]
    (r"", None),  # biases, norms, batch statistics, the step: whole
)


def placement(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes, such as a TrainState."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: NamedSharding(mesh, _spec(keys, leaf, mesh)), tree)


@jax.custom_vjp
def gathered(tree: Any) -> Any:
    """The same inside a jitted function, all of every leaf on every device for this use.

    Left to itself the compiler gathers activations too. How a cotangent lies is left to it: it ends up in the place
    of what it is added to, so that each device receives the sum of its own part only. That of an embedding is summed
    over all devices first: cut at once, its rows, which are found by token, would have all tokens gathered.
    """
    if not _is_cut():
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def _pull_gathered(_: None, cotangent: Any) -> tuple[Any]:
    def one(keys: Any, leaf: Any) -> Any:
        found = jax.tree_util.keystr(keys, simple=True, separator="/").endswith("/embedding")
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec()) if found else leaf

    return (jax.tree_util.tree_map_with_path(one, cotangent) if _is_cut() else cotangent,)


gathered.defvjp(lambda tree: (gathered(tree), None), _pull_gathered)


def _is_cut() -> bool:
    """Whether the mesh in force has devices that share parameters."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get(FSDP, 1) > 1


def kept_in_place(tree: Any) -> Any:
    """The same inside a jitted function, every leaf held to its place on the mesh in force."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: jax.lax.with_sharding_constraint(leaf, _spec(keys, leaf, mesh)), tree
    )


def _spec(keys: Any, leaf: Any, mesh: Any) -> PartitionSpec:
    path = "/" + jax.tree_util.keystr(keys, simple=True, separator="/")
    axis = next(axis for pattern, axis in RULES if re.search(pattern, path))
    devices = mesh.shape.get(FSDP, 1)
    if axis is None or devices == 1 or not leaf.ndim or leaf.shape[axis] % devices:
        return PartitionSpec()
    spec: list[str | None] = [None] * leaf.ndim
    spec[axis] = FSDP
    return PartitionSpec(*spec)
