"""Linear probe: a linear classifier on the frozen backbone's features; or, with --finetune, both of them trained.

    python -m moco_tf.lincls --load=runs/photos
    python -m moco_tf.lincls --load=runs/v2 --flagfile=flags/lincls/imagenet.cfg --data_dir=/data/imagenet
    python -m moco_tf.lincls --load=runs/v2 --dataset=cifar10 --cache_features --learning_rates=0.1,1,10,30
    python -m moco_tf.lincls --load=runs/v2 --dataset=cifar10 --finetune --train_fraction=0.1 --learning_rate=0.1

Without a recipe and a --learning_rate it computes the features once, chooses the rate from a grid on held-out training
images, and fits by L-BFGS beside it. The whole backbone runs in inference mode and is proven unchanged afterwards
(MoCo, section 4.1). The same command again goes on from the newest whole checkpoint; with --cache_features it begins
anew. Writes result.json, where top1 is the accuracy after the last epoch and best_top1 the highest after any, and
confusion.csv. What images it takes and where it writes is as for moco_tf.knn.
"""

from moco_tf.config.options import Lincls
from moco_tf.run import program


def main(options: Lincls) -> None:
    """Trains and tests a linear classifier with the given options."""
    from moco_tf.run.probing import evaluate

    evaluate(options)


if __name__ == "__main__":
    program.run(main, Lincls)
