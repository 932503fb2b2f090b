"""The text of an optimised XLA program, read far enough to follow its calls and loops.

Grammar: a program is a list of computations; a computation is a header line, an instruction per line and a brace.
An instruction reads `%name = shape opcode(%operand, ...), attribute=value, ...`, where a shape such as
`bf16[8,128]{1,0:T(8,128)}` may be a tuple in parentheses.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program; `operands` are names in the same computation, `text` is what stands in parentheses."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    attributes: str

    def attribute(self, name: str) -> str:
        """The value of `name=value` up to the next comma or, in braces, to their end; "" where there is none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order, and the name of the one whose value the computation has."""

    instructions: Mapping[str, Instruction]
    root: str

    def operand_shapes(self, instruction: Instruction) -> list[str]:
        """The shapes of what an instruction reads."""
        return [self.instructions[name].shape for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and the name of the one that runs."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
        ValueError: the text holds no computation marked ENTRY.
    """
    computations: dict[str, Computation] = {}
    entry, lines = None, iter(text.splitlines())
    for line in lines:
        if header := _HEADER.match(line):
            computations[header[2]] = _computation(lines)
            entry = header[2] if header[1] else entry
    if entry is None:
        raise ValueError("the text must hold a computation marked ENTRY, got none; pass compiled.as_text()")
    return Program(computations, entry)


def _computation(lines: Iterator[str]) -> Computation:
    """The instructions up to the closing brace."""
    instructions, root = {}, ""
    for line in lines:
        if line.startswith("}"):
            break
        if found := _LINE.match(line):
            instructions[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    return Computation(instructions, root)


def _instruction(name: str, rest: str) -> Instruction:
    shape, rest = _until_space(rest)
    opcode, _, rest = rest.partition("(")
    inside, attributes = _until_close(rest)
    return Instruction(name, shape, opcode, tuple(re.findall(r"%([\w.\-]+)", inside)), inside, attributes)


def _until_space(text: str) -> tuple[str, str]:
    """A shape and what follows; a tuple's spaces are inside its parentheses."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and not depth:
            return text[:i], text[i + 1 :]
    return text, ""


def _until_close(text: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes, and what follows it."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i], text[i + 1 :]
    return text, ""


# Shapes


def dimensions(shape: str) -> list[int]:
    """The sizes of a shape's first array; [] for a scalar."""
    found = _ARRAY.search(shape)
    return [int(size.strip("<=")) for size in found[2].split(",") if size] if found else []


def size_in_bytes(shape: str) -> int:
    """Bytes of a shape, without the padding of its layout; a tuple's arrays are summed."""
    return sum(
        math.ceil(_bits(kind) * math.prod(int(size.strip("<=")) for size in sizes.split(",") if size) / 8)
        for kind, sizes in _ARRAY.findall(shape)
    )


def _bits(kind: str) -> int:
    """Of an element: bf16, s4, f8e4m3fn; pred is a byte, a token nothing."""
    found = re.match(r"[a-z]+(\d+)", kind)
    return int(found[1]) if found else 8 if kind == "pred" else 0


# Calls and loops


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction with its computation, and how often a run of the program executes it."""

    instruction: Instruction
    computation: Computation
    times: int


def executions(program: Program) -> tuple[list[Execution], int]:
    """Every instruction with its count, and the number of loops whose length the text does not tell.

    The body of such a loop counts once; of a conditional, every branch counts.
    """
    found, unknown = [], Counter[str]()

    def visit(name: str, times: int) -> None:
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            found.append(Execution(instruction, computation, times))
            inner = times
            if instruction.opcode == "while":
                trips = trip_count(program, computation, instruction)
                unknown[instruction.name] += trips is None
                inner = times * (1 if trips is None else trips)
            for called in called_by(instruction):
                visit(called, inner)

    visit(program.entry, 1)
    return found, sum(count > 0 for count in unknown.values())


def called_by(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs, a loop's condition left out."""
    if instruction.opcode in ("async-update", "async-done"):  # the computation of their async-start
        return []
    branches = _BRANCHES.search(instruction.attributes)
    listed = re.findall(r"[\w.\-]+", branches[1]) if branches else []
    return _CALLED.findall(instruction.attributes) + listed


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop runs: as the compiler noted it, or from a counter that goes up by 1 to a constant."""
    noted = _TRIPS.search(loop.attributes)
    if noted:
        return int(noted[1])
    condition = program.computations[loop.attribute("condition").lstrip("%")]
    body = program.computations[loop.attribute("body").lstrip("%")]
    test, start = condition.instructions[condition.root], computation.instructions[loop.operands[0]]
    if test.opcode != "compare" or test.attribute("direction") != "LT" or start.opcode != "tuple":
        return None
    counter, limit = test.operands
    position, place = _position(condition, counter), _position(condition, limit)
    if position is None or not _steps_by_one(body, position):
        return None
    first = _constant(computation, start.operands[position])
    if place is None:
        last = _constant(condition, limit)
    else:  # the limit goes round the loop with the counter
        last = _constant(computation, start.operands[place]) if _is_kept(body, place) else None
    return None if first is None or last is None else max(last - first, 0)


def _origin(computation: Computation, name: str) -> Instruction:
    """The instruction that a value comes from, before any copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _position(computation: Computation, name: str) -> int | None:
    """Which element of a loop's tuple a value is."""
    instruction = _origin(computation, name)
    return int(instruction.attribute("index")) if instruction.opcode == "get-tuple-element" else None


def _constant(computation: Computation, name: str) -> int | None:
    """The whole number that a value is."""
    instruction = _origin(computation, name)
    return int(instruction.text) if instruction.opcode == "constant" and instruction.text.isdigit() else None


def _steps_by_one(body: Computation, position: int) -> bool:
    """Whether a loop's body gives back an element of its tuple plus 1."""
    root = body.instructions[body.root]
    step = _origin(body, root.operands[position]) if root.opcode == "tuple" else root
    if step.opcode != "add":
        return False
    counts = {_position(body, name) for name in step.operands}
    return position in counts and 1 in {_constant(body, name) for name in step.operands}


def _is_kept(body: Computation, position: int) -> bool:
    """Whether a loop's body gives back an element of its tuple as it is."""
    root = body.instructions[body.root]
    return root.opcode == "tuple" and _position(body, root.operands[position]) == position
