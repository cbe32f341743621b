"""`fashion-mnist`: the project's own 10,000 test images [Xiao, Rasul & Vollgraf 2017]."""

from __future__ import annotations

import functools
import gzip
import importlib.resources
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from services.errors import DatasetError
from services.evaluation.datasets.base import Sample

CLASSES = 10
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801  # IDX: unsigned bytes of rank 3 and 1


class FashionMnist:
    """Gray images of 28x28 pixels in two gzip'd IDX files, read as they are asked for."""

    notes: tuple[str, ...] = ()

    def __init__(self, *, classes: int) -> None:
        if classes != CLASSES:
            raise DatasetError(
                f"fashion-mnist has {CLASSES} classes and the models have {classes}; "
                "choose models that were trained on it, or another dataset"
            )
        self._files = importlib.resources.files("mkf") / "demo" / "fashion_mnist"

    def samples(self) -> Iterator[Sample]:
        """All images in the order of the files."""
        try:
            with (
                (self._files / "t10k-images-idx3-ubyte.gz").open("rb") as images_file,
                (self._files / "t10k-labels-idx1-ubyte.gz").open("rb") as labels_file,
                gzip.open(images_file) as images,
                gzip.open(labels_file) as labels,
            ):
                yield from _pairs(images, labels)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(
                f"the Fashion-MNIST files of this installation cannot be read: {error}; "
                "install mkf again"
            ) from error


def _pairs(images: gzip.GzipFile, labels: gzip.GzipFile) -> Iterator[Sample]:
    images_magic, count, height, width = struct.unpack(">4I", _read(images, 16))
    labels_magic, labels_count = struct.unpack(">2I", _read(labels, 8))
    if (images_magic, labels_magic, labels_count) != (IMAGES_MAGIC, LABELS_MAGIC, count):
        raise EOFError("the images do not go with the labels")
    for index in range(count):
        pixels = _read(images, height * width)
        load = functools.partial(_image, pixels, (width, height))
        yield Sample(f"t10k/{index:05d}", _read(labels, 1)[0], load)


def _image(pixels: bytes, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("L", size, pixels).convert("RGB")


def _read(file: gzip.GzipFile, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("a file ends too early")
    return data
