"""Compiling for chips that are not here: reading optimised programs, what fits, the search, the command."""

import dataclasses
import functools
import importlib.util
import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG, TINY
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plan_jax.__main__ import main
from plan_jax.compilation import programs, report, topology
from plan_jax.compilation.report import (
    compile_line,
    compile_notes,
    compile_table,
    fits,
    largest_batch,
    rows_of,
    with_batch,
)
from plan_jax.compilation.topology import CHIPS, GIB, devices_of, parse_topology
from plan_jax.config_file import read_config
from plan_jax.counting.counts import KINDS, count
from plan_jax.counting.hlo import dimensions, parse, size_in_bytes
from plan_jax.errors import InputError
from plan_jax.sharding import make_mesh, over_data, placed, replicated

INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("libtpu", "jax_cuda13_plugin")}
# A TPU's text: no length is noted at a loop, shapes carry tiles and memory spaces, tuples hold comments.
LOOP = """\
HloModule jit_f, is_scheduled=true

%region_add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[]{{:T(128)}} parameter(0)
  %y = f32[]{{:T(128)}} parameter(1)
  ROOT %add.9 = f32[]{{:T(128)}} add(%x, %y)
}}

%body (param: (s32[], f32[8,128], s32[])) -> (s32[], f32[8,128], s32[]) {{
  %param = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}, /*index=2*/s32[]{{:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%param), index=0
  %x = f32[8,128]{{1,0:T(8,128)S(1)}} get-tuple-element(%param), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%param), index=2
  %one = s32[]{{:T(128)}} constant({step})
  %again = s32[]{{:T(128)}} copy(%i)
  %next = s32[]{{:T(128)}} add(%one, %again)
  %sum = f32[8,128]{{1,0:T(8,128)}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%region_add
  ROOT %out = (s32[], f32[8,128], s32[]) tuple(%next, %sum, %n)
}}

%condition (param.1: (s32[], f32[8,128], s32[])) -> pred[] {{
  %param.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}, s32[]{{:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%param.1), index=0
  %n.1 = s32[]{{:T(128)}} {limit}
  ROOT %less = pred[]{{:T(512)}} compare(%i.1, %n.1), direction={direction}
}}

ENTRY %main (p: f32[8,128], q: s32[]) -> f32[8,128] {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[]{{:T(128)}} constant(2)
  %first = s32[]{{:T(128)}} copy(%zero)
  %last = s32[] {last}
  %start = (s32[], f32[8,128], s32[]) tuple(%first, %p, %last)
  %loop = (s32[], f32[8,128], s32[]) while(%start), condition=%condition, body=%body{noted}
  ROOT %y = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%loop), index=1
}}
"""
SUM = 8 * 128 * 4  # bytes of the loop's all-reduce


def loop_text(step=1, limit="constant(9)", direction="LT", last="constant(12)", noted=""):
    return LOOP.format(step=step, limit=limit, direction=direction, last=last, noted=noted)


def entry(*lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


# Shapes and loops


@pytest.mark.parametrize(
    ("shape", "sizes", "bytes_"),
    [
        ("f32[]", [], 4),
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", [8, 128], 2048),
        ("pred[3]{0:T(512)}", [3], 3),
        ("s4[3]", [3], 2),
        ("f8e4m3fn[16]", [16], 16),
        ("c64[2,2]", [2, 2], 32),
        ("(s32[]{:T(128)}, /*index=1*/f32[2,3]{1,0:T(8,128)S(1)}, token[])", [], 28),
        ("f32[<=6,2]", [6, 2], 48),
    ],
)
def test_the_size_of_a_shape_is_that_of_its_elements(shape, sizes, bytes_):
    assert dimensions(shape) == sizes
    assert size_in_bytes(shape) == bytes_


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({}, 7),  # 2, 3, ... 8
        ({"limit": "get-tuple-element(%param.1), index=2"}, 10),
        ({"noted": ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}'}, 5),
    ],
)
def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs(changes, trips):
    counts = count(loop_text(**changes))
    assert counts.collective_bytes == dict.fromkeys(KINDS, 0) | {"all-reduce": trips * SUM}
    assert counts.unknown_loops == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 3},
        {"direction": "NE"},
        {"limit": "get-tuple-element(%param.1), index=2", "last": "negate(%q)"},
    ],
)
def test_a_loop_of_unknown_length_counts_once_and_is_told(changes):
    counts = count(loop_text(**changes))
    assert counts.collective_bytes["all-reduce"] == SUM
    assert counts.unknown_loops == 1


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule nothing")


