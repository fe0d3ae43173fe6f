"""Lists the nearest images of an image, or of every image: as a .csv, and as a page with pictures.

    python -m moco_tf.neighbours --load=runs/v2
    python -m moco_tf.neighbours --load=runs/v2 --images=photos --image=photos/cat.jpg --k=20
    python -m moco_tf.neighbours --vectors=vectors.parquet --output=near.csv

Near is what has a large cosine of the vectors: those of --vectors, or of the run's images, or of --images or --dataset.
All are compared with all; where there are many and FAISS is installed, through an index, whose recall is measured. The
page shows files, and images of data sets where --load or --dataset says which. An --image from elsewhere needs --load.
"""

from moco_tf.config.options import Neighbours
from moco_tf.run import program


def main(options: Neighbours) -> None:
    """Lists neighbours with the given options."""
    from moco_tf.run.neighbour_list import write

    write(options)


if __name__ == "__main__":
    program.run(main, Neighbours)
