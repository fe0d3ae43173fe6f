#!/usr/bin/env bash
# Sets up everything; then pre-trains every method of the family on Fashion-MNIST, with one small network and about the
# same time each, two Horovod ranks, prints kNN and linear accuracy beside the untrained encoder's and raw pixels', and
# says which differences are real. On two cores about an hour and a half for each seed; --small pre-trains for a third of
# the recipes' epochs, 40 minutes for each seed.
# usage: launch/compare.sh [--seeds=N] [--small] [FOLDER]
# The same command again goes on where a stopped one was; more seeds go on with what is there.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
seeds=1 small= folder=$root/runs/compare
for word in "$@"; do
  case $word in
    --seeds=[1-9] | --seeds=[1-9][0-9]) seeds=${word#*=} ;;
    --small) small=yes folder=${folder}_small ;;
    -*) fail "$word came, expected --seeds=N with N from 1 to 99, --small, or a folder" ;;
  esac
done
for word in "$@"; do [[ $word = -* ]] || folder=$word; done
workdir=$(realpath -m "$folder")
methods=(moco moco_symmetric moco_v3 simclr npid supcon_in supcon_out supcon_suploss supervised)
[ -d /usr/share/datasets/fashion-mnist ] || apt dataset-fashion-mnist || true
cd "$root"

evaluate() { # RUN_FOLDER BASELINE: skips what is there
  local suffix=""
  [ "$2" = none ] || suffix=_$2
  for program in knn lincls; do
    [ -e "$1/$program$suffix/predictions.npz" ] \
      || "$python" -m "moco_tf.$program" --load="$1" --flagfile="flags/$program/demo.cfg" --baseline="$2"
  done
}

runs=()
for ((seed = 0; seed < seeds; seed++)); do
  for method in "${methods[@]}"; do
    run=$workdir/$method
    [ "$seed" = 0 ] || run+=-$seed
    if [ ! -e "$run/lincls/result.json" ]; then
      recipe=flags/pretrain/fashion_mnist_$method.cfg
      epochs=$(sed -n 's/^--epochs=//p' "$recipe")
      [ -z "$small" ] || epochs=$(((epochs + 1) / 3))
      began=$(date +%s)
      "$venv/bin/horovodrun" -np 2 "$python" -m moco_tf.pretrain --flagfile="$recipe" --epochs="$epochs" \
        --seed="$seed" --workdir="$run"
      echo "$(basename "$run"): pre-trained in $(($(date +%s) - began)) s" | tee -a "$workdir/times.txt"
    fi
    evaluate "$run" none
    runs+=("$run")
  done
done
for baseline in untrained raw_pixels; do evaluate "$workdir/moco" "$baseline"; done
"$python" -m moco_tf.table --workdir="$(IFS=,; echo "${runs[*]}")"
"$python" -m moco_tf.compare "${runs[@]}"
