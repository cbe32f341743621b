"""A gRPC server with health, reflection, limits, TLS and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.errors import InvalidInputError, UnavailableError
from services.runtime.channel import format_address
from services.runtime.interceptor import RequestInterceptor
from services.runtime.settings import Settings

_SEND_SECONDS = 0.5  # for answers that are worked out but not yet sent when the server stops


@dataclass(frozen=True)
class Registration:
    """One service of a server."""

    service: str  # full name, `mkf.v1.ClassificationService`
    add_to_server: Callable[[grpc.aio.Server], None]
    # Called when the server stops, once no new request can come and while the running ones still
    # may finish: the place to end what would outlast the grace period.
    on_stop: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True)
class RunningServer:
    """A server that answers."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """`host:port`, as clients write it."""
        return format_address(self.host, self.port)


async def _always_ready() -> bool:
    return True


@contextlib.asynccontextmanager
async def running_server(
    registrations: Sequence[Registration],
    *,
    host: str,
    port: int,
    settings: Settings,
    is_ready: Callable[[], Awaitable[bool]] = _always_ready,
) -> AsyncIterator[RunningServer]:
    """Serve while the context lasts, then stop gracefully.

    At the end health turns to NOT_SERVING, new requests are refused, and the running ones have
    `settings.shutdown_grace_seconds` to finish.

    Parameters
    ----------
    registrations
        The services; health and reflection are added.
    host, port
        Where to listen; port 0 takes any free one.
    is_ready
        Asked every `settings.health_interval_seconds`; health says NOT_SERVING while it is false.

    Raises
    ------
    UnavailableError
        The port cannot be opened.
    InvalidInputError
        The certificate or its key cannot be used.
    """
    names = [registration.service for registration in registrations]
    interceptor = RequestInterceptor(
        names, max_concurrent_requests=settings.max_concurrent_requests
    )
    server = grpc.aio.server(
        interceptors=[interceptor],
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # else a second server would take half of the requests
        ],
    )
    for registration in registrations:
        registration.add_to_server(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    bound = _bind(server, host, port, settings)
    await _set_health(health_servicer, names, ready=await is_ready())
    await server.start()
    monitor = asyncio.create_task(
        _monitor(health_servicer, names, is_ready, settings.health_interval_seconds)
    )
    try:
        yield RunningServer(host, bound)
    finally:
        monitor.cancel()
        await asyncio.wait([monitor])
        await health_servicer.enter_graceful_shutdown()
        await _stop(server, interceptor, registrations, settings.shutdown_grace_seconds)


def _bind(server: grpc.aio.Server, host: str, port: int, settings: Settings) -> int:
    address = format_address(host, port)
    try:
        # gRPC says only that it failed, and prints lines of its own; a socket says why.
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            pass
        credentials = _credentials(settings.tls_cert_file, settings.tls_key_file)
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except (OSError, RuntimeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        reason = reason.partition(" (while")[0]  # the socket module repeats the address there
        raise UnavailableError(
            f"cannot listen on {address}: {reason}; stop what listens there or choose another port"
        ) from error


def _credentials(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    if certificate is None or key is None:
        return None
    try:
        # Checks that both are PEM and belong together, which gRPC would only find out at a client.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError(
            f"MKF_TLS_CERT_FILE={certificate} and MKF_TLS_KEY_FILE={key} cannot be used: {error}"
        ) from error


async def _monitor(
    servicer: health.aio.HealthServicer,
    names: Sequence[str],
    is_ready: Callable[[], Awaitable[bool]],
    interval_seconds: float,
) -> None:
    while True:
        await asyncio.sleep(interval_seconds)
        await _set_health(servicer, names, ready=await is_ready())


async def _set_health(
    servicer: health.aio.HealthServicer, names: Sequence[str], *, ready: bool
) -> None:
    statuses = health_pb2.HealthCheckResponse
    for name in ("", *names):
        await servicer.set(name, statuses.SERVING if ready else statuses.NOT_SERVING)


async def _stop(
    server: grpc.aio.Server,
    interceptor: RequestInterceptor,
    registrations: Sequence[Registration],
    grace_seconds: float,
) -> None:
    stopping = asyncio.create_task(server.stop(grace_seconds))
    await asyncio.sleep(0)  # from here on new requests are refused
    try:
        for registration in registrations:
            if registration.on_stop is not None:
                await registration.on_stop()
    finally:
        # Open health watches would make the server wait for the whole grace period; only our own
        # requests are worth it.
        idle = asyncio.create_task(interceptor.idle.wait())
        await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await server.stop(min(_SEND_SECONDS, grace_seconds))
        await stopping
