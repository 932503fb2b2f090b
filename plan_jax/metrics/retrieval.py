"""Report retrieval: where an image's own report stands among all, and the reverse.

Scores are asked for block by block and turned into ranks at once, so that nothing of the size images x texts is held.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")

# Scores [i r] of some images with some texts, both given by their indices.
ScoreOf = Callable[[Int[np.ndarray, " i"], Int[np.ndarray, " r"]], Float[np.ndarray, "i r"]]


@dataclasses.dataclass(frozen=True)
class QueryRanks:
    """Where the best own candidate of every query stands among the foreign ones.

    Attributes:
        query: index of the image that asks, or of the first image that owns the text that asks.
        ahead: foreign candidates that score higher than the best own one.
        tied: foreign candidates that score the same as it.
        own: own candidates that share the best own score.
    """

    query: Int[np.ndarray, " Q"]
    ahead: Int[np.ndarray, " Q"]
    tied: Int[np.ndarray, " Q"]
    own: Int[np.ndarray, " Q"]


def hits(ranks: QueryRanks, k: int) -> Float[np.ndarray, " Q"]:
    """Probability that an own candidate is among the first k, ties in random order: 0 or 1 where nothing is tied."""
    places = k - ranks.ahead  # among the first k, left to the tied candidates
    missed = np.ones(len(places))
    for place in range(k):
        foreign = np.maximum(ranks.tied - place, 0)
        missed = np.where(place < places, missed * foreign / (foreign + ranks.own), missed)
    return 1.0 - missed


def expected_rank(ranks: QueryRanks) -> Float[np.ndarray, " Q"]:
    """1-based rank of the first own candidate, expected over a random order of the tied ones."""
    return ranks.ahead + (ranks.tied + ranks.own + 1) / (ranks.own + 1)


def retrieval_ranks(
    score_of: ScoreOf,
    owner: Int[np.ndarray, " I"],
    images: Int[np.ndarray, " P"],
    *,
    block: int,
    shown: Callable[[Sequence[slice]], Iterable[slice]] = iter,
) -> dict[str, QueryRanks]:
    """Ranks of all queries of a pool, `image_to_text` and `text_to_image`, in memory that grows with I + R only.

    Two passes over the same blocks, so that a score that rounds differently in another block does no harm: the first
    finds the scores of the own pairs, in the blocks that hold any; the second counts who is ahead. It takes the least
    time where texts are numbered by their first image.

    Args:
        score_of: the scores of a block; of at most `block` images and texts.
        owner: the text that each image owns. Texts are distinct, so identical reports count as one.
        images: the pool; its texts are those that these images own.
        block: images and texts of a block.
        shown: wraps the rows of blocks of the second pass, for a progress bar.

    Raises:
        ValueError: a score is not finite, or the pool has no image.
    """
    if not len(images):
        raise ValueError("a pool must hold at least one image")
    texts, first, own = np.unique(owner[images], return_index=True, return_inverse=True)

    @functools.lru_cache(maxsize=1)  # both passes over a pool of one block want the same
    def block_at(row: int, column: int) -> Float[np.ndarray, "i r"]:
        found = np.asarray(score_of(images[row : row + block], texts[column : column + block]))
        if not np.isfinite(found).all():
            raise ValueError("retrieval scores must be finite")
        return found

    def scores(rows: slice, columns: slice) -> Float[np.ndarray, "i r"]:
        return block_at(rows.start, columns.start)

    of_image = np.concatenate([_own_scores(scores, rows, own, block) for rows in blocks(len(images), block)])
    of_text = np.full(len(texts), -np.inf)
    np.maximum.at(of_text, own, of_image)

    counts = {way: np.zeros((2, len(which)), np.int64) for way, which in zip(DIRECTIONS, (images, texts), strict=True)}
    for rows in shown(blocks(len(images), block)):
        for columns in blocks(len(texts), block):
            found = scores(rows, columns)
            foreign = own[rows, None] != np.arange(columns.start, columns.stop)
            for way, level, part, axis in (
                ("image_to_text", of_image[rows, None], rows, 1),
                ("text_to_image", of_text[None, columns], columns, 0),
            ):
                counts[way][0, part] += (foreign & (found > level)).sum(axis)
                counts[way][1, part] += (foreign & (found == level)).sum(axis)
    best = np.bincount(own[of_image == of_text[own]], minlength=len(texts))
    return {
        "image_to_text": QueryRanks(images, *counts["image_to_text"], own=np.ones(len(images), np.int64)),
        "text_to_image": QueryRanks(images[first], *counts["text_to_image"], own=best),
    }


def _own_scores(scores: Callable, rows: slice, own: np.ndarray, block: int) -> Float[np.ndarray, " i"]:
    """The score of each image of some rows with its own text."""
    wanted = own[rows]
    values = np.empty(len(wanted))
    for columns in blocks(int(own.max()) + 1, block):
        inside = np.flatnonzero((wanted >= columns.start) & (wanted < columns.stop))
        if inside.size:
            values[inside] = scores(rows, columns)[inside, wanted[inside] - columns.start]
    return values


def chance_ranks(owner: Int[np.ndarray, " I"], images: Int[np.ndarray, " P"]) -> dict[str, QueryRanks]:
    """The ranks that constant scores give: everything is tied."""
    _, first, count = np.unique(owner[images], return_index=True, return_counts=True)
    one, none = np.ones(len(images), np.int64), np.zeros(len(images), np.int64)
    return {
        "image_to_text": QueryRanks(images, ahead=none, tied=one * (len(first) - 1), own=one),
        "text_to_image": QueryRanks(images[first], none[: len(first)], tied=len(images) - count, own=count),
    }


def pools(images: int, *, pool: int, seed: int) -> Iterator[Int[np.ndarray, " P"]]:
    """Random pools of `pool` images each: all are shuffled by `seed` and cut; what is left over is in none.

    ValueError if there are fewer than `pool` images.
    """
    if not 0 < pool <= images:
        raise ValueError(f"pool must be between 1 and the number of images {images}, got {pool}")
    shuffled = np.random.default_rng(seed).permutation(images)
    yield from (shuffled[start : start + pool] for start in range(0, images - pool + 1, pool))


def joined(parts: Sequence[dict[str, QueryRanks]]) -> dict[str, QueryRanks]:
    """The queries of several pools together; a text that several pools own asks in each."""
    names = [field.name for field in dataclasses.fields(QueryRanks)]
    return {
        way: QueryRanks(**{name: np.concatenate([getattr(part[way], name) for part in parts]) for name in names})
        for way in DIRECTIONS
    }


def query_metrics(ranks: dict[str, QueryRanks]) -> dict[str, Float[np.ndarray, " Q"]]:
    """`r@1_image_to_text` ... `r@10_text_to_image` and `rank_*`: of every query."""
    found = {}
    for way, asked in ranks.items():
        found |= {f"r@{k}_{way}": hits(asked, k) for k in RECALL_AT} | {f"rank_{way}": expected_rank(asked)}
    return found


def retrieval_metrics(queries: dict[str, Float[np.ndarray, " Q"]]) -> dict[str, float]:
    """`r@1_image_to_text` ... `median_rank_text_to_image` from `query_metrics`; NaN is no query, and none no metric."""
    found = {}
    for name, values in queries.items():
        asked = values[~np.isnan(values)]
        if asked.size and name.startswith("rank_"):
            found[f"median_{name}"] = float(np.median(asked))
        elif asked.size:
            found[name] = float(asked.mean())
    return found


def blocks(count: int, size: int) -> list[slice]:
    """Consecutive slices of `size`, the last one shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
