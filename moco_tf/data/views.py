"""The named views of the recipes: which operations make one random view of an image, and in which order."""

import dataclasses

import tensorflow as tf

from moco_tf.data.augment import ImageOp, Parameters, from_planes, to_planes, to_unit_range
from moco_tf.data.augment_blur import GaussianBlur
from moco_tf.data.augment_colour import ColorJitter, Normalize, RandomGrayscale
from moco_tf.data.augment_geometry import RandomHorizontalFlip, RandomResizedCrop
from moco_tf.errors import UserError

Color = tuple[float, float, float]

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
        if None in images.shape[1:]:
            raise ValueError(f"images of one known size expected, got shape {images.shape}; crop_one takes any size")
        planes = to_planes(to_unit_range(images))
        for op, own in zip((self.crop, *self.ops), parameters, strict=True):
            if op:
                planes = op.apply_planes(planes, own)
        return from_planes(self.normalize.apply_planes(planes, {}))

    def __call__(
        self, images: tf.Tensor, seed: tf.Tensor, rows: tf.Tensor | None = None, count: int | None = None
    ) -> tf.Tensor:
        """Draws for the global batch of `count` images (default: B), applies its `rows` (B, default: all) to images."""
        if count is None:
            count = images.shape[0] or tf.shape(images)[0]
        parameters = self.draw(seed, count)
        if rows is not None:
            parameters = tf.nest.map_structure(lambda values: tf.gather(values, rows), parameters)
        return self.apply(images, parameters)

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
) -> View:
    """The view called `name`, of image_size x image_size pixels; mean 0 and std 1 mean no normalisation.

    crop_scale overrides the range of the crop's area. moco.tensorflow's views have exact_blur=False (a true Gaussian),
    antialias=False and uniform_ratio=True (see RandomResizedCrop).
    """
    if name not in VIEWS:
        raise UserError(f"unknown view {name!r}; known views: {', '.join(sorted(VIEWS))}")
    scale, ops = VIEWS[name]
    crop = (
        RandomResizedCrop(image_size, crop_scale or scale, antialias=antialias, uniform_ratio=uniform_ratio)
        if scale
        else None
    )
    if not exact_blur:
        ops = tuple(dataclasses.replace(op, exact=False) if isinstance(op, GaussianBlur) else op for op in ops)
    return View(crop, ops, Normalize(tuple(mean), tuple(std)))
