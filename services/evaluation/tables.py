"""The tables that `mkf-eval` prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.evaluation import wording
from services.evaluation.records import ROLES
from services.evaluation.results import Results


def print_results(console: Console, results: Results, folder: Path) -> None:
    """Accuracy, the paired comparison, latency, and where the files are.

    Parameters
    ----------
    folder
        Of the run's files.
    """
    console.print(f"Evaluation of {escape(wording.images(results))}", style="bold", highlight=False)
    for warning in results.warnings:
        console.print(f"  ! {escape(warning)}", style="yellow", highlight=False)
    console.print(_accuracy(results))
    console.print(_paired(results))
    console.print(_latency(results))
    for line in (wording.missing_percentiles(results), wording.verdict(results)):
        if line:
            console.print(line, highlight=False)
    console.print(
        f"\n{escape(str(folder))}/: results.json, samples.parquet, report.html",
        highlight=False,
        soft_wrap=True,
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="left" if number == 0 else "right", no_wrap=number > 0, style=""
        )
    return table


def _accuracy(results: Results) -> Table:
    title = f"\nAccuracy on {results.dataset.images:,} images, with 95 % intervals"
    if results.dataset.limited:
        title += " (a subset)"
    table = _table(title, "model", "top-1", "interval", "top-5", "interval")
    for role in ROLES:
        model = getattr(results.models, role)
        mark = " (random weights)" if model.random_weights else ""
        table.add_row(
            f"{escape(model.name)}{mark}",
            wording.percent(model.top1),
            wording.percent_interval(model.top1_interval),
            wording.percent(model.top5),
            wording.percent_interval(model.top5_interval),
        )
    table.add_row(
        "difference",
        f"{wording.points(results.paired.difference_pp)} pp",
        wording.points_interval(results.paired.difference_interval_pp),
        "",
        "",
        style="bold",
    )
    return table


def _paired(results: Results) -> Table:
    paired = results.paired
    title = "\nTop-1 on the same images, in images"
    table = _table(title, "", "both right", "only baseline", "only idealized", "neither", "McNemar")
    table.add_row(
        "",
        *(
            f"{count:,}"
            for count in (
                paired.both,
                paired.only_baseline,
                paired.only_idealized,
                paired.neither,
            )
        ),
        f"p {wording.p_value(paired.mcnemar_p)}",
    )
    return table


def _latency(results: Results) -> Table:
    title = (
        f"\nLatency in ms of a request of {results.run.batch_size} images (one in flight), "
        "and images a second"
    )
    table = _table(title, "model", *wording.PERCENTILES, "requests", "images/s")
    for role in ROLES:
        latency = getattr(results.latency, role)
        table.add_row(
            escape(getattr(results.models, role).name),
            *(wording.percentile(latency, label) for label in wording.PERCENTILES),
            f"{latency.requests:,}",
            f"{getattr(results.throughput, role):,.0f}",
        )
    table.add_row(
        "the whole run, both models", *[""] * 6, f"{results.throughput.run:,.0f}", style="dim"
    )
    return table
