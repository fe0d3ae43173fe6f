"""The programs' flags: defined by groups, checked when they are parsed, handed on as one frozen object.

Only programs call this; everything else takes keyword arguments of plain types.
"""

import dataclasses
import pkgutil

from moco_tf import formats, methods
from moco_tf.config import flag_values
from moco_tf.config.flagset import flags
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.data.order import ORDERS

# Found by name: every file of moco_tf/methods but the base classes is a method.
METHODS = sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if not m.name.startswith("base"))


def define_source() -> None:
    """Which images."""
    flags.DEFINE_string(
        "dataset", "fashion_mnist", "TensorFlow Datasets name, fashion_mnist, imagenet100, `folder`, or `packed`."
    )
    flags.DEFINE_string(
        "data_dir", None, "Where the data is: TFDS's folder, for `folder` the one with train/, val/, or the pack."
    )
    flags.DEFINE_integer("max_bad_images", 100, "Unreadable images a rank skips before it stops.", 0)


def define_data(image_size: int = 0) -> None:
    """Which images, and how large."""
    define_source()
    flags.DEFINE_integer(
        "holdout", 0, "Keep so many training images out, and test on them: to choose settings without test images.", 0
    )
    flags.DEFINE_integer("image_size", image_size, "Pixels of a view's side; 0: the data set's own size, else 224.", 0)
    flags.DEFINE_enum(
        "normalise", "auto", ["auto", *NORMALISATIONS], "Mean and deviation to normalise with; auto: the data set's."
    )


def define_workdir() -> None:
    """The run folder."""
    flags.DEFINE_string("workdir", None, "Run folder: metrics, checkpoints, results. A run found there is resumed.")


def define_workdirs() -> None:
    """Run folders to look at."""
    flags.DEFINE_list("workdir", None, "Run folders, between commas.")


def define_run() -> None:
    """How the program runs, whatever it computes."""
    define_workdir()
    flags.DEFINE_integer("seed", 0, "Of initialisation, order of the images, views and shuffles.", 0, 2**26)
    flags.DEFINE_enum(
        "precision",
        "auto",
        ["auto", "float32", "bfloat16", "float16"],
        "Of convolutions; auto: bfloat16 where it is fast; float16 scales the loss.",
    )
    flags.DEFINE_enum(
        "jit_compile", "auto", ["auto", "true", "false"], "XLA; auto: all pieces on a GPU, only the views on a CPU."
    )
    flags.DEFINE_integer("threads", 0, "CPU threads of this process; 0: the cores divided by the ranks here.", 0)
    flags.DEFINE_integer("batch_size", 256, "Images a step, over all ranks.", 1)
    flags.DEFINE_integer("log_every", 10, "Steps between two lines of metrics.", 1)


def define_encoder() -> None:
    """The encoder's architecture."""
    flags.DEFINE_enum("arch", "resnet50", ["resnet10", "resnet18", "resnet34", "resnet50"], "Backbone.")
    flags.DEFINE_enum("stem", "imagenet", ["imagenet", "cifar"], "7x7 stride 2 with max-pool, or 3x3 stride 1.")
    flags.DEFINE_integer("width", 64, "Channels of the first stage.", 1)
    flags.DEFINE_enum("head", "mlp", ["linear", "mlp", "mlp_bn"], "Linear; Linear-ReLU-Linear; Linear-BN-ReLU-Linear.")
    flags.DEFINE_integer("hidden_dim", 0, "Hidden width of an MLP head; 0: the width of the pooled features.", 0)
    flags.DEFINE_integer("feature_dim", 128, "C, width of the head's output.", 1)
    flags.DEFINE_enum("head_init", "torch", ["torch", "normal"], "uniform 1/sqrt(fan_in), or N(0, 0.01) and bias 0.")
    flags.DEFINE_integer("bn_splits", 1, "Strided splits of a rank's batch in each batch norm (SplitBatchNorm).", 1)
    flags.DEFINE_integer(
        "accumulate", 1, "Micro-batches of a step, one held in memory at a time; batch norms see one. For more time.", 1
    )
    flags.DEFINE_bool("recompute", False, "Compute activations again in the backward pass: less memory, more time.")


