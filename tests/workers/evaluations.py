"""One rank of all evaluations. usage: evaluations.py RUN PHOTOS OUT"""

import sys

import evaluation_runs

from moco_tf.training import device

device.configure = lambda *_: None  # it would be called again by the next program
evaluation_runs.evaluate(*sys.argv[1:])
print("finished", flush=True)
