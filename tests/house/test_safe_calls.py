"""Nothing unpickles, executes text, hands a string to a shell or serves: ruff's rules, and what they do not know."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SAFE = {"allow_pickle": "False", "shell": "False", "safe_mode": "True", "weights_only": "True"}  # keyword arguments
OF_RUFF = """
pickle.load(x)
pickle.Unpickler(x)
pandas.read_pickle(x)
yaml.load(x)
yaml.unsafe_load(x)
torch.load(x)
eval(x)
exec(x)
subprocess.run(x, shell=True)
os.system(x)
os.popen(x)
tarfile.open(x).extractall()
tensorflow.py_function(x)
tensorflow.numpy_function(x)
keras.config.enable_unsafe_deserialization()
serve("0.0.0.0")
import http.server
import marshal
"""


def unsafe(source):
    """Calls that execute what they are given, or may, and that ruff does not find."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in ("compile", "__import__"):
                yield ast.unparse(node)
            for argument in node.keywords:  # a variable may have either value
                if argument.arg in SAFE and ast.unparse(argument.value) != SAFE[argument.arg]:
                    yield ast.unparse(node)


def test_no_call_of_the_package_is_unsafe():
    found = {str(path): list(unsafe(path.read_text())) for path in (ROOT / "moco_tf").rglob("*.py")}
    assert found and not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    "call", ["np.load(f, allow_pickle=True)", "run(x, shell=y)", "load_model(f, safe_mode=False)", "compile(x)"]
)
def test_planted_calls_are_found(call):
    assert list(unsafe(f"def f():\n    {call}\n")) == [call]


def test_safe_calls_are_not_found():
    assert not list(unsafe("np.load(f, allow_pickle=False)\nrun(['ls', x])\nre.compile(x)\nmethod.compile(o)"))


def test_ruff_finds_the_others():
    """Each line of OF_RUFF in a module of the package."""
    names = ["keras", "os", "pandas", "pickle", "subprocess", "tarfile", "tensorflow", "torch", "yaml"]
    planted = "".join(f"import {name}\n" for name in names) + OF_RUFF
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename=moco_tf/planted.py", "--output-format=concise"]
    done = subprocess.run([*command, "-"], input=planted, capture_output=True, text=True, cwd=ROOT)
    found = {int(line) for line in re.findall(r"planted.py:(\d+):\d+: (?:S|TID)\d+ ", done.stdout)}
    assert found == set(range(len(names) + 2, len(names) + 1 + len(OF_RUFF.splitlines()))), done.stdout


def test_launchers_evaluate_no_string():
    for path in (ROOT / "launch").glob("*.sh"):
        if path.name == "slurm_ssh.sh":  # it is an ssh: what it is given is a shell's command, quoted by horovodrun
            continue
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        unsafe_lines = [line for line in lines if re.search(r"(^|[;&|]\s*)(eval|source /dev/stdin)\b|(ba)?sh -c", line)]
        assert not unsafe_lines, path
