"""The committed test images, and what is said of files that are none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from mkf.demo import CLASSES, fashion_mnist
from mkf.errors import InputError


def write_idx(path: Path, magic: int, array: np.ndarray, *, shape: tuple[int, ...] | None = None):
    header = struct.pack(f">{1 + array.ndim}I", magic, *(shape or array.shape))
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_the_test_images_come_with_the_project() -> None:
    images, labels = fashion_mnist.load("test")
    assert images.shape == (10_000, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    # The release has 1,000 test images of each class.
    np.testing.assert_array_equal(np.bincount(labels), [1000] * len(CLASSES))


def test_a_missing_training_set_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="install Debian's package dataset-fashion-mnist"):
        fashion_mnist.load("train", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip at all", "fetch the file again"),
        (gzip.compress(b"\0\0\x08"), "ends inside its header"),
        (gzip.compress(b"\0" * 64), "no IDX file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        fashion_mnist.load("train", tmp_path)
    assert str(path) in str(caught.value)


def test_labels_must_go_with_the_images(tmp_path: Path) -> None:
    images = np.zeros((3, 28, 28), np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", 0x0803, images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", 0x0801, np.zeros(2, np.uint8))
    with pytest.raises(InputError, match="do not go with 2 labels"):
        fashion_mnist.load("train", tmp_path)
