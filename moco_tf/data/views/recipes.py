"""The named views of the recipes: which operations make one random view of an image, and in which order."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from moco_tf.config import find as names
from moco_tf.data.views.blur import GaussianBlur
from moco_tf.data.views.colour import ColorJitter, Normalize, RandomGrayscale, Solarize
from moco_tf.data.views.geometry import RandomHorizontalFlip, RandomResizedCrop
from moco_tf.data.views.ops import Compiled, ImageOp, Parameters, Run, from_planes, to_planes, to_unit_range
from moco_tf.errors import UserError

Color = tuple[float, ...]  # of R, G and B

# Pixels of a chunk of images that a CPU takes through all pieces before the next chunk: 8 images of 224 px, hundreds of
# small ones. A whole batch of large images goes through memory for each piece, not the cache: 1.7 times slower.
CHUNK = 8 * 224 * 224
FAST_TAPS = 13  # of --fast_views' Gaussian: 3 sigma of the widest

FLIP = RandomHorizontalFlip(p=0.5)
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
JITTER_V3 = ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8)
GRAY = RandomGrayscale(0.2)
V1 = (FLIP, GRAY, ColorJitter(0.4, 0.4, 0.4, 0.4))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What makes one random view: a crop, then operations in their order.

    Args:
        scale: range of the crop's area, a share of the image's; None: no crop.
        ops: the operations after the crop.
        antialias: whether the crop is resized as PIL does, or with the plain bilinear filter.
        uniform_ratio: whether the crop's aspect ratio is uniform, or its logarithm.
    """

    scale: tuple[float, float] | None
    ops: tuple[ImageOp, ...] = ()
    antialias: bool = True
    uniform_ratio: bool = False


# What --views names: a recipe for both views of an image, or one recipe for each of the two.
# The mirror comes right after the crop even where the original has it last: it commutes with every other operation here
# (they act on single pixels, on the image's mean, or symmetrically), and at the end of the list XLA computes the jitter
# twice, which made the compiled moco_v2 view 3 times slower.
VIEWS: dict[str, Recipe | tuple[Recipe, Recipe]] = {
    # MoCo section 4, "Technical details"; facebookresearch/moco without --aug-plus
    "moco_v1": Recipe((0.2, 1.0), V1),
    # MoCo v2; facebookresearch/moco with --aug-plus
    "moco_v2": Recipe((0.2, 1.0), (FLIP, JITTER, GRAY, GaussianBlur((0.1, 2.0), p=0.5))),
    # the same two in ppwwyyxx/moco.tensorflow
    "moco_v1_s3": Recipe((0.2, 1.0), V1, antialias=False, uniform_ratio=True),
    "moco_v2_s3": Recipe(
        (0.2, 1.0),
        (FLIP, JITTER, GRAY, GaussianBlur((0.1, 2.0), p=0.5, exact=False)),
        antialias=False,
        uniform_ratio=True,
    ),
    # MoCo v3, as BYOL (appendix B there): the second view is rarely blurred, and sometimes solarized.
    # facebookresearch/moco-v3 trains a ResNet-50 with --crop_scale=0.2,1
    "moco_v3": (
        Recipe((0.08, 1.0), (FLIP, JITTER_V3, GRAY, GaussianBlur((0.1, 2.0), p=1.0))),
        Recipe((0.08, 1.0), (FLIP, JITTER_V3, GRAY, GaussianBlur((0.1, 2.0), p=0.1), Solarize(p=0.2))),
    ),
    # the MoCo CIFAR-10 demo
    "cifar": Recipe((0.08, 1.0), (FLIP, JITTER, GRAY)),
    # SimCLR and MoCo v2 on CIFAR-10: the same operations; its recipes do not normalise
    "simclr_cifar": Recipe((0.08, 1.0), (FLIP, JITTER, GRAY)),
    # larger crops and less gray, for the frozen-probe SimCLR recipe
    "cifar_mild": Recipe((0.2, 1.0), (FLIP, JITTER, RandomGrayscale(0.1))),
    # training of linear probes and supervised baselines
    "crop_flip": Recipe((0.08, 1.0), (FLIP,)),
    # evaluation
    "none": Recipe(None),
}


