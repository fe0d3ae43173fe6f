"""SupContrast "Out" on a MoCo queue: the sum over positives outside the logarithm (Khosla et al., 2020, equation 2)."""

import tensorflow as tf

from moco_tf.contrast import supcon
from moco_tf.methods.base_supcon import QueueSupCon


class SupConOut(QueueSupCon):
    """loss_i = -1/(|P| + 1e-5) sum_P log( exp s / sum_A exp s ); A: the keys of the global batch and the queue.

    Published: linear probe on CIFAR-10 96.1 after 1000 epochs. The step is base_supcon's.
    """

    def contrastive_loss(
        self, q: tf.Tensor, k: tf.Tensor, labels: tf.Tensor, s: tf.Tensor, positive: tf.Tensor
    ) -> tf.Tensor:
        return supcon.supcon_out(s, positive)
