#!/usr/bin/env bash
# Measures, in turns with PyTorch where there is one, what docs/benchmarks.md holds, and prints it as Markdown. What
# compares and studies is in tests/benchmarks/: its programs can be run one by one, as python tests/benchmarks/views.py.
# Leave the machine alone meanwhile: about fifteen minutes on two cores.
# usage: launch/benchmark.sh [PYTHON_WITH_PYTORCH]     (python3 -m venv torch; torch/bin/pip install torch==2.13.0 numpy pillow)
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" >&2
torch=${1:-$python}
cd "$root"

show() { printf '\n    %s\n\n' "$*" | sed "s#$python#python#g; s#$torch#python-with-torch#g; s#$venv/bin/##g"; }
measure() { show "$@"; "$@" 2>/dev/null; }

resnet18=(--dataset=cifar10 --arch=resnet18 --stem=cifar --batch_size=64)
resnet50=(--dataset=cifar10 --arch=resnet50 --image_size=128 --batch_size=16)
common=(--fake --head=mlp --queue_size=4096 --views=moco_v2 --repeats=5 --warmup_steps=1)

echo "# Benchmarks, as printed by launch/benchmark.sh"
echo
echo "Commit $(git describe --always --dirty 2>/dev/null || echo unknown), $(nproc) cores: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)," \
  "of its vector units: $(grep -o -w -E 'avx2|avx512f|avx512_bf16|amx_bf16' /proc/cpuinfo | sort -u | tr '\n' ' ')"
echo
echo "## A step, in turns with PyTorch"
for precision in bfloat16 float32; do
  measure "$python" -m moco_tf.bench "${resnet18[@]}" "${common[@]}" --precision=$precision --bench_steps=4 \
    --compare=torch --torch_python="$torch"
  measure "$python" -m moco_tf.bench "${resnet50[@]}" "${common[@]}" --precision=$precision --bench_steps=4 \
    --compare=torch --torch_python="$torch"
done
echo
echo "## More of a step: start-up, Python around it, operations a second, exchanges"
for precision in bfloat16 float32; do
  measure "$python" tests/benchmarks/details.py "${resnet18[@]}" "${common[@]}" --precision=$precision --bench_steps=4
  measure "$python" tests/benchmarks/details.py "${resnet50[@]}" "${common[@]}" --precision=$precision --bench_steps=4
done
echo
echo "## Views"
measure "$python" tests/benchmarks/views.py
echo
echo "## Convolutions, as the encoder chooses them on a CPU"
measure "$python" tests/benchmarks/convolutions.py
echo
echo "## Horovod with one rank, in turns with none (images/s of five turns)"
one=("$python" -m moco_tf.bench "${resnet18[@]}" "${common[@]}" --precision=float32 --bench_steps=4)
show horovodrun -np 1 "${one[@]}"
file=$(mktemp)
for turn in 1 2 3 4 5; do
  for launcher in "" "$venv/bin/horovodrun -np 1"; do
    $launcher "${one[@]}" --repeats=1 --json="$file" >/dev/null 2>&1
    "$python" - "$file" "${launcher:+horovod}" "$turn" <<'PY'
import json, sys
rate = json.load(open(sys.argv[1]))["step"]["prepared"]["images_per_second"]["median"]
print(f"turn {sys.argv[3]}, {sys.argv[2] or 'one process'}: {rate:.1f}")
PY
  done
done
rm -f "$file"
echo
echo "## Less memory for more time"
for less in "" --recompute --accumulate=4 "--accumulate=4 --recompute"; do
  # shellcheck disable=SC2086
  measure "$python" -m moco_tf.bench "${resnet18[@]}" "${common[@]}" --batch_size=256 --precision=float32 --bench_steps=1 --repeats=3 $less
done
