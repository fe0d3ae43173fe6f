"""Random views as PyTorch users make them on the CPU: one image after another with Pillow, see `View`.

Needs Pillow and NumPy alone, and nothing of this package: torch_moco.py, beside this file, loads it in its own process.
"""

import dataclasses
import math
import random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

CROP_TRIES = 10


@dataclasses.dataclass(frozen=True)
class View:
    """One random view of a PIL image: resized crop, mirror, colour jitter, grayscale, Gaussian blur, normalisation.

    The operations, their order where it is fixed, and their draws are torchvision's on PIL images. A probability of 0
    leaves an operation out.
    """

    size: int
    scale: tuple[float, float]
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image -> float32 3xSxS, as torchvision's ToTensor and Normalize leave it."""
        return self.normalised(self.drawn(image))

    def drawn(self, image: Image.Image) -> Image.Image:
        """RGB image -> RGB image of size x size."""
        image = random_resized_crop(image, self.size, self.scale)
        if random.random() < self.jitter_p:
            image = self.jittered(image)
        if random.random() < self.gray_p:
            luma = image.convert("L")
            image = Image.merge("RGB", (luma, luma, luma))
        if random.random() < self.blur_p:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(*self.blur_sigma)))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image

    def jittered(self, image: Image.Image) -> Image.Image:
        """Brightness, contrast, saturation and hue, in a random order."""
        for name in random.sample(range(4), 4):
            strength = self.jitter[name]
            if name == 3:
                image = turned_hue(image, random.uniform(-strength, strength)) if strength else image
                continue
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[name]
            image = enhance(image).enhance(random.uniform(max(0.0, 1 - strength), 1 + strength))
        return image

    def normalised(self, image: Image.Image) -> np.ndarray:
        """uint8 HxWx3 -> float32 3xHxW."""
        planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
        planes *= np.float32(1 / 255)
        planes -= np.array(self.mean, np.float32)[:, None, None]
        planes /= np.array(self.std, np.float32)[:, None, None]
        return planes


def random_resized_crop(image: Image.Image, size: int, scale: tuple[float, float]) -> Image.Image:
    """A random part of the image, of size x size."""
    left, top, width, height = crop_box(image.width, image.height, scale)
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size, size), Image.Resampling.BILINEAR)


def crop_box(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, width, height): the first of ten draws that fits, else the whole image."""
    for _ in range(CROP_TRIES):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def turned_hue(image: Image.Image, shift: float) -> Image.Image:
    """The 8-bit hue turned by `shift` of a circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(shift * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned, "L"), saturation, value)).convert("RGB")