# Collectives


@pytest.mark.parametrize(
    ("line", "kind", "moved"),
    [
        ("%a = f32[16]{0} all-gather(%p), dimensions={0}", "all-gather", 64),
        ("%a = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), dimensions={0}", "all-gather", 64),
        ("%a = ((f32[4], f32[4]), (f32[16], f32[16])) all-gather-start(%p, %p)", "all-gather", 128),
        ("%a = f32[4]{0} all-reduce-start(%p), to_apply=%add", "all-reduce", 16),
        ("%a = (f32[4], f32[4]) all-reduce(%p, %p), to_apply=%add", "all-reduce", 32),
        ("%a = f32[1]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add", "reduce-scatter", 16),
        ("%a = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%p)", "collective-permute", 16),
        ("%a = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", "collective-permute", 16),
        ("%a = f32[4]{0} all-to-all(%p), dimensions={0}", "all-to-all", 16),
    ],
)
def test_the_bytes_of_a_collective(line, kind, moved):
    text = entry("%p = f32[4]{0} parameter(0)", line, "ROOT %d = f32[4]{0} copy(%p)")
    text = text.replace("ENTRY", "%add (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n\nENTRY")
    assert count(text).collective_bytes == dict.fromkeys(KINDS, 0) | {kind: moved}


def test_an_asynchronous_computation_counts_once():
    text = entry(
        "%p = f32[4]{0} parameter(0)",
        "%s = ((f32[4]), f32[4], u32[]) async-start(%p), calls=%inner",
        "%u = ((f32[4]), f32[4], u32[]) async-update(%s), calls=%inner",
        "ROOT %d = f32[4]{0} async-done(%u), calls=%inner",
    )
    inner = "%inner (q: f32[4]) -> f32[4] {\n  %q = f32[4]{0} parameter(0)\n  ROOT %a = f32[4]{0} all-to-all(%q)\n}\n\n"
    assert count(text.replace("ENTRY", inner + "ENTRY")).collective_bytes["all-to-all"] == 16


def test_every_branch_of_a_conditional_counts():
    branch = (
        "%{0} (q: f32[4]) -> f32[4] {{\n  %q = f32[4]{{0}} parameter(0)\n  ROOT %a = f32[4]{{0}} all-to-all(%q)\n}}\n\n"
    )
    text = entry(
        "%p = f32[4]{0} parameter(0)",
        "%i = s32[] constant(0)",
        "ROOT %c = f32[4]{0} conditional(%i, %p, %p), branch_computations={%left, %right}",
    )
    text = text.replace("ENTRY", branch.format("left") + branch.format("right") + "ENTRY")
    assert count(text).collective_bytes["all-to-all"] == 32


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:4])


def compiled_counts(function, mesh, *specs):
    """Counts of a function of [16, 32] arrays, compiled for four devices of this machine's CPU."""
    arguments = [jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, spec)) for spec in specs]
    with jax.set_mesh(mesh):
        return count(jax.jit(function).lower(*arguments).compile().as_text())


