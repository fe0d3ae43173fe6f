"""A rank that dies, fails alone or stands still: every process of the job ends, with one clear cause, never a hang."""

import signal

import pytest
from jobs import Job
from test_programs import make_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.horovod
@pytest.mark.parametrize("victim", [0, 2])
def test_one_of_four_ranks_killed(victim, photos, tmp_path):
    """Everything is gone within 30 s, the exit status is not 0, the cause is printed once."""
    with Job(tmp_path, "-np", 4, data_dir=photos) as job:
        job.wait_for_step(2)
        job.send(("localhost", victim))
        status, out, left = job.end(timeout=30)
    assert not left
    assert status not in (0, None)
    assert out.count("The first process to do so was:") == 1
    assert out.count(f"Process name: {victim}\nExit code: 137") == 1
    assert out.count("moco_tf.pretrain: ") <= 1  # rank 0, where it is left


@pytest.mark.horovod
@pytest.mark.slow
def test_rank_that_stands_still(photos, tmp_path):
    """Its process answers no more, as when its machine hangs: Gloo's time limit ends the job."""
    limit = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "10"}
    with Job(tmp_path, "-np", 2, env=limit, data_dir=photos) as job:
        job.wait_for_step(2)
        job.send(("localhost", 1), signal.SIGSTOP)
        status, out, left = job.end(timeout=60)
    assert not left
    assert status not in (0, None)
    assert out.count("moco_tf.pretrain: another rank ended, hangs or cannot be reached") == 1
    assert "imed out" in out or "imeout" in out
