"""From a run's records to its results: every figure of results.json is computed here."""

from __future__ import annotations

from datetime import UTC, datetime

from services.evaluation import statistics
from services.evaluation.progress import Progress
from services.evaluation.records import ROLES, Run
from services.evaluation.results import (
    DatasetInfo,
    Environment,
    Latency,
    Measurement,
    ModelLatency,
    ModelResult,
    Models,
    Paired,
    Results,
    RunInfo,
    Throughput,
)
from services.evaluation.runner import LATENCY_METHOD, WARMUP_REQUESTS
from services.evaluation.store import Store
from services.inference.repository import ServedModel

PAIRED_COUNTS = """
SELECT COALESCE(SUM(b.rank = 0 AND i.rank = 0), 0), COALESCE(SUM(b.rank = 0 AND i.rank > 0), 0),
       COALESCE(SUM(b.rank > 0 AND i.rank = 0), 0), COALESCE(SUM(b.rank > 0 AND i.rank > 0), 0),
       COALESCE(SUM(b.rank < 5), 0), COALESCE(SUM(i.rank < 5), 0)
FROM samples AS b JOIN samples AS i USING (run_id, image)
WHERE run_id = ? AND b.role = 'baseline' AND i.role = 'idealized'
"""


def recorded_progress(store: Store, run: Run) -> Progress:
    """How far a run was when it was recorded last."""
    table, top5 = _accuracy(store, run.run_id)
    return Progress(
        images_total=run.plan.images_total,
        images_done=run.images_done,
        correct_top1=_correct_top1(table),
        correct_top5=top5,
        only_correct={"baseline": table.only_baseline, "idealized": table.only_idealized},
    )


def summarize(
    store: Store,
    run: Run,
    *,
    models: tuple[ServedModel, ServedModel],
    notes: tuple[str, ...],
    environment: Environment,
) -> Results:
    """The results of a run whose images are all recorded.

    Parameters
    ----------
    notes
        Of the dataset.
    """
    plan = run.plan
    table, top5 = _accuracy(store, run.run_id)
    top1 = _correct_top1(table)
    difference = statistics.paired_difference(table)
    by_role = dict(zip(ROLES, models, strict=True))
    scored = {
        role: _model_result(model, top1[role], top5[role], table.images)
        for role, model in by_role.items()
    }
    ((seconds,),) = store.select("SELECT SUM(seconds) FROM batches WHERE run_id = ?", (run.run_id,))
    return Results(
        warnings=_warnings(run, models, scored, notes) + _repeats(store, run.run_id),
        run=RunInfo(
            id=run.run_id,
            created=run.created,
            finished=datetime.now(UTC),
            batch_size=plan.batch_size,
            seed=plan.seed,
            resumed=run.resumed,
            seconds=seconds,
        ),
        dataset=DatasetInfo(
            uri=plan.dataset_uri,
            images=plan.images_total,
            available=plan.images_available,
            limited=plan.images_total < plan.images_available,
            fingerprint=plan.fingerprint,
            notes=list(notes),
        ),
        models=Models(**scored),
        paired=Paired(
            both=table.both,
            only_baseline=table.only_baseline,
            only_idealized=table.only_idealized,
            neither=table.neither,
            difference_pp=difference.points,
            difference_interval_pp=(difference.low, difference.high),
            mcnemar_p=statistics.mcnemar_exact(table),
        ),
        latency=Latency(**{role: _latency(store, run, role) for role in ROLES}),
        throughput=Throughput(
            run=table.images / seconds,
            **{role: _throughput(store, run.run_id, role) for role in ROLES},
        ),
        measurement=Measurement(
            method=LATENCY_METHOD,
            batch_size=plan.batch_size,
            warmup_requests=WARMUP_REQUESTS,
            percentile_requests={
                f"p{percentile:g}": statistics.smallest_sample(percentile)
                for percentile in statistics.PERCENTILES
            },
        ),
        environment=environment,
    )


def _accuracy(store: Store, run_id: str) -> tuple[statistics.PairedTable, dict[str, int]]:
    """The paired table of top-1, and the images that each role had right by top-5."""
    ((*cells, baseline, idealized),) = store.select(PAIRED_COUNTS, (run_id,))
    return statistics.PairedTable(*cells), dict(zip(ROLES, (baseline, idealized), strict=True))


