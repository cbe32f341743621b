"""`python -m benchmarks.parity`: the same answer at every hop, or a line for each that differs."""

from __future__ import annotations

import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks.parity.comparison import ENGINE_TOLERANCE
from benchmarks.parity.hops import Plan
from benchmarks.parity.images import load_images
from benchmarks.parity.report import print_report, to_json
from benchmarks.parity.run import Choice, run
from benchmarks.processes import forget_settings
from mkf.errors import MkfError
from services.errors import InvalidInputError, ServiceError
from services.evaluation.runner import comparable_models
from services.inference.repository import BASELINE, IDEALIZED, load_models

SIZES = (1, 2, 8)  # of batches, beside the largest that the models take
TRITON_SCHEME = "triton:"


class Hop(StrEnum):
    """What can be left out."""

    TORCH = "torch"
    TRITON = "triton"


def main(
    *,
    repository: Annotated[
        Path, typer.Option(help="The model repository; a server that is named serves the same.")
    ] = Path("model_repository"),
    source: Annotated[
        str | None,
        typer.Option(
            help="What torch runs: demo, timm:NAME or checkpoint:FILE; by default what the models' "
            "manifests name."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="triton:HOST:PORT[,...]",
            help="Running servers; by default the run starts one of its own (make triton sets it "
            "up).",
        ),
    ] = None,
    without: Annotated[list[Hop] | None, typer.Option(help="Leave a hop out; repeat.")] = None,
    dataset: Annotated[
        str, typer.Option(help="fashion-mnist, imagefolder:DIR or labels:FILE.")
    ] = "fashion-mnist",
    limit: Annotated[int, typer.Option(help="The dataset's first images.", min=0)] = 64,
    noise: Annotated[int, typer.Option(help="Images of random pixels beside them.", min=0)] = 32,
    same_model_images: Annotated[
        int,
        typer.Option(
            help="The dataset's first images on which one model is evaluated beside itself; 0: "
            "leave that out.",
            min=0,
        ),
    ] = 2000,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Largest difference of an engine's logit to ONNX Runtime's on the CPU, of the "
            "largest logit. Raise it for servers that compute otherwise, as with TF32 on a GPU.",
            min=0,
        ),
    ] = ENGINE_TOLERANCE,
    out: Annotated[
        Path | None, typer.Option(help="File for the JSON object.", metavar="FILE.json")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> None:
    """Take the same images through torch, ONNX Runtime, Triton and the classification service.

    Of every hop, model and batch size it says how far the logits are from the hop before and from
    ONNX Runtime, and for how many images the top-1 is the same. It also checks that Triton's
    response cache is off, that both models were sent the same bytes, and that a model evaluated
    beside itself shows no difference. Exit status 1, and a line for each, where something is past
    its tolerance.
    """
    if engine is not None and not engine.startswith(TRITON_SCHEME):
        raise typer.BadParameter("--engine takes triton:HOST:PORT[,HOST:PORT...]")
    left_out = without or []
    if engine is not None and Hop.TRITON in left_out:
        raise typer.BadParameter("--engine and --without triton exclude each other")
    models = load_models(repository)
    chosen = comparable_models(models, (BASELINE, IDEALIZED))
    largest = min(model.config.max_batch_size for model in chosen)
    images = load_images(dataset, chosen[0], limit=limit, noise=noise)
    sizes = [size for size in SIZES if size < largest] + [largest]
    if len(images.names) < largest:
        raise InvalidInputError(
            f"{len(images.names)} images do not fill the largest batch, {largest}; raise --limit "
            "or --noise"
        )
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("images"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("")

        def tick(hop: str, model: str, done: int) -> None:
            progress.update(task, description=f"{hop}, {model}", advance=done, refresh=False)

        def say(text: str) -> None:
            console.print(f"{text} ...", highlight=False)
            progress.reset(task, total=len(sizes) * len(chosen) * len(images.names))

        plan = Plan(images, {model.name: model for model in chosen}, sizes, tolerance, tick)
        choice = Choice(
            repository=repository,
            torch=Hop.TORCH not in left_out,
            source=source,
            triton=Hop.TRITON not in left_out,
            servers=engine and engine.removeprefix(TRITON_SCHEME),
            dataset=dataset,
            same_model_images=same_model_images,
        )
        outcome = run(plan, choice, say)
    text = json.dumps(to_json(outcome, plan, choice), indent=1, allow_nan=False) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    if as_json:
        sys.stdout.write(text)
    else:
        print_report(outcome, plan, Console())
    breaches = outcome.breaches()
    for line in breaches:
        print(f"parity: {line}", file=sys.stderr)
    if breaches:
        raise typer.Exit(1)


if __name__ == "__main__":
    forget_settings()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what stops the servers
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    try:
        app()
    except (MkfError, ServiceError, OSError) as error:
        print(f"parity: {error}", file=sys.stderr)
        sys.exit(1)
