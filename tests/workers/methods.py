"""One rank that takes steps of every method named. usage: methods.py OUT_DIR METHOD ..."""

import pathlib
import sys

import numpy as np
from support import method_cases

from moco_tf.training import collectives

out, *names = sys.argv[1:]
ranks = collectives.connect()
for name in names:
    method = method_cases.build(name, ranks)
    trace = method_cases.run(method, ranks)
    np.savez(pathlib.Path(out) / f"{name}-{ranks.rank}.npz", **trace, **method_cases.arrays(method))
    print("finished", name, "on rank", ranks.rank, flush=True)
