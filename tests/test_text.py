"""Pieces, words and spans by hand and by independent rules; vocabularies that are the same every time."""

import json
import pickle
import random
import re
import string
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_jax.data import text as text_module
from plan_jax.data.text import SPECIAL, Tokenizer, split_sentences, train_wordpiece
from plan_jax.errors import InputError

PIECES = (*SPECIAL, "no", "left", "effusion", "pneumo", "##thorax", "x", "ray", "-", ".", "3", "cafe", "(", "_")
ID = {piece: number for number, piece in enumerate(PIECES)}
HAND = Tokenizer(ID)
# Every letter and digit, alone and as a continuation, so that nothing ASCII is unknown.
LETTERS = string.ascii_lowercase + string.digits
SPELLING = Tokenizer(
    {p: i for i, p in enumerate([*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *string.punctuation, "eff", "##ab"])}
)
NAME = {number: piece for piece, number in SPELLING._vocab.items()}
ASCII = st.text(st.sampled_from(string.ascii_letters + string.digits + " .,-_()/\n\t"), max_size=60)


def encode(text, *, max_tokens=32, max_words=16, truncate=False, tokenizer=HAND):
    return tokenizer.encode(text, max_tokens=max_tokens, max_words=max_words, truncate=truncate)


def test_pieces_words_and_spans_of_a_text_done_by_hand():
    tokens = encode("No  Pneumothorax, x-ray.", max_tokens=12)
    names = ["[CLS]", "no", "pneumo", "##thorax", "[UNK]", "x", "-", "ray", ".", "[SEP]", "[PAD]", "[PAD]"]
    assert tokens.token_ids.tolist() == [ID[name] for name in names]  # the comma is not in the vocabulary
    assert tokens.word_ids.tolist() == [-1, 0, 1, 1, -1, 2, -1, 3, -1, -1, -1, -1]
    assert tokens.token_mask.tolist() == [True] * 10 + [False] * 2
    assert tokens.sentence_ids.tolist() == [0] * 10 + [-1] * 2
    assert tokens.words == ("No", "Pneumothorax", "x", "ray")
    assert tokens.spans == ((0, 2), (4, 16), (18, 19), (20, 23))
    assert tokens.cut == 0
    assert tokens.token_ids.dtype == tokens.word_ids.dtype == np.int32
    assert tokens.token_mask.dtype == np.bool_


