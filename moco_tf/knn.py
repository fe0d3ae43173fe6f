"""Classifies test images by their nearest training images in feature space.

    python -m moco_tf.knn --load=runs/v2 --dataset=cifar10 --k=200
    python -m moco_tf.knn --load=runs/v2 --dataset=cifar10 --k=10,200 --knn_temperature=0.07,0.1 --all_checkpoints

Weighted kNN as in the CIFAR-10 demo of MoCo (Wu et al., 2018, section 3.4), or one vote a neighbour. Under horovodrun
each rank searches its share of the training images. Writes result.json and confusion.csv.
"""

from moco_tf.config.options import Knn
from moco_tf.run import program


def main(options: Knn) -> None:
    """Evaluates with the given options."""
    from moco_tf.run.knn_evaluation import evaluate

    evaluate(options)


if __name__ == "__main__":
    program.run(main, Knn)
