"""The debug recipe of any method on Fashion-MNIST: pre-train, resume, probe; on as many ranks as there are."""

from moco_tf.training import collectives
from support.programs import call

# 500 of the training images are the test images: computing features of 10,000 would take longer than all the rest.
DATA = {"dataset": "fashion_mnist", "holdout": 500, "precision": "float32"}
SHORT = {"batch_size": 32, "queue_size": 128, "log_every": 1, "knn_every": 0, "jit_compile": "false", **DATA}
STATEFUL = ("moco", "npid")  # what is resumed on several ranks: a queue, and a bank that ranks share out
PROBED = ("moco", "supervised")  # with a head to be left off, and with a classifier; the others' encoders are moco's


def run(name, workdir, calls=(2, 4)):
    """Pre-trains so many steps in each call, with a checkpoint; PROBED: and four steps of a linear probe of it."""
    for steps in calls:
        call("pretrain", "debug/pretrain.cfg", method=name, workdir=workdir, steps=steps, **SHORT)
    if name in PROBED:
        collectives.connect().barrier()  # rank 0 may still be writing the checkpoint
        call("lincls", "debug/lincls.cfg", load=workdir, steps=4, batch_size=32, jit_compile="false", **DATA)
