"""Learning rate and key momentum as functions of the step: floats in, a float out.

e is the epoch number, E the number of epochs, W the epochs of warm-up, t the 0-based step, T the number of steps.
"""

import math
from collections.abc import Sequence

from moco_tf.config.options import ScheduleOptions

SCHEDULES = ("constant", "cosine", "milestones")
PERIODS = ("epoch", "step")


def cosine(base: float, progress: float, final: float = 0.0) -> float:
    """Half a cosine: final + (base - final) (1 + cos(pi progress)) / 2 (SGDR, equation 5), progress in [0, 1]."""
    _expect_share("progress", progress)
    return final + (base - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def milestones(base: float, epoch: float, milestones: Sequence[float], decay: float = 0.1) -> float:
    """base decay^n, n the number of milestones <= epoch, as torch.optim.lr_scheduler.MultiStepLR."""
    return base * decay ** sum(epoch >= milestone for milestone in milestones)


def warmup(base: float, progress: float, start: float = 0.0) -> float:
    """Linear: start + (base - start) progress, progress in [0, 1]."""
    _expect_share("progress", progress)
    return start + (base - start) * progress


def learning_rate(step: int, steps_per_epoch: int, base: float, schedule: ScheduleOptions) -> float:
    """The learning rate that the optimizer uses in a step:

        e < W    warmup_start + (base - warmup_start) e / W
        e >= W   cosine: half a cosine from base to final_learning_rate at progress (e - W) / (E - W)
                 milestones: base decay^n, n the number of milestones <= e
                 constant: base

    with e of `epoch_number`. So the first step has e = 0 (warmup_start where there is a warm-up), the first step after
    the warm-up has exactly base, and a cosine ends at e = E: one step (epoch) past the last, in which it is still a
    little above; with first_epoch=1 in the last epoch. Later steps keep the final rate. Milestones are not shifted by
    the warm-up.

    Args:
        step: t.
        steps_per_epoch: see epoch_number.
        base: the learning rate at the end of the warm-up.
        schedule: the other values; its epochs are E, warm-up included.

    Raises:
        ValueError: the values contradict each other.
    """
    o, final = schedule, schedule.final_learning_rate
    _expect(o.schedule in SCHEDULES, f"schedule is {o.schedule!r}; expected one of {', '.join(SCHEDULES)}")
    _expect(
        0 <= o.warmup_epochs < o.epochs,
        f"warmup_epochs is {o.warmup_epochs}; expected 0 up to below epochs ({o.epochs})",
    )
    _expect(min(base, final, o.warmup_start) >= 0, f"rates {base}, {final}, {o.warmup_start}; expected none below 0")
    _expect(
        o.schedule != "milestones" or len(o.milestones) > 0, "schedule is 'milestones' without any; expected epochs"
    )
    _expect(o.decay > 0, f"decay is {o.decay}; expected a factor above 0")
    epoch = epoch_number(step, steps_per_epoch, o.schedule_per, o.first_epoch)
    if epoch < o.warmup_epochs:
        return warmup(base, epoch / o.warmup_epochs, o.warmup_start)
    if o.schedule == "cosine":
        return cosine(base, min((epoch - o.warmup_epochs) / (o.epochs - o.warmup_epochs), 1.0), final)
    return base if o.schedule == "constant" else milestones(base, epoch, o.milestones, o.decay)


def epoch_number(step: int, steps_per_epoch: int, per: str = "epoch", first_epoch: int = 0) -> float:
    """e: with per="epoch" floor(t / steps_per_epoch) + first_epoch, one for a whole epoch; else t / steps_per_epoch."""
    _expect(per in PERIODS, f"per is {per!r}; expected 'epoch' or 'step'")
    _expect(step >= 0, f"step is {step}; expected 0 or more")
    _expect(steps_per_epoch >= 1, f"steps_per_epoch is {steps_per_epoch}; expected 1 or more")
    _expect(first_epoch >= 0, f"first_epoch is {first_epoch}; expected 0 or more")
    _expect(first_epoch == 0 or per == "epoch", f"first_epoch is {first_epoch} with per='step'; expected 0")
    return step / steps_per_epoch if per == "step" else step // steps_per_epoch + first_epoch


def key_momentum(step: int, total_steps: int, base: float, schedule: str = "constant") -> float:
    """m of the key encoder in a step: base, or with "cosine" 1 - (1 - base) (1 + cos(pi t / T)) / 2, which ends at 1.

    The cosine is BYOL's (section 3.3) and MoCo v3's; MoCo v1 and v2 keep m constant.
    """
    _expect_share("key momentum", base)
    _expect(schedule in ("constant", "cosine"), f"schedule is {schedule!r}; expected 'constant' or 'cosine'")
    _expect(step >= 0 and total_steps >= 1, f"step {step} of {total_steps}; expected 0 or more of 1 or more")
    return base if schedule == "constant" else cosine(base, min(step / total_steps, 1.0), final=1.0)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _expect_share(name: str, value: float) -> None:
    _expect(0.0 <= value <= 1.0, f"{name} is {value}; expected a number in [0, 1]")
