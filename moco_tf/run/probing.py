"""Linear probe and fine-tuning: what the loop is told, the choice of a learning rate, and the result."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.config import define
from moco_tf.config.options import Lincls
from moco_tf.data.order import Share
from moco_tf.data.pipeline import TrainBatches
from moco_tf.data.sources import Source
from moco_tf.data.views import recipes
from moco_tf.errors import UserError
from moco_tf.evaluation import duplicates, features, logistic, probe, subject, subsets
from moco_tf.evaluation.finetune import FineTuning
from moco_tf.evaluation.probe import CachedBatches, Classifiers, LinearProbe
from moco_tf.evaluation.scores import calibration_error
from moco_tf.evaluation.subject import Subject
from moco_tf.run import advice, loop, prepare, results, statistics
from moco_tf.run.learner import Batches, TrainingTask
from moco_tf.run.learner import Evaluation as Test
from moco_tf.run.results import Evaluation
from moco_tf.training import compiled, device, schedules
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.files import make_folder
from moco_tf.training.runlog import progress
from moco_tf.training.stop import Signals, signals

Probing = Evaluation[Lincls]
Probed = tuple["Tested", dict[str, Any], Callable[[tf.Tensor], tf.Tensor]]  # last test, numbers, logits of features


@dataclasses.dataclass
class Tested:
    """The last test of a probe: accuracies, calibration error, and the likeliest class of each test image, Q int64."""

    labels: np.ndarray
    top1: float = math.nan
    top5: float = math.nan
    predictions: np.ndarray | None = None
    calibration_error: float = math.nan

    def take(self, shares: list[tuple[float, float]], predictions: np.ndarray, confidences: np.ndarray) -> None:
        """Keeps what `Classifiers.test` says of one classifier."""
        ((self.top1, self.top5),), self.predictions = shares, predictions[:, 0]
        self.calibration_error = calibration_error(confidences[:, 0], self.predictions == self.labels)


def evaluate(o: Lincls, one: Subject | None = None) -> dict[str, Any]:
    """Trains and tests a linear classifier, or fine-tunes, and writes the result; returns it.

    On ranks other than the first it lacks the tests on the way.

    Args:
        o: the options.
        one: what to evaluate, and fine-tuned in place; None: what the options name.

    Raises:
        UserError: options do not fit, nothing can be loaded, or the set has no labels.
        AssertionError: the probe changed the backbone.
    """
    check(o)
    with signals() as received:
        collectives = prepare.connect(o.device, o.run.seed)
        prepare.check_calls(o.device, collectives)
        given, o = o.data, results.completed(o)
        one = one or subject.load(o.encoder, o.data, o.device.precision)
        if one.encoder is None:  # the classifier's first weights are the same whether --load built an encoder or not
            keras.utils.set_random_seed(o.run.seed)
        run = results.begin(name_of(o), o, given, one, collectives)
        run, whole = dataclasses.replace(run, train=part(o, run.train)), run.train.num_examples
        if collectives.rank == 0 and run.train.num_examples < whole:
            print(f"learning from {run.train.num_examples:,} of {whole:,} training images", flush=True)
        before, _ = one.fingerprint(), one.weights  # fine-tuning changes them
        with results.given_back(run):
            tested, numbers, logits = (on_cached_features if o.probe.cache_features else on_images)(run, received)
    if not o.probe.finetune and one.fingerprint() != before:
        raise AssertionError("the probe changed a backbone variable; its accuracy would mean nothing")
    numbers |= {"finetuned": o.probe.finetune, "cached_features": o.probe.cache_features}
    numbers |= one.cost(run.test, logits)
    assert tested.predictions is not None
    if collectives.rank == 0:
        best = f"{numbers['best_top1']:.2%} after epoch {numbers['best_epoch']:.4g}"
        print(f"the best test was {best}, chosen on the test images; what follows is the last one's", flush=True)
    found = run.finish(tested.predictions, tested.labels, numbers)
    collectives.barrier()  # rank 0 may have been busy alone
    return found


def check(o: Lincls) -> None:
    """Refuses options that contradict each other."""
    p = o.probe
    prepare.check_schedule(o.schedule, o.optimizer.learning_rate)
    needing = {"standardise": p.standardise, "learning_rates": p.learning_rates}
    for name, value in (needing | {"logistic_regression": p.logistic_regression}).items():
        if value and not p.cache_features:
            raise UserError(f"--{name} needs the features of all images; give --cache_features too, or leave it out")
    if p.finetune:
        _check_finetune(o)
    if p.backbone_learning_rate is not None and not (p.finetune and o.optimizer.learning_rate):
        raise UserError("--backbone_learning_rate came, expected it with --finetune and a --learning_rate above 0")
    if p.train_fraction < 1 and p.train_list:
        raise UserError("--train_fraction came with --train_list, expected one of them; leave one out")
    if p.logistic_regression:
        logistic.require()


def _check_finetune(o: Lincls) -> None:
    if o.probe.cache_features:
        raise UserError("--finetune came with --cache_features, expected one of them: fine-tuning changes the features")
    if o.encoder.baseline == "raw_pixels":
        raise UserError("--finetune came with --baseline=raw_pixels, expected an encoder; leave one of them out")
    if o.device.precision == "float16":
        raise UserError(
            "--finetune came with --precision=float16, expected float32, bfloat16 or auto; give one of them"
        )


def part(o: Lincls, train: Source) -> Source:
    """The training images that --train_fraction or --train_list leaves."""
    if o.probe.train_list:
        return subsets.listed(train, o.probe.train_list)
    fraction = o.probe.train_fraction
    return subsets.balanced(train, fraction, o.run.seed) if fraction < 1 else train


def name_of(o: Lincls) -> str:
    """The evaluation's name, which names its folder too: probes of different kinds do not overwrite each other."""
    share = f"_{o.probe.train_fraction:g}" if o.probe.train_fraction < 1 else ""
    share += f"_{pathlib.Path(o.probe.train_list).stem}" if o.probe.train_list else ""
    return ("finetune" if o.probe.finetune else "lincls") + share


