"""The speed of a run, its share of the device's peak, and memory, by a clock that is wound by hand."""

import functools
import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from plan_jax.counting.peak import PEAKS, peak_flops
from plan_jax.train import speed
from plan_jax.train.speed import SpeedMeter, flops_of, memory_in_use


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(meter: SpeedMeter, clock: Clock, *, count: int, waiting: float, working: float) -> None:
    for _ in range(count):
        with meter.input():
            clock.now += waiting
        clock.now += working


def read(meter: SpeedMeter, step: int) -> dict[str, float]:
    return {name: value for name, value in meter.read(step).items() if not name.endswith("_gib")}


# The meter


def test_the_time_of_a_step_is_split_into_waiting_for_input_and_the_rest():
    clock = Clock()
    meter = SpeedMeter(7, batch_size=32, clock=clock)
    steps(meter, clock, count=4, waiting=0.5, working=1.5)
    assert read(meter, 11) == {
        "images_per_second": 16.0,
        "step_seconds": 2.0,
        "input_seconds": 0.5,
        "compute_seconds": 1.5,
    }


def test_a_reading_speaks_of_the_steps_since_the_last():
    clock = Clock()
    meter = SpeedMeter(0, batch_size=8, clock=clock)
    steps(meter, clock, count=2, waiting=3.0, working=5.0)
    read(meter, 2)
    steps(meter, clock, count=4, waiting=0.25, working=0.75)
    found = read(meter, 6)
    assert (found["images_per_second"], found["input_seconds"], found["compute_seconds"]) == (8.0, 0.25, 0.75)


def test_what_is_no_part_of_a_step_takes_no_time():
    clock = Clock()
    meter = SpeedMeter(0, batch_size=8, clock=clock)
    steps(meter, clock, count=1, waiting=0.5, working=0.5)
    with meter.apart():
        clock.now += 60.0
    steps(meter, clock, count=1, waiting=0.5, working=0.5)
    assert read(meter, 2)["step_seconds"] == 1.0
    steps(meter, clock, count=1, waiting=1.0, working=3.0)
    assert read(meter, 3)["step_seconds"] == 4.0


def test_the_share_of_the_peak_is_operations_over_time_and_peak():
    clock = Clock()
    meter = SpeedMeter(0, batch_size=8, peak=200e12, clock=clock)
    meter.flops = 60e12
    steps(meter, clock, count=10, waiting=0.1, working=0.4)
    assert read(meter, 10)["mfu"] == pytest.approx(0.6)  # 60 / (0.5 * 200)


@pytest.mark.parametrize(("flops", "peak"), [(None, 1e12), (1e12, None), (0.0, 1e12)])
def test_the_share_of_the_peak_is_left_out_where_it_is_not_known(flops, peak):
    clock = Clock()
    meter = SpeedMeter(0, batch_size=8, peak=peak, clock=clock)
    meter.flops = flops
    steps(meter, clock, count=1, waiting=0.1, working=0.4)
    assert "mfu" not in meter.read(1)


def test_without_a_step_there_is_no_speed_and_no_time_is_lost():
    clock = Clock()
    meter = SpeedMeter(5, batch_size=8, clock=clock)
    clock.now += 2.0
    assert read(meter, 5) == {}
    steps(meter, clock, count=1, waiting=1.0, working=1.0)
    assert read(meter, 6)["step_seconds"] == 4.0


def test_the_end_of_the_data_reaches_the_loop():
    meter = SpeedMeter(0, batch_size=8)
    with pytest.raises(StopIteration), meter.input():
        next(iter(()))


# Operations


@functools.partial(jax.jit, static_argnames="times", donate_argnames="state")
def products(state, x, *, times):
    return {"w": times * (state["w"] @ x)}, x.sum()


def test_operations_are_those_of_one_device_and_asking_for_them_compiles_nothing(compilations):
    state, x = {"w": jnp.ones((16, 32))}, jnp.ones((32, 32))
    state, _ = products(state, x, times=3)
    before = len(compilations)
    assert flops_of(products.lower(state, x, times=3).compile()) == 2 * 16 * 32 * 32
    assert len(compilations) == before


