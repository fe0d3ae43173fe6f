"""The commands of docs/own_images.md, as they stand there, one after the other on a small folder of images."""

import pathlib
from importlib import import_module

import numpy as np
import pytest
from support.programs import make_photos

from moco_tf.config import define
from moco_tf.config.options import PROGRAMS
from moco_tf.run import defaults

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "own_images.md"
SHORT = {"pretrain": ["--steps=3", "--jit_compile=false"]}  # everything else is as it stands


def run(program, words):
    """As program.run does, in this process."""
    options = define.parse(PROGRAMS[program], defaults.words(PROGRAMS[program], [program, *words]))
    import_module(f"moco_tf.{program}").main(defaults.completed(options))


def test_commands(tmp_path, monkeypatch, capsys):
    """Vectors of all images, a report, neighbours, an accuracy; the page's Python reads the vectors."""
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("    moco-tf ")]
    assert [program for program, *_ in commands] == ["pretrain", "embed", "neighbours", "report", "lincls"]
    for program, *words in commands:
        run(program, [*words, *SHORT.get(program, [])])
    found = {}
    exec("\n".join(line[4:] for line in lines if line.startswith(("    import ", "    table "))), found)
    vectors = np.stack(found["table"]["vector"].to_numpy())
    assert len(vectors) == 3 * (30 + 8) and np.isfinite(vectors).all()
    photos = tmp_path / "runs" / "photos_moco"
    assert (photos / "report.html").is_file() and (photos / "lincls" / "result.json").is_file()
    said = capsys.readouterr().out
    assert "time: about" in said and "done: 3 steps" in said