def define_method() -> None:
    """The contrast."""
    flags.DEFINE_enum("method", "moco", METHODS, "Pre-training method, a file of moco_tf/methods.")
    flags.DEFINE_string("views", "moco_v2", "Named random view of an image, see moco_tf/data/views/recipes.py.")
    flags.DEFINE_list("crop_scale", None, "Range of the crop's area, as 0.2,1; default: the view's own.")
    flags.DEFINE_bool("exact_blur", True, "Blur as PIL does, or with a true Gaussian of 23 taps.")
    flags.DEFINE_bool("antialias", True, "Resize crops with PIL's antialiasing, or with the plain bilinear filter.")
    flags.DEFINE_bool("fast_views", False, "Crops without antialiasing, and a Gaussian of 13 taps for PIL's blur.")
    flags.DEFINE_bool("uniform_ratio", False, "Draw a crop's aspect ratio uniformly instead of its logarithm.")
    flags.DEFINE_enum(
        "read_order",
        "random",
        ORDERS,
        "Any, or by blocks of large files: for a pack on a network disk, see data/order.py.",
    )
    flags.DEFINE_float("temperature", 0.2, "tau.", 1e-6)
    flags.DEFINE_integer("queue_size", 65536, "K, keys in the queue.", 1)
    flags.DEFINE_float("key_momentum", 0.999, "m of the key encoder's moving average.", 0.0, 1.0)
    flags.DEFINE_enum("key_momentum_schedule", "constant", ["constant", "cosine"], "m as it is, or rising to 1.")
    flags.DEFINE_enum("key_update", "before", ["before", "after"], "The moving average, before or after the step.")
    flags.DEFINE_bool("symmetric", False, "Sum the losses of both directions (moco).")
    flags.DEFINE_enum(
        "bn",
        "shuffle",
        ["split", "shuffle", "sync"],
        "Batch norms see the rank's own batch (or its --bn_splits); the same, but keys are shuffled across ranks and "
        "splits (ShuffleBN); or the batch of all ranks (SyncBN).",
    )
    flags.DEFINE_bool("shuffle_bn", None, "The old form of --bn=shuffle, and --noshuffle_bn of --bn=split.")
    flags.DEFINE_integer("negatives", 4096, "M, noise rows of the memory bank for each image (npid).", 1)
    flags.DEFINE_float("bank_momentum", 0.5, "Share of the new feature in a row of the memory bank (npid).", 0.0, 1.0)
    flags.DEFINE_enum("npid_loss", "nce", ["nce", "softmax"], "Noise-contrastive, or over all images (npid).")


def define_compression() -> None:
    """What crosses ranks."""
    flags.DEFINE_enum(
        "compression",
        "none",
        ["none", "float16", "bfloat16"],
        "Gradients are sent to other ranks as they are, or in half the bytes.",
    )


def define_optimizer(
    learning_rate: float, epochs: int, weight_decay: float, schedule: str, milestones: tuple[str, ...] = ("120", "160")
) -> None:
    """Optimizer and learning-rate schedule."""
    flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam", "lars"], "With PyTorch's semantics.")
    flags.DEFINE_float("learning_rate", learning_rate, "Base learning rate, as it is: not scaled by the batch.", 0.0)
    flags.DEFINE_float("momentum", 0.9, "Of SGD and LARS.", 0.0, 1.0)
    flags.DEFINE_bool("nesterov", False, "Nesterov's momentum in SGD.")
    flags.DEFINE_float("weight_decay", weight_decay, "L2 in the gradient, on every parameter.", 0.0)
    flags.DEFINE_integer("epochs", epochs, "Passes over the training images.", 1)
    flags.DEFINE_integer("steps", 0, "Stop after this many steps; 0: after the epochs.", 0)
    flags.DEFINE_enum("schedule", schedule, ["cosine", "milestones", "constant"], "Of the learning rate.")
    flags.DEFINE_enum("schedule_per", "epoch", ["epoch", "step"], "How often the learning rate changes.")
    flags.DEFINE_integer("first_epoch", 0, "Number of the first epoch in a schedule per epoch: 0 or 1.", 0, 1)
    flags.DEFINE_list("milestones", list(milestones), "Epochs at which the learning rate drops.")
    flags.DEFINE_float("decay", 0.1, "Factor of a drop.", 0.0)
    flags.DEFINE_float("final_learning_rate", 0.0, "Where the cosine ends.", 0.0)
    flags.DEFINE_float("warmup_epochs", 0.0, "Epochs of linear warm-up.", 0.0)
    flags.DEFINE_float("warmup_start", 0.0, "Learning rate at which the warm-up starts.", 0.0)


