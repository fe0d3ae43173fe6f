"""Finds near-duplicates among images: within a set, and between test and training images.

    python -m moco_tf.duplicates --load=runs/v2
    python -m moco_tf.duplicates --dataset=folder --data_dir=photos
    python -m moco_tf.duplicates --images=photos --threshold=0.99 --output=copies.csv

Copies of another JPEG quality, another size or mirrored are found, by small grey pictures of the images; crops are not.
--load says which images a run has; no encoder is needed. The threshold follows from the images, and the share of copies
that it finds is measured on copies made of some of them. Writes a .csv with the groups, a page with the pictures, and a
.json with the figures.
"""

from moco_tf.config.options import Duplicates
from moco_tf.run import program


def main(options: Duplicates) -> None:
    """Finds near-duplicates with the given options."""
    from moco_tf.run.duplicate_list import write

    write(options)


if __name__ == "__main__":
    program.run(main, Duplicates)