def test_sentences_are_numbered_as_reports_are_cut():
    text = "no x. pneumothorax ! 3.5 x-ray\n\nno ray"
    tokens = encode(text, max_tokens=24)
    first_piece = [list(tokens.word_ids).index(number) for number in range(len(tokens.words))]
    of_word = tokens.sentence_ids[first_piece].tolist()
    assert len(split_sentences(text)) == 4
    assert tokens.words == ("no", "x", "pneumothorax", "3", "5", "x", "ray", "no", "ray")
    assert of_word == [0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert tokens.sentence_ids[0] == 0  # [CLS]
    last = int(tokens.token_mask.sum()) - 1
    assert tokens.sentence_ids[last] == tokens.sentence_ids[last - 1] == 3  # [SEP]
    assert (tokens.sentence_ids[last + 1 :] == -1).all()
    assert encode("", truncate=True).sentence_ids.tolist() == [0, 0] + [-1] * 30


def test_an_unknown_word_is_one_piece_that_belongs_to_its_word():
    tokens = encode("no zebra left", max_tokens=5)
    assert tokens.token_ids.tolist() == [ID["[CLS]"], ID["no"], ID["[UNK]"], ID["left"], ID["[SEP]"]]
    assert tokens.word_ids.tolist() == [-1, 0, 1, 2, -1]


def test_accents_and_case_are_dropped_from_pieces_but_not_from_words():
    tokens = encode("CAFÉ")
    assert tokens.token_ids[1] == ID["cafe"]
    assert tokens.words == ("CAFÉ",)


def test_names_of_special_pieces_in_a_report_are_text():
    tokens = encode("no [SEP] left")
    assert tokens.words == ("no", "SEP", "left")
    assert (tokens.token_ids == ID["[SEP]"]).sum() == 1


@given(ASCII)
def test_words_are_the_runs_of_letters_and_digits(text):
    tokens = encode(text, max_tokens=80, max_words=70, truncate=True, tokenizer=SPELLING)
    runs = [(match.group(), match.span()) for match in re.finditer(r"[A-Za-z0-9]+", text)]
    assert list(zip(tokens.words, tokens.spans, strict=True)) == runs


@given(st.text(st.characters(max_codepoint=126), max_size=60) | ASCII)
def test_a_plain_text_has_the_pieces_that_the_library_gives_the_whole_of_it(text):
    found = encode(text, max_tokens=70, max_words=70, truncate=True)
    whole = HAND._tokenizer.encode(text)
    assert found.token_ids[found.token_mask].tolist() == whole.ids
    units = list(dict.fromkeys(unit for unit in whole.word_ids if unit is not None))
    spans = [whole.word_to_chars(unit) for unit in units]
    assert list(found.spans) == [(a, b) for a, b in spans if any(map(str.isalnum, text[a:b]))]


def test_a_stream_of_new_words_fills_no_memory(monkeypatch):
    monkeypatch.setattr(text_module, "_KNOWN_UNITS", 3)
    tokenizer = Tokenizer(ID)
    for unit in ("no", "left", "x", "ray", "no"):
        assert encode(unit, tokenizer=tokenizer).token_ids[1] == ID[unit]
        assert len(tokenizer._known) <= 3


@given(ASCII)
def test_the_pieces_of_a_word_spell_it(text):
    tokens = encode(text, max_tokens=80, max_words=70, truncate=True, tokenizer=SPELLING)
    for number, word in enumerate(tokens.words):
        pieces = [NAME[i].removeprefix("##") for i in tokens.token_ids[tokens.word_ids == number].tolist()]
        assert "".join(pieces) == word.lower()
    assert not tokens.token_mask[tokens.token_ids == 0].any()
    assert tokens.word_ids.max() == len(tokens.words) - 1


@given(ASCII, st.integers(3, 12), st.integers(1, 4))
def test_what_is_cut_is_whole_words_at_the_end(text, max_tokens, max_words):
    whole = encode(text, max_tokens=80, max_words=70, truncate=True, tokenizer=SPELLING)
    cut = encode(text, max_tokens=max_tokens, max_words=max_words, truncate=True, tokenizer=SPELLING)
    kept = len(cut.words)
    assert cut.words == whole.words[:kept]
    assert cut.cut == len(whole.words) - kept
    assert kept <= max_words
    assert len(cut.token_ids) == len(cut.word_ids) == len(cut.token_mask) == max_tokens
    length = int(cut.token_mask.sum())
    assert cut.token_ids[: length - 1].tolist() == whole.token_ids[: length - 1].tolist()
    for number in range(kept):
        assert (cut.word_ids == number).sum() == (whole.word_ids == number).sum()
    if cut.cut and kept < max_words:  # the next word had no room
        until_next = np.flatnonzero(whole.word_ids == kept)[-1] + 1
        assert until_next + 1 > max_tokens


def test_a_text_that_fits_exactly_is_whole():
    assert encode("no left effusion", max_tokens=5, max_words=3).cut == 0
    assert encode("no left effusion", max_tokens=5, max_words=3, truncate=True).cut == 0


@pytest.mark.parametrize(("max_tokens", "max_words"), [(4, 3), (5, 2)])
def test_a_phrase_that_does_not_fit_is_refused_not_cut(max_tokens, max_words):
    with pytest.raises(InputError, match=f"at most {max_words} words and {max_tokens} word pieces, got 3 and 5"):
        encode("no left effusion", max_tokens=max_tokens, max_words=max_words)


@pytest.mark.parametrize("text", ["", "  \n", "...", "- ( ) _"])
def test_a_phrase_without_a_word_is_refused(text):
    with pytest.raises(InputError, match="phrase must contain a word"):
        encode(text)
    assert encode(text, truncate=True).words == ()


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(InputError, match="valid Unicode"):
        encode("no \udcff", truncate=True)


@pytest.mark.parametrize(("max_tokens", "max_words"), [(2, 3), (5, 0)])
def test_room_for_no_piece_or_word_is_refused(max_tokens, max_words):
    with pytest.raises(InputError, match="at least"):
        encode("no", max_tokens=max_tokens, max_words=max_words, truncate=True)


def test_a_tokenizer_comes_back_from_json_vocab_txt_and_pickle(tmp_path):
    HAND.save(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (tmp_path / "windows.txt").write_bytes(("\r\n".join(PIECES) + "\r\n").encode())
    copies = [Tokenizer.load(tmp_path / name) for name in ("tokenizer.json", "vocab.txt", "windows.txt")]
    for copy in (*copies, pickle.loads(pickle.dumps(HAND))):  # noqa: S301
        assert copy.vocab_size == len(PIECES)
        tokens, expected = (encode("No [SEP] pneumothorax", tokenizer=t) for t in (copy, HAND))
        assert tokens.token_ids.tolist() == expected.token_ids.tolist()
        copy.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_a_cased_vocabulary_still_reads_lower_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "Left", "left"]))
    assert encode("LEFT", tokenizer=Tokenizer.load(tmp_path / "vocab.txt")).token_ids[1] == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", b""),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n"),
        ("vocab.txt", "\n".join([*SPECIAL, "a", "a"]).encode()),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}}}'),
        ("tokenizer.json", b'{"model": {"type": "WordPiece", "vocab": {}}}'),
        ("tokenizer.json", json.dumps({"model": {"type": "WordPiece", "vocab": {**ID, "gap": 99}}}).encode()),
        ("tokenizer.json", json.dumps({"model": {"type": "WordPiece", "vocab": {**ID, "no": "5"}}}).encode()),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        Tokenizer.load(tmp_path / name)
    with pytest.raises(InputError, match="is no file"):
        Tokenizer.load(tmp_path / "other.txt")


