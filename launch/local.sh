#!/usr/bin/env bash
# Sets up everything; then runs a program as several ranks on this machine.
# usage: launch/local.sh RANKS PROGRAM [FLAG ...]
#   launch/local.sh 2 pretrain --flagfile=flags/pretrain/demo.cfg --workdir=runs/demo
#   launch/local.sh gpus pretrain ...      a rank for each GPU
# HOROVODRUN_OPTIONS holds more options of horovodrun, for example "--timeline-filename=time.json".
set -euo pipefail

usage() { sed -n '3,6s/^# //p' "${BASH_SOURCE[0]}" >&2; echo "local.sh: $*" >&2; exit 2; }

[ $# -ge 2 ] || usage "$# arguments came, expected the number of ranks and a program"
ranks=$1 program=$2
shift 2
[ "$ranks" != gpus ] || ranks=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
[[ $ranks =~ ^[1-9][0-9]*$ ]] || usage "$ranks ranks came, expected 1 or more, or gpus on a machine that has some"
[[ $program =~ ^[a-z_]+$ ]] || usage "the program '$program' came, expected a name such as pretrain, lincls or knn"

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ -e "$root/moco_tf/$program.py" ] || usage "there is no program moco_tf.$program; expected one such as pretrain, lincls or knn"
read -ra options <<<"${HOROVODRUN_OPTIONS:-}"
exec "$venv/bin/horovodrun" -np "$ranks" "${options[@]}" "$python" -m "moco_tf.$program" "$@"