def test_the_collectives_of_a_compiled_program_are_those_that_were_written(mesh):
    inside = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), check_vma=False)
    ring = [(i, (i + 1) % 4) for i in range(4)]

    @functools.partial(inside, out_specs=P("data"))
    def written(x):
        def turn(_, y):
            return jax.lax.ppermute(y, "data", ring) * 2

        gathered = jax.lax.all_gather(x, "data", tiled=True)  # [16 32]
        x = x + jax.lax.psum_scatter(gathered * x.sum(), "data", tiled=True)
        x = x + jax.lax.psum(x, "data")
        return jax.lax.fori_loop(0, 3, turn, x)

    counts, shard = compiled_counts(written, mesh, P("data")), 4 * 32 * 4
    assert counts.unknown_loops == 0
    assert counts.collective_bytes["all-gather"] == 4 * shard
    assert counts.collective_bytes["all-reduce"] + counts.collective_bytes["reduce-scatter"] == 5 * shard
    assert counts.collective_bytes["collective-permute"] == 3 * shard


# Operations


def test_matrix_products_count_two_operations_per_pair_and_a_scan_its_length(mesh):
    def product(x, w):
        y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w.T @ w), None), x, length=6)
        return y

    counts = compiled_counts(product, mesh, P("data"), P())
    assert counts.flops == 6 * 2 * (2 * 4 * 32 * 16)
    assert counts.unknown_loops == 0


@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 1, 1), (2, 1, 1), (2, 1, 0), (1, 2, 3)])
def test_a_convolution_counts_the_pairs_that_meet_the_image(stride, dilation, padding):
    image, kernel = jnp.ones((1, 7, 6, 1)), jnp.ones((3, 3, 1, 1))
    apply = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    met = int(apply(image, kernel).sum())  # ones: every output counts the taps that lie inside
    out = apply(image, kernel).shape
    window = f"size=3x3 stride={stride}x{stride} pad={padding}_{padding}x{padding}_{padding}"
    text = entry(
        "%p = f32[5,7,6,4]{3,2,1,0} parameter(0)",
        "%k = f32[3,3,4,8]{3,2,1,0} parameter(1)",
        f"ROOT %y = f32[5,{out[1]},{out[2]},8] convolution(%p, %k), "
        f"window={{{window} rhs_dilate={dilation}x{dilation}}}, dim_labels=b01f_01io->b01f",
    )
    assert count(text).flops == 2 * 5 * 4 * 8 * met


def test_the_operations_of_a_compiled_gradient_agree_with_the_compiler(mesh):
    """Where no loop is, XLA's own count is right; it adds the element-wise operations, few here."""

    def loss(image, kernel, weight):
        y = jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.dot(y.reshape(len(y), -1), weight) ** 2)

    shapes = ((8, 16, 16, 8), (3, 3, 8, 16), (8 * 8 * 16, 64))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
    assert count(compiled.as_text()).flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (
            "%y = (f32[2,5,5,8], u8[0]) custom-call(%image, %kernel), window={size=3x3}, dim_labels=b01f_o01i->b01f, "
            'custom_call_target="__cudnn$convForward"',
            2 * (2 * 5 * 5 * 8) * 3 * 3 * 4,
        ),
        (
            "%y = (f32[2,7,7,4], u8[0]) custom-call(%grad, %kernel), window={size=3x3}, dim_labels=b01f_o01i->b01f, "
            'custom_call_target="__cudnn$convBackwardInput"',
            2 * (2 * 5 * 5 * 8) * 3 * 3 * 4,
        ),
        (
            "%y = (f32[8,3,3,4], u8[0]) custom-call(%image, %grad), window={size=3x3}, dim_labels=b01f_o01i->b01f, "
            'custom_call_target="__cudnn$convBackwardFilter"',
            2 * (2 * 5 * 5 * 8) * 3 * 3 * 4,
        ),
        (
            '%y = (f32[6,9], s8[0]) custom-call(%left, %right), custom_call_target="__cublas$lt$matmul", '
            'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            2 * 6 * 9 * 5,
        ),
    ],
)
def test_what_a_gpu_library_computes_counts_too(call, flops):
    text = entry(
        "%image = f32[2,7,7,4]{3,2,1,0} parameter(0)",
        "%kernel = f32[8,3,3,4]{3,2,1,0} parameter(1)",
        "%grad = f32[2,5,5,8]{3,2,1,0} parameter(2)",
        "%left = f32[6,5]{1,0} parameter(3)",
        "%right = f32[5,9]{1,0} parameter(4)",
        call,
        "ROOT %z = f32[] constant(0)",
    )
    assert count(text).flops == flops


