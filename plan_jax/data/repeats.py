"""Reports that say the same as an earlier one: many normal studies share their text, also across splits."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from plan_jax.data.reports import clean_sentences

ALIKE = (9, 10)  # Jaccard index of the sets of sentences from here on, as a fraction: exact where floats are not


def first_alike(texts: Sequence[str]) -> list[int]:
    """For each text the index of the first that is nearly the same, its own where there is none before it.

    Nearly the same: the Jaccard index of their sets of sentences, cleaned and in lower case, is at least .9. A text
    without a sentence is like no other. To find them in near-linear time, equal sets are met in a table, and of the
    others only those are compared that share one of their rarest sentences (prefix filter: Bayardo et al., Scaling Up
    All Pairs Similarity Search, WWW 2007).
    """
    sets = [frozenset(sentence.lower() for sentence in clean_sentences(text)) for text in texts]
    frequency = Counter(sentence for sentences in sets for sentence in sentences)
    place: dict[frozenset[str], int] = {}  # where a set comes first
    answer: dict[frozenset[str], int] = {}
    with_sentence: dict[str, list[frozenset[str]]] = defaultdict(list)
    for index, sentences in enumerate(sets):
        if sentences and sentences not in place:
            rarest = sorted(sentences, key=lambda sentence: (frequency[sentence], sentence))
            # Near sets share ceil(.9 * size) sentences at least, hence one of the rarest size - ceil(.9 * size) + 1.
            prefix = rarest[: len(rarest) + 1 + len(rarest) * -ALIKE[0] // ALIKE[1]]
            near = (place[other] for sentence in prefix for other in with_sentence[sentence] if _near(sentences, other))
            place[sentences], answer[sentences] = index, min(near, default=index)
            for sentence in prefix:
                with_sentence[sentence].append(sentences)
    return [answer.get(sentences, index) for index, sentences in enumerate(sets)]


def _near(one: frozenset[str], other: frozenset[str]) -> bool:
    low, high = sorted((len(one), len(other)))
    if low * ALIKE[1] < high * ALIKE[0]:  # cheap, and decides most
        return False
    return len(one & other) * ALIKE[1] >= len(one | other) * ALIKE[0]
