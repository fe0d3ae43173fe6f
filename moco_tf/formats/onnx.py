"""ONNX, converted by tf2onnx and run by ONNX Runtime."""

import logging
import pathlib

import numpy as np

from moco_tf.formats import base
from moco_tf.formats.base import Loaded

SUFFIX, ANY_SIZE = ".onnx", False
OPSET = 17  # of 2022: runtimes of today read it

_USE = """\
    session = onnxruntime.InferenceSession("{name}")
    features = session.run(["features"], {{"images": images}})[0]
"""


def check() -> None:
    """Raises UnfitEncoder without the packages of the extra."""
    base.need("onnx", ("tf2onnx", "onnx", "onnxruntime"), "onnx")


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file. Raises UserError when the converter fails."""
    check()
    import onnx
    import tf2onnx

    embed = base.Portable(subject).embed
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # it tells every step
    try:
        proto, _ = tf2onnx.convert.from_function(embed, input_signature=embed.input_signature, opset=OPSET)
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.checker.check_model(proto)
    except Exception as error:  # whatever a converter of another version meets
        raise base.unconvertible("onnx", f"tf2onnx {tf2onnx.__version__}", error) from error
    path.write_bytes(proto.SerializeToString())


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {"ONNX Runtime": dict(zip(names, session.run(names, {"images": np.stack(images)})))}


def use(subject: Loaded, name: str) -> str:
    """How to run it."""
    return _USE.format(name=name) + base.portable_table(subject)