def test_a_hand_written_kernel_is_told():
    call = '%k = f32[4]{0} custom-call(%p), custom_call_target="tpu_custom_call"'
    assert count(entry("%p = f32[4]{0} parameter(0)", call, "ROOT %d = f32[4]{0} copy(%k)")).kernels == 1


# What fits


def test_a_batch_for_which_a_gpu_cannot_launch_the_kernels_does_not_fit(monkeypatch, tiny, mesh):
    def refuse(message):
        def lower(*_):
            raise AssertionError(message)

        monkeypatch.setitem(programs.PROGRAMS, "alignment", lower)

    said = "Cannot fix pallas kernel launch grid within CUDA limits"  # jax/_src/pallas/triton/lowering.py
    refuse(said)
    row = report.compile_program("alignment", tiny, parse_topology("h100:1x1x1"), mesh)
    assert (row["fits"], row["peak_bytes"], row["error"]) == (False, None, said)
    refuse("another")
    with pytest.raises(AssertionError, match="another"):
        report.compile_program("alignment", tiny, parse_topology("h100:1x1x1"), mesh)


@pytest.mark.parametrize(
    ("peak", "fitted", "said"),
    [
        (3 * GIB, True, "fits, 3.00 GiB of 16.00"),
        (17 * GIB, False, "does not fit, 17.00 GiB of 16.00"),
        (None, False, "does not fit"),
    ],
)
def test_what_is_compiled_is_said_at_once(peak, fitted, said):
    row = {"topology": "v5e:2x2", "program": "step", "batch_size": 64, "memory_bytes": 16 * GIB}
    assert compile_line(row | {"peak_bytes": peak, "fits": fitted}) == f"v5e:2x2, step, batch 64: {said}"


@pytest.mark.parametrize(
    ("peak", "memory", "refused", "expected"),
    [
        (16 * GIB, 16 * GIB, False, True),
        (16 * GIB + 1, 16 * GIB, False, False),
        (1, 16 * GIB, True, False),
        (None, 16 * GIB, True, False),
        (1, None, False, None),
    ],
)
def test_a_program_fits_where_its_peak_is_at_most_the_memory(peak, memory, refused, expected):
    assert fits(peak, memory, refused=refused) is expected


def test_what_a_compiler_says_that_ran_out_of_memory_is_read():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (15.93G) exceeds "
        "available HBM (15.75G).\nmore"
    )
    row = report._refused(said)
    assert row["peak_bytes"] == int(15.93 * 2**30)
    assert row["error"] == said.splitlines()[0]


def searched(limit: int, told: Callable[[int], int | None], **options) -> list[int]:
    """The batches tried on a chip with the memory of `limit` pairs; `told` says what those need that do not fit."""

    def measure(size: int) -> dict:
        peak = size if size <= limit else told(size)
        return {"batch_size": size, "memory_bytes": limit, "peak_bytes": peak, "fits": size <= limit}

    return [row["batch_size"] for row in largest_batch(measure, **options)]


@pytest.mark.parametrize(
    ("limit", "start", "tried"),
    [
        (120, 16, [16, 32, 64, 128, 96, 112]),
        (16, 64, [64, 32, 16]),  # which takes all of the memory
        (7, 8, [8, 4]),
        (3, 16, [16, 8, 4]),
        (2**30, 2**23, [2**23, 2**24]),
    ],
)
def test_the_search_doubles_or_halves_then_closes_in_on_multiples(limit, start, tried):
    assert searched(limit, lambda _: None, start=start, step=4) == tried


@pytest.mark.parametrize(
    ("told", "tried"),
    [
        (lambda size: size, [500, 1000, 2000, 1468]),  # memory grows evenly: at once where 98 % are used
        (lambda size: 10 * size, [500, 1000, 2000, 1024, 1512]),  # it does not: the middle comes next
        (lambda _: 1400, [500, 1000, 2000, 1500]),  # of no use: it would need less than there is
    ],
)
def test_the_search_goes_where_memory_would_be_used_up(told, tried):
    assert searched(1500, told, start=500, step=4) == tried


