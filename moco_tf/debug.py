"""Computes again a step that was not finite, and says which value was the first to be so.

    python -m moco_tf.debug --load=runs/v2

A pre-training that stops because a loss or a weight is not finite keeps the state, the images and the flags of that
step in the run folder's broken/. This program computes the step from them, op by op, in one process that stands for all
ranks. Where that does not explain it, it goes forward from the last checkpoint with the same images. It needs the run's
data set, and writes broken/replay.json.
"""

from moco_tf.config.options import Debug
from moco_tf.run import program


def main(options: Debug) -> None:
    """Computes the step with the given options."""
    from moco_tf.run.replay import replay

    replay(options)


if __name__ == "__main__":
    program.run(main, Debug)
