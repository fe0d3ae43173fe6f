"""Linear probe: a linear classifier on the frozen backbone's features.

    python -m moco_tf.lincls --load=runs/v2 --flagfile=flags/lincls/imagenet.cfg --data_dir=/data/imagenet

The whole backbone runs in inference mode and is proven unchanged afterwards (MoCo, section 4.1). Writes result.json.
"""

import pathlib

import numpy as np
import tensorflow as tf
from absl import flags

from moco_tf import build, evaluate, options, program
from moco_tf.data import pipeline, views
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, probe
from moco_tf.training import device
from moco_tf.training.collectives import Collectives
from moco_tf.training.runlog import RunLog, make_folder


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_load()
    options.define_data()
    options.define_run()
    options.define_optimizer(learning_rate=30.0, epochs=100, weight_decay=0.0, schedule="milestones")
    options.define_probe()


def main(o: object, flagfile: str) -> None:
    """Trains and tests a linear classifier with the given options."""
    check(o)
    ranks = build.connect(o)
    subject = evaluate.load(o)
    train, test = (build.source(o, split, ranks) for split in ("train", "test"))
    evaluate.check_labels(train, test)
    before = fingerprint(subject)
    queries, labels = extract(o, subject, test, ranks)
    if o.cache_features:
        batches, embed = (
            probe.CachedBatches(*extract(o, subject, train, ranks), o.batch_size, o.seed, ranks),
            tf.identity,
        )
        if o.standardise:
            queries = batches.standardise(queries)
    else:
        batches, embed = augmented(o, subject, train, ranks)
    classifier = probe.LinearProbe(queries.shape[1], train.num_classes, build.optimizer(o), embed, ranks)
    ranks.broadcast(classifier.variables())
    folder = evaluate.output_folder(o, "lincls")
    make_folder(folder)
    log = RunLog(folder, ranks.rank == 0, o.epochs * batches.steps_per_epoch)
    result = fit(o, classifier, batches, queries, labels, log)
    log.close()
    if fingerprint(subject) != before:
        raise AssertionError("the probe changed a backbone variable; its accuracy would mean nothing")
    result |= evaluate.network_cost(subject, test, classifier.logits)
    evaluate.report(o, flagfile, ranks, "lincls", subject, result)


def check(o: object) -> None:
    """Refuses options that contradict each other."""
    build.check_schedule(o)
    if o.standardise and not o.cache_features:
        raise UserError("--standardise needs the features of all images; give --cache_features too")


def extract(o: object, subject: evaluate.Subject, images: Source, ranks: Collectives) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all images, un-augmented."""
    return features.extract(subject.embed, images, subject.geometry(images), o.batch_size, ranks, o.max_bad_images)


def augmented(o: object, subject: evaluate.Subject, train: Source, ranks: Collectives) -> tuple:
    """Batches of randomly cropped and mirrored images, and images to features."""
    size = subject.image_size or build.image_size(o, train)
    view = views.view(o.train_view, size)  # in [0, 1]: the subject normalises
    build.check_crop(o.train_view, view, train)
    in_step = build.in_step(view, train)
    batches = pipeline.TrainBatches(
        train,
        o.batch_size,
        o.seed,
        ranks.rank,
        ranks.size,
        crop=view.crop,
        one_view=True,
        max_bad_images=o.max_bad_images,
        bad_images_file=str(pathlib.Path(evaluate.output_folder(o, "lincls")) / "unreadable.txt"),
    )
    compile_view = device.pieces_to_compile(o.jit_compile) != "none"
    random_view = tf.function(in_step, jit_compile=True) if compile_view else in_step
    return batches, lambda images, seed, positions, count: subject.embed(random_view(images, seed, positions, count))


def fit(
    o: object,
    classifier: probe.LinearProbe,
    batches: probe.CachedBatches | pipeline.TrainBatches,
    queries: np.ndarray,
    labels: np.ndarray,
    log: RunLog,
) -> dict:
    """Trains for all epochs and tests after the last one."""
    step, total = 0, min(o.steps or 10**12, o.epochs * batches.steps_per_epoch)
    train_step = tf.function(classifier.train_step)
    for epoch in range(-(-total // batches.steps_per_epoch)):
        for images, targets, _ in batches.batches(epoch):
            if step == total:
                break
            learning_rate = build.learning_rate(o, step, batches.steps_per_epoch)
            classifier.optimizer.learning_rate.assign(learning_rate)
            loss, accuracy = train_step(images, tf.constant(targets), tf.constant([o.seed, step]))
            step += 1
            log.advance()
            if step % o.log_every == 0 or step == total:
                values = {"loss": float(loss), "train_top1": float(accuracy)}
                log.show(**values)
                log.write(step, epoch=step / batches.steps_per_epoch, learning_rate=learning_rate, **values)
    top1, top5 = classifier.test(queries, labels)
    return {"top1": top1, "top5": top5, "epochs": o.epochs, "steps": step}


def fingerprint(subject: evaluate.Subject) -> dict[str, bytes]:
    """Every variable of the encoder, bit for bit."""
    if subject.encoder is None:
        return {}
    return {name: np.asarray(v.value).tobytes() for name, v in subject.encoder.named_variables().items()}


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
