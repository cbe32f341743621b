"""The images of the protocol: Fashion-MNIST from the demo, CIFAR-10 from an archive."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.protocol.records import DatasetName
from mkf.demo import MEAN, STD
from mkf.demo.build import load_images
from mkf.errors import InputError
from mkf.training.loop import Images

SIDE = 32  # pixels, of every image
CLASSES = 10

_MEMBER = re.compile(r"(?:\./)?(?:[^/]+/)?(train|test)/([^/]+)/[^/]+\.(?:jpe?g|png)", re.IGNORECASE)
_MAX_IMAGE_BYTES = 64 * 1024
_MAX_ARCHIVE_BYTES = 1024**3  # unpacked
_MAX_IMAGES = 100_000


@dataclass(frozen=True)
class Dataset:
    """Training and test images, and what of the recipe depends on them."""

    training: Images
    test: Images
    mean: float  # of the training pixels scaled to [0, 1], all channels together
    std: float
    crop_padding: int  # pixels


def load_dataset(name: DatasetName, *, cifar10: Path | None, cache: Path) -> Dataset:
    """One dataset, 32x32: gray (n, 32, 32), color (n, 32, 32, 3), uint8.

    Raises
    ------
    InputError
        The images are not at hand, or the archive holds something else.
    """
    if name is DatasetName.FASHION_MNIST:
        return Dataset(load_images("train"), load_images("test"), MEAN, STD, crop_padding=1)
    if cifar10 is None:
        raise InputError("CIFAR-10 is read from its archive: give --cifar10 FILE.tar.gz")
    training, test = _load_cifar10(cifar10, cache / "cifar10.npz")
    return Dataset(training, test, mean=0.4733, std=0.2504, crop_padding=2)


def _load_cifar10(archive: Path, cache: Path) -> tuple[Images, Images]:
    """The decoded archive; kept in `cache` with the hash of the archive it was made of."""
    try:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{archive}: {error.strerror or error}; give CIFAR-10's archive") from None
    if cache.exists():
        with np.load(cache) as kept:
            if str(kept["archive"]) == digest:
                return (
                    Images(kept["train_pixels"], kept["train_labels"]),
                    Images(kept["test_pixels"], kept["test_labels"]),
                )
    splits = read_class_folders(archive)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        cache,
        archive=np.array(digest),
        train_pixels=splits["train"].pixels,
        train_labels=splits["train"].labels,
        test_pixels=splits["test"].pixels,
        test_labels=splits["test"].labels,
    )
    return splits["train"], splits["test"]


def read_class_folders(archive: Path) -> dict[str, Images]:
    """`train` and `test` of a gzip'd tar of 32x32 JPEG or PNG files, `<split>/<class>/<name>`.

    Nothing is unpacked to the disk. Classes are numbered in the order of their names, images are
    ordered by their paths, whatever the archive's order. Files of other names are passed over.

    Raises
    ------
    InputError
        The file is no such archive, or is larger than CIFAR-10 can be.
    """
    found: dict[str, list[tuple[str, str, NDArray[np.uint8]]]] = {"train": [], "test": []}
    total_bytes = images = 0
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                total_bytes += member.size
                if total_bytes > _MAX_ARCHIVE_BYTES or images > _MAX_IMAGES:
                    raise InputError(f"{archive} is larger than CIFAR-10 can be; give its archive")
                match = _MEMBER.fullmatch(member.name)
                if not match or not member.isreg():
                    continue
                file = members.extractfile(member)
                if file is None or member.size > _MAX_IMAGE_BYTES:
                    raise InputError(f"{archive}: {member.name} is too large for a 32x32 image")
                pixels = _decode(file.read(), f"{archive}: {member.name}")
                found[match[1].lower()].append((match[2], member.name, pixels))
                images += 1
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{archive}: {error}; give CIFAR-10 as a .tar.gz of images") from error
    classes = sorted({entry[0] for entry in found["train"]})
    if len(classes) != CLASSES or classes != sorted({entry[0] for entry in found["test"]}):
        raise InputError(
            f"{archive} has {len(classes)} classes in train/; "
            f"give {CLASSES} folders of images in train/ and the same in test/"
        )
    return {split: _stack(entries, classes) for split, entries in found.items()}


def _decode(data: bytes, place: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.size != (SIDE, SIDE):  # known from the header, before anything is decoded
                raise InputError(f"{place} is {image.size[0]}x{image.size[1]}, not {SIDE}x{SIDE}")
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{place}: {error}; fetch the archive again") from error


def _stack(entries: list[tuple[str, str, NDArray[np.uint8]]], classes: list[str]) -> Images:
    entries = sorted(entries, key=lambda entry: entry[:2])
    return Images(
        np.stack([pixels for _, _, pixels in entries]),
        np.array([classes.index(name) for name, _, _ in entries], dtype=np.uint8),
    )