def _planes_of(images: tf.Tensor) -> tf.Tensor:
    if None in images.shape[1:]:
        raise ValueError(f"images of one known size expected, got shape {images.shape}; crop_one takes any size")
    return to_planes(to_unit_range(images))


@dataclasses.dataclass(frozen=True)
class View:
    """One random view of a batch: crop, operations in order, normalisation."""

    crop: RandomResizedCrop | None
    ops: tuple[ImageOp, ...]
    normalize: Normalize

    def draw(self, seed: tf.Tensor, count: int) -> tuple[Parameters, ...]:
        """Parameters of every operation for `count` images, the *global* batch; seed is an int32 pair.

        Each operation folds its place into the seed: they are independent, and a view without its crop keeps the rest.
        """
        return tuple(
            op.draw(tf.random.experimental.stateless_fold_in(seed, place, alg="philox"), count) if op else {}
            for place, op in enumerate((self.crop, *self.ops))
        )

    def apply(self, images: tf.Tensor, parameters: tuple[Parameters, ...]) -> tf.Tensor:
        """BxHxWx3 uint8 (or float in [0, 1]) -> BxSxSx3 float32, normalised; deterministic given the parameters."""
        planes = _planes_of(images)
        for op, own in zip((self.crop, *self.ops), parameters, strict=True):
            if op:
                planes = op.apply_planes(planes, own)
        return self._finished(planes)

    def _apply_in_pieces(self, images: tf.Tensor, parameters: tuple[Parameters, ...], run: Run) -> tf.Tensor:
        planes = run(_planes_of, images)
        for op, own in zip((self.crop, *self.ops), parameters, strict=True):
            if op:
                planes = op.in_pieces(planes, own, run)
        return run(self._finished, planes)

    def _finished(self, planes: tf.Tensor) -> tf.Tensor:
        return from_planes(self.normalize.apply_planes(planes, {}))

    def __call__(
        self, images: tf.Tensor, seed: tf.Tensor, rows: tf.Tensor | None = None, count: int | None = None
    ) -> tf.Tensor:
        """One random view of each image.

        Args:
            images: of a rank, BxHxWx3.
            seed: int32 pair.
            rows: where the images stand in the global batch, int32 B; default: 0, 1, ... B-1.
            count: of the images in the global batch, for all of which parameters are drawn; default: B.
        """
        if count is None:
            count = images.shape[0] or tf.shape(images)[0]
        return self.apply(images, self._drawn(seed, rows, count))

    def _drawn(self, seed: tf.Tensor, rows: tf.Tensor | None, count: int | tf.Tensor) -> tuple[Parameters, ...]:
        parameters = self.draw(seed, count)
        if rows is None:
            return parameters
        return tf.nest.map_structure(lambda values: tf.gather(values, rows), parameters)

    def in_pieces(self, run: Run | None = None) -> Callable[..., tf.Tensor]:
        """`__call__` for a CPU: the same values, from pieces that XLA compiles one by one, a chunk of images at a time.

        Compiled as a whole, XLA computes again in several places what several others need, and every intermediate
        result of a batch goes through memory: at 224 px three times slower. B has to be known when it is traced.
        """
        run = run or Compiled()

        def view(
            images: tf.Tensor, seed: tf.Tensor, rows: tf.Tensor | None = None, count: int | None = None
        ) -> tf.Tensor:
            batch = images.shape[0]
            parameters = run(self._drawn, seed, rows, count or batch)
            size = max(1, CHUNK // math.prod(images.shape[1:3]))
            chunks = [slice(start, start + size) for start in range(0, batch, size)]
            own = [tf.nest.map_structure(lambda x, c=c: x[c], parameters) for c in chunks]
            views = [self._apply_in_pieces(images[chunk], part, run) for chunk, part in zip(chunks, own)]
            return tf.concat(views, axis=0) if len(views) > 1 else views[0]

        return view

    def without_crop(self) -> "View":
        """The rest of the view, for images that tf.data has cropped with `view.crop.crop_one`."""
        return dataclasses.replace(self, crop=None)


def view(
    name: str,
    image_size: int,
    mean: Color = (0.0, 0.0, 0.0),
    std: Color = (1.0, 1.0, 1.0),
    crop_scale: tuple[float, ...] | None = None,
    fast: bool = False,
) -> View:
    """The one view that a name stands for.

    Args:
        name, image_size, mean, std, crop_scale, fast: of `views`.

    Raises:
        UserError: there is no such name, or it is a pair of views.
    """
    recipe = find(name)
    if isinstance(recipe, tuple):
        raise UserError(f"the view {name!r} is a pair of two different ones, expected one; give another, as crop_flip")
    return _made(recipe, image_size, Normalize(tuple(mean), tuple(std)), crop_scale, fast)


def views(
    name: str,
    image_size: int,
    mean: Color = (0.0, 0.0, 0.0),
    std: Color = (1.0, 1.0, 1.0),
    crop_scale: tuple[float, ...] | None = None,
    fast: bool = False,
) -> tuple[View, View]:
    """The first and the second random view of an image: the same object twice unless the recipes differ.

    Args:
        name: of VIEWS, or a Python module of the user's, see `find`.
        image_size: S, the pixels of a side.
        mean, std: of R, G and B, to normalise with; 0 and 1 leave the values in [0, 1].
        crop_scale: replaces the range of the crop's area.
        fast: crops without antialiasing, and a Gaussian of 13 taps instead of PIL's blur.

    Raises:
        UserError: there is no such name.
    """
    recipe, rest = find(name), (image_size, Normalize(tuple(mean), tuple(std)), crop_scale, fast)
    if isinstance(recipe, tuple):
        return _made(recipe[0], *rest), _made(recipe[1], *rest)
    both = _made(recipe, *rest)
    return both, both


def find(name: str) -> Recipe | tuple[Recipe, Recipe]:
    """The recipe, or the two, that a name stands for: of VIEWS, or RECIPE in a Python module of the user's.

    --views=my_package.gray_crops takes this from my_package/gray_crops.py; an operation of one's own extends ImageOp of
    moco_tf/data/views/ops.py:

        from moco_tf.data.views.colour import RandomGrayscale
        from moco_tf.data.views.recipes import Recipe

        RECIPE = Recipe((0.5, 1.0), (RandomGrayscale(p=0.5),))  # or two recipes: (Recipe(...), Recipe(...))

    Raises:
        UserError: there is none.
    """
    module = names.imported("views", name)
    if name in VIEWS:
        return VIEWS[name]
    recipe: Any = getattr(module, "RECIPE", None)
    for part in recipe if isinstance(recipe, tuple) and len(recipe) == 2 else [recipe]:
        if not isinstance(part, Recipe):
            raise UserError(f"--views={name} has the RECIPE {recipe!r}, expected a Recipe or two of them; give it one")
    return recipe


def _made(
    recipe: Recipe, image_size: int, normalize: Normalize, crop_scale: tuple[float, ...] | None, fast: bool
) -> View:
    crop, ops = None, recipe.ops
    if recipe.scale:
        antialias, scale = recipe.antialias and not fast, crop_scale or recipe.scale
        crop = RandomResizedCrop(image_size, scale, uniform_ratio=recipe.uniform_ratio, antialias=antialias)
    return View(crop, tuple(map(_fast, ops)) if fast else ops, normalize)


def _fast(op: ImageOp) -> ImageOp:
    """With a Gaussian of few taps instead of PIL's blur."""
    return dataclasses.replace(op, exact=False, max_taps=FAST_TAPS) if isinstance(op, GaussianBlur) else op
