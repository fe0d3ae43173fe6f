"""What stands around every program: TensorFlow's lines at its import, --help."""

import os
import re
import subprocess
import sys

import pytest
from absl import flags
from support.programs import ROOT

from moco_tf.config import define, usage
from moco_tf.config.options import PROGRAMS, Pretrain
from moco_tf.errors import UserError
from moco_tf.run import defaults, program

SAID = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795714973.020670   13357 port.cc:153] oneDNN custom operations are on.
W0000 00:00:1795714973.020670   13357 some.cc:1] a warning
E0000 00:00:1795714974.822443   13357 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error
F0000 00:00:1795714974.822443   13357 cpu.cc:52] compiled to use AVX instructions
E0000 00:00:1795714974.822443   13357 other.cc:52] an error
"""


@pytest.mark.parametrize("driver", [False, True])
def test_lines_of_the_import(driver, capfd):
    """Errors pass, but for the one that says that a machine without a driver has no GPU."""
    with program._without(program._LOADING + ("" if driver else program._NO_GPU)):
        os.write(2, SAID.encode())
    os.write(2, b"I0000 after\n")
    passed = [line for line in SAID.splitlines() if line[0] in "EF" and (driver or "cuInit" not in line)]
    assert capfd.readouterr().err.splitlines() == [*passed, "I0000 after"]


def test_error_that_ends_the_process(tmp_path):
    """TensorFlow aborts on processors that it was not built for, and says why."""
    code = (
        "import os; from moco_tf.run import program\n"
        "with program._without(program._LOADING): os.write(2, b'I0000 x\\nF0000 no AVX\\n'); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode < 0 and done.stderr == "F0000 no AVX\n"


def test_stderr_that_is_closed():
    """Nothing can be said; the work is done all the same, and the exit status tells what refuses it."""
    code = "from moco_tf.run import program\nwith program._without('x'): print('done')\nprogram._say('name', 'message')"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_flags_cfg_of_a_copied_run(tmp_path, monkeypatch):
    """It must not go on in the folder that it was copied from; a file of flags elsewhere may name any folder."""

    def check(*words):
        argv = ["moco_tf.pretrain", *map(str, words)]
        program._check_folder(define.parse(Pretrain, argv), argv)

    run, copy = tmp_path / "run", tmp_path / "copy"
    for folder in (run, copy):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "flags.cfg").write_text(f"--workdir={run}\n")
    (tmp_path / "flags.cfg").write_text(f"--workdir={run}\n")
    check(f"--flagfile={run}/flags.cfg")
    check(f"--flagfile={tmp_path}/flags.cfg")
    check(f"--flagfile={copy}/flags.cfg", f"--workdir={copy}")
    monkeypatch.chdir(copy)
    for words in ([f"--flagfile={copy}/flags.cfg"], ["--flagfile", "flags.cfg"]):
        with pytest.raises(
            flags.Error, match=f"copy/flags.cfg names another folder, --workdir={run}, .*give --workdir={copy}"
        ):
            check(*words)


def completed(program, *words):
    """The options of a command line as a program gets them."""
    argv = defaults.words(PROGRAMS[program], [program, *words])
    return define.values_of(defaults.completed(define.parse(PROGRAMS[program], argv)))


def test_bare_commands(tmp_path, monkeypatch, capsys):
    """What they take is said; what is given stands; without a run --load stays missing."""
    monkeypatch.chdir(tmp_path)
    assert completed("lincls")["load"] is None
    assert capsys.readouterr().out.startswith("no learning rate came: a grid of learning rates is taken, --cache_feat")
    bare = completed("pretrain")
    assert bare == completed(
        "pretrain", "--flagfile=fashion_mnist_moco", f"--workdir={tmp_path}/runs/fashion_mnist_moco"
    )
    assert bare["batch_size"] % 8 == 0 and bare["queue_size"] < 60000
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "no flags came: taking --flagfile=fashion_mnist_moco"
    assert said[1] == f"--workdir={tmp_path}/runs/fashion_mnist_moco; the same command goes on there"
    assert completed("pretrain", "--dataset=cifar10", "--method=simclr")["workdir"] == f"{tmp_path}/runs/cifar10_simclr"
    assert completed("pretrain", "--dataset=my/set:1.0.0")["workdir"] == f"{tmp_path}/runs/my-set-1.0.0_moco"
    assert completed("bench")["workdir"] is None and completed("bench")["method"] == "moco"
    for age, name in enumerate(("old", "new", "older")):
        place = tmp_path / "runs" / name / "checkpoints" / "step-00000007"
        place.mkdir(parents=True)
        os.utime(place, (1000 - abs(age - 1), 1000 - abs(age - 1)))
    (tmp_path / "runs" / "none").mkdir()
    new = f"{tmp_path}/runs/new"
    capsys.readouterr()
    for name in ("lincls", "knn", "embed", "show"):
        assert completed(name)["load"] == completed(name, "--load")["load"] == new
        assert capsys.readouterr().err.splitlines()[-1] == f"--load={new}, the newest run in runs/"
    export = completed("export", "--load", "--test_resize=3")
    assert (export["load"], export["output"], export["test_resize"]) == (new, f"{new}/encoder", 3)
    assert completed("export", "--format=pth")["output"] is None
    assert completed("knn", "--load", f"{tmp_path}/runs/old")["load"] == f"{tmp_path}/runs/old"
    assert completed("lincls", "--baseline=raw_pixels")["load"] == new  # whose images are taken
    assert completed("lincls", "--baseline=raw_pixels", "--dataset=cifar10")["load"] is None


def test_each_folder_of_images_has_a_run_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("cats", "dogs", "more/cats"):
        (tmp_path / place).mkdir(parents=True)
    runs = [
        completed("pretrain", "--flagfile=demo", "--dataset=folder", f"--data_dir={place}")
        for place in ("cats", "dogs/")
    ]
    assert [run["workdir"] for run in runs] == [f"{tmp_path}/runs/cats_moco", f"{tmp_path}/runs/dogs_moco"]
    (tmp_path / "runs" / "cats_moco").mkdir(parents=True)
    (tmp_path / "runs" / "cats_moco" / "flags.cfg").write_text(f"--data_dir={tmp_path}/cats\n--dataset=folder\n")
    assert (
        completed("pretrain", "--flagfile=demo", "--dataset=folder", "--data_dir=cats/")["workdir"]
        == runs[0]["workdir"]
    )
    with pytest.raises(
        UserError, match=f"more/cats came, but {runs[0]['workdir']} was pre-trained on {tmp_path}/cats;"
    ):
        completed("pretrain", "--flagfile=demo", "--dataset=folder", "--data_dir=more/cats")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name):
    """Two screens of 24 lines, without TensorFlow; exit status 0; no path of the machine."""
    command = [sys.executable, "-X", "importtime", "-m", f"moco_tf.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and str(ROOT) not in done.stdout and " tensorflow" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 48 and "  --flagfile=RECIPE" in done.stdout
    assert [
        line for line in lines if len(line) > 80 and not line.startswith(("    python -m ", "    horovodrun "))
    ] == []


def test_help_of_every_flag():
    """Each flag once, with its default and its choices; a method of a flagfile brings its own."""
    words = define.words_of(Pretrain, ["", "--flagfile=flags/pretrain/cifar10_npid_s2.cfg"], flags.FlagValues())
    text = usage.text("About.", Pretrain, words, full=True)
    every = [flag for found in define.sections(Pretrain, words).values() for flag in found]
    assert len(every) > 60 and {"k", "steps", "negatives", "stem"} <= {flag.name for flag in every}
    named = re.findall(r"^  --(?:\[no\])?(\w+)", text, re.MULTILINE)
    assert sorted(named) == sorted(["flagfile", *(flag.name for flag in every)])
    assert "\n  --batch_size=256        Images a step, over all ranks.\n" in text
    assert "\n  --milestones=120,160    Epochs at which the learning rate drops.\n" in text
    assert "One of none, float16." in " ".join(text.split())
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", usage.text("About.", Pretrain, words), re.MULTILINE)
    assert len(set(shown) - {flag.name for flag in every if flag.asked and flag.name != "temperature"}) == 16
    assert "steps" not in shown
    assert {"negatives", "bank_momentum", "flagfile"} <= set(shown)


def test_probe_without_a_learning_rate(monkeypatch, capsys, tmp_path):
    """A grid of them is taken, and said; not with a recipe of these images, a rate, or a training on images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.cfg").write_text("--batch_size=32\n")
    grid = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    cases = {
        "--load=a.pth --dataset=cifar10": grid,
        "--load=a.pth --flagfile=imagenet --dataset=folder --batch_size=8": grid,
        "--load=a.pth --flagfile mine.cfg --epochs=7": grid,
        "--load=a.pth --flagfile=imagenet --data_dir=there": None,
        "--load=a.pth --flagfile=imagenet --dataset=imagenet2012": None,
        "--load=a.pth --flagfile=imagenet --dataset=folder --learning_rate=30": None,
        "--load=a.pth --flagfile=imagenet_finetune_1pct --dataset=folder": None,
        "--load=a.pth --learning_rate=0.5": None,
        "--load=a.pth --cache_features --learning_rates=1,2": (1.0, 2.0),
        "--load=a.pth --finetune": None,
        "--load=a.pth --nocache_features": None,
    }
    for words, rates in cases.items():
        found = completed("lincls", *words.split())
        assert found["learning_rates"] == rates, words
        assert found["logistic_regression"] == (rates == grid), words
        assert ("a grid of learning rates is taken" in capsys.readouterr().out) == (rates == grid), words
    left_out = completed("lincls", "--load=a.pth", "--flagfile=imagenet", "--dataset=folder", "--batch_size=8")
    assert "--flagfile=imagenet is of imagenet2012, not of folder, and is left out" in capsys.readouterr().out
    assert left_out["batch_size"] == 8 and left_out["epochs"] == 20 and left_out["dataset"] == "folder"
    assert completed("lincls", "--load=a.pth", "--flagfile", "mine.cfg", "--epochs=7")["epochs"] == 7
    monkeypatch.setattr(defaults.importlib.util, "find_spec", lambda name: None)
    assert not completed("lincls", "--load=a.pth")["logistic_regression"]
