"""Measure what growing costs; about 2 minutes, on a quiet machine.

Prints a table and writes benchmarks/results/growth.json; with --page puts the figures into
docs/growth.md. No model is run: the server answers at once, so that what is left is the cost of
asking.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.growth import costs, names
from benchmarks.growth.inputs import config, write_repository
from benchmarks.growth.page import RESULTS, write_page
from benchmarks.growth.servers import instant_servers
from benchmarks.processes import forget_settings
from services.evaluation.environment import usable_cpus
from services.inference.repository import BASELINE


def main(
    page: Annotated[
        bool, typer.Option("--page", help="Put the figures into docs/growth.md.")
    ] = False,
    measured: Annotated[
        bool, typer.Option("--measured", help="Measure nothing, take the figures as they stand.")
    ] = False,
) -> None:
    """Measure what growing costs: bytes, processor time, and how servers are found."""
    results = json.loads(RESULTS.read_text()) if measured else asyncio.run(measure())
    Console().print(table(results))
    if not measured:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if page:
        write_page(results)


async def measure() -> dict[str, Any]:
    """All figures, in the order of the page."""
    results: dict[str, Any] = {
        "environment": environment(),
        "wire": costs.wire(),
        "decode": costs.decoding(),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        instant_servers(config(BASELINE)) as port,
    ):
        models, address = write_repository(Path(folder)), f"127.0.0.1:{port}"
        results["client"] = {
            batch: await costs.client(address, batch, models) for batch in costs.BATCHES
        }
        results["service"] = await costs.service(address, Path(folder))
        results["evaluation"] = {
            batch: await costs.evaluation(address, batch, models) for batch in (8, 32)
        }
    results["names"] = await names.names()
    results["new_server"] = await names.aging()
    return dict(json.loads(json.dumps(results)))  # keys as a file has them


def environment() -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpus": usable_cpus(),
        "machine": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("grpcio", "numpy", "pillow", "tritonclient")
        },
    }


def table(results: dict[str, Any]) -> Table:
    """One row a figure."""
    shown = Table("what", "figure", title="What growing costs")
    shown.columns[1].justify = "right"

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix} {key}".strip(), inner)
        else:
            shown.add_row(prefix, f"{value:,.2f}" if isinstance(value, float) else str(value))

    add("", results)
    return shown


if __name__ == "__main__":
    forget_settings()
    typer.run(main)
