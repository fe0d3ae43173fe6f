#!/usr/bin/env bash
# Checks and measures moco_tf on this machine's GPU: a step after the other, most important first, each with a time limit.
# Needs a Python with TensorFlow; no Horovod, no network. Nothing is installed.
# usage: launch/gpu.sh [--list] [--only=STEP,...] [--minutes=N] [--torch=PYTHON] [--small] [--out=FOLDER]
#   PYTHON=python3 launch/gpu.sh --minutes=10      another Python than that of .venv
#   launch/gpu.sh --torch=/opt/torch/bin/python    PyTorch's step beside ours; started without PYTHONPATH, LD_LIBRARY_PATH
# FOLDER (default: runs/gpu) gets results.json and table.txt, written after every step, and steps/ with what each printed.
# The same command again goes on with what is missing. --small: tiny networks, less than five minutes on a CPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$root/.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python3
fi
export PYTHONPATH=$root:$root/tests:$root/tests/benchmarks${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" "$root/tests/benchmarks/gpu.py" "$@"