# Topologies and programs


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v9:2x2", "v4, v5e, v5p, v6e, h100, cpu"),
        ("v5e", "write it as v5e:16x16"),
        ("v5e:", "write it as v5e:16x16"),
        ("v5e:4x0", "write it as v5e:16x16"),
        ("h100:1x1x1x8", "write it as h100:1x1x8"),
    ],
)
def test_a_topology_that_is_not_known_is_refused_with_one_that_is(name, told):
    with pytest.raises(InputError, match=told):
        parse_topology(name)


def test_every_chip_names_an_example_of_itself():
    for kind, chip in CHIPS.items():
        found = parse_topology(chip.example)
        assert found.chip is chip
        assert found.name.startswith(f"{kind}:")
    assert parse_topology("v5e:16x16").size == 256


def test_more_cpu_devices_than_there_are_are_refused():
    assert len(jax.devices()) == 8  # from here on their number is fixed
    with pytest.raises(InputError, match="must have 64 CPU devices, got 8"):
        devices_of(parse_topology("cpu:64"))


@pytest.fixture(scope="module")
def tiny():
    quick_to_compile = ("--config.text_encoder.dropout=0.0", "--config.alignment.rounds=0")
    return read_config(CONFIG, (*TINY, *quick_to_compile))


@pytest.fixture(scope="module")
def rows(tiny):
    return list(rows_of([parse_topology("cpu:4")], ("alignment", "step"), tiny))


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_the_shapes_of_a_batch_are_those_of_the_pipeline(crop, tiny, phantom_data):
    from plan_jax.data.pipeline import TrainBatches
    from plan_jax.data.records import open_split
    from plan_jax.data.text import Tokenizer

    tokenizer = Tokenizer.load(phantom_data / "tokenizer.json")
    tiny = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, crop=crop))
    batches = TrainBatches(open_split(phantom_data, "train"), tokenizer, tiny.data, seed=0)
    made = next(batches)
    batches.close()
    told = programs.batch_shapes(tiny)
    assert jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), told
    )


def test_a_row_says_what_a_program_needs(rows):
    assert [row["program"] for row in rows] == ["alignment", "step"]
    for row in rows:
        assert (row["topology"], row["chips"], row["batch_size"]) == ("cpu:4", 4, 8)
        assert (row["fits"], row["memory_bytes"]) == (None, None)
        kept = row["output_bytes"] - row["alias_bytes"]
        assert row["peak_bytes"] == row["argument_bytes"] + row["temp_bytes"] + kept
        assert row["flops"] > 0
        assert row["collective_bytes"]["all-reduce"] > 0
    step = rows[1]
    assert step["alias_bytes"] > 0.9 * step["output_bytes"]  # the state is donated
    assert json.loads(json.dumps(rows)) == rows


def test_a_step_sends_its_gradients_once(rows, tiny):
    state = jax.eval_shape(lambda: programs.create_state(tiny))
    gradients = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    assert rows[1]["collective_bytes"]["all-reduce"] >= 0.99 * gradients  # some of the smallest are zero, and not sent


def test_the_table_and_its_notes_say_what_is_in_the_rows(rows):
    from plan_jax.tables.render import render

    refused = rows[1] | report._refused("RESOURCE_EXHAUSTED: needs (17.5G) of 16G") | {"fits": False}
    refused |= {"memory_bytes": 16 * GIB}
    text = render([compile_table([*rows, refused])])
    assert "unknown" in text
    assert "17.50" in text
    (line,) = (note for note in compile_notes([*rows, refused]) if "refused" in note)
    assert line == "cpu:4, step, batch 8: the compiler refused it: RESOURCE_EXHAUSTED: needs (17.5G) of 16G"


