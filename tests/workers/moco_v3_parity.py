"""One rank that runs the steps of MoCo v3's cases and compares. usage: moco_v3_parity.py CASE MODE [CASE MODE] ..."""

import sys

from support import parity_cases_v3

from moco_tf.training import collectives

ranks = collectives.connect()
for name, mode in zip(sys.argv[1::2], sys.argv[2::2]):
    case = parity_cases_v3.load(name)
    batch = int(case["batch_per_rank"])
    method = parity_cases_v3.method(case, ranks, mode)
    parity_cases_v3.run(method, case, mode, slice(ranks.rank * batch, (ranks.rank + 1) * batch))
    print("equal on rank", ranks.rank, name, mode, flush=True)
