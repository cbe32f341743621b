"""`mkf-serve`: the services in one process, on one engine."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import Annotated

import typer

from mkf.v1 import classification_pb2_grpc, evaluation_pb2_grpc
from services.inference.engine import Engine
from services.inference.repository import ServedModel
from services.inference.urls import open_engine
from services.runtime.logging import configure_logging
from services.runtime.metrics import serve_metrics
from services.runtime.server import Registration, running_server
from services.runtime.settings import Settings, load_settings

_log = logging.getLogger(__name__)


class Service(StrEnum):
    """What `mkf-serve` starts."""

    ALL = "all"
    CLASSIFICATION = "classification"
    EVALUATION = "evaluation"


def serve(
    service: Annotated[Service, typer.Argument(help="Which services to start.")] = Service.ALL,
    host: Annotated[
        str | None, typer.Option(show_default="MKF_HOST", help="Where the services listen.")
    ] = None,
    classification_port: Annotated[
        int | None, typer.Option(show_default="MKF_CLASSIFICATION_PORT")
    ] = None,
    evaluation_port: Annotated[int | None, typer.Option(show_default="MKF_EVALUATION_PORT")] = None,
    metrics_port: Annotated[int | None, typer.Option(show_default="MKF_METRICS_PORT")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default="MKF_ENGINE",
            help="embedded:DIR, or triton:HOST:PORT[,HOST:PORT...] on the models of "
            "MKF_MODEL_REPOSITORY.",
        ),
    ] = None,
) -> None:
    """Start the services and print their addresses; SIGTERM or Ctrl-C stops them in order.

    A port of 0 takes any free one. Everything else is set in the environment or in .env.
    """
    settings = load_settings(
        host=host,
        classification_port=classification_port,
        evaluation_port=evaluation_port,
        metrics_port=metrics_port,
        engine=engine,
    )
    configure_logging(settings.log_level)
    asyncio.run(_serve(service, settings))


async def _serve(service: Service, settings: Settings) -> None:
    stop = _stop_signal()
    async with AsyncExitStack() as stack:
        # Entered first, left last: the engine closes when nobody can ask it any more.
        engine, models = await open_engine(settings.engine, settings)
        stack.push_async_callback(engine.close)
        metrics_port = stack.enter_context(
            serve_metrics(host=settings.metrics_host, port=settings.metrics_port)
        )
        servers: list[AsyncExitStack] = []  # one each, so that they stop at the same time
        stack.push_async_callback(_close_all, servers)
        addresses: dict[str, str] = {}
        for name, start in _STARTS.items():
            if service in (Service.ALL, name):
                servers.append(AsyncExitStack())
                addresses[name] = await start(servers[-1], engine, models, settings)
        addresses["metrics"] = f"http://{settings.metrics_host}:{metrics_port}/metrics"
        for title, address in addresses.items():
            print(f"{title:<14}  {address}", flush=True)
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")


async def _start_classification(
    stack: AsyncExitStack, engine: Engine, models: dict[str, ServedModel], settings: Settings
) -> str:
    from services.classification.service import NAME, ClassificationServicer

    servicer = ClassificationServicer(engine, models, settings)
    stack.push_async_callback(servicer.close)
    registration = Registration(
        NAME,
        lambda server: classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
            servicer, server
        ),
    )
    return await _listen(
        stack, registration, settings.classification_port, engine, models, settings
    )


async def _start_evaluation(
    stack: AsyncExitStack, engine: Engine, models: dict[str, ServedModel], settings: Settings
) -> str:
    from services.evaluation.service import NAME, EvaluationServicer

    servicer = EvaluationServicer(engine, models, settings)
    stack.push_async_callback(servicer.close)
    # A run may take hours: it is interrupted when the server stops, and can be resumed.
    registration = Registration(
        NAME,
        lambda server: evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(
            servicer, server
        ),
        on_stop=servicer.close,
    )
    return await _listen(stack, registration, settings.evaluation_port, engine, models, settings)


_STARTS = {
    Service.CLASSIFICATION: _start_classification,
    Service.EVALUATION: _start_evaluation,
}


async def _listen(
    stack: AsyncExitStack,
    registration: Registration,
    port: int,
    engine: Engine,
    models: dict[str, ServedModel],
    settings: Settings,
) -> str:
    async def is_ready() -> bool:
        return all([await engine.is_ready(name) for name in models])

    server = await stack.enter_async_context(
        running_server(
            [registration], host=settings.host, port=port, settings=settings, is_ready=is_ready
        )
    )
    return server.address


async def _close_all(stacks: list[AsyncExitStack]) -> None:
    await asyncio.gather(*(stack.aclose() for stack in stacks))


def _stop_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second signal then ends the process the hard way."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def handle() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, handle)
    return stop
