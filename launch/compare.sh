#!/usr/bin/env bash
# Sets up everything; then pre-trains every method of the family on Fashion-MNIST, with one small network and about the
# same time each, two Horovod ranks, and prints kNN and linear accuracy beside the untrained encoder's and raw pixels'.
# About an hour on two cores. usage: launch/compare.sh [FOLDER]
# The same command again goes on where a stopped one was.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
workdir=$(realpath -m "${1:-$root/runs/compare}")
methods=(moco moco_symmetric moco_v3 simclr npid supcon_in supcon_out supcon_suploss supervised)
[ -d /usr/share/datasets/fashion-mnist ] || apt dataset-fashion-mnist || true
cd "$root"

evaluate() { # RUN_FOLDER BASELINE: skips what has a result
  local suffix=""
  [ "$2" = none ] || suffix=_$2
  for program in knn lincls; do
    [ -e "$1/$program$suffix/result.json" ] \
      || "$python" -m "moco_tf.$program" --load="$1" --flagfile="flags/$program/demo.cfg" --baseline="$2"
  done
}

for method in "${methods[@]}"; do
  run=$workdir/$method
  if [ ! -e "$run/lincls/result.json" ]; then
    began=$(date +%s)
    "$venv/bin/horovodrun" -np 2 "$python" -m moco_tf.pretrain \
      --flagfile="flags/pretrain/fashion_mnist_$method.cfg" --workdir="$run"
    echo "$method: pre-trained in $(($(date +%s) - began)) s" | tee -a "$workdir/times.txt"
  fi
  evaluate "$run" none
done
for baseline in untrained raw_pixels; do evaluate "$workdir/moco" "$baseline"; done
"$python" -m moco_tf.table --workdir="$(IFS=,; echo "${methods[*]/#/$workdir/}")"
