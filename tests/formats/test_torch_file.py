"""Files of torch.save: what is read, what is refused, and that nothing in a file is ever executed."""

import io
import os
import pathlib
import pickle
import pickletools
import random
import struct
import sys
import zipfile

import numpy as np
import pytest

from moco_tf.errors import UserError
from moco_tf.formats import pth as torch_file
from moco_tf.formats import torch_pickle

DATA = pathlib.Path(__file__).parents[1] / "fixtures" / "torch_files"
X = np.arange(12, dtype=np.float32).reshape(3, 4)
FLOATS = b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"  # MARK and storage 0 of 4 elements


def zip_file(path, data_pkl, storages=(b"\0" * 16,), compression=zipfile.ZIP_STORED, root="archive"):
    """A zip-format file around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data_pkl)
        archive.writestr(f"{root}/byteorder", "little")
        for key, content in enumerate(storages):
            archive.writestr(f"{root}/data/{key}", content)
    return path


def legacy_file(path, object_pickle):
    """A legacy-format file around a pickle that refers to storage 0 of four floats, or to none."""
    keys = ["0"] if b"storage" in object_pickle else []
    parts = [torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": True}]
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    path.write_bytes(head + object_pickle + pickle.dumps(keys, 2) + (struct.pack("<q", 4) + b"\0" * 16) * len(keys))
    return path


def refused(path):
    """The message of the UserError that reading must raise: one line that names the file."""
    with pytest.raises(UserError) as caught:
        torch_file.read(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message, message
    return message


@pytest.fixture(params=["zip", "legacy"])
def plant(request, tmp_path):
    """Writes a pickle into a file of either format."""
    make = zip_file if request.param == "zip" else legacy_file
    return lambda data: make(tmp_path / "planted.pth", data)


# What PyTorch wrote.


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_reads_what_pytorch_wrote(name):
    data = torch_file.read(DATA / name)
    for key, dtype in {"float": "f4", "half": "f2", "double": "f8", "bfloat16": "f4", "long": "i8"}.items():
        assert data[key].dtype == dtype
        np.testing.assert_array_equal(data[key], X)
    for key, dtype in {"int": "i4", "short": "i2", "char": "i1", "byte": "u1"}.items():
        assert data[key].dtype == dtype
        np.testing.assert_array_equal(data[key], X)
    np.testing.assert_array_equal(data["bool"], X > 5)
    np.testing.assert_array_equal(data["transposed"], X.T)
    np.testing.assert_array_equal(data["column"], X[:, 1])
    np.testing.assert_array_equal(data["parameter"], X[1:])
    np.testing.assert_array_equal(data["optimizer"]["state"][0]["momentum_buffer"], X)
    assert data["scalar"].shape == () and data["scalar"] == 7
    assert data["empty"].shape == (0, 3)
    assert np.shares_memory(data["float"], data["transposed"])
    assert list(data["state_dict"]) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    plain = {"size": (3, 4), "integer": 3, "big": 2**40, "real": 2.5, "none": None, "true": True, "text": "é"}
    plain |= {"bytes": b"\xff\x00", "tuple": (1, (2, [3])), "set": {1, 2}}
    assert {key: data[key] for key in plain} == plain
    assert type(data) is dict and data["optimizer"]["param_groups"] == [{"lr": 0.03, "params": [0]}]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(protocol):
    data = {"a": [1, 2**40, -(10**30), 2.5, "é", b"\xff\0", None, True, (), (1, 2, 3, 4)], "b": {"c": {1, 2}, 3: "x"}}
    stream = io.BytesIO(pickle.dumps([data, frozenset((3, "y")), data["a"]], protocol) + b"rest")
    assert torch_pickle.load(stream, None) == [data, {3, "y"}, data["a"]]
    assert stream.read() == b"rest"


def test_calls_that_copy_again_and_again_are_refused(monkeypatch):
    """A few bytes each, and each would copy the whole list."""
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 10_000)
    listed = b"](" + b"K\x01" * 1000 + b"eq\0"
    data = b"\x80\x02(" + listed + b"c__builtin__\nset\nq\x01" + b"h\x01h\0\x85R" * 10 + b"l."
    with pytest.raises(UserError, match="more than"):
        torch_pickle.load(io.BytesIO(data), None)


def test_bfloat16_values():
    decoded = torch_pickle.STORAGE_TYPES["torch BFloat16Storage"].decode(b"\x80\x3f\x49\x40\x80\xff")
    np.testing.assert_array_equal(decoded, np.float32([1.0, 3.140625, -np.inf]))


def test_big_endian_zip(tmp_path):
    path = tmp_path / "big.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", tensor())
        archive.writestr("a/byteorder", "big")
        archive.writestr("a/data/0", np.arange(4, dtype=">f4").tobytes())
    np.testing.assert_array_equal(torch_file.read(path), np.arange(4))


@pytest.mark.parametrize(
    "name, word",
    [
        ("sparse.pth", "torch._utils._rebuild_sparse_tensor"),
        ("quantized.pth", "torch._utils._rebuild_qtensor"),
        ("module.pth", "torch.nn.modules.linear.Linear"),
        ("dtype.pth", "torch.float32"),
    ],
)
def test_refuses_other_objects_by_name(name, word):
    assert word in refused(DATA / name)


# What must never run.


class _Planted:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_planted_system_call_is_refused_by_name(plant, tmp_path, protocol):
    marker = tmp_path / "marker"
    message = refused(plant(pickle.dumps({"state_dict": _Planted(marker)}, protocol)))
    assert f"{os.system.__module__}.system" in message
    assert not marker.exists()


def stack_global(module, name):
    encode = lambda text: b"\x8c" + bytes([len(text)]) + text.encode()  # noqa: E731 SHORT_BINUNICODE
    return b"\x80\x04" + encode(module) + encode(name) + b"\x93"


ATTACKS = {
    "eval": b"\x80\x02cbuiltins\neval\n(U\x041+1\x85tR.",
    "torch.load": b"\x80\x02ctorch\nload\n(U\x01xtR.",
    "torch.serialization": b"\x80\x02ctorch.serialization\nload\n.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n.",
    "namespace": b"\x80\x02cargparse\nNamespace\n)R.",
    "dotted": stack_global("collections", "OrderedDict.__init__.__globals__") + b".",
    "dotted module": stack_global("moco_tf.formats.pth", "os.system") + b".",
    "newline in a name": stack_global("posix\nsystem", "x") + b".",
    "name of numbers": b"\x80\x04K\x01K\x02\x93.",
    "inst": b"(U\x02idios\nsystem\n.",
    "inst of a known name": b"(icollections\nOrderedDict\n.",
    "obj": b"(ccollections\nOrderedDict\no.",
    "newobj": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "newobj_ex": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "ext": b"\x80\x02\x82\x01.",
    "build on a function": b"\x80\x02ccollections\nOrderedDict\n}U\x04callcos\nsystem\nsb.",
    "build on a known function": b"\x80\x02ccollections\nOrderedDict\n}U\x04callK\x01sb.",
    "build on a tensor type": b"\x80\x02ctorch\nFloatStorage\n}b.",
    "build on a list": b"\x80\x02]}b.",
    "call of a storage type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "call of a string": b"\x80\x02U\x01x)R.",
    "call without a tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "function as a value": b"\x80\x02}U\x01accollections\nOrderedDict\ns.",
    "type as a value": b"\x80\x02]ctorch\nFloatStorage\na.",
    "dict from a number": b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
    "unknown codec": b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R.",
    "tensor as a key": b"\x80\x02}ctorch._utils\n_rebuild_tensor_v2\n" + FLOATS + b"K\0))\x89NtRK\x01s.",
    "list as a key": b"\x80\x02}]K\x01s.",
    "function as a key": b"\x80\x02}ccollections\nOrderedDict\nK\x01s.",
    "tuple as a key": b"\x80\x02}K\x01\x85K\x01s.",
    "bytes into a set": b"\x80\x04\x8f(]\x90.",
    "text persistent id": b"Pstorage\n.",
    "number as persistent id": b"\x80\x02K\x01Q.",
    "module as persistent id": b"\x80\x02(U\x06moduleK\x01K\x01K\x01K\x01tQ.",
    "storage key with a path": b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x04../0U\x03cpuK\x04tQ.",
    "bare storage": b"\x80\x02" + FLOATS[1:] + b".",
    "huge integer": b"\x80\x02\x8b" + struct.pack("<i", 1000) + b"\x01" * 1000 + b".",
    "huge length": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "missing memo": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02\x86.",
    "append to nothing": b"\x80\x02K\x01a.",
    "no stop": b"\x80\x02K\x01",
    "two values": b"\x80\x02K\x01K\x02.",
    "open mark": b"\x80\x02(K\x01.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(plant, name):
    refused(plant(ATTACKS[name]))


def test_attacks_leave_the_stand_ins_as_they_are(plant):
    """A stand-in that a file could change would open every later file."""
    before = {name: vars(entry).copy() for name, entry in torch_pickle.FUNCTIONS.items()}
    for attack in ATTACKS.values():
        refused(plant(attack))
    assert before == {name: vars(entry) for name, entry in torch_pickle.FUNCTIONS.items()}


def tensor(offset=b"K\0", size=b"K\x04\x85", stride=b"K\x01\x85"):
    """The pickle of a tensor of storage 0 (four floats)."""
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + FLOATS + offset + size + stride + b"\x89NtR."


BEYOND = {
    "offset": {"offset": b"K\x01"},
    "huge offset": {"offset": b"\x8a\x09" + b"\xff" * 8 + b"\x00"},
    "negative offset": {"offset": b"J\xff\xff\xff\xff"},
    "size": {"size": b"K\x05\x85"},
    "huge size": {"size": b"\x8a\x08" + b"\xff" * 7 + b"\x3f\x85"},
    "stride": {"stride": b"K\x02\x85"},
    "negative stride": {"offset": b"K\x03", "stride": b"J\xff\xff\xff\xff\x85"},
    "expanded": {"size": b"Mh\x42\x85", "stride": b"K\0\x85"},
    "ranks": {"stride": b"K\x01K\x01\x86"},
    "float": {"size": b"G" + struct.pack(">d", 4.0) + b"\x85"},
    "bool": {"offset": b"\x88"},
    "huge zero": {"size": b"K\0\x8a\x08" + b"\xff" * 7 + b"\x3f\x86", "stride": b"K\x01K\x01\x86"},
    "overflowing stride": {"size": b"K\x01K\x01\x86", "stride": b"\x8a\x08" + b"\xff" * 7 + b"\x3fK\x01\x86"},
}


def test_a_tensor_of_the_whole_storage_is_read(plant):
    np.testing.assert_array_equal(torch_file.read(plant(tensor())), np.zeros(4))


@pytest.mark.parametrize("case", BEYOND)
def test_tensors_outside_of_their_storage_are_refused(plant, case):
    refused(plant(tensor(**BEYOND[case])))


def test_storages_larger_than_the_file_are_refused(plant):
    refused(plant(tensor().replace(b"cpuK\x04", b"cpuJ\xff\xff\xff\x7f")))
    refused(plant(tensor().replace(b"cpuK\x04", b"cpuK\x05")))


def test_deep_nesting_is_refused_and_does_not_crash(plant):
    depth = 200_000
    assert "deep" in refused(plant(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    assert "deep" in refused(plant(b"\x80\x02)" + b"\x85" * depth + b"."))
    assert "deep" in refused(plant(b"\x80\x02]q\0h\0a."))  # a list that contains itself


def test_shared_nesting_is_read_in_linear_time(plant):
    data = b"\x80\x02)" + b"q\0h\0\x86" * 60 + b"."  # 2**60 leaves if walked as a tree
    assert type(torch_file.read(plant(data))) is tuple


# Damaged and foreign files.


def test_other_files_are_refused_with_what_they_are(tmp_path):
    cases = {
        b"": "empty",
        b"hello\nworld": "neither",
        b"\x08\x08\x12\x07tf2onnx": "ONNX",
        b"\x1c\0\0\0TFL3": "TensorFlow Lite",
        b"\xfd7zXZ\x00\x00": "xz -d",
        b"\x1f\x8b\x08": "gzip -d",
        b"BZh91AY": "bzip2 -d",
        b"\0" * 257 + b"ustar\0" + b"\0" * 300: "tar -xf",
        b"\x89HDF\r\n": "HDF5",
        pickle.dumps([1, 2], 2): "magic",
        b"PK\x03\x04": "damaged",
        b"\x80": "damaged",
    }
    path = tmp_path / "weights.pth"
    for content, word in cases.items():
        path.write_bytes(content)
        assert word in refused(path)
    assert "directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "nothing.pth")


def test_other_zip_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "without data.pkl" in refused(tmp_path / "plain.zip")
    assert "compressed" in refused(zip_file(tmp_path / "deflated.pth", tensor(), compression=zipfile.ZIP_DEFLATED))
    assert "bytes" in refused(zip_file(tmp_path / "short.pth", tensor(), storages=[b"\0" * 12]))
    assert "missing" in refused(zip_file(tmp_path / "without.pth", tensor(), storages=[]))
    with zipfile.ZipFile(zip_file(tmp_path / "script.pth", tensor()), "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert "TorchScript" in refused(tmp_path / "script.pth")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_cut_files_are_refused(name, tmp_path):
    content = (DATA / name).read_bytes()
    path = tmp_path / "cut.pth"
    for size in sorted({*range(0, len(content), len(content) // 40), len(content) - 1}):
        path.write_bytes(content[:size])
        refused(path)


_EVENTS = []  # an audit hook cannot be removed: one hook, switched on while `_WATCH` is true
_WATCH = [False]
_RUNS = {"import", "exec", "compile", "os.system", "os.exec", "subprocess.Popen", "pickle.find_class"}


def _audit(event, args, watch=_WATCH, runs=_RUNS, events=_EVENTS):
    """Its own defaults, not the module's names: those are gone when the interpreter ends and the hook is called yet."""
    if watch[0] and event in runs:
        events.append((event, args))


