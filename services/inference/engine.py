"""What the services ask of an engine, and how one is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Inference:
    """The answer to one request."""

    logits: NDArray[np.float32]  # (n, classes)
    queue_seconds: float  # from the request's arrival until its batch began
    inference_seconds: float  # of the batch that the request was part of


class Engine(Protocol):
    """Runs the models of one repository; safe to call from many tasks of one event loop."""

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

    async def close(self) -> None:
        """Finish what was accepted, refuse what is new, and free everything."""
        ...
