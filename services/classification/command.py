"""`mkf-classify`: the classification service from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from mkf.v1 import classification_pb2 as pb
from mkf.v1 import classification_pb2_grpc
from services.errors import UnavailableError
from services.inference.repository import BASELINE
from services.runtime.channel import format_address, open_channel
from services.runtime.settings import load_settings


def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    model: Annotated[
        str, typer.Option(metavar="NAME", show_default=BASELINE, help="A served model.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Classes to show.")] = 5,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            show_default="MKF_HOST:MKF_CLASSIFICATION_PORT",
            help="The service.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Classify image files with a running classification service."""
    settings = load_settings()
    address = address or format_address(settings.host, settings.classification_port)
    results: list[dict[str, Any]] = []
    limits = [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
    ]
    with open_channel(address, settings, limits) as channel:
        stub = classification_pb2_grpc.ClassificationServiceStub(channel)
        for image in images:
            try:
                request = pb.ClassifyRequest(image=image.read_bytes(), model=model, top_k=top)
                response = stub.Classify(request, timeout=settings.request_timeout_seconds)
                results.append({"image": str(image), **_as_dict(response)})
            except OSError as error:
                results.append(_failure(image, "INVALID_ARGUMENT", error.strerror or str(error)))
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    raise UnavailableError(
                        f"no classification service answers at {address} ({error.details()}); "
                        "start it with: make serve"
                    ) from error
                results.append(_failure(image, error.code().name, error.details()))
    if as_json:
        print(json.dumps({"address": address, "results": results}, ensure_ascii=False))
    else:
        _print_tables(results)
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"mkf-classify: {result['image']}: {result['error']['message']}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _as_dict(response: pb.ClassifyResponse) -> dict[str, Any]:
    # A value of 0 is a value here: class 0, or no time in the queue.
    content: dict[str, Any] = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return content


def _failure(image: Path, code: str, message: str) -> dict[str, Any]:
    return {"image": str(image), "error": {"code": code, "message": message}}


def _print_tables(results: list[dict[str, Any]]) -> None:
    console = Console(markup=False, highlight=False, emoji=False)  # labels are shown as they are
    for result in results:
        if "error" in result:
            continue
        milliseconds = 1000 * result["timings"]["total_seconds"]
        table = Table()
        table.add_column("class", justify="right")
        table.add_column("label")
        table.add_column("probability", justify="right")
        for prediction in result["predictions"]:
            table.add_row(
                str(prediction["class_index"]),
                prediction["label"],
                f"{100 * prediction['probability']:.2f} %",
            )
        console.print(f"{result['image']}: {result['model']}, {milliseconds:.1f} ms")
        console.print(table)
