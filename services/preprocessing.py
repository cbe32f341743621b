"""Image bytes -> the pixels that a model takes, as timm's evaluation transform makes them.

Pixels equal those of `timm.data.create_transform(..., is_training=False, normalize=False)`, bit by
bit (timm 1.0.31, torchvision 0.28): Pillow resizes there as it does here, and the sizes and offsets
below follow the same arithmetic. Scaling to [0, 1], mean and standard deviation are in the graph.

As in timm's dataset, an image is taken as it is stored: a rotation in a JPEG's EXIF data is not
applied, transparency is dropped, and of an animation the first frame counts.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from services.errors import ImageError, LimitError, one_line
from services.inference.repository import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow itself opens no larger image

_MAX_RESIZED_PIXELS = 100_000_000  # what a strip of 1 x 60,000 pixels would grow to is refused
_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_filters_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image file may cost at most."""

    max_image_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 100_000_000  # width x height, as the file's header states them


def decode(data: bytes, *, limits: ImageLimits) -> Image.Image:
    """Decode an image file into RGB, as `Image.open(...).convert("RGB")` does.

    Parameters
    ----------
    data
        The bytes of a JPEG, PNG, WebP, GIF, TIFF or BMP file.
    limits
        Checked before anything is decoded: the pixels are those of the header.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, 8 bits a channel.

    Raises
    ------
    ImageError
        Empty, damaged or truncated bytes, another format, or pixels that 8 bits cannot hold (gray
        of 16 or 32 bits, which `convert("RGB")` would clip to white).
    LimitError
        More bytes or pixels than the limits allow.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    if len(data) > limits.max_image_bytes:
        raise LimitError(
            f"the image has {len(data)} bytes, more than the limit of {limits.max_image_bytes}"
        )
    _silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_image_pixels:
                raise LimitError(
                    f"the image has {width} x {height} pixels, more than the limit of "
                    f"{limits.max_image_pixels}"
                )
            if image.mode[0] in "IF":
                raise ImageError(
                    f"the image has pixels of mode {image.mode!r}; convert it to 8 bits a channel"
                )
            return image.convert("RGB")
    except (ImageError, LimitError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            "the bytes are no JPEG, PNG, WebP, GIF, TIFF or BMP image that can be read"
        ) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise LimitError(f"the image is too large: {error}") from error
    except Exception as error:  # on hostile bytes Pillow's decoders raise whatever they stumble on
        raise ImageError(f"the image is damaged: {one_line(error, limit=200)}") from error


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop one image as `preprocessing` says.

    Parameters
    ----------
    image
        Mode RGB, of any size.
    preprocessing
        - ``center``: the shorter edge becomes crop size / crop fraction, the middle is cut out;
        - ``squash``: both edges do, without regard to the aspect ratio;
        - ``border``: the longer edge does, and the rest is filled with the mean color.

    Returns
    -------
    NDArray[np.uint8]
        (height, width, 3) of `preprocessing.input_size`, RGB.

    Raises
    ------
    ImageError
        An image too narrow to have a pixel left at the model's size.
    LimitError
        An image so narrow that it would grow to more than 100 megapixels before the crop.
    """
    crop = preprocessing.input_size
    scaled = _scaled_size((image.height, image.width), preprocessing)
    if min(scaled) < 1:
        raise ImageError(f"the image is too narrow: {image.width} x {image.height} pixels")
    if scaled[0] * scaled[1] > _MAX_RESIZED_PIXELS:
        raise LimitError(
            f"the image is too narrow: {image.width} x {image.height} pixels would become "
            f"{scaled[1]} x {scaled[0]} before the crop"
        )
    resized = image.resize(
        (scaled[1], scaled[0]), _INTERPOLATIONS[preprocessing.interpolation], reducing_gap=None
    )
    fill = (0, 0, 0)
    if preprocessing.crop_mode == "border":
        red, green, blue = (round(255 * value) for value in preprocessing.mean)
        fill = (red, green, blue)
    return np.array(_center_crop(resized, crop, fill=fill))  # (H, W, 3)


def _scaled_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width before the crop.

    timm takes two roads to the shorter edge: torchvision's, which rounds the longer edge down,
    where both targets are equal, and its own, which rounds to the nearest, where they differ.
    """
    height, width = size
    crop_height, crop_width = preprocessing.input_size
    target_height = math.floor(crop_height / preprocessing.crop_fraction)
    target_width = math.floor(crop_width / preprocessing.crop_fraction)
    if preprocessing.crop_mode == "squash":
        return target_height, target_width
    ratios = (height / target_height, width / target_width)
    if preprocessing.crop_mode == "border":
        return round(height / max(ratios)), round(width / max(ratios))
    if target_height != target_width:
        return round(height / min(ratios)), round(width / min(ratios))
    if width <= height:
        return int(target_width * height / width), target_width
    return target_height, int(target_height * width / height)


def _center_crop(
    image: Image.Image, crop: tuple[int, int], *, fill: tuple[int, int, int]
) -> Image.Image:
    """The middle (height, width) of an image; edges that are too short are padded with `fill`."""
    height, width = crop
    missing_height = max(height - image.height, 0)
    missing_width = max(width - image.width, 0)
    if missing_height or missing_width:
        left, top = missing_width // 2, missing_height // 2
        border = (left, top, missing_width - left, missing_height - top)
        image = ImageOps.expand(image, border=border, fill=fill)
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _silence_pillow() -> None:
    """Let Pillow's warnings about odd files end here: what matters is raised as an error.

    `warnings.catch_warnings` is not safe where several threads decode at once, so one filter for
    Pillow's own modules is put in front and left there.
    """
    with _filters_lock:
        if not any(
            action == "ignore" and getattr(module, "pattern", None) == r"PIL\."
            for action, _, _, module, _ in warnings.filters
        ):
            warnings.filterwarnings("ignore", module=r"PIL\.")
