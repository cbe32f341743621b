"""The evaluation service: runs in the background, which its clients watch, fetch and cancel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from mkf.v1 import evaluation_pb2 as pb
from mkf.v1 import evaluation_pb2_grpc
from services.errors import (
    InvalidInputError,
    LimitError,
    PreconditionError,
    ServiceError,
    UnavailableError,
)
from services.evaluation import metrics
from services.evaluation.datasets import Dataset, open_dataset, survey
from services.evaluation.environment import describe_environment, usable_cpus
from services.evaluation.files import FILES, write_files
from services.evaluation.messages import progress_message, read_chunk, read_results, run_message
from services.evaluation.progress import Progress
from services.evaluation.records import ROLES, Plan, Run, State
from services.evaluation.runner import comparable_models, run_batches
from services.evaluation.store import RUN_ID, Store
from services.evaluation.summary import recorded_progress
from services.inference.engine import Engine
from services.inference.repository import BASELINE, IDEALIZED, ServedModel
from services.runtime.settings import Settings

NAME = pb.DESCRIPTOR.services_by_name["EvaluationService"].full_name
PROGRESS_SECONDS = 0.25
SHARED_NOTE = (
    "another evaluation ran at the same time: latency and throughput are of a shared machine"
)
DEFAULT_PAGE, LARGEST_PAGE = 50, 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Comparison:
    """What a run needs beside its plan."""

    models: tuple[ServedModel, ServedModel]
    dataset: Dataset


@dataclass
class _Active:
    """A run that this process carries."""

    run: Run
    progress: Progress
    cancelled: bool = False
    shared: bool = False  # whether another run went on at the same time
    task: asyncio.Task[pb.Evaluation] | None = None

    @property
    def ended(self) -> asyncio.Task[pb.Evaluation]:
        assert self.task is not None  # noqa: S101 (set where the run is made active)
        return self.task


class EvaluationServicer(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Evaluates pairs of the engine's models; await `close` at the end.

    Parameters
    ----------
    engine, models
        As `open_engine` gives them; the engine stays the caller's.
    settings
        `results_directory` holds the runs: one that was cut off shows as INTERRUPTED from now on.
    """

    def __init__(self, engine: Engine, models: dict[str, ServedModel], settings: Settings) -> None:
        self._engine = engine
        self._models = models
        self._settings = settings
        self._threads = settings.decode_threads or usable_cpus()
        self._store = Store(settings.results_directory)
        self._active: dict[str, _Active] = {}
        self._starting = 0
        self._closing = False
        metrics.count_runs(self._store.counts())

    async def close(self) -> None:
        """End all runs as INTERRUPTED: each behind its request under way, or after the grace."""
        if self._closing:
            return
        self._closing = True
        for active in self._active.values():
            active.progress.stop = True
        tasks = [active.ended for active in self._active.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_grace_seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self._store.close()

    async def RunEvaluation(  # noqa: N802
        self,
        request: pb.RunEvaluationRequest,
        _context: Any,
    ) -> AsyncIterator[pb.RunEvaluationResponse]:
        """Start a run, or take one up, and show its progress; it outlives this call."""
        active = await self._start(request)
        while not active.ended.done():
            yield pb.RunEvaluationResponse(progress=progress_message(active.run, active.progress))
            await asyncio.wait([active.ended], timeout=PROGRESS_SECONDS)
        if active.ended.cancelled():
            raise UnavailableError(_interrupted(active.run.run_id))
        finished = active.ended.result()
        if finished.state == pb.EVALUATION_STATE_INTERRUPTED:
            raise UnavailableError(_interrupted(active.run.run_id))
        yield pb.RunEvaluationResponse(progress=progress_message(active.run, active.progress))
        yield pb.RunEvaluationResponse(finished=finished)

    async def GetEvaluation(  # noqa: N802
        self, request: pb.GetEvaluationRequest, _context: Any
    ) -> pb.GetEvaluationResponse:
        """One run, with its results when it has succeeded."""
        return pb.GetEvaluationResponse(evaluation=self._evaluation(request.run_id))

    async def ListEvaluations(  # noqa: N802
        self, request: pb.ListEvaluationsRequest, _context: Any
    ) -> pb.ListEvaluationsResponse:
        """The runs, newest first, page by page."""
        token = request.page_token
        if token and not RUN_ID.fullmatch(token):
            raise InvalidInputError("page_token is none that this service gave; start without one")
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        runs = self._store.runs(before=token, limit=size + 1)
        return pb.ListEvaluationsResponse(
            evaluations=[run_message(run) for run in runs[:size]],
            next_page_token=runs[size - 1].run_id if len(runs) > size else "",
        )

    async def CancelEvaluation(  # noqa: N802
        self, request: pb.CancelEvaluationRequest, _context: Any
    ) -> pb.CancelEvaluationResponse:
        """End a run behind its request under way; a run that is cancelled already stays so."""
        run = self._store.get(request.run_id)
        if active := self._active.get(run.run_id):
            active.cancelled = True
            active.progress.stop = True
            await asyncio.wait([active.ended])
        elif run.state != State.CANCELLED:
            where = " in another process" if run.state == State.RUNNING else ""
            raise PreconditionError(
                f"the run {run.run_id} cannot be cancelled: it is {run.state}{where}"
            )
        return pb.CancelEvaluationResponse(evaluation=self._evaluation(run.run_id))

    async def DownloadEvaluation(  # noqa: N802
        self, request: pb.DownloadEvaluationRequest, _context: Any
    ) -> AsyncIterator[pb.DownloadEvaluationResponse]:
        """The files of a run that has succeeded, in chunks."""
        run = self._store.get(request.run_id)
        if run.state != State.SUCCEEDED:
            raise PreconditionError(
                f"the run {run.run_id} is {run.state}; only one that has succeeded has files"
            )
        for name in FILES:
            path = self._store.folder(run.run_id) / name
            offset = 0
            while chunk := await asyncio.to_thread(read_chunk, path, offset):
                yield pb.DownloadEvaluationResponse(file_name=name, chunk=chunk)
                offset += len(chunk)

    async def _start(self, request: pb.RunEvaluationRequest) -> _Active:
        if request.resume_run_id in self._active:
            return self._active[request.resume_run_id]
        limit = self._settings.max_concurrent_evaluations
        if len(self._active) + self._starting >= limit:
            raise LimitError(f"{limit} evaluations are under way; wait for one or cancel it")
        self._starting += 1
        try:
            if request.resume_run_id:
                return await self._resume(request.resume_run_id)
            return await self._create(request)
        finally:
            self._starting -= 1

    async def _create(self, request: pb.RunEvaluationRequest) -> _Active:
        names = tuple(request.models) or (BASELINE, IDEALIZED)
        if len(names) != len(ROLES):
            raise InvalidInputError("name two models, the baseline and then the idealized one")
        models = comparable_models(self._models, (names[0], names[1]))
        largest = min(model.config.max_batch_size for model in models)
        batch_size = request.batch_size or min(self._settings.evaluation_batch_images, largest)
        if batch_size > largest:
            raise InvalidInputError(
                f"batch_size {batch_size} is more than the models take, {largest}"
            )
        uri = request.dataset_uri
        dataset = await asyncio.to_thread(self._open_dataset, uri, models)
        selected = await asyncio.to_thread(survey, dataset, limit=request.limit)
        self._refuse_when_closing()
        run = self._store.create(
            Plan(
                dataset_uri=uri,
                models=(names[0], names[1]),
                graph_sha256=_graphs(models),
                preprocessing=models[0].preprocessing.model_dump_json(),
                batch_size=batch_size,
                seed=request.seed,
                images_total=selected.images,
                images_available=selected.available,
                fingerprint=selected.fingerprint,
            )
        )
        return self._carry(run, _Comparison(models, dataset), Progress(selected.images))

    async def _resume(self, run_id: str) -> _Active:
        plan = self._store.get(run_id).plan
        models = comparable_models(self._models, plan.models)
        preprocessing = models[0].preprocessing.model_dump_json()
        if (_graphs(models), preprocessing) != (plan.graph_sha256, plan.preprocessing):
            raise PreconditionError(
                f"the models changed since the run {run_id} began; start a new run"
            )
        dataset = await asyncio.to_thread(self._open_dataset, plan.dataset_uri, models)
        selected = await asyncio.to_thread(survey, dataset, limit=plan.images_total)
        if (selected.images, selected.fingerprint) != (plan.images_total, plan.fingerprint):
            raise PreconditionError(
                f"{plan.dataset_uri} changed since the run {run_id} began; start a new run"
            )
        self._refuse_when_closing()
        run = self._store.resume(run_id)
        return self._carry(run, _Comparison(models, dataset), recorded_progress(self._store, run))

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise UnavailableError("the service is shutting down; try again later")

    def _open_dataset(self, uri: str, models: tuple[ServedModel, ServedModel]) -> Dataset:
        return open_dataset(
            uri,
            classes=len(models[0].labels),
            class_ids=models[0].manifest.class_ids,
            limits=self._settings.image_limits,
        )

    def _carry(self, run: Run, comparison: _Comparison, progress: Progress) -> _Active:
        active = _Active(run, progress)
        self._active[run.run_id] = active
        if len(self._active) > 1:
            for other in self._active.values():
                other.shared = True
        active.task = asyncio.create_task(self._run(active, comparison), name=run.run_id)
        # Whether or not a client watches, the failure is recorded with the run.
        active.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        metrics.count_runs(self._store.counts())
        return active

    async def _run(self, active: _Active, comparison: _Comparison) -> pb.Evaluation:
        """Carry a run to its end, whatever that is, and record it."""
        run = active.run
        state, reason = State.INTERRUPTED, ""
        try:
            if await run_batches(
                run,
                comparison.dataset,
                engine=self._engine,
                models=comparison.models,
                store=self._store,
                progress=active.progress,
                threads=self._threads,
                timeout_seconds=self._settings.request_timeout_seconds,
            ):
                environment = describe_environment(
                    engine=self._settings.engine,
                    engine_versions=self._engine.versions,
                    models=comparison.models,
                    decode_threads=self._threads,
                )
                await asyncio.to_thread(
                    write_files,
                    self._store,
                    self._store.get(run.run_id),
                    models=comparison.models,
                    notes=comparison.dataset.notes + (SHARED_NOTE,) * active.shared,
                    environment=environment,
                )
                state = State.SUCCEEDED
            elif active.cancelled:
                state = State.CANCELLED
        except ServiceError as error:
            state, reason = State.FAILED, str(error)
            raise
        except Exception as error:
            _log.exception("the run %s failed", run.run_id)
            state, reason = State.FAILED, f"internal error: {type(error).__name__}: {error}"
            raise
        finally:
            del self._active[run.run_id]
            self._store.finish(run.run_id, state, error=reason)
            metrics.count_runs(self._store.counts())
        return self._evaluation(run.run_id)

    def _evaluation(self, run_id: str) -> pb.Evaluation:
        run = self._store.get(run_id)
        message = run_message(run)
        if run.state == State.SUCCEEDED:
            message.results_json = read_results(self._store.folder(run_id))
        return message


def _graphs(models: tuple[ServedModel, ServedModel]) -> tuple[str, str]:
    return models[0].manifest.graph_sha256, models[1].manifest.graph_sha256


def _interrupted(run_id: str) -> str:
    return f"the service is shutting down; resume the run {run_id} when it is back"
