"""SupContrast "In" on a MoCo queue: the sum over positives inside the logarithm (Khosla et al., 2020, equation 3)."""

import tensorflow as tf

from moco_tf.contrast import supcon
from moco_tf.methods.base_supcon import QueueSupCon


class SupConIn(QueueSupCon):
    """loss_i = -log( 1/|P| sum_P exp s / sum_A exp s ); A: the keys of the global batch and the queue.

    Published: linear probe on CIFAR-10 95.4 / 96.1 after 200 / 1000 epochs. The step is base_supcon's.
    """

    def contrastive_loss(
        self, q: tf.Tensor, k: tf.Tensor, labels: tf.Tensor, s: tf.Tensor, positive: tf.Tensor
    ) -> tf.Tensor:
        return supcon.supcon_in(s, positive)