def watched(path):
    """Reads a file; whatever comes of it, nothing may be imported or executed."""
    _WATCH[0] = True
    try:
        torch_file.read(path)
    except UserError as e:
        assert "\n" not in str(e)
    finally:
        _WATCH[0] = False


@pytest.mark.parametrize("what", ["pickle in a zip file", "zip file", "legacy file"])
def test_flipped_bytes_never_run_or_import_anything(what, tmp_path):
    rng = random.Random(1)
    path = tmp_path / "flipped.pth"
    content, write = (DATA / ("legacy.pth" if "legacy" in what else "zip.pth")).read_bytes(), path.write_bytes
    if what.startswith("pickle"):
        with zipfile.ZipFile(DATA / "zip.pth") as archive:
            content = archive.read("zip/data.pkl")
            storages = [archive.read(f"zip/data/{i}") for i in range(sum("/data/" in n for n in archive.namelist()))]
        write = lambda data: zip_file(path, data, storages)  # noqa: E731
    write(content)
    torch_file.read(path)
    "é".encode("cp437", "ignore")  # a codec that zipfile loads on first use
    sys.addaudithook(_audit)
    modules = set(sys.modules)
    for _ in range(400):
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 4])):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        write(bytes(flipped))
        watched(path)
    assert not _EVENTS
    assert set(sys.modules) == modules


