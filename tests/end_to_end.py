"""The debug recipe of any method on Fashion-MNIST: pre-train, resume, probe; on as many ranks as there are."""

from test_programs import call

# 500 of the training images are the test images: computing features of 10,000 would take longer than all the rest.
DATA = {"dataset": "fashion_mnist", "holdout": 500, "precision": "float32"}
SHORT = {"batch_size": 32, "queue_size": 128, "log_every": 1, "knn_every": 0, "jit_compile": "false", **DATA}


def run(name, workdir):
    """Two steps, a checkpoint, two more steps in a second call, and four steps of a linear probe of what came out."""
    for steps in (2, 4):
        call("pretrain", "debug/pretrain.cfg", method=name, workdir=workdir, steps=steps, **SHORT)
    call("lincls", "debug/lincls.cfg", load=workdir, steps=4, batch_size=32, jit_compile="false", **DATA)
