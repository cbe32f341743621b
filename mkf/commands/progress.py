"""Progress bars of the commands, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def layer_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over layers; gives what is to be called with those done and all."""
    with progress() as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, layers: bars.update(task, completed=done, total=layers)


def progress(*, transient: bool = True) -> Progress:
    """The project's bars; those that are not transient stay when the work is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
    )
