"""What happens around every request: status codes, metrics, and the limit on concurrency."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from services.errors import LimitError, ServiceError
from services.runtime import metrics

_MAX_DETAILS = 1000  # characters; details travel in a header, and headers have a limit

_log = logging.getLogger(__name__)


class RequestInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps the methods of our own services; health and reflection stay as they are.

    A `ServiceError` becomes its status code with its message. Any other exception becomes INTERNAL
    and its traceback goes to the log, never to the client. A cancellation passes untouched.

    Parameters
    ----------
    services
        Full names of the services to wrap.
    max_concurrent_requests
        One more is answered RESOURCE_EXHAUSTED.
    """

    def __init__(self, services: Collection[str], *, max_concurrent_requests: int) -> None:
        self._services = frozenset(services)
        self._limit = max_concurrent_requests
        self._in_flight = 0
        self.idle = asyncio.Event()  # set while no request is being worked on
        self.idle.set()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or service not in self._services:
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._wrap_unary(handler.unary_unary, service, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(handler.unary_stream, service, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return handler  # the API has no stream of requests

    def _wrap_unary(self, behavior: Any, service: str, method: str) -> Any:
        async def unary(request: Any, context: Any) -> Any:
            async with self._request(service, method, context):
                return await behavior(request, context)

        return unary

    def _wrap_stream(self, behavior: Any, service: str, method: str) -> Any:
        # Written here and not yielded: the request ends where its last message was sent, and the
        # generator is closed at once when the client goes away.
        async def stream(request: Any, context: Any) -> None:
            async with (
                self._request(service, method, context),
                aclosing(behavior(request, context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return stream

    @asynccontextmanager
    async def _request(self, service: str, method: str, context: Any) -> AsyncIterator[None]:
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        self._in_flight += 1
        self.idle.clear()
        metrics.IN_FLIGHT.labels(service, method).inc()
        try:
            if self._in_flight > self._limit:
                raise LimitError(
                    f"the service is busy with {self._limit} requests; try again later"
                )
            yield
        except ServiceError as error:
            code = error.status
            await context.abort(code, str(error)[:_MAX_DETAILS])
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except (asyncio.CancelledError, grpc.aio.BaseError):  # the client went, or the server stops
            expired = context.time_remaining() == 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            _log.exception("%s/%s failed", service, method)
            await context.abort(code, "internal error; the service's log says more")
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self.idle.set()
            metrics.IN_FLIGHT.labels(service, method).dec()
            metrics.REQUESTS.labels(service, method, code.name).inc()
            metrics.REQUEST_SECONDS.labels(service, method).observe(time.perf_counter() - started)
