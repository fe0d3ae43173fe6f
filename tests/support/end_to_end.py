"""The debug recipe of any method on Fashion-MNIST: pre-train, resume, probe; on as many ranks as there are."""

from moco_tf.training import collectives
from support import method_cases
from support.programs import call

# 500 of the training images are the test images: computing features of 10,000 would take longer than all the rest.
DATA = {"dataset": "fashion_mnist", "holdout": 500, "precision": "float32"}
SHORT = {"batch_size": 32, "queue_size": 128, "log_every": 1, "knn_every": 0, "jit_compile": "false", **DATA}
# For the recorded numbers of golden_losses.py. Rounding moves activations across zero, and from there float32 runs
# part, the faster the larger the steps: they are small. The usual weight decay would be lost in that, too.
SHORT |= {"learning_rate": 3e-4, "weight_decay": 0.01, "checkpoint_steps": 5}
CASES = {name: {"method": name} for name in method_cases.METHODS}
CASES |= {"moco_symmetric": {"method": "moco", "symmetric": "true"}}
STATEFUL = ("moco", "npid")  # what is resumed: a queue, and a bank that ranks share out
PROBED = ("moco", "supervised")  # with a head to be left off, and with a classifier; the others' encoders are moco's


def flags(case, steps=10):
    return {**CASES[case], "steps": steps, **SHORT}


def run(case, workdir):
    """Pre-trains ten steps, with checkpoints at 5 and 10, STATEFUL in two calls; PROBED: and four steps of a probe."""
    for steps in (5, 10) if case in STATEFUL else (10,):
        call("pretrain", "debug/pretrain.cfg", workdir=workdir, **flags(case, steps))
    if case in PROBED:
        collectives.connect().barrier()  # rank 0 may still be writing the checkpoint
        call("lincls", "debug/lincls.cfg", load=workdir, steps=4, batch_size=32, jit_compile="false", **DATA)
