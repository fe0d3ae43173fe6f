"""TensorFlow Lite (LiteRT), converted and run by what TensorFlow brings."""

import pathlib
import tempfile
import warnings

import numpy as np
import tensorflow as tf

from moco_tf.formats import base
from moco_tf.formats.base import Loaded

SUFFIX, ANY_SIZE = ".tflite", False

_USE = """\
    interpreter = tf.lite.Interpreter("{name}")  # or ai_edge_litert.interpreter.Interpreter, without TensorFlow
    features = interpreter.get_signature_runner()(images=images)["features"]
"""


def check() -> None:
    """Raises UnfitEncoder where TensorFlow is without its converter."""
    if not hasattr(getattr(tf, "lite", None), "TFLiteConverter"):
        raise base.UnfitEncoder(
            f"--format=tflite: TensorFlow {tf.__version__} has no tf.lite.TFLiteConverter; give --format=savedmodel, "
            "and convert that with another TensorFlow"
        )


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file. Raises UserError when the converter fails."""
    check()
    module = base.Portable(subject)
    with tempfile.TemporaryDirectory() as folder:  # from a SavedModel, the only way by which outputs keep their names
        tf.saved_model.save(module, folder, signatures={"serving_default": module.embed})
        try:
            converted = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:  # whatever a converter of another version meets
            raise base.unconvertible("tflite", "tf.lite.TFLiteConverter", error) from error
    path.write_bytes(converted)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of TensorFlow's interpreter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        interpreter = tf.lite.Interpreter(model_content=path.read_bytes())
    run = interpreter.get_signature_runner()
    return {"the interpreter": {name: np.array(values) for name, values in run(images=np.stack(images)).items()}}


def use(subject: Loaded, name: str) -> str:
    """How to run it."""
    return _USE.format(name=name) + base.portable_table(subject)
