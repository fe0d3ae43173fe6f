"""Images for the page: small PNGs and JPEGs as data URIs, and one picture of many thumbnails."""

import base64
import io
import math
from collections.abc import Iterable

import numpy as np
from PIL import Image

_LOSSLESS = 48  # pixels of a side up to which PNG is small, and JPEG's blocks would be seen


def uri(image: np.ndarray, side: int = 0) -> str:
    """uint8 HxWx3 as a data URI; with a side, the central square, not larger than that many pixels."""
    picture = Image.fromarray(image)
    if side:
        picture = square(picture, min(side, *picture.size))
    return _encoded(picture, "PNG" if max(picture.size) <= _LOSSLESS else "JPEG", quality=85)


def square(picture: Image.Image, side: int) -> Image.Image:
    """The central square, resized to side x side."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    picture = picture.crop((left, top, left + short, top + short))
    return picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)


def sprite(images: Iterable[np.ndarray], count: int, side: int) -> Image.Image:
    """`count` images as squares of side x side in rows, as many as columns: what TensorBoard's projector expects."""
    columns = math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * side, columns * side))
    for number, image in enumerate(images):
        sheet.paste(square(Image.fromarray(image), side), (number % columns * side, number // columns * side))
    return sheet


def sprite_uri(sheet: Image.Image, limit: int) -> str:
    """The sheet as WebP of at most `limit` bytes, where that is possible."""
    for quality in (80, 60, 40, 20, 5):
        text = _encoded(sheet, "WEBP", quality=quality)
        if len(text) <= limit:
            break
    return text


def _encoded(picture: Image.Image, kind: str, quality: int) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": quality}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
