"""NVIDIA Triton servers as an engine, over gRPC.

One client a process, whose channel gRPC balances over all servers in turn (round_robin). What a
server did not answer because it was going down or coming up is sent again: an inference changes
nothing, so it is safe to repeat. Everything else is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay, wait_random_exponential
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import ModelConfig
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
from services.inference.triton_addresses import Address, parse_addresses, resolve
from services.inference.triton_shared_memory import Regions
from services.runtime import metrics

CONCURRENT_REQUESTS = 64
RETRY_SECONDS = 10.0
CONTROL_SECONDS = 5.0  # for questions about a server, which it answers at once
READY_SECONDS = 1.0
READY_TRIES = 3  # of servers in turn: one that is going down does not speak for the others
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0  # between attempts, each drawn at random
MESSAGE_OVERHEAD_BYTES = 64 * 1024  # names, shapes and framing beside the tensors

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
        addresses: tuple[Address, ...],
        models: Mapping[str, ServedModel],
        client: InferenceServerClient,
        servers: Mapping[str, InferenceServerClient],
        *,
        regions: Regions | None,
        concurrent_requests: int,
        retry_seconds: float,
    ) -> None:
        self.versions: dict[str, str] = {}
        self._addresses = addresses
        self._models = models
        self._client = client
        self._servers = dict(servers)
        self._regions = regions
        self._retry_seconds = retry_seconds
        self._free = asyncio.Semaphore(concurrent_requests)
        self._in_flight = 0
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
            How long a request is sent again while no server answers it.
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
        servers = {server: _client(server, models) for server in target.servers}
        regions = Regions(servers.values(), _request_bytes(models.values()))
        engine = cls(
            parsed,
            models,
            _client(target.balanced, models),
            servers,
            regions=regions if shared_memory else None,
            concurrent_requests=concurrent_requests,
            retry_seconds=retry_seconds,
        )
        try:
            await engine._check_servers()
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
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._infer(served, images, timeout_seconds)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def is_ready(self, model: str) -> bool:
        """Whether the servers that are asked in turn would answer now; never raises."""
        if self._closing or model not in self._models:
            return False
        for _ in range(READY_TRIES):
            with contextlib.suppress(InferenceServerException):
                if await self._client.is_model_ready(model, client_timeout=READY_SECONDS):
                    return True
        return False

    async def server_times(self) -> dict[str, ServerTimes]:
        """Sums over the servers by model; empty while one of them does not answer."""
        try:
            answers = await asyncio.gather(
                *(
                    client.get_inference_statistics(client_timeout=CONTROL_SECONDS)
                    for client in self._servers.values()
                )
            )
        except InferenceServerException:
            await self._look_up_servers()
            return {}
        return {
            name: _sum_times(
                [stats for answer in answers for stats in answer.model_stats if stats.name == name]
            )
            for name in self._models
        }

    async def close(self) -> None:
        """Wait for what was accepted, refuse what is new, and disconnect; again does nothing."""
        self._closing = True
        await self._idle.wait()
        if self._regions:
            await self._regions.close()
        for client in (self._client, *self._servers.values()):
            await client.close()

    async def _infer(
        self, model: ServedModel, images: NDArray[np.uint8], timeout_seconds: float
    ) -> Inference:
        late = DeadlineError(f"no answer from {model.name} within {timeout_seconds:g} seconds")
        began = time.perf_counter()
        deadline = began + timeout_seconds
        attempts = 1
        try:
            async with asyncio.timeout(timeout_seconds), self._free:
                began = time.perf_counter()
                try:
                    result = await self._send(model.name, images, deadline)
                except InferenceServerException as error:
                    if not _may_be_repeated(error):
                        raise
                    result, repeats = await self._send_again(model.name, images, deadline)
                    attempts += repeats
        except TimeoutError:
            raise late from None
        except InferenceServerException as error:
            if error.status() == "StatusCode.DEADLINE_EXCEEDED":
                raise late from error
            raise _translated(error, model.name) from error
        seconds = time.perf_counter() - began
        metrics.PHASE_SECONDS.labels(model.name, "inference").observe(seconds)
        return Inference(
            logits=_logits(result, model, len(images)),
            queue_seconds=0.0,
            inference_seconds=seconds,
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

    async def _look_up_servers(self) -> None:
        """A name may stand for other servers now; gRPC has seen that for the requests already."""
        try:
            target = await resolve(self._addresses)
        except UnavailableError:
            return
        for gone in self._servers.keys() - set(target.servers):
            if client := self._servers.pop(gone, None):  # else another run was quicker
                await client.close()
        for server in target.servers:
            if server not in self._servers:
                self._servers[server] = _client(server, self._models)

    async def _check_servers(self) -> None:
        """Ask every server; those that do not answer may come later, but one must."""
        answers = await asyncio.gather(
            *(self._check_server(name, client) for name, client in self._servers.items()),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, UnavailableError):
                raise answer
        absent = [answer for answer in answers if isinstance(answer, UnavailableError)]
        if len(absent) == len(answers):
            raise UnavailableError(f"{absent[0]}; start one with: make triton")
        for error in absent:
            _log.warning("%s; it gets requests once it does", error)
        versions = {answer for answer in answers if isinstance(answer, str)}
        self.versions = {"tritonserver": ", ".join(sorted(versions))}

    async def _check_server(self, name: str, client: InferenceServerClient) -> str:
        """The server's version, once all models are seen to be the repository's."""
        try:
            metadata = await client.get_server_metadata(client_timeout=CONTROL_SECONDS)
            for model in self._models.values():
                answer = await client.get_model_config(model.name, client_timeout=CONTROL_SECONDS)
                _check_config(model, answer.config, f"the Triton server at {_shown(name)}")
        except InferenceServerException as error:
            if error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"):
                raise UnavailableError(
                    f"no Triton server answers at {_shown(name)} ({one_line(error)})"
                ) from error
            raise RepositoryError(
                f"the Triton server at {_shown(name)}: {one_line(error)}; "
                "start it on the model repository that MKF_MODEL_REPOSITORY names"
            ) from error
        return str(metadata.version)


def _client(target: str, models: Mapping[str, ServedModel]) -> InferenceServerClient:
    return InferenceServerClient(target, channel_args=_channel_options(models.values()))


def _channel_options(models: Iterable[ServedModel]) -> list[tuple[str, Any]]:
    """Limits that the largest request just fits in, and a quick return to a server that is back."""
    models = list(models)
    answer = max(4 * model.config.max_batch_size * len(model.labels) for model in models)
    largest = MESSAGE_OVERHEAD_BYTES + max(_request_bytes(models), answer)
    return [
        ("grpc.max_send_message_length", largest),
        ("grpc.max_receive_message_length", largest),
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.enable_retries", 0),  # repeated here, where it is counted
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),  # of these also the limit of an attempt to connect
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ]


def _request_bytes(models: Iterable[ServedModel]) -> int:
    """The pixels of the largest request."""
    return max(
        int(model.config.max_batch_size) * 3 * math.prod(model.preprocessing.input_size)
        for model in models
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


def _check_config(model: ServedModel, served: ModelConfig, server: str) -> None:
    again = "start it again on the model repository that MKF_MODEL_REPOSITORY names"
    if not (graph := _graph(served)):
        raise RepositoryError(
            f"{server} does not say which graph it serves as {model.name}; export the models "
            f"again, and {again}"
        )
    if graph != model.manifest.graph_sha256:
        raise RepositoryError(f"{server} serves {model.name} with another graph; {again}")
    largest = model.config.max_batch_size
    if served.max_batch_size != largest:
        raise RepositoryError(
            f"{server} serves {model.name} in batches of up to {served.max_batch_size} images, not "
            f"{largest}; {again}"
        )
    if served.response_cache.enable:
        raise RepositoryError(
            f"{server} answers for {model.name} from its response cache, so that no latency would "
            "be the model's; turn the cache off"
        )


def _graph(config: ModelConfig) -> str:
    # Looked up first: asking a map of messages for a missing key would add it.
    parameters = config.parameters
    return str(parameters["graph_sha256"].string_value) if "graph_sha256" in parameters else ""


def _sum_times(stats: Sequence[Any]) -> ServerTimes:
    """Of one model's statistics on all servers; Triton counts nanoseconds."""
    phases = ("compute_input", "compute_infer", "compute_output")
    return ServerTimes(
        requests=sum(one.inference_stats.success.count for one in stats),
        queue_seconds=sum(one.inference_stats.queue.ns for one in stats) / 1e9,
        inference_seconds=sum(
            getattr(one.inference_stats, phase).ns for one in stats for phase in phases
        )
        / 1e9,
    )


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


def _shown(server: str) -> str:
    return server.removeprefix("dns:///")
