"""A rank that dies or fails alone: every process of the job ends, with one clear cause."""

import pytest
from support.jobs import Job, ended
from support.programs import make_photos
from support.ranks import TESTS

pytestmark = pytest.mark.horovod


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.system)])
def test_last_rank_killed(ranks, tmp_path):
    """Everything is gone within 30 s, the exit status is not 0, the cause is printed once."""
    with Job(tmp_path, "-np", ranks, data_dir=make_photos(tmp_path / "photos")) as job:
        job.wait_for_step(2)
        job.kill(("localhost", ranks - 1))
        out = ended(job)
    assert out.count(f"The first process to do so was:\nProcess name: {ranks - 1}\nExit code: 137") == 1
    assert out.count("moco_tf.pretrain: ") <= 1  # rank 0's line, if it came to that before the launcher ended it


def test_one_of_two_ranks_fails_alone(tmp_path):
    """Another machine's data folder is missing: the rank says so itself, although it is not rank 0."""
    with Job(tmp_path, "-np", 2, env={"FAILURE": "one_user"}, command=[TESTS / "workers/failing.py"]) as job:
        out = ended(job, timeout=90)
    assert out.count("moco_tf.failing: rank 1 on ") == 1, out
    assert out.count("the data is not here; copy it") == 1


def test_one_of_two_ranks_hangs(tmp_path):
    """It reads for ever: its hang timer says so and ends it; the other rank and the launcher end too."""
    folder = {"data_dir": make_photos(tmp_path / "photos"), "step_timeout": 3}
    with Job(tmp_path, "-np", 2, worker="hanging", **folder) as job:
        job.wait_for_step(2)
        out = ended(job)
    cause = "hangs: waiting for the images of step 3 has taken 3 s; it ends, see --step_timeout; the same command"
    assert out.count("moco_tf.pretrain: rank 1 on ") == out.count(cause) == 1, out
    assert out.count(": rank ") == 1, out  # no other rank says that it hangs or fails
    assert "The first process to do so was:\nProcess name: 1\nExit code: 1\n" in out
