"""Damaged, foreign and absurd files: one line from --load, show and export, and nothing is left behind."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
from support.foreign_networks import network
from support.programs import call, start
from support.sources_of_encoders import KINDS, make

from moco_tf.errors import UserError
from moco_tf.formats import pth as torch_file
from moco_tf.formats.load import load
from moco_tf.training import checkpoint


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """{kind: a whole source}"""
    folder = tmp_path_factory.mktemp("sound")
    return {kind: make(kind, folder) for kind in KINDS if kind != "checkpoint"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "checkpoint"])
def test_whole_ones_are_taken(kind, sound):
    assert load(str(sound[kind])).encoder.config["head"] == "mlp"


def refused(path, folder):
    """All three refuse it in one line that names it, and write nothing."""
    before = {place: place.stat().st_mtime_ns for place in folder.rglob("*")}
    for attempt in (
        lambda: load(str(path)),
        lambda: call("show", load=path),
        lambda: call("export", load=path, output=folder / "out" / "encoder"),
        lambda: call("export", load=path, output=folder / "out.pth", format="pth"),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        message = str(caught.value)
        assert "\n" not in message and path.name in message and len(message) < 1500, message
    assert {place: place.stat().st_mtime_ns for place in folder.rglob("*")} == before
    return message


def random_bytes(data):
    return np.random.default_rng(0).bytes(len(data))


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "its beginning": lambda data: data[:100],
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-1],
    "noise": random_bytes,
    "its beginning, then noise": lambda data: data[:64] + random_bytes(data[64:]),
    "its middle is noise": lambda data: data[:200] + random_bytes(data[200:5000]) + data[5000:],
    "text": lambda data: b"weights, weights\n" * 100,
    "a picture": lambda data: b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(500),
    "an empty zip archive": lambda data: b"PK\x05\x06" + bytes(18),
}
FILES = [kind for kind in KINDS if "." in kind]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage, sound, tmp_path):
    for kind in FILES:
        path = tmp_path / kind
        path.write_bytes(DAMAGES[damage](sound[kind].read_bytes()))
        refused(path, tmp_path)


@pytest.mark.parametrize("file", ["variables.index", "variables.data-00000-of-00001", checkpoint.DESCRIPTION])
@pytest.mark.parametrize("damage", ["empty", "half", "without its end", "noise"])
def test_damaged_checkpoints(file, damage, sound, tmp_path):
    place = shutil.copytree(sound["run"] / "checkpoints/step-00000020", tmp_path / "step-00000020")
    (place / file).write_bytes(DAMAGES[damage]((place / file).read_bytes()))
    refused(place, tmp_path)


def redescribe(place, change):
    """Changes checkpoint.json."""
    about = json.loads((place / checkpoint.DESCRIPTION).read_text())
    change(about)
    (place / checkpoint.DESCRIPTION).write_text(json.dumps(about))


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["encoder"].update(width=10**6),  # it would be built before it is compared
        lambda about: about["encoder"].update(feature_dim=10**12),
        lambda about: about["encoder"].update(hidden_dim=10**12),
        lambda about: about["encoder"].update(arch="resnet18"),
        lambda about: about["encoder"].update(arch=["resnet10"]),
        lambda about: about["encoder"].update(depth=3),
        lambda about: about["encoder"].update(bn_splits="two"),
        lambda about: about.update(encoder="resnet10"),
        lambda about: about.update(mean="grey"),
        lambda about: about.update(std=[0.1, 0.2]),
        lambda about: about.update(std=[0.0, 0.2, 0.3]),
        lambda about: about.update(image_size=10**9),
        lambda about: about.update(image_size=-1),
        lambda about: about.pop("encoder"),
    ],
)
def test_checkpoints_with_wrong_descriptions(change, sound, tmp_path):
    place = shutil.copytree(sound["run"] / "checkpoints/step-00000020", tmp_path / "step-00000020")
    redescribe(place, change)
    refused(place, tmp_path)


def test_a_linear_probe_is_called_so(sound, tmp_path):
    place = shutil.copytree(sound["run"] / "checkpoints/step-00000020", tmp_path / "step-00000020")
    about = checkpoint.describe(place)
    probe = {"dataset": "folder", "classes": ["a", "b"], "ranks": 1}  # what lincls writes besides step and files
    (place / checkpoint.DESCRIPTION).write_text(json.dumps(probe | {"step": 20, "files": about["files"]}))
    with pytest.raises(
        UserError, match="a linear probe's, .* expected a pre-training's; give the run folder"
    ) as caught:
        load(str(place))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"checkpoint {place}: ")


def test_huge_description(sound, tmp_path):
    run = shutil.copytree(sound["run"], tmp_path / "run")
    for place in (run / "checkpoints").iterdir():
        with open(place / checkpoint.DESCRIPTION, "ab") as file:
            file.truncate(10**12)  # sparse
    assert "bytes, expected a few thousand" in refused(run, tmp_path)


def test_huge_file(tmp_path):
    with open(tmp_path / "huge.pth", "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(10**12)  # sparse
    assert "1,000.0 GB" in refused(tmp_path / "huge.pth", tmp_path)


def test_folders_in_place_of_files(tmp_path):
    for name in ("encoder.pth", "run"):
        (tmp_path / name).mkdir()
        refused(tmp_path / name, tmp_path)


# Small files that promise much


def npz_of_zeros(path):
    """A thousandfold compressed."""
    np.savez_compressed(path, **{"conv0/W": np.zeros(10**8, np.uint8)})


def npz_of_a_header(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conv0/W.npy", header.getvalue() + bytes(64))


def npz_of_objects(path):
    np.savez(path, **{"conv0/W": np.array([{}], object)})


def pth_of_a_wide_stem(path):
    """The first layer is there; the last, by its width, would take terabytes."""
    state = network("resnet10", 4, 3, "none")
    torch_file.write_tensors(
        path,
        {**state, "conv1.weight": np.zeros((10**5, 3, 3, 3), "f4")}
        | {"layer1.0.conv1.weight": np.zeros((10**5, 1, 1, 1), "f4")},
    )


def pth_of_a_wide_head(path):
    state = network("resnet10", 4, 3, "mlp")
    torch_file.write_tensors(
        path, {**state, "fc.0.weight": np.zeros((10**6, 1), "f4"), "fc.2.weight": np.zeros((10**6, 1), "f4")}
    )


def pkl_of_a_length(path):
    path.write_bytes(b"\x80\x03B" + struct.pack("<I", 2**32 - 1) + b"x.")


def pkl_of_a_deep_list(path):
    path.write_bytes(b"\x80\x03" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".")


def pkl_of_many_references(path):
    """Lists of lists of one list: billions when they are counted one by one."""
    value = []
    for _ in range(60):
        value = [value] * 10
    path.write_bytes(pickle.dumps({"model": value, "__author__": "x"}, 3))


@pytest.mark.parametrize(
    "write",
    [
        *(npz_of_zeros, npz_of_a_header, npz_of_objects, pth_of_a_wide_stem, pth_of_a_wide_head),
        *(pkl_of_a_length, pkl_of_a_deep_list, pkl_of_many_references),
    ],
)
def test_bombs(write, tmp_path):
    path = tmp_path / f"bomb.{write.__name__.partition('_')[0]}"
    write(path)
    refused(path, tmp_path)


def test_a_program_exits_with_one_line(tmp_path):
    (tmp_path / "half.keras").write_bytes(b"PK\x03\x04half")
    process = start("show", load=tmp_path / "half.keras")
    _, error = process.communicate(timeout=300)
    lines = [line for line in error.splitlines() if line.startswith("moco_tf.")]
    assert process.returncode == 1 and "Traceback" not in error
    assert len(lines) == 1 and lines[0].startswith("moco_tf.show: ") and "half.keras" in lines[0]
