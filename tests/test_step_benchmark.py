"""The benchmark of a training step: its parts are those of the step, what is measured, counted, judged and printed."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import CONFIG, TINY
from conftest import QUICK as QUICK_FLAGS

from plan_jax.__main__ import main
from plan_jax.benchmark import appetite as its
from plan_jax.benchmark import step as module
from plan_jax.benchmark import step_parts
from plan_jax.benchmark.appetite import random_batch, with_what_fits
from plan_jax.benchmark.measure import ONE_CORE
from plan_jax.benchmark.step import (
    FIELDS,
    QUICK,
    Effort,
    benchmark_step,
    scaling_table,
    step_lines,
    step_table,
    with_shares,
)
from plan_jax.benchmark.step_parts import PARTS, encoder_passes, measure_parts
from plan_jax.benchmark.step_scaling import (
    GLOBAL,
    PER_DEVICE,
    batches_of,
    compiled_rows,
    scaling_lines,
    with_verdicts,
)
from plan_jax.compilation import report
from plan_jax.config_file import read_config
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.losses import plan_loss
from plan_jax.model import PlanModel
from plan_jax.tables.render import render
from plan_jax.train.gradients import gradients_of
from plan_jax.train.state import create_state

SMALL = (*TINY, "--config.data.crop=1.0", "--config.text_encoder.vocab_size=64", "--config.text_encoder.hidden=16")
SMALLEST = Effort(films=20, records=8, images=8, reads=1, repeats=1, counts=(2, 4), least=True)
ALL = ["step", *PARTS, "rest", "input"]


@pytest.fixture(scope="module")
def config():
    return read_config(CONFIG, SMALL)


@pytest.fixture(scope="module")
def printed(phantom_data):
    """Rows that processes of their own found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", SMALLEST)
        patch.setattr(module, "ONE_CORE", ONE_CORE | {"XLA_FLAGS": f"{ONE_CORE['XLA_FLAGS']} {QUICK_FLAGS}"})
        return benchmark_step(read_config(CONFIG, SMALL), data=phantom_data, quick=True)


# The parts


def test_every_part_is_a_row_and_all_of_them_are_the_step(printed, phantom_data):
    assert [row["part"] for row in printed] == ALL
    assert all(tuple(row) == FIELDS for row in printed)
    step, encoders, alignment, optimizer, rest, read = printed
    assert not any(row["failed"] for row in printed)
    assert all(row["ms"] > 0 for row in (step, encoders, alignment, optimizer, read))
    assert step["share"] == 1
    assert sum(row["share"] for row in (encoders, alignment, optimizer, rest)) == pytest.approx(1)
    for row in (step, encoders, alignment, optimizer, read):
        assert row["images_per_second"] == pytest.approx(8e3 / row["ms"])
        assert row["batch_size"] == 8
    # Nearly all of the step's products are in one of its parts, none in two; the rest looks at a few pairs.
    assert 0 <= rest["flops"] < 0.1 * step["flops"]
    assert min(encoders["flops"], alignment["flops"]) > 0
    assert optimizer["flops"] == 0
    assert step["temp_bytes"] >= alignment["temp_bytes"]
    assert step["argument_bytes"] < step["peak_bytes"] < step["in_use_bytes"]
    assert {row["mfu"] for row in printed} == {None}
    assert sum(step["collective_bytes"].values()) == 0
    assert json.loads(json.dumps(printed)) == printed
    state = jax.eval_shape(
        lambda: create_state(vocabulary_of(phantom_data))
    )  # of which each moment and parameter goes in
    assert step["argument_bytes"] > sum(4 * leaf.size for leaf in jax.tree.leaves(state))


def vocabulary_of(folder):
    config, size = read_config(CONFIG, SMALL), Tokenizer.load(folder / "tokenizer.json").vocab_size
    assert size != config.text_encoder.vocab_size
    return dataclasses.replace(config, text_encoder=dataclasses.replace(config.text_encoder, vocab_size=size))


