"""The named views of the recipes: which operations make one random view of an image, and in which order."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from moco_tf.data.views.blur import MAX_TAPS, GaussianBlur
from moco_tf.data.views.colour import ColorJitter, Normalize, RandomGrayscale
from moco_tf.data.views.geometry import RandomHorizontalFlip, RandomResizedCrop
from moco_tf.data.views.ops import Compiled, ImageOp, Parameters, Run, from_planes, to_planes, to_unit_range
from moco_tf.errors import UserError

Color = tuple[float, float, float]

# Pixels of a chunk of images that a CPU takes through all pieces before the next chunk: 8 images of 224 px, hundreds of
# small ones. A whole batch of large images goes through memory for each piece, not the cache: 1.7 times slower.
CHUNK = 8 * 224 * 224
FAST_TAPS = 13  # of --fast_views' Gaussian: 3 sigma of the widest

FLIP = RandomHorizontalFlip(p=0.5)
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)

# name: (scale of the crop's area, or None for no crop; the operations after the crop).
# The mirror comes right after the crop even where the original has it last: it commutes with every other operation here
# (they act on single pixels, on the image's mean, or symmetrically), and at the end of the list XLA computes the jitter
# twice, which made the compiled moco_v2 view 3 times slower.
VIEWS: dict[str, tuple[tuple[float, float] | None, tuple[ImageOp, ...]]] = {
    # MoCo section 4, "Technical details"; facebookresearch/moco without --aug-plus
    "moco_v1": ((0.2, 1.0), (FLIP, RandomGrayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4))),
    # MoCo v2; facebookresearch/moco with --aug-plus
    "moco_v2": ((0.2, 1.0), (FLIP, JITTER, RandomGrayscale(0.2), GaussianBlur((0.1, 2.0), p=0.5))),
    # the MoCo CIFAR-10 demo
    "cifar": ((0.08, 1.0), (FLIP, JITTER, RandomGrayscale(0.2))),
    # SimCLR and MoCo v2 on CIFAR-10: the same operations; its recipes do not normalise
    "simclr_cifar": ((0.08, 1.0), (FLIP, JITTER, RandomGrayscale(0.2))),
    # larger crops and less gray, for the frozen-probe SimCLR recipe
    "cifar_mild": ((0.2, 1.0), (FLIP, JITTER, RandomGrayscale(0.1))),
    # training of linear probes and supervised baselines
    "crop_flip": ((0.08, 1.0), (FLIP,)),
    # evaluation
    "none": (None, ()),
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
        """Draws for the global batch of `count` images (default: B), applies its `rows` (B, default: all) to images."""
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
    crop_scale: tuple[float, float] | None = None,
    exact_blur: bool = True,
    antialias: bool = True,
    uniform_ratio: bool = False,
    fast: bool = False,
) -> View:
    """The view called `name`, of image_size x image_size pixels; mean 0 and std 1 mean no normalisation.

    crop_scale overrides the range of the crop's area. moco.tensorflow's views have exact_blur=False (a true Gaussian),
    antialias=False and uniform_ratio=True (see RandomResizedCrop). fast: crops without antialiasing, and a Gaussian of
    13 taps instead of PIL's blur.
    """
    if name not in VIEWS:
        raise UserError(f"unknown view {name!r}; known views: {', '.join(sorted(VIEWS))}")
    scale, ops = VIEWS[name]
    crop = (
        RandomResizedCrop(
            image_size, crop_scale or scale, antialias=antialias and not fast, uniform_ratio=uniform_ratio
        )
        if scale
        else None
    )
    if fast or not exact_blur:
        other = {"exact": False, "max_taps": FAST_TAPS if fast else MAX_TAPS}
        ops = tuple(dataclasses.replace(op, **other) if isinstance(op, GaussianBlur) else op for op in ops)
    return View(crop, ops, Normalize(tuple(mean), tuple(std)))
