"""The tables of an evaluation with few labels."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from moco_tf.evaluation.intervals import LEVEL
from moco_tf.reporting.accuracies import Outcome
from moco_tf.run.folder import RunFolder

_SAYS = (
    "Top-1, with 95 % intervals over draws of labelled images and over test images; a difference of the same draws in "
    "points. In brackets where no difference can be seen: p is 0.05 or more, corrected for the number of differences "
    "(Holm). One pre-training: other seeds are in no interval."
)


def markdown(result: dict[str, Any]) -> str:
    """Of a result.json of moco_tf.fewshot."""
    head = "| labels a class | " + " | ".join(map(str, result["shots"])) + " |"
    lines = [head, "|---|" + "---|" * len(result["shots"])]
    names = [_name(one) for one in result["features"]]
    for name, one in zip(names, result["features"]):
        lines.append(_row(name, [_cell(cell, "top1") for cell in one["shots"]]))
    for name, one in zip(names, result["features"]):
        if one["better_by"]:
            cells = [_cell(cell, "difference") for cell in one["better_by"]]
            seen = [cell["p"] < LEVEL for cell in one["better_by"]]
            lines.append(_row(f"{names[0]} - {name}", [text if one else f"({text})" for text, one in zip(cells, seen)]))
    draws = len(result["features"][0]["shots"][0]["draws"])
    says = [f"{draws} draws, {result['test_images']:,} test images.", _SAYS, *result.get("notes", [])]
    return "\n".join([*lines, "", " ".join(says)])


def of_runs(runs: Mapping[str, RunFolder]) -> Iterator[str]:
    """The tables of all such results in run folders by name; one that cannot be read is left out."""
    for name, run in runs.items():
        for folder in run.all_results():
            result = folder.read_result()
            if result.get("evaluation") == "fewshot":
                with contextlib.suppress(LookupError, TypeError, ValueError):
                    yield f"{name}, few labels, {Outcome(name, folder, result).images}:\n\n{markdown(result)}"


def _name(one: dict[str, Any]) -> str:
    return "pre-trained" if one["baseline"] == "none" else Outcome("", RunFolder(""), one).title


def _cell(one: dict[str, Any], name: str) -> str:
    return f"{100 * one[name]:.1f}, {100 * one['low']:.1f} to {100 * one['high']:.1f}"


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"