def test_the_encoders_part_takes_cotangents_of_the_features_back_to_the_parameters(config):
    """Given those of the loss it finds the gradient of the loss: the chain rule, here in two micro-batches."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=2))
    state, model = create_state(config), PlanModel(config)
    batch = jax.tree.map(jnp.asarray, random_batch(config))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    whole = jax.jit(functools.partial(gradients_of, model=model, config=config), compiler_options=oracle.QUICK)
    expected = whole(state.params, state.batch_stats, batch, key)
    images, texts = expected.features

    def loss_of(images, pooled, word, word_logit):
        return plan_loss(images, texts.replace(pooled=pooled, word=word, word_logit=word_logit), config=config)[0]

    pull = jax.jit(jax.grad(loss_of, argnums=(0, 1, 2, 3)), compiler_options=oracle.QUICK)
    of_images, *rest = pull(images, texts.pooled, texts.word, texts.word_logit)
    of_texts = texts.replace(**dict(zip(("pooled", "word", "word_logit"), rest, strict=True)))
    lowered = encoder_passes.lower(state, batch, (of_images, of_texts), model=model, config=config)
    found = lowered.compile(compiler_options=oracle.QUICK)(state, batch, (of_images, of_texts))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found.gradients, expected.gradients)
    jax.tree.map(close, found.features, expected.features)


class _Made:
    """In the place of the programs."""

    def __init__(self, config, mesh, calls):
        self.needs, self.failed, self.in_use_bytes = {"step": {"flops": 4.0}}, {"encoders": "no such convolution"}, 7
        self._calls = calls
        if config.data.batch_size > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def step(self):
        self._calls.append("step")

    def encoders(self):
        self._calls.append("encoders")

    def alignment(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken\nat length")

    def optimizer(self):
        self._calls.append("optimizer")


def test_a_part_that_fails_is_named_and_the_others_are_measured(config, monkeypatch):
    calls = []
    monkeypatch.setattr(step_parts, "_Work", functools.partial(_Made, calls=calls))
    rows = measure_parts(config, repeats=3)
    assert [row["failed"] for row in rows] == [None, "no such convolution", "INTERNAL: broken", None]
    assert [row["ms"] is None for row in rows] == [False, True, True, False]
    assert calls == ["step", "optimizer"] * 4  # in turn; the first time does not count
    assert {row["batch_size"] for row in rows} == {4}  # the half that fits
    step, *_, rest = with_shares(rows)
    assert step["share"] == 1
    assert rest["ms"] is rest["share"] is None


def test_a_program_that_cannot_be_compiled_fails_alone(config, monkeypatch):
    def refused(config, mesh):
        raise NotImplementedError("no kernel for this chip")

    class Program:
        def compile(self):
            return lambda state, *_: (state, {})

    lowered = type("Lowered", (), {"lower": lambda *_, **__: Program()})()
    monkeypatch.setattr(step_parts, "lower_alignment", refused)
    monkeypatch.setattr(step_parts, "train_step", lowered)
    monkeypatch.setattr(step_parts, "encoder_passes", lowered)
    monkeypatch.setattr(step_parts, "apply_gradients", lambda state, found, *, optimizer, config: (state, {}))
    monkeypatch.setattr(step_parts, "needs_of", lambda _: {"flops": 1.0})
    cut = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, devices=4, fsdp=2))
    rows = measure_parts(cut, repeats=1)
    assert {row["devices"] for row in rows} == {4}
    assert [row["failed"] for row in rows] == [None, None, "no kernel for this chip", None]
    assert [row.get("flops") for row in rows] == [1.0, 1.0, None, 1.0]


def test_where_memory_does_not_suffice_halves_are_tried_that_the_devices_divide(config):
    tried = []

    def measure(config):
        tried.append(config.data.batch_size)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    odd = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=12))
    with pytest.raises(jax.errors.JaxRuntimeError):
        with_what_fits(measure, odd, unit=4)
    assert tried == [12, 4]
    assert its.NO_MEMORY == "RESOURCE_EXHAUSTED"


def part(name: str, ms: float | None, flops: float | None, **more) -> dict:
    row = {"part": name, "ms": ms, "flops": flops, "batch_size": 10, "devices": 2, "device": "Chip", "failed": None}
    return row | {"device_flops_per_second": 1000.0} | more


def test_shares_rates_and_the_rest_follow_from_times_and_operations():
    rows = with_shares([part("step", 50.0, 20.0), part("encoders", 30.0, 15.0), part("alignment", 25.0, 4.0)])
    assert [row["share"] for row in rows] == pytest.approx([1, 0.6, 0.5, -0.1])
    assert [row.get("images_per_second") for row in rows] == pytest.approx([200, 10 / 0.03, 400, None])
    assert rows[0]["flops_per_second"] == pytest.approx(400)
    assert rows[0]["mfu"] == pytest.approx(0.4)
    assert (rows[-1]["part"], rows[-1]["ms"], rows[-1]["flops"]) == ("rest", -5.0, 1.0)


def test_without_operations_there_are_times_and_without_a_step_there_are_no_shares():
    rows = with_shares([part("step", 50.0, None), part("encoders", 30.0, 15.0)])
    assert (rows[0]["mfu"], rows[0]["flops_per_second"], rows[1]["share"]) == (None, None, 0.6)
    rows = with_shares([{"part": "step", "failed": "ended by SIGKILL"}, {"part": "encoders", "failed": "the same"}])
    assert [row.get("share") for row in rows] == [None] * 3


def filled(rows) -> list[dict]:
    return [dict.fromkeys(FIELDS) | row for row in rows]


def test_the_lines_say_how_many_loader_cores_the_step_takes_and_what_was_not_counted():
    step = part("step", 50.0, 20.0, images_per_second=200.0, mfu=0.4, in_use_bytes=2**21, kernels=3)
    read = part("input", 100.0, None, device="cpu", images_per_second=100.0, share=2.0)
    looped = part("alignment", 5.0, 1.0, unknown_loops=2)
    lines = step_lines(filled([step, looped, part("rest", -1.0, 0.0), read]))
    assert lines[:3] == [
        "training step: 200 images/s, MFU 40.0 %",
        "input: a core reads 100 images/s; the step takes 2.00 loader cores",
        "memory: a device held at most 2 MiB after the first step",
    ]
    assert any("negative" in line for line in lines)
    assert any("leave out 3 calls of hand-written kernels" in line for line in lines)
    assert "alignment: 2 loops of unknown length count once in GFLOP" in lines
    step |= {"device": "cpu", "mfu": None}
    assert step_lines(filled([step, part("rest", None, None), read]))[0].endswith("in CPU time on one core")


# Scaling


def test_the_batch_is_fixed_in_one_series_and_grows_with_the_devices_in_the_other(config):
    assert batches_of(config, (1, 2, 4)) == [
        *((GLOBAL, count, 8) for count in (1, 2, 4)),
        *((PER_DEVICE, count, 2 * count) for count in (1, 2, 4)),
    ]
    halves = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=2))
    assert {count for _, count, _ in batches_of(halves, (1, 2, 4))} == {2, 4}
    parts = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=4))
    with pytest.raises(InputError, match="multiple of 16 for --scaling"):
        batches_of(parts, (1, 2, 4))


def scaled(series: str, devices: int, size: int, parameters: float | None, features: float | None) -> dict:
    known = parameters is not None and features is not None
    moved = {"all-reduce": parameters, "all-gather": features} if known else None
    row = {"part": "scaling", "series": series, "devices": devices, "batch_size": size, "collective_bytes": moved}
    failed = None if known else "ended by SIGKILL"
    return row | {"parameter_bytes": parameters, "feature_bytes": features, "failed": failed}


def test_bytes_that_grow_with_the_devices_are_not_flat():
    steady = [scaled(GLOBAL, n, 8, 0 if n == 1 else 2048, 0 if n == 1 else 8192) for n in (1, 2, 4, 8)]
    assert [row["flat"] for row in with_verdicts(steady)] == [None, None, True, True]
    assert scaling_lines(with_verdicts(steady)) == [
        "global batch fixed, parameters: 2.0 KiB on each of 2 devices, 2.0 on each of 8: flat",
        "global batch fixed, features: 1.0 KiB per pair on each of 2 devices, 1.0 on each of 8: flat",
        "global batch fixed, all together, watched pairs too: 10.0 KiB on each of 2 devices, 10.0 on each of 8: "
        "1.00 times",
    ]
    growing = [scaled(GLOBAL, n, 8, 2048, 4096 * n) for n in (2, 4, 8)]
    assert [row["flat"] for row in with_verdicts(growing)] == [None, False, False]
    assert scaling_lines(with_verdicts(growing))[1].endswith("on each of 8: grows 4.00 times")
    shrinking = [scaled(GLOBAL, n, 8, 4096 // n, 4096) for n in (2, 4)]
    assert [row["flat"] for row in with_verdicts(shrinking)] == [None, True]


def test_with_the_batch_per_device_fixed_features_may_grow_with_the_global_batch_and_parameters_may_not():
    rows = with_verdicts([scaled(PER_DEVICE, n, n, 2048, 1024 * n) for n in (2, 4)])
    assert rows[1]["flat"] is True
    assert [row["flat"] for row in with_verdicts([scaled(PER_DEVICE, n, n, 2048, 1024 * n**2) for n in (2, 4)])][
        1
    ] is False
    assert [row["flat"] for row in with_verdicts([scaled(PER_DEVICE, n, n, 2048 * n, 1024 * n) for n in (2, 4)])][
        1
    ] is False


def test_a_count_that_failed_is_judged_no_more_than_it_is_judged_by():
    rows = [scaled(GLOBAL, 2, 8, None, None), scaled(GLOBAL, 4, 8, 8, 8), scaled(GLOBAL, 8, 8, 8, 8)]
    assert [row["flat"] for row in with_verdicts(rows)] == [None, None, True]
    assert scaling_lines(with_verdicts(rows[:1])) == []


def test_what_a_real_step_exchanges_stays_flat_from_2_to_4_devices(config, monkeypatch):
    rows = []
    monkeypatch.setattr(report, "LEAST_EFFORT", oracle.QUICK)
    for devices in (2, 4):
        (row,) = compiled_rows(config, jax.devices()[:devices], [8], quick=True)
        rows.append(row | {"series": GLOBAL, "part": "scaling"})
    assert [row["flat"] for row in with_verdicts(rows)] == [None, True]
    state, data = jax.eval_shape(lambda: create_state(config)), config.data
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    for row in rows:
        # Each gradient is summed once, but for positions that no report reaches; beside it are statistics of norms.
        assert 0.8 * parameters <= row["parameter_bytes"] < 1.2 * parameters
        # Words are gathered, and their cotangents scattered, at least.
        assert row["feature_bytes"] > 2 * 4 * row["batch_size"] * data.max_words * config.alignment.dim
    table = render([scaling_table(filled(with_verdicts(rows)))])
    assert [line.split()[-1] for line in table.splitlines() if line.startswith(GLOBAL)][1] == "yes"


# The command


def test_the_command_prints_json_alone_and_names_what_failed(phantom_data, monkeypatch, capsys):
    asked = []

    def ask(name, request, extra):
        asked.append((name.rpartition(".")[2], extra.get("XLA_FLAGS", "")))
        if name.endswith("step_scaling"):
            return {"failed": "ended by SIGKILL", "wrong_input": False}
        return [part(each, 10.0, 5.0, device="cpu") for each in ("step", *PARTS)]

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "QUICK", SMALLEST)
    call = ["benchmark", "step", "--quick", "--scaling", "--config", str(CONFIG), "--data", str(phantom_data), *SMALL]
    assert main([*call, "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["part"] for row in rows] == [*ALL, *["scaling"] * 4]
    assert {name for name, _ in asked} == {"step_parts", "step_scaling"}
    assert [flags for name, flags in asked if name == "step_scaling"] == [
        f"--xla_force_host_platform_device_count={count}" for count in (2, 4)
    ]
    assert "plan_jax: scaling on 4 devices, global batch fixed, failed: ended by SIGKILL" in err
    assert [row["flat"] for row in rows if row["part"] == "scaling"] == [None] * 4
    assert rows[5]["images_per_second"] > 0


def test_the_command_prints_tables(printed, monkeypatch, capsys):
    monkeypatch.setattr(module, "benchmark_step", lambda *_, **__: printed)
    assert main(["benchmark", "step", "--config", str(CONFIG)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()[4:10]] == ALL
    assert f"training step: {printed[0]['images_per_second']:.0f} images/s in CPU time on one core" in out
    assert render([step_table(printed)]) in out


def test_a_step_that_died_leaves_rows_that_say_why(config, phantom_data, monkeypatch):
    monkeypatch.setattr(module, "ask", lambda *_: {"failed": "ended by SIGKILL", "wrong_input": False})
    monkeypatch.setattr(module, "QUICK", SMALLEST)
    rows = benchmark_step(config, data=phantom_data, quick=True)
    assert [row["failed"] for row in rows] == ["ended by SIGKILL"] * 4 + [None] * 2
    assert "Training step" in render([step_table(rows)])
    assert step_lines(rows) == []


def test_what_a_person_can_mend_is_refused(phantom_data, monkeypatch, capsys):
    call = ["benchmark", "step", "--quick", "--config", str(CONFIG), "--data", str(phantom_data), *SMALL]
    monkeypatch.setattr(module, "QUICK", dataclasses.replace(SMALLEST, counts=(2, 3)))
    assert main([*call, "--scaling"]) == 2
    assert "multiple of 3 for --scaling" in capsys.readouterr().err
    monkeypatch.setattr(module, "ask", lambda *_: {"failed": "config.x must be y, got z; do w", "wrong_input": True})
    assert main(call) == 2
    assert "config.x must be y" in capsys.readouterr().err
    assert main(["benchmark", "step", "--config", str(CONFIG), "--data", str(phantom_data / "none")]) == 2
    assert "data directory must exist" in capsys.readouterr().err
    assert main(["benchmark", "alignment", "--config.seed=1"]) == 2
    assert "must have no fields" in capsys.readouterr().err


def test_quick_does_less():
    whole = Effort()
    assert QUICK.repeats < whole.repeats
    assert QUICK.films < whole.films
    assert {QUICK.counts[0], QUICK.counts[-1]} <= set(whole.counts)
