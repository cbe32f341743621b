"""What a dataset is: samples in a fixed order, whose pixels are read only when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from services.errors import DatasetError, LimitError
from services.preprocessing import ImageLimits, decode


@dataclass(frozen=True)
class Sample:
    """One labeled image."""

    id: str  # the same in every run; a file's path within its dataset
    label: int  # class index, in the order of the model's logits
    load: Callable[[], Image.Image]  # RGB; in any thread; ImageError, LimitError, OSError


class Dataset(Protocol):
    """Labeled images in a fixed order."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know of the labels or of what was left out."""
        ...

    def samples(self) -> Iterator[Sample]:
        """All samples from the first on; each call starts anew.

        Raises
        ------
        DatasetError
            A sample is missing or has no label of the model.
        """
        ...


@dataclass(frozen=True)
class Survey:
    """What a run selects of a dataset."""

    images: int  # selected
    available: int  # in the whole dataset
    fingerprint: str  # sha256 of the selected samples' ids and labels, in order

    @property
    def limited(self) -> bool:
        """Whether images were left out."""
        return self.images < self.available


def survey(dataset: Dataset, *, limit: int = 0) -> Survey:
    """Go through the dataset once, without reading pixels; `limit` 0 selects all images.

    Raises
    ------
    DatasetError
        The dataset is empty, or a sample of it cannot be used.
    """
    digest = Fingerprint()
    available = 0
    for available, sample in enumerate(dataset.samples(), start=1):
        if limit == 0 or available <= limit:
            digest.add(sample)
    if available == 0:
        raise DatasetError("the dataset holds no images")
    return Survey(digest.images, available, digest.hexdigest())


class Fingerprint:
    """Tells one selection of samples from another by their number, ids and labels."""

    def __init__(self) -> None:
        self.images = 0
        self._hash = hashlib.sha256()

    def add(self, sample: Sample) -> None:
        """Take in the next sample."""
        self.images += 1
        self._hash.update(f"{sample.id}\t{sample.label}\n".encode())

    def hexdigest(self) -> str:
        """The fingerprint of all samples taken in so far."""
        return self._hash.hexdigest()


def load_file(path: Path, limits: ImageLimits) -> Image.Image:
    """The decoded image of a file.

    Raises
    ------
    ImageError, LimitError
        As `decode` does.
    OSError
        The file cannot be read.
    """
    if path.stat().st_size > limits.max_image_bytes:  # before a huge file comes into memory
        raise LimitError(f"the file has more than {limits.max_image_bytes} bytes")
    return decode(path.read_bytes(), limits=limits)
