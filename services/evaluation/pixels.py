"""From samples to batches of pixels: decoded in threads, handed over in order, few at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.errors import DatasetError, ImageError, LimitError
from services.evaluation.datasets import Sample
from services.inference.repository import Preprocessing
from services.preprocessing import preprocess


@dataclass(frozen=True)
class Batch:
    """Samples and their pixels."""

    samples: list[Sample]
    pixels: NDArray[np.uint8]  # (n, height, width, 3), RGB


async def batches(
    samples: Iterator[Sample],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int,
) -> AsyncGenerator[Batch]:
    """Batches in the samples' order; only the last may be smaller.

    At most `threads + 1` batches are in memory beside the one handed out: the next is decoded only
    when the consumer has taken one. Close the generator when leaving it early.

    Raises
    ------
    DatasetError
        A sample cannot be read or decoded; the message names it.
    """
    loop = asyncio.get_running_loop()
    pending: deque[asyncio.Future[Batch]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for chunk in iter(lambda: list(itertools.islice(samples, batch_size)), []):
                pending.append(loop.run_in_executor(pool, _decode, chunk, preprocessing))
                if len(pending) > threads:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for future in pending:
                future.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


def _decode(samples: list[Sample], preprocessing: Preprocessing) -> Batch:
    return Batch(samples, np.stack([_pixels(sample, preprocessing) for sample in samples]))


def _pixels(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    try:
        return preprocess(sample.load(), preprocessing)
    except (ImageError, LimitError, OSError) as error:
        raise DatasetError(
            f"the image {sample.id} cannot be used: {error}; "
            "repair it or take it out of the dataset, no image is left out silently"
        ) from error
