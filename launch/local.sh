#!/usr/bin/env bash
# Sets up everything; then runs a program as several ranks on this machine.
# usage: launch/local.sh RANKS PROGRAM [FLAG ...]
#   launch/local.sh 2 pretrain --flagfile=flags/pretrain/demo.cfg --workdir=runs/demo
#   launch/local.sh gpus pretrain ...      a rank for each GPU
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

usage() { sed -n '3,5s/^# //p' "${BASH_SOURCE[0]}" >&2; echo "local.sh: $*" >&2; exit 2; }

[ $# -ge 2 ] || usage "$# arguments came, expected the number of ranks and a program"
ranks=$1 program=$2
shift 2
[ "$ranks" != gpus ] || ranks=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || ranks=0
[[ $ranks =~ ^[1-9][0-9]*$ ]] || usage "$ranks ranks came, expected 1 or more, or gpus on a machine that has some"
[[ $program =~ ^[a-z_]+$ && -e $here/../moco_tf/$program.py ]] \
  || usage "the program '$program' came, expected one of moco_tf such as pretrain, lincls or knn"

. "$here/setup.sh"
exec "$venv/bin/horovodrun" -np "$ranks" "$python" -m "moco_tf.$program" "$@"
