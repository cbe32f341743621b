"""Where the labeled images of an evaluation come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.errors import DatasetError
from services.evaluation.datasets.base import Dataset, Fingerprint, Sample, Survey, survey
from services.evaluation.datasets.fashion_mnist import FashionMnist
from services.evaluation.datasets.imagefolder import ImageFolder
from services.evaluation.datasets.labels import Labels
from services.preprocessing import ImageLimits

__all__ = ["Dataset", "Fingerprint", "Sample", "Survey", "open_dataset", "survey"]

KNOWN = "fashion-mnist, imagefolder:DIR, labels:FILE"


def open_dataset(
    uri: str,
    *,
    classes: int,
    class_ids: Sequence[str] | None = None,
    limits: ImageLimits | None = None,
) -> Dataset:
    """The dataset of a URI, with labels in the order of a model's logits.

    Reads directories, not pixels; it may block.

    Parameters
    ----------
    classes, class_ids
        How many the model has, and their synset ids in the order of its logits if it knows them.

    Raises
    ------
    DatasetError
        The URI is none that this version knows, or what it names is missing or does not go with
        the model's classes.
    """
    scheme, _, place = uri.partition(":")
    limits = limits or ImageLimits()
    match scheme, place:
        case "fashion-mnist", "":
            return FashionMnist(classes=classes)
        case "imagefolder", place if place:
            return ImageFolder(Path(place), classes=classes, class_ids=class_ids, limits=limits)
        case "labels", place if place:
            return Labels(Path(place), classes=classes, limits=limits)
    raise DatasetError(f"{uri!r} is no dataset of this version; it knows {KNOWN}")
