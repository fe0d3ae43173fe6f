"""moco_tf: momentum contrast and its family in TensorFlow 2 / Keras 3.

The programs are modules: python -m moco_tf.pretrain, lincls, knn, export and others. What they do, in Python:

    import moco_tf

    recipe = moco_tf.recipe("demo", epochs=1)
    moco_tf.train(recipe, workdir="runs/first")
    encoder = moco_tf.load("runs/first")
    features = encoder.embed(images)

See `moco_tf.api`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from moco_tf.errors import UserError as UserError

if TYPE_CHECKING:
    from moco_tf.api.fitting import Training as Training
    from moco_tf.api.pretrained import Pretrained as Pretrained
    from moco_tf.api.pretrained import load as load
    from moco_tf.api.recipes import Recipe as Recipe
    from moco_tf.api.recipes import metrics as metrics
    from moco_tf.api.recipes import recipe as recipe
    from moco_tf.api.recipes import train as train

__version__ = "0.1.0"

# Where the public names are. No module of this package has one of them: its import would put it in their place.
_HOMES = {
    "Pretrained": "pretrained",
    "Recipe": "recipes",
    "Training": "fitting",
    "load": "pretrained",
    "metrics": "recipes",
    "recipe": "recipes",
    "train": "recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moco_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"moco_tf.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
