"""One rank of a parity case: runs its steps and saves what it saw. usage: moco_parity.py CASE MODE OUT_DIR"""

import pathlib
import sys

import numpy as np
import parity_cases

from moco_tf.training import collectives

name, mode, out = sys.argv[1:]
ranks = collectives.connect()
case = parity_cases.load(name)
method = parity_cases.method(case, ranks, jit_compile="all" if mode == "compiled" else "none", bn_splits=1)
batch = int(case["batch"]) // ranks.size
rows = slice(ranks.rank * batch, (ranks.rank + 1) * batch)
losses = [step["loss"] for step in parity_cases.run(method, case, eager=mode == "eager", rows=rows)]
np.savez(pathlib.Path(out) / f"queue-{ranks.rank}.npz", queue=method.queue.keys.numpy(), losses=losses)
if ranks.rank == 0:
    parity_cases.check(method, case, losses)
