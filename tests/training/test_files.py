"""Files written as a whole, exceptions in one line, checksums."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "numbers.npy"
    for array in (np.arange(3), np.arange(4)):
        with files.replacing(path) as draft:
            np.save(draft, array)
            assert draft.suffix == ".npy" and path.exists() == (len(array) == 4)
        assert np.load(path).tolist() == array.tolist() and names(tmp_path) == ["numbers.npy"]


@pytest.mark.parametrize("error, raised", [(OSError(28, "No space left on device"), UserError), (KeyError(), KeyError)])
def test_an_error_leaves_the_old_file(error, raised, tmp_path):
    path = tmp_path / "text"
    files.write_whole(path, "old")
    with pytest.raises(raised), files.replacing(path) as draft:
        draft.write_text("new")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["text"]


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*text \(No such file or directory\); free or mend the disk$"):
        files.write_whole(tmp_path / "nowhere" / "text", "new")


def test_run_folder(tmp_path):
    for _ in range(2):
        files.make_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"--workdir={path} cannot be written .*; give another folder"):
            files.make_folder(path)


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError(" two\n lines\t"), "two lines"),
        (ValueError("x" * 300), "x" * 200),
        (ValueError(), "ValueError"),
        (KeyError("mean"), "KeyError 'mean'"),
        (
            tf.errors.UnknownError(
                None, None, "{{function_node __wrapped__SaveV2}} /runs/1/x.tmp; No space left; it is full [Op:SaveV2]"
            ),
            "No space left; it is full",
        ),
        (
            tf.errors.InvalidArgumentError(None, None, "Traceback ...\nUnknown image\n\t [[{{node Decode}}]] [Op:G]"),
            "Unknown image",
        ),
        (tf.errors.DataLossError(None, None, ""), "DataLossError"),
    ],
)
def test_one_line(error, line):
    assert files.one_line(error) == line


def test_digest():
    array, text = np.arange(6).reshape(2, 3).T, b"x" * (1 << 21)
    assert files.digest([array, text]) == hashlib.sha256(array.tobytes() + text).hexdigest()