def test_a_batch_that_cannot_be_cut_is_refused(tiny, mesh):
    data = dataclasses.replace(tiny.data, batch_size=6)
    with pytest.raises(InputError, match="multiple of the 4 devices, got 6"):
        programs.lower_step(dataclasses.replace(tiny, data=data), mesh)


def test_arrays_lie_over_the_devices_or_on_all_of_them(mesh):
    x = np.arange(32.0).reshape(8, 4)
    cut, whole = jax.device_put(x, over_data(mesh)), jax.device_put(x, replicated(mesh))
    assert {shard.data.shape for shard in cut.addressable_shards} == {(2, 4)}
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 4)}
    assert placed({"x": x}, over_data(mesh))["x"].sharding == over_data(mesh)


# The command


@pytest.mark.parametrize(("chip", "package"), [("v5e:2x2", "libtpu"), ("h100:1x1x8", "jax_cuda13_plugin")])
def test_a_compiler_that_is_not_installed_is_told_in_one_line(chip, package, capsys):
    if INSTALLED[package]:
        pytest.skip(f"{package} is installed here")
    assert main(["compile", "--config", str(CONFIG), "--topology", chip]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    extra = topology.INSTALL[parse_topology(chip).chip.platform].split(",")[0]
    assert line.startswith(f"plan_jax: {chip} must have its compiler installed, got none; {extra}")


def test_the_command_prints_json_alone_on_stdout(rows, capsys):
    call = ["compile", "--config", str(CONFIG), *TINY, "--topology", "cpu:2", "--program", "alignment", "--json"]
    assert main([*call, "--quick"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert set(row) == set(rows[0])
    assert (row["chips"], row["program"], row["batch_size"]) == (2, "alignment", 8)
    assert err == f"cpu:2, alignment, batch 8: unknown whether it fits, {row['peak_bytes'] / GIB:.2f} GiB\n"


def test_the_command_prints_a_table(monkeypatch, rows, capsys):
    monkeypatch.setattr(
        report, "compile_program", lambda name, *_, **__: next(row for row in rows if row["program"] == name)
    )
    assert main(["compile", "--config", str(CONFIG), *TINY, "--topology", "cpu:4"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("Compiled, per chip and step")
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("cpu:4  ")] == [
        ["cpu:4", "alignment", "8"],
        ["cpu:4", "step", "8"],
    ]


def test_the_largest_batch_for_a_chip_of_unknown_memory_is_refused(capsys):
    assert main(["compile", "--config", str(CONFIG), "--topology", "cpu:4", "--largest-batch"]) == 2
    assert "known memory, got cpu:4" in capsys.readouterr().err


@pytest.mark.skipif(not INSTALLED["libtpu"], reason="needs the TPU compiler: pip install 'plan_jax[tpu]'")
def test_a_step_compiles_for_a_tpu_that_is_not_here(tiny):
    step, small = rows_of([parse_topology("v5e:2x2"), parse_topology("v5e:1x1")], ("step",), tiny, quick=True)
    assert step["fits"]
    assert step["collective_bytes"]["all-reduce"] > 0
    assert sum(small["collective_bytes"].values()) == 0


@pytest.mark.skipif(not INSTALLED["libtpu"], reason="needs the TPU compiler: pip install 'plan_jax[tpu]'")
def test_what_a_tpu_cannot_hold_is_said_not_to_fit(tiny):
    (row,) = rows_of([parse_topology("v5e:1x1")], ("step",), with_batch(tiny, 2**17), quick=True)  # logits of 64 GiB
    assert row["fits"] is False
    assert row["peak_bytes"] > 15 * GIB


@pytest.mark.skipif(not INSTALLED["jax_cuda13_plugin"], reason="needs the GPU compiler: pip install 'plan_jax[cuda]'")
def test_a_step_compiles_for_gpus_that_are_not_here(tiny):
    (row,) = rows_of([parse_topology("h100:1x1x4")], ("step",), tiny, quick=True)
    assert row["fits"]
    assert row["flops"] > 0
    assert row["collective_bytes"]["all-reduce"] > 0
