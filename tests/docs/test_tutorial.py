"""The tutorial runs as it stands, and is kept without outputs."""

import pathlib
import re

import nbclient
import nbformat
from support.marks import needs_fashion_mnist

NOTEBOOK = pathlib.Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


@needs_fashion_mnist
def test_tutorial_runs(monkeypatch, tmp_path):
    """Every cell runs; the pictures are there, kNN is far above chance and the export gives the encoder's features."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "kept with outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(
        output["text"] for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    assert "'temprature' is no flag of moco_tf.pretrain; did you mean temperature?" in printed
    assert float(re.search(r"kNN top-1 ([\d.]+)%", printed)[1]) > 35
    assert float(re.search(r"largest difference: (\S+) of the largest value", printed)[1]) < 1e-5
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
