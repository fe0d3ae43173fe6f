"""moco_tf.compare on planted run folders: what is one recipe, what is tested, what is said and what is refused."""

import json
import re

import numpy as np
import pytest
from support.programs import call

from moco_tf.config.options import Compare, Table
from moco_tf.errors import UserError
from moco_tf.evaluation import scores
from moco_tf.reporting import accuracies, differences, results
from moco_tf.run import defaults
from moco_tf.run.folder import RunFolder

Q = 4000
LABELS = np.arange(Q) % 10


def write(run, right, evaluation="kNN", labels=LABELS, baseline="none", step=7, weights=None, **flags):
    """A run folder with a result whose answers are right where `right` says so."""
    folder = run / (evaluation.lower() if baseline == "none" else f"{evaluation.lower()}_{baseline}")
    folder.mkdir(parents=True)
    if flags:
        (run / "flags.cfg").write_text("".join(f"--{name}={value}\n" for name, value in flags.items()))
    found = {"evaluation": evaluation, "dataset": "mnist", "test_images": len(labels), "settings": {"k": "200"}}
    found |= {"baseline": baseline, "step": step, "top1": float(np.mean(right)), "subject": "x", "weights": weights}
    (folder / "result.json").write_text(json.dumps(found))
    scores.write_predictions(folder / "predictions.npz", np.where(right, labels, (labels + 1) % 10), labels)


def answers(rng, hard, accuracy):
    """Right on the easier images, with some noise."""
    score = hard + 0.5 * rng.normal(size=Q)
    return score < np.quantile(score, accuracy)


def compared(*folders):
    """The rows of the printed tables by their first cell, and the lines below."""
    text = differences.markdown(results.folders(map(str, folders)))
    rows = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {row[0]: row[1:] for row in cells}, [line for line in text.splitlines() if line and line[0] != "|"]


def test_three_recipes_with_three_seeds(tmp_path):
    """supcon is 5 points better and called so; moco and simclr differ by their seeds alone; baselines stand below."""
    rng = np.random.default_rng(0)
    hard, folders, shares = rng.normal(size=Q), [], {}
    for method, accuracy in (("moco", 0.8), ("simclr", 0.8), ("supcon", 0.85)):
        for seed in range(3):
            run = tmp_path / (f"{method}-{seed}" if seed else method)
            right = answers(rng, hard, accuracy + 0.003 * rng.normal())
            shares.setdefault(method, []).append(right.mean())
            write(run, right, method=method, seed=seed, workdir=run, log_every=seed + 1)
            folders.append(run)
    for run in folders[:2]:  # the same for both
        write(run, answers(np.random.default_rng(2), hard, 0.7), baseline="raw_pixels", weights="none")
    rows, lines = compared(*folders)
    assert lines[0] == "kNN top-1 on mnist, 4,000 test images:"
    assert [rows[name][0] for name in ("moco", "simclr", "supcon", "raw pixels")] == ["3", "3", "3", "1"]
    for name, own in shares.items():
        assert rows[name][1] == f"{100 * np.mean(own):.2f}"
    tested = {name: row for name, row in rows.items() if " - " in name}
    assert len(tested) == 6
    for other in ("moco", "simclr"):
        points, _, p, verdict = tested[f"supcon - {other}"]
        assert points == f"{100 * (np.mean(shares['supcon']) - np.mean(shares[other])):.2f}"
        assert float(p) < 0.05 and verdict == "supcon is better"
    (close,) = (row for name, row in tested.items() if {"moco", "simclr"} == set(name.split(" - ")))
    low, high = map(float, close[1].split(" to "))
    assert close[3] == "no difference can be seen" and low < 0 < high
    assert tested["moco - raw pixels"][3] == "moco is better"
    best, worst = max(shares["moco"]), min(shares["moco"])
    assert (
        "moco, moco-1, moco-2 differ in --seed alone, so that they are one recipe, and no difference can be seen: the "
        f"{100 * (best - worst):.2f} points from the worst to the best are the seeds'."
    ) in lines
    assert lines[-1].startswith("Each p is corrected for the 6 pairs (Holm)")


def test_one_run_each(tmp_path):
    """What is seen is of these runs; of two runs of one recipe no difference is."""
    rng = np.random.default_rng(1)
    hard = rng.normal(size=Q)
    for name, accuracy, flags in (
        ("a", 0.8, {"method": "moco", "seed": 0}),
        ("b", 0.84, {"method": "npid", "seed": 0}),
        ("c", 0.82, {"method": "moco", "seed": 1}),
    ):
        for evaluation in ("kNN", "lincls"):
            write(tmp_path / name, answers(rng, hard, accuracy), evaluation, **flags)
    rows, lines = compared(tmp_path / "a", tmp_path / "b")
    assert rows["b - a"][2:] == ["< 0.0001", "this run of b is better"]  # no resample is on the other side
    assert [line[:6] for line in lines if line.endswith(":")] == ["kNN to", "linear"]
    assert "One run of a, b: the luck of its seed is in no interval; give runs of other seeds." in lines
    for name in "ab":
        write(tmp_path / name, answers(rng, hard, 0.6), baseline="untrained", weights=name)
    rows, lines = compared(tmp_path / "a", tmp_path / "b")
    assert {"untrained encoder of a", "untrained encoder of b"} <= rows.keys()
    assert (
        "One untrained encoder of a, untrained encoder of b: the luck of its first weights is in no interval." in lines
    )
    rows, lines = compared(tmp_path / "a", tmp_path / "c")
    assert "a + c" in rows or "a" not in rows
    assert "no difference can be seen: the 2.00 points" in lines[1]
    rows, lines = compared(*(tmp_path / name for name in "abc"))
    assert rows["b - a + c"][3] == "no difference can be seen"  # two seeds that are 2 points apart
    assert "One run of b: the seed is taken to matter as much as to the other recipes." in lines


