"""Where weights come from: a file, a folder, or a name at the Hugging Face Hub."""

import re
from collections.abc import Callable
from pathlib import Path

from plan_jax.errors import InputError

# In the order in which they are preferred: the first two need nothing installed.
WEIGHT_FILES = ("model.safetensors", "flax_model.msgpack", "pytorch_model.bin")
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_weights(source: str, *, field: str) -> Path:
    """The local file of the weights that a config field names.

    Args:
        source: a file; a folder with one of WEIGHT_FILES; or OWNER/NAME at the Hugging Face Hub, from where it is
            fetched once and then read from the Hub's own cache.
        field: the config field, for errors.

    Raises:
        InputError: it is none of these, or cannot be fetched; says what to download and where to put it.
    """
    return _find(source, WEIGHT_FILES, field=field, single=lambda path: path)


def find_vocabulary(source: str, *, field: str) -> Path:
    """The file of VOCABULARY_FILES that belongs to the weights: beside them. InputError as in `find_weights`."""
    return _find(
        source, VOCABULARY_FILES, field=field, single=lambda path: _first_in(path.parent, VOCABULARY_FILES, field)
    )


def _find(source: str, wanted: tuple[str, ...], *, field: str, single: Callable[[Path], Path]) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return single(path)
    if path.is_dir():
        return _first_in(path, wanted, field)
    if HUB_NAME.fullmatch(source):
        return _fetch(source, wanted, field)
    raise InputError(
        f"{field} must be a file, a folder or OWNER/NAME at the Hugging Face Hub, got {source!r}; check the path"
    )


def _first_in(folder: Path, wanted: tuple[str, ...], field: str) -> Path:
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{field} must be a folder with {' or '.join(wanted)}, got {folder} without; put one there")


def _fetch(source: str, wanted: tuple[str, ...], field: str) -> Path:
    """The first of the files that the Hub, or what was fetched before, has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    reached = True
    for name in wanted:
        try:
            return Path(hf_hub_download(source, name, local_files_only=not reached))
        except LocalEntryNotFoundError:
            reached = False  # no network: the other files may still be in the cache
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise InputError(
                f"{field} must name weights that the Hugging Face Hub gives, got {type(error).__name__} on {source!r}"
                "; check the name and, for gated weights, the access token"
            ) from error
    if reached:
        raise InputError(
            f"{field} must name weights with {' or '.join(wanted)}, got {source!r}, which has none of them"
        )
    raise InputError(
        f"{field} must be here or reachable, got {source!r} and no network; on a machine with one download "
        f"{' or '.join(wanted)} of {source} from the Hugging Face Hub (with vocab.txt for a text encoder), put the "
        f"files in a folder and set {field} to it"
    )
