"""`imagefolder:DIR`: one folder a class, as torchvision's ImageFolder."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.errors import DatasetError
from services.evaluation.datasets.base import Sample, load_file
from services.preprocessing import ImageLimits

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class ImageFolder:
    """Image files, at any depth, in one folder a class.

    The samples take one image of each class in turn, so that the first n of them are spread over
    the classes. File names are held in memory, pixels are not.
    """

    def __init__(
        self,
        directory: Path,
        *,
        classes: int,
        class_ids: Sequence[str] | None,
        limits: ImageLimits,
    ) -> None:
        if not directory.is_dir():
            raise DatasetError(f"{directory} is not there or is no folder")
        try:
            folders = sorted(
                path
                for path in directory.iterdir()
                if path.is_dir() and not path.name.startswith(".")
            )
            if not folders:
                raise DatasetError(f"{directory} holds no folders; it takes one for each class")
            names = [folder.name for folder in folders]
            labels, note = _class_indices(directory, names, classes, class_ids)
            self._files = [
                (label, *_image_files(folder))
                for label, folder in zip(labels, folders, strict=True)
            ]
        except OSError as error:
            raise DatasetError(f"{directory} cannot be read: {error}") from error
        self._directory = directory
        self._limits = limits
        left_out = sum(others for _, _, others in self._files)
        self.notes = tuple(
            text
            for text in (
                note,
                left_out and f"{left_out} files whose names do not end as an image's were left out",
            )
            if text
        )

    def samples(self) -> Iterator[Sample]:
        """One image of each class in turn, classes by folder name, images by file name."""
        columns = ([(label, name) for name in names] for label, names, _ in self._files)
        for row in itertools.zip_longest(*columns):
            for label, name in filter(None, row):
                path = self._directory / name
                yield Sample(
                    os.fsencode(name).decode("utf-8", "backslashreplace"),
                    label,
                    functools.partial(load_file, path, self._limits),
                )


def _image_files(folder: Path) -> tuple[list[str], int]:
    """Names from the dataset's folder on, sorted, and how many other files there are."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    images = sorted(
        path.relative_to(folder.parent).as_posix()
        for path in files
        if path.suffix.lower() in SUFFIXES
    )
    return images, len(files) - len(images)


def _class_indices(
    directory: Path, names: list[str], classes: int, class_ids: Sequence[str] | None
) -> tuple[list[int], str]:
    """The class index of each folder, and what a reader should know of how it was found."""
    if class_ids is not None and set(names) <= set(class_ids):
        index = {class_id: number for number, class_id in enumerate(class_ids)}
        return [index[name] for name in names], ""
    if all(name.isascii() and name.isdigit() for name in names):
        labels = [int(name) for name in names]
        if max(labels) >= classes:
            raise DatasetError(
                f"{directory}: the folder {names[labels.index(max(labels))]} is not in "
                f"0 to {classes - 1}, the model's classes"
            )
        return labels, ""
    if len(names) == classes:
        return list(range(classes)), "classes were numbered by the sorted order of the folders"
    raise DatasetError(
        f"{directory}: the class of a folder such as {names[0]!r} cannot be told; name the folders "
        f"by the models' class ids (synsets) or by class index, or have all {classes} of them"
    )
