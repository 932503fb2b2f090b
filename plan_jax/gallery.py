"""gallery.html: what the network finds and what it misses, in one file that needs no other file and no network.

The parts of the page serve figures.html too (`plan_jax.figure_page`).
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from plan_jax.plots import MATCH, Example, overlay, with_boxes
from plan_jax.tables.model import Table
from plan_jax.tables.render import to_html

SIDE = 256  # of a picture in pixels: two fit beside each other, and a page of 24 stays at a few megabytes
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --line: #d5d9de; --soft: #f4f6f8;
  --good: #0a6b2d; --bad: #a8261c; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --ink: #e6e9ec; --line: #3a4149; --soft: #1d2228;
  --good: #6fd694; --bad: #ff9a8f; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 90rem;
  background: var(--page); color: var(--ink); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: right; }
tbody th, th:first-child { text-align: left; font-weight: 600; white-space: normal; }
td small { display: block; line-height: 1.1; opacity: .75; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; padding: .7rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--soft); }
.words { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
.sides { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 32rem)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; } img { width: 100%; display: block; }
.phrase { margin: .5rem 0 .2rem; font-weight: 600; overflow-wrap: anywhere; } .facts { margin: 0; font-size: .9rem; }
.hit { color: var(--good); } .miss { color: var(--bad); }
.scale { display: inline-block; width: 9rem; height: .8rem; vertical-align: middle; }
"""
LEGEND = (
    "<p>Left: the image. Right: where the phrase is, from no colour at the map's median "
    f'<span class="scale" style="background: linear-gradient(to right, #6e6e6e, rgb{MATCH})"></span> '
    "to full colour at its highest value, growing with the square. Yellow: the true boxes, which training never saw. "
    "CNR: contrast-to-noise ratio, negative where the map is inverted.</p>"
)


def write_gallery(path: Path, examples: Sequence[Example], *, title: str, summary: Table | None = None) -> None:
    """Writes a page with the summary table, then the examples whose peak hits and those whose peak misses.

    Within a group the examples keep their order. All text is escaped.
    """
    hits = [example for example in examples if example.hit]
    misses = [example for example in examples if not example.hit]
    table = f'<div class="scroll">{to_html(summary)}</div>' if summary else ""
    refined = next((example for example in examples if example.rounds), None)
    parts = (
        table,
        LEGEND,
        rounds_strip(refined) if refined else "",
        _group("Successes: the peak lies in a true box", hits),
        _group("Failures: the peak lies outside", misses),
    )
    write_page(path, title, "\n".join(parts))


def write_page(path: Path, title: str, body: str) -> None:
    """Writes an HTML page around a body whose text is escaped already."""
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
</body>
</html>
"""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


def rounds_strip(example: Example, *, note: str = "") -> str:
    """The refinement of an example: the maps of S_0 ... S_K in a row; `note` is HTML above them."""
    cells = "".join(
        f'<figure><img src="{picture(overlay(example.image, found, boxes=example.boxes, side=SIDE))}" '
        f'alt="Map of S_{k}"><figcaption class="facts">S<sub>{k}</sub> &middot; signed CNR {cnr:.2f}</figcaption>'
        "</figure>"
        for k, (found, cnr) in enumerate(example.rounds)
    )
    heading = f"The refinement, round by round: {html.escape(example.phrase)}"
    return f'<section>\n<h2>{heading}</h2>\n{note}<div class="grid strip">{cells}</div>\n</section>'


def _group(heading: str, examples: Sequence[Example]) -> str:
    cards = "\n".join(card(example) for example in examples) or "<p>None among these examples.</p>"
    return f'<section>\n<h2>{heading} ({len(examples)})</h2>\n<div class="grid">\n{cards}\n</div>\n</section>'


def card(example: Example, *, note: str = "") -> str:
    """An example as a figure: the image, the map, the phrase and how it did; `note` goes before that, escaped."""
    phrase = html.escape(example.phrase)
    image = picture(with_boxes(example.image, boxes=example.boxes, side=SIDE))
    heat = picture(overlay(example.image, example.grounding_map, boxes=example.boxes, side=SIDE))
    facts = [*([note] if note else []), html.escape(example.category), f"signed CNR {example.cnr_signed:.2f}"]
    verdict = '<span class="hit">pointing hit</span>' if example.hit else '<span class="miss">pointing miss</span>'
    return f"""<figure>
<div class="pair">
<img src="{image}" alt="The image with its true boxes"><img src="{heat}" alt="Grounding map of: {phrase}">
</div>
<figcaption>
<p class="phrase">{phrase}</p>
<p class="facts">{" &middot; ".join([*facts, verdict])}</p>
</figcaption>
</figure>"""


def picture(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """An RGB picture as a data URL."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
