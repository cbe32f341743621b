"""The servers one by one: that they serve the repository's models, and what time they took."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from services.errors import RepositoryError, UnavailableError, one_line
from services.inference.engine import ServerTimes
from services.inference.repository import ServedModel
from services.inference.triton_addresses import Address, resolve

CONTROL_SECONDS = 2.0  # for questions that a server answers at once
MESSAGE_OVERHEAD_BYTES = 64 * 1024  # names, shapes and framing beside the tensors

_log = logging.getLogger(__name__)


class Servers:
    """A client for each server; `check` comes first, `close` last.

    A server that was away may have come back with other models. It is in doubt until it has been
    asked what it serves.
    """

    def __init__(
        self,
        addresses: tuple[Address, ...],
        names: Iterable[str],
        models: Mapping[str, ServedModel],
    ) -> None:
        self._addresses = addresses
        self._models = models
        self.clients = {name: connect(name, models) for name in names}
        self._in_doubt = set(self.clients)
        self._requests = dict.fromkeys(self.clients, 0)  # that a server has counted
        self._gone: list[InferenceServerClient] = []

    async def check(self) -> str:
        """Ask every server; those that do not answer may come later, but one must.

        Returns
        -------
        str
            The servers' version, or versions.

        Raises
        ------
        UnavailableError
            None answers.
        RepositoryError
            One serves other models, or serves them from its response cache.
        """
        answers = await asyncio.gather(
            *(self._check_one(name) for name in self.clients), return_exceptions=True
        )
        absent = [answer for answer in answers if isinstance(answer, UnavailableError)]
        for answer in answers:
            if isinstance(answer, BaseException) and answer not in absent:
                raise answer
        if len(absent) == len(answers):
            raise UnavailableError(f"{absent[0]}; start one with: make triton")
        for error in absent:
            _log.warning("%s; it gets requests once it does", error)
        return ", ".join(sorted({answer for answer in answers if isinstance(answer, str)}))

    def doubt(self) -> None:
        """A request was cut off: whichever server it was may come back as another."""
        self._in_doubt |= self.clients.keys()

    async def check_doubtful(self) -> None:
        """Ask the servers that are in doubt; those that do not answer stay so.

        Raises
        ------
        RepositoryError
            As `check`.
        """
        for name in tuple(self._in_doubt):
            try:
                await self._check_one(name)
            except UnavailableError:
                continue

    async def times(self) -> dict[str, ServerTimes]:
        """Sums over the servers by model; empty while one of them does not answer.

        Raises
        ------
        RepositoryError
            A server has come back with other models.
        """
        names = tuple(self.clients)
        answers = await asyncio.gather(
            *(
                self.clients[name].get_inference_statistics(client_timeout=CONTROL_SECONDS)
                for name in names
            ),
            return_exceptions=True,
        )
        known = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, InferenceServerException):
                self._in_doubt.add(name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                known.append(answer)
                self._count(name, answer)
        if self._in_doubt:
            await self.check_doubtful()
        if len(known) < len(names):
            await self._look_up()
            return {}
        return {
            name: _sum_times(
                [stats for answer in known for stats in answer.model_stats if stats.name == name]
            )
            for name in self._models
        }

    async def close(self) -> None:
        """Disconnect."""
        for client in (*self.clients.values(), *self._gone):
            await client.close()

    def _count(self, name: str, answer: Any) -> None:
        """A server that has counted fewer requests than before has started again."""
        requests = sum(stats.inference_stats.success.count for stats in answer.model_stats)
        if requests < self._requests.get(name, 0):
            self._in_doubt.add(name)
        self._requests[name] = requests

    async def _look_up(self) -> None:
        """A name may stand for other servers now; gRPC has seen that for the requests already."""
        try:
            target = await resolve(self._addresses)
        except UnavailableError:
            return
        for name in self.clients.keys() - set(target.servers):
            self._gone.append(self.clients.pop(name))  # closed at the end: another may wait for it
            self._in_doubt.discard(name)
        for name in target.servers:
            if name not in self.clients:
                self.clients[name] = connect(name, self._models)
                self._in_doubt.add(name)

    async def _check_one(self, name: str) -> str:
        """The server's version, once all models are seen to be the repository's."""
        server = f"the Triton server at {name}"
        client = self.clients[name]
        try:
            metadata = await client.get_server_metadata(client_timeout=CONTROL_SECONDS)
            for model in self._models.values():
                answer = await client.get_model_config(model.name, client_timeout=CONTROL_SECONDS)
                _check_config(model, answer.config, server)
        except InferenceServerException as error:
            if error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"):
                raise UnavailableError(
                    f"no Triton server answers at {name} ({one_line(error)})"
                ) from error
            raise RepositoryError(
                f"{server}: {one_line(error)}; "
                "start it on the model repository that MKF_MODEL_REPOSITORY names"
            ) from error
        self._in_doubt.discard(name)
        return str(metadata.version)


def connect(target: str, models: Mapping[str, ServedModel]) -> InferenceServerClient:
    """A client whose messages may be as large as the largest request, and which soon finds out.

    A server that hangs, or whose machine is gone, ends no connection: pings do, within 10 s (gRPC
    itself would wait 60 s for the answer to a ping). They are sent while a request waits, at most
    as often as Triton bears without data (twice in 300 s, then after each answer anew).
    """
    answer = max(4 * one.config.max_batch_size * len(one.labels) for one in models.values())
    largest = MESSAGE_OVERHEAD_BYTES + max(request_bytes(models), answer)
    options = [
        ("grpc.max_send_message_length", largest),
        ("grpc.max_receive_message_length", largest),
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.enable_retries", 0),  # the engine repeats, and counts
        ("grpc.enable_http_proxy", 0),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),  # also the limit of an attempt to connect
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ]
    return InferenceServerClient(target, channel_args=options)


def request_bytes(models: Mapping[str, ServedModel]) -> int:
    """The pixels of the largest request."""
    return max(
        int(model.config.max_batch_size) * 3 * math.prod(model.preprocessing.input_size)
        for model in models.values()
    )


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
