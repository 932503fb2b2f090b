"""The house rules that a program can check: which part may import which, what an import costs, what is never used."""

import ast
import graphlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A part (a module or folder directly in plan_jax) may import its own layer and those above it in this list. A new
# part needs a place here.
LAYERS = (
    {"errors", "types", "config", "config_checks", "config_file"},
    {"geometry", "metrics", "bootstrap"},
    {"alignment"},
    {"losses", "augment"},
    {"encoders", "data"},
    {"model"},
    {"sharding", "checkpoint", "weights", "counting", "plots"},
    {"hosts"},
    {"batches", "forward"},
    {"inference", "train"},
    {"detection"},
    {"evaluation", "gallery", "figure_page", "tables", "export"},
    {"ablation", "benchmark", "compilation"},
    {"__init__", "__main__", "commands"},
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
# Closer than the layers: what a part must not import although it is not higher up.
NEVER = {
    "encoders": {"data"},
    "data": {"alignment", "bootstrap", "encoders", "losses", "metrics"},
    "inference": {"train"},
}

TOP_LEVEL = {"plan_jax", "configs", "launch", "tests", "requirements.txt", "README.md", "pyproject.toml", "LICENSE"}
NOT_OURS = {"runs", "build", "dist", "__pycache__"}  # written by runs and tools, ignored by git
DOTFILES = {".ci", ".github", ".gitignore", ".gitattributes"}  # other names with a dot are tools' caches
MACHINE_PATH = re.compile(rb"(?<![\w.$}~])/(?:work|root|home/\w+|Users/\w+)/")

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"}


def package_sources() -> dict[str, str]:
    """Path inside plan_jax -> source."""
    folder = ROOT / "plan_jax"
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))}


def project_files(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.name not in DOTFILES
        if hidden or path.name in NOT_OURS or path.suffix == ".egg-info" or (path / "pyvenv.cfg").exists():
            continue
        if path.is_dir():
            yield from project_files(path)
        else:
            yield path


def part_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imported_names(name: str, source: str) -> Iterator[str]:
    """Every dotted name that the file imports, wherever in the file; `from a import b` gives a.b."""
    package = ".".join(["plan_jax", *name.split("/")[:-1]])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imported_parts(name: str, source: str) -> Iterator[str]:
    for imported in imported_names(name, source):
        words = imported.split(".")
        if words[0] == "plan_jax" and imported != "plan_jax.__version__":
            part = words[1] if len(words) > 1 else "__init__"
            yield part if part in LAYER else "__init__"  # a class of the package, such as Plan


def import_faults(sources: Mapping[str, str]) -> list[str]:
    faults, graph = [], {}
    for name, source in sources.items():
        part = part_of(name)
        if part not in LAYER:
            faults.append(f"plan_jax/{name}: give {part} a place in LAYERS of tests/test_layout.py")
            continue
        for other in set(imported_parts(name, source)) - {part}:
            graph.setdefault(part, set()).add(other)
            if LAYER[other] > LAYER[part] or other in NEVER.get(part, ()):
                faults.append(f"plan_jax/{name}: {part} must not import {other}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        faults.append(f"imports go in a circle: {' -> '.join(error.args[1])}")
    return faults


def code_faults(name: str, source: str) -> Iterator[str]:
    may_print = part_of(name) in ("__main__", "commands")
    for imported in imported_names(name, source):
        if imported.split(".")[0] in UNSAFE_MODULES:
            yield f"plan_jax/{name}: imports {imported}"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called in ("eval", "exec") or (called == "print" and not may_print):
            yield f"plan_jax/{name}:{node.lineno}: calls {called}"
        if any(
            k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            for k in node.keywords
        ):
            yield f"plan_jax/{name}:{node.lineno}: allow_pickle must be False"


def loaded_by(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the statements."""
    code = f"import sys\n{statements}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_imports_point_downward():
    assert import_faults(package_sources()) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("losses.py", "import plan_jax.train.step", "losses must not import train"),
        ("data/text.py", "from plan_jax.encoders import bert", "data must not import encoders"),
        ("data/text.py", "def f():\n    from plan_jax import losses", "data must not import losses"),
        ("encoders/bert.py", "from ..data.text import Tokenizer", "encoders must not import data"),
        ("inference.py", "from .train import state", "inference must not import train"),
        ("model.py", "from plan_jax import Plan", "model must not import __init__"),
        ("helpers.py", "", "give helpers a place"),
    ],
)
def test_an_import_that_points_upward_is_found(name, source, fault):
    (found,) = import_faults({name: source})
    assert fault in found


def test_imports_in_a_circle_within_a_layer_are_found():
    (found,) = import_faults({"tables.py": "import plan_jax.gallery", "gallery.py": "from plan_jax import tables"})
    assert found.startswith("imports go in a circle")


def test_imports_that_point_downward_are_accepted():
    sources = {
        "data/text.py": "from plan_jax.errors import InputError\nfrom . import words\nimport numpy",
        "checkpoint.py": "from plan_jax import __version__\nfrom plan_jax.config import Config",
        "__init__.py": "def __getattr__(name):\n    from plan_jax.inference import Plan",
    }
    assert import_faults(sources) == []


def test_the_package_neither_unpickles_nor_evaluates_nor_prints():
    assert [fault for name, source in package_sources().items() for fault in code_faults(name, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "numpy.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=x)",
        "eval('1')",
        "exec('1')",
        "print(1)",
    ],
)
def test_unsafe_code_is_found(source):
    assert len(list(code_faults("data/text.py", source))) == 1


def test_harmless_code_is_accepted():
    assert list(code_faults("model.py", "model.eval()\nnumpy.load(f, allow_pickle=False)")) == []
    assert list(code_faults("commands/build.py", "print(1)")) == []


@pytest.mark.parametrize("module", ["plan_jax", "plan_jax.__main__"])
def test_importing_the_package_loads_no_other_framework_and_no_plotting(module):
    if not (ROOT / "plan_jax" / "__main__.py").exists() and module.endswith("__main__"):
        pytest.skip("there is no command line yet")
    assert not loaded_by(f"import {module}") & {"tensorflow", "torch", "matplotlib"}


def test_asking_for_help_loads_neither_jax_nor_the_data_libraries():
    if not (ROOT / "plan_jax" / "__main__.py").exists():
        pytest.skip("there is no command line yet")
    loaded = loaded_by(
        "import runpy\nsys.argv = ['plan_jax', '--help']\n"
        "try:\n    runpy.run_module('plan_jax', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert not stop.code"
    )
    assert not loaded & {"jax", "flax", "tensorflow_datasets", "grain", "orbax", "tensorflow", "torch", "matplotlib"}


def test_the_top_level_holds_only_the_agreed_names():
    names = {path.relative_to(ROOT).parts[0] for path in project_files()}
    assert names - DOTFILES <= TOP_LEVEL


def test_no_file_holds_a_path_of_one_machine():
    found = [str(path) for path in project_files() if MACHINE_PATH.search(path.read_bytes())]
    assert found == []


@pytest.mark.parametrize(("text", "found"), [("see /{}/main", True), ("x/{}/y", False), ("$HOME/{}/y", False)])
def test_a_path_of_one_machine_is_told_from_other_paths(text, found):
    assert bool(MACHINE_PATH.search(text.format("work").encode())) is found


def test_a_test_cannot_reach_the_network():
    with socket.socket() as connection, pytest.raises(RuntimeError, match="must not use the network"):
        connection.connect(("192.0.2.1", 80))  # an address reserved for documentation