def silent(text):
    def as_text():
        if isinstance(text, Exception):
            raise text
        return text

    return SimpleNamespace(as_text=as_text)


@pytest.mark.parametrize("text", [None, "", NotImplementedError(), jax.errors.JaxRuntimeError("UNIMPLEMENTED")])
def test_where_the_backend_gives_no_text_no_operations_are_known(text):
    assert flops_of(silent(text)) is None


# Peaks, from what the chips are made of: units x products of a unit and cycle x clock


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("TPU v4", "bfloat16", 2 * (2 * 4) * 128**2 * 1.05e9),  # two cores of four 128 x 128 matrix units
        ("TPU v5 lite", "bfloat16", 2 * 4 * 128**2 * 1.5e9),
        ("TPU v5", "bfloat16", 2 * (2 * 4) * 128**2 * 1.75e9),
        ("TPU v6 lite", "bfloat16", 234.9e15 / 256),  # a pod
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 2 * 108 * 1024 * 1.41e9),  # multiprocessors
        ("NVIDIA A100-SXM4-80GB", "float32", 2 * 108 * 512 * 1.41e9),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 2 * 132 * 2048 * 1.83e9),
        ("NVIDIA H200", "float32", 2 * 132 * 1024 * 1.83e9),
    ],
)
def test_a_peak_is_that_of_the_chips_units_and_clock(kind, dtype, expected):
    assert peak_flops(kind, dtype) == pytest.approx(expected, rel=0.003)


def test_a_tpu_multiplies_float32_in_bfloat16_and_a_gpu_at_half_the_speed():
    ratio = {kind: peak_flops(kind, "float32") / peak_flops(kind, "bfloat16") for kind in PEAKS}
    assert ratio == {kind: 1.0 if kind.startswith("TPU") else 0.5 for kind in PEAKS}


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v3", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 PCIe"])
def test_the_peak_of_another_device_is_not_known(kind):
    assert peak_flops(kind, "float32") is None


def test_the_peak_of_this_cpu_is_not_known():
    assert peak_flops(jax.devices()[0].device_kind, "float32") is None


# Memory


def device(stats):
    def memory_stats():
        if isinstance(stats, Exception):
            raise stats
        return stats

    return SimpleNamespace(memory_stats=memory_stats)


def test_the_memory_of_the_devices_is_that_of_the_fullest():
    gib = {"peak_bytes_in_use": 3 * 2**30, "bytes_in_use": 2**30}
    devices = [device({"peak_bytes_in_use": 2**30}), device(gib), device({"bytes_in_use": 9 * 2**30})]
    assert memory_in_use(devices)["device_memory_gib"] == 3.0


@pytest.mark.parametrize("stats", [None, {}, jax.errors.JaxRuntimeError("UNIMPLEMENTED"), NotImplementedError()])
def test_the_memory_of_devices_that_do_not_tell_is_left_out(stats):
    assert set(memory_in_use([device(stats)])) == {"host_memory_gib"}


def test_a_reading_on_a_cpu_has_the_hosts_memory_alone():
    assert {name for name in SpeedMeter(0, 8).read(1) if name.endswith("_gib")} == {"host_memory_gib"}


@pytest.mark.skipif(not speed.STATM.is_file(), reason="needs /proc")
def test_the_hosts_memory_is_what_the_process_holds_now():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    assert memory_in_use([])["host_memory_gib"] == pytest.approx(int(line.split()[1]) / 2**20, rel=0.1)


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024), ("freebsd14", 1024)])
def test_without_proc_the_hosts_memory_is_the_most_it_has_held(monkeypatch, platform, unit):
    monkeypatch.setattr(speed, "STATM", Path("not here"))
    monkeypatch.setattr(speed.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2**30 // unit))
    assert memory_in_use([]) == {"host_memory_gib": 1.0}
