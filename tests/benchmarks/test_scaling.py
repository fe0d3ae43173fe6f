"""The model of scaling against sums done by hand, and the published runs on V100 that docs/scaling.md compares with."""

import math

import pytest

from moco_tf.benchmark import scaling

GIVEN = {"alltoall": {"calls": 1, "bytes": 4_800_000}, "allreduce": {"calls": 1, "bytes": 100_000_000}}


def test_one_rank_exchanges_nothing():
    cluster = scaling.Cluster()
    assert cluster.exchange_seconds(GIVEN, 1) == 0
    (row,) = scaling.predict(0.2, GIVEN, 32, [1], cluster)
    expected = {"ranks": 1, "step_ms": 200, "exchange_ms": 0, "images_per_second": 160, "efficiency": 1}
    assert row == pytest.approx(expected)


def test_inside_a_host():
    """Seven eighths of the images, 14 eighths of the gradients, at 400 Gbit/s, and two exchanges of 1 ms."""
    cluster = scaling.Cluster(ranks_per_host=8, local_gbps=400, link_gbps=100, exchange_ms=1)
    seconds = 8 * (4_800_000 * 7 / 8 + 100_000_000 * 14 / 8) / 400e9 + 2e-3
    assert cluster.exchange_seconds(GIVEN, 8) == pytest.approx(seconds)


def test_between_hosts():
    """Of 16 ranks on two hosts half of each rank's images leave its host, by one link for eight; a ring leaves once."""
    cluster = scaling.Cluster(ranks_per_host=8, local_gbps=400, link_gbps=100, exchange_ms=0)
    assert cluster.link_seconds("alltoall", 4_800_000, 16) == pytest.approx(8 * 4_800_000 / 2 * 8 / 100e9)
    assert cluster.link_seconds("allreduce", 100_000_000, 16) == pytest.approx(8 * 100_000_000 * 2 * 15 / 16 / 100e9)
    assert cluster.link_seconds("allgather", 16_384, 16) == pytest.approx(8 * 16_384 * 15 / 100e9)
    slow_inside = scaling.Cluster(ranks_per_host=8, local_gbps=10, link_gbps=100, exchange_ms=0)
    assert slow_inside.link_seconds("allreduce", 1000, 16) == pytest.approx(8 * 1000 * 2 * 15 / 16 / 10e9, rel=1e-3)


def test_ranks_share_cores():
    cluster = scaling.Cluster(exchange_ms=0, cores=2, threads=1)
    assert [cluster.crowding(n) for n in (1, 2, 4, 8, 16)] == [1, 1, 2, 4, 4]
    assert scaling.Cluster().crowding(8) == 1
    assert scaling.predict(0.1, {}, 8, [4], cluster)[0]["efficiency"] == pytest.approx(0.5)


def test_what_was_measured_is_predicted_again():
    cluster = scaling.Cluster(cores=2, threads=1)
    for ranks in (1, 2, 8, 64):
        compute = scaling.compute_seconds(0.7, GIVEN, ranks, cluster)
        (row,) = scaling.predict(compute, GIVEN, 32, [ranks], cluster)
        assert row["step_ms"] == pytest.approx(700)
    assert scaling.compute_seconds(1e-4, GIVEN, 64, cluster) == 0, "a step shorter than its exchanges"


# A DGX-1 with eight V100: six NVLinks of 25 GB/s a GPU, of which NCCL's rings reach about 125 GB/s.
DGX = scaling.Cluster(ranks_per_host=8, local_gbps=1000, exchange_ms=1)


def test_resnet50_on_v100_scales_as_published():
    """NVIDIA's ResNet-50, float32, 128 images a GPU: 363.1 images/s on one, 2,857.9 on eight (PyTorch, 2018)."""
    (row,) = scaling.predict(128 / 363.1, {"allreduce": {"calls": 1, "bytes": 25_557_032 * 4}}, 128, [8], DGX)
    assert row["images_per_second"] == pytest.approx(2857.9, rel=0.015)


def test_moco_on_v100_is_shorter_than_the_published_53_hours():
    """The step alone takes 71 % of them: the rest is input, views and the published code, which the model has not.

    A MoCo step is 4 forward passes where NVIDIA's training step is 3, and of a batch of 32 a V100 does 1092.3 / 1215.6
    of the images that it does of one of 128 (the same source's inference).
    """
    compute = 32 / (363.1 * 3 / 4 * 1092.3 / 1215.6)
    given = {
        "alltoall": {"calls": 1, "bytes": 32 * 224 * 224 * 3},
        "allgather": {"calls": 1, "bytes": 32 * 128 * 4},
        "allreduce": {"calls": 1, "bytes": 4 * (23_508_032 + 2048 * 2048 + 2048 + 2048 * 128 + 128 + 5)},
    }
    (row,) = scaling.predict(compute, given, 32, [8], DGX)
    hours = 200 * math.floor(1_281_167 / 256) * row["step_ms"] / 3.6e6
    assert hours == pytest.approx(37.6, abs=0.1)
    assert hours / 53 == pytest.approx(0.71, abs=0.005)
