"""A gRPC pass-through in front of Triton that records what bytes each model was sent."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest

from services.inference.triton_addresses import parse_addresses, resolve

INFER = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
]


@dataclass(frozen=True)
class Sent:
    """One request for inference."""

    model: str
    shape: tuple[int, ...]  # of its one input
    sha256: str  # of that input's bytes


@dataclass
class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Hands every unary call on as it came; `running_recorder` makes it."""

    channel: grpc.aio.Channel
    address: str = ""
    sent: list[Sent] = field(default_factory=list)

    def take(self) -> list[Sent]:
        """What was sent since the last call, in the order of its arrival."""
        taken, self.sent = self.sent, []
        return taken

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        """Every method's handler; without serializers it sees the bytes themselves."""
        method = handler_call_details.method
        forward = self.channel.unary_unary(method)

        async def pass_on(request: bytes, context: Any) -> bytes:
            if method == INFER:
                self._record(request)
            try:
                answer: bytes = await forward(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())
            return answer

        return grpc.unary_unary_rpc_method_handler(pass_on)

    def _record(self, request: bytes) -> None:
        message = ModelInferRequest.FromString(request)
        shape = tuple(size for tensor in message.inputs for size in tensor.shape)
        digest = hashlib.sha256(b"".join(message.raw_input_contents)).hexdigest()
        self.sent.append(Sent(message.model_name, shape, digest))


@asynccontextmanager
async def running_recorder(addresses: str) -> AsyncIterator[Recorder]:
    """A recorder on a free port of the loopback device, in front of HOST:PORT[,HOST:PORT...]."""
    target = await resolve(parse_addresses(addresses))
    server = grpc.aio.server(options=OPTIONS[:2])
    async with grpc.aio.insecure_channel(target.balanced, options=OPTIONS) as channel:
        recorder = Recorder(channel)
        server.add_generic_rpc_handlers([recorder])
        recorder.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield recorder
        finally:
            await server.stop(grace=1)
