"""Labeled images for `mkf`: the evaluation service's own datasets and pixels, batch by batch.

What is measured here must be what an evaluation measures, so the datasets, the decoding and the
resizing are the services' (`services.evaluation.datasets`, `services.preprocessing`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mkf.errors import InputError, MissingExtraError
from mkf.repository import Preprocessing

if TYPE_CHECKING:
    from services.evaluation.datasets import Dataset, Sample
    from services.inference.repository import Preprocessing as ServedPreprocessing


@dataclass(frozen=True)
class Images:
    """The images of one dataset in its order, as one network takes them."""

    uri: str
    count: int  # in the whole dataset
    fingerprint: str  # of all samples' ids and labels
    notes: tuple[str, ...]  # what a reader of the results must know of labels or left-out files
    dataset: Dataset
    preprocessing: ServedPreprocessing

    def batches(
        self, *, size: int = 32, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Pixels (n, height, width, 3) RGB and class indices (n,) of the images start..stop - 1.

        Decoded in threads, a few batches ahead; only the last batch may be smaller.

        Raises
        ------
        InputError
            An image or its label cannot be used; the message names it.
        """
        from services.evaluation.environment import usable_cpus

        threads = usable_cpus()
        pending: deque[Future[NDArray[np.uint8]]] = deque()
        labels: deque[NDArray[np.int64]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            for chunk in self._chunks(size, start, stop):
                pending.append(pool.submit(self._decode, chunk))
                labels.append(np.array([sample.label for sample in chunk]))
                if len(pending) > threads:
                    yield pending.popleft().result(), labels.popleft()
            while pending:
                yield pending.popleft().result(), labels.popleft()

    def _chunks(self, size: int, start: int, stop: int | None) -> Iterator[list[Sample]]:
        from services.errors import ServiceError

        samples = itertools.islice(self.dataset.samples(), start, stop)
        try:
            while chunk := list(itertools.islice(samples, size)):
                yield chunk
        except ServiceError as error:
            raise InputError(f"{self.uri}: {error}") from error

    def _decode(self, samples: list[Sample]) -> NDArray[np.uint8]:
        from services.errors import ServiceError
        from services.preprocessing import preprocess

        pixels = []
        for sample in samples:
            try:
                pixels.append(preprocess(sample.load(), self.preprocessing))
            except (ServiceError, OSError) as error:
                raise InputError(
                    f"{self.uri}: the image {sample.id} cannot be used: {error}; "
                    "repair it or take it out of the dataset"
                ) from error
        return np.stack(pixels)


def open_images(
    uri: str,
    *,
    preprocessing: Preprocessing,
    classes: int,
    class_ids: Sequence[str] | None = None,
) -> Images:
    """The images of a dataset URI, such as `mkf-eval --dataset` takes.

    Parameters
    ----------
    preprocessing
        How the network's pixels are made.
    classes, class_ids
        How many classes the network has, and their synset ids if they are known.

    Raises
    ------
    InputError
        The URI is unknown, or what it names is missing or does not go with the classes.
    MissingExtraError
        The extra `serve` is not installed.
    """
    try:
        from services.errors import ServiceError
        from services.evaluation.datasets import open_dataset, survey
        from services.inference.repository import Preprocessing as ServedPreprocessing
    except ImportError as error:
        raise MissingExtraError(
            f"reading datasets needs the services' packages ({error}); "
            "install them with: pip install 'mkf[serve]'"
        ) from error
    try:
        dataset = open_dataset(uri, classes=classes, class_ids=class_ids)
        surveyed = survey(dataset)
    except ServiceError as error:
        raise InputError(f"{uri}: {error}") from error
    served = ServedPreprocessing.model_validate(asdict(preprocessing))
    return Images(uri, surveyed.images, surveyed.fingerprint, dataset.notes, dataset, served)
