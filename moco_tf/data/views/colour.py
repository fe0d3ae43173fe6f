"""Colour operations of contrastive views: jitter, grayscale, normalisation.

The reference is torchvision on 8-bit PIL images. Deviation: pixels are not rounded to 8 bits between operations, except
for the hue, where the reference is too coarse for that; the contrast's mean, a number per image, is rounded here too.
"""

import dataclasses

import tensorflow as tf

from moco_tf.data.views.ops import ImageOp, Parameters, Run, between, call, per_image, uniform

# PIL's integer weights of ITU-R 601, in 1/65536.
GRAY_WEIGHTS = (19595 / 65536, 38470 / 65536, 7471 / 65536)


def gray(planes: tf.Tensor) -> tf.Tensor:
    """Luma, BxHx3xW -> BxHx1xW."""
    red, green, blue = tf.split(planes, 3, axis=2)
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def mean_gray(luma: tf.Tensor) -> tf.Tensor:
    """Mean luma of each image, rounded to 8 bits as PIL does: BxHx1xW -> Bx1x1x1."""
    return tf.floor(tf.reduce_mean(luma, axis=(1, 2, 3), keepdims=True) * 255 + 0.5) * (1 / 255)


def blend(planes: tf.Tensor, keep: tf.Tensor, to_mean: tf.Tensor, to_gray: tf.Tensor) -> tf.Tensor:
    """clip(keep x + to_mean mean(gray(x)) + to_gray gray(x)).

    keep alone is a brightness change; with to_mean = 1 - keep it is a contrast change, with to_gray = 1 - keep a
    saturation change; keep = 1 alone is the identity. One form for all lets their order differ from image to image.

    Args:
        planes: x, BxHx3xW in [0, 1].
        keep, to_mean, to_gray: weights of each image, float32 B.
    """
    luma = gray(planes)
    base = per_image(to_gray) * luma + per_image(to_mean) * mean_gray(luma)
    return tf.clip_by_value(per_image(keep) * planes + base, 0.0, 1.0)


