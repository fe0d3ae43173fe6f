#!/usr/bin/env bash
# Sets up everything and runs all tests. usage: launch/test.sh [--system] [PYTEST ARGUMENT ...]
# --system runs instead the demo with README.md's commands on its run (--system -k demo: half an hour), and the tests of
# the launchers, which want root on a Debian machine: a one-machine Slurm, two hosts in network namespaces, the Kubernetes
# manifest, elastic jobs, failures that take long to be noticed.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ -d /usr/share/datasets/fashion-mnist ] || apt dataset-fashion-mnist || true
command -v chromedriver >/dev/null || apt chromium chromium-driver || true  # for the tests of the report page
cd "$root"
if [ "${1:-}" = --system ]; then
  shift
  for tool in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge sshd:openssh-server ssh:openssh-client ip:iproute2; do
    PATH=$PATH:/usr/sbin command -v "${tool%:*}" >/dev/null || apt "${tool#*:}" || true # a test says what it lacks
  done
  export XLA_FLAGS=${XLA_FLAGS:-}  # here XLA's code is optimised as users have it, unlike in tests/conftest.py
  exec "$python" -m pytest -m system -rs "$@"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
"$venv/bin/lint-imports" --no-logo
# Two processes, each with whole files of tests, longest first (tests/conftest.py): most tests spend half of their time on
# one core.
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
