"""Runs both models over the same pixels and records what they said and how long they took."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from services.errors import InvalidInputError, PreconditionError, ServiceError
from services.evaluation import metrics
from services.evaluation.datasets import Dataset, Fingerprint, Sample
from services.evaluation.pixels import Batch, batches
from services.evaluation.progress import Progress
from services.evaluation.records import ROLES, BatchRecord, Prediction, Request, Run
from services.evaluation.store import Store
from services.inference.engine import Engine, ServerTimes
from services.inference.repository import ServedModel, find_model

WARMUP_REQUESTS = 3  # to each model, before the first that counts
LATENCY_METHOD = (
    "closed loop: one request in flight at a time, the models take turns in an order drawn for "
    "each pair of batches; wall time of a request of a full batch that was sent once, as the "
    "service sees it"
)


def comparable_models(
    models: dict[str, ServedModel], names: tuple[str, str]
) -> tuple[ServedModel, ServedModel]:
    """The baseline and the idealized model, if they can be compared on the same pixels.

    Raises
    ------
    InvalidInputError
        The two are one.
    NotFoundError
        No such model.
    PreconditionError
        They differ in their preprocessing or in their labels.
    """
    if names[0] == names[1]:
        raise InvalidInputError(f"{names[0]} cannot be compared with itself; name two models")
    baseline, idealized = (find_model(models, name) for name in names)
    for what in ("preprocessing", "labels"):
        if getattr(baseline, what) != getattr(idealized, what):
            raise PreconditionError(
                f"{names[0]} and {names[1]} differ in their {what} and cannot be compared; "
                "export both from one source"
            )
    return baseline, idealized


async def run_batches(
    run: Run,
    dataset: Dataset,
    *,
    engine: Engine,
    models: tuple[ServedModel, ServedModel],
    store: Store,
    progress: Progress,
    threads: int,
    timeout_seconds: float,
) -> bool:
    """Take the run's images, from the first that is not recorded, through both models.

    Parameters
    ----------
    threads
        That decode.
    timeout_seconds
        The deadline of each request to the engine, however often that sends it.

    Returns
    -------
    bool
        Whether all images are done; False where `progress.stop` ended the run before.

    Raises
    ------
    ServiceError
        A sample cannot be used, the dataset changed under the run, or the engine failed.
    """
    plan = run.plan
    fingerprint = Fingerprint()
    selected = _watched(itertools.islice(dataset.samples(), plan.images_total), fingerprint)
    for _ in itertools.islice(selected, run.images_done):
        pass  # recorded before the run was interrupted
    await _warm_up(engine, models, batch_size=plan.batch_size, timeout_seconds=timeout_seconds)
    times = await engine.server_times()
    number = run.batches_done
    stream = batches(
        selected,
        preprocessing=models[0].preprocessing,
        batch_size=plan.batch_size,
        threads=threads,
    )
    began = time.perf_counter()
    try:
        async for batch in stream:
            requests = {}
            for index in turns(plan.seed, number):
                if progress.stop:
                    return False
                requests[ROLES[index]] = await _request(
                    engine, models[index], batch, timeout_seconds=timeout_seconds
                )
            before, times = times, await engine.server_times()
            for role, model in zip(ROLES, models, strict=True):
                if model.name in times:
                    requests[role] = _timed_by_server(
                        requests[role], before.get(model.name), times[model.name]
                    )
            ended = time.perf_counter()
            record = BatchRecord(
                number=number,
                seconds=ended - began,
                ids=[sample.id for sample in batch.samples],
                labels=[sample.label for sample in batch.samples],
                requests=requests,
            )
            # Not in a thread: a millisecond, and no stop can come between the work and its record.
            store.record(run.run_id, record)
            progress.add(record)
            metrics.observe(plan.models, record, progress)
            number, began = number + 1, ended
    finally:
        await stream.aclose()
    if fingerprint.hexdigest() != plan.fingerprint:
        raise PreconditionError(
            f"{plan.dataset_uri} changed while the run {run.run_id} was under way; start a new run"
        )
    return True


def turns(seed: int, batch: int) -> tuple[int, int]:
    """Which model goes first in a batch: of two batches, each model once, in a drawn order."""
    flip = int(np.random.default_rng([seed, batch // 2]).integers(2))
    first = (batch + flip) % 2
    return first, 1 - first


def judge(logits: NDArray[np.float32], label: int) -> Prediction:
    """What the logits (classes,) say of an image; among equal logits the lower class leads."""
    own = logits[label]
    rank = np.count_nonzero(logits > own) + np.count_nonzero(logits[:label] == own)
    predicted = int(np.argmax(logits))
    probability = float(softmax(logits.astype(np.float64))[predicted])
    return Prediction(predicted=predicted, rank=int(rank), probability=probability)


def _watched(samples: Iterator[Sample], fingerprint: Fingerprint) -> Iterator[Sample]:
    for sample in samples:
        fingerprint.add(sample)
        yield sample


async def _warm_up(
    engine: Engine,
    models: tuple[ServedModel, ServedModel],
    *,
    batch_size: int,
    timeout_seconds: float,
) -> None:
    height, width = models[0].preprocessing.input_size
    noise = np.random.default_rng(0).integers(256, size=(batch_size, height, width, 3))
    for _ in range(WARMUP_REQUESTS):
        for model in models:
            await engine.infer(model.name, noise.astype(np.uint8), timeout_seconds=timeout_seconds)


async def _request(
    engine: Engine, model: ServedModel, batch: Batch, *, timeout_seconds: float
) -> Request:
    began = time.perf_counter()
    answer = await engine.infer(model.name, batch.pixels, timeout_seconds=timeout_seconds)
    seconds = time.perf_counter() - began
    if not np.isfinite(answer.logits).all():
        raise ServiceError(
            f"{model.name} answered with logits that are no finite numbers; its weights are broken"
        )
    return Request(
        latency_ms=1000 * seconds,
        queue_ms=1000 * answer.queue_seconds,
        inference_ms=1000 * answer.inference_seconds,
        attempts=answer.attempts,
        predictions=[
            judge(logits, sample.label)
            for logits, sample in zip(answer.logits, batch.samples, strict=True)
        ],
    )


def _timed_by_server(request: Request, before: ServerTimes | None, after: ServerTimes) -> Request:
    """The request with the server's own times: means over what it answered since the last batch.

    That is this request alone where nobody else asks for the model. None where the sums do not go
    on from the last ones, because a server was away or has started again.
    """
    queue_ms = inference_ms = None
    if before is not None and after.requests > before.requests:
        requests = after.requests - before.requests
        queue = (after.queue_seconds - before.queue_seconds) / requests
        inference = (after.inference_seconds - before.inference_seconds) / requests
        if min(queue, inference) >= 0:
            queue_ms, inference_ms = 1000 * queue, 1000 * inference
    return dataclasses.replace(request, queue_ms=queue_ms, inference_ms=inference_ms)
