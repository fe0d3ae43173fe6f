"""Linear probe: a linear classifier on the frozen backbone's features; or, with --finetune, both of them trained.

    python -m moco_tf.lincls --load=runs/v2 --flagfile=flags/lincls/imagenet.cfg --data_dir=/data/imagenet
    python -m moco_tf.lincls --load=runs/v2 --dataset=cifar10 --cache_features --learning_rates=0.1,1,10,30
    python -m moco_tf.lincls --load=runs/v2 --dataset=cifar10 --finetune --train_fraction=0.1 --learning_rate=0.1

The whole backbone runs in inference mode and is proven unchanged afterwards (MoCo, section 4.1). The same command again
goes on from the newest whole checkpoint; with --cache_features it begins anew. Writes result.json, where top1 is the
accuracy after the last epoch and best_top1 the highest after any, and confusion.csv.
"""

import hashlib
import pathlib

import numpy as np
import tensorflow as tf
from absl import flags

from moco_tf.config import options
from moco_tf.data import pipeline
from moco_tf.data.sources import Source
from moco_tf.data.views import recipes as views
from moco_tf.errors import UserError
from moco_tf.evaluation import features, logistic, probe, subsets
from moco_tf.evaluation.finetune import FineTuning
from moco_tf.run import build, evaluate, probing, program
from moco_tf.training import device
from moco_tf.training.collectives import Collectives
from moco_tf.training.runlog import RunLog, make_folder


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_load()
    options.define_data()
    options.define_run()
    options.define_optimizer(
        learning_rate=30.0, epochs=100, weight_decay=0.0, schedule="milestones", milestones=("60", "80")
    )
    options.define_probe()


def main(o: object, flagfile: str) -> None:
    """Trains and tests a linear classifier with the given options."""
    check(o)
    ranks = build.connect(o)
    subject = evaluate.load(o)
    train, test = (build.source(o, split, ranks) for split in ("train", "test"))
    evaluate.check_labels(train, test)
    train = part(o, train)
    before = fingerprint(subject)
    run = on_cached_features if o.cache_features else on_images
    last, labels, result, logits = run(o, subject, train, test, ranks)
    if not o.finetune and fingerprint(subject) != before:
        raise AssertionError("the probe changed a backbone variable; its accuracy would mean nothing")
    result |= {"finetuned": o.finetune, "cached_features": o.cache_features, "train_images": train.num_examples}
    result |= evaluate.network_cost(subject, test, logits)
    if ranks.rank == 0:
        best = f"{result['best_top1']:.2%} after epoch {result['best_epoch']:.4g}"
        print(f"the best test was {best}, chosen on the test images; what follows is the last one's", flush=True)
    evaluate.report(o, flagfile, ranks, what(o), subject, result, test, last.predictions, labels)
    ranks.barrier()  # rank 0 may have been busy alone


def check(o: object) -> None:
    """Refuses options that contradict each other."""
    build.check_schedule(o)
    for name in ("standardise", "learning_rates", "logistic_regression"):
        if getattr(o, name) and not o.cache_features:
            raise UserError(f"--{name} needs the features of all images; give --cache_features too, or leave it out")
    if o.finetune and o.cache_features:
        raise UserError("--finetune came with --cache_features, expected one of them: fine-tuning changes the features")
    if o.finetune and o.baseline == "raw_pixels":
        raise UserError("--finetune came with --baseline=raw_pixels, expected an encoder; leave one of them out")
    if o.finetune and o.precision == "float16":
        raise UserError(
            "--finetune came with --precision=float16, expected float32, bfloat16 or auto; give one of them"
        )
    if o.backbone_learning_rate is not None and not (o.finetune and o.learning_rate):
        raise UserError("--backbone_learning_rate came, expected it with --finetune and a --learning_rate above 0")
    if o.train_fraction < 1 and o.train_list:
        raise UserError("--train_fraction came with --train_list, expected one of them; leave one out")
    if o.logistic_regression:
        logistic.require()


