"""`labels:FILE`: a line an image, its path and its class index."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from services.errors import DatasetError
from services.evaluation.datasets.base import Sample, load_file
from services.preprocessing import ImageLimits

LABEL = re.compile(r"[\s,](\d+)$")


class Labels:
    """Paths, relative to the file's folder or absolute, blanks or a comma, a class index.

    Paths may hold blanks and commas. Empty lines and lines that begin with `#` are skipped.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, file: Path, *, classes: int, limits: ImageLimits) -> None:
        self._file = file
        self._classes = classes
        self._limits = limits
        if not file.is_file():
            raise DatasetError(f"{file} is not there or is no file")

    def samples(self) -> Iterator[Sample]:
        """All images in the order of the lines; every error names the file and the line."""
        try:
            with self._file.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    text = line.strip()
                    if text and not text.startswith("#"):
                        yield self._sample(text, f"{self._file}, line {number}")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self._file} cannot be read as UTF-8 text: {error}") from error

    def _sample(self, text: str, place: str) -> Sample:
        # The line itself stays out of the messages: the file may be none that a client may read.
        match = LABEL.search(text)
        name = text[: match.start()].rstrip().removesuffix(",").rstrip() if match else ""
        if match is None or not name:
            raise DatasetError(f"{place}: write a path, blanks or a comma, and a class index")
        label = int(match[1]) if len(match[1]) < 10 else self._classes
        if label >= self._classes:
            raise DatasetError(
                f"{place}: the class index is not in 0 to {self._classes - 1}, the model's classes"
            )
        path = self._file.parent / name
        if not path.is_file():
            raise DatasetError(
                f"{place}: the image is not there; paths start at {self._file.parent}"
            )
        return Sample(name, label, functools.partial(load_file, path, self._limits))
