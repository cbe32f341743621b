"""How far a run is, while it is under way."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from services.evaluation.records import ROLES, BatchRecord


@dataclass
class Progress:
    """How far a run is; the runner writes it, anyone may read it."""

    images_total: int
    images_done: int = 0
    correct_top1: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    correct_top5: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    only_correct: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    images_here: int = 0  # since this process took the run up
    seconds_here: float = 0.0
    stop: bool = False  # set it to end the run behind the next request

    @property
    def images_per_second(self) -> float:
        """Of this process, decoding and both models together; 0 before the first batch."""
        return self.images_here / self.seconds_here if self.seconds_here else 0.0

    @property
    def remaining_seconds(self) -> float:
        """At the rate so far; 0 before the first batch."""
        rate = self.images_per_second
        return (self.images_total - self.images_done) / rate if rate else 0.0

    def add(self, batch: BatchRecord) -> None:
        """Count a batch."""
        right = {
            role: np.array([answer.rank == 0 for answer in request.predictions])
            for role, request in batch.requests.items()
        }
        for role, other in itertools.permutations(ROLES):
            self.correct_top1[role] += int(right[role].sum())
            self.correct_top5[role] += sum(
                answer.rank < 5 for answer in batch.requests[role].predictions
            )
            self.only_correct[role] += int((right[role] & ~right[other]).sum())
        self.images_done += len(batch.ids)
        self.images_here += len(batch.ids)
        self.seconds_here += batch.seconds
