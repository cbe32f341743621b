"""What a run found, to read and as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.parity.comparison import (
    PROBABILITY_ROUNDING,
    SMALLEST_PROBABILITY,
    TORCH_TOLERANCE,
    Comparison,
)
from benchmarks.parity.hops import Plan
from benchmarks.parity.run import Choice, Outcome
from benchmarks.parity.server import runtime_version
from services.evaluation.environment import describe_environment, usable_cpus

SCHEMA_VERSION = 1


def to_json(outcome: Outcome, plan: Plan, choice: Choice) -> dict[str, Any]:
    """All that was found and what it was found with."""
    breaches = outcome.breaches()
    images = plan.images
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": not breaches,
        "breaches": breaches,
        "not_run": outcome.not_run,
        "images": {
            "dataset": images.dataset,
            "of_dataset": len(images.names) - images.noise,
            "noise": images.noise,
        },
        "models": {name: model.manifest.graph_sha256 for name, model in plan.models.items()},
        "tolerances": {
            "torch": TORCH_TOLERANCE,
            "engines": plan.tolerance,
            "probability_rounding": PROBABILITY_ROUNDING,
            "smallest_probability": SMALLEST_PROBABILITY,
        },
        "comparisons": [comparison.to_json() for comparison in outcome.comparisons],
        "bytes_sent": [asdict(sent) for sent in outcome.bytes_sent],
        "batched": {model: asdict(found) for model, found in outcome.batched.items()},
        "caches": [asdict(cache) for cache in outcome.caches],
        "same_model": outcome.same_model and outcome.same_model.to_json(),
        "environment": _environment(outcome, plan, choice),
    }


def print_report(outcome: Outcome, plan: Plan, console: Console) -> None:
    """The table, and a line for each other check."""
    images = plan.images
    console.print(
        f"Largest difference of a logit by batch size; {len(images.names) - images.noise} images "
        f"of {images.dataset}, {images.noise} of noise",
        markup=False,
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("hop", "beside"):
        table.add_column(name, no_wrap=True)
    for name in (*map(str, plan.sizes), "limit", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in _rows(outcome.comparisons):
        if row[0].model != previous:
            table.add_row(Text(row[0].model, overflow="ignore"))
        table.add_row(*_cells(row, plan))
        previous = row[0].model
    console.print(table)
    console.print(
        f"*: of log-probabilities, which float32 carries to {PROBABILITY_ROUNDING:.0e} and down to "
        f"{SMALLEST_PROBABILITY:.0e}; top-1: images with the same one\n",
        markup=False,
        highlight=False,
    )
    for line in _lines(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not outcome.breaches():
        console.print("Every hop that was run gives the same answer, within its limit.")


def _rows(comparisons: list[Comparison]) -> list[list[Comparison]]:
    """Of one model, hop and other hop each, all batch sizes; models in turn."""
    rows: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in comparisons:
        rows.setdefault((one.model, one.hop, one.against), []).append(one)
    models = list(dict.fromkeys(model for model, _, _ in rows))
    return [row for model in models for key, row in rows.items() if key[0] == model]


def _cells(row: list[Comparison], plan: Plan) -> list[str]:
    by_size = {one.batch_size: one for one in row}
    first = row[0]
    agreement = {
        f"{one.agreeing} of {one.images}" + (f", {one.ties} ties" if one.ties else "")
        for one in row
    }
    return [
        f" {first.hop}" + ("*" if first.unit == "log-probability" else ""),
        first.against,
        *(_difference(by_size.get(size)) for size in plan.sizes),
        f"{max(one.limit for one in row):.1e}",
        " / ".join(sorted(agreement)),
    ]


def _difference(one: Comparison | None) -> str:
    if one is None:
        return "-"
    if one.bit_equal:
        return "0"
    return "not finite" if one.largest_difference is None else f"{one.largest_difference:.1e}"


def _lines(outcome: Outcome) -> Iterator[str]:
    for sent in outcome.bytes_sent:
        if not sent.breaches():
            requests = " and ".join(f"{count:,}" for count in sent.requests.values())
            yield (
                f"Bytes sent at {sent.hop}: the images' own pixels, the same for both models "
                f"({requests} requests, by SHA-256)."
            )
    for model, batched in outcome.batched.items():
        yield (
            f"{model}, requests at once: Triton made {batched.executions} batches of "
            f"{batched.images} images."
        )
    for cache in outcome.caches:
        if not cache.breaches():
            executions = cache.after.executions - cache.before.executions
            yield (
                f"Response cache of {cache.model}: off, no hits; {cache.requests} equal requests "
                f"made {executions} executions."
            )
    if outcome.same_model is not None:
        same = outcome.same_model
        ratios = ", ".join(
            f"{name} {'-' if ratio is None else format(ratio, '.3f')}"
            for name, ratio in same.latency_ratio().items()
        )
        yield (
            f"{same.model} beside itself, {same.images:,} images through {same.engine}: "
            f"{same.difference_pp:+.2f} pp, {same.discordant} discordant images, "
            f"p = {same.mcnemar_p:.3g}; latency of one over the other: {ratios} (the noise)."
        )
    for what, why in outcome.not_run.items():
        yield f"Not run: {what}: {why}."


def _environment(outcome: Outcome, plan: Plan, choice: Choice) -> dict[str, Any]:
    if not choice.triton:
        engine = "embedded"
    else:
        engine = "triton, of this run" if choice.servers is None else "triton"
    first, last = (list(plan.models.values())[place] for place in (0, -1))
    described = describe_environment(
        engine=engine,
        engine_versions=outcome.engine_versions,
        models=(first, last),
        decode_threads=usable_cpus(),
    ).model_dump()
    versions = described["versions"]
    for package in ("onnxruntime", "torch", "timm"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if choice.triton and choice.servers is None:
        versions["onnxruntime of triton"] = runtime_version()
    return described | {
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average": os.getloadavg()[0],  # of the last minute, this run included
    }