def test_random_opcodes_raise_nothing_but_user_errors(plant):
    rng = random.Random(2)
    codes = [op.code.encode("latin-1") for op in pickletools.opcodes]
    for _ in range(300):
        body = b"".join(rng.choice(codes) + rng.randbytes(rng.randrange(3)) for _ in range(20))
        try:
            torch_file.read(plant(b"\x80\x02" + body + b"."))
        except UserError as e:
            assert "\n" not in str(e)


# Writing.


def state():
    rng = np.random.default_rng(0)
    out = {f"layer.{d}": rng.normal(size=(2, 3, 4)).astype(d) for d in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1")}
    out["bool"] = np.array([True, False])
    out["transposed"] = np.asfortranarray(rng.normal(size=(5, 2)).astype("f4"))
    out["scalar"], out["empty"], out["big-endian"] = np.int64(3), np.zeros((0, 4), "f4"), np.arange(3, dtype=">f4")
    return out


def test_write_then_read(tmp_path):
    torch_file.write_tensors(tmp_path / "new.pth", state())
    back = torch_file.read(tmp_path / "new.pth")
    assert list(back) == list(state())
    for name, value in state().items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].dtype == np.asarray(value).dtype.newbyteorder("=")
    assert [p.name for p in tmp_path.iterdir()] == ["new.pth"]


