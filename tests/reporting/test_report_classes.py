"""The report's section of classes: by moco_tf.knn's counts or its own, each of few classes, a summary of many."""

import json

import numpy as np
import pytest
from test_report import Page

from moco_tf import report
from moco_tf.data.sources import ArraySource
from moco_tf.evaluation import scores
from moco_tf.reporting import classes, page, runs, sections
from moco_tf.reporting.subject import Embedded, Subject


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    """A page of 30 classes, two test images each; those of class 7 are taken for class 9, one of class 3 is, too."""
    names, labels = tuple(f"class {n}" for n in range(30)), np.repeat(np.arange(30, dtype=np.int32), 2)
    predicted = np.where(labels == 7, 9, labels)
    predicted[6] = 9
    rng = np.random.default_rng(0)
    source = ArraySource("noise", rng.integers(0, 256, (60, 8, 8, 3), np.uint8), labels, names)
    some = Embedded(source, np.arange(60), labels, rng.standard_normal((60, 4)).astype(np.float32))
    nearest = np.tile(np.arange(4), (60, 1))
    seen = Subject("step-1", some, some, names, predicted, np.ones((60, 4)), nearest, 3, "", "Not of all.")
    run = runs.Run("r", tmp_path_factory.mktemp("many"), [{"step": 1.0, "loss": 2.0}], {}, [])
    the_map, *_ = sections.the_map(seen, 60, 0)
    made = report.of_files([run]) | dict.fromkeys(("views", "spread"), "None.")
    made |= {"neighbours": sections.neighbours(seen, 0), "map": the_map, "classes": sections.class_table(run, seen)}
    text = page.render(**made, data={"map": the_map.pop("data"), "charts": sections.readings(made)})
    (run.folder / "report.html").write_text(text)
    return run.folder / "report.html"


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
    (folder / "flags.cfg").write_text(f"--feature={feature}\n")
    result = {"k": 4, "subject": f"/elsewhere/checkpoints/{step}", "dataset": "d"}
    (folder / "result.json").write_text(json.dumps(result))
    run = runs.Run("r", tmp_path, [], {}, [])
    found = classes.of_knn(run, "here/checkpoints/step-2")
    if step == "step-3":
        assert found is None
        return
    np.testing.assert_array_equal(found[0], counts)
    what = "the pooled features" if feature == "backbone" else "the output of the head"
    assert found[1:] == (
        ("a,b", "c"),
        f"kNN (k = 4) on {what}: 90.00\N{NO-BREAK SPACE}% of 10 test images of d, as moco_tf.knn evaluated them.",
    )
    assert classes.summary(*found[:2])["rows"] == [("a,b", 4, 0.75), ("c", 6, 1.0)]
    for broken in (",a\n", ",a\na,x\n", ",a,b\na,1,2\n", "", ",a\na,0\n"):
        (folder / "confusion.csv").write_text(broken)
        assert classes.of_knn(run, "step-2") is None