def _correct_top1(table: statistics.PairedTable) -> dict[str, int]:
    return {
        "baseline": table.both + table.only_baseline,
        "idealized": table.both + table.only_idealized,
    }


def _model_result(model: ServedModel, top1: int, top5: int, images: int) -> ModelResult:
    return ModelResult(
        name=model.name,
        source=model.manifest.source,
        license=model.manifest.license,
        random_weights=model.manifest.random_weights,
        graph_sha256=model.manifest.graph_sha256,
        expected_top1=model.manifest.expected_top1,
        classes=len(model.labels),
        correct_top1=top1,
        top1=top1 / images,
        top1_interval=statistics.wilson_interval(top1, images),
        correct_top5=top5,
        top5=top5 / images,
        top5_interval=statistics.wilson_interval(top5, images),
    )


def _latency(store: Store, run: Run, role: str) -> ModelLatency:
    """Of full batches sent once: a smaller last one is another request, a repeat another story."""
    rows = list(
        store.select(
            "SELECT latency_ms, queue_ms, inference_ms FROM requests "
            "WHERE run_id = ? AND role = ? AND images = ? AND attempts = 1",
            (run.run_id, role, run.plan.batch_size),
        )
    )
    latencies, queues, inferences = zip(*rows, strict=True) if rows else ((), (), ())
    percentiles = statistics.latency_percentiles(latencies)
    return ModelLatency(
        p50_ms=percentiles[50.0],
        p90_ms=percentiles[90.0],
        p95_ms=percentiles[95.0],
        p99_ms=percentiles[99.0],
        p99_9_ms=percentiles[99.9],
        mean_ms=_mean(latencies),
        min_ms=min(latencies, default=None),
        max_ms=max(latencies, default=None),
        mean_queue_ms=_mean(queues),
        mean_inference_ms=_mean(inferences),
        requests=len(rows),
    )


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _throughput(store: Store, run_id: str, role: str) -> float:
    ((rate,),) = store.select(
        "SELECT SUM(images) / SUM(latency_ms) * 1000 FROM requests WHERE run_id = ? AND role = ?",
        (run_id, role),
    )
    return float(rate)


def _repeats(store: Store, run_id: str) -> list[str]:
    ((repeated,),) = store.select(
        "SELECT COUNT(*) FROM requests WHERE run_id = ? AND attempts > 1", (run_id,)
    )
    if not repeated:
        return []
    return [
        f"{repeated:,} requests were sent more than once, because a server was going or coming: "
        "their answers count, their latency does not"
    ]


def _warnings(
    run: Run,
    models: tuple[ServedModel, ServedModel],
    scored: dict[str, ModelResult],
    notes: tuple[str, ...],
) -> list[str]:
    plan = run.plan
    warnings = []
    if plan.images_total < plan.images_available:
        warnings.append(f"subset: {plan.images_total:,} of {plan.images_available:,} images")
    for role, model in zip(ROLES, models, strict=True):
        result = scored[role]
        chance = 1 / result.classes
        if model.manifest.random_weights:
            warnings.append(
                f"the weights of {model.name} are random: its figures say nothing of the method"
            )
        elif result.top1_interval[0] <= chance:
            warnings.append(
                f"top-1 near chance: {model.name} has {100 * result.top1:.2f} %, "
                f"guessing {100 * chance:.2f} %; "
                "check that the labels are in the order of the model's classes"
            )
        if model.manifest.role != role:
            warnings.append(
                f"{model.name} stands as the {role} model here, "
                f"its manifest calls it {model.manifest.role}"
            )
    baseline, idealized = (model.manifest for model in models)
    if baseline.graph_sha256 != idealized.baseline_sha256:
        warnings.append(
            f"{idealized.name} was not exported beside {baseline.name}: "
            "they may differ in more than their filters"
        )
    calibration = idealized.fit and idealized.fit.calibration
    if calibration and calibration.dataset == plan.dataset_uri:
        warnings.append(
            f"{idealized.name} was refitted, without labels, on the first {calibration.images:,} "
            "of these images"
        )
    if scored["baseline"].classes <= 5:
        warnings.append("with 5 classes or fewer, top-5 is always right")
    if run.resumed:
        warnings.append(
            f"the run was interrupted and resumed ({run.resumed} x): "
            "latency and throughput come from several processes"
        )
    return warnings + list(notes)
