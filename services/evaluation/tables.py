"""The table that `mkf-eval` prints."""

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

    def line(text: str, style: str = "") -> None:
        console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    line(f"Evaluation of {wording.images(results)}", "bold")
    for warning in results.warnings:
        line(f"! {warning}", "yellow")
    console.print()
    console.print(_table(results))
    console.print()
    line(
        f"Intervals are of 95 %. Latency: requests of {results.run.batch_size} images, "
        "one in flight."
    )
    if reason := wording.missing_percentiles(results):
        line(reason)
    line(wording.verdict(results))
    line(f"\n{folder}/: results.json, samples.parquet, report.html")


def _table(results: Results) -> Table:
    """Figures by row; the baseline, the idealized model and their comparison by column."""
    models = [getattr(results.models, role) for role in ROLES]
    latencies = [getattr(results.latency, role) for role in ROLES]
    paired = results.paired
    table = Table(box=None, pad_edge=False)
    table.add_column("subset" if results.dataset.limited else "", style="bold")
    for model in models:
        mark = "\n(random weights)" if model.random_weights else ""
        table.add_column(f"{escape(model.name)}{mark}", justify="right")
    table.add_column("difference", justify="right")
    table.add_row(
        "top-1",
        *(wording.percent(model.top1) for model in models),
        f"{wording.points(paired.difference_pp)} pp",
    )
    table.add_row(
        "  interval",
        *(wording.percent_interval(model.top1_interval) for model in models),
        wording.points_interval(paired.difference_interval_pp),
    )
    table.add_row("top-5", *(wording.percent(model.top5) for model in models), "")
    table.add_row(
        "  interval", *(wording.percent_interval(model.top5_interval) for model in models), ""
    )
    table.add_row(
        "right alone, images",
        f"{paired.only_baseline:,}",
        f"{paired.only_idealized:,}",
        f"McNemar p {wording.p_value(paired.mcnemar_p)}",
    )
    table.add_row("right by both", "", "", f"{paired.both:,}")
    table.add_row("right by neither", "", "", f"{paired.neither:,}")
    for label in wording.PERCENTILES:
        cells = (wording.percentile(latency, label) for latency in latencies)
        table.add_row(f"latency {label}, ms", *cells, "")
    for label, field in wording.MEANS.items():
        cells = (wording.milliseconds(getattr(latency, field)) for latency in latencies)
        table.add_row(f"latency {label}, ms" if label == "mean" else f"  {label}", *cells, "")
    table.add_row("requests", *(f"{latency.requests:,}" for latency in latencies), "")
    table.add_row(
        "images a second",
        *(f"{getattr(results.throughput, role):,.0f}" for role in ROLES),
        f"{results.throughput.run:,.0f} the whole run",
    )
    return table
