"""What holds for every test. Runs before any test module is imported, so before JAX chooses its devices."""

import os
import socket
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Several devices, so that sharding is tested on any machine; processes started by tests inherit all of this.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
from absl import flags
from hypothesis import settings

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags

IN_CI = bool(os.environ.get("CI"))
settings.register_profile("plan_jax", deadline=None, derandomize=IN_CI, print_blob=not IN_CI)
settings.load_profile("plan_jax")

_connect = socket.socket.connect


def _connect_to_this_machine(self: socket.socket, address) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise RuntimeError(f"a test must not use the network, got a connection to {address[0]}")
    _connect(self, address)


socket.socket.connect = _connect_to_this_machine


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real files that some tests read and that is no part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real files in ../shared/data, which are not here")
    return folder
