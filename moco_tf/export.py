"""Writes an encoder for use elsewhere: to serve and fine-tune in TensorFlow or Keras, for PyTorch, Detectron2, ONNX.

    python -m moco_tf.export --load=runs/v2 --format=savedmodel --output=encoder/
    python -m moco_tf.export --load=runs/v2 --format=pth --output=encoder.pth       # or keras, detectron2, onnx, tflite
    python -m moco_tf.export --load=runs/v2 --format=all --output=exports/

Everything is float32. What was written is loaded back and compared with the encoder on images, and only then appears
at --output, with a card that says what it is: README.md in a folder, or encoder.pth.md beside encoder.pth.
"""

from moco_tf.config.options import Export
from moco_tf.errors import UserError
from moco_tf.run import program


def main(options: Export) -> None:
    """Exports with the given options."""
    import tensorflow as tf

    from moco_tf.formats import export
    from moco_tf.formats.load import SOURCES, announced
    from moco_tf.training import device, launcher

    if not launcher.is_first_rank():
        return  # one process does it all
    path, name, output, data = options.encoder.load, options.export.format, options.export.output, options.data
    if not path:
        raise UserError(f"--load is missing, and runs/ has no run; give {SOURCES}")
    export.check(name, output)  # before an encoder is loaded
    device.configure(0, 1)
    with tf.device("/CPU:0"):
        subject = export.prepared(announced(path), data.image_size, data.test_resize, data.normalise)
    print(f"done: {export.export(subject, name, output, data.dataset, data.data_dir)}", flush=True)


if __name__ == "__main__":
    program.run(main, Export)
