"""The main command end to end, small: `bash launch/demo.sh --quick` in the environment that runs the tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METRICS = ("cnr_abs", "cnr_signed", "miou_raw", "miou_minmax", "pointing", "auroc")
METHODS = ("untrained", "chance", "centre_prior", "phrase_blind_prior", "image_blind_prior")


def run_demo(out: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "demo.sh"), "--quick", "--out", str(out)],
        env=environment | {"PLAN_VENV": sys.prefix},
        cwd=out.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("a folder") / "demo"
    return out, run_demo(out)


def test_the_quick_demo_writes_everything_a_run_promises(demo):
    out, done = demo
    assert done.returncode == 0, done.stderr
    for name in (
        "config.json",
        "metrics.jsonl",
        "tokenizer.json",
        "gallery.html",
        "maps.png",
        "data/contact_sheet.png",
    ):
        assert (out / name).stat().st_size > 0, name
    assert any(path.name.isdigit() for path in (out / "checkpoints").iterdir())
    grounding = json.loads((out / "results" / "grounding.json").read_text())
    for part in (grounding, *(grounding[name] for name in METHODS)):
        for metric in METRICS:
            assert part[metric]["low"] <= part[metric]["value"] <= part[metric]["high"]
    assert (out / "results" / "retrieval.json").is_file()
    assert (out / "results" / "zero_shot.json").is_file()


def test_the_quick_demo_ends_with_the_table_of_all_methods(demo):
    _, done = demo
    for row in ("trained", "untrained", "chance", "centre prior", "phrase-blind prior", "image-blind prior"):
        assert f"\n{row}" in done.stdout
    assert "gallery.html" in done.stdout.splitlines()[-1]


def test_the_example_of_the_readme_runs(demo, tmp_path):
    out, _ = demo
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (example,) = [block for block in blocks if "Plan.load" in block]
    assert len(example.strip().splitlines()) <= 15
    code = example.replace('"runs/demo', f'"{out}')
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # a reader starts it in the project's folder
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(64, 64)" in done.stdout
    assert (tmp_path / "map.png").stat().st_size > 0


def test_the_demo_run_again_changes_nothing(demo):
    out, _ = demo
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
    before = {
        path: path.stat().st_mtime_ns for path in files if path.parent.name in ("results", "checkpoints", "0", "1")
    }
    again = run_demo(out)
    assert again.returncode == 0, again.stderr
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before
