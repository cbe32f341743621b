"""Servers to measure with: a Triton that answers at once, and a DNS whose answer can change.

Both listen on the loopback device alone, where each of 127.0.0.1, 127.0.0.2 ... is a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import struct
from collections.abc import AsyncIterator, Iterator
from multiprocessing.connection import Connection
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.inference.repository import OUTPUT_NAME

TYPE_A, CLASS_IN = 1, 1
PLAIN_UDP_BYTES = 512  # of an answer over UDP where the question allows no more, RFC 1035
TRUNCATED = 0x0200
RESPONSE = 0x8180


@contextlib.contextmanager
def instant_servers(
    config: ModelConfig, *, servers: int = 1, connection_age_ms: int = 0
) -> Iterator[int]:
    """Servers on 127.0.0.1, 127.0.0.2 ..., in a process of their own; gives their common port.

    Each answers a request at once, with zeros for logits and with its address as the answer's id.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve,
        args=(theirs, config.SerializeToString(), servers, connection_age_ms),
        daemon=True,
    )
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, config: bytes, servers: int, connection_age_ms: int) -> None:
    asyncio.run(_run_servers(pipe, ModelConfig.FromString(config), servers, connection_age_ms))


async def _run_servers(
    pipe: Connection, config: ModelConfig, servers: int, connection_age_ms: int
) -> None:
    port, running = 0, []
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    if connection_age_ms:
        options.append(("grpc.max_connection_age_ms", connection_age_ms))
    for number in range(1, servers + 1):
        host = f"127.0.0.{number}"
        server = grpc.aio.server(options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Instant(config, host), server)
        port = server.add_insecure_port(f"{host}:{port}")
        await server.start()
        running.append(server)
    pipe.send(port)
    await asyncio.Event().wait()


class _Instant(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, config: ModelConfig, name: str) -> None:
        self._config = config
        self._name = name

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(name="instant", version="0")

    async def ModelConfig(self, request: Any, _context: Any) -> Any:  # noqa: N802
        config = ModelConfig()
        config.CopyFrom(self._config)
        config.name = request.name
        return pb.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: Any, _context: Any) -> Any:  # noqa: N802
        (classes,) = self._config.output[0].dims
        shape = [request.inputs[0].shape[0], classes]
        output = pb.ModelInferResponse.InferOutputTensor(
            name=OUTPUT_NAME, datatype="FP32", shape=shape
        )
        return pb.ModelInferResponse(
            model_name=request.model_name,
            model_version="1",
            id=self._name,
            outputs=[output],
            raw_output_contents=[bytes(4 * shape[0] * shape[1])],
        )


class Names:
    """What one name stands for, and what was asked of it."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.questions = {"udp": 0, "tcp": 0}
        self.answer_bytes = 0

    def answer(self, question: bytes, *, over: str) -> bytes:
        """The answer to a question of one name, cut short where UDP cannot carry it."""
        end = 12 + question[12:].index(0) + 1
        kind, _ = struct.unpack(">2H", question[end : end + 4])
        asked = question[12 : end + 4]
        addresses = self.addresses if kind == TYPE_A else []
        records = b"".join(
            struct.pack(">3HIH", 0xC00C, TYPE_A, CLASS_IN, 5, 4)
            + bytes(int(part) for part in address.split("."))
            for address in addresses
        )
        self.questions[over] += 1
        size = 12 + len(asked) + len(records)
        self.answer_bytes = max(self.answer_bytes, size)
        number, flags = question[:2], RESPONSE
        if over == "udp" and size > _udp_limit(question, end + 4):
            flags, addresses, records = flags | TRUNCATED, [], b""
        return number + struct.pack(">5H", flags, 1, len(addresses), 0, 0) + asked + records


def _udp_limit(question: bytes, end: int) -> int:
    """What the question says that its sender takes over UDP (EDNS, RFC 6891)."""
    (additional,) = struct.unpack(">H", question[10:12])
    return struct.unpack(">H", question[end + 3 : end + 5])[0] if additional else PLAIN_UDP_BYTES


@contextlib.asynccontextmanager
async def name_server(names: Names) -> AsyncIterator[int]:
    """Answer DNS questions over UDP and TCP while the context lasts; gives the port."""

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(names.answer(data, over="udp"), addr)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                answer = names.answer(await reader.readexactly(length), over="tcp")
                writer.write(struct.pack(">H", len(answer)) + answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", port))
    try:
        yield port
    finally:
        transport.close()
        server.close()
