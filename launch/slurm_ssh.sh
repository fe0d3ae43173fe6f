#!/usr/bin/env bash
# Stands in for ssh within a Slurm job: runs a command on another of its nodes as a step of the job, so that no keys are
# needed and Slurm accounts for, signals and ends what runs there. usage: slurm_ssh.sh [-o X] [-p X] [-i X] HOST COMMAND
set -euo pipefail
while [[ ${1:-} == -* ]]; do
  case $1 in
    -o|-p|-i) shift 2 ;;
    *) echo "slurm_ssh.sh: the option $1 came, expected -o, -p or -i as horovodrun gives them" >&2; exit 2 ;;
  esac
done
[ $# -ge 2 ] || { echo "slurm_ssh.sh: expected a host and a command" >&2; exit 2; }
host=$1
shift
# horovodrun puts -p and -i behind the host.
while [[ ${1:-} == -o || ${1:-} == -p || ${1:-} == -i ]]; do shift 2; done
exec srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" --cpu-bind=none --nodelist="$host" \
  bash -c "$*"
