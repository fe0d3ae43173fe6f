"""SupLoss on a MoCo queue: the SupCon loss of a rank's own batch, its candidates extended by the queue."""

import tensorflow as tf

from moco_tf.contrast import supcon
from moco_tf.methods.base_supcon import QueueSupCon


class SupConSupLoss(QueueSupCon):
    """loss_i = -1/|P| sum_P log( exp s / sum_A exp s ); A: the other queries, the same images' keys, the queue.

    Candidates are of this rank alone, as in MoCo-v2-SupContrast, and queries are candidates with a gradient.
    Published: linear probe on CIFAR-10 96.0 after 1000 epochs. The step is base_supcon's.
    """

    def contrastive_loss(
        self, q: tf.Tensor, k: tf.Tensor, labels: tf.Tensor, s: tf.Tensor, positive: tf.Tensor
    ) -> tf.Tensor:
        return supcon.supcon_suploss(q, k, self.queue.keys, labels, self.queue.labels, self.temperature)
