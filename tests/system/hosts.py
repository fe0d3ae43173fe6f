"""Two hosts on one machine: network namespaces with a virtual link between them, each with its own sshd."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time

HOSTS = {"host1": "10.213.7.1", "host2": "10.213.7.2"}
PREFIX = f"moco{os.getpid()}"


def space(host):
    """The name of a host's namespace."""
    return f"{PREFIX}-{host}"


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def within(host, *command):
    """A command line that runs a command on a host, which has its own name."""
    named = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]
    return ["ip", "netns", "exec", space(host), *named, *map(str, command)]


@contextlib.contextmanager
def linked():
    """Both namespaces, with each other's names in /etc/hosts. Raises CalledProcessError where that is not allowed."""
    with contextlib.ExitStack() as undo:
        for host in HOSTS:
            ip("netns", "add", space(host))
            undo.callback(subprocess.run, ["ip", "netns", "del", space(host)], check=False)
            names = pathlib.Path("/etc/netns") / space(host)
            names.mkdir(parents=True)
            undo.callback(shutil.rmtree, names)
            known = "".join(f"{address} {name}\n" for name, address in HOSTS.items())
            (names / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        ends = [f"v{os.getpid()}a", f"v{os.getpid()}b"]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for (host, address), end in zip(HOSTS.items(), ends):
            ip("link", "set", end, "netns", space(host), "name", "eth0")
            for command in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                ip("-n", space(host), *command)
            ip("-n", space(host), "link", "set", "lo", "up")
        yield
    with contextlib.suppress(OSError):
        pathlib.Path("/etc/netns").rmdir()


@contextlib.contextmanager
def sshd(folder):
    """An sshd on each host, which lets in the key that it yields, and no other."""
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    config = folder / "sshd_config"
    config.write_text(
        f"Port 22\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nPidFile none\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
    )
    daemons = []
    try:
        for host in HOSTS:
            command = within(host, shutil.which("sshd"), "-D", "-e", "-f", config)
            with open(folder / f"{host}.log", "w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_for(lambda: all("listening" in (folder / f"{host}.log").read_text() for host in HOSTS))
        yield folder / "key"
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()


def wait_for(condition, timeout=30):
    """Returns once the condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, "waited in vain"
        time.sleep(0.1)
