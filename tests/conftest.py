"""What holds for every test. Runs before any test module is imported, so before JAX chooses its devices."""

import atexit
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# What one test or process has compiled, the next need not; none outlives the run, lest a test depend on it.
if not os.environ.get("PYTEST_XDIST_WORKER"):  # which inherits the folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="plan_jax_compiled_")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**32)  # with a limit there is a lock: half a file is never read
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import numpy as np
import pytest
from absl import flags
from hypothesis import settings

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags
if not os.environ.get("PYTEST_XDIST_WORKER"):
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Compiling is most of these tests' time, so it is done quickly, though programs then run slower; test_demo compiles as
# users do, and so do all tests with XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true".
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# Several devices, so that sharding is tested on any machine; processes started by tests inherit all of this. Of two
# flags of one name the last counts, so those of the caller come last.
FLAGS = f"{QUICK} --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

IN_CI = bool(os.environ.get("CI"))
settings.register_profile("plan_jax", deadline=None, derandomize=IN_CI, print_blob=not IN_CI)
settings.load_profile("plan_jax")

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "phantom.py"
# The phantom's configuration, small enough to train in seconds.
TINY = (
    "--config.data.batch_size=8",
    "--config.mesh.devices=1",
    "--config.data.image_size=32",
    "--config.data.max_tokens=32",
    "--config.data.max_words=24",
    "--config.image_encoder.width=8",
    "--config.image_encoder.stages=(1,)",
    "--config.text_encoder.dropout=0.1",
    "--config.alignment.rounds=1",
    "--config.alignment.early_temperatures=(0.3,)",  # a run in pieces crosses from one part to the next
    "--config.optim.learning_rate=2e-3",
    "--config.optim.warmup_steps=60",
    "--config.train.steps=300",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=25",
    "--config.train.validate_every=0",
    "--config.evaluation.bootstrap=20",
    "--config.evaluation.gallery=3",
)

# The files that take longest, the longest first.
LONGEST = (
    "test_train.py",
    "test_demo.py",
    "test_hosts.py",
    "test_alignment.py",
    "test_ablation.py",
    "test_gradients.py",
    "test_pallas.py",
    "test_tile.py",
    "test_sharded.py",
    "test_golden.py",
    "test_validation.py",
    "test_rules.py",
    "test_export.py",
    "test_detection_training.py",
    "test_checkpoint.py",
    "test_bert.py",
    "test_cli.py",
    "test_resnet.py",
)


def pytest_configure(config) -> None:
    config.option.loadscopereorder = False  # else xdist begins with the files of most tests


def pytest_collection_modifyitems(items) -> None:
    """Long files first, so that no worker begins one when the others have nothing left to do."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


_connect = socket.socket.connect


def _connect_to_this_machine(self: socket.socket, address) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise RuntimeError(f"a test must not use the network, got a connection to {address[0]}")
    _connect(self, address)


socket.socket.connect = _connect_to_this_machine


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_go_with_their_file():
    """A process may map some 65,000 pieces of memory, and every compiled program takes some: XLA crashes beyond."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real files that some tests read and that is no part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real files in ../shared/data, which are not here")
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` wrote for the worker that asked first; the others wait for it and must only read it."""
    base = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent  # that of all workers
    with (base / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            shutil.rmtree(base / name, ignore_errors=True)  # of a worker that failed
            make(base / name)
            (base / f"{name}.made").touch()
    return base / name


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory) -> Path:
    """150 phantoms, built."""
    from plan_jax.data.build import build

    return made_once(tmp_path_factory, "phantoms", lambda out: build("phantom", out=out, size=150))


@pytest.fixture(scope="session")
def other_data(tmp_path_factory) -> Path:
    """20 other phantoms, with the same keys."""
    from plan_jax.data.build import build

    out = tmp_path_factory.mktemp("others") / "data"
    build("phantom", out=out, size=20, seed=1)
    return out


@pytest.fixture
def compilations():
    """One entry for each program that XLA compiles from here on."""
    import jax

    seen = []

    def listen(event, duration, **about):
        del about
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


class Trained(NamedTuple):
    """A finished run of the phantom's configuration made tiny: 300 steps in one go."""

    workdir: Path
    arguments: tuple[str, ...]  # of the command line, without --workdir
    config: Any  # the Config that they give
    leaves: Path  # the leaves of the state that training ended with, which went through no checkpoint

    @property
    def state(self) -> Any:
        """The TrainState at the end."""
        import jax

        from plan_jax.config import load_config
        from plan_jax.train.state import create_state

        shapes = jax.eval_shape(lambda: create_state(load_config(self.workdir / "config.json")))
        with np.load(self.leaves) as file:
            leaves = [jax.numpy.asarray(file[name]) for name in file.files]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


@pytest.fixture(scope="session")
def trained(phantom_data, tmp_path_factory) -> Trained:
    """A run that many tests read; a test that writes into a run copies it first."""
    import jax

    from plan_jax.config_file import read_config
    from plan_jax.train.loop import fit

    overrides = (*TINY, f"--config.data.dir={phantom_data}")
    config = read_config(CONFIG, overrides)

    def train(out: Path) -> None:
        leaves = jax.tree.leaves(fit(config, out / "whole"))
        np.savez(out / "state.npz", *map(np.asarray, leaves))

    made = made_once(tmp_path_factory, "trained", train)
    workdir = shutil.copytree(made / "whole", tmp_path_factory.mktemp("runs") / "whole")
    return Trained(workdir, ("train", "--config", str(CONFIG), *overrides), config, made / "state.npz")


@pytest.fixture(scope="session")
def plan(trained):
    """The model of the trained run."""
    from plan_jax.inference import Plan

    return Plan.load(trained.workdir)
