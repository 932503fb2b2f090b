import errno
import functools
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from plan_jax.__main__ import main
from plan_jax.checkpoint import Checkpoints, best_step, chosen_step, digest, latest_step, load_variables, saved_steps
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


def same(found, expected) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, found, expected))


ABSTRACT = {**abstract(dict(list(parts(make_state(0)).items())[:2])), "data": None}


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
        checkpoints.save(step, parts(state, position=step), last=True)
        for _ in range(10):
            state = change(state)
    checkpoints.wait()
    for step in (2, 3):
        loaded = load_variables(tmp_path, step, abstract(state))
        assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(expected[step - 1])))


def test_only_the_newest_checkpoints_are_kept(checkpoints, tmp_path):
    for step in (10, 20, 30, 45):
        checkpoints.save(step, parts(make_state(step)), last=True)
    checkpoints.wait()
    assert saved_steps(tmp_path) == [30, 45]
    assert checkpoints.latest == latest_step(tmp_path) == 45


def test_steps_are_compared_as_numbers(checkpoints, tmp_path):
    for step in (9, 10):
        checkpoints.save(step, parts(make_state(step)), last=True)
    checkpoints.wait()
    assert latest_step(tmp_path) == 10
    assert float(load_variables(tmp_path, 10, abstract(make_state(0)))["params"]["bias"][0]) == -10


def test_every_part_is_read_back_by_another_process_object(checkpoints, tmp_path):
    saved = parts(make_state(7), position=96)
    checkpoints.save(5, saved)
    checkpoints.close()
    other = Checkpoints(tmp_path, keep=2)
    assert other.latest == 5
    step, loaded = other.restore_newest(ABSTRACT)
    other.close()
    assert (step, int(loaded["data"]["position"])) == (5, 96)
    assert same(loaded["variables"], saved["variables"])


def test_a_new_run_has_no_checkpoint(checkpoints, tmp_path):
    assert checkpoints.latest is None
    assert checkpoints.restore_newest(ABSTRACT) is None
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