def test_training_gives_the_same_vocabulary_every_time():
    """The library alone fails this: among many words of the same frequency it breaks ties by a hash table's order."""
    rng = random.Random(0)
    syllables = ["pneu", "mo", "tho", "rax", "ef", "fu", "sion", "car", "dio", "le", "ft", "opa", "ci", "ty", "é"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(500)]
    texts = [" ".join(rng.choices(words, k=10)) for _ in range(400)]
    vocabularies = [train_wordpiece(texts, vocab_size=300)._vocab for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert len(vocabularies[0]) == 300
    assert sorted(vocabularies[0].values()) == list(range(300))


def test_training_keeps_special_pieces_first_frequent_words_whole_and_every_character():
    tokenizer = train_wordpiece(["Nodule seen.", "nodule in the left lung: 1 cm", "nodule"], vocab_size=200)
    assert [tokenizer._vocab[piece] for piece in SPECIAL] == [0, 1, 2, 3, 4]
    assert encode("NODULE", max_tokens=3, tokenizer=tokenizer).words == ("NODULE",)
    tokens = encode("gum :1", tokenizer=tokenizer)  # never seen, but all its letters were
    assert tokenizer._vocab["[UNK]"] not in tokens.token_ids


def test_one_tokenizer_serves_several_threads():
    texts = [f"no left effusion {'x ray ' * (i % 7)}" for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda text: encode(text).token_ids.tolist(), texts))
    assert parallel == [encode(text).token_ids.tolist() for text in texts]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("Heart normal. No effusion.", ["Heart normal.", "No effusion."]),
        (
            "Nodule of 3.5 cm in the\nleft lung. Really?  Yes!",
            ["Nodule of 3.5 cm in the left lung.", "Really?", "Yes!"],
        ),
        ("1. Heart normal. 2. ___ . Clear", ["Heart normal.", "Clear"]),
        ("no full stop\n\nnew paragraph", ["no full stop", "new paragraph"]),
    ],
)
def test_sentences_of_texts_done_by_hand(text, sentences):
    assert split_sentences(text) == sentences


@given(st.lists(st.text(st.sampled_from("abc "), min_size=1).filter(str.strip), max_size=5))
def test_sentences_joined_with_full_stops_come_apart_again(sentences):
    clean = [" ".join(sentence.split()) + "." for sentence in sentences]
    assert split_sentences(" ".join(clean)) == clean