def part(o: object, train: Source) -> Source:
    """The training images that --train_fraction or --train_list leaves."""
    if o.train_list:
        return subsets.listed(train, o.train_list)
    return subsets.balanced(train, o.train_fraction, o.seed) if o.train_fraction < 1 else train


def what(o: object) -> str:
    """The evaluation's name, which names its folder too: probes of different kinds do not overwrite each other."""
    share = f"_{o.train_fraction:g}" if o.train_fraction < 1 else ""
    share += f"_{pathlib.Path(o.train_list).stem}" if o.train_list else ""
    return ("finetune" if o.finetune else "lincls") + share


def on_cached_features(
    o: object, subject: evaluate.Subject, train: Source, test: Source, ranks: Collectives
) -> tuple[probing.Test, np.ndarray, dict, object]:
    """(last test, labels of the test images, result, logits of features) of un-augmented features, computed once."""
    kept_out = probe.held_out(train.num_examples, o.seed) if o.learning_rates else ()
    probe.check_batch(o.batch_size, train.num_examples - len(kept_out), ranks)
    evaluate.check_folder(evaluate.output_folder(o, what(o)))  # one of augmented images keeps its checkpoints there
    folder = output_folder(o)
    x, labels = extract(o, subject, train, ranks)
    queries, query_labels = extract(o, subject, test, ranks)
    if o.standardise:
        probe.standardise(x, queries)
    result = {"learning_rate": o.learning_rate}
    if o.learning_rates:
        result = probing.choose(o, x, labels, train.num_classes, ranks)
    rate = result["learning_rate"]
    batches = probe.CachedBatches(x, labels, o.batch_size, o.seed, ranks)
    classifiers = probe.Classifiers(x.shape[1], train.num_classes, [build.optimizer(o)])
    learner = probe.LinearProbe(classifiers, tf.identity, ranks)
    ranks.broadcast(tf.nest.flatten(learner.state()))
    log = RunLog(folder, ranks.rank == 0, probing.steps(o, batches))
    last, tests, _ = probing.fit(o, learner, [rate], batches, log, tester(classifiers, lambda: queries, query_labels))
    log.close()
    result |= {**probing.summary(tests), "tests": tests, "epochs": o.epochs, "steps": tests[-1]["step"]}
    if o.logistic_regression and ranks.rank == 0:
        kept_out = probe.held_out(len(x), o.seed)
        result["logistic_regression"] = logistic.fit_and_test(x, labels, kept_out, queries, query_labels)
        print(f"logistic regression: {logistic.in_words(result['logistic_regression'])}", flush=True)
    return last, query_labels, result, classifiers.logits


def on_images(
    o: object, subject: evaluate.Subject, train: Source, test: Source, ranks: Collectives
) -> tuple[probing.Test, np.ndarray, dict, object]:
    """(last test, labels of the test images, result, logits of features) of training on augmented images."""
    batches, random_view = augmented(o, subject, train, ranks)
    check_splits(o, subject, ranks)
    folder = output_folder(o)
    queries, labels = extract(o, subject, test, ranks)
    classifiers = probe.Classifiers(queries.shape[1], train.num_classes, [build.optimizer(o)])
    if o.finetune:
        learner = fine_tuning(o, subject, classifiers, random_view, ranks)
        tested = tester(classifiers, lambda: extract(o, subject, test, ranks)[0], labels)
    else:
        learner = probe.LinearProbe(classifiers, lambda *batch: subject.embed(random_view(*batch)), ranks)
        tested = tester(classifiers, lambda: queries, labels)
    facts = {"encoder": digest(subject), "training images": train.num_examples}
    kept = probing.Checkpoints(folder, o, facts, learner.state(), about(o, subject, train), ranks)
    done = kept.resume()
    ranks.broadcast(tf.nest.flatten(learner.state()))
    log = RunLog(folder, ranks.rank == 0, probing.steps(o, batches), done[0])
    last, tests, _ = probing.fit(o, learner, [o.learning_rate], batches, log, tested, done, kept.save)
    log.close()
    result = {**probing.summary(tests), "tests": tests, "learning_rate": o.learning_rate, "epochs": o.epochs}
    return last, labels, {**result, "steps": tests[-1]["step"]}, classifiers.logits


