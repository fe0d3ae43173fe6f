"""Elastic jobs: training goes on when a worker is killed or hangs, and when one joins.

Horovod leaves out the whole host of a worker that failed, so the two workers are on "hosts" of two names.
"""

import pytest
from support.jobs import Job, executable
from support.programs import losses, make_photos

HERE, THERE = "localhost", "127.0.0.1"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


class Cluster:
    """A host discovery script and what it prints."""

    def __init__(self, folder, *hosts):
        self._hosts = folder / "hosts.txt"
        self.offer(*hosts)
        script = executable(folder / "discover.sh", f"#!/bin/sh\ncat {self._hosts}\n")
        self.options = ["--host-discovery-script", script, "--network-interface", "lo"]

    def offer(self, *hosts):
        draft = self._hosts.with_suffix(".draft")
        draft.write_text("".join(f"{host}\n" for host in hosts))
        draft.replace(self._hosts)


@pytest.mark.horovod
@pytest.mark.system  # two minutes
def test_worker_dies_and_another_joins(photos, tmp_path):
    """Two workers; one is killed, the other goes on alone; a third joins; the run finishes with every step once."""
    cluster = Cluster(tmp_path, f"{HERE}:1", f"{THERE}:1")
    options = ["-np", 2, "--min-np", 1, "--max-np", 3, *cluster.options]
    with Job(tmp_path, *options, data_dir=photos, steps=150) as job:
        job.wait_for_step(3)
        job.kill((THERE, 0))
        job.wait_until(lambda: "elastic: 1 ranks now, 2 before" in job.output())
        job.wait_for_step(job.last_step() + 20)
        cluster.offer(f"{HERE}:2")
        job.wait_until(lambda: "elastic: 2 ranks now, 1 before" in job.output())
        status, out, left = job.end(timeout=300)
    assert (status, left) == (0, []), out[-5000:]
    assert out.count("done: 150 steps") == 1
    assert sorted(losses(job.workdir)) == list(range(1, 151))


@pytest.mark.horovod
@pytest.mark.system
def test_worker_that_hangs(photos, tmp_path):
    """Its hang timer ends it, and the other finishes the run alone."""
    cluster = Cluster(tmp_path, f"{HERE}:1", f"{THERE}:1")
    options = ["-np", 2, "--min-np", 1, "--max-np", 2, *cluster.options]
    with Job(tmp_path, *options, worker="hanging", data_dir=photos, steps=20, step_timeout=5) as job:
        status, out, left = job.end(timeout=300)
    assert (status, left) == (0, []), out[-5000:]
    cause = "hangs: waiting for the images of step 3 has taken 5 s; it ends, see --step_timeout; the other ranks go on"
    assert out.count(cause) == 1
    assert out.count("elastic: 1 ranks now, 2 before") == 1
    assert sorted(losses(job.workdir)) == list(range(1, 21))
