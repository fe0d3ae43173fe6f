"""Methods and backbones are found by name, and the arguments of a class are read from its source."""

import sys
import textwrap

import pytest

from moco_tf.config import find
from moco_tf.config.types import Bounds, kind_of
from moco_tf.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package of the user's, which Python finds: package(byol="text", ...)."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()

    def write(**modules):
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))

    yield write
    find._tree.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def arguments(kind, name):
    return {a.name: (a.annotation, a.default) for a in find.arguments(kind, name)}


def test_what_the_package_has():
    assert {"moco", "npid", "simclr", "supcon_in", "supervised"} <= set(find.names("method"))
    assert {"resnet10", "resnet18", "resnet34", "resnet50"} <= set(find.names("arch"))
    assert not any(name.startswith("base") for name in find.names("method"))
    assert all(find.module_of("method", name) == f"moco_tf.methods.{name}" for name in find.names("method"))
    assert (
        find.module_of("arch", "resnet10") == find.module_of("arch", "resnet50") == "moco_tf.networks.backbones.resnet"
    )


def test_arguments_are_those_of_the_constructor():
    """Of every method in the package, as Python itself has them."""
    import inspect

    for name in find.names("method"):
        kind, expected = find.find("method", name), {}
        for place in kind.__mro__[: [each.__name__ for each in kind.__mro__].index("Method")]:
            if "__init__" in vars(place):
                expected |= {p.name: p.default for p in inspect.signature(place).parameters.values()}
        expected = {
            argument: default for argument, default in expected.items() if default is not inspect.Parameter.empty
        }
        assert {a.name: a.default for a in find.arguments("method", name)} == expected
        assert all(a.help for a in find.arguments("method", name)), "every argument has a line in the docstring"


def test_arguments_of_a_backbone_leave_out_what_is_given():
    assert arguments("arch", "resnet18").keys() == {"stem", "width", "zero_init_residual"}
    assert kind_of(arguments("arch", "resnet18")["stem"][0]).choices == ("imagenet", "cifar")


PARENT = '''
    from moco_tf.methods.base import Method
    from moco_tf.config.types import Share

    class Siamese(Method):
        """Two networks.

        Args:
            query_encoder: the encoder.
            momentum, decay: of the average.
            depth: of the predictor,
                in layers: one
                and more.
        """

        def __init__(self, query_encoder, key_encoder, momentum: Share = 0.99, *, decay: float = 0.0,
                     depth: int = 2, **kwargs):
            super().__init__(query_encoder, **kwargs)
'''


@pytest.mark.parametrize(
    "imports, base",
    [
        ("from my_package.siamese import Siamese", "Siamese"),
        ("from my_package.siamese import Siamese as Parent", "Parent"),
        ("from .siamese import Siamese", "Siamese"),
        ("from . import Siamese", "Siamese"),
    ],
)
def test_arguments_of_parents_in_other_modules(imports, base, package):
    """The lowest class counts where both have an argument; what is imported is not run."""
    text = f'raise RuntimeError("this module was run")\n{imports}\n'
    text += f'class Byol({base}):\n    """BYOL.\n\n    Args:\n        depth: ours.\n    """\n\n'
    text += "    def __init__(self, depth: int = 3, symmetric: bool = True, **kwargs): pass\n"
    package(siamese=PARENT, byol=text, __init__="from my_package.siamese import Siamese")
    found = find.arguments("method", "my_package.byol")
    assert {a.name: a.default for a in found} == {"depth": 3, "symmetric": True, "momentum": 0.99, "decay": 0.0}
    assert {a.name: a.help for a in found} == {
        **{"depth": "ours.", "symmetric": ""},
        **{"momentum": "of the average.", "decay": "of the average."},
    }
    momentum = next(a for a in found if a.name == "momentum")
    assert kind_of(momentum.annotation).bounds == Bounds(0.0, 1.0)


def test_a_class_without_kwargs_hides_its_parents_arguments(package):
    child = """
        from my_package.siamese import Siamese
        class Byol(Siamese):
            def __init__(self, query_encoder, size: int = 3): pass
    """
    package(siamese=PARENT, byol=child)
    assert arguments("method", "my_package.byol") == {"size": (int, 3)}
    assert next(a for a in find.arguments("method", "my_package.siamese") if a.name == "depth").help == (
        "of the predictor, in layers: one and more."
    )


def test_a_class_that_passes_kwargs_on_is_given_what_its_parent_needs(package):
    package(
        byol="""
        from moco_tf.methods.moco import MoCo
        class Byol(MoCo):
            def __init__(self, query_encoder, depth: int = 2, **kwargs):
                super().__init__(query_encoder, **kwargs)
    """
    )
    kind = find.find("method", "my_package.byol")
    assert kind.__name__ == "Byol" and kind.given() == {"query_encoder", "key_encoder"}
    assert arguments("method", "my_package.byol").keys() == {"depth", *arguments("method", "moco")}
    assert find.find("method", "npid").given() == {"query_encoder", "num_examples"}


def test_architectures_of_one_file(package):
    """A file with VARIANTS has so many names, and what a variant sets is no flag of it."""
    package(
        convnext="""
        from moco_tf.networks.backbones.base import Backbone
        VARIANTS = {"convnext_t": {"depth": 3}, "convnext_s": {"depth": 4}}
        class ConvNext(Backbone):
            def __init__(self, depth: int = 1, width: int = 64): pass
    """
    )
    assert find.variants("my_package.convnext") == {"convnext_t": {"depth": 3}, "convnext_s": {"depth": 4}}
    assert arguments("arch", "my_package.convnext") == {"depth": (int, 1), "width": (int, 64)}


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "mocco",
            ["--method=mocco came", "one of moco, moco_v3, npid", "(did you mean moco?)", "Python module such as"],
        ),
        ("zzz", ["--method=zzz came", "one of moco"]),
        ("my_package.none", ["--method=my_package.none is no module that Python finds", "PYTHONPATH"]),
        ("no_package.byol", ["--method=no_package.byol is no module"]),
        ("my_package.empty", ["my_package.empty defines no class that extends Method"]),
        ("os.path", ["os.path defines no class that extends Method"]),
        ("my_package.odd", ["the argument table of my_package.odd.Odd cannot become a flag", "plain type"]),
        ("my_package.computed", ["the argument size of my_package.computed.Computed cannot become a flag", "literal"]),
    ],
)
def test_what_cannot_be_used(name, words, package):
    odd = (
        "from moco_tf.methods.base import Method\nclass Odd(Method):\n    def __init__(self, table: dict = {}): pass\n"
    )
    computed = "from moco_tf.methods.base import Method\nN = 3\n"
    computed += "class Computed(Method):\n    def __init__(self, size: int = 2 * N): pass\n"
    package(empty="class Other: pass\n", odd=odd, computed=computed)
    with pytest.raises(UserError) as caught:
        find.arguments("method", name)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_with_two_methods(package):
    package(
        two="""
        from moco_tf.methods.simclr import SimCLR
        class One(SimCLR): pass
        class Other(SimCLR): pass
    """
    )
    with pytest.raises(UserError, match="my_package.two defines 2 classes that extend Method, expected one"):
        find.find("method", "my_package.two")


@pytest.mark.parametrize("annotation", [dict, list[int], int | str, object])
def test_types_that_no_flag_has(annotation):
    with pytest.raises(TypeError, match="is no type of an option; expected bool, int, float, str, Literal or a tuple"):
        kind_of(annotation)
