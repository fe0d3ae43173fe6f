"""Classifies test images by their nearest training images in feature space.

    python -m moco_tf.knn --load=runs/v2 --dataset=cifar10 --k=200

Weighted kNN as in the CIFAR-10 demo of MoCo (Wu et al., 2018, section 3.4), or one vote a neighbour. Writes
result.json.
"""

from absl import flags

from moco_tf import build, evaluate, options, program
from moco_tf.evaluation import features, neighbours
from moco_tf.training.runlog import make_folder


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_load()
    options.define_data()
    options.define_run()
    options.define_knn(feature="backbone")


def main(o: object, flagfile: str) -> None:
    """Evaluates with the given options."""
    ranks = build.connect(o)
    subject = evaluate.load(o)
    train, test = (build.source(o, split, ranks) for split in ("train", "test"))
    evaluate.check_labels(train, test)
    evaluate.check_neighbours(o.k, train)
    make_folder(evaluate.output_folder(o, "knn"))  # now, not after the work
    (bank, bank_labels), (queries, labels) = (
        features.extract(subject.embed, images, subject.geometry(images), o.batch_size, ranks, o.max_bad_images)
        for images in (train, test)
    )
    ranked = neighbours.classify(
        features.normalised(bank),
        bank_labels,
        features.normalised(queries),
        train.num_classes,
        o.k,
        o.knn_temperature,
        o.weighting,
    )
    top1, top5 = neighbours.accuracy(ranked, labels)
    result = {"top1": top1, "top5": top5, "k": o.k, "temperature": o.knn_temperature, "weighting": o.weighting}
    result |= evaluate.network_cost(subject, test)
    evaluate.report(o, flagfile, ranks, "kNN", subject, result)


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
