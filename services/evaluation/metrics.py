"""What Prometheus sees of evaluations; running figures are those of the run that moved last."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.evaluation.progress import Progress
from services.evaluation.records import ROLES, BatchRecord, State
from services.runtime.metrics import SECONDS

IMAGES = Counter("mkf_evaluation_images_total", "Images evaluated.", ["model"])
REQUEST_SECONDS = Histogram(
    "mkf_evaluation_request_duration_seconds",
    "Wall time of a request, one batch, to the engine.",
    ["model"],
    buckets=SECONDS,
)
TOP1 = Gauge("mkf_evaluation_top1_ratio", "Running top-1 accuracy, 0 to 1.", ["model"])
DISCORDANT = Gauge(
    "mkf_evaluation_discordant_images", "Images that one model alone had right.", ["only_correct"]
)
DIFFERENCE = Gauge(
    "mkf_evaluation_top1_difference_ratio",
    "Running top-1 accuracy of the idealized model minus the baseline's, -1 to 1.",
)
RUNS = Gauge("mkf_evaluation_runs", "Runs in the results directory.", ["state"])


def observe(models: tuple[str, str], batch: BatchRecord, progress: Progress) -> None:
    """Take in a batch that was recorded."""
    for role, model in zip(ROLES, models, strict=True):
        IMAGES.labels(model).inc(len(batch.ids))
        REQUEST_SECONDS.labels(model).observe(batch.requests[role].latency_ms / 1000)
        TOP1.labels(model).set(progress.correct_top1[role] / progress.images_done)
        DISCORDANT.labels(model).set(progress.only_correct[role])
    gained = progress.only_correct["idealized"] - progress.only_correct["baseline"]
    DIFFERENCE.set(gained / progress.images_done)


def count_runs(counts: dict[State, int]) -> None:
    """Show how many runs are in each state."""
    for state, number in counts.items():
        RUNS.labels(state.lower()).set(number)
