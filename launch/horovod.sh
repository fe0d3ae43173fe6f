#!/usr/bin/env bash
# Builds Horovod 0.28.1 against the TensorFlow of a Python environment, keeps the wheel in the user's cache, installs it.
# usage: launch/horovod.sh [PYTHON]          PYTHON: the environment's interpreter (default: .venv/bin/python)
# MOCO_TF_HOROVOD=gpu builds with CUDA and NCCL (see BUILD.md); any other HOROVOD_* variable is handed to Horovod's build.
set -euo pipefail
version=0.28.1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${1:-$root/.venv/bin/python}
device=${MOCO_TF_HOROVOD:-cpu}
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/moco_tf/wheels

fail() { echo "horovod.sh: $*" >&2; exit 1; }

case $device in cpu|gpu) ;; *) fail "MOCO_TF_HOROVOD is '$device'; expected cpu or gpu" ;; esac
[ -x "$python" ] || fail "no Python at $python; run launch/test.sh or give the interpreter of an environment with TensorFlow"

# One import-free look at the environment: Python's tag, TensorFlow's version and headers, an installed Horovod.
read -r tag tf include installed < <("$python" - <<'PY'
import importlib.metadata as metadata, importlib.util as util, sys, sysconfig
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
spec = util.find_spec("tensorflow")
include = spec.submodule_search_locations[0] + "/include" if spec else "none"
print(f"cp{sys.version_info[0]}{sys.version_info[1]}", version("tensorflow"), include, version("horovod"))
PY
)
[ "$tf" != none ] || fail "TensorFlow is not installed in $python; run: $python -m pip install -e ."
key=horovod-$version-$tag-tf$tf-$(uname -m)-$device
stamp=$(dirname "$python")/../.$key
if [ "$installed" = "$version" ] && [ -e "$stamp" ]; then
  echo "horovod.sh: Horovod $version for TensorFlow $tf ($device) is installed"
  exit 0
fi

install_wheel() {
  "$python" -m pip install -q --force-reinstall --no-deps "$1"
  "$python" -m pip install -q "cloudpickle" "psutil" "pyyaml" "packaging"
  TF_CPP_MIN_LOG_LEVEL=3 "$python" -c "import horovod.tensorflow as hvd; hvd.init(); hvd.shutdown()" 2>"$cache/import.log"
}

wheel=$(ls "$cache/$key"/horovod-*.whl 2>/dev/null | head -n 1 || true)
if [ -n "$wheel" ]; then
  if install_wheel "$wheel"; then
    touch "$stamp"; echo "horovod.sh: installed the kept wheel $wheel"; exit 0
  fi
  echo "horovod.sh: the kept wheel $wheel does not load (see $cache/import.log); building again" >&2
  rm -rf "${cache:?}/$key"
fi

missing=()
for tool in g++ make tar; do command -v "$tool" >/dev/null || missing+=("$tool"); done
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ -e "$headers/Python.h" ] || missing+=("Python.h")
[ "$device" = cpu ] || command -v nvcc >/dev/null || missing+=("nvcc")
if [ ${#missing[@]} -gt 0 ]; then
  fail "missing to build Horovod: ${missing[*]} (Debian, Ubuntu: apt-get install g++ make tar python3-dev; nvcc comes with CUDA's toolkit)"
fi

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$cache"
log=$cache/$key.log
echo "horovod.sh: building Horovod $version for TensorFlow $tf ($device), one to four minutes on two cores; log: $log"
# Horovod's build wants pkg_resources and a CMake that still reads its old CMake files; neither belongs in the environment.
"$python" -m pip install -q --target "$work/tools" "setuptools<81" "cmake<4" wheel packaging >"$log" 2>&1 \
  || fail "cannot install setuptools<81 and cmake<4 from the package index; see $log"
export PYTHONPATH=$work/tools PATH=$work/tools/bin:$PATH
"$python" -m pip download -q --no-deps --no-binary horovod --no-build-isolation -d "$work" "horovod==$version" >>"$log" 2>&1 \
  || fail "cannot fetch the source of horovod $version from the package index; see $log"
tar -xf "$work/horovod-$version.tar.gz" -C "$work"
# Without debug information: the same code, a fifth less time to compile (its largest file: 10.3 s, not 13.0 s).
sed -i 's/RelWithDebInfo/Release/' "$work/horovod-$version/setup.py"
if [ ! -e "$include/tensorflow/compiler/xla/client/xla_builder.h" ]; then
  # The glue for Horovod ops inside compiled functions includes XLA headers that have since moved. Nothing here needs it:
  # collectives stand between compiled pieces.
  sed -i '/xla_mpi_ops\.cc/d' "$work/horovod-$version/horovod/tensorflow/CMakeLists.txt"
fi
export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
export HOROVOD_WITH_GLOO=${HOROVOD_WITH_GLOO-1}
[ -n "${HOROVOD_WITH_MPI:-}" ] || export HOROVOD_WITHOUT_MPI=1
[ "$device" = cpu ] || export HOROVOD_GPU_OPERATIONS=${HOROVOD_GPU_OPERATIONS:-NCCL}
export MAKEFLAGS=${MAKEFLAGS:--j$(nproc)}
"$python" -m pip wheel -q --no-build-isolation --no-deps -w "$work/wheel" "$work/horovod-$version" >>"$log" 2>&1 || {
  grep -inE 'error|not found|could not' "$log" | tail -n 5 >&2 || true
  fail "the build failed; the whole log is $log; BUILD.md lists what fails and how to mend it"
}
mkdir -p "$cache/$key"
mv "$work"/wheel/horovod-*.whl "$cache/$key/"
wheel=$(ls "$cache/$key"/horovod-*.whl)
unset PYTHONPATH
install_wheel "$wheel" || fail "the wheel was built but does not load; see $cache/import.log and BUILD.md"
touch "$stamp"
echo "horovod.sh: built and installed $wheel"
