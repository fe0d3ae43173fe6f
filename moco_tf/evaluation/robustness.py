"""Test images as a worse camera, line or light would have given them: four kinds, three strengths of each.

Images are changed as the network's test geometry finds them, before it resizes those that are stored in one size.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from moco_tf.training import device

# Standard deviation in percent of the short side; of noise, where the range is 1; quality; share of the light left.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (1, 2, 3),
    "noise": (0.04, 0.08, 0.16),
    "jpeg": (50, 25, 10),
    "dark": (0.7, 0.5, 0.3),
}

Alter = Callable[[np.ndarray, np.ndarray], np.ndarray]  # uint8 BxHxWx3, indices B, to the same images, changed


def alterations() -> dict[str, Alter]:
    """{"blur 1": what does that to a batch of uint8 images ...}; an image's noise is that of its index."""
    return {f"{kind} {strength:g}": _of(kind, strength) for kind, each in STRENGTHS.items() for strength in each}


def alter(image: np.ndarray, kind: str, strength: float, index: int = 0) -> np.ndarray:
    """One image, uint8 HxWx3, with one of STRENGTHS."""
    if kind == "noise":
        noise = np.random.default_rng([3, index]).standard_normal(image.shape, np.float32)
        return np.clip(np.round(image + 255 * strength * noise), 0, 255).astype(np.uint8)
    picture = Image.fromarray(image)
    if kind == "blur":
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(strength / 100 * min(picture.size))))
    if kind == "dark":
        return np.asarray(ImageEnhance.Brightness(picture).enhance(strength))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=round(strength))
    return np.asarray(Image.open(file))


def _of(kind: str, strength: float) -> Alter:
    def change(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(max(1, device.threads())) as pool:
            each = pool.map(lambda image, index: alter(image, kind, strength, int(index)), images, indices)
            return np.stack(list(each))

    return change
