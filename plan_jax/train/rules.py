"""What the table `optim.rules` says of every parameter, by the parameter's path."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plan_jax.config_checks import Rule
from plan_jax.errors import InputError

STACKED = "layers"  # name of an nn.scan: what lies below has a first axis of layers


class Factors(NamedTuple):
    """Two trees like that of the parameters; a leaf is a number, or [layers 1 ...] where a stack's layers differ."""

    learning_rate: Any  # 0: frozen
    weight_decay: Any


def parameter_paths(params: Any) -> list[list[str]]:
    """The paths of every leaf, such as text_encoder/word/embedding, in the order of jax.tree.leaves.

    A stack of layers [layers ...] has one path for each: text_encoder/layers/3/attention/query/kernel.
    """
    rows = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = jax.tree_util.keystr(keys, simple=True, separator="/").split("/")
        if STACKED in names[:-1]:
            below = names.index(STACKED) + 1
            rows.append(["/".join([*names[:below], str(i), *names[below:]]) for i in range(leaf.shape[0])])
        else:
            rows.append(["/".join(names)])
    return rows


def parameter_factors(params: Any, *, rules: Sequence[Rule]) -> Factors:
    """The product of the factors of all rules whose pattern is found in a parameter's path; 1 where there is none.

    Args:
        params: a tree of arrays or shapes.
        rules: (pattern, learning-rate factor, weight-decay factor) each; their order changes no bit.

    Raises:
        InputError: a rule matches no parameter, or all parameters are frozen.
    """
    paths = parameter_paths(params)
    for pattern, _, _ in rules:
        if not any(re.search(pattern, path) for row in paths for path in row):
            raise InputError(
                f"config.optim.rules must each match a parameter, got {pattern!r}, which matches none; "
                f"you probably mistyped it, the nearest path is {_nearest(pattern, paths)}"
            )
    rows = [[_product(path, rules) for path in row] for row in paths]  # (rate, decay) of each layer of each leaf
    if not any(rate for row in rows for rate, _ in row):
        raise InputError(
            f"config.optim.rules must leave a parameter to learn, got a learning-rate factor of 0 on all from "
            f"{tuple(rules)!r}; make a pattern narrower"
        )
    leaves, structure = jax.tree.flatten(params)

    def tree(column: int) -> Any:
        columns = [[factors[column] for factors in row] for row in rows]
        return structure.unflatten([_shaped(of, leaf.ndim) for of, leaf in zip(columns, leaves, strict=True)])

    return Factors(tree(0), tree(1))


def where_learned(rates: Any, learned: Any, frozen: Any) -> Any:
    """Leaves of the tree `learned` where the learning-rate factor is above 0, of `frozen` elsewhere.

    Also within a stack of layers; a leaf that is of one kind as a whole is passed on untouched.
    """

    def one(rate: Any, new: Any, old: Any) -> Any:
        if np.all(rate):
            return new
        return jnp.where(rate > 0, new, old) if np.any(rate) else old

    return jax.tree.map(one, rates, learned, frozen)


def _product(path: str, rules: Sequence[Rule]) -> tuple[float, float]:
    """The factors of a path. Sorted, because a product of floats depends on its order."""
    found = [rule for rule in rules if re.search(rule[0], path)]
    rates, decays = sorted(rate for _, rate, _ in found), sorted(decay for _, _, decay in found)
    return math.prod(rates, start=1.0), math.prod(decays, start=1.0)


def _shaped(layers: list[float], ndim: int) -> Any:
    """One number for all layers that are alike, else [layers 1 ...] of as many axes as the parameter."""
    if len(set(layers)) == 1:
        return layers[0]
    return np.array(layers, np.float32).reshape(-1, *[1] * (ndim - 1))


def _nearest(pattern: str, paths: list[list[str]]) -> str:
    """The run of names, in any path, that is most like the pattern."""
    split = [path.split("/") for row in paths for path in row]
    runs = {
        "/".join(names[start:end])
        for names in split
        for start in range(len(names))
        for end in range(start + 1, len(names) + 1)
    }
    return difflib.get_close_matches(pattern, sorted(runs), n=1, cutoff=0.0)[0]
