"""Free text of radiology reports: its sections, as the public parser of MIMIC-CXR finds them, and its cleaning.

Johnson et al., MIMIC-CXR, Scientific Data 6:317, 2019; the parser is section_parser.py of github.com/MIT-LCP/mimic-cxr.
Two differences: its lists of single studies that were mended by hand are left out, and the headers "ndication" (there:
an impression) and "concusion" (there: neither, ours: a conclusion and so an impression) are taken for what they mean.
The cleaning is that of GLoRIA (Huang et al., ICCV 2021), which later methods copied. Theirs gives lower-case sentences
without full stops; ours keeps the case and ends each with a full stop, by which sentences are told apart later.
"""

import re
from collections.abc import Iterable, Mapping

SECTIONS = ("impression", "findings", "last_paragraph", "comparison")
MIN_WORDS = 3  # of a report that is kept

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_PARAGRAPH = "\n \n"
# Headers that say the same without holding the word; most are typing errors.
_WRITTEN = {
    "impression": "conclusion concusion coinclusion impresson imprression imoression impressoin imprssion impresion "
    "imperssion mpression impession",
    "findings": "finding findins findindgs findgings findngs findnings finidngs",
    "comparison": "comparision comparsion comparrison comparisions",
}
_NAMES = {typed: name for name, words in _WRITTEN.items() for typed in words.split()} | {"reference exam": "comparison"}
_PARTS = ("impression", "findings", "history", "comparison", "addendum")  # the first that a header holds
_VIEWS = re.compile(  # a header that only names the views stands above the findings
    "chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|one view|frontal view"
    "|pa view|ap view|lateral view|bone window|frontal upright|frontal semi-upright|ribs"
)

# Equal to [0-9]+\. but not quadratic in a long run of digits: it starts at the run's first digit and never goes back.
_LIST_NUMBER = re.compile(r"(?<![0-9])[0-9]++\.")
_WORD = re.compile(r"\w+")
_DIGITS = tuple("0123456789")

_SIDES = {"left": "left", "right": "right", "bilateral": "both", "bilaterally": "both", "bibasilar": "both"}
_ZONES = {
    "upper": "upper apex apical",
    "mid": "mid middle hilar lingula",
    "lower": "lower base bases basal basilar bibasilar retrocardiac costophrenic",
}
_ZONE_OF = {word: zone for zone, words in _ZONES.items() for word in words.split()}


def decode_report(data: bytes) -> str:
    r"""The text of a report's file: UTF-8, other bytes become U+FFFD, and every line ends with \n alone."""
    return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def extract_sections(text: str) -> dict[str, str]:
    r"""Name (of `SECTIONS`, in their order) -> its text, stripped, for those that are there and not empty.

    The last section of a name counts. `last_paragraph`, all after the first paragraph of the last section, is given
    where neither impression nor findings are. Lines must end with \n, see `decode_report`.
    """
    found = [(name, part) for name, part in split_sections(text) if part.strip() or name not in SECTIONS[:2]]
    if found and not any(name in SECTIONS[:2] for name, _ in found):
        name, part = found.pop()
        first, separator, rest = part.partition(_PARAGRAPH)
        found += [(name, first), *([("last_paragraph", rest)] if separator else [])]
    last = {name: part.strip() for name, part in found}
    return {name: last[name] for name in SECTIONS if last.get(name)}


def split_sections(text: str) -> list[tuple[str, str]]:
    """(name, text) of every section in the order of the report; what precedes the first header is "preamble".

    A header in the line that follows another header's is passed over, as in the public parser.
    """
    header = _HEADER.search(text)
    if header is None:
        return [("full report", text)]
    parts = [("preamble", text[: header.start()])]
    while header is not None:
        name, start = section_name(header[1]), header.end()
        following = _HEADER.search(text, max(start, text.find("\n", start)))
        parts.append((name, text[start : following.start() if following else len(text)]))
        header = following
    return parts


def section_name(header: str) -> str:
    """What a header means: itself in lower case, or one of impression, findings, comparison, history, addendum."""
    header = header.lower().strip()
    if header in _NAMES:
        return _NAMES[header]
    name = next((part for part in _PARTS if part in header), "")
    return name or ("findings" if _VIEWS.search(header) else header)


def clean_sentences(text: str) -> list[str]:
    r"""The sentences, each its words (\w+) joined by spaces; cut at list numbers and full stops, one word is none."""
    pieces = (piece for point in _LIST_NUMBER.split(text) for piece in point.split("."))
    words = (_WORD.findall(piece) for piece in pieces)
    return [" ".join(sentence) for sentence in words if len(sentence) > 1]


def clean_text(text: str) -> str:
    """`clean_sentences`, each ended by a full stop; cleaning the result changes nothing."""
    # After a digit the full stop stands apart, or it would be read as a list number.
    return " ".join(s + (" ." if s.endswith(_DIGITS) else ".") for s in clean_sentences(text))


def clean_report(sections: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(name, cleaned text) of impression and findings, without those that hold no sentence."""
    cleaned = ((name, clean_text(sections.get(name, ""))) for name in SECTIONS[:2])
    return tuple((name, text) for name, text in cleaned if text)


def word_count(texts: Iterable[str]) -> int:
    r"""How many words (\w+) there are in all."""
    return sum(len(_WORD.findall(text)) for text in texts)


def place_words(text: str) -> tuple[str, str, bool]:
    """Side, zone and whether there is a word for either, as `plan_jax.data.records.Phrase` has them.

    Side and zone are "" where no word says them, and the zone also where two words contradict each other.
    """
    words = {word.lower() for word in _WORD.findall(text)}
    sides = {_SIDES[word] for word in words & _SIDES.keys()}
    zones = {_ZONE_OF[word] for word in words & _ZONE_OF.keys()}
    side = "both" if len(sides) > 1 else next(iter(sides), "")
    return side, zones.pop() if len(zones) == 1 else "", bool(words & (_SIDES.keys() | _ZONE_OF.keys()))
