"""Small raw folders of the labelled data sets, laid out and flawed as the published ones are: for tests and trials.

Every image is made up. The same seed gives the same bytes; which rows are flawed does not depend on it.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from plan_jax.data.chexpert_5x200 import FINDINGS, LIST
from plan_jax.data.chexpert_table import HOMES, LABELS, TRAIN, VALID
from plan_jax.data.covidx import LISTS
from plan_jax.data.image import encode_jpeg, encode_png
from plan_jax.data.nih_cxr14 import BOXES, TABLES, TEST_LIST, TRAIN_LIST

HEIGHT, WIDTH = 70, 60  # of an image, pixels
CANDIDATES = 3  # patients of the fake CheXpert for each finding of the 5x200 list, of whom a draw may take fewer

_NIH_HEADER = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"),
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", ""),
)


def fake_chexpert(out: Path, *, seed: int) -> None:
    """CheXpert-v1.0-small/ in `out`: 43 patients in train.csv, 4 in valid.csv of whom one is in both.

    The first 15 patients have a film for the 5x200 list (CANDIDATES for each finding), one with two findings and a
    lateral one. Rows that give nothing: lateral, of another path, cut off, too long, with a word for a label, listed
    before, or without an image. train.csv begins with a byte order mark.
    """
    rng, home = np.random.default_rng(seed), out / HOMES[1]
    train = [row for number in range(1, 5 * CANDIDATES + 1) for row in _alone(number)]
    train += [_film(number, rng=rng) for number in range(16, 40)]
    train += [_film(number, {"No Finding": "1.0"}) for number in range(40, 43)]  # nothing else was mentioned
    train[-1][5:] = ["nan"] * len(LABELS)
    valid = [_film(number, part="valid", rng=rng) for number in (42, 64541, 64542, 64543)]
    valid.append(_film(64541, view="view2_lateral", part="valid"))
    for row in (*train, *valid):
        _save(home / row[0].split("/", 1)[1], rng)
    flawed = [
        ["../../etc/passwd", *_film(43)[1:]],
        _film(43)[:9],
        [*_film(43), "1.0"],
        _film(43, {"Edema": "maybe"}),
        train[0],
        _film(43, {"Edema": "1.0", "Fracture": "1.0"}),  # no such image
    ]
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
    _write(home / TRAIN, [header, *train, *flawed], encoding="utf-8-sig")
    _write(home / VALID, [header, *valid])


def fake_chexpert_5x200(out: Path, *, seed: int) -> None:
    """The fake CheXpert with a user's list: the first two candidates for each finding, on paths of another machine."""
    fake_chexpert(out, seed=seed)
    numbers = [CANDIDATES * place + offset for place in range(len(FINDINGS)) for offset in (1, 2)]
    listed = {
        f"/data/{_film(number)[0]}": [int(place == i // 2) for place in range(5)] for i, number in enumerate(numbers)
    }
    (out / LIST).write_text(json.dumps(listed, indent=1), encoding="utf-8")


def fake_covidx(out: Path, *, seed: int) -> None:
    """COVIDx9A in `out`: 16 patients in the train list, 4 in the test list, of whom one is in both.

    Some patients have two films and a name holds a space. Rows that give nothing: too short, of another class, in
    another folder, listed before, or without an image.
    """
    rng = np.random.default_rng(seed)
    classes = ("normal", "pneumonia", "COVID-19", "pneumonia")
    train = [(f"p{n}", f"p{n}-{day}.png", classes[n % 4], "cohen") for n in range(16) for day in range(1 + n % 2)]
    train.append(("COVID_1", "COVID (1).png", "COVID-19", "sirm"))
    test = [(f"p{n}", f"p{n}-0.png", classes[n % 4], "rsna") for n in (15, 20, 21, 22)]
    for part, lines in (("train", train), ("test", test)):
        for _, name, _, _ in lines:
            _save(out / part / name, rng)
    flawed = [
        ("p30", "p30.png", "COVID-19"),
        ("p30", "p30.png", "influenza", "cohen"),
        ("p30", "../test/p20-0.png", "normal", "cohen"),
        train[0],
        ("p30", "gone.png", "normal", "rsna"),
    ]
    for part, lines in (("train", [*train, *flawed]), ("test", test)):
        text = "".join(" ".join(line) + "\n" for line in lines)
        (out / LISTS[part]).write_text(text, encoding="utf-8")


def fake_nih_cxr14(out: Path, *, seed: int) -> None:
    """ChestX-ray14 in `out` with the published split and two image folders: 12 patients, of whom 3 are tested on.

    A patient is in both lists, an image in none; three images have boxes. Rows that give nothing: of another name, of
    two patients, with an unknown finding, listed before, cut off, or without an image; and boxes that are none. Both
    tables end their header in columns without names.
    """
    rng = np.random.default_rng(seed)
    findings = ("No Finding", "Cardiomegaly|Emphysema", "Infiltration", "Pleural_Thickening|Mass", "Nodule")
    rows = [_nih_row(p, visit, findings[(p + visit) % 5]) for p in range(1, 13) for visit in range(1 + p % 3)]
    for number, row in enumerate(rows):
        _save(out / f"images_{1 + number % 2:03d}" / "images" / row[0], rng)
    flawed = [
        ["../../etc/passwd", *_nih_row(30, 0, "Mass")[1:]],
        [_nih_row(30, 0, "Mass")[0], *_nih_row(31, 0, "Mass")[1:]],
        _nih_row(30, 0, "Mass|Gout"),
        rows[0],
        _nih_row(30, 0, "Mass")[:5],
        _nih_row(30, 0, "Mass"),  # no such image
    ]
    _write(out / TABLES[1], [_NIH_HEADER, *rows, *flawed])
    boxed = [row[0] for row in rows if row[3] == "12"] + [_nih_row(11, 1, "")[0], _nih_row(11, 2, "")[0]]
    boxes = [[name, "Infiltrate", "225.08", "547.02", "86.78", "79.19"] for name in boxed]
    boxes += [[boxed[0], "Infiltrate", "512", "0", "512", "1024"], [boxed[0], "Mass", "1", "2", "3", "4"]]
    wrong = (["-1", "2", "3", "4"], ["1", "2", "nan", "4"], ["1", "2", "1e30", "4"], ["1", "2", "3"])
    boxes += [[boxed[0], "Mass", *cells] for cells in wrong]
    boxes += [[boxed[0], "Gout", "1", "2", "3", "4"], ["99999999_000.png", "Mass", "1", "2", "3", "4"]]
    _write(out / BOXES, [["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""], *boxes])
    tested = [row[0] for row in rows if row[3] in ("10", "11", "12")]
    trained = [row[0] for row in rows if row[0] not in (tested[0], rows[0][0])] + [_nih_row(30, 0, "")[0]]
    (out / TEST_LIST).write_text("".join(f"{name}\n" for name in tested), encoding="utf-8")
    (out / TRAIN_LIST).write_text("".join(f"{name}\n" for name in trained if name not in tested[1:]), encoding="utf-8")


def _alone(number: int) -> list[list[str]]:
    """The rows of a patient with one finding in the first study and two in the second, and a lateral film."""
    finding = FINDINGS[(number - 1) // CANDIDATES]
    return [
        _film(number, {finding: "1.0"}),
        _film(number, {finding: "1.0"}, view="view2_lateral"),
        _film(number, {finding: "1.0", "Support Devices": "1.0"}, study=2),
    ]


def _film(
    number: int,
    labels: Mapping[str, str] | None = None,
    *,
    study: int = 1,
    view: str = "view1_frontal",
    part: str = "train",
    rng: np.random.Generator | None = None,
) -> list[str]:
    """A row of CheXpert; with `rng`, labels at random that are never those of the 5x200 list."""
    cells = dict.fromkeys(LABELS, "")
    if rng is not None:
        cells = {name: str(rng.choice(["1.0", "0.0", "-1.0", ""])) for name in LABELS} | {"Fracture": "1.0"}
    path = f"{HOMES[1]}/{part}/patient{number:05d}/study{study}/{view}.jpg"
    frontal = view.endswith("frontal")
    about = ("Female", "60", "Frontal", "AP") if frontal else ("Female", "60", "Lateral", "")
    return [path, *about, *(cells | dict(labels or {})).values()]


def _nih_row(patient: int, visit: int, findings: str) -> list[str]:
    name = f"{patient:08d}_{visit:03d}.png"
    return [name, findings, str(visit), str(patient), "60", "F", "PA", "2500", "2048", "0.168", "0.168", ""]


def _save(path: Path, rng: np.random.Generator) -> None:
    """A bright ellipse on noise, as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = ((y / HEIGHT - rng.uniform(0.4, 0.6)) / 0.3) ** 2 + ((x / WIDTH - rng.uniform(0.4, 0.6)) / 0.3) ** 2 < 1
    image = (100.0 * inside + rng.integers(0, 100, (HEIGHT, WIDTH))).astype(np.uint8)
    path.write_bytes(encode_png(image) if path.suffix == ".png" else encode_jpeg(image))


def _write(path: Path, rows: Iterable[Sequence[str]], *, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows(rows)