def test_inference_reads_no_optimizer(run):
    shutil.rmtree(run / "checkpoints" / str(latest_step(run)) / "optimizer")
    assert Plan.load(run).step == latest_step(run)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A run with the checkpoints 10 and 20, for tests to copy."""
    workdir = tmp_path_factory.mktemp("two")
    made = Checkpoints(workdir, keep=2)
    for step in (10, 20):
        made.save(step, parts(make_state(step), position=step), last=True)
    made.close()
    return workdir


@pytest.fixture
def pair(two, tmp_path) -> Path:
    return shutil.copytree(two, tmp_path / "pair")


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
}


def arrays_of(checkpoint: Path) -> Path:
    """The file in which most of the parameters lie."""
    return max((checkpoint / "variables").rglob("d/*"), key=os.path.getsize)


def reopened(workdir: Path, wanted: dict | None = None):
    made = Checkpoints(workdir, keep=2)
    try:
        return made.restore_newest(wanted or ABSTRACT)
    finally:
        made.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_in_every_file_of_a_checkpoint(two, tmp_path, damage):
    files = [path.relative_to(two) for path in (two / "checkpoints" / "20").rglob("*") if path.is_file()]
    assert len(files) > 15
    for file in files:
        workdir = shutil.copytree(two, tmp_path / "copy")
        whole = digest.damage(workdir / "checkpoints" / "20")
        DAMAGES[damage](workdir / file)
        found = digest.damage(workdir / "checkpoints" / "20")
        missing_digest = file.name == digest.FILE and damage == "missing"  # a kill between the save and its digest
        assert (whole, found is None) == (None, missing_digest), file
        shutil.rmtree(workdir)


def test_a_bad_sector_is_damage_and_a_folder_out_of_reach_is_not(two, monkeypatch):
    def unreadable(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(digest, "file_hash", unreadable)
    code = errno.EIO
    assert "cannot be read" in (digest.damage(two / "checkpoints" / "20") or "")
    code = errno.ESTALE
    with pytest.raises(OSError, match=os.strerror(code)):
        digest.damage(two / "checkpoints" / "20")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(pair, capfd, damage):
    DAMAGES[damage](arrays_of(pair / "checkpoints" / "20"))
    step, loaded = reopened(pair)
    assert (step, int(loaded["data"]["position"])) == (10, 10)
    assert same(loaded["variables"], make_state(10))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert str(pair / "checkpoints" / "20") in line
    assert "variables/" in line
    assert "step 10 is used" in line


def test_orbax_alone_does_not_see_a_flipped_bit(tmp_path):
    """Why there is a digest."""
    state = {"params": {"kernel": jax.random.normal(jax.random.key(0), (100, 100)), "bias": jnp.zeros(3)}}
    made = Checkpoints(tmp_path, keep=1)
    made.save(1, {"variables": state})
    made.close()
    file = arrays_of(tmp_path / "checkpoints" / "1")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"got a damaged one, variables/.* has other bytes than were written"):
        load_variables(tmp_path, 1, abstract(state))
    (tmp_path / "checkpoints" / "1" / digest.FILE).unlink()
    assert not same(load_variables(tmp_path, 1, abstract(state)), state)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's, of reads it gives up
@pytest.mark.parametrize("lost", [digest.FILE, "variables/_METADATA", "variables/manifest.ocdbt", "*"])
def test_without_a_digest_what_orbax_can_read_is_used(pair, lost):
    newest = pair / "checkpoints" / "20"
    (newest / digest.FILE).unlink()
    if lost == "*":
        shutil.rmtree(newest)
        newest.mkdir()
    elif lost != digest.FILE:
        (newest / lost).unlink()
    step, loaded = reopened(pair)
    assert step == (20 if lost == digest.FILE else 10)
    assert same(loaded["variables"], make_state(step))
    gc.collect()


def test_readers_pass_a_damaged_checkpoint_by_after_resuming_and_its_step_is_saved_again(pair, capfd):
    for time in range(2):
        arrays_of(pair / "checkpoints" / "20").unlink()
        made = Checkpoints(pair, keep=2)
        assert made.restore_newest(ABSTRACT)[0] == 10
        assert made.latest == latest_step(pair) == 10
        made.save(20, parts(make_state(21 + time)))
        made.close()
        assert latest_step(pair) == 20
        assert same(load_variables(pair, 20, ABSTRACT["variables"]), make_state(21 + time))
    names = sorted(path.name for path in (pair / "checkpoints").iterdir())
    assert names == ["10", "20", "20.damaged", "20.damaged-2"]
    assert "20.damaged-2" in capfd.readouterr().err


def test_where_none_is_whole_nothing_is_begun_anew_or_renamed(pair):
    for step in ("10", "20"):
        arrays_of(pair / "checkpoints" / step).unlink()
    with pytest.raises(InputError, match="must hold a whole checkpoint, got 2 damaged: in 20 variables/"):
        reopened(pair)
    assert saved_steps(pair) == [10, 20]


@pytest.mark.parametrize("with_digest", [True, False])
def test_a_whole_checkpoint_of_other_shapes_is_refused_and_not_taken_for_damaged(pair, with_digest):
    if not with_digest:
        (pair / "checkpoints" / "20" / digest.FILE).unlink()
    with pytest.raises(InputError, match=r"20 must be .* got variables.params.bias of shape \(3,\) for \(4,\)"):
        reopened(pair, {**ABSTRACT, "variables": abstract(make_state(0, size=4))})
    with pytest.raises(InputError, match=r"got variables.params.bias of shape \(3,\) for None"):
        reopened(pair, {**ABSTRACT, "variables": {"params": {"kernel": ABSTRACT["variables"]["params"]["kernel"]}}})
    assert saved_steps(pair) == [10, 20]


def test_a_folder_in_the_way_of_a_checkpoint_is_renamed(pair, capfd):
    made = Checkpoints(pair, keep=2)
    (pair / "checkpoints" / "30" / "something").mkdir(parents=True)
    for step in (20, 30):  # one that orbax knows of, and one that came later
        made.save(step, parts(make_state(-step)), last=True)
    made.close()
    for step in (20, 30):
        assert same(load_variables(pair, step, ABSTRACT["variables"]), make_state(-step))
        assert f"{step} is in the way of another checkpoint" in capfd.readouterr().err or step == 30
    assert (pair / "checkpoints" / "30.damaged" / "something").is_dir()


def test_the_best_checkpoint_is_kept_beside_the_newest_also_by_a_resumed_run(tmp_path):
    scores = {10: 3.0, 20: 1.0, 30: None, 40: float("nan"), 50: 2.0}
    made = Checkpoints(tmp_path, keep=1)
    for step, score in scores.items():
        made.save(step, parts(make_state(step)), score=score, last=True)
    made.close()
    assert (saved_steps(tmp_path), best_step(tmp_path)) == ([20, 50], 20)
    made = Checkpoints(tmp_path, keep=1)
    made.save(60, parts(make_state(60)), score=1.0, last=True)  # no better
    made.wait()
    assert (saved_steps(tmp_path), best_step(tmp_path)) == ([20, 60], 20)
    made.save(70, parts(make_state(70)), score=0.5, last=True)
    made.close()
    assert (saved_steps(tmp_path), best_step(tmp_path), latest_step(tmp_path)) == ([70], 70, 70)


def test_a_checkpoint_is_chosen_by_newest_best_or_step(two):
    assert [chosen_step(two, name) for name in ("latest", "10", "20")] == [20, 10, 20]
    with pytest.raises(InputError, match=r"got 15; .* holds 10, 20"):
        chosen_step(two, "15")
    with pytest.raises(InputError, match="got newest"):
        chosen_step(two, "newest")
    with pytest.raises(InputError, match="must hold a checkpoint with a validation loss, got none"):
        chosen_step(two, "best")


def test_commands_take_a_checkpoint_of_the_run(trained, tmp_path, capsys):
    before, newest = saved_steps(trained.workdir)
    assert Plan.load(trained.workdir, str(before)).step == before
    export = ["export", "--workdir", str(trained.workdir), "--to", "safetensors", "--out", str(tmp_path / "out")]
    assert main([*export, "--checkpoint", str(before)]) == 0
    assert Plan.load(tmp_path / "out").step == before
    for command in (
        export,
        ["ground", "--workdir", str(trained.workdir), "--image", "a.png", "--phrase", "a", "--out", "b.png"],
        ["evaluate", "grounding", "--workdir", str(trained.workdir)],
    ):
        assert main([*command, "--checkpoint", "7"]) == 2
        assert f"--checkpoint must be latest, best or a step, got 7; {trained.workdir} holds" in capsys.readouterr().err
    assert Plan.load(trained.workdir).step == newest


def test_a_save_while_another_is_written_is_left_out_unless_it_is_the_last(checkpoints, tmp_path, monkeypatch, capfd):
    slow, write = threading.Event(), digest.write_digest

    def write_late(folder):
        slow.wait()
        write(folder)

    monkeypatch.setattr(digest, "write_digest", write_late)
    assert checkpoints.save(1, parts(make_state(1)))
    assert not checkpoints.save(2, parts(make_state(2)))
    assert "the checkpoint of step 2 is left out: that of step 1 is still being written" in capfd.readouterr().err
    slow.set()
    assert checkpoints.save(3, parts(make_state(3)), last=True)
    checkpoints.wait()
    assert saved_steps(tmp_path) == [1, 3]


FULL = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
import test_checkpoint as same
from plan_jax.__main__ import _quiet_libraries

_quiet_libraries()
run = Path(sys.argv[1])
made = same.Checkpoints(run, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
noise = {"params": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)}}
made.save(30, same.parts(noise))
try:
    made.wait()
except OSError as error:
    print(error)
made.close()
assert made.latest == 20
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
made = same.Checkpoints(run, keep=1)
assert made.restore_newest(same.ABSTRACT)[0] == 20
made.save(30, same.parts(same.make_state(30)))
made.close()
"""