def test_runs_on_images_of_ones_own(tmp_path):
    """A folder that moved is the same one; another folder, or other images in it, make another recipe."""
    rng = np.random.default_rng(3)
    for name, place, count in (("a", "/d/photos", 90), ("b", "/e/photos/", 90), ("c", "/e/birds", 90)):
        own = {"method": "moco", "dataset": "folder", "seed": ord(name), "data_dir": place}
        write(tmp_path / name, rng.random(Q) < 0.8, **own)
        path = tmp_path / name / "knn/result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "folder", "data_dir": "/x/photos"}))
        at = tmp_path / name / "checkpoints/step-00000007/checkpoint.json"
        at.parent.mkdir(parents=True)
        at.write_text(json.dumps({"step": 7, "files": {}, "num_examples": count}))
    moved = tmp_path / "b/knn/result.json"
    moved.write_text(moved.read_text().replace("/x/", "/y/"))
    (tmp_path / "bare").mkdir()
    rows, lines = compared(*(tmp_path / name for name in ("a", "b", "c", "bare")))
    assert lines[0] == "kNN top-1 on folder (photos), 4,000 test images:"
    assert rows["a + b"][0] == "2" and rows["c"][0] == "1"
    assert lines[-1] == "Left out, for lack of a result: bare; evaluate with moco_tf.knn or moco_tf.lincls."
    assert compared(tmp_path / "a", tmp_path / "b")[1][-1].startswith("Nothing is compared here: no other recipe")
    more = tmp_path / "b/checkpoints/step-00000007/checkpoint.json"
    more.write_text(more.read_text().replace("90", "91"))
    rows, lines = compared(tmp_path / "a", tmp_path / "b")
    assert rows["a"][0] == rows["b"][0] == "1" and not any(line.startswith("Nothing is compared") for line in lines)
    assert differences.recipe(RunFolder(tmp_path / "a")) != differences.recipe(RunFolder(tmp_path / "b"))


def test_what_is_refused(tmp_path):
    right = np.arange(Q) % 5 > 0
    write(tmp_path / "a", right, method="moco", seed=0)
    write(tmp_path / "again", right, method="moco", seed=0)
    write(tmp_path / "earlier", right, method="moco", seed=1, step=3)
    write(tmp_path / "other", right, method="npid", labels=LABELS[::-1])
    write(tmp_path / "broken", right, method="simclr")
    (tmp_path / "broken/knn/predictions.npz").write_bytes(b"PK")
    write(tmp_path / "changed", right, method="simclr")
    path = tmp_path / "changed/knn/predictions.npz"
    packed = path.read_bytes()
    path.write_bytes(packed[:100] + bytes(range(90, 110)) + packed[120:])
    write(tmp_path / "old", right, method="npid")
    (tmp_path / "old/knn/predictions.npz").unlink()
    for names, words in (
        (["a", "again"], r"a and \S*again have one recipe and one --seed"),
        (["a", "earlier"], r"a and \S*earlier have one recipe and were evaluated at steps 7 and 3, expected the same"),
        (["a", "other"], r"a/knn and \S*other/knn answer other test images"),
        (["a", "broken"], "predictions.npz is damaged; evaluate again"),
        (["a", "changed"], "changed/knn/predictions.npz is damaged; evaluate again"),
        (["old"], r"no evaluation with predictions.npz is in \S*/old; give run folders"),
        (["nowhere"], "nowhere is no folder"),
    ):
        with pytest.raises(UserError, match=words):
            compared(*(tmp_path / name for name in names))
    assert compared(tmp_path / "a", tmp_path / "old")[1][-1].startswith("1 of 2 results are left out")
    write(tmp_path / "old", right, "lincls", method="npid", seed=0)
    (tmp_path / "old/knn/result.json").write_text('{"top1": 0.8')
    lines = compared(tmp_path / "a", tmp_path / "old")[1]
    assert lines.count("Not in this table, for lack of such a result: old.") == 1  # in kNN's
    assert lines.count("Not in this table, for lack of such a result: a.") == 1  # in the linear probe's
    damaged = f"Left out: {tmp_path / 'old/knn/result.json'} is damaged; evaluate again."
    assert lines[-1] == damaged
    assert accuracies.markdown(results.folders([str(tmp_path / "old")])).splitlines()[-1] == damaged


def test_runs_need_no_flag(tmp_path, capsys):
    """moco-tf compare RUN RUN, and table; runs without a flags.cfg are no recipe's."""
    assert defaults.words(Table, ["table", "a", "b"]) == ["table", "--workdir=a,b"]
    assert defaults.words(Compare, ["compare", "a", "b"]) == ["compare", "--workdir=a,b"]
    assert defaults.words(Compare, ["compare", "--workdir", "a"]) == ["compare", "--workdir", "a"]
    for name in ("x", "y"):
        write(tmp_path / name, np.arange(Q) % 5 > 0)
    call("compare", workdir=f"{tmp_path}/x,{tmp_path}/y")
    assert re.search(
        r"^\| x - y \| 0.00 \| .* \| 1 \| no difference can be seen \|$", capsys.readouterr().out, re.MULTILINE
    )
