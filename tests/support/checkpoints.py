"""Small states, their checkpoints, and what checkpoints hold."""

import tensorflow as tf

from moco_tf.training import checkpoint


def state(value, size=3):
    """Groups of variables under dotted names, as a method has them."""
    names = ("layer1.0.conv1.weight", "fc.0.bias")
    encoder = {name: tf.Variable(tf.fill([size], float(value + i))) for i, name in enumerate(names)}
    slots = {f"momentum/{name}": tf.Variable(tf.fill([size], -float(value))) for name in names}
    return {"query_encoder": encoder, "optimizer": slots, "steps_done": tf.Variable(value, dtype=tf.int64)}


def arrays(nested):
    return [variable.numpy() for variable in tf.nest.flatten(nested)]


def save(folder, step, keep=3, **about):
    return checkpoint.save(folder, step, state(step), {"encoder": {"arch": "resnet10", "width": 8}, **about}, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def state_at(run, step):
    """Every array of a checkpoint by name."""
    reader = tf.train.load_checkpoint(str(run / f"checkpoints/step-{step:08}" / "variables"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if not n.startswith("_CHECK")}
