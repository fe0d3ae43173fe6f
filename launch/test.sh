#!/usr/bin/env bash
# Sets up everything and runs all tests. usage: launch/test.sh [PYTEST ARGUMENT ...]
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ -d /usr/share/datasets/fashion-mnist ] || apt dataset-fashion-mnist || true
command -v chromedriver >/dev/null || apt chromium chromium-driver || true  # for the tests of the report page
cd "$root"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
# Two processes, each with whole files of tests: half of the time of most tests is spent on one core.
exec "$python" -m pytest -n 2 --dist loadfile "$@"
