"""A Slurm of one machine: munged, slurmctld and slurmd in the foreground, with their own settings in one folder."""

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import time

SETTINGS = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=5,requeue_delay=1
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
"""


class Slurm:
    """The running cluster: its commands see it and no other."""

    def __init__(self, folder):
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._folder = folder

    def __call__(self, *command):
        """Runs one of Slurm's commands; returns what it printed."""
        done = subprocess.run(list(map(str, command)), env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def submit(self, *arguments, cwd, env):
        """sbatch; returns the job's number."""
        settings = {**self.env, **env}
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)], cwd=cwd, env=settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def field(self, job, name):
        """A field of a job, such as JobState, Restarts, ExitCode."""
        return re.search(rf"\b{name}=(\S*)", self("scontrol", "show", "job", job)).group(1)

    def wait(self, job, condition, timeout, output):
        """Returns once the condition holds."""
        began = time.monotonic()
        while not condition():
            told = output.read_text()[-6000:] if output.exists() else "nothing printed"
            state = self.field(job, "JobState")
            assert time.monotonic() - began < timeout, f"job {state}\n{told}\n{self.logs()}"
            time.sleep(0.3)

    def logs(self):
        return "".join(path.read_text()[-3000:] for path in self._folder.glob("*.log"))


@contextlib.contextmanager
def cluster(folder):
    """Starts the daemons, yields the Slurm, ends them and what they started."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir()
    ports = {"controller": free_port(), "node": free_port()}
    settings = SETTINGS.format(host=host, folder=folder, cores=os.cpu_count(), **ports)
    (folder / "slurm.conf").write_text(settings)
    (folder / "cgroup.conf").write_text("")
    slurm = Slurm(folder)
    with contextlib.ExitStack() as undo:
        start(undo, munge(folder), folder / "munged.log")
        wait_for(lambda: (folder / "munge" / "socket").exists(), "munged")
        start(undo, ["slurmctld", "-D", "-c", "-f", folder / "slurm.conf"], folder / "slurmctld.out.log", slurm.env)
        start(undo, ["slurmd", "-D", "-N", host, "-f", folder / "slurm.conf"], folder / "slurmd.out.log", slurm.env)
        wait_for(lambda: idle(slurm.env), slurm.logs)
        undo.callback(cancel_all, slurm)
        yield slurm


def munge(folder):
    """munged's command line, with a key of its own. It wants folders that nobody else can write to."""
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    places = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge/{name}" for option, name in places.items()]
    return ["munged", "--foreground", "--force", f"--key-file={folder}/munge/key", *options]


def start(undo, command, log, env=None):
    """Starts a daemon that ends with the stack."""
    with open(log, "w") as output:
        daemon = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=env)

    def end():
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    undo.callback(end)


def cancel_all(slurm):
    """Ends what jobs are left, and waits until their processes are gone."""
    slurm("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
    wait_for(lambda: not slurm("squeue", "--noheader").strip(), slurm.logs, timeout=60)


def idle(env):
    done = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=env, capture_output=True, text=True)
    return done.stdout.strip() == "idle"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what, timeout=30):
    """Returns once the condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"waited in vain: {what() if callable(what) else what}"
        time.sleep(0.2)


def socket_folder():
    """A short path: a socket's may have 107 characters."""
    folder = pathlib.Path(f"/tmp/moco-slurm-{os.getpid()}")
    folder.mkdir(mode=0o755)
    return folder, lambda: shutil.rmtree(folder, ignore_errors=True)