def started(code: str, *arguments: str) -> subprocess.Popen:
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_alone(pair):
    process = started(FULL, str(pair))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (line,) = output.splitlines()
    assert "must have room for the checkpoint of step 30" in line
    assert "got 'File too large'" in line
    assert "the last good one is step 20; make room" in line
    assert saved_steps(pair) == [30]  # once there was room; keep=1
    assert same(load_variables(pair, 30, ABSTRACT["variables"]), make_state(30))
    assert not list((pair / "checkpoints").glob("*tmp*"))


def meshed(shape: tuple[int, ...], spec: PartitionSpec) -> NamedSharding:
    axes = ("data", "fsdp")[: len(shape)]
    devices = jax.devices()[: int(np.prod(shape))]
    return NamedSharding(jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(shape), devices=devices), spec)


def test_a_checkpoint_of_one_mesh_is_read_onto_another_and_back(tmp_path):
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    shardings = [
        meshed((8,), PartitionSpec("data")),
        meshed((4,), PartitionSpec()),
        meshed((1,), PartitionSpec()),
        meshed((2, 2), PartitionSpec(None, "fsdp")),
        meshed((8,), PartitionSpec(None, "data")),
    ]
    state = {"variables": {"kernel": jax.device_put(values, shardings[0])}}
    for step, sharding in enumerate(shardings[1:], start=1):
        made = Checkpoints(tmp_path, keep=1)
        made.save(step, state)
        made.wait()
        wanted = {"kernel": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)}
        found, state = made.restore_newest({"variables": wanted})
        made.close()
        kernel = state["variables"]["kernel"]
        assert (found, kernel.sharding) == (step, sharding)
        np.testing.assert_array_equal(kernel, values)


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from pathlib import Path
from jax.sharding import PartitionSpec
import numpy as np
import test_checkpoint as same

