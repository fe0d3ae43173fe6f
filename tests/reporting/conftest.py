"""Runs and their report pages."""

import numpy as np
import pytest
from support.programs import TINY, call, write_photos
from support.report_pages import HOSTILE

from moco_tf.data.sources import ArraySource
from moco_tf.reporting import page, sections
from moco_tf.reporting.examined import Embedded, Examination, Examined
from moco_tf.reporting.results import RunRecord
from moco_tf.run.folder import Metrics, RunFolder
from moco_tf.training import device


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """TensorFlow of this process has chosen its threads already."""
    monkeypatch.setattr(device, "configure", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_photos(folder / "train", HOSTILE, count=20)
    write_photos(folder / "val", HOSTILE, count=8, seed=1)
    for number in range(3):  # wrong labels, so that some are missed
        first, second = (folder / "val" / name / f"0{number}.png" for name in HOSTILE[:2])
        first.rename(folder / "spare.png")
        second.rename(first)
        (folder / "spare.png").rename(second)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run folder that was evaluated with kNN, and its report."""
    workdir = tmp_path_factory.mktemp("runs") / "run<b>"
    values = {**TINY, "steps": 6, "knn_every": 1, "jit_compile": "false", "dataset": "folder", "data_dir": data}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "configure", lambda *_: None)
        call("pretrain", "debug/pretrain.cfg", workdir=workdir, **values)
        call(
            "knn", load=workdir, dataset="folder", data_dir=data, k=5, batch_size=16, measures="rankme,alpha_req,lidar"
        )
        call("report", workdir=workdir)
    return workdir


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
    seen = Examined("step-1", some, some, names, predicted, np.ones((60, 4)), nearest, 3, "", "Not of all.")
    folder = RunFolder(tmp_path_factory.mktemp("many"))
    run = RunRecord("r", folder, Metrics([{"step": 1.0, "loss": 2.0}], []), {}, [])
    made = sections.of_files([run])
    sections.add_images(made, [run], Examination("None", seen, {"r": "None"}), sections.the_map(seen, 60))
    page.write(folder.report, page.render(made))
    return folder.report
