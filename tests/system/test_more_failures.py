"""The rest of test_rank_failure.py, which takes long."""

import signal

import pytest
from support.jobs import Job, ended
from support.programs import make_photos
from support.ranks import TESTS

pytestmark = [pytest.mark.system, pytest.mark.horovod]


def test_first_rank_killed(tmp_path):
    with Job(tmp_path, "-np", 2, data_dir=make_photos(tmp_path / "photos")) as job:
        job.wait_for_step(2)
        job.kill(("localhost", 0))
        out = ended(job)
    assert out.count("Process name: 0\nExit code: 137") == 1


def test_rank_that_stands_still(tmp_path):
    """Its process answers no more, as when its machine hangs: Gloo's time limit ends the job."""
    limit = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "10"}
    with Job(tmp_path, "-np", 2, env=limit, data_dir=make_photos(tmp_path / "photos")) as job:
        job.wait_for_step(2)
        job.kill(("localhost", 1), signal.SIGSTOP)
        out = ended(job, timeout=60)
    assert out.count("moco_tf.pretrain: another rank ended, hangs or cannot be reached") == 1


@pytest.mark.parametrize(
    "failure, cause",
    [
        ("all_user", "moco_tf.failing: the data is not here; copy it"),
        ("late_user", "moco_tf.failing: the data is not here; copy it"),
        ("one_bug", "failed: ZeroDivisionError: a bug"),
    ],
)
def test_errors(failure, cause, tmp_path):
    """What both ranks meet is said once, also when rank 0 meets it later than the launcher's moment (late)."""
    with Job(tmp_path, "-np", 2, env={"FAILURE": failure}, command=[TESTS / "workers/failing.py"]) as job:
        out = ended(job, timeout=60)
    assert out.count(cause) == 1, out
    assert "user" not in failure or out.count("moco_tf.failing: ") == 1, out