def test_write_refuses_what_pytorch_lacks_and_leaves_nothing(tmp_path):
    path = tmp_path / "new.pth"
    for bad in ({"a": np.zeros(2, np.complex64)}, {"a": np.array(["x"])}, {1: np.zeros(2)}, {"a": np.array([None])}):
        with pytest.raises(UserError):
            torch_file.write_tensors(path, bad)
    with pytest.raises(UserError, match="cannot write"):
        torch_file.write_tensors(tmp_path / "none" / "new.pth", state())
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "old.pth"
    torch_file.write_tensors(path, {"a": np.ones(2, "f4")})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(UserError, match="disk full"):
        torch_file.write_tensors(path, {"a": np.zeros(2, "f4")})
    np.testing.assert_array_equal(torch_file.read(path)["a"], np.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["old.pth"]


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    torch_file.write_tensors(tmp_path / "new.pth", state())
    for options in ({}, {"mmap": True}):
        back = torch.load(tmp_path / "new.pth", weights_only=True, **options)
        assert list(back) == list(state()) and all(tensor.is_contiguous() for tensor in back.values())
        for name, value in state().items():
            np.testing.assert_array_equal(back[name].numpy(), value)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_what_this_pytorch_writes(tmp_path, zip_format, protocol):
    torch = pytest.importorskip("torch")
    x = torch.arange(24.0).view(2, 3, 4)
    data = {"x": x, "view": x.permute(2, 0, 1)[1:, :, ::2], "linear": torch.nn.Linear(2, 3).state_dict(), "n": 10**30}
    buffer = io.BytesIO()
    torch.save(data, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    back = torch_file.read(tmp_path / "x.pth")
    np.testing.assert_array_equal(back["view"], data["view"].numpy())
    np.testing.assert_array_equal(back["linear"]["weight"], data["linear"]["weight"].numpy())
    assert back["n"] == 10**30
