"""The reference is complete and builds: docstrings and types of everything public, pdoc without a warning."""

import importlib
import inspect
import os
import pathlib
import pkgutil
import shlex
import subprocess
import sys

import moco_tf
from moco_tf.training import collectives

ROOT = pathlib.Path(__file__).parents[2]
# Keras calls them; what they do is what the class says.
HOOKS = {"build", "call", "get_config", "update_step", "on_train_batch_begin", "on_train_batch_end"}
SAME_OPERATIONS = {collectives.Horovod: collectives.SingleProcess}


def modules():
    names = [module.name for module in pkgutil.walk_packages(moco_tf.__path__, "moco_tf.")]
    return [moco_tf, *(importlib.import_module(name) for name in names)]


def public(owner):
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")}


def defined(module):
    """Public classes and functions that the module defines: {full name: object}."""
    kinds = (value for value in public(module).items() if inspect.isclass(value[1]) or inspect.isfunction(value[1]))
    return {f"{module.__name__}.{name}": value for name, value in kinds if value.__module__ == module.__name__}


def methods(classes):
    """Public methods and properties that the classes define: {full name: (class, attribute's name)}."""
    kinds = (inspect.isfunction, lambda x: isinstance(x, property | classmethod | staticmethod))
    return {
        f"{full}.{name}": (owner, name)
        for full, owner in classes.items()
        for name, value in public(owner).items()
        if any(kind(value) for kind in kinds)
    }


def everything():
    found = {full: value for module in modules() for full, value in defined(module).items()}
    return found, methods({full: value for full, value in found.items() if inspect.isclass(value)})


def test_every_public_name_has_a_docstring():
    found, of_classes = everything()
    missing = {module.__name__ for module in modules() if not inspect.getdoc(module)}
    missing |= {full for full, value in found.items() if not value.__doc__}
    for full, (owner, name) in of_classes.items():
        form = getattr(SAME_OPERATIONS.get(owner), name, None) or getattr(owner, name)
        missing |= set() if inspect.getdoc(form) or name in HOOKS else {full}
    assert len(found) > 150 and sorted(missing) == []


def test_every_argument_and_result_has_a_type():
    found, of_classes = everything()
    functions = {full: value for full, value in found.items() if inspect.isfunction(value)}
    functions |= {full: getattr(owner, name) for full, (owner, name) in of_classes.items()}
    own = {full: vars(value).get("__init__") for full, value in found.items() if inspect.isclass(value)}
    functions |= {f"{full}.__init__": init for full, init in own.items() if init and init.__module__ != "typing"}
    untyped = []
    for full, function in functions.items():
        if not inspect.isroutine(function):
            continue
        signature = inspect.signature(function)
        empty = [
            p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        empty += ["return"] if signature.return_annotation is signature.empty else []
        untyped += [f"{full}: {', '.join(empty)}"] if empty else []
    assert len(functions) > 200 and untyped == []


def test_reference_builds_without_a_warning(tmp_path):
    """The very command of launch/docs.sh; a warning would end it."""
    script = (ROOT / "launch" / "docs.sh").read_text().replace("\\\n", "")
    (line,) = [line for line in script.splitlines() if " -m pdoc " in line]
    command = [{"$python": sys.executable, "$output": str(tmp_path)}.get(word, word) for word in shlex.split(line)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {"moco_tf.html", "moco_tf/api/pretrained.html", "moco_tf/methods/moco.html"} <= pages.keys()
    assert "Weighted kNN accuracy on a data set" in pages["moco_tf/api/pretrained.html"]
    for name, page in pages.items():
        assert str(ROOT) not in page and 'src="http' not in page, f"{name}: a path of this machine, or a network"