def define_monitor() -> None:
    """Checkpoints and the kNN monitor of pre-training."""
    flags.DEFINE_integer("checkpoint_every", 1, "Epochs between two checkpoints; 0: only at the end.", 0)
    flags.DEFINE_integer("checkpoint_steps", 0, "Steps between two checkpoints, besides; 0: none.", 0)
    flags.DEFINE_integer("keep", 3, "Newest checkpoints that are kept.", 1)
    flags.DEFINE_integer("keep_every", 0, "Epochs between two checkpoints that are kept for good; 0: none.", 0)
    flags.DEFINE_integer("keep_steps", 0, "Steps between two checkpoints that are kept for good; 0: none.", 0)
    flags.DEFINE_enum(
        "nan_policy",
        "stop",
        ["stop", "skip"],
        "A step that is not finite: stop; or leave it out, which looks at every gradient.",
    )
    flags.DEFINE_integer(
        "step_timeout", 600, "Seconds of a step until one of several ranks counts as hung, and ends; 0: any number.", 0
    )
    flags.DEFINE_integer("knn_every", 0, "Epochs between two kNN evaluations; 0: none.", 0)
    flags.DEFINE_integer("knn_bank", 0, "Training images in the monitor's bank; 0: all.", 0)


def define_knn(feature: str = "head") -> None:
    """The weighted k-nearest-neighbour classifier."""
    flags.DEFINE_list("k", ["200"], "Neighbours; several between commas are evaluated in one pass, the first counts.")
    flags.DEFINE_list(
        "knn_temperature", ["0.1"], "Temperature of the neighbours' weights; or several, each with each k."
    )
    flags.DEFINE_enum("weighting", "weighted", ["weighted", "majority"], "exp(sim / T) or one vote each.")
    flags.DEFINE_enum("feature", feature, ["head", "backbone"], "The head's output or the pooled features.")


def define_sweep() -> None:
    """Several encoders in one call."""
    flags.DEFINE_bool(
        "all_checkpoints", False, "Evaluate every checkpoint of the run folder in --load, or every file of the folder."
    )


def define_load_path() -> None:
    """What holds the encoder."""
    flags.DEFINE_string(
        "load",
        None,
        "Run folder, checkpoint, MoCo's .pth.tar, torchvision .pth, moco.tensorflow .npz, exported .keras or .pkl.",
    )


def define_load() -> None:
    """What is evaluated."""
    define_load_path()
    flags.DEFINE_enum(
        "baseline",
        "none",
        ["none", "untrained", "raw_pixels"],
        "Evaluate, instead of what --load holds, its architecture untrained, or the pixels.",
    )
    flags.DEFINE_integer("test_resize", 0, "Short side before the centre crop in tests; 0: 256/224 of the size.", 0)


def define_probe() -> None:
    """The linear probe and fine-tuning."""
    flags.DEFINE_string("train_view", "crop_flip", "Named random view of the training images.")
    flags.DEFINE_bool("cache_features", False, "Compute un-augmented features once and train on them: takes minutes.")
    flags.DEFINE_bool("standardise", False, "Give every cached feature mean 0 and deviation 1.")
    flags.DEFINE_list(
        "learning_rates", None, "Learning rates to train together on cached features; a held-out tenth chooses one."
    )
    flags.DEFINE_bool("logistic_regression", False, "Check with scikit-learn's L-BFGS on the cached features.")
    flags.DEFINE_bool("finetune", False, "Train the backbone too, in training mode.")
    flags.DEFINE_float(
        "backbone_learning_rate", None, "The backbone's own in fine-tuning; default: --learning_rate.", 0.0
    )
    flags.DEFINE_float("train_fraction", 1.0, "Share of the training images of each class to learn from.", 1e-9, 1.0)
    flags.DEFINE_string("train_list", None, "Text file that names the training images to learn from, one a line.")
    flags.DEFINE_integer("eval_every", 1, "Epochs between two tests; 0: only at the end.", 0)
    flags.DEFINE_integer("checkpoint_every", 1, "Epochs between two checkpoints; 0: only at the end.", 0)


