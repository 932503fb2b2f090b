"""What one run of a program costs one device: bytes that collectives move, and floating-point operations."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable

from plan_jax.counting.hlo import Computation, Execution, Instruction, dimensions, executions, parse, size_in_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one device and one run.

    Attributes:
        flops: of matrix products and convolutions, a multiplication and an addition being two; what falls into a
            convolution's padding is not counted.
        collective_bytes: by kind: the gathered array of an all-gather, the array that goes in of the others.
        unknown_loops: loops whose length the program does not tell; their bodies are counted once.
        kernels: calls of hand-written kernels, whose work is not counted.
    """

    flops: float
    collective_bytes: dict[str, int]
    unknown_loops: int
    kernels: int


def count(text: str) -> Counts:
    """The counts of an optimised program, `compiled.as_text()`."""
    found, unknown_loops = executions(parse(text))
    moved, flops, kernels = Counter[str](), 0.0, 0
    for execution in found:
        if kind := _kind(execution):
            moved[kind] += execution.times * _payload(execution)
        flops += execution.times * _flops(execution)
        kernels += _is_kernel(execution.instruction)
    return Counts(flops, {kind: moved[kind] for kind in KINDS}, unknown_loops, kernels)


def _kind(execution: Execution) -> str | None:
    """The kind of a collective; an asynchronous one counts where it starts."""
    kind = execution.instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def _payload(execution: Execution) -> int:
    instruction, computation = execution.instruction, execution.computation
    sent = sum(map(size_in_bytes, computation.operand_shapes(instruction)))
    if not instruction.opcode.startswith("all-gather"):
        return sent
    # The start of an asynchronous one gives its operands back beside the result.
    return size_in_bytes(instruction.shape) - (sent if instruction.opcode.endswith("-start") else 0)


def _is_kernel(instruction: Instruction) -> bool:
    target = instruction.attribute("custom_call_target").strip('"')
    return target in ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "mosaic_gpu_v2")


# Operations


def _flops(execution: Execution) -> float:
    instruction, computation = execution.instruction, execution.computation
    if instruction.opcode == "custom-call":
        target = instruction.attribute("custom_call_target").strip('"')
        counted = next((rule for start, rule in LIBRARY.items() if target.startswith(start)), None)
        return counted(instruction, computation) if counted else 0.0
    if instruction.opcode == "dot":
        return _dot(instruction, computation)
    return _convolution(instruction, computation) if instruction.opcode == "convolution" else 0.0


def _dot(instruction: Instruction, computation: Computation) -> float:
    left = dimensions(computation.operand_shapes(instruction)[0])
    contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
    return 2.0 * math.prod(dimensions(instruction.shape)) * math.prod(left[int(axis)] for axis in contracted)


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """2 x batch x output features x input features of a group x pairs of an output and a tap that meet the input."""
    sides = [dimensions(shape) for shape in computation.operand_shapes(instruction)]
    inputs, kernel, output = _labels(instruction)
    result = dimensions(instruction.shape)
    total = 2.0 * result[output.index("b")] * result[output.index("f")] * sides[1][kernel.index("i")]
    window = _window(instruction, spatial=len(output) - 2)
    for axis, taps in enumerate(window):
        label = str(axis)
        total *= _pairs(sides[0][inputs.index(label)], result[output.index(label)], taps)
    return total


def _labels(instruction: Instruction) -> tuple[str, str, str]:
    """The axes of input, kernel and output, such as b01f, 01io, b01f."""
    inputs, kernel, output = re.split(r"_|->", instruction.attribute("dim_labels"))
    return inputs, kernel, output


@dataclasses.dataclass(frozen=True)
class _Taps:
    """A window along one axis."""

    size: int
    stride: int = 1
    pad: int = 0
    lhs_dilate: int = 1
    rhs_dilate: int = 1


def _window(instruction: Instruction, *, spatial: int) -> list[_Taps]:
    given = dict(part.split("=") for part in instruction.attribute("window").strip("{}").split())
    axes: dict[str, list[int]] = {
        name: [int(value.split("_")[0]) for value in given[name].split("x")]  # of pad=low_high the low side
        for name in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")
        if name in given
    }
    return [_Taps(**{name: values[axis] for name, values in axes.items()}) for axis in range(spatial)]


def _pairs(inputs: int, outputs: int, taps: _Taps) -> int:
    """Of all pairs of an output and a tap those that meet an element of the input, not padding or a hole."""
    met, last = 0, (inputs - 1) * taps.lhs_dilate
    for tap in range(taps.size):
        shift = tap * taps.rhs_dilate - taps.pad
        places = (output * taps.stride + shift for output in range(outputs))
        met += sum(0 <= place <= last and place % taps.lhs_dilate == 0 for place in places)
    return met


def _library_dot(instruction: Instruction, computation: Computation) -> float:
    """cuBLAS: what is contracted stands in its backend_config."""
    left = dimensions(computation.operand_shapes(instruction)[0])
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    contracted = re.findall(r"\d+", found[1]) if found else []
    return 2.0 * math.prod(dimensions(instruction.shape)) * math.prod(left[int(axis)] for axis in contracted)


def _library_convolution(instruction: Instruction, computation: Computation) -> float:
    """cuDNN: labels are those of the forward convolution, also in the two backward ones; padding counts here."""
    shapes = [instruction.shape, *computation.operand_shapes(instruction)]
    target = instruction.attribute("custom_call_target")
    forward, kernel = (1, 2) if "BackwardInput" in target else (2, 0) if "BackwardFilter" in target else (0, 2)
    taps = dimensions(shapes[kernel])
    features = taps[_labels(instruction)[1].index("o")]
    return 2.0 * math.prod(dimensions(shapes[forward])) * math.prod(taps) / features


LIBRARY: dict[str, Callable[[Instruction, Computation], float]] = {
    "__cublas$": _library_dot,
    "__cudnn$conv": _library_convolution,
}
