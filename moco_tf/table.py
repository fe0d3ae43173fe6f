"""Prints the evaluations of one run folder, or of several, as a table.

    python -m moco_tf.table runs/demo
    python -m moco_tf.table runs/moco runs/simclr

Results on other images, or under other settings, stand in tables of their own, and so do those of moco_tf.fewshot.
"""

from moco_tf.config.options import Table
from moco_tf.run import program


def main(options: Table) -> None:
    """Prints the table of --workdir."""
    from moco_tf.reporting import accuracies, few_shot, results

    runs = results.folders(options.table.workdir or ())
    text, few = accuracies.markdown(runs), [*few_shot.of_runs(runs)]
    print("\n\n".join(few if few and text == accuracies.NOTHING else [text, *few]))


if __name__ == "__main__":
    program.run(main, Table)
