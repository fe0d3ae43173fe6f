"""The debug recipe as it is on eight ranks; tests/run/test_ranks.py compares runs of one, two and four."""

import pytest
from support.marks import needs_fashion_mnist
from support.programs import losses, metrics
from support.ranks import launch


@pytest.mark.system
@pytest.mark.horovod
@needs_fashion_mnist
def test_debug_recipe_on_eight_ranks(tmp_path):
    out = launch(8, "pretrain", "debug/pretrain.cfg", workdir=tmp_path, steps=10, timeout=900)
    assert out.count("done: 10 steps") == 1
    assert sorted(losses(tmp_path)) == [5, 10]
    assert 0.1 < metrics(tmp_path)[-1]["knn_top1"] <= 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
