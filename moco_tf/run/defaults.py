"""What a command leaves out: the settings of a bare pretrain, the run folder, the run to load. All of it is said."""

import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from moco_tf.config import define, recipes, usage
from moco_tf.config.options import Compare, Duplicates, Export, Lincls, Pretrain, Table
from moco_tf.errors import UserError
from moco_tf.run.folder import RunFolder
from moco_tf.training import launcher

# A probe without a recipe: features once, the learning rate chosen on held-out training images, L-BFGS as a check.
GRID: tuple[str, ...] = ("--cache_features", "--standardise", "--schedule=cosine", "--epochs=20")
GRID += ("--learning_rates=0.001,0.003,0.01,0.03,0.1,0.3,1,3", "--logistic_regression")
RUNS = "runs"  # the folder of runs
_RECIPE = "fashion_mnist_moco"  # fits the default data set; 128 images a step, which 8 ranks share


def words(program: type, argv: Sequence[str]) -> list[str]:
    """The command line; pretrain and lincls get settings where no recipe came, compare and table --workdir=RUN,RUN.

    A --load without a value is left out.
    """
    if program is Pretrain:
        return [argv[0], *_recipe(argv[1:]), *argv[1:]]
    if program in (Compare, Table) and not any(word.startswith("-") for word in argv[1:]):
        return [argv[0], f"--workdir={','.join(argv[1:])}"]
    following = [*argv[1:], "--"]
    rest = [word for word, after in zip(argv, following) if not (word == "--load" and after.startswith("--"))]
    return [rest[0], *_probe(rest[1:])] if program is Lincls else rest


def _recipe(words: Sequence[str]) -> list[str]:
    """What a pre-training without a recipe takes: one for no flags at all, auto for a folder of images."""
    dataset, data_dir, recipe = (define.given(name, words) for name in ("dataset", "data_dir", "flagfile"))
    if not words:
        _say(f"no flags came: taking --flagfile={_RECIPE}")
        return [f"--flagfile={_RECIPE}"]
    if recipe or dataset not in ("", "folder") or not (dataset or data_dir) or (not dataset and _is_known(data_dir)):
        return []
    taken = ["--flagfile=auto", *["--dataset=folder"] * (not dataset)]
    _say(f"no recipe came: taking {' '.join(taken)}")
    return taken


def _probe(words: list[str]) -> list[str]:
    """The words of a linear probe: with a grid of learning rates where neither they nor a recipe that fits name one."""
    own, recipe, said = define.texts(words), define.given("flagfile", words), "no learning rate came"
    if _decided(own) or own.keys() & {word.strip("-") for word in usage.WORDS}:
        return words
    if recipe:
        texts = define.texts_of(recipes.find(recipe, ["lincls"]))
        images, asked = texts.get("dataset"), define.given("dataset", words)
        fits = texts.get("finetune") == "true" or not (images and asked) or images == asked
        if fits and _decided(texts | own):
            return words
        if not fits:
            words = _without_flagfile(words)
            said = f"--flagfile={recipe} is of {images}, not of {asked}, and is left out"
    grid = GRID if importlib.util.find_spec("sklearn") else GRID[:-1]
    _say(f"{said}: a grid of learning rates is taken, {' '.join(grid)}")
    return [*grid, *words]


def _decided(texts: dict[str, str]) -> bool:
    """Whether flags name a learning rate, or ask for a training on images, which no grid can be of."""
    on_images = texts.get("finetune") == "true" or texts.get("cache_features") == "false"
    return on_images or bool(texts.keys() & {"learning_rate", "learning_rates"})


def _without_flagfile(words: list[str]) -> list[str]:
    """The words without --flagfile=PATH, or --flagfile and the word behind it."""
    pairs = list(zip(["", *words], words))
    flagfile = ("--flagfile", "-flagfile")
    return [word for before, word in pairs if word.partition("=")[0] not in flagfile and before not in flagfile]


def _is_known(data_dir: str) -> bool:
    """Whether a folder holds the default data set."""
    names = [f"{Pretrain.data.dataset}/", "*-ubyte.gz"]
    return any(found for name in names for found in pathlib.Path(data_dir).expanduser().glob(name))


def completed(options: Any) -> Any:
    """The options with runs/DATASET_METHOD to pre-train in, or with the newest run under runs/ to load.

    Raises:
        UserError: another folder of images was pre-trained on there.
    """
    values = define.values_of(options)
    if isinstance(options, Pretrain):
        if values["workdir"] is None and type(options) is Pretrain:  # a benchmark writes none
            options = define.replaced(options, workdir=str(_run_folder(values)))
            _say(f"--workdir={options.run.workdir}; the same command goes on there")
        return options
    needless = (values.get("baseline") == "raw_pixels" and values.get("dataset")) or values.get("vectors")
    needless = needless or (isinstance(options, Duplicates) and (values["dataset"] or values["images"]))
    if values.get("load", "") is not None or needless or not (run := newest()):
        return options
    own = {"load": str(run)}
    if isinstance(options, Export) and values["output"] is None and values["format"] == "savedmodel":
        own["output"] = str(run / "encoder")
    _say(" ".join(define.word(name, value) for name, value in own.items()) + f", the newest run in {RUNS}/", sys.stderr)
    return define.replaced(options, **own)


def _run_folder(values: dict[str, Any]) -> pathlib.Path:
    """runs/DATASET_METHOD; a folder of images goes by its own name."""
    folder = os.path.realpath(values["data_dir"]) if values["dataset"] == "folder" and values["data_dir"] else ""
    name = f"{os.path.basename(folder) or values['dataset']}_{str(values['method']).rpartition('.')[2]}"
    run = RunFolder.of(pathlib.Path(RUNS, re.sub(r"[^\w.-]+", "-", name)).absolute())
    before = define.texts_of(run.flags).get("data_dir") if folder else None
    if before and os.path.realpath(before) != folder:
        raise UserError(
            f"--data_dir={folder} came, but {run.path} was pre-trained on {before}; give another --workdir, or "
            f"--workdir={run.path} to go on there with these images"
        )
    return run.path


def _say(line: str, file: TextIO | None = None) -> None:
    """Prints on rank 0; beside the output of `show --json` and the like, which is for other programs, on stderr."""
    if launcher.is_first_rank():
        print(line, file=file, flush=True)


def newest() -> pathlib.Path | None:
    """The run folder under runs/ whose newest checkpoint is the newest; None without any."""
    found = {
        path: path.parents[1] for path in pathlib.Path(RUNS).absolute().glob(f"*/{RunFolder('').checkpoints}/step-*")
    }
    return found[max(found, key=lambda path: path.stat().st_mtime)] if found else None
