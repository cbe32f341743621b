"""`mkf-healthcheck`: whether a service on this machine is serving, as an exit status.

Containers run it every few seconds, so it imports little.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mkf.v1 import classification_pb2, evaluation_pb2
from services.errors import UnavailableError
from services.runtime.channel import format_address, open_channel
from services.runtime.settings import Settings, load_settings

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - what a service may listen on


class Service(StrEnum):
    """What can be asked for."""

    CLASSIFICATION = "classification"
    EVALUATION = "evaluation"


FULL_NAMES = {
    Service.CLASSIFICATION: classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"],
    Service.EVALUATION: evaluation_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
}


def healthcheck(
    service: Annotated[Service, typer.Argument(help="Which service to ask.")],
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            show_default="MKF_HOST and the service's port",
            help="Another place; with TLS, one that its certificate names.",
        ),
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="How long to wait.")] = 3.0,
) -> None:
    """Ask a running service for its health: exit status 0 if it is serving, 1 if not."""
    settings = load_settings()
    address = address or _address(service, settings)
    request = health_pb2.HealthCheckRequest(service=FULL_NAMES[service].full_name)
    with open_channel(address, settings) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise UnavailableError(
                f"{address} does not answer: {error.code().name}, {error.details()}; "
                f"start it with: mkf-serve {service}"
            ) from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise UnavailableError(
            f"{service} at {address} is {status}: its engine, MKF_ENGINE={settings.engine}, is not "
            "ready, or it is stopping"
        )


def _address(service: Service, settings: Settings) -> str:
    ports = {
        Service.CLASSIFICATION: settings.classification_port,
        Service.EVALUATION: settings.evaluation_port,
    }
    host = "localhost" if settings.host in WILDCARDS else settings.host
    return format_address(host, ports[service])
