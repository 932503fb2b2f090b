import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.checkpoint import Checkpoints, latest_step, load_variables, saved_steps
from plan_jax.errors import InputError
from plan_jax.inference import Plan


@functools.partial(jax.jit, donate_argnums=0)
def change(state):
    """A step that reuses the memory of what it is given, as the training step does."""
    return jax.tree.map(lambda leaf: leaf + 1, state)


def make_state(value: float, size: int = 3) -> dict:
    return {"params": {"kernel": jnp.full((size, size), value), "bias": jnp.full((size,), -value)}}


def parts(state: dict, position: int = 0) -> dict:
    return {"variables": state, "optimizer": {"step": jnp.zeros((), jnp.int32)}, "data": {"position": position}}


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path, keep=2)
    yield made
    made.close()


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may damage."""
    return shutil.copytree(trained.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))


def test_what_is_saved_is_what_was_there_when_save_was_called(checkpoints, tmp_path):
    """Saving goes on in the background while further steps reuse the memory of what is being saved."""
    state = make_state(0.5, size=2048)  # 16 MB: takes longer to write than a step takes
    expected = []
    for step in range(1, 4):
        state = change(state)
        expected.append(jax.tree.map(lambda leaf: np.array(leaf, copy=True), state))
        checkpoints.save(step, parts(state, position=step))
        for _ in range(10):
            state = change(state)
    checkpoints.wait()
    for step in (2, 3):
        loaded = load_variables(tmp_path, step, abstract(state))
        assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(expected[step - 1])))


def test_only_the_newest_checkpoints_are_kept(checkpoints, tmp_path):
    for step in (10, 20, 30, 45):
        checkpoints.save(step, parts(make_state(step)))
    checkpoints.wait()
    assert saved_steps(tmp_path) == [30, 45]
    assert checkpoints.latest == latest_step(tmp_path) == 45


def test_steps_are_compared_as_numbers(checkpoints, tmp_path):
    for step in (9, 10):
        checkpoints.save(step, parts(make_state(step)))
    checkpoints.wait()
    assert latest_step(tmp_path) == 10
    assert float(load_variables(tmp_path, 10, abstract(make_state(0)))["params"]["bias"][0]) == -10


def test_every_part_is_read_back_by_another_process_object(checkpoints, tmp_path):
    saved = parts(make_state(7), position=96)
    checkpoints.save(5, saved)
    checkpoints.close()
    other = Checkpoints(tmp_path, keep=2)
    assert other.latest == 5
    wanted = {"variables": abstract(saved["variables"]), "optimizer": abstract(saved["optimizer"]), "data": None}
    loaded = other.restore(5, wanted)
    other.close()
    assert int(loaded["data"]["position"]) == 96
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded["variables"], saved["variables"]))


def test_a_new_run_has_no_checkpoint(checkpoints, tmp_path):
    assert checkpoints.latest is None
    assert saved_steps(tmp_path) == []
    with pytest.raises(InputError, match="must hold a checkpoint"):
        latest_step(tmp_path)


def test_a_folder_that_is_no_run_has_no_checkpoint(tmp_path):
    assert saved_steps(tmp_path / "nowhere") == []


def test_a_half_written_checkpoint_is_ignored_and_written_anew(run):
    """What a SIGKILL during a save leaves: the folder under its temporary name."""
    newest = latest_step(run)
    folder = run / "checkpoints"
    half = shutil.copytree(folder / str(newest), folder / f"{newest + 10}.orbax-checkpoint-tmp")
    for path in list(half.rglob("*"))[::2]:
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert latest_step(run) == newest
    assert Plan.load(run).step == newest
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.latest == newest
    checkpoints.save(newest + 10, parts(make_state(3)))
    checkpoints.close()
    assert not half.exists()
    found = load_variables(run, newest + 10, abstract(make_state(0)))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, make_state(3)))


def test_a_damaged_checkpoint_is_named_in_one_line(run):
    folder = run / "checkpoints" / str(latest_step(run)) / "variables"
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    with pytest.raises(InputError) as caught:
        Plan.load(run)
    message = str(caught.value)
    assert str(folder.parent) in message
    assert len(message.splitlines()) == 1


def test_the_checkpoint_before_a_damaged_one_is_used_once_that_is_removed(run):
    before, newest = saved_steps(run)
    shutil.rmtree(run / "checkpoints" / str(newest))
    assert Plan.load(run).step == before


def test_inference_reads_no_optimizer(run):
    shutil.rmtree(run / "checkpoints" / str(latest_step(run)) / "optimizer")
    assert Plan.load(run).step == latest_step(run)
