"""The progress of a run on standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mkf.v1 import evaluation_pb2 as pb

LINE_SECONDS = 10.0  # between the lines where standard error is no terminal


class ProgressBar:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self.run_id: str | None = None  # once the run has begun
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("images"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("images", total=None, figures="")
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, progress: pb.EvaluationProgress) -> None:
        """Show how far the run is."""
        if self.run_id is None:
            self.run_id = progress.run_id
            self._console.print(f"run {progress.run_id}", highlight=False)
        figures = _figures(progress)
        self._progress.update(
            self._task,
            completed=progress.images_done,
            total=progress.images_total,
            figures=figures,
        )
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            done = f"{progress.images_done:,} of {progress.images_total:,} images"
            self._console.print(f"{done}  {figures}", highlight=False, soft_wrap=True)


def _figures(progress: pb.EvaluationProgress) -> str:
    if not progress.images_done:
        return "warming up"
    accuracies = " | ".join(
        f"{100 * accuracy.correct_top1 / progress.images_done:.2f}"
        for accuracy in progress.accuracies
    )
    minutes, seconds = divmod(round(progress.remaining_seconds), 60)
    return (
        f"{progress.images_per_second:,.0f}/s  {minutes}:{seconds:02d} left  top-1 {accuracies} %"
    )
