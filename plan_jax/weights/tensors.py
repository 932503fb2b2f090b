"""Files of named tensors. Nothing in them is ever run: safetensors, Flax's msgpack, PyTorch's only as plain weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import safetensors.numpy
from flax import serialization
from safetensors import SafetensorError, deserialize

from plan_jax.errors import InputError

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".tar")
NESTED = ("state_dict", "model_state_dict", "model", "net")  # where a training script keeps the weights in its file
PARTS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # Flax's word -> PyTorch's

SAFETENSORS_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "BOOL": "?"} | {
    f"{sign}{8 * size}": f"{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)
}

Tensors = Mapping[str, np.ndarray]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, by its name and in the order of axes of PyTorch.

    Args:
        path: .safetensors, .msgpack (a Flax state) or a PyTorch file, which is read with weights_only.

    Raises:
        InputError: the file is missing, cut, of another kind, holds more than tensors, or wants PyTorch, which is not
            installed.
    """
    if not path.is_file():
        raise InputError(f"weights must be a file, got {path}, which is none; check the path")
    readers = {".safetensors": _read_safetensors, ".msgpack": _read_msgpack} | dict.fromkeys(
        TORCH_SUFFIXES, _read_torch
    )
    if path.suffix not in readers:
        raise InputError(f"weights must be a file of {', '.join(readers)}, got {path.name}; convert it to safetensors")
    tensors = readers[path.suffix](path)
    if not tensors:
        raise InputError(f"{path} must hold tensors, got none; check that it is the file of the weights")
    return tensors


def write_tensors(path: Path, tensors: Tensors, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes .safetensors, with the mark that transformers looks for; a kill leaves no half file."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    partial = path.with_name(f"{path.name}.tmp")
    safetensors.numpy.save_file(contiguous, partial, metadata={"format": "pt", **(metadata or {})})
    partial.replace(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        found = deserialize(path.read_bytes())  # safetensors.numpy knows no bfloat16
        return {
            name: np.frombuffer(of["data"], SAFETENSORS_TYPES[of["dtype"]]).reshape(of["shape"]) for name, of in found
        }
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} must be a whole safetensors file, got: {error}; download it again") from error


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    try:
        state = serialization.msgpack_restore(path.read_bytes())
        return dict(_as_torch((), state, path))
    except (
        msgpack.UnpackException,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        kind = type(error).__name__
        raise InputError(f"{path} must be a whole Flax state in msgpack, got {kind}; download it again") from error


def _as_torch(names: tuple[str, ...], value: Any, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a Flax tree as PyTorch would have it: kernels [in, out] are transposed."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _as_torch((*names, str(key)), inner, path)
        return
    if not isinstance(value, np.ndarray):
        raise InputError(f"{path} must hold tensors only, got {type(value).__name__} at {'/'.join(names)}")
    *modules, last = names or ("",)
    if last == "kernel" and value.ndim in (2, 4):
        value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    yield ".".join((*modules, PARTS.get(last, last))), value


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{path.name} is a PyTorch file, and PyTorch must be there to read it, got none; take model.safetensors or "
            "flax_model.msgpack of the same weights, or install a CPU build of torch"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling meets: nothing of the file has been run
        raise InputError(
            f"{path} must be a PyTorch file of tensors only, which is all that is read for safety, got "
            f"{type(error).__name__}; where you trust the file, save its state_dict as safetensors"
        ) from error
    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise InputError(f"{path} must hold a state dict, got {type(loaded).__name__}; save model.state_dict()")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in tensors.items()}
