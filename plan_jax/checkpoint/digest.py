"""Whether the files of a folder are still those that were written: their sizes and SHA-256, kept beside them."""

import errno
import json
import os
from pathlib import Path

from plan_jax.data.records import file_hash

FILE = "digest.json"  # name of every file in the folder -> [bytes, SHA-256 in hex]


def write_digest(folder: Path) -> None:
    """Reads all files of a folder and writes FILE into it; a kill or a power cut leaves none or the whole one."""
    partial = folder / f"{FILE}.tmp"  # there already where a kill came between
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in (folder / FILE, partial))
    known = {path.relative_to(folder).as_posix(): [path.stat().st_size, file_hash(path)] for path in files}
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(known, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def damage(folder: Path, part: str = "") -> str | None:
    """What is wrong with a file of the folder, or of its subfolder `part`.

    None where nothing is, and where there is no FILE to tell. Files that FILE does not name are not looked at.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        known = json.loads((folder / FILE).read_text(encoding="utf-8")).items()
        named = [(folder / name, size, digest) for name, (size, digest) in known if name.startswith(part)]
    except (AttributeError, TypeError, ValueError):
        return f"{FILE} is not what was written"
    for path, size, _ in named:  # all of these before the first file is read: they cost nothing
        if not path.is_file():
            return f"{path.relative_to(folder)} is missing"
        if path.stat().st_size != size:
            return f"{path.relative_to(folder)} has {path.stat().st_size} bytes of {size}"
    for path, _, digest in named:
        try:
            found = file_hash(path)
        except OSError as error:
            if error.errno != errno.EIO:  # a bad sector; other errors say nothing of the file
                raise
            return f"{path.relative_to(folder)} cannot be read"
        if found != digest:
            return f"{path.relative_to(folder)} has other bytes than were written"
    return None
