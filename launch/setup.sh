# Sourced by the scripts of launch/: makes .venv at the project's root with moco_tf, its dev tools and Horovod in it.
# PYTHON names another interpreter; MOCO_TF_NO_HOROVOD=1 leaves Horovod out (one process only).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python

fail() { echo "launch: $*" >&2; exit 1; }

# Runs apt-get where that needs no password; says nothing and fails elsewhere.
apt() {
  command -v apt-get >/dev/null || return 1
  local as=()
  if [ "$(id -u)" -ne 0 ]; then sudo -n true 2>/dev/null || return 1; as=(sudo -n); fi
  "${as[@]}" apt-get update -qq >/dev/null 2>&1 || true
  DEBIAN_FRONTEND=noninteractive "${as[@]}" apt-get install -y -qq "$@" >/dev/null 2>&1
}

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$name"; return
    fi
  done
  return 1
}

make_environment() {
  local base
  base=$(find_python) || { apt python3 python3-venv && base=$(find_python); } \
    || fail "no Python 3.10 to 3.13 found; install one (apt-get install python3 python3-venv) or name it: PYTHON=..."
  if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    apt python3-venv || fail "$base cannot make environments; install python3-venv"
  fi
  echo "launch: making $venv with $("$base" --version)"
  "$base" -m venv "$venv"
}

# The tools that Horovod's build needs, where apt may install them; horovod.sh names what is missing elsewhere.
build_tools() {
  local headers
  headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  if ! command -v g++ >/dev/null || ! command -v make >/dev/null || [ ! -e "$headers/Python.h" ]; then
    apt g++ make python3-dev || true
  fi
}

[ -x "$python" ] || make_environment
stamp=$venv/.installed-$(cat "$root/setup.py" | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  echo "launch: installing moco_tf and what it needs into $venv (2 to 5 minutes the first time)"
  "$python" -m pip install -q --disable-pip-version-check -e "$root[dev]" \
    || fail "pip could not install the packages of setup.py; see above"
  touch "$stamp"
fi
if [ "${MOCO_TF_NO_HOROVOD:-0}" != 1 ] && ! ls "$venv"/.horovod-* >/dev/null 2>&1; then
  build_tools
fi
[ "${MOCO_TF_NO_HOROVOD:-0}" = 1 ] || "$root/launch/horovod.sh" "$python"
