"""moco_tf.pretrain on several ranks, of which rank 1 gets no images for its third step: its read never returns."""

import time

from moco_tf import pretrain
from moco_tf.config.options import Pretrain
from moco_tf.data.pipeline import TrainBatches
from moco_tf.run import program

whole = TrainBatches.batches


def hanging(self, *args):
    for number, batch in enumerate(whole(self, *args)):
        if number == 2 and self.share.rank == 1:
            time.sleep(600)
        yield batch


if __name__ == "__main__":
    TrainBatches.batches = hanging
    program.run(pretrain.main, Pretrain)
