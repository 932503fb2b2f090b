"""Class retrieval: the share of the first k candidates that are of the query's class, P@k."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

PRECISION_AT = (1, 2, 5, 10, 50, 100)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The candidates of every query, best first. Made once, asked for many resamples of the candidates.

    Attributes:
        order: the candidates' indices.
        relevant: whether each is of the query's class, in that order.
        first, last: places of the first and the last candidate that scores the same.
    """

    order: Int[np.ndarray, "Q C"]
    relevant: Bool[np.ndarray, "Q C"]
    first: Int[np.ndarray, "Q C"]
    last: Int[np.ndarray, "Q C"]

    @classmethod
    def of(cls, scores: Float[np.ndarray, "Q C"], relevant: Bool[np.ndarray, "Q C"]) -> "Ranking":
        """From the scores of every query with every candidate. ValueError unless they are finite."""
        if not np.isfinite(scores).all():
            raise ValueError("retrieval scores must be finite")
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=1)
        place = np.arange(scores.shape[1])
        changes = ranked[:, 1:] != ranked[:, :-1]
        edge = np.ones((len(scores), 1), bool)
        first = np.maximum.accumulate(np.where(np.hstack([edge, changes]), place, 0), axis=1)
        ends = np.where(np.hstack([changes, edge]), place, place[-1])
        last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        return cls(order, np.take_along_axis(relevant, order, axis=1), first, last)

    def precision(
        self, ks: Sequence[int] = PRECISION_AT, counts: Int[np.ndarray, " C"] | None = None
    ) -> dict[int, Float[np.ndarray, " Q"]]:
        """P@k of every query, expected over a random order of tied candidates; a k beyond the pool is left out.

        `counts` says how often each candidate is in the pool (default: once).
        """
        queries, candidates = self.order.shape
        there = np.ones(candidates, np.int64) if counts is None else np.asarray(counts)
        weight = there[self.order]
        seen, found = (
            np.hstack([np.zeros((queries, 1), np.int64), np.cumsum(x, 1)]) for x in (weight, weight * self.relevant)
        )
        row, precision = np.arange(queries), {}
        for k in ks:
            if k > there.sum():
                continue
            place = (seen[:, 1:] < k).sum(1)  # of the candidate that is the k-th
            start, end = self.first[row, place], self.last[row, place] + 1
            before, tied = seen[row, start], seen[row, end] - seen[row, start]
            among_tied = (found[row, end] - found[row, start]) / tied
            precision[k] = (found[row, start] + (k - before) * among_tied) / k
        return precision
