"""Fashion-MNIST [Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT licence] as arrays."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mkf.errors import InputError

TEST_IMAGES = Path(__file__).parent / "fashion_mnist"  # committed with the project
SYSTEM_IMAGES = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
PREFIXES = {"train": "train", "test": "t10k"}


def load(
    split: Literal["train", "test"], directory: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, 28, 28) and labels (n,) of one split, both uint8.

    The test split comes with the project. The training split is looked for in `directory`, then in
    the folder that the environment variable MKF_FASHION_MNIST names, then where Debian's package
    dataset-fashion-mnist puts it.

    Raises
    ------
    InputError
        The files are not there, or are no IDX files that belong together.
    """
    if split == "test" and directory is None:
        directory = TEST_IMAGES
    if directory is None:
        directory = Path(os.environ.get("MKF_FASHION_MNIST", SYSTEM_IMAGES))
    images = _read_idx(directory / f"{PREFIXES[split]}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(directory / f"{PREFIXES[split]}-labels-idx1-ubyte.gz", dimensions=1)
    if images.shape != (len(labels), 28, 28):
        raise InputError(
            f"{directory}: {images.shape} images do not go with {len(labels)} labels; "
            "put the four files of one Fashion-MNIST release there"
        )
    return images, labels


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: magic 0x0800 + rank, sizes as big-endian uint32, data."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path} is not there; install Debian's package dataset-fashion-mnist, or point "
            "MKF_FASHION_MNIST to a folder with the four gzip'd IDX files"
        ) from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: {error}; fetch the file again") from error
    header = struct.calcsize(f">{1 + dimensions}I")
    if len(data) < header:
        raise InputError(f"{path} ends inside its header; fetch the file again")
    magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
    if magic != 0x0800 + dimensions or len(data) != header + int(np.prod(shape)):
        raise InputError(f"{path} is no IDX file of {dimensions}-d unsigned bytes")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()  # writable
