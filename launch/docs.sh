#!/usr/bin/env bash
# Builds the reference from the docstrings; open docs/reference/index.html. usage: launch/docs.sh [FOLDER]
# A warning is an error. Once .venv is there, no network is needed.
MOCO_TF_NO_HOROVOD=1
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
output=$(realpath -m "${1:-$root/docs/reference}")
cd "$root"
"$python" -W error:::pdoc.doc -m pdoc --docformat google --output-directory "$output" moco_tf
echo "the reference is $output/index.html"
