"""Runs and their files as messages of the API."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from mkf.v1 import evaluation_pb2 as pb
from services.errors import NotFoundError
from services.evaluation.progress import Progress
from services.evaluation.records import ROLES, Run

CHUNK_BYTES = 512 * 1024


def progress_message(run: Run, progress: Progress) -> pb.EvaluationProgress:
    """How far the run is."""
    return pb.EvaluationProgress(
        run_id=run.run_id,
        images_done=progress.images_done,
        images_total=progress.images_total,
        images_per_second=progress.images_per_second,
        remaining_seconds=progress.remaining_seconds,
        accuracies=[
            pb.RunningAccuracy(
                model=model,
                correct_top1=progress.correct_top1[role],
                correct_top5=progress.correct_top5[role],
            )
            for role, model in zip(ROLES, run.plan.models, strict=True)
        ],
    )


def run_message(run: Run) -> pb.Evaluation:
    """The run as it stands, without its results."""
    created = Timestamp()
    created.FromDatetime(run.created)
    return pb.Evaluation(
        run_id=run.run_id,
        state=pb.EvaluationState.Value(f"EVALUATION_STATE_{run.state}"),
        dataset_uri=run.plan.dataset_uri,
        models=run.plan.models,
        images_done=run.images_done,
        images_total=run.plan.images_total,
        create_time=created,
        error=run.error,
    )


def read_results(folder: Path) -> str:
    """The text of results.json in a run's folder.

    Raises
    ------
    NotFoundError
        The file was taken away.
    """
    try:
        return (folder / "results.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{folder}: the files of this run were taken away") from None


def read_chunk(path: Path, offset: int) -> bytes:
    """The bytes of a run's file from `offset` on, `CHUNK_BYTES` at most; empty at the end.

    Raises
    ------
    NotFoundError
        The file was taken away.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        raise NotFoundError(f"{path.parent}: the files of this run were taken away") from None
