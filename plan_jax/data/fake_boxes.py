"""Small made-up raw folders in the published layouts of the data sets with boxes and masks, with their quirks.

For tests, and to try a build without the data. The pictures are noise with a bright patch where the truth says so.
"""

import csv
import uuid
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt16
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from plan_jax.data import object_cxr, rsna, siim
from plan_jax.data.run_lengths import encode_runs

IMAGES = 24  # that are in order, in each data set
SIDE = 64  # of a made-up DICOM image, pixels; its boxes and masks count 1024 as the published ones do
WHITE = 4095  # 12 bit


def fake_rsna(out: Path, *, seed: int) -> None:
    """Writes stage_2_train_labels.csv and stage_2_train_images/: 24 patients in order, 6 with lines that are not."""
    random = np.random.default_rng([seed, 0])
    names = [str(uuid.UUID(bytes=random.bytes(16))) for _ in range(IMAGES + 5)]
    lines: list[list[str]] = [list(rsna.COLUMNS)]
    for number, name in enumerate(names):
        boxes = [_box(random, rsna.SIDE) for _ in range(max(0, number % 8 - 3))]  # none to four
        lines += [[name, *_xywh(box), "1"] for box in boxes] or [[name, "", "", "", "", "0"]]
        _write_dicom(out / rsna.IMAGES / f"{name}.dcm", _picture(random, boxes, rsna.SIDE), inverted=number == 1)
    missing, short, long, outside, both = names[IMAGES:]
    (out / rsna.IMAGES / f"{missing}.dcm").unlink()
    lines = [line for line in lines if line[0] not in (short, long, outside, both)]
    lines += [[short, "", "0"], [long, "1.0", "2.0", "30.0", "40.0", "1", "7"]]
    lines += [[outside, "900.0", "10.0", "200.0", "50.0", "1"], [outside, "100.0", "10.0", "200.0", "50.0", "1"]]
    lines += [[both, "100.0", "10.0", "200.0", "50.0", "1"], [both, "", "", "", "", "0"]]
    lines += [[f"../{names[0]}", "", "", "", "", "0"]]
    _write_table(out / rsna.TABLE, lines)


def fake_siim(out: Path, *, seed: int) -> None:
    """Writes train-rle.csv and dicom-images-train/: 24 images in order, one of them in two folders, 4 that are not."""
    random = np.random.default_rng([seed, 1])
    names = [_uid(seed, "image", number) for number in range(IMAGES + 4)]
    lines = [["ImageId", " EncodedPixels"]]
    for number, name in enumerate(names):
        boxes = [_box(random, siim.SIDE) for _ in range(max(0, number % 6 - 3))]  # none to two
        absent = " -1" if number % 2 else "-1"
        lines += [[name, " " + encode_runs(_ellipse(box, siim.SIDE))] for box in boxes] or [[name, absent]]
        folder = out / siim.IMAGES / _uid(seed, "study", number) / _uid(seed, "series", number)
        _write_dicom(folder / f"{name}.dcm", _picture(random, boxes, siim.SIDE), inverted=number == 1)
    missing, ragged, beyond, odd = names[IMAGES:]
    next((out / siim.IMAGES).rglob(f"{missing}.dcm")).unlink()
    lines = [line for line in lines if line[0] not in (ragged, beyond, odd)]
    lines += [[ragged], [beyond, f" {siim.SIDE**2} 1"], [odd, " 5 10 20"], [odd, " 5 10"]]
    _write_table(out / siim.TABLE, lines)


def fake_object_cxr(out: Path, *, seed: int) -> None:
    """Writes {train,dev}.csv and {train,dev}/: 16 + 8 images in order, 4 of train that are not."""
    random = np.random.default_rng([seed, 2])
    train, dev = [f"{number:05d}.jpg" for number in range(20)], [f"{number:05d}.jpg" for number in range(8000, 8008)]
    for part, names in zip(object_cxr.PARTS, (train, dev), strict=True):
        lines: list[list[str]] = [list(object_cxr.COLUMNS)]
        for number, name in enumerate(names):
            height, width = random.integers(60, 120, 2).tolist()
            boxes = [_box(random, min(height, width)) for _ in range(number % 4)]  # none to three
            kinds = (number + place for place in range(len(boxes)))
            lines.append([name, ";".join(_object(box, kind % 3) for box, kind in zip(boxes, kinds, strict=True))])
            _write_jpeg(out / part / name, random.integers(0, 180, (height, width)), boxes)
        if part == "train":
            missing, ragged, unknown, flat = names[16:]
            (out / part / missing).unlink()
            lines[-3:] = [[ragged], [unknown, "3 1 2 30 40"], [flat, "0 5 5 20 20;1 7 9 7 30"]]
        _write_table(out / f"{part}.csv", lines)


def _box(random: np.random.Generator, side: int) -> tuple[int, int, int, int]:
    """A box (x0, y0, x1, y1) of an eighth to a quarter of the side in a square picture."""
    width, height = random.integers(side // 8, side // 4, 2).tolist()
    x, y = random.integers(0, side - width).item(), random.integers(0, side - height).item()
    return x, y, x + width, y + height


def _xywh(box: tuple[int, int, int, int]) -> list[str]:
    x0, y0, x1, y1 = box
    return [f"{value:.1f}" for value in (x0, y0, x1 - x0, y1 - y0)]


def _object(box: tuple[int, int, int, int], kind: int) -> str:
    """An object as the tables of Object-CXR have it; a polygon is the diamond in the box."""
    x0, y0, x1, y1 = box
    diamond = ((x0 + x1) // 2, y0, x1, (y0 + y1) // 2, (x0 + x1) // 2, y1, x0, (y0 + y1) // 2)
    return " ".join(map(str, (kind, *(diamond if kind == 2 else box))))


def _ellipse(box: tuple[int, int, int, int], side: int) -> Bool[np.ndarray, "side side"]:
    x0, y0, x1, y1 = box
    steps = np.arange(side) + 0.5
    across, down = (2 * steps - x0 - x1) / (x1 - x0), (2 * steps - y0 - y1) / (y1 - y0)
    return np.add.outer(down**2, across**2) <= 1


def _picture(random: np.random.Generator, boxes: Sequence[tuple], side: int) -> UInt16[np.ndarray, "SIDE SIDE"]:
    """Noise, brighter inside the boxes, which count a picture of this side."""
    image = random.integers(0, WHITE // 2, (SIDE, SIDE), np.uint16)
    for box in boxes:
        x0, y0, x1, y1 = (value * SIDE // side for value in box)
        image[y0:y1, x0:x1] += WHITE // 2
    return image


def _write_dicom(path: Path, image: UInt16[np.ndarray, "H W"], *, inverted: bool) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[path.stem])
    dataset.Modality, dataset.PatientID = "CR", path.stem
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.PixelData = (WHITE - image if inverted else image).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _write_jpeg(path: Path, noise: np.ndarray, boxes: Sequence[tuple[int, int, int, int]]) -> None:
    image = noise.astype(np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] += 70
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


def _write_table(path: Path, lines: Sequence[Sequence[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _uid(seed: int, kind: str, number: int) -> str:
    return uid.generate_uid(entropy_srcs=[str(seed), kind, str(number)])
