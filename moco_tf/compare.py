"""Says which differences between runs are real: accuracies with 95 % intervals, every pair tested.

    python -m moco_tf.compare runs/moco runs/simclr
    python -m moco_tf.compare runs/moco runs/moco-1 runs/moco-2 runs/simclr runs/simclr-1 runs/simclr-2

Runs that differ in --seed alone are one recipe. Each evaluation in the run folders (knn, lincls) makes a table, with
the baselines. Intervals are over test images, and over seeds where there are several; p values are corrected for the
number of pairs (Holm). docs/evaluation.md says what each number means.
"""

from moco_tf.config.options import Compare
from moco_tf.run import program


def main(options: Compare) -> None:
    """Prints the comparison of the runs."""
    from moco_tf.evaluation import intervals
    from moco_tf.reporting import differences, results

    intervals.require("moco_tf.compare")
    print(differences.markdown(results.folders(options.table.workdir or ())), flush=True)


if __name__ == "__main__":
    program.run(main, Compare)
