"""ShuffleBN: key images are shuffled across ranks so that batch statistics do not give the positives away.

MoCo, section 3.3. Two numberings of the global batch of G = n B images are in use, b being the place in rank r's batch:

    position   p = b n + r   a sample's place in the global batch; rank r holds the positions p with p mod n = r,
                             as split r of SplitBatchNorm(n) does in one process
    row        i = r B + b   its place when the ranks' batches stand one after the other, as allgather returns them

Permutations given to these functions are of rows: shuffled row i is the image of row permutation[i].
"""

from collections.abc import Callable

import tensorflow as tf

from moco_tf.training.collectives import Collectives


def positions(batch: int, collectives: Collectives) -> tf.Tensor:
    """Positions in the global batch of this rank's images: B int32."""
    return tf.range(batch) * collectives.size + collectives.rank


def draw_permutation(seed: tf.Tensor, batch: int, ranks: int) -> tf.Tensor:
    """A uniform permutation of the G rows, G int32; one seed shuffles positions alike on any number of ranks.

    Every rank draws it from the shared seed, so nothing is sent.
    """
    keys = tf.random.stateless_uniform([batch * ranks], seed, None, None, tf.int32, alg="philox")
    permutation = tf.argsort(keys)  # XLA has no stateless_shuffle
    by_row = tf.reshape(tf.transpose(tf.reshape(permutation, [batch, ranks])), [-1])
    return (by_row % ranks) * batch + by_row // ranks


def encode_shuffled(
    encode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    permutation: tf.Tensor | None,
    collectives: Collectives,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Keys of this rank's images and of all, computed on shuffled batches: BxC, GxC.

    Args:
        encode: (images BxHxWx3, their positions B) to keys BxC.
        images: of this rank, BxHxWx3.
        permutation: of the G rows; None leaves every image on its rank, and only keys are exchanged.
        collectives: what crosses ranks.
    """
    batch = images.shape[0]
    if permutation is None:
        keys = encode(images, positions(batch, collectives))
        return keys, gather_keys(keys, collectives)
    images = shuffle(images, permutation, collectives)
    rows = shuffled_rows(permutation, batch, collectives)
    keys = encode(images, row_positions(rows, batch, collectives.size))
    return unshuffle(keys, permutation, collectives)


def row_positions(rows: tf.Tensor, batch: int, ranks: int) -> tf.Tensor:
    """Positions of the given rows."""
    return (rows % batch) * ranks + rows // batch


def shuffled_rows(permutation: tf.Tensor, batch: int, collectives: Collectives) -> tf.Tensor:
    """Rows whose images this rank receives, in the order of its shuffled batch: B int32."""
    return permutation[collectives.rank * batch : (collectives.rank + 1) * batch]


def shuffle(images: tf.Tensor, permutation: tf.Tensor, collectives: Collectives) -> tf.Tensor:
    """This rank's part of the shuffled global batch: BxHxWxC of any dtype in and out.

    Each image travels to the one rank that needs it: B images leave and B reach a rank, however many ranks there are
    (the original gathers all G images on every rank).
    """
    batch, rank, ranks = images.shape[0], collectives.rank, collectives.size
    if ranks == 1:  # what follows has shapes that XLA does not know
        return collectives.alltoall(tf.gather(images, permutation), tf.constant([batch]))
    sent = tf.where(permutation // batch == rank)[:, 0]  # shuffled rows that are mine to send, so ordered by receiver
    mine = tf.gather(permutation, sent) - rank * batch
    # Not bincount, which has no deterministic form on a GPU.
    splits = tf.math.count_nonzero(sent[:, None] // batch == tf.range(ranks, dtype=sent.dtype), axis=0)
    received = collectives.alltoall(tf.gather(images, mine), splits)  # ordered by sender, then by shuffled row
    arrival = tf.argsort(shuffled_rows(permutation, batch, collectives) // batch, stable=True)
    # Whatever the permutation, a rank receives exactly its batch.
    return tf.ensure_shape(tf.gather(received, tf.math.invert_permutation(arrival)), images.shape)


def unshuffle(keys: tf.Tensor, permutation: tf.Tensor, collectives: Collectives) -> tuple[tf.Tensor, tf.Tensor]:
    """Undoes the shuffle on the keys: BxC of this rank to (BxC of this rank's own images, GxC of all rows).

    One allgather serves both the positives and the queue (the original gathers twice).
    """
    batch = keys.shape[0]
    every = tf.gather(gather_keys(keys, collectives), tf.argsort(permutation))  # its inverse; XLA has no op for it
    return every[collectives.rank * batch : (collectives.rank + 1) * batch], every


def gather_keys(keys: tf.Tensor, collectives: Collectives) -> tf.Tensor:
    """The keys of all ranks, in rank order: BxC to GxC."""
    return tf.ensure_shape(collectives.allgather(keys), [keys.shape[0] * collectives.size, keys.shape[1]])


def in_queue_order(rows: tf.Tensor, queue_size: int, collectives: Collectives, views: int = 1) -> tf.Tensor:
    """Keys (or labels) of all ranks, views x G rows in rank order, in the order in which they enter a queue.

    As they are, which is the original's order. But where they do not divide the queue, and those of one step leave it
    at two, images stand by position: then the same ones leave whatever the number of ranks.
    """
    count = rows.shape[0]
    if queue_size % count == 0:
        return rows
    parts = tf.reshape(rows, [views, collectives.size, count // views // collectives.size, *rows.shape[1:]])
    return tf.reshape(tf.transpose(parts, [0, 2, 1, *range(3, parts.shape.rank)]), rows.shape)
