"""Text to numbers: WordPiece as in BERT (lower case), with the word that every piece belongs to."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from tokenizers.trainers import WordPieceTrainer

from plan_jax.errors import InputError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What BERT's rules cut at, as far as a text holds nothing but printable ASCII and line breaks.
_PLAIN = re.compile(r"[\t\n\r -~]*")
_UNIT = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]")
_KNOWN_UNITS = 1 << 16  # whose pieces are kept, so that a stream of new ones fills no memory


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it.

    Attributes:
        token_ids: [CLS], word pieces, [SEP], then [PAD].
        word_ids: 0-based index of the word a piece belongs to; -1 for special pieces, punctuation and padding.
        token_mask: True where a piece is real.
        sentence_ids: 0-based index of the sentence a piece belongs to, [CLS] to the first and [SEP] to the last one;
            -1 for padding.
        words: the words that were kept, as they stand in the text.
        spans: (start, end) of each word in the text, in characters.
        cut: how many words did not fit.
    """

    token_ids: Int32[np.ndarray, " T"]
    word_ids: Int32[np.ndarray, " T"]
    token_mask: Bool[np.ndarray, " T"]
    sentence_ids: Int32[np.ndarray, " T"]
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    cut: int


class Tokenizer:
    """WordPiece over a fixed vocabulary. Always lower-cases, also for a cased vocabulary such as BioClinicalBERT's.

    A word is what BERT's rules cut at spaces and punctuation, if it holds a letter or a digit: "3.5" is two words.
    May be pickled and used from several threads.
    """

    def __init__(self, vocab: dict[str, int]):
        missing = [token for token in SPECIAL if token not in vocab]
        if missing:
            raise InputError(f"a vocabulary must hold {', '.join(SPECIAL)}, got none of {', '.join(missing)}")
        self._vocab = vocab
        self._pad, self._cls, self._sep = (vocab[token] for token in ("[PAD]", "[CLS]", "[SEP]"))
        self._tokenizer = tokenizers.Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._tokenizer.post_processor = BertProcessing(("[SEP]", self._sep), ("[CLS]", self._cls))
        self._tokenizer.add_special_tokens(list(SPECIAL))
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a report is text, not a special piece
        self._known: dict[str, list[int]] = {}

    def __reduce__(self):
        return Tokenizer, (self._vocab,)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From tokenizer.json or a BERT vocab.txt (one piece per line). InputError if it is neither."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"tokenizer must be a tokenizer.json or vocab.txt, got {path}, which is no file")
        try:
            vocab = _read_json(path) if path.suffix == ".json" else _read_lines(path)
            return cls(vocab)
        except (InputError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} must be a tokenizer.json or a BERT vocab.txt: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes tokenizer.json; equal tokenizers write equal bytes."""
        Path(path).write_text(self._tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")

    @property
    def vocabulary(self) -> dict[str, int]:
        """The number of every piece."""
        return dict(self._vocab)

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs."""
        return max(self._vocab.values()) + 1

    def encode(self, text: str, *, max_tokens: int, max_words: int, truncate: bool) -> Tokens:
        """`text` in T = max_tokens pieces and at most max_words words.

        truncate=True cuts after the last word that fits, and accepts a text without words. truncate=False raises
        InputError for a text that does not fit or holds no word.
        """
        if max_tokens < 3 or max_words < 1:
            raise InputError(f"max_tokens must be at least 3 and max_words 1, got {max_tokens} and {max_words}")
        ids, word_ids, sentence_ids, spans = self._pieces(text)
        total = len(spans)
        kept = _fitting(word_ids, max_tokens=max_tokens, max_words=max_words)
        if not truncate:
            _refuse_misfit(pieces=len(ids) + 2, words=total, max_tokens=max_tokens, max_words=max_words)
        ids, word_ids = ids[:kept], word_ids[:kept]
        spans = spans[: max(word_ids, default=-1) + 1]

        padding = max_tokens - len(ids) - 2
        sentence_ids = sentence_ids[:kept] or [0]
        token_ids = [self._cls, *ids, self._sep, *[self._pad] * padding]
        return Tokens(
            token_ids=np.array(token_ids, np.int32),
            word_ids=np.array([-1, *word_ids, -1, *[-1] * padding], np.int32),
            token_mask=np.arange(max_tokens) < len(ids) + 2,
            sentence_ids=np.array([0, *sentence_ids[: len(ids)], sentence_ids[-1], *[-1] * padding], np.int32),
            words=tuple(text[start:end] for start, end in spans),
            spans=tuple(spans),
            cut=total - len(spans),
        )

    def _pieces(self, text: str) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
        """Id, word and sentence of every piece, and the span of every word."""
        ids: list[int] = []
        word_ids: list[int] = []
        sentence_ids: list[int] = []
        spans: list[tuple[int, int]] = []
        ends = [cut.end() for cut in SENTENCE_END.finditer(text)]
        sentence = 0
        for unit, span, pieces in self._plain_units(text) if _PLAIN.fullmatch(text) else self._units(text):
            while sentence < len(ends) and span[0] >= ends[sentence]:
                sentence += 1
            word = -1
            if unit.isalnum() or any(map(str.isalnum, unit)):  # the first is nearly always enough
                word = len(spans)
                spans.append(span)
            ids += pieces
            word_ids += [word] * len(pieces)
            sentence_ids += [sentence] * len(pieces)
        return ids, word_ids, sentence_ids, spans

    def _units(self, text: str) -> Iterator[tuple[str, tuple[int, int], list[int]]]:
        """Every unit, a run between spaces and punctuation or a punctuation mark, with its span and its pieces."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("text must be valid Unicode, got a lone surrogate; check its encoding") from error
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for unit, pieces in itertools.groupby(zip(encoding.word_ids, encoding.ids, strict=True), lambda pair: pair[0]):
            start, end = encoding.word_to_chars(unit)  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
            yield text[start:end], (start, end), [piece for _, piece in pieces]

    def _plain_units(self, text: str) -> Iterator[tuple[str, tuple[int, int], list[int]]]:
        """The same of a plain text in a third of the time: the library is asked once for each different unit."""
        for match in _UNIT.finditer(text):
            unit = match.group()
            pieces = self._known.get(unit)
            if pieces is None:
                if len(self._known) >= _KNOWN_UNITS:
                    self._known.clear()
                pieces = self._known[unit] = self._tokenizer.encode(unit, add_special_tokens=False).ids
            yield unit, match.span(), pieces


def train_wordpiece(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A vocabulary of at most `vocab_size` pieces learned from `texts`; every character seen is kept beyond that.

    The same texts give the same vocabulary in every process. The library alone does not: it numbers the continuation
    characters in the order of a hash table and breaks ties by number. So they are given, sorted, beforehand.
    """
    texts = list(texts)
    library = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    characters = sorted({c for text in texts for c in library.normalizer.normalize_str(text) if not c.isspace()})
    fixed = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    trainer = WordPieceTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=fixed, show_progress=False)
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library.get_vocab(with_added_tokens=True))


