"""Options of dataclasses become flags, and flags become options."""

import dataclasses
import os
import subprocess
import sys
from typing import Literal

import pytest
from absl import flags
from support.programs import ROOT, parse

from moco_tf.config import define, find
from moco_tf.config.options import PROGRAMS, elsewhere, may_change, option
from moco_tf.config.types import Count, CountOrZero, Positive, Share
from moco_tf.errors import UserError

FILES = sorted(path.relative_to(ROOT / "flags").as_posix() for path in (ROOT / "flags").rglob("*.cfg"))


@dataclasses.dataclass(frozen=True)
class Shape:
    """One group."""

    sides: Count = option(3, "Sides.")
    area: Share = may_change(0.5, "Area.")
    kind: Literal["round", "flat"] = option("round", "Kind.")
    place: str | None = elsewhere(None, "Place.")


@dataclasses.dataclass(frozen=True)
class Paint:
    """Another group."""

    gloss: bool = may_change(False, "Gloss.")
    layers: tuple[int, ...] = option((1, 2), "Layers.")
    tints: tuple[float, ...] | None = option(None, "Tints.")
    names: tuple[str, ...] = option((), "Names.")
    least: Positive | None = option(None, "Least.")
    rest: CountOrZero = option(0, "Rest.")

    def __post_init__(self):
        if self.rest > 9:
            raise UserError(f"--rest={self.rest} came, expected at most 9")


@dataclasses.dataclass(frozen=True)
class Draw:
    """A program."""

    shape: Shape = Shape(sides=4)
    paint: Paint = Paint()


def draw(*argv):
    return define.parse(Draw, ["draw", *argv])


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], {}),
        (["--sides=7"], {"sides": 7}),
        (["--sides", "7"], {"sides": 7}),
        (["-sides=7"], {"sides": 7}),
        (["--sides=5", "--sides=6"], {"sides": 6}),
        (["--area=1"], {"area": 1.0}),
        (["--area=1e-3"], {"area": 0.001}),
        (["--kind=flat"], {"kind": "flat"}),
        (["--place=a,b=c"], {"place": "a,b=c"}),
        (["--gloss"], {"gloss": True}),
        (["--gloss=true"], {"gloss": True}),
        (["--gloss", "--nogloss"], {"gloss": False}),
        (["--layers=5"], {"layers": (5,)}),
        (["--layers=5, 6,-7"], {"layers": (5, 6, -7)}),
        (["--layers="], {"layers": ()}),
        (["--tints=0.5,1"], {"tints": (0.5, 1.0)}),
        (["--names=a,b"], {"names": ("a", "b")}),
        (["--least=0.25"], {"least": 0.25}),
    ],
)
def test_values(argv, expected):
    defaults = {"sides": 4, "area": 0.5, "kind": "round", "place": None, "gloss": False, "layers": (1, 2)}
    defaults |= {"tints": None, "names": (), "least": None, "rest": 0}
    o = draw(*argv)
    found = define.values_of(o)
    assert found == {**defaults, **expected}
    assert [type(found[name]) for name in expected] == [type(value) for value in expected.values()]
    assert draw(*define.flagfile(o).splitlines()) == o


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--sides=0", ["--sides=0", "a positive integer"]),
        ("--sides=2.5", ["--sides=2.5", "2.5"]),
        ("--sides=", ["--sides="]),
        ("--area=1.5", ["--area=1.5", "[0.0, 1.0]"]),
        ("--area=nan", ["--area=nan", "finite"]),
        ("--least=inf", ["--least=inf", "finite"]),
        ("--least=0", ["--least=0", ">= 1e-06"]),
        ("--kind=square", ["--kind=square", "<round|flat>"]),
        ("--gloss=perhaps", ["--gloss=perhaps"]),
        ("--layers=1,two", ["--layers=1,two", "numbers between commas"]),
        ("--layers=1.5", ["--layers=1.5", "numbers between commas"]),
        ("--tints=a", ["--tints=a", "numbers between commas"]),
        ("--rest=-1", ["--rest=-1", "non-negative"]),
        ("--rest=10", ["--rest=10 came, expected at most 9"]),
        ("--side=3", ["'side'", "Did you mean", "sides"]),
        ("more", ["'more' is no flag", "--name=value"]),
        ("--flagfile=nowhere.cfg", ["the flagfile 'nowhere.cfg' is not there", "expected a path"]),
        ("--sides", ["Missing value for flag --sides"]),
    ],
)
def test_what_is_refused(argv, words):
    with pytest.raises(flags.Error) as caught:
        draw(argv)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_flagfiles(tmp_path):
    """They may name others, have comments, and are overridden by what follows; absl's own flags stay as they are."""
    before = set(flags.FLAGS)
    (tmp_path / "inner.cfg").write_text("# inner\n--layers=8,9\n--gloss\n\n// no flag\n")
    (tmp_path / "outer.cfg").write_text(f"--sides=9\n--flagfile={tmp_path / 'inner.cfg'}\n--nogloss\n")
    o = draw(f"--flagfile={tmp_path / 'outer.cfg'}", "--sides=8")
    assert (o.shape.sides, o.paint.layers, o.paint.gloss) == (8, (8, 9), False)
    assert set(flags.FLAGS) == before
    assert define.texts_of(tmp_path / "outer.cfg") == {"sides": "9", "layers": "8,9", "gloss": "false"}
    assert define.texts_of(tmp_path / "nowhere.cfg") == {}


