"""What the services ask of an engine, and how one is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.errors import InvalidInputError
from services.inference.repository import ServedModel


@dataclass(frozen=True)
class Inference:
    """The answer to one request."""

    logits: NDArray[np.float32]  # (n, classes)
    queue_seconds: float  # until its batch began; with servers, until it was sent
    inference_seconds: float  # of its batch; with servers, until the answer had come
    attempts: int = 1  # how often the request was sent


@dataclass(frozen=True)
class ServerTimes:
    """What servers say of the time that one model took, sums since they started."""

    requests: int  # answered, whoever asked
    queue_seconds: float
    inference_seconds: float  # of the requests' batches: input, computation and output


class Engine(Protocol):
    """Runs the models of one repository; safe to call from many tasks of one event loop."""

    versions: dict[str, str]  # of what computes the logits, by name

    async def infer(
        self, model: str, images: NDArray[np.uint8], *, timeout_seconds: float
    ) -> Inference:
        """Logits for images (n, height, width, 3), RGB, resized and cropped.

        Raises
        ------
        NotFoundError
            No such model.
        InvalidInputError
            The images do not have the model's shape or dtype, or are more than its largest batch.
        LimitError
            The model's queue is full.
        UnavailableError
            The engine is down or closing.
        DeadlineError
            No answer within `timeout_seconds`.
        """
        ...

    async def is_ready(self, model: str) -> bool:
        """Whether the model would answer now; never raises."""
        ...

    async def server_times(self) -> dict[str, ServerTimes]:
        """By model, of engines whose `infer` does not know them; else, or unknown now, empty."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, refuse what is new, and free everything."""
        ...


def check_images(model: ServedModel, images: NDArray[np.uint8]) -> None:
    """See that a request is one that the model takes.

    Raises
    ------
    InvalidInputError
        Wrong dtype, wrong shape, none, or more than the largest batch.
    """
    shape, largest = (*model.preprocessing.input_size, 3), model.config.max_batch_size
    expected = f"{model.name} takes uint8 (n, {', '.join(map(str, shape))})"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise InvalidInputError(f"{expected}, not {images.dtype} {images.shape}")
    if not 1 <= len(images) <= largest:
        raise InvalidInputError(f"{expected} with n from 1 to {largest}: {len(images)}")