def split_sentences(text: str) -> list[str]:
    """The sentences of a report: cut after . ! ? before a space, and at empty lines; list numbers are dropped."""
    pieces = SENTENCE_END.split(text)
    sentences = (" ".join(piece.split()) for piece in pieces)
    return [s for s in sentences if any(c.isalnum() for c in s) and not re.fullmatch(r"\d+[.)]", s)]


def _fitting(word_ids: list[int], *, max_tokens: int, max_words: int) -> int:
    """How many pieces may stay, so that no word is cut in two."""
    kept = min(len(word_ids), max_tokens - 2)
    if max(word_ids, default=-1) >= max_words:
        kept = min(kept, word_ids.index(max_words))
    while 0 < kept < len(word_ids) and word_ids[kept] >= 0 and word_ids[kept] == word_ids[kept - 1]:
        kept -= 1
    return kept


def _refuse_misfit(*, pieces: int, words: int, max_tokens: int, max_words: int) -> None:
    if not words:
        raise InputError("phrase must contain a word, got none; write at least one letter or digit")
    if words > max_words or pieces > max_tokens:
        raise InputError(
            f"phrase must have at most {max_words} words and {max_tokens} word pieces, "
            f"got {words} and {pieces}; shorten it"
        )


def _read_json(path: Path) -> dict[str, int]:
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise InputError("got no WordPiece vocabulary in it")
    vocab = model["vocab"]
    if not all(type(number) is int for number in vocab.values()) or set(vocab.values()) != set(range(len(vocab))):
        raise InputError("got piece numbers that are not 0, 1, 2, ...")
    return vocab


def _read_lines(path: Path) -> dict[str, int]:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {line: number for number, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise InputError("got a piece on two lines")
    return vocab