def test_paths_hold_from_anywhere(tmp_path, monkeypatch):
    """Given relative or with ~ behind the =, in options, keywords and lists; addresses and nothing are left alone."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    o = parse("pretrain", "--data_dir=~/photos", "--workdir=runs/../runs/x")
    assert (o.data.data_dir, o.run.workdir) == (f"{tmp_path}/home/photos", f"{tmp_path}/runs/x")
    assert f"--data_dir={tmp_path}/home/photos\n" in define.flagfile(o)
    assert parse("table", "--workdir=a,~/b").table.workdir == (f"{tmp_path}/a", f"{tmp_path}/home/b")
    assert parse("pretrain", "--data_dir=gs://bucket/data", "--workdir=").data.data_dir == "gs://bucket/data"
    assert parse("lincls", "--train_list=list.txt", "--load=moco.pth").encoder.load == f"{tmp_path}/moco.pth"
    assert parse("export", "--output=encoder/").export.output == f"{tmp_path}/encoder"


@pytest.mark.parametrize("words", [["--flagfile=flags.cfg"], ["--flagfile", "flags.cfg"]])
def test_own_flagfile_of_a_run_with_relative_paths(words, tmp_path, monkeypatch):
    """Runs of earlier versions kept paths as given: from the run folder they still mean that run and its images."""
    run = tmp_path / "runs/x"
    run.mkdir(parents=True)
    (run / "flags.cfg").write_text("--data_dir=photos\n--workdir=runs/x\n--nonesterov\n")
    monkeypatch.chdir(run)
    o = parse("pretrain", *words)
    assert (o.run.workdir, o.data.data_dir) == (str(run), str(tmp_path / "photos"))
    assert define.texts_of(run / "flags.cfg") == {
        "data_dir": f"{tmp_path}/photos",
        "workdir": str(run),
        "nesterov": "false",
    }
    (tmp_path / "recipe.cfg").write_text("--workdir=runs/x\n")  # no run's own: relative to where we are
    assert parse("pretrain", f"--flagfile={tmp_path / 'recipe.cfg'}").run.workdir == str(run / "runs/x")


def test_what_a_run_that_goes_on_may_change():
    expected = {"sides": "refused", "area": "said", "kind": "refused", "place": "silent", "gloss": "said"}
    found = define.changes(draw())
    assert {name: found[name] for name in expected} == expected
    pretrain = define.changes(parse("pretrain"))
    assert {pretrain[name] for name in ("temperature", "queue_size", "stem", "method", "seed")} == {"refused"}
    assert {pretrain[name] for name in ("epochs", "learning_rate", "precision", "keep")} == {"said"}
    assert {pretrain[name] for name in ("workdir", "data_dir")} == {"silent"}


def test_other_values():
    o = define.replaced(draw("--gloss"), sides=6, rest=1)
    assert (o.shape.sides, o.paint.rest, o.paint.gloss) == (6, 1, True)
    with pytest.raises(TypeError, match=r"\['side'\] are no options of Draw"):
        define.replaced(o, side=6)
    with pytest.raises(UserError, match="--rest=10 came"):
        define.replaced(o, rest=10)
    assert [define.word("gloss", value) for value in (True, False)] == ["--gloss", "--nogloss"]
    assert define.word("layers", (1, 2)) == "--layers=1,2"


# The programs


@pytest.mark.parametrize("program", PROGRAMS)
def test_defaults_are_read_back(program):
    o = parse(program)
    text = define.flagfile(o)
    assert text.splitlines() == sorted(text.splitlines())
    assert parse(program, *text.splitlines()) == o


@pytest.mark.parametrize("name", FILES)
def test_every_flagfile_is_read_back(name, tmp_path):
    program = name.split("/")[1].removesuffix(".cfg") if name.startswith("debug/") else name.split("/")[0]
    o = parse(program, f"--flagfile={ROOT / 'flags' / name}")
    (tmp_path / "flags.cfg").write_text(define.flagfile(o))
    assert parse(program, f"--flagfile={tmp_path / 'flags.cfg'}") == o


@pytest.mark.parametrize("text", ["--exact_blur", "--antialias", "--nouniform_ratio"])
def test_flags_of_old_run_folders_that_say_what_holds_today(text):
    assert parse("pretrain", text) == parse("pretrain")


@pytest.mark.parametrize("text", ["--noexact_blur", "--noantialias", "--uniform_ratio", "--uniform_ratio=true"])
def test_flags_of_old_run_folders_that_say_something_else(text):
    with pytest.raises(flags.Error, match=f"^{text.split('=')[0]} is gone: .*--views=moco_v1_s3 or moco_v2_s3$"):
        parse("pretrain", text)


# What methods and backbones bring


@pytest.mark.parametrize("name, temperature", [("moco", 0.2), ("simclr", 0.5), ("npid", 0.07), ("supcon_in", 0.2)])
def test_a_method_has_its_own_defaults(name, temperature):
    own = parse("pretrain", f"--method={name}").method.own
    assert own["temperature"] == temperature
    assert own == {argument.name: argument.default for argument in find.arguments("method", name)}
    assert parse("pretrain", f"--method={name}", "--temperature=0.3").method.own["temperature"] == 0.3


def test_a_method_has_no_options_of_others(tmp_path):
    """Flagfiles of earlier versions hold those of all methods; what asks for something that is not there is refused."""
    (tmp_path / "old.cfg").write_text("--method=moco\n--queue_size=64\n--nosymmetric\n--negatives=4096\n")
    o = parse("pretrain", f"--flagfile={tmp_path / 'old.cfg'}", "--method", "simclr")
    assert o.method.own == {"temperature": 0.5} and "queue_size" not in define.flagfile(o)
    words = (
        "^--symmetric came with --method=simclr, expected moco; leave --symmetric out, or give --nosymmetric behind a"
    )
    with pytest.raises(flags.IllegalFlagValueError, match=words):
        parse("pretrain", "--method=simclr", "--symmetric")


def test_flags_of_other_methods_are_named():
    """A recipe of moco with --method=simclr: what simclr does not have is said, not passed over."""
    values = flags.FlagValues()
    words = ["--queue_size=64", "--key_momentum=0.9", "--temperature=0.3", "--method=simclr"]
    parsed = define.parse(PROGRAMS["pretrain"], ["pretrain", *words], values)
    assert define.ignored(parsed, values) == ["--key_momentum=0.9", "--queue_size=64"]
    values = flags.FlagValues()
    assert define.ignored(define.parse(PROGRAMS["pretrain"], ["pretrain", *words[:3]], values), values) == []


@pytest.mark.parametrize(
    "text", ["--queue_size=0", "--key_momentum=1.5", "--key_update=later", "--width=0", "--stem=x"]
)
def test_options_of_methods_and_backbones_are_checked(text):
    with pytest.raises(flags.IllegalFlagValueError, match=f"flag {text}"):
        parse("pretrain", text)


BYOL = '''
raise RuntimeError("this module was run")
from moco_tf.config.types import Count
from moco_tf.methods.moco import MoCo


class Byol(MoCo):
    """BYOL.

    Args:
        hidden: width of the predictor.
        lazy: whether it rests.
    """

    def __init__(self, query_encoder, key_encoder, hidden: Count = 16, lazy: bool = False, NAME: int = 1, **kwargs):
        super().__init__(query_encoder, key_encoder, **kwargs)
'''


@pytest.fixture
def byol(tmp_path, monkeypatch):
    """Writes the user's module my_package.byol, of which an argument has this name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()

    def write(name="extra"):
        (tmp_path / "my_package" / "byol.py").write_text(BYOL.replace("NAME", name))
        return tmp_path

    yield write
    find._tree.cache_clear()
    sys.modules.pop("my_package", None)


