"""What a training says before it starts of numbers that are cut, or that do not go together."""

from collections.abc import Mapping

from moco_tf.config.options import ScheduleOptions
from moco_tf.config.types import Value
from moco_tf.data.normalisation import MIN_STD, Normalisation


def total_steps(schedule: ScheduleOptions, per_epoch: int) -> int:
    """Steps of the whole training: --steps, but no more than the epochs have."""
    return min(schedule.steps or schedule.epochs * per_epoch, schedule.epochs * per_epoch)


def of_steps(schedule: ScheduleOptions, per_epoch: int) -> list[str]:
    """Whether --steps is cut."""
    total = total_steps(schedule, per_epoch)
    if schedule.steps <= total:
        return []
    cut = f"--steps={schedule.steps} is cut to {total}, the steps of --epochs={schedule.epochs}"
    return [f"warning: {cut}; raise --epochs for more"]


def of_queue(own: Mapping[str, Value], keys_a_step: int, num_examples: int) -> list[str]:
    """Whether a queue holds every image, so that an image's own older keys are among its negatives."""
    size = own.get("queue_size")
    if not isinstance(size, int) or size < num_examples:
        return []
    fitting = 2 ** max((num_examples // 2).bit_length() - 1, 0)  # a power of two, at most half of the images
    smaller = "" if fitting >= keys_a_step else ", and smaller batches"
    return [
        f"warning: the queue of {size:,} keys holds each of {num_examples:,} images {size / num_examples:.3g} times, "
        f"whose older keys count as other images; give --queue_size={max(fitting, keys_a_step)}{smaller}"
    ]


def of_normalisation(mean_and_std: Normalisation) -> list[str]:
    """Whether the images hardly vary."""
    low = [name for name, std in zip(("red", "green", "blue"), mean_and_std[1]) if std <= MIN_STD]
    if not low:
        return []
    return [
        f"warning: {', '.join(low)} hardly vary in these images, and views are divided by {MIN_STD:g} there, the least "
        "deviation; look at the images, or give --normalise=imagenet or none"
    ]
