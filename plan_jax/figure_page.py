"""figures.html: how a network grounds, in pictures that each say what they show; one file that needs no other."""

import dataclasses
import html
from pathlib import Path

from plan_jax.gallery import LEGEND, card, picture, rounds_strip, write_page
from plan_jax.inference import WordMaps
from plan_jax.plots import Example, overlay, with_boxes

WORDS = 40  # of a report, at most, in its order: a page stays at a few megabytes
SIDE = 160  # of a word's picture in pixels


@dataclasses.dataclass(frozen=True)
class Pair:
    """The worst and the best phrase of a class with `count` phrases."""

    category: str
    count: int
    worst: Example
    best: Example


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the page shows.

    Attributes:
        typical: the phrase of median signed CNR; its `rounds` are drawn as a strip.
        words: where each word of that image's report points.
        pairs: failures beside successes.
    """

    typical: Example
    words: WordMaps
    pairs: tuple[Pair, ...]


def write_figure_page(path: Path, figures: Figures, *, title: str) -> None:
    """Writes the page; all text is escaped."""
    write_page(path, title, "\n".join([LEGEND, _rounds(figures.typical), _words(figures.words), _pairs(figures.pairs)]))


def _rounds(typical: Example) -> str:
    chosen = "<p>Of all phrases scored, this one has the median signed CNR.</p>"
    if typical.rounds:
        return rounds_strip(typical, note=chosen)
    heading = f"One phrase: {html.escape(typical.phrase)}"
    none = "<p>This configuration has no refinement rounds (K = 0): the one map is that of S<sub>0</sub>.</p>"
    return f'<section>\n<h2>{heading}</h2>\n{chosen}\n{none}\n<div class="grid">\n{card(typical)}\n</div>\n</section>'


def _words(words: WordMaps) -> str:
    count = min(WORDS, len(words.spans))
    cells = [_cell(picture(with_boxes(words.image, side=SIDE)), "The image", "the image")]
    for (start, end), found, share in zip(words.spans[:count], words.maps, words.importance, strict=False):
        word = html.escape(words.text[start:end])
        cells.append(
            _cell(
                picture(overlay(words.image, found, side=SIDE)),
                f"Map of the word {word}",
                f"{word} &middot; {share:.0%}",
            )
        )
    part = "" if count == len(words.spans) else f" The first {count} of {len(words.spans)} words."
    note = (
        f"<p>The same image: under every word of its report that word's own map and its share of the whole.{part}</p>"
    )
    return f'<section>\n<h2>Word by word</h2>\n{note}\n<div class="words">\n{"".join(cells)}\n</div>\n</section>'


def _cell(source: str, alt: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt="{alt}"><figcaption class="facts">{caption}</figcaption></figure>'


def _pairs(pairs: tuple[Pair, ...]) -> str:
    rows = []
    for pair in pairs:
        name = html.escape(pair.category)
        if pair.count == 1:
            rows.append(f'<h3>{name}: its only phrase</h3>\n<div class="sides">\n{card(pair.best)}\n</div>')
            continue
        sides = f"{card(pair.worst, note='worst')}\n{card(pair.best, note='best')}"
        rows.append(f'<h3>{name}: worst and best of {pair.count} phrases</h3>\n<div class="sides">\n{sides}\n</div>')
    note = "<p>By pointing, then by signed CNR. These are extremes: what is usual stands in the tables.</p>"
    return f"<section>\n<h2>Failures beside successes</h2>\n{note}\n" + "\n".join(rows) + "\n</section>"
