"""The images as files, and the pixels that the models take, made from those files once for all."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.errors import DatasetError
from services.evaluation.datasets import open_dataset
from services.inference.repository import ServedModel
from services.preprocessing import ImageLimits, decode, preprocess

LIMITS = ImageLimits()


@dataclass(frozen=True)
class Images:
    """The first images of a dataset, then noise."""

    dataset: str
    noise: int  # images of random pixels, the last ones
    names: list[str]
    files: list[bytes]  # PNG, which loses nothing
    pixels: NDArray[np.uint8]  # (n, height, width, 3), as `services.preprocessing` makes them

    def batches(self, size: int) -> Iterator[slice]:
        """All images in their order; only the last batch may be smaller."""
        return (
            slice(start, min(start + size, len(self.names)))
            for start in range(0, len(self.names), size)
        )


def load_images(uri: str, model: ServedModel, *, limit: int, noise: int) -> Images:
    """Read the dataset's first images and write them as PNG.

    Raises
    ------
    DatasetError
        The dataset cannot be read, or a file's pixels are not those of its image.
    """
    dataset = open_dataset(uri, classes=len(model.labels), class_ids=model.manifest.class_ids)
    preprocessing = model.preprocessing
    names, files, pixels = [], [], []
    pictures: Iterator[tuple[str, Image.Image]] = itertools.chain(
        ((sample.id, sample.load()) for sample in itertools.islice(dataset.samples(), limit)),
        _noise(preprocessing.input_size, noise),
    )
    for name, picture in pictures:
        file = _png(picture)
        names.append(name)
        files.append(file)
        pixels.append(preprocess(decode(file, limits=LIMITS), preprocessing))
        if not np.array_equal(pixels[-1], preprocess(picture, preprocessing)):
            raise DatasetError(f"the image {name} has other pixels as a PNG file")
    if not names:
        raise DatasetError(f"{uri} holds no images; name another dataset")
    return Images(uri, noise, names, files, np.stack(pixels))


def _noise(size: tuple[int, int], count: int) -> Iterator[tuple[str, Image.Image]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        yield f"noise/{number:03d}", Image.fromarray(pixels)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
