"""Apache Beam writes the same bytes as the processes of one machine. Skipped where it is not installed."""

import importlib.util

import pytest

from plan_jax.__main__ import main
from plan_jax.data import source
from plan_jax.data.build import build
from plan_jax.data.fake import fake
from plan_jax.data.records import file_hash


def test_without_beam_the_next_step_is_named(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find(name))
    fake("rsna", out=tmp_path / "raw")
    call = ["build", "rsna", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert main([*call, "--runner", "beam"]) == 2
    assert "pip install 'plan_jax[beam]'" in capsys.readouterr().err
    assert main([*call, "--beam-options=--runner=FlinkRunner"]) == 2
    assert "--beam-options must come with --runner beam" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_writes_the_bytes_that_processes_write(tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'plan_jax[beam]'")
    monkeypatch.setattr(source, "SHARD_ROWS", 3)
    fake("mimic_cxr", out=tmp_path / "raw")
    build("mimic_cxr", raw=tmp_path / "raw", out=tmp_path / "here", jobs=1)
    build("mimic_cxr", raw=tmp_path / "raw", out=tmp_path / "beam", beam=["--runner=BundleBasedDirectRunner"])
    one, other = (
        {path.relative_to(out).as_posix(): file_hash(path) for path in sorted(out.rglob("*")) if path.is_file()}
        for out in (tmp_path / "here", tmp_path / "beam")
    )
    assert one == other
