"""The method a second time, as the oracle of the tests: numpy in float64, explicit loops, written from the equations.

Padding is left out here, not masked: only real words are ever visited. Arrays that have a row per word are NaN in the
rows of padding words, so that a test which read them would fail.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from plan_jax.config import AlignmentConfig, Config
from plan_jax.types import ImageFeatures, TextFeatures

# For jax.jit: compiling is nearly all of these tests' time, and fast code is not needed here.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


class Regions(NamedTuple):
    """What the method computes for one image and one report."""

    similarity: np.ndarray  # S_K [L N]
    attention: np.ndarray  # A [L N]
    word_importance: np.ndarray  # alpha [L], 0 on padding
    patch_importance: np.ndarray  # beta [N]
    region: np.ndarray  # r [L D]


class Arrays(NamedTuple):
    """Features of some images and some reports, before a loss or a score."""

    patch: np.ndarray  # [I N D]
    word: np.ndarray  # [R L D]
    word_logit: np.ndarray  # [R L]
    mask: np.ndarray  # [R L]
    image_pooled: np.ndarray  # [I D]
    text_pooled: np.ndarray  # [R D]

    def features(self, dtype=jnp.float32) -> tuple[ImageFeatures, TextFeatures]:
        """The same for the code under test."""
        patch, word, word_logit, image_pooled, text_pooled = (
            jnp.asarray(x, dtype) for x in (self.patch, self.word, self.word_logit, self.image_pooled, self.text_pooled)
        )
        images = ImageFeatures(pooled=image_pooled, patch=patch, grid=(1, patch.shape[1]))
        mask = jnp.asarray(self.mask)
        return images, TextFeatures(pooled=text_pooled, word=word, word_logit=word_logit, mask=mask)


def random_arrays(seed: int, images: int, mask, *, patches: int, dim: int) -> Arrays:
    """Features of length 1 (length 0 on padding words), exact in float32."""
    rng = np.random.default_rng(seed)
    mask = np.asarray(mask, bool)

    def directions(*shape):
        x = rng.normal(size=(*shape, dim))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32).astype(np.float64)

    word = np.where(mask[..., None], directions(*mask.shape), 0.0)
    word_logit = rng.normal(size=mask.shape).astype(np.float32).astype(np.float64)
    pooled = directions(images), directions(len(mask))
    return Arrays(directions(images, patches), word, word_logit, mask, *pooled)


def softmax(logits) -> list[float]:
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def unit(vector: np.ndarray) -> np.ndarray:
    length = math.sqrt(sum(x * x for x in vector))
    return vector / length if length > 0 else vector


def real_words(mask) -> list[int]:
    return [row for row, real in enumerate(mask) if real]


def weigh(S, word_logit, mask, config: AlignmentConfig):
    """(alpha, beta, A) of a similarity matrix."""
    words, patches = real_words(mask), range(S.shape[1])
    alpha = np.zeros(len(mask))
    if words:
        logits = {
            "text": lambda row: word_logit[row],
            "pair": lambda row: max(S[row, n] for n in patches) / config.word_temperature,
            "uniform": lambda row: 0.0,
        }[config.word_importance]
        alpha[words] = softmax([logits(row) for row in words])
    beta = softmax([sum(alpha[row] * S[row, n] for row in words) / config.patch_temperature for n in patches])
    A = np.full(S.shape, np.nan)
    for row in words:
        A[row] = softmax(
            [
                S[row, n] / config.region_temperature + config.importance * math.log(len(patches) * beta[n])
                for n in patches
            ]
        )
    return alpha, np.array(beta), A


def regions_of(patch, A, mask) -> np.ndarray:
    """r_l = sum_n A[l,n] u_n."""
    region = np.full((len(mask), patch.shape[1]), np.nan)
    for row in real_words(mask):
        region[row] = sum(A[row, n] * patch[n] for n in range(len(patch)))
    return region


def soft_regions(word, patch, word_logit, mask, config: AlignmentConfig) -> Regions:
    """S_0, K rounds, and the importances and regions of S_K."""
    S = np.full((len(mask), len(patch)), np.nan)
    for row in real_words(mask):
        for n in range(len(patch)):
            S[row, n] = word[row] @ patch[n]
    for _ in range(config.rounds):
        _, _, A = weigh(S, word_logit, mask, config)
        region = regions_of(patch, A, mask)
        previous, S = S, np.full(S.shape, np.nan)
        for row in real_words(mask):
            q = unit(word[row] + config.evidence * region[row])
            for n in range(len(patch)):
                S[row, n] = config.history * previous[row, n] + (1 - config.history) * (q @ patch[n])
    alpha, beta, A = weigh(S, word_logit, mask, config)
    return Regions(S, A, alpha, beta, regions_of(patch, A, mask))


def selected_words(alpha, mask, keep: float) -> list[int]:
    """The ceil(keep * n) real words of largest alpha; of equal ones, the first. `keep` is read as a decimal."""
    words = real_words(mask)
    count = math.ceil(round(keep * len(words), 6))  # 0.07 * 100 is above 7 in binary
    return sorted(words, key=lambda row: (-alpha[row], row))[: max(count, 1)]


def local_similarity(word, patch, word_logit, mask, config: AlignmentConfig) -> float:
    """z; 0 for a report without words."""
    if not real_words(mask):
        return 0.0
    regions = soft_regions(word, patch, word_logit, mask, config)
    chosen = selected_words(regions.word_importance, mask, config.word_keep)
    total = sum(regions.word_importance[row] for row in chosen)
    z = 0.0
    for row in chosen:
        r = unit(regions.region[row]) if config.region_norm else regions.region[row]
        score = r @ word[row]
        if config.aggregation == "logsumexp":
            score = math.exp(score / config.aggregation_temperature)
        z += regions.word_importance[row] / total * score
    return config.aggregation_temperature * math.log(z) if config.aggregation == "logsumexp" else z


def word_patch_similarity(arrays: Arrays, config: AlignmentConfig) -> np.ndarray:
    """z of every image with every report, [I R]."""
    return np.array(
        [
            [
                local_similarity(arrays.word[r], patch, arrays.word_logit[r], arrays.mask[r], config)
                for r in range(len(arrays.mask))
            ]
            for patch in arrays.patch
        ]
    )


def grounding_map(regions: Regions, mask, config: AlignmentConfig) -> np.ndarray:
    words = real_words(mask)
    if not words:
        return np.zeros(regions.similarity.shape[1])
    if config.map_words == "mean":
        return spread(sum(regions.word_importance[row] * regions.similarity[row] for row in words), config.map_spread)
    chosen = selected_words(regions.word_importance, mask, config.word_keep)
    return spread(np.array([max(0.0, *column) for column in regions.similarity[chosen].T]), config.map_spread)


def spread(row: np.ndarray, sigma: float) -> np.ndarray:
    """The Gaussian mean over the patches of a square grid, as it is written down."""
    side = round(len(row) ** 0.5)
    place = [(n // side, n % side) for n in range(len(row))]
    if sigma == 0:
        return row
    weight = [[math.exp(-((y - b) ** 2 + (x - a) ** 2) / (2 * sigma**2)) for b, a in place] for y, x in place]
    return np.array([sum(w * s for w, s in zip(each, row, strict=True)) / sum(each) for each in weight])


def info_nce(logits, valid) -> float:
    """Cross-entropy of each valid pair against its row, and against its column, and the mean of all of them."""
    pairs = [i for i, v in enumerate(valid) if v]
    losses = []
    for i in pairs:
        losses.append(-math.log(softmax([logits[i][j] for j in pairs])[pairs.index(i)]))
        losses.append(-math.log(softmax([logits[j][i] for j in pairs])[pairs.index(i)]))
    return sum(losses) / len(losses) if losses else 0.0


def plain_attention_loss(arrays: Arrays, config: AlignmentConfig, temperature: float) -> float:
    """The local loss of one attention, written out: nothing refined, words weighted by the softmax of their logits."""
    z = np.zeros((len(arrays.patch), len(arrays.mask)))
    for i, patch in enumerate(arrays.patch):
        for r, words in enumerate(arrays.word):
            real = [row for row in range(len(words)) if arrays.mask[r, row]]
            weights = np.exp(arrays.word_logit[r, real])
            for row, weight in zip(real, weights / weights.sum(), strict=True):
                attention = np.exp(patch @ words[row] / config.region_temperature)
                region = attention @ patch / attention.sum()
                z[i, r] += weight * (region @ words[row]) / np.linalg.norm(region)
    return info_nce(z / temperature, arrays.mask.any(axis=1))


def plan_loss(arrays: Arrays, config: Config) -> float:
    """The weighted sum of the global loss, the local loss and the local losses of the earlier rounds."""
    loss, alignment = config.loss, config.alignment
    valid = arrays.mask.any(axis=1)
    cosine = [[image @ text for text in arrays.text_pooled] for image in arrays.image_pooled]

    def local(rounds: int) -> float:
        z = word_patch_similarity(arrays, dataclasses.replace(alignment, rounds=rounds))
        return info_nce(z / loss.local_temperature, valid)

    earlier = [local(k) for k in range(alignment.rounds)]
    deep = loss.deep_supervision * sum(earlier) / len(earlier) if earlier else 0.0
    total = loss.global_weight * info_nce(np.array(cosine) / loss.global_temperature, valid)
    return total + loss.local_weight * (local(alignment.rounds) + deep)
