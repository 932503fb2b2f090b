"""The words of the project: what flows between the data, the encoders, the alignment and the user.

Shape letters are those of the method (see `plan_jax.alignment.reference`): I images, R reports, B the batch
(I = R = B in training), H W input pixels, N = h*w patches, T word pieces, L words, D the joint dimension.
"""

from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num


@struct.dataclass
class Batch:
    """What the data pipeline hands to the model, and the only thing it hands over.

    Attributes:
        image: gray levels 0-255, one channel: bytes as loaded, of which training makes a view (`plan_jax.augment`).
        token_ids: word pieces, padded.
        word_ids: index of the word a piece belongs to, -1 for special pieces, punctuation and padding.
        token_mask: True where a piece is real.
        sentence_ids: index of the sentence a piece belongs to, -1 for padding.
        record: index of the record in its split, or in the concatenation of a mixture's, so that an error can name it.
        words_cut: how many words of the report did not fit.
    """

    image: Num[Array, "B H W 1"]
    token_ids: Int[Array, "B T"]
    word_ids: Int[Array, "B T"]
    token_mask: Bool[Array, "B T"]
    sentence_ids: Int[Array, "B T"]
    record: Int[Array, " B"]
    words_cut: Int[Array, " B"]


@struct.dataclass
class ImageFeatures:
    """An image in the joint space. Every vector has length 1.

    Attributes:
        pooled: the global feature.
        patch: u_n, one feature per cell of the grid, row by row.
        grid: (h, w) with h*w = N.
    """

    pooled: Float[Array, "I D"]
    patch: Float[Array, "I N D"]
    grid: tuple[int, int] = struct.field(pytree_node=False)


@struct.dataclass
class TextFeatures:
    """A report, phrase or prompt in the joint space. Every vector has length 1, padding words have length 0.

    Attributes:
        pooled: the global feature.
        word: w_l, one feature per word.
        word_logit: the learned, image-independent importance of a word, before the softmax.
        mask: True where a word is real.
    """

    pooled: Float[Array, "R D"]
    word: Float[Array, "R L D"]
    word_logit: Float[Array, "R L"]
    mask: Bool[Array, "R L"]


@struct.dataclass
class SoftRegions:
    """The regions of one image that the words of some reports point to. One report: R = 1.

    Attributes:
        similarity: S_K, refined word-patch similarity.
        attention: A, each row sums to 1 over the patches.
        word_importance: alpha, each column sums to 1 over the words of its report (0 on all others).
        patch_importance: beta, each row sums to 1 over the patches.
    """

    similarity: Float[Array, "L N"]
    attention: Float[Array, "L N"]
    word_importance: Float[Array, "L R"]
    patch_importance: Float[Array, "R N"]
