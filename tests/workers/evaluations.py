"""One rank of all evaluations. usage: evaluations.py RUN PHOTOS OUT"""

import sys

from support import evaluation_runs

evaluation_runs.evaluate(*sys.argv[1:])
print("finished", flush=True)
