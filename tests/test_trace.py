import re

import jax
import jax.numpy as jnp
import pytest

from plan_jax.errors import InputError
from plan_jax.train.trace import Trace, parse_steps


def run(trace: Trace, steps: range) -> None:
    """A loop like that of training."""
    double, x = jax.jit(lambda x: x * 2), jnp.ones(8)
    with trace:
        for step in steps:
            trace.before(step)
            x = double(x)
            trace.after(step, x)


def recorded(workdir) -> list[int]:
    """The steps that the one file of a profile holds."""
    (path,) = workdir.rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    events = (event for plane in profile.planes for line in plane.lines for event in line.events)
    return sorted(int(dict(event.stats)["step_num"]) for event in events if event.name == "train")


@pytest.mark.parametrize(
    ("chosen", "steps", "found"),
    [
        ("3:2", range(1, 8), [3, 4]),
        ("1:1", range(1, 3), [1]),
        ("2:9", range(1, 5), [2, 3, 4]),  # the run ends before
        ("2:3", range(4, 7), [4]),  # it went on after a stop
    ],
)
def test_the_chosen_steps_are_written(chosen, steps, found, tmp_path):
    run(Trace(tmp_path, parse_steps(chosen)), steps)
    assert recorded(tmp_path / "profile") == found


@pytest.mark.parametrize("chosen", [None, range(20, 25), range(1, 3)])
def test_nothing_is_written_where_no_chosen_step_is_run(chosen, tmp_path):
    run(Trace(tmp_path, chosen), range(5, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_an_error_cuts_short_is_written_and_the_next_may_begin(tmp_path):
    def fails(trace: Trace) -> None:
        with trace:
            trace.before(1)
            raise ZeroDivisionError

    for part in ("one", "two"):
        with pytest.raises(ZeroDivisionError):
            fails(Trace(tmp_path / part, range(1, 9)))
        assert recorded(tmp_path / part / "profile") == [1]


def test_processes_that_share_a_machine_write_into_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    run(Trace(tmp_path, range(1, 2)), range(1, 2))
    assert recorded(tmp_path / "profile" / "process_2") == [1]


def test_steps_are_read_as_first_and_count():
    assert parse_steps("10:5") == range(10, 15)
    assert parse_steps("1:1") == range(1, 2)


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":5", "0:5", "5:0", "-1:5", "1:2:3", "a:b", "1.5:2", " 1:2", "1:2\n", "²:3"]
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(
        InputError, match=re.escape(f"--profile must be FIRST:COUNT, both whole numbers from 1 on, got {text!r}")
    ):
        parse_steps(text)
