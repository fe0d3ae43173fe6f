"""What TensorBoard shows besides the curves: sample views, and the features in its embedding projector.

Both go to tensorboard/report/, which is made anew each time.
"""

import pathlib
import shutil

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector

from moco_tf.reporting.subject import Embedded


def fresh_folder(workdir: pathlib.Path) -> pathlib.Path:
    """tensorboard/report/ of a run folder, empty."""
    folder = workdir / "tensorboard" / "report"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def write_views(folder: pathlib.Path, pairs: list[np.ndarray]) -> None:
    """Pairs of views, each 2xSxSx3 uint8, side by side under "views"."""
    images = np.stack([np.concatenate(list(pair), axis=1) for pair in pairs])
    with tf.summary.create_file_writer(str(folder)).as_default(step=0):
        tf.summary.image("views", images, max_outputs=len(images))


def write_projector(
    folder: pathlib.Path, embedded: Embedded, rows: np.ndarray, words: list[tuple[str, ...]], sheet: Image.Image
) -> None:
    """The features of these rows for the embedding projector.

    Args:
        folder: that TensorBoard reads.
        embedded: features.
        rows: which of them.
        words: names of the columns, then a line for each row.
        sheet: thumbnails in the rows' order, of `pictures.sprite`.
    """
    features = embedded.features[rows].astype("<f4")
    (folder / "features.bytes").write_bytes(features.tobytes())
    lines = ("\t".join(" ".join(cell.split()) for cell in line) for line in words)
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
