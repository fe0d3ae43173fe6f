"""Values of flags beyond what absl sees to: old names, numbers between commas, numbers that must be finite."""

import math

from absl import flags

# Flags that hold numbers between commas.
_LISTS = {
    "milestones": int,
    "scale_to": int,
    "crop_scale": float,
    "k": int,
    "knn_temperature": float,
    "learning_rates": float,
}
_AT_LEAST = {"k": 1, "knn_temperature": 1e-6, "learning_rates": 1e-12}


def rename_old(values: flags.FlagValues) -> None:
    """Gives --shuffle_bn, which flags.cfg of older run folders hold, its present name."""
    if "shuffle_bn" not in values or values.shuffle_bn is None:
        return
    if values["bn"].present:
        raise flags.IllegalFlagValueError("--shuffle_bn is the old form of --bn, and both came; leave --shuffle_bn out")
    values.bn, values.shuffle_bn = "shuffle" if values.shuffle_bn else "split", None


def convert(own: dict[str, object]) -> None:
    """Makes tuples of numbers of the flags that hold such lists, in place. Raises flags.IllegalFlagValueError."""
    for name, kind in _LISTS.items():
        if own.get(name):
            own[name] = _numbers(name, own[name], kind)


def check(own: dict[str, object]) -> None:
    """Refuses what absl's bounds let through. Raises flags.IllegalFlagValueError."""
    for name, value in own.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise flags.IllegalFlagValueError(f"flag --{name}={value}: expected a finite number")
    for name, least in _AT_LEAST.items():
        numbers = own.get(name, (least,))
        if numbers is not None and not (numbers and all(least <= number < math.inf for number in numbers)):
            shown = ",".join(f"{number:g}" for number in numbers)
            raise flags.IllegalFlagValueError(f"flag --{name}={shown}: expected numbers from {least:g} on")
    area = own.get("crop_scale")
    if area and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
        shown = ",".join(f"{number:g}" for number in area)
        raise flags.IllegalFlagValueError(
            f"flag --crop_scale={shown}: expected two numbers, smallest and largest area, above 0 and at most 1"
        )
    ranks = own.get("scale_to")
    if ranks and min(ranks) < 1:
        shown = ",".join(map(str, ranks))
        raise flags.IllegalFlagValueError(f"flag --scale_to={shown}: expected numbers of ranks, 1 or more")


def _numbers(name: str, words: list[str], kind: type) -> tuple:
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise flags.IllegalFlagValueError(f"flag --{name}={','.join(words)}: expected numbers between commas") from None
