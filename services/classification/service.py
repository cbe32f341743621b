"""ClassificationService: image bytes in, the best classes and where the time went out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from mkf.v1 import classification_pb2 as pb
from mkf.v1 import classification_pb2_grpc
from services.errors import DeadlineError, InvalidInputError, LimitError, ServiceError
from services.inference.engine import Engine
from services.inference.repository import BASELINE, Preprocessing, ServedModel, find_model
from services.preprocessing import ImageLimits, decode, preprocess
from services.runtime import metrics
from services.runtime.settings import Settings

NAME = pb.DESCRIPTOR.services_by_name["ClassificationService"].full_name
DEFAULT_TOP_K = 5


class ClassificationServicer(classification_pb2_grpc.ClassificationServiceServicer):
    """Answers `Classify` and `ClassifyBatch`; errors leave it as `ServiceError`.

    Parameters
    ----------
    engine
        Runs the models; stays the caller's to close.
    models
        The engine's models by name.
    settings
        Limits, the longest time a request may take, and the number of decoding threads.
    """

    def __init__(self, engine: Engine, models: dict[str, ServedModel], settings: Settings) -> None:
        self._engine = engine
        self._models = models
        self._settings = settings
        self._threads = ThreadPoolExecutor(
            settings.decode_threads or os.cpu_count(), thread_name_prefix="decode"
        )

    async def close(self) -> None:
        """Free the threads; call it once the server has stopped."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def Classify(  # noqa: N802 (as the API names it)
        self, request: pb.ClassifyRequest, context: Any
    ) -> pb.ClassifyResponse:
        """The best classes of one image."""
        work = self._begin(request.model, request.top_k, context)
        async with work.deadline():
            pixels = await self._decode(request.image, work)
            work.decoded()
            logits = await self._infer(pixels[np.newaxis], work)
        return pb.ClassifyResponse(
            model=work.model.name,
            predictions=_predictions(logits[0], work.model, work.top_k),
            timings=work.finish(),
        )

    async def ClassifyBatch(  # noqa: N802 (as the API names it)
        self, request: pb.ClassifyBatchRequest, context: Any
    ) -> pb.ClassifyBatchResponse:
        """The best classes of several images; one that cannot be used fails alone."""
        work = self._begin(request.model, request.top_k, context)
        if not request.images:
            raise InvalidInputError("the batch has no images")
        if len(request.images) > self._settings.max_batch_images:
            raise LimitError(
                f"the batch has {len(request.images)} images, more than the limit of "
                f"{self._settings.max_batch_images}; split it"
            )
        async with work.deadline():
            decoded = await asyncio.gather(
                *(self._decode_or_error(image, work) for image in request.images)
            )
            work.decoded()
            usable = [pixels for pixels in decoded if not isinstance(pixels, ServiceError)]
            logits = iter(await self._infer_all(usable, work))
        results = [
            _failure(pixels)
            if isinstance(pixels, ServiceError)
            else pb.ImageResult(predictions=_predictions(next(logits), work.model, work.top_k))
            for pixels in decoded
        ]
        return pb.ClassifyBatchResponse(
            model=work.model.name, results=results, timings=work.finish()
        )

    def _begin(self, name: str, top_k: int, context: Any) -> _Work:
        model = find_model(self._models, name or BASELINE)
        if top_k > len(model.labels):
            raise InvalidInputError(
                f"top_k is {top_k}, but {model.name} has {len(model.labels)} classes"
            )
        seconds = self._settings.request_timeout_seconds
        remaining = context.time_remaining()  # None: the client set no deadline
        return _Work(
            model=model,
            top_k=top_k or min(DEFAULT_TOP_K, len(model.labels)),
            timeout_seconds=seconds if remaining is None else min(seconds, remaining),
        )

    async def _decode(self, data: bytes, work: _Work) -> NDArray[np.uint8]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, _pixels, data, self._settings.image_limits, work.model.preprocessing
        )

    async def _decode_or_error(self, data: bytes, work: _Work) -> NDArray[np.uint8] | ServiceError:
        try:
            return await self._decode(data, work)
        except (InvalidInputError, LimitError) as error:
            return error

    async def _infer_all(
        self, pixels: Sequence[NDArray[np.uint8]], work: _Work
    ) -> list[NDArray[np.float32]]:
        """Logits of each image, asked for in batches that the model takes, one after the other."""
        largest = work.model.config.max_batch_size
        logits: list[NDArray[np.float32]] = []
        for start in range(0, len(pixels), largest):
            logits.extend(await self._infer(np.stack(pixels[start : start + largest]), work))
        return logits

    async def _infer(self, images: NDArray[np.uint8], work: _Work) -> NDArray[np.float32]:
        inference = await self._engine.infer(
            work.model.name, images, timeout_seconds=work.remaining_seconds()
        )
        work.queue_seconds += inference.queue_seconds
        work.inference_seconds += inference.inference_seconds
        return inference.logits


@dataclass
class _Work:
    """One request under way: what it asks for, when it must be done, where its time went."""

    model: ServedModel
    top_k: int
    timeout_seconds: float
    queue_seconds: float = 0.0  # sums over the batches that the request needed
    inference_seconds: float = 0.0
    decode_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def remaining_seconds(self) -> float:
        return max(self.timeout_seconds - (time.perf_counter() - self.started), 0.0)

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                yield
        except TimeoutError:
            raise DeadlineError(f"no answer within {self.timeout_seconds:g} seconds") from None

    def decoded(self) -> None:
        self.decode_seconds = time.perf_counter() - self.started
        metrics.PHASE_SECONDS.labels(self.model.name, "decode").observe(self.decode_seconds)

    def finish(self) -> pb.Timings:
        total_seconds = time.perf_counter() - self.started
        metrics.PHASE_SECONDS.labels(self.model.name, "total").observe(total_seconds)
        return pb.Timings(
            decode_seconds=self.decode_seconds,
            queue_seconds=self.queue_seconds,
            inference_seconds=self.inference_seconds,
            total_seconds=total_seconds,
        )


def _pixels(data: bytes, limits: ImageLimits, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image file as the model takes it, (H, W, 3). Runs in a thread."""
    return preprocess(decode(data, limits=limits), preprocessing)


def _predictions(
    logits: NDArray[np.float32], model: ServedModel, top_k: int
) -> list[pb.Prediction]:
    """The best classes of one image, best first; of equal ones the first in the labels' order."""
    probabilities = softmax(logits.astype(np.float64))  # (classes,)
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return [
        pb.Prediction(
            class_index=index, label=model.labels[index], probability=probabilities[index]
        )
        for index in best.tolist()
    ]


def _failure(error: ServiceError) -> pb.ImageResult:
    code, _ = error.status.value
    return pb.ImageResult(error=pb.ImageError(code=code, message=str(error)))
