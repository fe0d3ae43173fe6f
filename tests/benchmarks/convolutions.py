"""Measures what `networks.conv` chooses between on a CPU: TensorFlow's convolutions and matrix products.

    python tests/benchmarks/convolutions.py

Prints a Markdown table of forward pass and both gradients, in processor milliseconds (of all threads, so that other
jobs disturb it little): in turns, the smallest of each.
"""

import time
from collections.abc import Callable

import tensorflow as tf

from moco_tf.networks.conv import Conv2D
from moco_tf.run import environment

TURNS = 12
# Batch, side of the output, channels in and out, kernel, stride: of ResNet-18 at 32 px and of ResNet-50 at 128 px.
SHAPES = [
    (64, 32, 64, 64, 3, 1),
    (64, 16, 128, 128, 3, 1),
    (64, 8, 256, 256, 3, 1),
    (64, 4, 512, 512, 3, 1),
    (64, 8, 128, 256, 3, 2),
    (64, 4, 256, 512, 3, 2),
    (16, 32, 64, 256, 1, 1),
    (16, 16, 512, 128, 1, 1),
    (16, 8, 1024, 256, 1, 1),
    (16, 8, 256, 256, 3, 1),
    (16, 4, 512, 512, 3, 1),
]

Step = Callable[[], None]


def step(shape: tuple[int, ...], dtype: tf.DType, products: bool) -> Step:
    """One forward pass and its gradients, of a layer that may use products or not."""
    batch, side, channels, filters, size, strides = shape
    layer = Conv2D(filters, size, strides, dtype="mixed_bfloat16" if dtype == tf.bfloat16 else "float32")
    layer.may_use_products = products
    x = tf.cast(tf.random.stateless_normal([batch, side * strides, side * strides, channels], [0, 0]), dtype)
    dy = tf.cast(tf.random.stateless_normal([batch, side, side, filters], [0, 1]), dtype)
    layer(x)

    @tf.function
    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return [y, *tape.gradient(y, [x, layer.kernel.value], dy)]

    return run


def milliseconds(steps: list[Step], turns: int) -> list[float]:
    """The smallest processor time of each, in turns; the first turn does not count."""
    times = [[] for _ in steps]
    for _ in range(turns + 1):
        for run, own in zip(steps, times):
            start = time.process_time()
            run()
            own.append(1000 * (time.process_time() - start))
    return [min(own[1:]) for own in times]


def report(shapes: list[tuple[int, ...]], turns: int) -> str:
    """The table."""
    about = f"{environment.machine()['cpu']}; TensorFlow {tf.__version__}; smallest of {turns} turns"
    lines = [f"Forward pass and gradients, processor ms; {about}", ""]
    lines += ["| batch, output, channels, kernel | | TensorFlow's | as chosen | ratio |", "|---|---|---|---|---|"]
    for batch, side, channels, filters, size, strides in shapes:
        shape = (batch, side, channels, filters, size, strides)
        name = f"{batch}, {side}x{side}, {channels} to {filters}, {size}x{size}" + (", stride 2" if strides > 1 else "")
        for dtype in (tf.bfloat16, tf.float32):
            own = milliseconds([step(shape, dtype, False), step(shape, dtype, True)], turns)
            lines.append(f"| {name} | {dtype.name} | {own[0]:.1f} | {own[1]:.1f} | {own[0] / own[1]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with tf.device("/CPU:0"):
        print(report(SHAPES, TURNS))
