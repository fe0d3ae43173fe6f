"""Writes the feature vectors of images, with their paths and labels.

    python -m moco_tf.embed --load=runs/v2 --output=vectors.parquet
    python -m moco_tf.embed --load=runs/v2 --images=photos --output=vectors.npz
    ls photos/*.jpg | python -m moco_tf.embed --images=- --output=vectors.npy

The images are all of the run's own, unless --images or --dataset names others. The end of the output's name says the
format: .npz, .parquet and .csv hold vectors, paths, splits and labels; .npy and .safetensors the vectors alone, and a
.csv beside them the rest. Images that cannot be read are left out, listed and counted. The same command goes on where
it was stopped; under horovodrun each rank computes its share.
"""

from moco_tf.config.options import Embed
from moco_tf.run import program


def main(options: Embed) -> None:
    """Embeds with the given options."""
    from moco_tf.run.embedding import embed

    embed(options)


if __name__ == "__main__":
    program.run(main, Embed)
