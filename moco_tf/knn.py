"""Classifies test images by their nearest training images in feature space.

    python -m moco_tf.knn --load=runs/v2 --k=200
    python -m moco_tf.knn --load=runs/v2 --dataset=cifar10 --k=10,200 --knn_temperature=0.07,0.1 --all_checkpoints

Weighted kNN as in the CIFAR-10 demo of MoCo (Wu et al., 2018, section 3.4), or one vote a neighbour. Under horovodrun
each rank searches its share of the training images. Data set, place, held-out images, image size, test geometry and
normalisation are the run's unless flags say otherwise. Writes result.json and confusion.csv into the run folder's knn/,
or knn-2/ and so on where that holds the result of other settings.
"""

from moco_tf.config.options import Knn
from moco_tf.run import program


def main(options: Knn) -> None:
    """Evaluates with the given options."""
    from moco_tf.run.knn_evaluation import evaluate

    evaluate(options)


if __name__ == "__main__":
    program.run(main, Knn)
