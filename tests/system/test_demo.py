"""launch/demo.sh, and every command of README.md that evaluates, exports or shows a run, on the demo's run.

MOCO_TF_DEMO_RUN names a finished run folder to use instead of running the demo, which takes 5 to 15 minutes.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from readme_commands import ROOT, of_programs

pytestmark = [pytest.mark.system, pytest.mark.horovod, pytest.mark.timeout(3600)]

README_RUN = "runs/v2"
COMMANDS = [" ".join(words[2:]) for words in of_programs(README_RUN)]
# The demo is of Fashion-MNIST, 24 pixels. Nothing else of a command changes, but the ImageNet probe: 30 is a rate for
# 2048 features, and 100 epochs are hours.
ON_THE_DEMO = {
    "--data_dir=/data": "",
    "--dataset=cifar10": "--dataset=fashion_mnist",
    "--dataset=imagenet2012": "--dataset=fashion_mnist",
    "--flagfile=flags/lincls/imagenet.cfg": "--flagfile=flags/lincls/imagenet.cfg --dataset=fashion_mnist "
    "--image_size=24 --test_resize=24 --learning_rate=3 --epochs=10 --schedule=cosine",
}
SECTIONS = ["results", "curves", "views", "neighbours", "map", "classes", "spread", "speed", "recipe"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(run folder of the demo, what it printed or None)"""
    if os.environ.get("MOCO_TF_DEMO_RUN"):
        return pathlib.Path(os.environ["MOCO_TF_DEMO_RUN"]), None
    run = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run([ROOT / "launch/demo.sh", run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return run, done.stdout


@pytest.fixture(scope="module")
def outcome(demo, tmp_path_factory):
    """A function that runs a command of COMMANDS once, on a copy of the demo's run: (folder, what it printed).

    The folder holds the run as `run`, and `encoder` or `exports`.
    """
    done = {}

    def run(command):
        if command not in done:
            folder = tmp_path_factory.mktemp("command")
            shutil.copytree(demo[0], folder / "run")
            for evaluation in ("knn", "lincls"):  # those of the demo
                shutil.rmtree(folder / "run" / evaluation)
            done[command] = folder, program(adapted(command, folder))
        return done[command]

    return run


def adapted(command, folder):
    """The words after `python -m` of a README command for the demo's run in `folder`."""
    words = [ON_THE_DEMO.get(word, word) for word in command.split()]
    text = " ".join(words).replace(README_RUN, str(folder / "run"))
    return re.sub(r"--output=(?=\w)", f"--output={folder}/", text).split()


def program(words):
    """What `python -m` of the words prints."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-4000:]}"
    return done.stdout


def only(*parts):
    """The one command of README.md on a run that has all of the parts."""
    (found,) = (command for command in COMMANDS if all(part in command for part in parts))
    return found


def result(folder):
    return json.loads((folder / "result.json").read_text())


def written(outcome):
    """The result of a command, where it says that it is."""
    return json.loads(pathlib.Path(re.search(r"written to (\S+result\.json)", outcome[1])[1]).read_text())


def top1(folder):
    return result(folder)["top1"]


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_command(command, outcome):
    outcome(command)


def test_every_program_has_a_command():
    programs = {command.split()[0] for command in COMMANDS}
    assert programs == {f"moco_tf.{name}" for name in ("lincls", "knn", "table", "report", "show", "export")}


# The demo itself


def test_demo_learns(demo):
    """Better than the same network untrained, and than pixels, by a point at least of both accuracies."""
    run, _ = demo
    for evaluation in ("knn", "lincls"):
        baselines = [top1(run / f"{evaluation}_{name}") for name in ("untrained", "raw_pixels")]
        assert top1(run / evaluation) > max(baselines) + 0.01, baselines


def test_demo_prints_its_table(demo, outcome):
    run, printed = demo
    rows = {"pre-trained": "", "untrained encoder": "_untrained", "raw pixels": "_raw_pixels"}
    cells = {
        name: [f"{top1(run / f'{e}{suffix}'):.2%}"[:-1] for e in ("knn", "lincls")] for name, suffix in rows.items()
    }
    lines = [f"| {name} | {' | '.join(figures)} |" for name, figures in cells.items()]
    assert all(line in (printed or program(["moco_tf.table", f"--workdir={run}"])) for line in lines)
    baselines_alone = outcome(only("moco_tf.table"))[1]  # README's command, of a copy without knn/ and lincls/
    assert lines[1] in baselines_alone and lines[2] in baselines_alone and "| pre-trained | - | - |" in baselines_alone


# kNN and linear probes


def test_knn_settings_and_checkpoints(demo, outcome):
    """README's commands give the demo's own number, without its flags; the newest checkpoint is the run's."""
    one, many, checkpoints = (
        written(outcome(only("moco_tf.knn", part))) for part in ("imagenet2012", "--k=200,20", "--all_checkpoints")
    )
    assert [(x["k"], x["temperature"]) for x in many["all"]] == [(200, 0.1), (200, 0.07), (20, 0.1), (20, 0.07)]
    assert one["top1"] == many["top1"] == checkpoints["top1"] == checkpoints["checkpoints"][-1]["top1"]
    plain = written(outcome("moco_tf.knn --load=runs/v2"))
    assert one["top1"] == plain["top1"] == top1(demo[0] / "knn") and plain["dataset"] == "fashion_mnist"
    assert len(checkpoints["checkpoints"]) == len(list((demo[0] / "checkpoints").glob("step-*")))


def test_probes_agree(demo, outcome):
    """On cached features the grid, L-BFGS and the demo's own rate reach the same; on augmented images it is less."""
    grid = written(outcome(only("moco_tf.lincls", "--cache_features")))
    assert len(grid["learning_rates"]) == 8 and grid["held_out_images"] == 6000
    assert grid["logistic_regression"]["converged"]
    assert grid["top1"] == pytest.approx(grid["logistic_regression"]["top1"], abs=0.01)
    assert grid["top1"] == pytest.approx(top1(demo[0] / "lincls"), abs=0.015)
    augmented = written(outcome(only("moco_tf.lincls", "imagenet.cfg")))
    assert augmented["epochs"] == 10 and len(augmented["tests"]) == 10 and not augmented["cached_features"]
    assert 0 < grid["top1"] - augmented["top1"] < 0.07  # 0.05 in README.md: crops from 8 % of 24 pixels on are hard


def test_fine_tuning_on_few_labels(outcome):
    """600 labels."""
    found = written(outcome(only("moco_tf.lincls", "--finetune")))
    assert found["finetuned"] and found["train_images"] == 600 and found["top1"] > 0.7


# What is carried away and shown


@pytest.mark.parametrize("kind", ["savedmodel", "all"])
def test_exports_equal_the_encoder(kind, outcome):
    command = next(
        c for c in COMMANDS if c.startswith("moco_tf.export") and re.findall(r"--format=(\w+)", c)[-1] == kind
    )
    folder, printed = outcome(command)
    assert float(re.search(r"largest difference (\S+) of", printed)[1]) <= 1e-5
    if kind == "savedmodel":
        assert {path.name for path in (folder / "encoder").iterdir()} >= {"saved_model.pb", "variables", "README.md"}
    else:
        left_out = printed.count("left out: ")
        assert f"with {6 - left_out} formats" in printed
        for suffix in ("keras", "pth", "pkl"):
            assert (folder / f"exports/encoder.{suffix}.md").read_text(encoding="utf-8")


def test_show_says_what_the_run_holds(outcome):
    printed = [outcome(command)[1] for command in COMMANDS if command.startswith("moco_tf.show")]
    in_words, as_json = printed[0], json.loads(printed[1])
    assert re.search(r"^queue +2048 keys of 128 numbers", in_words, re.M)
    assert as_json["arch"] == "resnet10" and as_json["epoch"] == 5 and as_json["queue"]["size"] == 2048


def test_report_has_every_section(demo, outcome):
    """With pictures and figures in each, none of the sentences that say why there is nothing."""
    folder, _ = outcome(only("moco_tf.report"))
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == SECTIONS
    for missing in ("No features", "No views", "holds no", "Nothing was evaluated"):
        assert missing not in page
    assert f"{top1(demo[0] / 'lincls_untrained'):.2%}"[:-1] in page
    assert page.count("data:image/") > 30
