"""One of everything that --load takes, with what it holds."""

import json
import pickle
import re
import struct
import zipfile

import numpy as np
import tensorflow as tf

from moco_tf import formats
from moco_tf.formats import pth as torch_file
from moco_tf.formats.torchvision import get_weights
from moco_tf.training import checkpoint
from support import encoders

RNG = np.random.default_rng(3)
KINDS = (
    "run",
    "checkpoint",
    "official.pth.tar",
    "encoder.pth",
    "legacy.pth",
    "moco.npz",
)
QUEUE, POINTER = RNG.normal(size=(16, 6)).astype(np.float32), 8  # KxC


def make(kind, folder):
    """Writes one; returns its path. All hold the same network."""
    subject = encoders.subject(arch="resnet10", stem="cifar", head="mlp")
    weights = get_weights(subject.encoder)
    if kind in ("run", "checkpoint"):
        return (
            run_folder(subject, folder) if kind == "run" else run_folder(subject, folder) / "checkpoints/step-00000020"
        )
    path = folder / kind
    if kind == "official.pth.tar":
        write_official(path, weights)
    elif kind == "legacy.pth":
        write_legacy(path, weights)
    elif kind == "moco.npz":
        np.savez(path, **tensorpack_names(weights), queue=QUEUE, queue_ptr=np.array(POINTER))
    else:
        formats.find("pth").write(subject, path)
    return path


def run_folder(subject, folder):
    """Two checkpoints of MoCo with Adam, as pretrain leaves them."""
    run = folder / "run"
    about = {"encoder": dict(subject.encoder.config), "image_size": 24, "mean": subject.mean, "std": subject.std}
    about |= {"method": "moco", "dataset": "folder", "batch_size": 32, "ranks": 2}
    values = {name: variable.numpy() for name, variable in subject.encoder.named_variables().items()}
    for step in (10, 20):
        encoders_of_both = ({name: tf.Variable(value) for name, value in values.items()} for _ in range(2))
        state = dict(zip(("query_encoder", "key_encoder"), encoders_of_both))
        state |= {"optimizer": {"m/x": tf.Variable(1.0)}}
        state |= {"queue": tf.Variable(QUEUE), "queue_pointer": tf.Variable(POINTER), "steps_done": tf.Variable(step)}
        checkpoint.save(run / "checkpoints", step, state, about, keep=3)
    (run / "flags.cfg").write_text("--method=moco\n--queue_size=16\n--data_dir=/nowhere\n")
    lines = [{"step": 8, "epoch": 0.8, "loss": 1.0}, {"step": 16, "epoch": 1.6, "loss": 1.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def write_official(path, weights):
    """A checkpoint of facebookresearch/moco: query and key encoder, queue CxK and pointer."""
    state = {f"module.encoder_{which}.{name}": value for which in "qk" for name, value in weights.items()}
    state |= {"module.queue": np.ascontiguousarray(QUEUE.T), "module.queue_ptr": np.array([POINTER])}
    torch_file.write_tensors(path, state)


def write_legacy(path, weights):
    """The format of PyTorch before 1.6: pickles, then the storages one after the other."""
    torch_file.write_tensors(path, weights)
    head = b"".join(pickle.dumps(part, 2) for part in (torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": True}))
    with zipfile.ZipFile(path) as archive:
        data = archive.read("archive/data.pkl")
        raw = [archive.read(f"archive/data/{key}") for key in range(len(weights))]
    keys = pickle.dumps([str(key) for key in range(len(weights))], 2)
    body = b"".join(struct.pack("<q", len(values) // 4) + values for values in raw)
    path.write_bytes(head + data + keys + body)


def tensorpack_names(weights):
    """The weights as moco.tensorflow names and lays them out, with Linear-ReLU-Linear on top."""
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "mean/EMA", "running_var": "variance/EMA"}
    out = {}
    for name, value in weights.items():
        layer, part = name.rsplit(".", 1)
        layer = re.sub(r"layer(\d)\.(\d)\.", lambda m: f"group{int(m[1]) - 1}/block{m[2]}/", layer)
        layer = layer.replace("downsample.0", "convshortcut").replace("downsample.1", "convshortcut_bn")
        if layer.startswith("fc"):
            out[f"linear{int(layer[-1]) // 2}_x/{ {'weight': 'W', 'bias': 'b'}[part] }"] = value.T
        elif value.ndim == 4:
            layer = "conv0" if layer == "conv1" else layer
            value = value[:, ::-1] if layer == "conv0" else value  # BGR
            out[f"{layer}/W"] = value.transpose(2, 3, 1, 0)
        else:
            layer = "conv0_bn" if layer == "bn1" else re.sub(r"\bbn(\d)$", r"conv\1_bn", layer)
            out[f"{layer}/{parts[part]}"] = value
    return out
