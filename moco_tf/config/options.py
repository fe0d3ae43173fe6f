"""The programs' options, in groups. A field is a flag: its name, type, default, help and bounds stand here once.

A program's options are a dataclass of groups; where a program has another default, its group is made with it. Functions
take the group, or the values, that they read. Options that a checkpoint depends on must stay as they are when a run
goes on; `may_change` marks the others, whose change is said, and `elsewhere` what may change without a word.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from moco_tf.config import find
from moco_tf.config.types import Bounds, Count, CountOrZero, Path, Place, Positive, PositiveOrZero, Share, Value
from moco_tf.errors import UserError


def option(default: Value, help: str, change: str = "refused") -> Any:  # noqa: A002
    """A field that is a flag.

    Args:
        default: its value when nothing is given.
        help: a sentence for --help.
        change: what a run that goes on does with another value: "refused", "said", or "silent".
    """
    return dataclasses.field(default=default, metadata={"help": help, "change": change})


def may_change(default: Value, help: str) -> Any:  # noqa: A002
    """An option that may be another one when a run goes on."""
    return option(default, help, "said")


def elsewhere(default: Value, help: str) -> Any:  # noqa: A002
    """An option that says where something is."""
    return option(default, help, "silent")


def came() -> Any:
    """A field with the names of the flags that came, on the command line or in a flagfile; no flag itself."""
    return dataclasses.field(default=(), compare=False)


def owned(kind: str) -> Any:
    """A field with the options of what --kind names, such as the method's own; see moco_tf.config.find."""
    return dataclasses.field(default_factory=dict, metadata={"kind": kind})


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Where images come from."""

    dataset: str = option(
        "fashion_mnist",
        "fashion_mnist, imagenet100, folder, a TensorFlow Datasets name, or your module; a run has its own.",
    )
    data_dir: Path | None = elsewhere(None, "TFDS's folder; for `folder` of train/ and val/, or of images.")
    max_bad_images: CountOrZero = may_change(100, "Unreadable images a rank skips before it stops.")


@dataclasses.dataclass(frozen=True)
class DataOptions(SourceOptions):
    """Which images, and how large."""

    holdout: CountOrZero | None = option(0, "Keep so many training images out and test on them, to choose settings.")
    image_size: CountOrZero = may_change(0, "Pixels of a view's side; 0: the data set's own size, else 224.")
    test_resize: CountOrZero | None = may_change(
        0, "Short side before the centre crop in tests; 0: 256/224 of the size, and images of its size as they are."
    )
    normalise: str = option("auto", "Mean and deviation to normalise with: a data set's name, none, or auto: its own.")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The run folder and the steps."""

    workdir: Path | None = elsewhere(None, "Run folder: metrics, checkpoints, results. A run found there is resumed.")
    seed: int = option(0, "Of initialisation, order of the images, views and shuffles.")
    batch_size: Count = option(256, "Images a step, over all ranks.")
    log_every: Count = may_change(10, "Steps between two lines of metrics.")

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= 2**26:
            raise UserError(f"--seed={self.seed} came, expected 0 to {2**26}")


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """How this machine computes."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = may_change(
        "auto", "auto: bfloat16 where it is fast; float16 scales the loss."
    )
    jit_compile: Literal["auto", "true", "views", "false"] = may_change(
        "auto", "XLA compiles all, the views, or nothing; auto: what is fastest on a GPU, views on a CPU."
    )
    deterministic: bool = may_change(False, "The same bits in every run on such a GPU; slower. See docs/gpu.md.")
    threads: CountOrZero = may_change(0, "CPU threads of this process; 0: the cores divided by the ranks here.")


@dataclasses.dataclass(frozen=True)
class TrainingDeviceOptions(DeviceOptions):
    """How this machine computes the steps of a training."""

    steps_per_call: CountOrZero = may_change(
        0, "Steps of one call of a compiled loop; 0: 10 where a GPU holds the images, see --data_on_device, else 1."
    )
    data_on_device: Literal["auto", "true", "false"] = may_change(
        "auto", "All images of one size lie in the device's memory; auto: on a GPU, up to 2 GB."
    )


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """The encoder's architecture, and how its training passes save memory."""

    init: Path | None = elsewhere(None, "Start from the weights of whatever --load takes; head and queue if they fit.")
    arch: str = option("resnet50", "Backbone, a file of moco_tf/networks/backbones or a module of yours (my.convnext).")
    head: Literal["linear", "mlp", "mlp_bn", "mlp_bn2", "mlp_bn3"] = option(
        "mlp", "Linear; Linear-ReLU-Linear; Linear-BN-ReLU-Linear; MoCo v3's with a BN at the end, of 2 or 3 layers."
    )
    hidden_dim: CountOrZero = option(0, "Hidden width of an MLP head; 0: the width of the pooled features.")
    feature_dim: Count = option(128, "C, width of the head's output.")
    head_init: Literal["torch", "normal"] = may_change("torch", "uniform 1/sqrt(fan_in), or N(0, 0.01) and bias 0.")
    bn_splits: Count = may_change(1, "Strided splits of a rank's batch in each batch norm (SplitBatchNorm).")
    accumulate: Count = may_change(1, "Micro-batches of a step, one in memory at a time; batch norms see one.")
    recompute: bool = may_change(False, "Compute activations again in the backward pass: less memory, more time.")
    own: Mapping[str, Value] = owned("arch")


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """The contrast."""

    method: str = option("moco", "Pre-training method, a file of moco_tf/methods or a module of yours (my.byol).")
    own: Mapping[str, Value] = owned("method")
    key_momentum_schedule: Literal["constant", "cosine"] = may_change("constant", "m as it is, or rising to 1.")
    bn: Literal["split", "shuffle", "sync"] = may_change(
        "shuffle",
        "Batch norms see the rank's own batch (or its --bn_splits); the same, but keys are shuffled across ranks and "
        "splits (ShuffleBN; moco_v3, which shuffles nothing, takes sync for it); or the batch of all ranks (SyncBN).",
    )
    compression: Literal["none", "float16"] = may_change("none", "Send gradients to other ranks in half the bytes.")


