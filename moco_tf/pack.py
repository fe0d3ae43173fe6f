"""Packs any data set into a few large files that TensorFlow Datasets and training read.

    python -m moco_tf.pack --dataset=folder --data_dir=photos --output=packs/birds --short_side=256
    python -m moco_tf.pretrain --dataset=birds --data_dir=packs ...
    python -m moco_tf.pack --verify --output=packs/birds

Images whose short side is larger than --short_side are made smaller, antialiased, and encoded again; what TensorFlow
does not read exactly, such as a BMP or 16 bits, becomes a PNG; all others are kept byte for byte. A pack that was
interrupted is continued when the same command is run again, and the same images and settings give the same files,
whatever the number of workers.
"""

from moco_tf.config.options import Pack
from moco_tf.run import program


def main(options: Pack) -> None:
    """Packs, or verifies a pack, with the given options."""
    from moco_tf.data.packs import pack

    pack(options)


if __name__ == "__main__":
    program.run(main, Pack)
