"""Classifies test images by their nearest training images in feature space.

    python -m moco_tf.knn --load=runs/v2 --dataset=cifar10 --k=200
    python -m moco_tf.knn --load=runs/v2 --dataset=cifar10 --k=10,200 --knn_temperature=0.07,0.1 --all_checkpoints

Weighted kNN as in the CIFAR-10 demo of MoCo (Wu et al., 2018, section 3.4), or one vote a neighbour. Under horovodrun
each rank searches its share of the training images. Writes result.json and confusion.csv.
"""

import dataclasses

from absl import flags

from moco_tf.config import options
from moco_tf.data.sources import Source
from moco_tf.errors import RankError, UserError
from moco_tf.evaluation import knn
from moco_tf.run import build, evaluate, program
from moco_tf.training.collectives import Collectives
from moco_tf.training.runlog import make_folder


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_load()
    options.define_data()
    options.define_run()
    options.define_knn(feature="backbone")
    options.define_sweep()


def main(o: object, flagfile: str) -> None:
    """Evaluates with the given options."""
    ranks = build.connect(o)
    if o.all_checkpoints and o.baseline != "none":
        raise UserError(f"--all_checkpoints came with --baseline={o.baseline}, expected none; leave one of them out")
    loads = evaluate.checkpoints(o.load) if o.all_checkpoints else [o.load]
    subject = None if o.all_checkpoints else evaluate.load(o)
    train, test = (build.source(o, split, ranks) for split in ("train", "test"))
    evaluate.check_labels(train, test)
    evaluate.check_neighbours(max(o.k), train)
    folder = evaluate.output_folder(o, "knn")
    evaluate.check_folder(folder)
    make_folder(folder)  # now, not after the work
    if not o.all_checkpoints:
        outcomes, labels = measure(o, subject, train, test, ranks)
        result = {}
    else:
        subject, outcomes, labels, found = sweep(o, loads, train, test, ranks)
        result = {"checkpoints": found}
    if ranks.rank == 0 and len(outcomes) > 1:
        print("\n".join(f"k {x.k}, temperature {x.temperature:g}: {accuracies(x)}" for x in outcomes), flush=True)
    how = {"weighting": o.weighting, "feature": o.feature if subject.encoder else "pixels"}
    result = {**outcomes[0].summary(), **how, "all": [x.summary() for x in outcomes], **result}
    result |= evaluate.network_cost(subject, test)
    evaluate.report(o, flagfile, ranks, "kNN", subject, result, test, outcomes[0].predictions, labels)


def measure(o: object, subject: evaluate.Subject, train: Source, test: Source, ranks: Collectives) -> tuple:
    """Outcomes of all settings, and the labels of the test images."""
    geometries = subject.geometry(train), subject.geometry(test)
    settings = o.k, o.knn_temperature, o.weighting, o.batch_size
    return knn.measure(subject.embed, train, test, geometries, *settings, ranks, o.max_bad_images)


def sweep(o: object, loads: list[str], train: Source, test: Source, ranks: Collectives) -> tuple:
    """Subject, outcomes and labels of the last checkpoint that can be read, and a list of all that can.

    Raises:
        UserError: none can be read.
    """
    found, last = [], None
    for load in loads:
        try:
            subject = evaluate.load(dataclasses.replace(o, load=load))
            last = subject, *measure(o, subject, train, test, ranks)
            line = f"{load}: {accuracies(last[1][0])}"
            found.append({"checkpoint": load, **last[1][0].summary()})
        except RankError:  # the other ranks are waiting
            raise
        except UserError as error:
            line = f"skipped: {error}"
        if ranks.rank == 0:
            print(line, flush=True)
    if last is None:
        raise UserError(f"none of the {len(loads)} checkpoints in --load={o.load} can be evaluated; {line}")
    return *last, found


def accuracies(outcome: knn.Outcome) -> str:
    """In words."""
    return f"top-1 {outcome.top1:.2%}, top-5 {outcome.top5:.2%}"


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
