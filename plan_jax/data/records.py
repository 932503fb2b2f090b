"""One schema for every data set, and how its records are read: TFDS over ArrayRecord, without TensorFlow.

A folder that `build` wrote holds manifest.json, report.txt, tokenizer.json, contact_sheet.png and NAME/VERSION/, the
TFDS data set. manifest.json is written last: where it is missing, the build is not complete. Images and masks stay
encoded bytes from the builder (`plan_jax.data.builder`) to whoever decodes them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.proto import tf_example_pb2

from plan_jax.errors import InputError

SPLITS = ("train", "tune", "validation", "test")
MANIFEST = "manifest.json"
STAGING = ".building"  # holds a build until it is complete


@dataclass(frozen=True)
class Phrase:
    """Something a grounding query can ask for, with its place where that is known.

    Attributes:
        text: the query.
        category: the class of the finding, one of the data set's classes, or "".
        side: "left", "right" (the patient's), "both", or "" where unknown.
        zone: "upper", "mid", "lower", or "" where unknown.
        located: the text itself contains a word for side or zone.
        boxes: (x0, y0, x1, y1) in pixels of the stored image; continuous and half open: pixel i covers [i, i + 1).
            Stored as float32.
        mask: PNG, 0 or 255, of the stored image's size, or None.
    """

    text: str
    category: str = ""
    side: str = ""
    zone: str = ""
    located: bool = False
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    mask: bytes | None = None


@dataclass(frozen=True)
class Record:
    """An image with its report. `image` is a gray PNG or JPEG, 8 or 16 bit.

    Attributes:
        key: unique in the data set; may appear in messages, so never a patient's name.
        patient: splits are disjoint by it.
        study: the images of one study share a report.
        sections: (name, text) of the report, in the order of the report.
        labels: names of the classes that are present.
    """

    key: str
    patient: str
    study: str
    image: bytes
    sections: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] = ()

    @property
    def report(self) -> str:
        """The sections' text, joined by spaces."""
        return " ".join(text for _, text in self.sections if text)


def features() -> tfds.features.FeaturesDict:
    """The schema on disk. A box names the index of its phrase: a sequence in a sequence costs more than it helps."""
    text, encoded = tfds.features.Text, tfds.features.Scalar(np.object_)
    return tfds.features.FeaturesDict(
        {
            "key": text(),
            "patient": text(),
            "study": text(),
            "image": encoded,
            "sections": tfds.features.Sequence({"name": text(), "text": text()}),
            "labels": tfds.features.Sequence(text()),
            "phrases": tfds.features.Sequence(
                {
                    "text": text(),
                    "category": text(),
                    "side": text(),
                    "zone": text(),
                    "located": tfds.features.Scalar(np.bool_),
                    "mask": encoded,
                }
            ),
            "boxes": tfds.features.Sequence(
                {"phrase": tfds.features.Scalar(np.int32), "box": tfds.features.Tensor(shape=(4,), dtype=np.float32)}
            ),
        }
    )


def to_example(record: Record) -> dict:
    """Record -> what the features encode."""
    phrases = [
        {
            "text": p.text,
            "category": p.category,
            "side": p.side,
            "zone": p.zone,
            "located": p.located,
            "mask": p.mask or b"",
        }
        for p in record.phrases
    ]
    boxes = [{"phrase": i, "box": np.asarray(b, np.float32)} for i, p in enumerate(record.phrases) for b in p.boxes]
    return {
        "key": record.key,
        "patient": record.patient,
        "study": record.study,
        "image": record.image,
        "sections": [{"name": name, "text": text} for name, text in record.sections],
        "labels": list(record.labels),
        "phrases": phrases,
        "boxes": boxes,
    }


def from_example(data: bytes) -> Record:
    """A serialized example -> Record; reads its fields directly, since TFDS's general decoder takes far longer."""
    fields = tf_example_pb2.Example.FromString(data).features.feature  # pyright: ignore[reportAttributeAccessIssue]

    def text(name: str) -> list[str]:
        return [value.decode() for value in fields[name].bytes_list.value]

    numbers = fields["boxes/box"].float_list.value
    boxes: list[list[tuple[float, float, float, float]]] = [[] for _ in fields["phrases/text"].bytes_list.value]
    for row, phrase in enumerate(fields["boxes/phrase"].int64_list.value):
        x0, y0, x1, y1 = numbers[4 * row : 4 * row + 4]
        boxes[phrase].append((x0, y0, x1, y1))
    words = zip(*(text(f"phrases/{name}") for name in ("text", "category", "side", "zone")), strict=True)
    located, masks = fields["phrases/located"].int64_list.value, fields["phrases/mask"].bytes_list.value
    return Record(
        key=text("key")[0],
        patient=text("patient")[0],
        study=text("study")[0],
        image=fields["image"].bytes_list.value[0],
        sections=tuple(zip(text("sections/name"), text("sections/text"), strict=True)),
        labels=tuple(text("labels")),
        phrases=tuple(
            Phrase(*names, located=bool(flag), boxes=tuple(box), mask=mask or None)
            for names, flag, mask, box in zip(words, located, masks, boxes, strict=True)
        ),
    )


class Split:
    """Random access to the records of one split. Small to pickle, safe to read from several threads."""

    def __init__(self, directory: Path, name: str):
        manifest = read_manifest(directory)
        if name not in manifest["splits"]:
            raise InputError(f"split must be one of {', '.join(manifest['splits'])} in {directory}, got {name!r}")
        folder = data_folder(directory, manifest)
        needed = ["dataset_info.json", "features.json", *manifest["shards"]]
        missing = [file for file in needed if not (folder / file).is_file()]
        if missing:
            raise InputError(f"{folder} must hold what its manifest names, got no {missing[0]}; build it again")
        self.directory, self.name = directory, name
        builder = tfds.builder_from_directory(folder)
        raw = DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(name, deserialize_method=raw)  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return from_example(self.example(index))

    def example(self, index: int) -> bytes:
        """A record as it is stored, for `from_example`."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"index must be below {size} in split {self.name}, got {index}")
        try:
            return self._source[int(index) % size]
        except RuntimeError as error:  # ArrayRecord found a wrong checksum or a short file
            raise InputError(
                f"shards must be as build wrote them, got damaged data at record {index} of split {self.name} "
                f"in {self.directory}; build it again"
            ) from error

    def __repr__(self) -> str:
        return f"Split({str(self.directory)!r}, {self.name!r})"

    def __reduce__(self):
        return Split, (self.directory, self.name)  # the other process opens the files itself


def open_split(directory: str | Path, split: str) -> Split:
    """The records of `split` in a folder that `build` wrote. InputError: no such folder, not built, no such split."""
    return Split(Path(directory).resolve(), split)


def read_manifest(directory: str | Path) -> dict:
    """manifest.json of a built data set, which has the fields below. InputError: there is none that build wrote."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise InputError(_why_no_manifest(Path(directory)))
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be JSON written by build, got {error}; build the data set again") from error
    found = set(manifest) if isinstance(manifest, dict) else set()
    missing = {"name", "version", "options", "classes", "splits", "shards", "dropped", "summary"} - found
    if missing:
        raise InputError(f"{path} must be written by build, got no {min(missing)!r}; give the folder of a build")
    return manifest


def manifest_hash(directory: str | Path) -> str:
    """SHA-256 of manifest.json, in hex: names the data exactly, since the manifest holds the hash of every shard."""
    read_manifest(directory)
    return file_hash(Path(directory) / MANIFEST)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_folder(directory: Path, manifest: dict) -> Path:
    """Where the TFDS data set lies in a built folder."""
    return directory / manifest["name"] / manifest["version"]


def _why_no_manifest(directory: Path) -> str:
    if not directory.exists():
        return f"data directory must exist, got {directory}; write it with `python -m plan_jax build NAME --out DIR`"
    if not directory.is_dir():
        return f"data directory must be a folder, got the file {directory}; give the folder that build wrote"
    if (directory / STAGING).exists() or any(directory.glob("*/*/dataset_info.json")):
        return f"data directory must be a complete build, got {directory} without {MANIFEST}; run the build again"
    return f"data directory must be one that build wrote, got {directory} without {MANIFEST}; build it first"
