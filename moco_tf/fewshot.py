"""Few labels: how well features classify with 1, 5, 10 and 100 labelled images a class, with 95 % intervals.

    python -m moco_tf.fewshot --load=runs/v2
    python -m moco_tf.fewshot --load=runs/v2 --baseline=published.pth --shots=10

Labelled images are drawn at random several times. Each draw trains a logistic regression, whose penalty is chosen by
cross-validation within the draw, and is tested on all test images. Baselines learn from the same draws, so that
differences are taken within each draw. Writes result.json into the run folder's fewshot/. What images it takes is as
for moco_tf.knn; docs/evaluation.md says what the intervals mean.
"""

from moco_tf.config.options import FewShot
from moco_tf.run import program


def main(options: FewShot) -> None:
    """Evaluates with the given options."""
    from moco_tf.run.few_labels import evaluate

    evaluate(options)


if __name__ == "__main__":
    program.run(main, FewShot)
