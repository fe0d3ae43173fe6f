"""launch/slurm.sbatch on a real Slurm: signalled before its time limit, requeued, cancelled, submitted again."""

import pathlib
import sys

import pytest
from slurm import cluster, socket_folder
from support.jobs import ENDLESS
from support.programs import arguments, losses, make_photos, metrics

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def slurm(as_root, needs):
    needs(**TOOLS)
    folder, remove = socket_folder()
    try:
        with cluster(folder) as running:
            yield running
    finally:
        remove()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


class Submission:
    """The sbatch file with two ranks and a tiny recipe, submitted."""

    def __init__(self, slurm, folder, photos, steps, launcher="horovodrun"):
        self.run, self.output, self._slurm = folder / "run", folder / "out.txt", slurm
        small = ["--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=20"]
        values = {**ENDLESS, "data_dir": photos, "workdir": self.run, "steps": steps, "checkpoint_steps": 20}
        env = {"MOCO_TF_PYTHON": sys.executable, "MOCO_TF_LAUNCHER": launcher, "PYTHONPATH": str(ROOT)}
        flags = arguments("debug/pretrain.cfg", **values)
        file = ["launch/slurm.sbatch", *flags]
        self.job = slurm.submit(*small, f"--output={self.output}", *file, cwd=ROOT, env={**env, "OMP_NUM_THREADS": "1"})

    def state(self):
        return self._slurm.field(self.job, "JobState")

    def wait(self, condition, timeout=300):
        self._slurm.wait(self.job, condition, timeout, self.output)

    def wait_for_step(self, step):
        self.wait(lambda: (self.run / "metrics.jsonl").exists() and self.last_step() >= step)

    def last_step(self):
        try:
            return max(line["step"] for line in metrics(self.run))
        except ValueError:  # no line, or one that is being written
            return 0


def test_requeued_before_the_time_limit(slurm, photos, tmp_path):
    """The signal of --signal=B:USR1: the job goes back into the queue and goes on; every step is taken once."""
    job = Submission(slurm, tmp_path, photos, steps=150)
    job.wait_for_step(25)
    slurm("scancel", "--batch", "--signal=USR1", job.job)  # what Slurm sends, without the wait for the limit
    job.wait(lambda: slurm.field(job.job, "Restarts") == "1")
    slurm("scontrol", "update", f"JobId={job.job}", "StartTime=now")  # Slurm lets a requeued job wait for two minutes
    job.wait(lambda: job.state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), timeout=400)
    out = job.output.read_text()
    assert job.state() == "COMPLETED", out[-6000:]
    assert out.count("slurm.sbatch: back into the queue") == 1
    assert out.count("resuming from") == 1
    assert out.count("done: 150 steps") == 1
    assert sorted(losses(job.run)) == list(range(1, 151))


def test_cancelled_and_submitted_again(slurm, photos, tmp_path):
    """scancel ends it, without requeueing; the same command goes on from the checkpoint."""
    job = Submission(slurm, tmp_path, photos, steps=100)
    job.wait_for_step(25)
    slurm("scancel", job.job)
    job.wait(lambda: job.state() == "CANCELLED")
    assert slurm.field(job.job, "Restarts") == "0"
    again = Submission(slurm, tmp_path, photos, steps=100)
    again.wait(lambda: again.state() in ("COMPLETED", "FAILED"))
    out = again.output.read_text()
    assert again.state() == "COMPLETED", out[-6000:]
    assert "resuming from" in out
    assert sorted(losses(again.run)) == list(range(1, 101))


def test_a_mistake_is_not_requeued(slurm, tmp_path):
    """A flag that is refused fails the job, with its line in the job's output."""
    job = Submission(slurm, tmp_path, tmp_path / "nothing", steps=1)
    job.wait(lambda: job.state() == "FAILED")
    assert "is not a folder" in job.output.read_text()
    assert slurm.field(job.job, "Restarts") == "0"


def test_another_node_through_srun(slurm, tmp_path):
    """The ssh that horovodrun finds in a job runs a command as a step on the node it names."""
    host = slurm("sinfo", "--noheader", "--format=%n").strip()
    shim = ROOT / "launch" / "slurm_ssh.sh"
    command = (
        f"{shim} -o A=b -o C=d {host} -o ConnectTimeout=9 'echo $((40 + 2)) on $SLURMD_NODENAME step $SLURM_STEP_ID'"
    )
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/bash\n{command}\n")
    out = tmp_path / "out.txt"
    job = slurm.submit("--wait", "--ntasks=1", f"--output={out}", script, cwd=tmp_path, env={})
    assert slurm.field(job, "JobState") == "COMPLETED", out.read_text()
    assert out.read_text().splitlines()[-1] == f"42 on {host} step 0"
