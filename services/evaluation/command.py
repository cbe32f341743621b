"""`mkf-eval`: evaluate two models on the same images and compare them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mkf.v1 import evaluation_pb2 as pb
from mkf.v1 import evaluation_pb2_grpc
from services.errors import ServiceError
from services.evaluation.client import EvaluationClient, connect
from services.evaluation.progress_bar import ProgressBar
from services.evaluation.results import Results
from services.evaluation.service import NAME, EvaluationServicer
from services.evaluation.tables import print_results
from services.inference.urls import open_engine
from services.runtime.server import Registration, running_server
from services.runtime.settings import Settings, load_settings

DEFAULT_DATASET = "fashion-mnist"
DEFAULT_BATCH = 8


def evaluate(
    *,
    dataset: Annotated[
        str, typer.Option(help="fashion-mnist, imagefolder:DIR or labels:FILE.")
    ] = DEFAULT_DATASET,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="The baseline and the idealized model; by default "
            "convnext_baseline,convnext_idealized.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Only the first images; 0 for all.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, max=2**32 - 1, help="Images a request to the engine.")
    ] = DEFAULT_BATCH,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**64 - 1, help="Of the order in which the models see a batch."),
    ] = 0,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A running service; else one of its own."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="embedded:DIR, or triton:HOST:PORT[,HOST:PORT...] on the models of "
            "MKF_MODEL_REPOSITORY; by default what MKF_ENGINE says.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the run's folder goes; by default what MKF_RESULTS_DIRECTORY says."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Take up this run as it was planned; dataset, models … are its own."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json and nothing else.")
    ] = False,
) -> None:
    """Evaluate two models on the same images and compare them.

    Leaves results.json, samples.parquet and report.html in a folder of the run's own.
    """
    if address is not None and engine is not None:
        raise typer.BadParameter("--address and --engine exclude each other: a service has its own")
    names = models.split(",") if models is not None else []
    if models is not None and (len(names) != 2 or not all(names)):
        raise typer.BadParameter("--models takes two names, as in --models A,B")
    settings = load_settings(engine=engine, results_directory=out)
    request = pb.RunEvaluationRequest(
        dataset_uri=dataset,
        models=names,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        resume_run_id=resume or "",
    )
    bar = ProgressBar()
    try:
        results, folder = asyncio.run(_evaluate(request, settings, address, bar))
    except KeyboardInterrupt:
        raise ServiceError(_how_to_resume(bar.run_id, address, engine, out)) from None
    if as_json:
        sys.stdout.write(results.to_json())
    else:
        print_results(Console(), results, folder)


async def _evaluate(
    request: pb.RunEvaluationRequest, settings: Settings, address: str | None, bar: ProgressBar
) -> tuple[Results, Path]:
    service = _own_service(settings) if address is None else connect(address, settings)
    async with service as client:
        finished = await _watch(client, request, bar)
        folder = settings.results_directory / finished.run_id
        if address is not None:
            folder = await client.download(finished.run_id, settings.results_directory)
    return Results.model_validate_json(finished.results_json), folder


async def _watch(
    client: EvaluationClient, request: pb.RunEvaluationRequest, bar: ProgressBar
) -> pb.Evaluation:
    with bar:
        async with aclosing(client.run(request)) as events:
            async for event in events:
                if isinstance(event, pb.EvaluationProgress):
                    bar.show(event)
                elif event.state == pb.EVALUATION_STATE_SUCCEEDED:
                    return event
                else:
                    state = pb.EvaluationState.Name(event.state).rpartition("_")[2].lower()
                    raise ServiceError(f"the run {event.run_id} was {state}")
    raise ServiceError(f"the run {bar.run_id or ''} ended without a result")


@asynccontextmanager
async def _own_service(settings: Settings) -> AsyncIterator[EvaluationClient]:
    """A client of an evaluation service in this process, on a free port of the loopback device."""
    settings = settings.model_copy(update={"tls_cert_file": None, "tls_key_file": None})
    engine, models = await open_engine(settings.engine, settings)
    try:
        servicer = EvaluationServicer(engine, models, settings)

        def register(server: object) -> None:
            evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(servicer, server)

        registration = Registration(NAME, register, on_stop=servicer.close)
        try:
            async with (
                running_server(
                    [registration], host="127.0.0.1", port=0, settings=settings
                ) as server,
                connect(server.address, settings) as client,
            ):
                yield client
        finally:
            await servicer.close()
    finally:
        await engine.close()


def _how_to_resume(
    run_id: str | None, address: str | None, engine: str | None, out: Path | None
) -> str:
    if run_id is None:
        return "stopped before the run began"
    options = f" --resume {run_id}"
    if address is not None:
        return f"stopped watching; the run goes on: mkf-eval --address {address}{options}"
    if engine is not None:
        options += f" --engine {engine}"
    if out is not None:
        options += f" --out {out}"
    return f"interrupted; take the run up again with: mkf-eval{options}"
