"""ONNX Runtime in this process, batching as each model's config.pbtxt says.

Honored, with Triton's meaning: max_batch_size; dynamic_batching with max_queue_delay_microseconds,
preferred_batch_size and default_queue_policy.max_queue_size (without dynamic_batching every request
is a batch of its own); instance_group's count (batches that run at once, on one shared session) and
KIND_CPU; model_warmup; the parameters intra_op_thread_count and inter_op_thread_count.

The event loop rounds the queue delay up to whole milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelWarmup

from services.errors import (
    DeadlineError,
    LimitError,
    NotFoundError,
    RepositoryError,
    ServiceError,
    UnavailableError,
    one_line,
)
from services.inference.engine import Inference, ServerTimes, check_images
from services.inference.repository import INPUT_NAME, OUTPUT_NAME, ServedModel
from services.runtime import metrics

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"

_log = logging.getLogger(__name__)


class EmbeddedEngine:
    """The `Engine` protocol on ONNX Runtime; made by `EmbeddedEngine.open`."""

    def __init__(self, batchers: dict[str, _Batcher]) -> None:
        self._batchers = batchers
        self.versions = {"onnxruntime": ort.__version__}

    @classmethod
    async def open(cls, models: dict[str, ServedModel]) -> EmbeddedEngine:
        """Load and warm up all models, in a thread; they are ready once this returns.

        Raises
        ------
        RepositoryError
            A graph cannot be run, or does not take and give what Contract 1 says.
        """
        sessions = {
            name: await asyncio.to_thread(_open_session, model) for name, model in models.items()
        }
        return cls({name: _Batcher(models[name], sessions[name]) for name in models})

    async def infer(
        self, model: str, images: NDArray[np.uint8], *, timeout_seconds: float
    ) -> Inference:
        """Logits for images (n, height, width, 3); see `Engine.infer`."""
        try:
            batcher = self._batchers[model]
        except KeyError:
            raise NotFoundError(
                f"no model {model!r}; served are {', '.join(self._batchers)}"
            ) from None
        return await batcher.infer(images, timeout_seconds=timeout_seconds)

    async def is_ready(self, model: str) -> bool:
        """Whether the model would answer now; never raises."""
        return model in self._batchers and self._batchers[model].is_ready()

    async def server_times(self) -> dict[str, ServerTimes]:
        """Empty: each `Inference` says its own."""
        return {}

    async def close(self) -> None:
        """Finish what was accepted and refuse what is new; a second call does nothing."""
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))


@dataclass(eq=False)
class _Request:
    images: NDArray[np.uint8]  # (n, H, W, 3)
    answer: asyncio.Future[Inference]
    arrived: float = field(default_factory=time.perf_counter)


class _Batcher:
    """One model: its queue, and workers that take batches from it. Lives in one event loop."""

    def __init__(self, model: ServedModel, session: ort.InferenceSession) -> None:
        config = model.config
        self._model = model
        self._name = model.name
        self._session = session
        self._largest = config.max_batch_size
        self._batching = config.HasField("dynamic_batching")
        batching = config.dynamic_batching
        self._delay_seconds = batching.max_queue_delay_microseconds / 1e6
        self._preferred = frozenset(batching.preferred_batch_size)
        self._queue_limit = batching.default_queue_policy.max_queue_size  # 0: none
        instances = sum(max(group.count, 1) for group in config.instance_group) or 1

        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._forming = asyncio.Lock()  # one worker at a time puts a batch together
        self._closing = False
        self._threads = ThreadPoolExecutor(instances, thread_name_prefix=f"infer-{model.name}")
        self._workers = [asyncio.create_task(self._work()) for _ in range(instances)]

    async def infer(self, images: NDArray[np.uint8], *, timeout_seconds: float) -> Inference:
        check_images(self._model, images)
        if self._closing:
            raise UnavailableError(f"the engine is closing; {self._name} takes no more requests")
        if self._queue_limit and len(self._waiting) >= self._queue_limit:
            raise LimitError(
                f"{self._queue_limit} requests wait for {self._name} already; try again later"
            )
        request = _Request(images, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._arrived.set()
        self._show_queue()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await request.answer
        except TimeoutError:
            raise DeadlineError(
                f"no answer from {self._name} within {timeout_seconds:g} seconds"
            ) from None
        finally:
            # Expired or cancelled while it waited: no batch shall carry it.
            with contextlib.suppress(ValueError):
                self._waiting.remove(request)
                self._show_queue()

    def is_ready(self) -> bool:
        return not self._closing and not any(worker.done() for worker in self._workers)

    async def close(self) -> None:
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._workers)
        self._threads.shutdown()

    async def _work(self) -> None:
        while True:
            async with self._forming:
                batch = await self._next_batch()
            if not batch:
                return
            await self._run(batch)

    async def _next_batch(self) -> list[_Request]:
        """Wait for a batch and take it from the queue; none when closing and all are taken."""
        while True:
            self._arrived.clear()
            if not self._waiting:
                if self._closing:
                    return []
                await self._arrived.wait()
                continue
            count, complete = self._fitting()
            patience = self._waiting[0].arrived + self._delay_seconds - time.perf_counter()
            if complete or patience <= 0 or self._closing:
                batch = [self._waiting.popleft() for _ in range(count)]
                self._show_queue()
                return batch
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._arrived.wait()

    def _fitting(self) -> tuple[int, bool]:
        """How many waiting requests make the next batch, and whether to wait for no more.

        Requests stay whole and in order. A preferred size is taken as soon as it can be made, the
        largest of them first.
        """
        if not self._batching:
            return 1, True
        images = 0
        preferred = 0
        for count, request in enumerate(self._waiting):
            if images + len(request.images) > self._largest:
                return preferred or count, True
            images += len(request.images)
            if images in self._preferred:
                preferred = count + 1
        return preferred or len(self._waiting), bool(preferred) or images == self._largest

    async def _run(self, batch: list[_Request]) -> None:
        loop = asyncio.get_running_loop()
        try:
            logits, began, seconds = await loop.run_in_executor(
                self._threads, self._infer_batch, [request.images for request in batch]
            )
        except Exception:  # whatever the runtime raises is this batch's failure, not the worker's
            _log.exception("%s failed on a batch", self._name)
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(
                        ServiceError(f"{self._name} failed on these images; the log says more")
                    )
            return
        metrics.BATCH_IMAGES.labels(self._name).observe(len(logits))
        start = 0
        for request in batch:
            stop = start + len(request.images)
            queued = max(began - request.arrived, 0.0)
            metrics.PHASE_SECONDS.labels(self._name, "queue").observe(queued)
            metrics.PHASE_SECONDS.labels(self._name, "inference").observe(seconds)
            if not request.answer.done():  # cancelled or expired while the batch ran
                request.answer.set_result(Inference(logits[start:stop], queued, seconds))
            start = stop

    def _infer_batch(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], float, float]:
        """Logits (n, classes), when the batch began, and how long it took. Runs in a thread."""
        began = time.perf_counter()
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        (logits,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: batch})
        return logits, began, time.perf_counter() - began

    def _show_queue(self) -> None:
        metrics.QUEUE_REQUESTS.labels(self._name).set(len(self._waiting))


def _open_session(model: ServedModel) -> ort.InferenceSession:
    config = model.config
    if config.max_batch_size < 1:
        raise RepositoryError(f"{model.name}: max_batch_size must be at least 1 in config.pbtxt")
    options = ort.SessionOptions()
    options.intra_op_num_threads = _thread_count(config, "intra_op_thread_count")
    options.inter_op_num_threads = _thread_count(config, "inter_op_thread_count")
    started = time.perf_counter()
    try:
        # Where CUDA is offered but does not start, ONNX Runtime prints that and takes the CPU;
        # standard output belongs to the commands' own answers.
        with contextlib.redirect_stdout(sys.stderr):
            session = ort.InferenceSession(model.graph, options, providers=_providers(config))
        session.disable_fallback()  # from now on a failure is an error, not another provider
        _warm_up(model, session)
    except RepositoryError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no root of their own
        raise RepositoryError(f"{model.graph} cannot be run: {one_line(error)}") from error
    _log.info(
        "%s is ready after %.1f s on %s",
        model.name,
        time.perf_counter() - started,
        ", ".join(session.get_providers()),
    )
    return session


def _thread_count(config: ModelConfig, name: str) -> int:
    """A parameter of config.pbtxt; 0, also where it is missing, is the runtime's own choice."""
    text = config.parameters[name].string_value if name in config.parameters else "0"
    if not text.isdecimal():
        raise RepositoryError(f"{config.name}: {name} is {text!r} in config.pbtxt, not a number")
    return int(text)


def _providers(config: ModelConfig) -> list[str]:
    on_cpu = any(group.kind == ModelInstanceGroup.KIND_CPU for group in config.instance_group)
    if on_cpu or _CUDA not in ort.get_available_providers():
        return [_CPU]
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN where pip installed them
        ort.preload_dlls()
    return [_CUDA, _CPU]


def _warm_up(model: ServedModel, session: ort.InferenceSession) -> None:
    """Run what model_warmup says, or one image, and see that logits come of it."""
    for warm_up in model.config.model_warmup or [ModelWarmup(batch_size=1)]:
        shape = (max(warm_up.batch_size, 1), *model.preprocessing.input_size, 3)
        if any(entry.random_data for entry in warm_up.inputs.values()):
            images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        else:
            images = np.zeros(shape, dtype=np.uint8)
        for _ in range(max(warm_up.count, 1)):
            (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        expected = (shape[0], len(model.labels))
        if logits.dtype != np.float32 or logits.shape != expected:
            raise RepositoryError(
                f"{model.graph} gives {logits.dtype} {logits.shape} where float32 {expected} "
                "belongs; export the model again"
            )
