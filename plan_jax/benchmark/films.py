"""Made-up films that cost a decoder what radiographs cost it, and their reports, as a data set that `build` wrote.

They look like nothing: the phantom's chests enlarged, with noise whose strength and width were chosen so that PNG and
JPEG take as many bytes per pixel as they do for real radiographs of this size (0.46 and 0.21; here 0.47 and 0.21).
"""

import csv
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from plan_jax.data.build import build
from plan_jax.data.image import encode_png
from plan_jax.data.openi import FOLDERS, VIEWS
from plan_jax.data.openi_reports import TABLE
from plan_jax.data.phantom import make_phantom
from plan_jax.data.store import Store

LONG, SHORT = 512, (416, 512)  # sides as `build` stores them, pixels; the short one is drawn
NOISE, WIDTH = 2.5, 0.5  # standard deviations: in gray levels before it is smoothed, and of that, in pixels
SENTENCES = (5, 9)  # of a report, at least and at most

_SAID = (
    "The lungs are clear without focal consolidation, pleural effusion or pneumothorax.",
    "There is a patchy opacity in the right lower lobe, which may represent atelectasis or early pneumonia.",
    "Heart size is normal, and the mediastinal and hilar contours are unremarkable.",
    "A small left pleural effusion has slightly increased since the prior study.",
    "Right internal jugular central venous catheter tip terminates in the low SVC.",
    "No acute osseous abnormality is identified.",
    "Mild pulmonary vascular congestion without overt edema.",
    "The endotracheal tube terminates approximately 4.5 cm above the carina.",
    "Degenerative changes are noted throughout the thoracic spine.",
    "Low lung volumes accentuate the bronchovascular markings at both bases.",
    "Moderate cardiomegaly is stable, with a tortuous and calcified thoracic aorta.",
    "There is no free air beneath the right hemidiaphragm.",
)


def draw_film(index: int) -> UInt8[np.ndarray, "H W"]:
    """Film `index`, 512 pixels high; the same number gives the same film."""
    random = np.random.default_rng([7, index])
    small = make_phantom(0, index, level="realistic").scene.image
    width = int(random.integers(*SHORT, endpoint=True))
    film = cv2.resize(small, (width, LONG), interpolation=cv2.INTER_CUBIC)
    noise = random.normal(0, NOISE, film.shape).astype(np.float32)
    return np.clip(np.rint(film + cv2.GaussianBlur(noise, (0, 0), WIDTH)), 0, 255).astype(np.uint8)


def draw_report(index: int) -> str:
    """Report `index`: some of the sentences, in any order."""
    random = np.random.default_rng([8, index])
    count = random.integers(*SENTENCES, endpoint=True)
    return " ".join(_SAID[i] for i in random.permutation(len(_SAID))[:count])


def write_films(folder: Path, *, count: int) -> Path:
    """Writes `count` films and reports into the folder, in the published layout of Open-i's tables; returns it."""
    images = folder / FOLDERS[-1]
    images.mkdir(parents=True)
    names = [f"{number}_IM-{number:04d}-1001.dcm.png" for number in range(1, count + 1)]
    for index, name in enumerate(names):
        (images / name).write_bytes(encode_png(draw_film(index)))
    _write_csv(folder / VIEWS, ("uid", "filename", "projection"), [(i, n, "Frontal") for i, n in enumerate(names, 1)])
    reports = [(i, draw_report(i), "") for i in range(1, count + 1)]
    _write_csv(folder / TABLE, ("uid", "findings", "impression"), reports)
    return folder


def build_films(raw: Path, out: Path, *, format: str) -> Path:
    """Builds what `write_films` wrote, its images stored as "png" or "jpeg"; returns `out`."""
    build("openi", raw=raw, out=out, images=Store(side=LONG, format=format), jobs=1)
    return out


def _write_csv(path: Path, columns: tuple[str, ...], lines: list[tuple]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *lines])
