"""What --monitor measures of a pre-training on the way: kNN, the probe that learns along, label-free figures."""

from collections.abc import Callable

from moco_tf.config.options import LABEL_FREE
from moco_tf.data.records import BadImages
from moco_tf.data.sources import Source
from moco_tf.evaluation import features, knn
from moco_tf.evaluation.online_probe import OnlineProbe
from moco_tf.evaluation.scores import check_labels
from moco_tf.run import label_free, prepare
from moco_tf.run.folder import RunFolder
from moco_tf.run.learner import Evaluation
from moco_tf.run.prepare import Pretraining

_BATCH = 256
_PURPOSE = "for the kNN monitor; give --knn_every=0, or"
_PURPOSES = "for knn and probe; leave them out of --monitor, or give"  # its other measures need none

Measure = Callable[[], dict[str, float]]


def of_run(run: Pretraining) -> Evaluation | None:
    """The test on the way; None with --knn_every=0.

    Raises:
        UserError: what is to be measured needs labels that are not there.
    """
    o = run.options.monitor
    if not o.knn_every:
        return None
    measures: list[Measure] = []
    if {"knn", "probe"} & set(o.monitor):
        test = prepare.source(run.options.data, "test", run.collectives)
        check_labels(run.train, test, _PURPOSE if o.monitor == ("knn",) else _PURPOSES)
        measures += [_knn(run, test)] if "knn" in o.monitor else []
        measures += [_probe(run, run.learner, test)] if isinstance(run.learner, OnlineProbe) else []
    if set(LABEL_FREE) & set(o.monitor):
        measures.append(_label_free(run))

    def measure(step: int, epoch: float) -> dict[str, float]:
        return {"epoch": epoch, **{name: value for each in measures for name, value in each().items()}}

    return Evaluation(o.knn_every, measure, line)


def line(values: dict[str, float]) -> str:
    """What was measured, in words."""
    parts = [
        f"{title} top-1 {values[f'{name}_top1']:.2%}, top-5 {values[f'{name}_top5']:.2%}"
        for name, title in (("knn", "kNN"), ("probe", "probe"))
        if f"{name}_top1" in values
    ]
    figures = {name: values[name] for name in LABEL_FREE if name in values}
    parts += [label_free.words(figures)] if figures else []
    return f"epoch {values['epoch']:.4g}: {'; '.join(parts)}"


def _knn(run: Pretraining, test: Source) -> Measure:
    """Weighted kNN accuracy of the encoder on the test images, against un-augmented training images."""
    o, bank, geometry = run.options, _bank(run), _geometry(run)
    embed = features.embedder(run.method.query_encoder, o.knn.feature, *run.mean_and_std)

    def measure() -> dict[str, float]:
        found = knn.measure(
            embed,
            bank,
            test,
            (geometry, geometry),
            o.knn.k,
            o.knn.knn_temperature,
            o.knn.weighting,
            _BATCH,
            run.collectives,
            _bad_images(run),
            require_finite=False,
        )
        first, *more = found.outcomes
        others = {f"knn_top1_k{other.k}_t{other.temperature:g}": other.top1 for other in more}
        return {"knn_top1": first.top1, "knn_top5": first.top5, **others}

    return measure


def _probe(run: Pretraining, probe: OnlineProbe, test: Source) -> Measure:
    """Accuracy of the probe on the test images."""
    embed = features.embedder(run.method.query_encoder, "backbone", *run.mean_and_std)

    def measure() -> dict[str, float]:
        x, labels = features.extract(embed, test, _geometry(run), _BATCH, run.collectives, _bad_images(run))
        ((top1, top5),), *_ = probe.classifiers.test(x, labels)
        return {"probe_top1": top1, "probe_top5": top5}

    return measure


def _label_free(run: Pretraining) -> Measure:
    """Those of --monitor, of the features that --feature names."""
    o, wanted = run.options, run.options.monitor.monitor
    embed = features.embedder(run.method.query_encoder, o.knn.feature, *run.mean_and_std)

    def measure() -> dict[str, float]:
        of_run = _geometry(run), o.views, o.run.seed, run.collectives, _bad_images(run)
        return label_free.figures(label_free.see(embed, wanted, run.train, *of_run), wanted)

    return measure


def _geometry(run: Pretraining) -> tuple[int, int]:
    return features.test_geometry(run.train, run.size, run.options.data.test_resize or 0)


def _bad_images(run: Pretraining) -> BadImages:
    folder = RunFolder.of(run.options.run.workdir or "")
    return BadImages(run.options.data.max_bad_images, str(folder.unreadable))


def _bank(run: Pretraining) -> Source:
    """The training images that vote: all, or --knn_bank of them."""
    return label_free.some(run.train, run.options.monitor.knn_bank or run.train.num_examples, run.options.run.seed)