def define_export() -> None:
    """What is written for use elsewhere."""
    flags.DEFINE_enum(
        "format",
        "savedmodel",
        [*formats.NAMES, "all"],
        "TensorFlow's SavedModel, .keras, torchvision's .pth, Detectron2's .pkl, ONNX, TFLite; or all of them.",
    )
    flags.DEFINE_string("output", None, "The file to write, or the folder (of savedmodel and all).")


def define_show() -> None:
    """How what --load holds is shown."""
    flags.DEFINE_bool("json", False, "Print JSON, with null for what is not known.")


def define_bench() -> None:
    """What is measured, and how often."""
    flags.DEFINE_integer("bench_steps", 20, "Steps of a timed repeat.", 1)
    flags.DEFINE_integer("repeats", 5, "Timed repeats; the median counts.", 1)
    flags.DEFINE_integer("warmup_steps", 3, "Steps before the first repeat, with the one that traces and compiles.", 1)
    flags.DEFINE_bool("fake", False, "Random images alone: no data set is needed, and no input measured.")
    flags.DEFINE_enum("compare", "none", ["none", "torch"], "In turns with an eager PyTorch step of the same network.")
    flags.DEFINE_string("torch_python", None, "Python that has PyTorch; default: the one that runs this.")
    flags.DEFINE_string("json", None, "File to write all figures to.")
    flags.DEFINE_list("scale_to", None, "Numbers of ranks, as 1,8,64,1024, whose images/s are predicted.")
    flags.DEFINE_integer("ranks_per_host", 8, "For --scale_to: ranks on a machine.", 1)
    flags.DEFINE_float("local_gbps", 400.0, "For --scale_to: 10^9 bits a second between ranks of a machine.", 1e-6)
    flags.DEFINE_float("link_gbps", 100.0, "For --scale_to: 10^9 bits a second from a machine to the others.", 1e-6)
    flags.DEFINE_float("exchange_ms", 1.0, "For --scale_to: milliseconds of an exchange of no bytes.", 0.0)


def define_report() -> None:
    """What the report shows."""
    flags.DEFINE_string("output", None, "The page to write; default: report.html in the first run folder.")
    flags.DEFINE_string("data_dir", None, "Where the data is now; default: where the run had it.")
    flags.DEFINE_bool("images", True, "Views, neighbours, map, classes, uniformity: all that needs images and encoder.")
    flags.DEFINE_integer("bank_images", 20000, "Training images of the kNN on the page, at most.", 1)
    flags.DEFINE_integer("test_images", 5000, "Test images that are classified, at most.", 1)
    flags.DEFINE_integer("map_images", 2000, "Test images on the map, at most.", 1)


def define_pack() -> None:
    """How images are packed."""
    flags.DEFINE_string("output", None, "The folder to write the pack into, or to verify.")
    flags.DEFINE_integer("short_side", 256, "Larger images become smaller, so many pixels; 0: all stay as they are.", 0)
    flags.DEFINE_integer(
        "quality", None, "Of JPEGs that are encoded; given, those of a higher one are, too; else 90.", 1, 100
    )
    flags.DEFINE_float("shard_mb", 128.0, "Size of a file in 10^6 bytes, at most, but for single larger images.", 1e-3)
    flags.DEFINE_list("splits", ["train", "test"], "What is packed.")
    flags.DEFINE_integer("workers", 0, "Threads that decode and encode; 0: as many as there are cores.", 0)
    flags.DEFINE_bool("verify", False, "Compare the pack in --output with its checksums, and write nothing.")


def parsed(values: flags.FlagValues) -> object:
    """The program's flags as a frozen object, lists of numbers converted."""
    flag_values.rename_old(values)
    own = {flag.name: flag.value for flag in _defined_here(values)}
    own.pop("shuffle_bn", None)
    flag_values.convert(own)
    flag_values.check(own)
    frozen = dataclasses.make_dataclass("Options", list(own), frozen=True)
    return frozen(**own)


def _defined_here(values: flags.FlagValues) -> list[flags.Flag]:
    """The flags of this file, without absl's own."""
    return values.flags_by_module_dict().get(__name__, [])


def flagfile(values: flags.FlagValues) -> str:
    """Every flag of the program as text that --flagfile reads back."""
    lines = [f.serialize() for f in _defined_here(values) if f.value is not None]
    return "".join(f"{line}\n" for line in sorted(lines) if line)
