#!/usr/bin/env bash
# Builds Horovod 0.28.1 against the TensorFlow of a Python environment, keeps the wheel in the user's cache, installs it.
# usage: launch/horovod.sh [--gpu] [PYTHON]      PYTHON: the environment's interpreter (default: .venv/bin/python)
# --gpu builds with CUDA and NCCL, no GPU needed (see BUILD.md); without it an installed build of either kind is kept.
# HOROVOD_* variables are handed to Horovod's build.
set -euo pipefail
version=0.28.1
sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0  # of the source, as the package index publishes it
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=""
if [ "${1:-}" = --gpu ]; then device=gpu; shift; fi
python=${1:-$root/.venv/bin/python}
case $python in -*) echo "horovod.sh: $python came, expected [--gpu] [PYTHON]" >&2; exit 1 ;; esac
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/moco_tf/wheels

fail() { echo "horovod.sh: $*" >&2; exit 1; }

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
key=horovod-$version-$tag-tf$tf-$(uname -m)
stamps=$(dirname "$python")/../.horovod
[ -n "$device" ] || { [ -e "$stamps${key#horovod}-gpu" ] && device=gpu; } || device=cpu
key=$key-$device
stamp=$stamps${key#horovod}
if [ "$installed" = "$version" ] && [ -e "$stamp" ]; then
  echo "horovod.sh: Horovod $version for TensorFlow $tf ($device) is installed"
  exit 0
fi

needs=(cloudpickle psutil pyyaml packaging)
# NCCL for the CUDA that TensorFlow was built for; it is the package that tensorflow[and-cuda] installs.
[ "$device" = cpu ] || [ -n "${HOROVOD_NCCL_HOME:-}" ] || needs+=("nvidia-nccl-cu12>=2.27.7")

install_wheel() {
  rm -f "$stamps"-*
  "$python" -m pip install -q --force-reinstall --no-deps "$1"
  "$python" -m pip install -q "${needs[@]}"
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
if [ ${#missing[@]} -gt 0 ]; then
  fail "missing to build Horovod: ${missing[*]} (Debian, Ubuntu: apt-get install g++ make tar python3-dev)"
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
came=$(sha256sum <"$work/horovod-$version.tar.gz" | cut -d' ' -f1)
[ "$came" = "$sha256" ] || fail "the source of horovod $version came with SHA-256 $came, expected $sha256; nothing was built"
tar -xf "$work/horovod-$version.tar.gz" -C "$work"
# Without debug information: the same code, a fifth less time to compile (its largest file: 10.3 s, not 13.0 s).
sed -i 's/RelWithDebInfo/Release/' "$work/horovod-$version/setup.py"
if [ ! -e "$include/tensorflow/compiler/xla/client/xla_builder.h" ]; then
  # The glue for Horovod ops inside compiled functions includes XLA headers that have since moved. Nothing here needs it:
  # collectives stand between compiled pieces.
  sed -i '/xla_mpi_ops\.cc/d' "$work/horovod-$version/horovod/tensorflow/CMakeLists.txt"
fi

# NCCL of the environment, found at run time from where Horovod's library lies; CUDA's runtime is linked in, so its version
# need not be TensorFlow's. Without a toolkit at hand, pip's packages of CUDA 13 make one (those of CUDA 12 have no nvcc).
prepare_cuda() {
  if [ -z "${HOROVOD_NCCL_HOME:-}" ]; then
    "$python" -m pip install -q "${needs[@]}" >>"$log" 2>&1 || fail "cannot install ${needs[*]}; see $log"
    local nccl
    nccl=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])')/nvidia/nccl
    mkdir -p "$work/nccl/lib"
    ln -s "$nccl/include" "$work/nccl/include"
    ln -s "$nccl/lib/libnccl.so.2" "$work/nccl/lib/libnccl.so"
    export HOROVOD_NCCL_HOME=$work/nccl HOROVOD_NCCL_LINK=shared
    echo 'set_target_properties(${TF_TARGET_LIB} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN/../../nvidia/nccl/lib")' \
      >>"$work/horovod-$version/horovod/tensorflow/CMakeLists.txt"
  fi
  # Horovod declares a function of TensorFlow that is gone; this is what its last form did.
  sed -i '/^#endif \/\/ TENSORFLOW_VERSION >= 2011000000/a namespace stream_executor { namespace gpu {\
GpuStreamHandle AsGpuStreamValue(Stream* s) { return static_cast<GpuStreamHandle>(s->platform_specific_handle().stream); }\
} }' "$work/horovod-$version/horovod/tensorflow/mpi_ops.cc"
  if [ -z "${HOROVOD_CUDA_HOME:-}" ] && command -v nvcc >/dev/null; then
    HOROVOD_CUDA_HOME=$(realpath "$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')")
  elif [ -z "${HOROVOD_CUDA_HOME:-}" ]; then
    "$python" -m pip install -q --target "$work/cuda" "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-runtime==13.0.*" \
      "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-cccl==13.0.*" >>"$log" 2>&1 \
      || fail "no nvcc is here and CUDA's packages cannot be installed; see $log"
    HOROVOD_CUDA_HOME=$work/cuda/nvidia/cu13
    ln -s lib "$HOROVOD_CUDA_HOME/lib64"  # where nvcc looks, and CMake for this name
    ln -s libcudart.so.13 "$HOROVOD_CUDA_HOME/lib/libcudart.so"
  fi
  export HOROVOD_CUDA_HOME PATH=$HOROVOD_CUDA_HOME/bin:$PATH
  local cuda driver
  cuda=$(nvcc --version | sed -n 's/.*release \([0-9]*\).*/\1/p')
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n '1s/\..*//p') || driver=""
  [ "$cuda" -lt 13 ] || [ "${driver:-580}" -ge 580 ] \
    || fail "driver $driver came, CUDA $cuda's kernels expect 580 or newer; set HOROVOD_CUDA_HOME to a toolkit of CUDA 12"
  export HOROVOD_GPU_OPERATIONS=${HOROVOD_GPU_OPERATIONS:-NCCL}
}

[ "$device" = cpu ] || prepare_cuda
export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
export HOROVOD_WITH_GLOO=${HOROVOD_WITH_GLOO-1}
[ -n "${HOROVOD_WITH_MPI:-}" ] || export HOROVOD_WITHOUT_MPI=1
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
