"""The watchdog by hand on a clock of the test's own, and once as the thread that it is."""

import threading
import time

import pytest

from plan_jax.train.watchdog import Watchdog


class Hand:
    """A watchdog without its thread: the clock stands still until it is moved."""

    def __init__(self, seconds: float = 10):
        self.now, self.told = 100.0, []
        self.dog = Watchdog(seconds, process=(3, 8), clock=lambda: self.now, tell=self.told.append)

    def after(self, seconds: float) -> float:
        self.now += seconds
        return self.dog.look()

    def lines(self) -> list[str]:
        return [text.splitlines()[0] for text in self.told]


def test_a_loop_that_moves_is_not_spoken_of():
    hand = Hand()
    for step in range(50):
        hand.dog.at(f"step {step}")
        assert hand.after(9) == 1  # the rest of what this place may take
    assert hand.told == []


def test_a_stall_is_told_after_the_limit_and_whenever_the_time_has_doubled():
    hand = Hand()
    hand.dog.at("step 120")
    waits = [hand.after(seconds) for seconds in (9, 1, 5, 5, 19, 1, 100)]
    assert waits == [1, 10, 5, 20, 1, 40, 20]  # to 10, 20, 20, 40, 40, 80 and 160 seconds after it came there
    assert hand.lines() == [
        f"process 3 of 8 has been waiting {seconds} s at: step 120" for seconds in (10, 20, 40, 140)
    ]


def test_going_on_is_told_once_and_at_once_and_the_limit_is_the_first_one_again():
    hand = Hand()
    hand.dog.at("checkpoint 500")
    hand.after(45)
    hand.now += 5
    hand.dog.at("input")
    hand.dog.at("step 501")
    assert hand.lines()[1:] == ["process 3 of 8 goes on after 50 s at: checkpoint 500"]
    assert hand.after(10) == 10
    assert hand.lines()[2:] == ["process 3 of 8 has been waiting 10 s at: step 501"]


def waits_with(secret: str, free: threading.Event) -> None:
    assert len(secret) > 1
    free.wait()


def test_the_stacks_of_all_threads_are_told_without_any_value():
    free = threading.Event()
    other = threading.Thread(target=waits_with, args=("words of a report", free), name="the one that hangs")
    other.start()
    hand = Hand()
    hand.after(11)
    free.set()
    other.join()
    (told,) = hand.told
    assert "Thread the one that hangs:" in told
    assert "in waits_with\n    free.wait()" in told
    assert "words of a report" not in told


def watchdogs() -> int:
    return [thread.name for thread in threading.enumerate()].count("watchdog")


def test_the_thread_tells_of_a_loop_that_hangs_and_ends_with_the_context(capfd):
    said = ""
    with Watchdog(0.05, process=(0, 1)) as dog:
        dog.at("validation")
        end = time.monotonic() + 30
        while "time.sleep" not in said:
            assert time.monotonic() < end
            time.sleep(0.01)
            said += capfd.readouterr().err
        dog.at("input")
        assert watchdogs() == 1
    assert watchdogs() == 0
    assert said.startswith("process 0 of 1 has been waiting 0 s at: validation\nThread MainThread:")
    assert "process 0 of 1 goes on after" in capfd.readouterr().err


def test_the_thread_sleeps_while_there_is_nothing_to_tell():
    asked = []

    def clock() -> float:
        asked.append(threading.current_thread().name)
        return time.monotonic()

    with Watchdog(60, process=(0, 1), clock=clock):
        time.sleep(0.3)
    assert asked.count("watchdog") == 1


@pytest.mark.parametrize("seconds", [0, float("inf")])
def test_without_a_limit_nothing_is_told_and_the_context_ends(seconds):
    told = []
    with Watchdog(seconds, process=(0, 1), tell=told.append) as dog:
        assert watchdogs() == (seconds > 0)
        dog.at("step 1")
        time.sleep(0.05)
    assert told == []
    assert watchdogs() == 0
