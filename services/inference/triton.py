"""NVIDIA Triton servers as an engine, over gRPC.

One client a process, whose channel gRPC balances over all servers in turn (round_robin). What a
server did not answer because it was going down or coming up is sent again: an inference changes
nothing, so it is safe to repeat. Everything else is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay, wait_random_exponential
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from services.errors import (
    DeadlineError,
    LimitError,
    RepositoryError,
    ServiceError,
    UnavailableError,
    one_line,
)
from services.inference.engine import Inference, ServerTimes, check_images
from services.inference.repository import INPUT_NAME, OUTPUT_NAME, ServedModel, find_model
from services.inference.triton_addresses import parse_addresses, resolve
from services.inference.triton_servers import Servers, connect, request_bytes
from services.inference.triton_shared_memory import Regions
from services.runtime import metrics

CONCURRENT_REQUESTS = 64
RETRY_SECONDS = 10.0
READY_SECONDS = 1.0
READY_TRIES = 3  # of servers in turn: one that is going down does not speak for the others
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0  # between attempts, each drawn at random

REPEATED = (
    "StatusCode.UNAVAILABLE",
    # That the model exists was seen: a server that stops has unloaded it, and one that has started
    # again knows no shared memory.
    "StatusCode.NOT_FOUND",
    # By a server that stops; what is canceled on this side ends in asyncio's CancelledError.
    "StatusCode.CANCELLED",
)

# Triton's words for a request that its queue policy turned away; the code is UNAVAILABLE, too.
QUEUE_FULL = "exceeds maximum queue size"
QUEUE_EXPIRED = "request timeout expired"

_log = logging.getLogger(__name__)


class TritonEngine:
    """The `Engine` protocol on Triton servers; made by `TritonEngine.open`."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        client: InferenceServerClient,
        servers: Servers,
        *,
        regions: Regions | None,
        concurrent_requests: int,
        retry_seconds: float,
    ) -> None:
        self.versions: dict[str, str] = {}
        self._models = models
        self._client = client
        self._servers = servers
        self._regions = regions
        self._retry_seconds = retry_seconds
        self._free = asyncio.Semaphore(concurrent_requests)
        self._in_use = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False

    @classmethod
    async def open(
        cls,
        addresses: str,
        models: Mapping[str, ServedModel],
        *,
        concurrent_requests: int = CONCURRENT_REQUESTS,
        retry_seconds: float = RETRY_SECONDS,
        shared_memory: bool = False,
    ) -> TritonEngine:
        """Connect, and see that each server that answers serves the very models.

        Parameters
        ----------
        addresses
            ``HOST:PORT[,HOST:PORT...]``, the servers' gRPC ports.
        models
            As the repository that the servers serve describes them.
        concurrent_requests
            To all servers together; more wait here.
        retry_seconds
            How long a request is sent again while no server answers it; 0: never.
        shared_memory
            Whether pixels go through this machine's shared memory.

        Raises
        ------
        InvalidInputError
            Addresses of another form.
        UnavailableError
            No server answers.
        RepositoryError
            A server serves other models than these, or serves them from its response cache.
        """
        parsed = parse_addresses(addresses)
        target = await resolve(parsed)
        servers = Servers(parsed, target.servers, models)
        regions = Regions(servers.clients, request_bytes(models))
        engine = cls(
            models,
            connect(target.balanced, models),
            servers,
            regions=regions if shared_memory else None,
            concurrent_requests=concurrent_requests,
            retry_seconds=retry_seconds,
        )
        try:
            engine.versions = {"tritonserver": await servers.check()}
            if shared_memory:
                await regions.clear_dead()
        except BaseException:
            await engine.close()
            raise
        return engine

    async def infer(
        self, model: str, images: NDArray[np.uint8], *, timeout_seconds: float
    ) -> Inference:
        """Logits for images (n, height, width, 3); see `Engine.infer`."""
        served = find_model(self._models, model)
        check_images(served, images)
        if self._closing:
            raise UnavailableError(f"the engine is closing; {model} takes no more requests")
        with self._used():
            return await self._infer(served, images, timeout_seconds)

    async def is_ready(self, model: str) -> bool:
        """Whether the servers that are asked in turn would answer now; never raises.

        Not while one of them serves another graph.
        """
        if self._closing or model not in self._models:
            return False
        with self._used():
            try:
                await self._servers.check_doubtful()
            except RepositoryError as error:
                _log.error("%s", error)
                return False
            for _ in range(READY_TRIES):
                with contextlib.suppress(InferenceServerException):
                    if await self._client.is_model_ready(model, client_timeout=READY_SECONDS):
                        return True
        return False

    async def server_times(self) -> dict[str, ServerTimes]:
        """Sums over the servers by model; empty while one of them does not answer.

        Raises
        ------
        RepositoryError
            A server has come back with another graph.
        """
        with self._used():
            return await self._servers.times()

    async def close(self) -> None:
        """Wait for what was accepted, refuse what is new, and disconnect; again does nothing."""
        self._closing = True
        await self._idle.wait()
        try:
            if self._regions:
                await self._regions.close()
        finally:
            await self._client.close()
            await self._servers.close()

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        self._in_use += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_use -= 1
            if not self._in_use:
                self._idle.set()

    async def _infer(
        self, model: ServedModel, images: NDArray[np.uint8], timeout_seconds: float
    ) -> Inference:
        late = DeadlineError(f"no answer from {model.name} within {timeout_seconds:g} seconds")
        arrived = began = time.perf_counter()
        deadline = arrived + timeout_seconds
        attempts = 1
        try:
            async with asyncio.timeout(timeout_seconds), self._free:
                began = time.perf_counter()
                try:
                    result = await self._send(model.name, images, deadline)
                except InferenceServerException as error:
                    if not (self._retry_seconds and _may_be_repeated(error)):
                        raise
                    self._servers.doubt()
                    result, repeats = await self._send_again(model.name, images, deadline)
                    attempts += repeats
        except TimeoutError:
            raise late from None
        except InferenceServerException as error:
            if error.status() == "StatusCode.DEADLINE_EXCEEDED":
                raise late from error
            raise _translated(error, model.name) from error
        ended = time.perf_counter()
        metrics.PHASE_SECONDS.labels(model.name, "queue").observe(began - arrived)
        metrics.PHASE_SECONDS.labels(model.name, "inference").observe(ended - began)
        return Inference(
            logits=_logits(result, model, len(images)),
            queue_seconds=began - arrived,
            inference_seconds=ended - began,
            attempts=attempts,
        )

    async def _send_again(
        self, model: str, images: NDArray[np.uint8], deadline: float
    ) -> tuple[InferResult, int]:
        """The answer, and how many more times the request was sent for it."""
        repeat = AsyncRetrying(
            retry=retry_if_exception(_may_be_repeated),
            wait=wait_random_exponential(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
            stop=stop_before_delay(self._retry_seconds),
            reraise=True,
        )
        await asyncio.sleep(random.uniform(0, FIRST_PAUSE_SECONDS))  # noqa: S311 (no secret)
        result: InferResult = await repeat(self._send, model, images, deadline)
        return result, repeat.statistics["attempt_number"]

    async def _send(self, model: str, images: NDArray[np.uint8], deadline: float) -> InferResult:
        seconds = deadline - time.perf_counter()
        if seconds <= 0:
            raise TimeoutError
        outputs = [InferRequestedOutput(OUTPUT_NAME)]
        if self._regions is None:
            # Its bytes as they are, copied once, out of the caller's array.
            tensor = InferInput(INPUT_NAME, list(images.shape), "UINT8").set_data_from_numpy(images)
            return await self._client.infer(
                model, [tensor], outputs=outputs, client_timeout=seconds
            )
        async with self._regions.lend(images) as tensor:
            return await self._client.infer(
                model, [tensor], outputs=outputs, client_timeout=seconds
            )


def _logits(result: InferResult, model: ServedModel, count: int) -> NDArray[np.float32]:
    expected = (count, len(model.labels))
    wrong = f"{model.name} answered with %s where float32 {expected} belongs"
    logits: NDArray[np.float32] | None
    try:
        logits = result.as_numpy(OUTPUT_NAME)  # a view of the answer's bytes
    except ValueError as error:
        raise ServiceError(wrong % error) from error
    if logits is None or logits.dtype != np.float32 or logits.shape != expected:
        got = "nothing" if logits is None else f"{logits.dtype} {logits.shape}"
        raise ServiceError(wrong % got)
    return logits


def _may_be_repeated(error: BaseException) -> bool:
    """Whether a server was going down or coming up; whether it ran the request is not known."""
    if not isinstance(error, InferenceServerException):
        return False
    if _says(error, QUEUE_FULL) or _says(error, QUEUE_EXPIRED):
        return False
    return error.status() in REPEATED


def _translated(error: InferenceServerException, model: str) -> ServiceError:
    if _says(error, QUEUE_FULL):
        return LimitError(f"too many requests wait for {model} already; try again later")
    if _says(error, QUEUE_EXPIRED):
        return DeadlineError(f"a request waited for {model} longer than its queue policy allows")
    if _may_be_repeated(error):
        return UnavailableError(f"no Triton server answers for {model}: {one_line(error)}")
    _log.error("%s failed on a request: %s", model, one_line(error))
    return ServiceError(f"{model} failed on these images; the log says more")


def _says(error: InferenceServerException, words: str) -> bool:
    return words in str(error.message()).lower()
