"""How figures are written, in the terminal and in the report alike."""

from __future__ import annotations

from services.evaluation.results import ModelLatency, Results

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
PERCENTILES = {  # label in tables -> field of ModelLatency
    "p50": "p50_ms",
    "p90": "p90_ms",
    "p95": "p95_ms",
    "p99": "p99_ms",
    "p99.9": "p99_9_ms",
}
MEANS = {  # likewise; the last two are the engine's own word
    "mean": "mean_ms",
    "of it in the queue": "mean_queue_ms",
    "of it computed": "mean_inference_ms",
}


def percent(share: float) -> str:
    """A share as a percentage: 0.9153 is 91.53 %."""
    return f"{100 * share:.2f} %"


def percent_interval(interval: tuple[float, float]) -> str:
    """An interval of shares, in percent."""
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def points(difference: float) -> str:
    """A signed difference in percentage points, without the unit."""
    text = f"{difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def points_interval(interval: tuple[float, float]) -> str:
    """An interval of differences in percentage points, with the unit."""
    return f"{points(interval[0])} to {points(interval[1])} pp"


def p_value(p: float) -> str:
    """A p value with its relation: "= 0.072", "< 0.0001"."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def milliseconds(value: float | None) -> str:
    """A latency, without the unit; a dash where there is none."""
    if value is None:
        return DASH
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def images(results: Results) -> str:
    """Which images: all of a dataset, or the part that was taken."""
    dataset = results.dataset
    if dataset.limited:
        return f"{dataset.images:,} of the {dataset.available:,} images of {dataset.uri}"
    return f"all {dataset.images:,} images of {dataset.uri}"


def comparison(results: Results) -> str:
    """The paired difference in one sentence."""
    paired = results.paired
    return (
        f"The idealized model's top-1 minus the baseline's is {points(paired.difference_pp)} "
        f"percentage points (95 % interval {points_interval(paired.difference_interval_pp)}, "
        f"exact McNemar p {p_value(paired.mcnemar_p)})."
    )


def verdict(results: Results) -> str:
    """What the interval of the difference says, in one sentence."""
    low, high = results.paired.difference_interval_pp
    if low > 0:
        return "The interval lies above zero: the idealized model is the more accurate one."
    if high < 0:
        return "The interval lies below zero: the idealized model is the less accurate one."
    return "The interval holds zero: these images do not tell the two models apart."


def missing_percentiles(results: Results) -> str:
    """Why a latency table has dashes; empty where it has none."""
    needs = results.measurement.percentile_requests
    missing = {
        label: needs[label]
        for label, field in PERCENTILES.items()
        for latency in (results.latency.baseline, results.latency.idealized)
        if getattr(latency, field) is None
    }
    if not missing:
        return ""
    wanted = ", ".join(f"{label} {number:,}" for label, number in missing.items())
    return (
        f"{DASH}: too few requests to carry the percentile. It takes {wanted}; "
        f"there were {results.latency.baseline.requests:,} of {results.run.batch_size} images."
    )


def percentile(latency: ModelLatency, label: str) -> str:
    """A percentile of a model's latency, by its label."""
    return milliseconds(getattr(latency, PERCENTILES[label]))