def adjust_hue(planes: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """torchvision's hue on a PIL image: rounded to 8 bits, hue and saturation in 256 levels; shift of shape B.

    The shift, in [-0.5, 0.5], is truncated to a whole number of 1/255 and wraps at 256 levels; 255 are a circle.
    """
    pixels = tf.floor(planes * 255 + 0.5)
    hue, saturation, value = _to_hsv(pixels, 6 + tf.floor(tf.abs(per_image(shift))))
    levels = tf.cast(tf.cast(shift * 255, tf.int32) % 256, tf.float32)
    hue += per_image(levels)
    hue = tf.where(hue >= 256, hue - 256, hue)
    # In closed form: channel(n) = V - V S clip(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6, n = 5, 3, 1 for R, G, B.
    k = tf.reshape(tf.constant([5.0, 3.0, 1.0]), (1, 1, 3, 1)) + hue * (6 / 255)
    k = tf.where(k >= 6, k - 6, k)
    chroma = value * saturation * (1 / 255)
    return tf.floor(value - chroma * tf.clip_by_value(tf.minimum(k, 4 - k), 0.0, 1.0) + 0.5) * (1 / 255)


def _to_hsv(pixels: tf.Tensor, six: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Hue, saturation and value in 0..255, truncated as PIL does: whole numbers BxHx3xW to three of BxHx1xW.

    The hue of two percent of all colours is a whole level, which PIL's rounding in float32 may bring to the level
    below. So this takes the same quotients; `six` is a tensor, as XLA multiplies by 1/6 for a constant 6.
    """
    red, green, blue = tf.split(pixels, 3, axis=2)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    is_red, is_green = value == red, value == green
    ahead = tf.where(is_red, green - blue, tf.where(is_green, blue - red, red - green))  # of the two lesser channels
    sextant = tf.where(is_red, 0.0, tf.where(is_green, 2.0, 4.0))
    share = (chroma - tf.abs(ahead)) / tf.maximum(chroma, 1.0)
    turn = tf.where(ahead >= 0, sextant + 1 - share, sextant - 1 + share) / six
    hue = tf.floor(tf.where(turn < 0, turn + 1, turn) * 255)
    saturation = tf.floor(chroma * 255 / tf.maximum(value, 1.0) + 1e-3)  # a quotient of whole numbers is no nearer
    return hue, saturation, value


@dataclasses.dataclass(frozen=True)
class ColorJitter(ImageOp):
    """Brightness, contrast, saturation in [1 - x, 1 + x] and hue in [-hue, hue], in an order drawn for each image.

    p: the probability that an image is jittered at all.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 1.0

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """Factors (count each), `applied` (count, bool) and `position` (count x 4).

        position holds the places 0..3 of brightness, contrast, saturation and hue in the image's own order.
        """
        draws = uniform(seed, count, 9)

        def factor(column: int, strength: float) -> tf.Tensor:
            return between(draws[:, column], max(0.0, 1 - strength), 1 + strength)

        return {
            "brightness": factor(0, self.brightness),
            "contrast": factor(1, self.contrast),
            "saturation": factor(2, self.saturation),
            "hue": between(draws[:, 3], -self.hue, self.hue),
            "applied": draws[:, 4] < self.p,
            "position": tf.argsort(draws[:, 5:]),  # the inverse of a uniform permutation is uniform too
        }

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """Jittered where applied."""
        return self.in_pieces(planes, parameters, call)

    def in_pieces(self, planes: tf.Tensor, parameters: Parameters, run: Run) -> tf.Tensor:
        """Three blends before the hue and three after it; a blend that has nothing to do for an image is the identity.

        Every order is some assignment to these seven, and the costly hue is computed once.
        """
        no_hue = self.hue == 0
        hue_place = parameters["position"][:, 3]
        for slot in range(4 if no_hue else 3):
            planes = run(self._blend_in, planes, slot, parameters, (hue_place > slot) | no_hue)
        if no_hue:
            return planes
        planes = run(self._turn, planes, parameters)
        for slot in (1, 2, 3):
            planes = run(self._blend_in, planes, slot, parameters, hue_place < slot)
        return planes

    def _turn(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """The hue's operation."""
        return tf.where(per_image(parameters["applied"]), adjust_hue(planes, parameters["hue"]), planes)

    def _blend_in(self, planes: tf.Tensor, slot: int, parameters: Parameters, active: tf.Tensor) -> tf.Tensor:
        """Operation number `slot` of the images that are `active` (B, bool), unless it is their hue."""
        chosen = (parameters["position"][:, :3] == slot) & (active & parameters["applied"])[:, None]  # Bx3
        change = [
            tf.where(chosen[:, i], parameters[name] - 1, 0.0)
            for i, name in enumerate(("brightness", "contrast", "saturation"))
        ]
        return blend(planes, 1 + change[0] + change[1] + change[2], -change[1], -change[2])


@dataclasses.dataclass(frozen=True)
class RandomGrayscale(ImageOp):
    """Replaces all three channels by the luma with probability p."""

    p: float

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """`applied`, count booleans."""
        return {"applied": uniform(seed, count, 1)[:, 0] < self.p}

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """Luma where applied."""
        return tf.where(per_image(parameters["applied"]), gray(planes), planes)


@dataclasses.dataclass(frozen=True)
class Solarize(ImageOp):
    """Inverts the bright values, of 128 of 255 and more, with probability p (BYOL appendix B, PIL's solarize)."""

    p: float

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """`applied`, count booleans."""
        return {"applied": uniform(seed, count, 1)[:, 0] < self.p}

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """1 - x where applied and x, rounded to 8 bits, is 128 or more: from 127.5 / 255 on."""
        return tf.where(per_image(parameters["applied"]) & (planes >= 0.5), 1 - planes, planes)


@dataclasses.dataclass(frozen=True)
class Normalize(ImageOp):
    """(x - mean) / std per channel; mean 0 and std 1 leave the image as it is."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """Nothing is random."""
        return {}

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """(x - mean) / std."""
        scale = tf.reshape(tf.constant([1 / s for s in self.std], tf.float32), (1, 1, 3, 1))
        offset = tf.reshape(tf.constant([-m / s for m, s in zip(self.mean, self.std)], tf.float32), (1, 1, 3, 1))
        return planes * scale + offset
