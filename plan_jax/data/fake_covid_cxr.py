"""A small made-up raw folder in the layout of the COVID-19 Image Data Collection, flawed as the published one is."""

import csv
import io
from pathlib import Path

import cv2
import numpy as np

from plan_jax.data.covid_cxr import IMAGES, TABLE
from plan_jax.data.fake_reports import draw_film

PATIENTS = 16
_NAMES = (
    "patientid,offset,sex,age,finding,survival,intubated,intubation_present,went_icu,in_icu,needed_supplemental_O2,"
    "extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,view,modality,date,location,"
    "folder,filename,doi,url,license,clinical_notes,other_notes,"
)
HEADER = next(csv.reader([_NAMES]))
FINDINGS = ("Pneumonia/Viral/COVID-19", "Pneumonia/Bacterial", "No Finding", "todo")


def fake_covid_cxr(out: Path, *, seed: int) -> None:
    """Writes metadata.csv and images/: 16 patients with one or two frontal films and a note each, and rows that give
    nothing: lateral, CT, without a note, cut off, with a cell too many, listed before, of a file that is not there or
    outside the folder, and of one that is cut short. Notes have line breaks, quotes and a byte that is no UTF-8.
    """
    random = np.random.default_rng([seed, 7])
    rows = []
    for number in range(1, PATIENTS + 1):
        note = f'Made-up case {number}: patchy opacity, "left" base,\nno effusion.'
        for film in range(1, 2 + number % 2):
            view, finding = ("PA", "AP Supine", "AP erect")[number % 3], FINDINGS[number % len(FINDINGS)]
            rows.append(_row(number, f"case-{number}-{film}.png", finding=finding, view=view, clinical_notes=note))
    good = [row[HEADER.index("filename")] for row in rows]
    rows += [
        _row(1, "lateral.png", view="L"),
        _row(2, "ct.png", view="Axial", modality="CT"),
        _row(3, "no-note.png", clinical_notes=" "),
        _row(4, "short.png")[:20],
        [*_row(5, "long.png"), "cut", "off"],
        _row(6, good[0]),
        _row(7, "gone.png"),
        _row(8, f"../{IMAGES}/{good[1]}"),
        _row(9, "broken.png"),
    ]
    (out / IMAGES).mkdir(parents=True)
    for name in (*good, "lateral.png", "no-note.png", "long.png", "broken.png"):
        data = cv2.imencode(".png", draw_film(random, []))[1].tobytes()
        (out / IMAGES / name).write_bytes(data[: len(data) // 2] if name == "broken.png" else data)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    (out / TABLE).write_bytes(text.getvalue().encode().replace(b"case 3:", b"case 3\xb0:"))


def _row(patient: int, filename: str, **values: str) -> list[str]:
    known = {"patientid": str(patient), "filename": filename, "folder": IMAGES, "view": "PA", "modality": "X-ray"}
    known |= {"finding": "COVID-19", "license": "made up", "clinical_notes": f"Made-up note on {filename}."} | values
    return [known.get(name, "") for name in HEADER]
