"""What TensorBoard shows besides the curves: sample views, and the features in its embedding projector.

Both go to tensorboard/report/, which is made anew each time.
"""

import pathlib
import shutil

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector

from moco_tf.reporting.examined import Examination, Examined, SampledViews
from moco_tf.reporting.results import RunRecord
from moco_tf.reporting.sections import DrawnMap


def write(record: RunRecord, examination: Examination, drawn: DrawnMap) -> None:
    """Writes both into the run folder; says so where it cannot be written."""
    folder = record.folder.tensorboard / "report"
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        if isinstance(examination.views, SampledViews):
            write_views(folder, examination.views.pairs)
        if drawn.sheet and isinstance(examination.first, Examined):
            write_projector(folder, examination.first, drawn.rows, drawn.sheet)
    except OSError as error:
        print(f"{record.name}: nothing written for TensorBoard ({error.strerror or error})", flush=True)


def write_views(folder: pathlib.Path, pairs: np.ndarray) -> None:
    """Pairs of views, uint8 Nx2xSxSx3, side by side under "views"."""
    images = np.concatenate([pairs[:, 0], pairs[:, 1]], axis=2)
    with tf.summary.create_file_writer(str(folder)).as_default(step=0):
        tf.summary.image("views", images, max_outputs=len(images))


def write_projector(folder: pathlib.Path, examined: Examined, rows: np.ndarray, sheet: Image.Image) -> None:
    """The features of some test images for the embedding projector.

    Args:
        folder: that TensorBoard reads.
        examined: the images.
        rows: which of them.
        sheet: thumbnails in the rows' order, of `pictures.sprite`.
    """
    features = examined.test.features[rows].astype("<f4")
    (folder / "features.bytes").write_bytes(features.tobytes())
    lines = ("\t".join(" ".join(cell.split()) for cell in line) for line in _metadata(examined, rows))
    (folder / "metadata.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="replace")
    sheet.save(folder / "sprite.png")
    config = projector.ProjectorConfig()
    entry = config.embeddings.add(
        tensor_name="features",
        tensor_path="features.bytes",
        tensor_shape=features.shape,
        metadata_path="metadata.tsv",
    )
    entry.sprite.image_path = "sprite.png"
    side = sheet.width // int(np.ceil(np.sqrt(len(rows))))
    entry.sprite.single_image_dim.extend([side, side])
    projector.visualize_embeddings(str(folder), config)


def _metadata(examined: Examined, rows: np.ndarray) -> list[tuple[str, ...]]:
    """Names of the columns, then a line for each row."""
    files = examined.test.files(rows) or [str(index) for index in examined.test.indices[rows]]
    predicted = [""] * len(rows)
    if examined.predicted is not None:
        predicted = [examined.class_name(label) for label in examined.predicted[rows]]
    names = [examined.class_name(label) for label in examined.test.labels[rows]]
    return [("class", "kNN", "image"), *zip(names, predicted, files)]
