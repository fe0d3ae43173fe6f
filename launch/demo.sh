#!/usr/bin/env bash
# Sets up everything; then two Horovod ranks pre-train MoCo on Fashion-MNIST, and kNN and a linear probe compare the
# features with those of the untrained encoder and with raw pixels. usage: launch/demo.sh [RUN_FOLDER]
# The same command again goes on where a stopped one was.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
workdir=$(realpath -m "${1:-$root/runs/demo}")
[ -d /usr/share/datasets/fashion-mnist ] || apt dataset-fashion-mnist || true
cd "$root"
began=$(date +%s)

"$venv/bin/horovodrun" -np 2 "$python" -m moco_tf.pretrain --flagfile=flags/pretrain/demo.cfg --workdir="$workdir"
for baseline in none untrained raw_pixels; do
  "$python" -m moco_tf.knn --load="$workdir" --flagfile=flags/knn/demo.cfg --baseline=$baseline
  "$python" -m moco_tf.lincls --load="$workdir" --flagfile=flags/lincls/demo.cfg --baseline=$baseline
done
"$python" -m moco_tf.report --workdir="$workdir" --bank_images=60000 --test_images=10000
"$python" -m moco_tf.table --workdir="$workdir"
echo "after set-up: $((($(date +%s) - began + 30) / 60)) minutes; the run folder is $workdir"