@dataclasses.dataclass(frozen=True)
class ViewOptions:
    """The random views, and the order in which images are read."""

    views: str = may_change("moco_v2", "Random views of an image, see moco_tf/data/views/recipes.py.")
    crop_scale: tuple[float, ...] | None = may_change(None, "Range of the crop's area, as 0.2,1; else the view's.")
    fast_views: bool = may_change(False, "Crops without antialiasing, and a Gaussian of 13 taps for PIL's blur.")
    read_order: Literal["random", "blocks"] = option("random", "Any, or blocks of large files: data/order.py.")

    def __post_init__(self) -> None:
        find.module_of("views", self.views)  # refuses a wrong name
        area = self.crop_scale
        if area and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
            shown = ",".join(f"{number:g}" for number in area)
            raise UserError(
                f"--crop_scale={shown} came, expected two numbers, smallest and largest area, above 0 and at most 1"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer."""

    optimizer: str = option("sgd", "sgd, adam, adamw, lars, with PyTorch's semantics.")
    learning_rate: PositiveOrZero = may_change(0.03, "Base learning rate, as it is: not scaled by the batch.")
    momentum: Share = may_change(0.9, "Of SGD and LARS.")
    nesterov: bool = may_change(False, "Nesterov's momentum in SGD.")
    weight_decay: PositiveOrZero = may_change(1e-4, "L2 in the gradient (adamw: decoupled), on every parameter.")

    def __post_init__(self) -> None:
        find.module_of("optimizer", self.optimizer)  # refuses a wrong name


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """The number of steps, and the learning rate of each."""

    epochs: Count = may_change(200, "Passes over the training images.")
    steps: CountOrZero = may_change(0, "Stop after this many steps; 0: after the epochs.")
    schedule: Literal["cosine", "milestones", "constant"] = may_change("cosine", "Of the learning rate.")
    schedule_per: Literal["epoch", "step"] = may_change("epoch", "How often the learning rate changes.")
    first_epoch: int = may_change(0, "Number of the first epoch in a schedule per epoch: 0 or 1.")
    milestones: tuple[int, ...] = may_change((120, 160), "Epochs at which the learning rate drops.")
    decay: PositiveOrZero = may_change(0.1, "Factor of a drop.")
    final_learning_rate: PositiveOrZero = may_change(0.0, "Where the cosine ends.")
    warmup_epochs: PositiveOrZero = may_change(0.0, "Epochs of linear warm-up.")
    warmup_start: PositiveOrZero = may_change(0.0, "Learning rate at which the warm-up starts.")

    def __post_init__(self) -> None:
        if self.first_epoch not in (0, 1):
            raise UserError(f"--first_epoch={self.first_epoch} came, expected 0 or 1")


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints, and what stops a run."""

    checkpoint_every: CountOrZero = may_change(1, "Epochs between two checkpoints; 0: only at the end.")
    checkpoint_steps: CountOrZero = may_change(0, "Steps between two checkpoints, besides; 0: none.")
    keep: Count = may_change(3, "Newest checkpoints that are kept.")
    keep_every: CountOrZero = may_change(0, "Epochs between two checkpoints that are kept for good; 0: none.")
    keep_steps: CountOrZero = may_change(0, "Steps between two checkpoints that are kept for good; 0: none.")
    nan_policy: Literal["stop", "skip"] = may_change("stop", "A step that is not finite: stop, or leave it out.")
    step_timeout: CountOrZero = may_change(600, "Seconds of a step until one of several ranks counts as hung; 0: any.")


@dataclasses.dataclass(frozen=True)
class KnnOptions:
    """The weighted k-nearest-neighbour classifier."""

    k: tuple[int, ...] = may_change((200,), "Neighbours; several between commas in one pass, the first counts.")
    knn_temperature: tuple[float, ...] = may_change((0.1,), "Of the neighbours' weights; or several, each with each k.")
    weighting: Literal["weighted", "majority"] = may_change("weighted", "exp(sim / T) or one vote each.")
    feature: Literal["head", "backbone", "patches"] = may_change(
        "head", "The head's output, the pooled features (a ViT's class token), or the mean of a ViT's patches."
    )

    def __post_init__(self) -> None:
        check_each("k", self.k, 1)
        check_each("knn_temperature", self.knn_temperature, 1e-6)


LABEL_FREE = ("rankme", "alpha_req", "lidar", "uniformity", "alignment")


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
    """The monitor of pre-training."""

    monitor: tuple[str, ...] = may_change(
        ("knn",), "Measured on the way: knn, probe (learns along), rankme, alpha_req, lidar, uniformity, alignment."
    )
    knn_every: CountOrZero = may_change(0, "Epochs between two measurements of the monitor; 0: none.")
    knn_bank: CountOrZero = may_change(0, "Training images in the kNN monitor's bank; 0: all.")

    def __post_init__(self) -> None:
        check_words("monitor", self.monitor, ("knn", "probe", *LABEL_FREE))


@dataclasses.dataclass(frozen=True)
class AutomaticOptions:
    """Settings that fit the images."""

    auto: bool = elsewhere(False, "Choose what is not given from images and device; see docs/automatic.md.")
    given: tuple[str, ...] = came()


BASELINES = ("none", "untrained", "raw_pixels")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What holds the encoder."""

    load: Path | None = elsewhere(None, "Run folder, checkpoint, or a .pth, .pth.tar, .safetensors or .npz file.")


@dataclasses.dataclass(frozen=True)
class EncoderToEvaluate(LoadOptions):
    """What is evaluated."""

    baseline: Annotated[str, Place(BASELINES)] = option(
        "none", "In its place: untrained, raw_pixels, or whatever else --load takes."
    )

    def __post_init__(self) -> None:
        check_baseline(self.baseline)


@dataclasses.dataclass(frozen=True)
class FewShotOptions:
    """The labels, and what else is measured with the same ones."""

    baseline: tuple[Annotated[str, Place(BASELINES)], ...] = option(
        ("untrained", "raw_pixels"), "Beside it: none, or some of untrained, raw_pixels and whatever --load takes."
    )
    shots: tuple[int, ...] = option((1, 5, 10, 100), "Labelled images a class, several between commas.")
    draws: Annotated[int, Bounds(2)] = option(5, "How often they are drawn; at random, the same for all.")

    def __post_init__(self) -> None:
        check_each("shots", self.shots, 1)
        for text in self.baseline:
            check_baseline(text)
        if "none" in self.baseline and len(self.baseline) > 1:
            raise UserError(f"--baseline={','.join(self.baseline)} came, expected none alone; leave none out")


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Several encoders in one call."""

    all_checkpoints: bool = option(False, "Evaluate every checkpoint of the run, or every file of the folder.")


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """What else is measured of an encoder."""

    measures: tuple[str, ...] | None = may_change(
        None, "Besides: rankme, alpha_req, lidar, uniformity, alignment, retrieval, robustness."
    )

    def __post_init__(self) -> None:
        if self.measures is not None:
            check_words("measures", self.measures, (*LABEL_FREE, "retrieval", "robustness"))


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """The linear probe and fine-tuning."""

    train_view: str = option("crop_flip", "Named random view of the training images.")
    cache_features: bool = option(False, "Compute un-augmented features once and train on them: takes minutes.")
    standardise: bool = option(False, "Give every cached feature mean 0 and deviation 1.")
    learning_rates: tuple[float, ...] | None = option(
        None, "To train together on cached features; a held-out tenth chooses."
    )
    logistic_regression: bool = option(False, "Check with scikit-learn's L-BFGS on the cached features.")
    finetune: bool = option(False, "Train the backbone too, in training mode.")
    backbone_learning_rate: PositiveOrZero | None = option(None, "In fine-tuning; default: --learning_rate.")
    train_fraction: Share = option(1.0, "Share of the training images of each class to learn from.")
    train_list: Path | None = option(None, "Text file that names the training images to learn from, one a line.")
    eval_every: CountOrZero = may_change(1, "Epochs between two tests; 0: only at the end.")

    def __post_init__(self) -> None:
        find.module_of("views", self.train_view, "train_view")
        if self.learning_rates is not None:
            check_each("learning_rates", self.learning_rates, 1e-12)
        if not self.train_fraction:
            raise UserError("--train_fraction=0 came, expected a share above 0")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is written for use elsewhere."""

    format: str = option("savedmodel", "savedmodel, keras, pth, detectron2, onnx or tflite; or all of them.")
    output: Path | None = elsewhere(None, "The file to write, or the folder (of savedmodel and all).")


@dataclasses.dataclass(frozen=True)
class WhichImages:
    """Which images, in place of a run's."""

    images: str | None = option(None, "Folder, image, .txt of paths, or - for standard input, in place of a data set.")
    split: Literal["all", "train", "test"] = option("all", "Of the data set.")


@dataclasses.dataclass(frozen=True)
class FeatureOptions(WhichImages):
    """Which vectors of them."""

    feature: Literal["backbone", "head", "dense", "patches"] = option(
        "backbone", "Pooled features, the head's output, the map before it is pooled, or that map's mean."
    )
    batch_size: Count = option(256, "Images computed at a time, on each rank.")


@dataclasses.dataclass(frozen=True)
class EmbedOptions(FeatureOptions):
    """Which vectors are written, and where."""

    output: Path | None = elsewhere(None, "File to write: .npz, .npy, .csv, .parquet or .safetensors.")


@dataclasses.dataclass(frozen=True)
class NeighboursOptions(FeatureOptions):
    """Of which images the neighbours are wanted, and among which."""

    vectors: Path | None = elsewhere(None, "A file of moco_tf.embed to search, in place of computing the vectors.")
    image: str | None = option(None, "The image whose neighbours are wanted: one of the set, or a file; else each one.")
    k: Count = option(8, "Neighbours of an image.")
    exact: bool = option(False, "Compare all with all, though the set is large and FAISS is installed.")
    output: Path | None = elsewhere(
        None, "The .csv to write, a page beside it; default: neighbours.csv beside vectors or run."
    )


@dataclasses.dataclass(frozen=True)
class DuplicatesOptions(WhichImages):
    """What counts as a copy, and where they are listed."""

    threshold: Share | None = option(None, "Similarity from which on images are copies; default: what the data says.")
    output: Path | None = elsewhere(
        None, "The .csv to write, a page beside it; default: duplicates.csv in the run folder, or here."
    )


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """How what --load holds is shown."""

    json: bool = option(False, "Print JSON, with null for what is not known.")


@dataclasses.dataclass(frozen=True)
class ReplayOptions:
    """How a step is computed again."""

    data_dir: Path | None = option(None, "Where the data is now; default: where the run had it.")


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how often."""

    bench_steps: Count = option(20, "Steps of a timed repeat.")
    repeats: Count = option(5, "Timed repeats; the median counts.")
    warmup_steps: Count = option(3, "Steps before the first repeat, with the one that traces and compiles.")
    fake: bool = option(False, "Random images alone: no data set is needed, and no input measured.")
    compare: Literal["none", "torch"] = option("none", "In turns with an eager PyTorch step of the same network.")
    torch_python: str | None = option(None, "Python that has PyTorch; default: the one that runs this.")
    json: Path | None = option(None, "File to write all figures to.")


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Run folders to look at."""

    workdir: tuple[Path, ...] | None = option(None, "Run folders, between commas.")


@dataclasses.dataclass(frozen=True)
class ReportOptions(TableOptions):
    """What the report shows."""

    output: Path | None = option(None, "The page to write; default: report.html in the first run folder.")
    data_dir: Path | None = option(None, "Where the data is now; default: where the run had it.")
    images: bool = option(True, "Views, neighbours, map, classes, uniformity: all that needs images and encoder.")
    bank_images: Count = option(20000, "Training images of the kNN on the page, at most.")
    test_images: Count = option(5000, "Test images that are classified, at most.")
    map_images: Count = option(2000, "Test images on the map, at most.")


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """How images are packed."""

    output: Path | None = option(None, "The folder to write the pack into, DIR/NAME, or to verify.")
    short_side: CountOrZero = option(256, "Larger images become smaller, so many pixels; 0: all stay as they are.")
    quality: Count | None = option(None, "Of JPEGs that are encoded; given, those of a higher one are, too; else 90.")
    shard_mb: Positive = option(128.0, "Size of a file in 10^6 bytes, about.")
    splits: tuple[str, ...] = option(("train", "test"), "What is packed.")
    workers: CountOrZero = option(0, "Threads that decode and encode; 0: as many as there are cores.")
    verify: bool = option(False, "Read the whole pack in --output, each record with its checksum; write nothing.")

    def __post_init__(self) -> None:
        if self.quality is not None and self.quality > 100:
            raise UserError(f"--quality={self.quality} came, expected 1 to 100")


def check_each(name: str, numbers: tuple[int, ...] | tuple[float, ...], least: float) -> None:
    """Refuses an empty list and numbers that are below `least` or not finite. Raises UserError."""
    if not (numbers and all(least <= number < math.inf for number in numbers)):
        shown = ",".join(f"{number:g}" for number in numbers)
        raise UserError(f"--{name}={shown} came, expected numbers from {least:g} on")


def check_baseline(text: str) -> None:
    """Refuses what is neither the name of a baseline nor there. Raises UserError."""
    if text not in BASELINES and not pathlib.Path(text).exists():
        raise UserError(
            f"--baseline={text} came, expected {', '.join(BASELINES)}, or a path of what --load takes; nothing is there"
        )


def check_words(name: str, words: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuses an empty list and words that are not known. Raises UserError."""
    if not words or set(words) - set(known):
        raise UserError(f"--{name}={','.join(words)} came, expected one or more of {', '.join(known)}, between commas")


# What is not given is that of the run that is loaded.
OF_THE_RUN = DataOptions(dataset="", holdout=None, test_resize=None)


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Options of moco_tf.pretrain."""

    data: DataOptions = DataOptions()
    run: RunOptions = RunOptions()
    device: TrainingDeviceOptions = TrainingDeviceOptions()
    encoder: EncoderOptions = EncoderOptions()
    method: MethodOptions = MethodOptions()
    views: ViewOptions = ViewOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    checkpoints: CheckpointOptions = CheckpointOptions()
    monitor: MonitorOptions = MonitorOptions()
    knn: KnnOptions = KnnOptions()
    automatic: AutomaticOptions = AutomaticOptions()


@dataclasses.dataclass(frozen=True)
class Bench(Pretrain):
    """Options of moco_tf.bench: those of pre-training and its own."""

    bench: BenchOptions = BenchOptions()


@dataclasses.dataclass(frozen=True)
class Lincls:
    """Options of moco_tf.lincls."""

    encoder: EncoderToEvaluate = EncoderToEvaluate()
    data: DataOptions = OF_THE_RUN
    run: RunOptions = RunOptions()
    device: TrainingDeviceOptions = TrainingDeviceOptions()
    optimizer: OptimizerOptions = OptimizerOptions(learning_rate=30.0, weight_decay=0.0)
    schedule: ScheduleOptions = ScheduleOptions(epochs=100, schedule="milestones", milestones=(60, 80))
    checkpoints: CheckpointOptions = CheckpointOptions(keep=2)
    probe: ProbeOptions = ProbeOptions()


@dataclasses.dataclass(frozen=True)
class Knn:
    """Options of moco_tf.knn."""

    encoder: EncoderToEvaluate = EncoderToEvaluate()
    data: DataOptions = OF_THE_RUN
    run: RunOptions = RunOptions()
    device: DeviceOptions = DeviceOptions()
    knn: KnnOptions = KnnOptions(feature="backbone")
    sweep: SweepOptions = SweepOptions()
    measures: MeasureOptions = MeasureOptions()


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Options of moco_tf.fewshot."""

    encoder: LoadOptions = LoadOptions()
    few: FewShotOptions = FewShotOptions()
    data: DataOptions = OF_THE_RUN
    run: RunOptions = RunOptions()
    device: DeviceOptions = DeviceOptions()


@dataclasses.dataclass(frozen=True)
class Export:
    """Options of moco_tf.export."""

    encoder: LoadOptions = LoadOptions()
    export: ExportOptions = ExportOptions()
    data: DataOptions = OF_THE_RUN


@dataclasses.dataclass(frozen=True)
class Embed:
    """Options of moco_tf.embed."""

    encoder: LoadOptions = LoadOptions()
    embed: EmbedOptions = EmbedOptions()
    data: DataOptions = OF_THE_RUN
    device: DeviceOptions = DeviceOptions(precision="float32")


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Options of moco_tf.neighbours."""

    encoder: LoadOptions = LoadOptions()
    neighbours: NeighboursOptions = NeighboursOptions()
    data: DataOptions = OF_THE_RUN
    device: DeviceOptions = DeviceOptions(precision="float32")


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Options of moco_tf.duplicates."""

    encoder: LoadOptions = LoadOptions()
    duplicates: DuplicatesOptions = DuplicatesOptions()
    data: DataOptions = OF_THE_RUN


@dataclasses.dataclass(frozen=True)
class Show:
    """Options of moco_tf.show."""

    encoder: LoadOptions = LoadOptions()
    show: ShowOptions = ShowOptions()


@dataclasses.dataclass(frozen=True)
class Debug:
    """Options of moco_tf.debug."""

    load: LoadOptions = LoadOptions()
    replay: ReplayOptions = ReplayOptions()


@dataclasses.dataclass(frozen=True)
class Report:
    """Options of moco_tf.report."""

    report: ReportOptions = ReportOptions()


@dataclasses.dataclass(frozen=True)
class Table:
    """Options of moco_tf.table."""

    table: TableOptions = TableOptions()


@dataclasses.dataclass(frozen=True)
class Compare:
    """Options of moco_tf.compare."""

    table: TableOptions = TableOptions()


@dataclasses.dataclass(frozen=True)
class Pack:
    """Options of moco_tf.pack."""

    source: SourceOptions = SourceOptions()
    pack: PackOptions = PackOptions()


PROGRAMS: dict[str, type] = {
    "pretrain": Pretrain,
    "lincls": Lincls,
    "knn": Knn,
    "fewshot": FewShot,
    "embed": Embed,
    "neighbours": Neighbours,
    "duplicates": Duplicates,
    "export": Export,
    "show": Show,
    "report": Report,
    "table": Table,
    "compare": Compare,
    "pack": Pack,
    "bench": Bench,
    "debug": Debug,
}
