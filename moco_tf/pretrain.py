"""Pre-trains an encoder by momentum contrast or one of its family.

    python -m moco_tf.pretrain --flagfile=flags/pretrain/cifar10_moco.cfg --workdir=runs/cifar10
    horovodrun -np 8 python -m moco_tf.pretrain --flagfile=flags/pretrain/imagenet_moco_v2.cfg --data_dir=/data ...

The same command again goes on from the run folder's newest whole checkpoint.
"""

from moco_tf.config.options import Pretrain
from moco_tf.run import program


def main(options: Pretrain) -> None:
    """Pre-trains with the given options."""
    from moco_tf.run.pretraining import pretrain

    pretrain(options)


if __name__ == "__main__":
    program.run(main, Pretrain)
