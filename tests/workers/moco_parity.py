"""One rank that runs the steps of parity cases and compares. usage: moco_parity.py OUT_DIR CASE MODE [CASE MODE] ..."""

import pathlib
import sys

import numpy as np
from support import parity_cases

from moco_tf.training import collectives

out, *words = sys.argv[1:]
ranks = collectives.connect()
for name, mode in zip(words[::2], words[1::2]):
    case = parity_cases.load(name)
    batch = int(case["batch_per_rank"])
    rows = slice(ranks.rank * batch, (ranks.rank + 1) * batch)
    method = parity_cases.method(case, ranks, mode)
    trace = parity_cases.run(method, case, mode, case["losses"][ranks.rank], rows, loss="rank_loss")
    tolerance = 1e-9 if mode == "float64" else 2e-4  # of the largest logit, as for a forward pass
    logits = case["first_logits"][ranks.rank]
    np.testing.assert_allclose(trace[0]["logits"][0], logits, atol=tolerance * np.abs(logits).max())
    parity_cases.check_state(method, case, mode, own_statistics=ranks.rank == 0)
    np.save(pathlib.Path(out) / f"{pathlib.Path(name).stem}-{mode}-{ranks.rank}.npy", method.queue.keys.numpy())
    print("equal on rank", ranks.rank, name, mode, flush=True)
