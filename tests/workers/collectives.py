"""One rank that exchanges known numbers, shuffles in both forms and takes steps with SyncBN.

usage: collectives.py OUT_DIR [METHOD DTYPE] ...
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from benchmarks import exchanges
from support import collective_cases as cases
from support import method_cases

from moco_tf.contrast import shuffle_bn
from moco_tf.training.collectives import connect
from moco_tf.training.update import compressed_mean

out, *wanted = sys.argv[1:]
ranks = connect()
found = {}
means = tf.function(compressed_mean)(ranks, [tf.constant(x) for x in cases.gradients(ranks.rank)], "float16")
found |= {f"float16 {i}": mean.numpy() for i, mean in enumerate(means)}

permutation = shuffle_bn.draw_permutation([3, 5], cases.BATCH, ranks.size)
for name, form in (("alltoall", shuffle_bn.shuffle), ("allgather", exchanges.shuffle_by_allgather)):
    keys = tf.function(cases.keys)(form, tf.constant(cases.images(ranks.rank)), permutation, ranks)
    found |= {f"{name} {what}": value.numpy() for what, value in zip(("own", "all"), keys)}
np.savez(pathlib.Path(out) / f"rank{ranks.rank}.npz", **found)

for name, dtype in zip(wanted[::2], wanted[1::2]):
    method = method_cases.build(name, ranks, dtype=dtype, bn="sync")
    trace = method_cases.run(method, ranks, steps=range(cases.STEPS[dtype]))
    np.savez(pathlib.Path(out) / f"{name}-{dtype}-{ranks.rank}.npz", **trace, **method_cases.arrays(method))
print("finished on rank", ranks.rank, flush=True)
