"""The Python of README.md runs as it stands there."""

import pathlib
import re

import numpy as np

from moco_tf.data.sets import fashion_mnist
from moco_tf.data.sources import ArraySource

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_python_of_readme(tmp_path, monkeypatch):
    """On 400 random images in place of Fashion-MNIST: three steps, kNN on the run's own set, an export."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 28, 28, 1), np.uint8), np.arange(400, dtype=np.int32) % 10
    source = ArraySource("fashion_mnist", images, labels, fashion_mnist.CLASS_NAMES)
    monkeypatch.setattr(fashion_mnist, "load", lambda split, data_dir=None: source)
    monkeypatch.chdir(tmp_path)
    section = README.read_text(encoding="utf-8").partition("## In Python\n")[2].partition("\n## ")[0]
    code = "\n".join(line[4:] for line in re.findall("^(?:    .*)?$", section, re.MULTILINE))
    found = {}
    exec(compile(code, str(README), "exec"), found)
    assert found["features"].shape == (2, 128) and [line["step"] for line in found["metrics"]] == [3]
    assert (tmp_path / "runs/first/knn/result.json").is_file() and (tmp_path / "encoder/saved_model.pb").is_file()