def test_a_method_of_the_users(byol):
    byol()
    o = parse("pretrain", "--hidden=8", "--lazy", "--temperature=0.3", "--method=my_package.byol")
    own = {"hidden": 8, "lazy": True, "extra": 1, "temperature": 0.3, "queue_size": 65536}
    assert {name: o.method.own[name] for name in own} == own
    assert parse("pretrain", *define.flagfile(o).splitlines()) == o
    with pytest.raises(flags.IllegalFlagValueError, match="flag --hidden=0: 0 is not a positive"):
        parse("pretrain", "--method=my_package.byol", "--hidden=0")
    with pytest.raises(flags.UnrecognizedFlagError, match="hidden"):
        parse("pretrain", "--hidden=8")


def test_an_argument_of_the_users_with_the_name_of_a_flag(byol):
    byol("workdir")
    words = "^--method: an argument is called workdir, which is a flag already; rename the argument$"
    with pytest.raises(flags.IllegalFlagValueError, match=words):
        parse("pretrain", "--method=my_package.byol")


def python(*argv, path=""):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(path)]))}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, cwd=ROOT)


def test_help_lists_the_users_flags(byol):
    done = python("-m", "moco_tf.pretrain", "--method=my_package.byol", "--help", path=byol())
    text = " ".join(done.stdout.split())
    assert "--hidden=NUMBER width of the predictor. Default: my_package.byol: 16." in text, done.stderr
    assert "--temperature=NUMBER tau" in text and "simclr: 0.5" in text and "--batch_size" in text
    assert "RuntimeError" not in done.stderr


def test_parsing_imports_no_tensorflow():
    code = (
        "import sys\n"
        "from moco_tf.config import define, options\n"
        "from moco_tf.run import program\n"
        "for name, kind in options.PROGRAMS.items():\n"
        "    define.parse(kind, [name])\n"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))\n"
    )
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stderr
