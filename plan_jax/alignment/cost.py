"""Operations of the word-patch similarity, counted: which form a tile takes, and what a benchmark divides by time.

Of the matrix products only, a multiplication and an addition each. Per word and patch, with forward and backward pass
(the backward pass computes the tile anew):

    form     S_0   a round   the score
    feature  8 D   16 D      8 D
    Gram     8 D    8 N      6 N        and for each image 6 N N D once

Without `region_norm` the Gram form's score is free. The Gram form wins for a round where N < 2 D, for the score where
N < 4 D / 3, if the image meets enough words to pay for its G.
"""

from plan_jax.config import AlignmentConfig


def gram_is_cheaper(words: int, patches: int, dim: int, *, config: AlignmentConfig) -> bool:
    """Whether an image that meets `words` words takes fewer operations in Gram form than in feature form."""
    gram, feature = (_operations(words, patches, dim, config, gram=form) for form in (True, False))
    return gram < feature


def operations(images: int, words: int, patches: int, dim: int, *, config: AlignmentConfig) -> int:
    """Floating-point operations of z and its gradient, for all images against `words` words, in the cheaper form."""
    return images * min(_operations(words, patches, dim, config, gram=form) for form in (True, False))


def _operations(words: int, patches: int, dim: int, config: AlignmentConfig, *, gram: bool) -> int:
    """Of one image."""
    if gram:
        of_score = 6 * patches if config.region_norm else 0
        cell = 8 * dim + 8 * patches * config.rounds + of_score
        of_gram = (6 if config.rounds or config.region_norm else 2) * patches**2 * dim
        return words * patches * cell + of_gram
    return words * patches * (8 * dim + 16 * dim * config.rounds + 8 * dim)
