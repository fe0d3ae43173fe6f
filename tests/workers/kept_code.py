"""Starts that keep compiled code, each in a process of its own (forked: TensorFlow is imported once): kept_code.py DIR.

Prints a JSON list: of each start its result, the pieces it loaded and compiled, and what it says.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys

import tensorflow as tf

from moco_tf.training import compiled, launcher

ROOT = pathlib.Path(sys.argv[1])
os.environ["XDG_CACHE_HOME"], os.environ["PATH"] = str(ROOT), f"{ROOT}:{os.environ['PATH']}"
smi = ROOT / "nvidia-smi"
smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB'\n")
smi.chmod(0o755)
compiled._DEVICE = "CPU"


def first_step():
    """The sum of 2 x + 1 for x = 0 to 4: 25."""
    step = tf.function(lambda x: tf.reduce_sum(tf.sort(2 * x + 1)), jit_compile=True)
    return float(step(tf.range(5.0)))


def start(before=0, ends=None, deterministic=False):
    """What a start says, which traces other functions before; in the first step it gets the signal `ends`."""
    said: list[str] = []
    launcher.note = said.append
    compiled.start(deterministic)
    for _ in range(1 + before):  # what a program does before its first step
        tf.function(lambda x: x + 1)(tf.constant(1))
    result = 0.0
    try:
        with compiled.first_use():
            if ends:
                os.kill(os.getpid(), ends)
            result = first_step()
    except compiled.UnusableCode as error:
        said.append(str(error))
    code = compiled.state.code
    counts = [len(code.loaded), code.compiled] if code else None
    return [result, counts, said, compiled.said(), compiled.state.folder.name, os.environ["XLA_FLAGS"]]


def forked(**how):
    """`start` in a new process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        text = os.fdopen(read).read()
        os.waitpid(pid, 0)
        return json.loads(text) if text else None
    text = json.dumps(start(**how))
    os.write(write, text.encode())
    os._exit(0)


def kept():
    (file,) = ROOT.glob("moco_tf/xla/*/code/*.pb")
    return file


def damage(right_name):
    """Shortens the kept file; with a checksum that is right, as if XLA had written it so."""
    data = kept().read_bytes()[:1000]
    path = kept()
    path.write_bytes(data)
    if right_name:
        path.rename(path.with_name(f"{hashlib.sha256(data).hexdigest()}-{path.name.partition('-')[2]}"))


found = [forked(), forked(before=3)]
damage(right_name=False)
found += [forked(), forked()]
damage(right_name=True)
found += [forked(), forked(), forked(ends=signal.SIGKILL), forked(), forked(ends=signal.SIGABRT), forked()]
found.append(forked(deterministic=True))
print(json.dumps(found))