def on_cached_features(run: Probing, received: Signals) -> Probed:
    """Training on un-augmented features, computed once."""
    run = with_batch_that_fits(run)
    o, collectives = run.options, run.collectives
    probe.check_batch(o.run.batch_size, run.train.num_examples, collectives)
    results.check_folder(run.folder)  # a probe of augmented images keeps its checkpoints there
    make_folder(run.folder.path)  # now, not after the work
    both = duplicates.beside(run.subject.embed) if run.counts_copies else None
    x, *bank, labels = extract(run, run.train, both)
    queries, *wanted, query_labels = extract(run, run.test, both)
    pictures = (bank[0], wanted[0], run.test, run.subject.geometry(run.test), SingleProcess()) if both else None
    copies = duplicates.count_in_train(*pictures) if pictures else None
    del bank, wanted, pictures
    if o.probe.standardise:
        probe.standardise(x, queries)
    numbers: dict[str, Any] = {"learning_rate": o.optimizer.learning_rate, "train_images": len(x)}
    numbers |= {"batch_size": o.run.batch_size}
    numbers |= run.of_copies(copies, len(queries))
    if o.probe.learning_rates:
        numbers |= choose(run, x, labels)
    batches = CachedBatches(x, labels, o.run.batch_size, o.run.seed, collectives)
    classifiers = Classifiers(x.shape[1], run.train.num_classes, [prepare.optimizer(o.optimizer)])
    learner = LinearProbe(classifiers, tf.identity, collectives, o.run.seed)
    tested = Tested(query_labels)
    rate = numbers["learning_rate"]
    numbers |= train(run, received, learner, batches, rate, tested, lambda: queries, resumes=False)
    if o.probe.logistic_regression and collectives.rank == 0:
        left_out = probe.held_out(len(x), o.run.seed)
        numbers["logistic_regression"] = logistic.fit_and_test(x, labels, left_out, queries, query_labels)
        print(f"logistic regression: {logistic.in_words(numbers['logistic_regression'])}", flush=True)
    return tested, numbers, classifiers.logits