sharding = same.meshed((4,), PartitionSpec("data"))
values = np.arange(32, dtype=np.float32).reshape(8, 4)
array = jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])
wanted = {"variables": {"kernel": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)}}
run, saved = Path(sys.argv[3]), []
made = same.Checkpoints(run, keep=2)
for step in range(1, 6):
    saved.append(made.save(step, {"variables": {"kernel": array + step}}, score=float(step), last=step > 4))
made.close()
same_everywhere = jax.experimental.multihost_utils.process_allgather(np.array(saved))
assert (same_everywhere == same_everywhere[0]).all()
if jax.process_index() == 0:
    same.arrays_of(run / "checkpoints" / "5").unlink()
made = same.Checkpoints(run, keep=2)
step, parts = made.restore_newest(wanted)
assert 1 <= step < 5, step
for shard in parts["variables"]["kernel"].addressable_shards:
    np.testing.assert_array_equal(shard.data, values[shard.index] + step)
made.save(5, {"variables": {"kernel": array + 5}}, last=True)
made.close()
print("done by", jax.process_index())
"""


def test_two_processes_save_and_agree_and_one_reads_it(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [started(PROCESS, port, str(number), str(tmp_path)) for number in range(2)]
    for number, process in enumerate(processes):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert f"done by {number}" in output
    assert latest_step(tmp_path) == 5
    assert best_step(tmp_path) == 1
    assert (tmp_path / "checkpoints" / "5.damaged").is_dir()
    assert json.loads((tmp_path / "checkpoints" / "5" / digest.FILE).read_text())
    wanted = {"kernel": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=meshed((2, 2), PartitionSpec(None, "fsdp")))}
    found = load_variables(tmp_path, 5, wanted)["kernel"]
    np.testing.assert_array_equal(found, np.arange(32, dtype=np.float32).reshape(8, 4) + 5)
