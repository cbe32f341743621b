"""`python -m benchmarks.serving`: load on the real server, then the tables."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from benchmarks import processes
from benchmarks.serving import machine, report, road
from services.errors import InvalidInputError, ServiceError, UnavailableError
from services.inference.repository import BASELINE, load_models

RESULTS = Path("benchmarks/results/serving")  # -m finds the package in the root alone
HEAVY_SOURCE = "timm:convnextv2_atto"
DEMO_CASES = [road.Case(batch, n) for batch in (1, 8) for n in (1, 8, 32)]
HEAVY_CASES = [road.Case(batch, n) for batch in (1, 8) for n in (1, 4)]
HEAVY_TIMES_SECONDS = 2  # its requests take longer

Advance = Callable[[str], None]


class Part(StrEnum):
    """What can be measured."""

    ROAD = "road"
    LOADGEN = "loadgen"
    SERVERS = "servers"


def main(
    parts: Annotated[
        list[Part] | None,
        typer.Argument(help="road: beside perf_analyzer; loadgen; servers: 1, 2, 3. Default: all."),
    ] = None,
    repository: Annotated[Path, typer.Option(help="The demo's models.", metavar="DIR")] = Path(
        "model_repository"
    ),
    heavy_repository: Annotated[
        Path | None,
        typer.Option(
            help="A heavier network for the road, too.",
            metavar="DIR",
            show_default=f"{HEAVY_SOURCE} with random weights, exported for this",
        ),
    ] = None,
    heavy: Annotated[
        bool, typer.Option(help="Measure the road of the heavier network; an export takes timm.")
    ] = True,
    rounds: Annotated[int, typer.Option(help="Turns of each measurement.", min=1)] = 5,
    seconds: Annotated[
        float, typer.Option(help="Of one measurement of the road or of servers.", min=0.5)
    ] = 1.5,
    min_duration_ms: Annotated[
        int, typer.Option(help="LoadGen: of a test; official runs take 600000.", min=1000)
    ] = 15_000,
    min_query_count: Annotated[
        int, typer.Option(help="LoadGen: of a test; 662 carry a percentile 99.", min=1)
    ] = 662,
    target_latency_ms: Annotated[
        float, typer.Option(help="LoadGen: of the percentile 99 of the scenario Server.", min=0.1)
    ] = 100.0,
    target_qps: Annotated[
        float | None,
        typer.Option(help="LoadGen: of the scenario Server.", show_default="searched", min=0.1),
    ] = None,
    out: Annotated[
        Path, typer.Option(help=f"Where {report.JSON_NAME} and {report.PAGE_NAME} are put.")
    ] = RESULTS,
    logs: Annotated[Path, typer.Option(help="Where LoadGen's logs are put.")] = Path(
        "build/loadgen"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON instead of tables.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Measure nothing; the page from OUT's JSON.")
    ] = False,
) -> None:
    """Load a real Triton server: perf_analyzer beside our road, LoadGen, several servers.

    About 10 minutes on a machine that should have nothing else to do.
    """
    if report_only:
        results = json.loads((out / report.JSON_NAME).read_text(encoding="utf-8"))
    else:
        chosen = parts or list(Part)
        status = Console(stderr=True)
        results = {
            "schema_version": 1,
            "command": "make bench-serving" if len(sys.argv) == 1 else _command(),
            "machine": machine.describe_machine(),
            "settings": {
                "rounds": rounds,
                "seconds": seconds,
                "loadgen": {
                    "min_duration_ms": min_duration_ms,
                    "min_query_count": min_query_count,
                    "target_latency_ms": target_latency_ms,
                    "target_qps": target_qps,
                },
            },
            "observations": [machine.observe("before")],
        }
        if not machine.is_quiet(results["observations"]):
            status.print("Other programs keep this machine busy; the results will say so.")
        _install()
        with (
            status.status("starting", spinner="line") as shown,
            tempfile.TemporaryDirectory() as folder,
        ):

            def advance(text: str) -> None:
                shown.update(text)
                if not status.is_terminal:
                    status.print(text, highlight=False)

            if Part.ROAD in chosen:
                networks = [(DEMO, repository, DEMO_CASES, seconds)]
                if heavy:
                    heavy_repository = heavy_repository or _export_heavy(Path(folder), advance)
                    networks.append(
                        (HEAVY, heavy_repository, HEAVY_CASES, HEAVY_TIMES_SECONDS * seconds)
                    )
                results["road"] = [
                    _measure_road(*network, rounds=rounds, advance=advance) for network in networks
                ]
                results["observations"].append(machine.observe("after the road"))
            if Part.LOADGEN in chosen:
                results["loadgen"] = _measure_loadgen(repository, results, logs, advance)
                results["observations"].append(machine.observe("after LoadGen"))
            if Part.SERVERS in chosen:
                from benchmarks.serving import servers

                cases = asyncio.run(
                    servers.compare(repository, rounds=rounds, seconds=seconds, advance=advance)
                )
                results["servers"] = {"cases": cases}
                results["observations"].append(machine.observe("after the servers"))
    console = Console(quiet=True) if as_json else Console()
    report.write_results(results, out, console=console)
    if as_json:
        print(json.dumps(results))


DEMO = "The demo's network"
HEAVY = "ConvNeXt V2 Atto"
ABOUT = {
    DEMO: "The worst case: so small a network that a client's own work shows.",
    HEAVY: "A network of which the server's work is the most; random weights.",
}


def _measure_road(
    name: str,
    repository: Path,
    cases: list[road.Case],
    seconds: float,
    *,
    rounds: int,
    advance: Advance,
) -> dict[str, Any]:
    model = load_models(repository)[BASELINE]
    measured = asyncio.run(
        road.compare(
            repository,
            cases,
            rounds=rounds,
            seconds=seconds,
            advance=lambda text: advance(f"{name}: {text}"),
        )
    )
    return {
        "name": name,
        "about": ABOUT[name],
        "source": model.manifest.source,
        "input_size": model.preprocessing.input_size,
        "seconds": seconds,
        "cases": measured,
    }


def _measure_loadgen(
    repository: Path, results: dict[str, Any], logs: Path, advance: Advance
) -> list[dict[str, Any]]:
    try:
        from benchmarks.serving import scenarios
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            "LoadGen is not installed; install it with: pip install mlcommons-loadgen, or measure "
            "the other parts alone: road servers"
        ) from error
    options = scenarios.Options(**results["settings"]["loadgen"])
    return scenarios.measure(repository, options, out=logs, advance=advance)


def _install() -> None:
    """Triton and perf_analyzer; at once where they are there."""
    for name in ("install.py", "perf_analyzer.py"):
        script = processes.ROOT / "deploy" / "triton" / name
        command = [sys.executable, str(script), "--prefix", str(processes.PREFIX)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise UnavailableError((result.stderr.strip().splitlines() or [f"{name} failed"])[-1])


def _export_heavy(folder: Path, advance: Advance) -> Path:
    advance(f"exporting {HEAVY_SOURCE}")
    command = [str(Path(sys.executable).with_name("mkf")), "export", "--source", HEAVY_SOURCE]
    arguments = ["--random-weights", "--repository", str(folder / "repository")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        words = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"{words}; or measure without it: --no-heavy")
    return folder / "repository"


def _command() -> str:
    return " ".join(["python -m benchmarks.serving", *sys.argv[1:]])


if __name__ == "__main__":
    processes.forget_settings()
    # Its servers end with it, also when it is told to stop.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        typer.run(main)
    except (ServiceError, OSError, grpc.RpcError) as failure:
        print(f"Error: {failure}", file=sys.stderr)
        sys.exit(1)
