"""Many devices compute what one does, in both ways of exchanging reports, also over two processes."""

import dataclasses
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_alignment import ragged

from plan_jax.alignment import sharded
from plan_jax.alignment.similarity import word_patch_similarity
from plan_jax.config import AlignmentConfig, Config, LossConfig
from plan_jax.errors import InputError
from plan_jax.losses import plan_loss

LENGTHS = [5, 1, 0, 7, 7, 3, 0, 2]  # of the reports of a batch of eight
EXCHANGES = ("gather", "ring")


def mesh_of(devices: int):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def batch_of(patches: int = 6, dim: int = 4) -> oracle.Arrays:
    return oracle.random_arrays(3, len(LENGTHS), ragged(LENGTHS, len(LENGTHS), 7), patches=patches, dim=dim)


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def loss_and_gradients(images, texts, config):
    def loss(images, word, word_logit):
        return plan_loss(images, texts.replace(word=word, word_logit=word_logit), config=config)[0]

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(images, texts.word, texts.word_logit)


def on_mesh(devices: int, arrays: oracle.Arrays, config: Config):
    """Loss and gradients with the batch spread over so many devices."""
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        features = jax.device_put(arrays.features(), NamedSharding(mesh, PartitionSpec("data")))
        return jax.tree.map(np.asarray, loss_and_gradients(*features, config))


def config_of(rounds: int, exchange: str, **fields) -> Config:
    return Config(alignment=AlignmentConfig(rounds=rounds, exchange=exchange, **fields), loss=LossConfig())


def assert_same(found, expected, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_four_devices_have_the_loss_and_the_gradients_of_one(rounds, exchange):
    arrays, config = batch_of(), config_of(rounds, exchange, importance=1.0, word_keep=0.5)
    expected = jax.tree.map(np.asarray, loss_and_gradients(*arrays.features(), config))
    assert_same(on_mesh(4, arrays, config), expected)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(expected[1]))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_any_number_of_devices_has_the_loss_and_the_gradients_of_one(devices, exchange):
    arrays, config = batch_of(), config_of(1, exchange)
    assert_same(on_mesh(devices, arrays, config), loss_and_gradients(*arrays.features(), config))


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("shape", [(6, 4), (3, 12)], ids=["feature form", "Gram form"])
def test_scores_are_rows_on_the_device_of_their_image(exchange, shape):
    arrays, config = batch_of(*shape), config_of(2, exchange).alignment
    mesh = mesh_of(4)
    with jax.set_mesh(mesh):
        features = jax.device_put(arrays.features(), NamedSharding(mesh, PartitionSpec("data")))
        z = word_patch_similarity(*features, config=config)
    assert z.sharding.spec == PartitionSpec("data")
    assert_same(z, oracle.word_patch_similarity(arrays, config))


@pytest.mark.parametrize("reports", [1, 3, 4])
def test_reports_gathered_in_tiles_have_the_loss_and_the_gradients_of_one_device(reports, monkeypatch):
    """Of a device's five reports one, three or four at a time: the last tile may be short."""
    lengths = [*LENGTHS, 4, 6]
    arrays = oracle.random_arrays(3, 10, ragged(lengths, 10, 7), patches=6, dim=4)
    config = config_of(1, "gather", evidence=0.5 + 0.01 * reports)  # compiled anew for every size of tile
    monkeypatch.setattr(sharded, "TILE_BYTES", reports * 2 * 4 * 7 * 4 + 3)
    assert_same(on_mesh(2, arrays, config), loss_and_gradients(*arrays.features(), config))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_fused_kernel_over_four_devices_has_the_loss_and_the_gradients_of_one(exchange):
    arrays, plain = batch_of(), config_of(2, exchange)
    fused = config_of(2, exchange, implementation="pallas")  # interpreted
    assert_same(on_mesh(4, arrays, fused), loss_and_gradients(*arrays.features(), plain))


def test_the_batch_is_spread_over_both_axes_of_a_mesh_that_has_them():
    arrays, config = batch_of(), config_of(1, "ring")
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        features = jax.device_put(arrays.features(), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        found = loss_and_gradients(*features, config)
    assert_same(found, loss_and_gradients(*arrays.features(), config))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_words_that_travel_in_bfloat16_change_the_loss_by_a_hundredth(exchange):
    arrays, config = batch_of(), config_of(1, exchange, dtype="bfloat16")
    exact = dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, dtype="float32"))
    found, expected = on_mesh(4, arrays, config), loss_and_gradients(*arrays.features(), exact)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-2)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(found))


def test_a_batch_that_does_not_divide_among_the_devices_is_refused():
    images, texts = batch_of().features()
    with (
        jax.set_mesh(mesh_of(4)),
        pytest.raises(InputError, match=r"images must be a multiple of the 4 devices.*got 6"),
    ):
        word_patch_similarity(images.replace(patch=images.patch[:6]), texts, config=AlignmentConfig())


def test_a_ring_sends_reports_on_and_never_gathers_them():
    features = batch_of().features()
    with jax.set_mesh(mesh_of(4)):
        text = {
            exchange: jax.jit(functools.partial(word_patch_similarity, config=AlignmentConfig(exchange=exchange)))
            .lower(*features)
            .as_text()
            for exchange in EXCHANGES
        }
    assert ("all_gather" in text["gather"], "collective_permute" in text["gather"]) == (True, False)
    assert ("all_gather" in text["ring"], "collective_permute" in text["ring"]) == (False, True)


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import test_sharded as same

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rows, arrays = NamedSharding(mesh, PartitionSpec("data")), same.batch_of()
local = arrays.features()
for exchange in same.EXCHANGES:
    config = same.config_of(2, exchange)
    expected = same.loss_and_gradients(*local, config)  # on this process's first device alone
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, rows, lambda i: np.asarray(x)[i]), local)
        loss, gradients = same.loss_and_gradients(*spread, config)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    for found, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[1]), strict=True):
        for shard in found.addressable_shards:
            np.testing.assert_allclose(shard.data, np.asarray(other)[shard.index], rtol=1e-5, atol=1e-5)
print("the same as one device")
"""


def test_two_processes_of_two_devices_have_the_loss_and_the_gradients_of_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "the same as one device" in output


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_no_device_ever_holds_the_scores_of_all_pairs(exchange):
    """In the compiled gradient of the loss: what is gathered or reduced is features and sums over rows, never [B B]."""
    pairs = 64
    arrays = oracle.random_arrays(0, pairs, np.ones((pairs, 2), bool), patches=3, dim=2)
    mesh = mesh_of(4)
    with jax.set_mesh(mesh):
        features = jax.device_put(arrays.features(), NamedSharding(mesh, PartitionSpec("data")))
        text = loss_and_gradients.lower(*features, config_of(1, exchange)).compile().as_text()
    assert f"[{pairs // 4},{pairs}]" in text  # a device's rows
    assert f"[{pairs},{pairs}]" not in text
