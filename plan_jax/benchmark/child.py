"""Measurements in processes of their own, asked in JSON lines."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plan_jax.ablation.child import why
from plan_jax.benchmark import loaders
from plan_jax.benchmark.loaders import Work
from plan_jax.benchmark.measure import ONE_CORE


def core() -> int | None:
    """The core that processes are pinned to; None where nothing can be pinned."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def ask(module: str, request: dict, extra: dict[str, str]) -> Any:
    """What `python -m module` writes as its last line when asked, or {"failed": reason, "wrong_input": whether}.

    `extra`: variables of its environment beside those of this process.
    """
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request) + "\n",
        env=_environment(extra),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return dict(zip(("failed", "wrong_input"), why(done.returncode, done.stderr), strict=True))
    return json.loads(done.stdout.splitlines()[-1])


class LoaderChild:
    """The process of a loader; it is asked one thing after the other, and ends with the `with` block."""

    def __init__(self, name: str, work: Work):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", loaders.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(ONE_CORE | {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}),
            text=True,
        )
        self._send({"loader": name, "work": dataclasses.asdict(work), "core": core()})

    def ask(self, stage: str, size: int, workers: int, images: int) -> dict[str, Any]:
        """The answer, or {"failed": reason} where the process has ended."""
        assert self._process.stdout is not None
        self._send({"stage": stage, "size": size, "workers": workers, "images": images})
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._log.seek(0)
        return {"failed": why(code, self._log.read())[0]}

    def _send(self, message: dict) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `ask` says why
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> "LoaderChild":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # closes its stdin, whereupon it ends
        self._log.close()


def _environment(extra: dict[str, str]) -> dict[str, str]:
    here = str(Path(__file__).parents[2])  # the same package, from whatever current directory
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))} | extra
