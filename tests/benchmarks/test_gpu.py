"""launch/gpu.sh: how it runs its steps, what the steps find on a CPU."""

import argparse
import json
import os
import subprocess
import sys
import time

import compare
import gpu
import gpu_steps
import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

# Instead of gpu_steps.py: its work says how it ends.
STUB = """
import json, sys, time
answer, *_, work = sys.argv[1:]
print("said", work, flush=True)
if work == "hang":
    time.sleep(60)
if work == "fail":
    sys.exit("it was no good")
json.dump({"figure": 1.5, "summary": "word " * 30}, open(answer, "w"))
"""

TORCH = """
import json, os, sys
assert not {"PYTHONPATH", "LD_LIBRARY_PATH", "XLA_FLAGS"} & os.environ.keys()
settings = json.loads(sys.stdin.readline())
assert settings["precision"] == "bfloat16"
print(json.dumps({"torch": "9.9"}), flush=True)
for line in sys.stdin:
    answer = {"seconds": 0.25 if settings["compile"] else 0.5} if "steps" in line else {"bytes": 1}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Steps that do nothing; --needs=torch, or 1,000 s that are not there, keep two from running."""
    program = tmp_path / "stub.py"
    program.write_text(STUB)
    every = [
        gpu.Step("first", 1, ("work",)),
        gpu.Step("fails", 1, ("fail",)),
        gpu.Step("hangs", 1, ("hang",)),
        gpu.Step("beside", 1, ("work",), "torch"),
        gpu.Step("long", 1000, ("work",)),
        gpu.Step("last", 1, ("work",)),
    ]
    monkeypatch.setattr(gpu, "_PROGRAM", program)
    monkeypatch.setattr(gpu, "every_step", lambda small: every)
    monkeypatch.setattr(gpu, "missing", lambda step, torch: "no PyTorch" if step.needs else "")
    return tmp_path / "out"


def records(folder):
    return json.loads((folder / "results.json").read_text())["steps"]


def test_every_step_is_recorded_however_it_ends(stub, capsys):
    """A second call runs what is not done, and nothing else."""
    assert gpu.main([f"--out={stub}", "--minutes=1"]) == 2
    found = records(stub)
    assert {name: record["status"] for name, record in found.items()} == {
        **{"first": "done", "fails": "failed", "hangs": "timed out"},
        **{"beside": "not run", "long": "not run", "last": "done"},
    }
    assert found["first"]["figure"] == 1.5 and found["fails"]["last_lines"] == ["said fail", "it was no good"]
    assert 2.5 <= found["hangs"]["seconds"] < 10 and found["beside"]["last_lines"] == ["no PyTorch"]
    assert found["long"]["last_lines"][0].startswith("about 1000 s are needed, 5")
    table = (stub / "table.txt").read_text()
    assert capsys.readouterr().out.endswith(table) and max(map(len, table.splitlines())) <= 80
    assert "failed: it was no good" in table and table.count("word") == 60
    (stub.parent / "stub.py").write_text(STUB.replace("1.5", "2.5").replace('"fail"', '"never"'))
    assert gpu.main([f"--out={stub}", "--only=f"]) == 1  # "hangs" is still there
    again = records(stub)
    assert (again["first"]["figure"], again["fails"]["figure"]) == (1.5, 2.5)


def test_the_table_compares_with_pytorch(tmp_path):
    """3,000 images/s in training, where PyTorch's step takes 2,000 and 2,400."""
    results = gpu.Results(tmp_path, small=False)
    results.add("train-r50", {"status": "done", "seconds": 1, "summary": "", "images_per_second": 3000})
    assert "PyTorch" not in results.table()
    rates = {form: {"images_per_second": {"median": rate}} for form, rate in (("eager", 2000), ("compile", 2400))}
    results.add("torch-r50", {"status": "done", "seconds": 1, "summary": "", **rates})
    assert results.table().endswith(
        "r50: a training with views is 1.50 times as fast as PyTorch's eager step\n"
        "without, 1.25 times as fast as it is with torch.compile\n"
    )


def test_what_does_not_fit_is_refused(stub, monkeypatch):
    gpu.main([f"--out={stub}", "--only=first"])
    monkeypatch.setattr(gpu, "commit", lambda: "another")
    for argument, message in [
        ("--only=first", "holds results of commit"),
        ("--only=second", "--only=second came, expected a step's name"),
        ("--torch=/nowhere/python", "--torch=/nowhere/python is no program"),
    ]:
        with pytest.raises(SystemExit, match=message):
            gpu.main([f"--out={stub}", argument])


