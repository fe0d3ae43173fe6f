"""The report's section of classes: by moco_tf.knn's counts or its own, each of few classes, a summary of many."""

import json

import numpy as np
import pytest
from support.report_pages import Page

from moco_tf.evaluation import scores
from moco_tf.reporting import classes
from moco_tf.reporting.results import RunRecord
from moco_tf.run.folder import Metrics, RunFolder


def test_many_classes_are_summarised(many_classes):
    """How many have which accuracy, the lowest, the commonest confusions; one selection instead of so many buttons."""
    shown = Page(many_classes)
    text = shown.text("classes")
    assert "95.00 % of 60 test images against 60 training images. Not of all." in text  # 3 of 60 are wrong
    assert "0 to 10 % 1 10 to 20 % 0 " in text and "50 to 60 % 1 60 to 70 % 0" in text and "90 to 100 % 28 " in text
    assert "Lowest accuracy class images accuracy class 7 2 0.0 % class 3 2 50.0 % class 0 2 100.0 %" in text
    assert "taken for images class 7 class 9 2 class 3 class 9 1 All 30 classes" in text
    assert "too large for a page; moco_tf.knn writes it" in text
    assert len(shown.all("option")) == 31 and not [b for b in shown.all("button") if "data-class" in b]


@pytest.mark.parametrize("step, feature", [("step-2", "backbone"), ("step-2", "head"), ("step-3", "head")])
def test_classes_by_moco_tf_knn(step, feature, tmp_path):
    """What moco_tf.knn counted on all images comes first, if it is of this checkpoint."""
    folder = tmp_path / "knn"
    folder.mkdir()
    counts = np.array([[3, 1], [0, 6]])
    scores.write_confusion(folder / "confusion.csv", counts, ("a,b", "c"))
    result = {"k": 4, "subject": f"/elsewhere/checkpoints/{step}", "dataset": "d", "feature": feature}
    result |= {"top1": 0.9, "evaluation": "kNN"}
    (folder / "result.json").write_text(json.dumps(result))
    run = RunRecord("r", RunFolder(tmp_path), Metrics([], []), {}, [])
    found = classes.of_knn(run, "here/checkpoints/step-2")
    if step == "step-3":
        assert found is None
        return
    np.testing.assert_array_equal(found.counts, counts)
    what = "the pooled features" if feature == "backbone" else "the output of the head"
    assert (found.names, found.says) == (
        ("a,b", "c"),
        f"kNN (k = 4) on {what}: 90.00\N{NO-BREAK SPACE}% of 10 test images of d, as moco_tf.knn evaluated them.",
    )
    assert classes.summary(found)["rows"] == [("a,b", 4, 0.75), ("c", 6, 1.0)]
    other = RunRecord("r", run.folder, run.metrics, {"dataset": "other"}, [])
    assert classes.of_knn(other, "step-2") is None  # counted on other images than the run's
    split, flags = "9 held-out training images", {"dataset": "d", "holdout": "9"}
    held_out = RunRecord("r", run.folder, run.metrics, flags, [])
    assert classes.of_knn(held_out, "step-2") is None  # the test images, not the run's held-out ones
    for settings, counted in (({"k": "4"}, True), ({"image_size": "20"}, False), ({"normalise": "none"}, False)):
        (folder / "result.json").write_text(json.dumps({**result, "split": split, "settings": settings}))
        assert classes.of_knn(RunRecord("r", run.folder, run.metrics, {"dataset": "d"}, []), "step-2") is None
        found = classes.of_knn(held_out, "step-2")
        assert bool(found) == counted and (not found or "of 10 held-out training images of d" in found.says)
    (folder / "result.json").write_text(json.dumps(result))
    for broken in (",a\n", ",a\na,x\n", ",a,b\na,1,2\n", "", ",a\na,0\n"):
        (folder / "confusion.csv").write_text(broken)
        assert classes.of_knn(run, "step-2") is None