def with_batch_that_fits(run: Probing) -> Probing:
    """A grid of learning rates, which learns on nine tenths of the images, with a batch that they have."""
    o, count, ranks = run.options, run.train.num_examples, run.collectives.size
    most = count - len(probe.held_out(count, o.run.seed))
    size = max(most // ranks, 1) * ranks
    if not o.probe.learning_rates or o.run.batch_size <= most:
        return run
    if run.collectives.rank == 0:
        print(f"the batch is {size}, not {o.run.batch_size}: {most:,} images are left to learn from", flush=True)
    return dataclasses.replace(run, options=define.replaced(o, batch_size=size))


def on_images(run: Probing, received: Signals) -> Probed:
    """Training on augmented images."""
    o, one, collectives = run.options, run.subject, run.collectives
    batches, random_view = augmented(run)
    check_splits(run)
    make_folder(run.folder.path)  # now, not after the work
    queries, labels = extract(run, run.test)
    classifiers = Classifiers(queries.shape[1], run.train.num_classes, [prepare.optimizer(o.optimizer)])
    tested, rate = Tested(labels), o.optimizer.learning_rate
    if o.probe.finetune:
        tuning = fine_tuning(run, classifiers, random_view)
        numbers = train(run, received, tuning, batches, rate, tested, lambda: extract(run, run.test)[0])
    else:
        learner = LinearProbe(classifiers, lambda *batch: one.embed(random_view(*batch)), collectives, o.run.seed)
        numbers = train(run, received, learner, batches, rate, tested, lambda: queries)
    numbers |= {"learning_rate": rate, "train_images": readable(run, batches)}
    return tested, numbers, classifiers.logits


def readable(run: Probing, batches: TrainBatches) -> int:
    """How many training images there are without those that some rank could not read, now or before a restart."""
    if run.train.fixed_size:
        return run.train.num_examples
    own = np.append(-1, batches.unreadable.known())  # a rank that met none has a row, too
    return run.train.num_examples + 1 - len(np.unique(run.collectives.allgather(tf.constant(own))))


def train(
    run: Probing,
    received: Signals,
    learner: LinearProbe | FineTuning,
    batches: Batches,
    learning_rate: float,
    tested: Tested,
    queries: Callable[[], np.ndarray],
    resumes: bool = True,
) -> dict[str, Any]:
    """Trains to the end, with tests on the way; returns what the result says of them.

    Args:
        run: what the probe works on.
        received: the signals that this process gets.
        learner: what is trained.
        batches: of the training images.
        learning_rate: of the classifier, before its schedule.
        tested: gets the last test.
        queries: features of the test images, QxD.
        resumes: whether checkpoints are written, and the training goes on from them.
    """
    o, collectives = run.options, run.collectives

    def measure(step: int, epoch: float) -> dict[str, float]:
        tested.take(*learner.classifiers.test(queries(), tested.labels))
        return {"test_top1": tested.top1, "test_top5": tested.top5}

    training = TrainingTask(
        options=o,
        folder=run.folder,
        learner=learner,
        batches=batches,
        batch_size=o.run.batch_size,
        total=advice.total_steps(o.schedule, batches.steps_per_epoch),
        collectives=collectives,
        checkpoints=o.checkpoints,
        log_every=o.run.log_every,
        rates=lambda step: [schedules.learning_rate(step - 1, batches.steps_per_epoch, learning_rate, o.schedule)],
        set_rates=learner.set_learning_rates,
        about=lambda: about(run),
        facts={"encoder": run.subject.weights, "training images": run.train.num_examples},
        evaluation=Test(o.probe.eval_every, measure, lambda values: ""),
        resumes=resumes,
        steps_per_call=min(o.run.log_every, max(1, o.device.steps_per_call)),
    )
    learner.guard.every_gradient = o.checkpoints.nan_policy == "skip"
    said = advice.of_steps(o.schedule, batches.steps_per_epoch)
    done = loop.train(training, "moco_tf.lincls", received, lambda start: print("\n".join(said), end="\n" * len(said)))
    if done > training.total:
        raise UserError(
            f"{done} steps are no result of {training.total}; give --epochs as before, or another --workdir"
        )
    if tested.predictions is None:  # there was nothing left to do
        with statistics.averaged(learner, collectives):
            measure(training.total, training.total / training.per_epoch)
    # The run folder may be on rank 0's disk only, which writes the result.
    lines = run.folder.read_metrics().lines if collectives.rank == 0 else []
    return {**summary(lines, tested), "epochs": o.schedule.epochs, "steps": training.total}


def summary(metrics: list[dict[str, Any]], tested: Tested) -> dict[str, Any]:
    """What a result says of the tests: top1 and top5 are the last one's, best_ those of the highest top-1.

    The best one is chosen on the test images themselves, so it flatters: it is there to compare with those who report
    it.
    """
    lines = [line for line in metrics if "test_top1" in line]
    names = {"step": "step", "epoch": "epoch", "top1": "test_top1", "top5": "test_top5"}
    tests = [{name: line[key] for name, key in names.items()} for line in lines]
    best = max(tests, key=lambda test: test["top1"], default={"top1": tested.top1, "top5": tested.top5, "epoch": 0.0})
    found = {"best_top1": best["top1"], "best_top5": best["top5"], "best_epoch": best["epoch"], "tests": tests}
    error = tested.calibration_error if math.isfinite(tested.calibration_error) else None  # of a diverged classifier
    return {"top1": tested.top1, "top5": tested.top5, "expected_calibration_error": error, **found}


def choose(run: Probing, x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Trains one classifier for each of --learning_rates on nine tenths of cached features, tests them on the others.

    Args:
        run: what the probe works on.
        x, labels: features NxD and labels N of the training images.

    Returns:
        learning_rate: the one that is right most often on the held-out training images, of equal ones that of the
        lowest training loss; learning_rates: all of them, with held_out_top1 and the last loss, None where it diverged;
        held_out_images.

    Raises:
        UserError: all of them diverged.
    """
    o, collectives, rates = run.options, run.collectives, run.options.probe.learning_rates or ()
    left_out = probe.held_out(len(x), o.run.seed)
    rows = np.setdiff1d(np.arange(len(x)), left_out)
    batches = CachedBatches(x, labels, o.run.batch_size, o.run.seed, collectives, rows)
    classifiers = Classifiers(x.shape[1], run.train.num_classes, [prepare.optimizer(o.optimizer) for _ in rates])
    collectives.broadcast(classifiers.variables())
    learner = LinearProbe(classifiers, tf.identity, collectives, o.run.seed)
    step_of_all, losses = tf.function(learner.train_step_of_all, autograph=False), np.full(len(rates), np.nan)
    total = advice.total_steps(o.schedule, batches.steps_per_epoch)
    with progress(total, f"{len(rates)} learning rates", collectives.rank == 0) as bar:
        for step, batch in loop.steps(batches, 0, total):
            every = [schedules.learning_rate(step - 1, batches.steps_per_epoch, rate, o.schedule) for rate in rates]
            learner.set_learning_rates(every)
            losses = step_of_all(batch)
            bar.update()
    shares, *_ = classifiers.test(x[left_out], labels[left_out])
    found = [
        {"learning_rate": rate, "held_out_top1": top1, "loss": float(loss) if math.isfinite(loss) else None}
        for rate, (top1, _), loss in zip(rates, shares, np.asarray(losses))
    ]
    if collectives.rank == 0:
        for one in found:
            said = "diverged" if one["loss"] is None else f"{one['held_out_top1']:.2%}"
            print(f"learning rate {one['learning_rate']:g}: {said} of {len(left_out)} held-out training images")
    # Few held-out images give many ties: the lower loss then.
    best = max(found, key=lambda one: (one["loss"] is not None, one["held_out_top1"], -(one["loss"] or 0.0)))
    if best["loss"] is None:
        raise UserError("every one of --learning_rates diverged, expected one that does not; lower them")
    return {"learning_rate": best["learning_rate"], "learning_rates": found, "held_out_images": len(left_out)}


def about(run: Probing) -> dict[str, Any]:
    """What a checkpoint says of itself; a fine-tuned encoder can be loaded by it."""
    o, one = run.options, run.subject
    described: dict[str, Any] = {"dataset": o.data.dataset, "classes": list(run.train.class_names)}
    described |= {"ranks": run.collectives.size}
    if o.probe.finetune and one.encoder:
        described |= {name: getattr(one, name) for name in ("test_resize", "mean", "std")}
        size = one.geometry(run.train)[1]
        described |= {"encoder": dict(one.encoder.config), "image_size": size, "method": "finetune"}
    return described


def extract(run: Probing, images: Source, embed: Callable | None = None) -> tuple[np.ndarray, ...]:
    """Features (of an embed in place of the subject's) and labels of all images, un-augmented."""
    one, collectives = run.subject, run.collectives
    compute, geometry = embed or one.embed, one.geometry(images)
    with progress(images.num_examples // collectives.size, "features", collectives.rank == 0) as bar:
        more = {"bad_images": run.bad_images, "done": bar.update}
        found = features.extract(compute, images, geometry, run.rank_batch, collectives, **more)
    features.check_finite(found[0], collectives)
    return found


def augmented(run: Probing) -> tuple[TrainBatches, Callable[..., tf.Tensor]]:
    """Batches of training images, and the random view of a batch: (images, seed, positions, global batch) to [0, 1]."""
    o, collectives = run.options, run.collectives
    view = recipes.view(o.probe.train_view, run.subject.geometry(run.train)[1])  # in [0, 1]: the subject normalises
    prepare.check_crop(o.probe.train_view, [view], run.train)
    in_step = prepare.in_step(view, run.train)
    batches = TrainBatches(
        run.train,
        o.run.batch_size,
        o.run.seed,
        Share(collectives.rank, collectives.size),
        prepare.crops([view]),
        run.bad_images,
    )
    batches = prepare.placed(batches, o.device)
    compile_view = device.pieces_to_compile(o.device.jit_compile) != "none"
    return batches, compiled.function(in_step) if compile_view else in_step


def check_splits(run: Probing) -> None:
    """Refuses a batch that an encoder with SplitBatchNorm cannot be trained on. Raises UserError."""
    o, collectives, encoder = run.options, run.collectives, run.subject.encoder
    splits = encoder.config["bn_splits"] if o.probe.finetune and encoder else 1
    share = o.run.batch_size // collectives.size
    if share % splits:
        raise UserError(
            f"--batch_size={o.run.batch_size} gives each of {collectives.size} ranks {share} images, expected a "
            f"multiple of {splits}, the splits of the encoder's batch norms; change it"
        )


def fine_tuning(run: Probing, classifiers: Classifiers, random_view: Callable[..., tf.Tensor]) -> FineTuning:
    """The classifier with the backbone below it."""
    o, one = run.options, run.subject
    assert one.encoder is not None
    mean, std = tf.constant(one.mean), tf.constant(one.std)
    own = o.probe.backbone_learning_rate
    return FineTuning(
        classifiers,
        one.encoder,
        prepare.optimizer(o.optimizer),
        1.0 if own is None else own / o.optimizer.learning_rate,
        lambda *batch: (random_view(*batch) - mean) / std,
        run.collectives,
        device.pieces_to_compile(o.device.jit_compile) == "all",
        o.run.seed,
    )