def output_folder(o: object) -> pathlib.Path:
    """The folder of the results, made now and not after the work."""
    folder = evaluate.output_folder(o, what(o))
    make_folder(folder)
    return folder


def tester(classifiers: probe.Classifiers, queries: object, labels: np.ndarray) -> object:
    """A function that tests a single classifier on what queries() gives, QxD."""

    def test() -> probing.Test:
        (accuracies,), predictions = classifiers.test(queries(), labels)
        return probing.Test(*accuracies, predictions[:, 0])

    return test


def about(o: object, subject: evaluate.Subject, train: Source) -> dict:
    """What a checkpoint says of itself; a fine-tuned encoder can be loaded by it."""
    described = {"dataset": o.dataset, "classes": list(train.class_names)}
    if o.finetune:
        size = subject.geometry(train)[1]
        described |= {"encoder": dict(subject.encoder.config), "image_size": size, "method": "finetune"}
        described |= {"mean": list(subject.mean), "std": list(subject.std)}
    return described


def extract(o: object, subject: evaluate.Subject, images: Source, ranks: Collectives) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all images, un-augmented."""
    found = features.extract(subject.embed, images, subject.geometry(images), o.batch_size, ranks, o.max_bad_images)
    features.check_finite(found[0], ranks)
    return found


def augmented(o: object, subject: evaluate.Subject, train: Source, ranks: Collectives) -> tuple:
    """Batches of training images, and the random view of a batch: (images, seed, positions, global batch) to [0, 1]."""
    view = views.view(o.train_view, subject.geometry(train)[1])  # in [0, 1]: the subject normalises
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
        bad_images_file=str(evaluate.output_folder(o, what(o)) / "unreadable.txt"),
    )
    compile_view = device.pieces_to_compile(o.jit_compile) != "none"
    return batches, tf.function(in_step, jit_compile=True) if compile_view else in_step


def check_splits(o: object, subject: evaluate.Subject, ranks: Collectives) -> None:
    """Refuses a batch that an encoder with SplitBatchNorm cannot be trained on."""
    splits = subject.encoder.config["bn_splits"] if o.finetune else 1
    if o.batch_size // ranks.size % splits:
        raise UserError(
            f"--batch_size={o.batch_size} gives each of {ranks.size} ranks {o.batch_size // ranks.size} images, "
            f"expected a multiple of {splits}, the splits of the encoder's batch norms; change it"
        )


def fine_tuning(
    o: object, subject: evaluate.Subject, classifiers: probe.Classifiers, random_view: object, ranks: Collectives
) -> FineTuning:
    """The classifier with the backbone below it."""
    mean, std = tf.constant(subject.mean), tf.constant(subject.std)
    ratio = 1.0 if o.backbone_learning_rate is None else o.backbone_learning_rate / o.learning_rate
    return FineTuning(
        classifiers,
        subject.encoder,
        build.optimizer(o),
        ratio,
        lambda *batch: (random_view(*batch) - mean) / std,
        ranks,
        device.pieces_to_compile(o.jit_compile) == "all",
    )


def fingerprint(subject: evaluate.Subject) -> dict[str, bytes]:
    """Every variable of the encoder, bit for bit."""
    if subject.encoder is None:
        return {}
    return {name: np.asarray(v.value).tobytes() for name, v in subject.encoder.named_variables().items()}


def digest(subject: evaluate.Subject) -> str:
    """A short name of the encoder's variables."""
    return hashlib.sha256(b"".join(fingerprint(subject).values())).hexdigest()[:16]


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