def test_steps_in_their_order():
    """Ten minutes are to hold the checks, both recipes in training and PyTorch's step."""
    names = [step.name for step in gpu.every_step(small=False)]
    assert names[:4] == ["checks", "train-r18", "train-r50", "torch-r50"] and len(names) == len(set(names))
    assert sum(step.seconds for step in gpu.every_step(small=False)[:4]) <= 540
    benches = [step.work[1:3] for step in gpu.every_step(small=False) if step.work[0] == "bench"]
    assert len(benches) == 3 * 2 * 3 * 3  # recipes, with views and without, precisions, what XLA compiles
    assert {step.work[0] for step in gpu.every_step(small=True)} | {"bench_over_gloo"} == set(gpu_steps.WORKS)


def test_kernels_of_a_profile():
    """Those of a GPU's streams, or of TensorFlow's threads without one; picoseconds become milliseconds."""
    space = xplane_pb2.XSpace()
    planes = {"/host:CPU": "tf_Compute/1", "/device:GPU:0": "Stream #7(Kernel)"}
    for number, (plane_name, line_name) in enumerate(planes.items(), start=1):
        plane = space.planes.add(name=plane_name)
        plane.event_metadata[1].name = f"kernel {number}"
        for name in (line_name, "XLA Modules"):
            line = plane.lines.add(name=name)
            for _ in range(2):
                line.events.add(metadata_id=1, duration_ps=number * 10**9)
    assert dict(gpu_steps.kernel_ms(space.SerializeToString())) == {"kernel 2": 4.0}
    del space.planes[1]
    assert dict(gpu_steps.kernel_ms(space.SerializeToString())) == {"kernel 1": 2.0}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>", "batch norm of cuDNN"),
        ("input_reduce_fusion_12", "reductions, batch norm's in XLA"),
        ("loop_multiply_fusion_3", "element-wise and other fusions"),
        ("MemcpyD2D", "copies"),
        ("input_scatter", "sort, gather, scatter"),
        ("wrapped_transpose", "copies"),
        ("mystery", "other"),
    ],
)
def test_kinds_of_kernels(kernel, kind):
    assert gpu_steps.kind_of(kernel) == kind


def test_a_step_on_a_cpu(tmp_path):
    """What a bench step writes: a rate, its spread, TFLOP/s, a line for the table."""
    o = argparse.Namespace(answer=tmp_path / "answer.json", torch="", small=True)
    found = gpu_steps.bench(o, "r18", "views", "--precision=float32", "--jit_compile=false")
    assert found["recipe"]["arch"] == "resnet10" and found["recipe"]["batch_size"] == 16
    rate = found["images_per_second"]
    assert 0 < rate["min"] <= rate["median"] <= rate["max"] and found["first_step_seconds"] > 0
    assert found["flops_per_second"] > 0 and "images/s" in found["summary"]
    json.dumps(found)


def test_pytorch_beside(tmp_path, monkeypatch):
    """A program that answers as torch_moco.py does: batches of 16 in 0.5 s, in 0.25 s with torch.compile."""
    rival = tmp_path / "python"
    rival.write_text(f"#!{sys.executable}\n{TORCH}")
    rival.chmod(0o755)
    monkeypatch.setattr(compare, "_PAUSE", 0)
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "XLA_FLAGS"):
        monkeypatch.setenv(name, "of TensorFlow")
    found = gpu_steps.torch(argparse.Namespace(torch=str(rival), small=True), "r18")
    rates = {form: found[form]["images_per_second"]["median"] for form in ("eager", "compile")}
    assert rates == {"eager": 32.0, "compile": 64.0} and found["torch"] == "9.9"
    assert found["summary"] == "PyTorch 9.9: eager 32 (32 to 32) images/s, compile 64 (64 to 64) images/s"


def test_the_script_itself(tmp_path):
    """--list alone: no TensorFlow is imported, nothing is written."""
    done = subprocess.run([gpu._ROOT / "launch" / "gpu.sh", "--list"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "checks                             20 s"
    assert "torch-r50                         120 s  torch" in done.stdout


@pytest.mark.system
def test_the_small_form_ends_within_five_minutes(tmp_path):
    began = time.monotonic()
    command = [gpu._ROOT / "launch" / "gpu.sh", "--small", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - began < 300
    found = records(tmp_path)
    assert [name for name, record in found.items() if record["status"] != "done"] == ["torch-r50", "torch-r18"]
    assert found["resume"]["killed_at"] >= 15 and max(found["parity-float32"]["loss_errors"]["graph"]) < 5e-3
