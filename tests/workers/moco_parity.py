"""One rank of a parity case: runs its steps and compares. usage: moco_parity.py CASE MODE OUT_DIR"""

import pathlib
import sys

import numpy as np
import parity_cases

from moco_tf.training import collectives

name, mode, out = sys.argv[1:]
ranks = collectives.connect()
case = parity_cases.load(name)
method = parity_cases.method(case, ranks, mode)
batch = int(case["batch_per_rank"])
rows = slice(ranks.rank * batch, (ranks.rank + 1) * batch)
trace = parity_cases.run(method, case, eager=mode == "eager", rows=rows)
parity_cases.check_losses([step["rank_loss"] for step in trace], case["losses"][ranks.rank], mode)
np.testing.assert_allclose(trace[0]["logits"][0], case["first_logits"][ranks.rank], atol=2e-3)
if ranks.rank == 0:
    parity_cases.check_state(method, case, mode)
np.save(pathlib.Path(out) / f"queue-{ranks.rank}.npy", method.queue.keys.numpy())
print("equal on rank", ranks.rank)
