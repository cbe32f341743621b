"""What an evaluation records: runs, requests and samples, as the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

ROLES = ("baseline", "idealized")  # in the order of a request's models


class State(StrEnum):
    """Where a run stands; the names of `EvaluationState` without their prefix."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"

    @property
    def can_be_resumed(self) -> bool:
        """Whether the run stands still and is not complete."""
        return self not in (State.RUNNING, State.SUCCEEDED)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run was asked to do; a resumed run does the same or refuses."""

    dataset_uri: str
    models: tuple[str, str]  # baseline, idealized
    graph_sha256: tuple[str, str]
    preprocessing: str  # of both models, as JSON
    batch_size: int
    seed: int
    images_total: int
    images_available: int  # in the whole dataset
    fingerprint: str  # of the selected samples


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it stands."""

    run_id: str
    state: State
    plan: Plan
    created: datetime  # with time zone
    images_done: int
    batches_done: int
    resumed: int  # how many times it was taken up again
    error: str  # why it failed; empty otherwise


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one model said of one image."""

    predicted: int  # class index of the largest logit
    rank: int  # of the label among the classes; 0 where it is the prediction
    probability: float  # of the predicted class, by softmax


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to the engine: a batch through one model."""

    latency_ms: float  # wall time, as the service saw it
    queue_ms: float | None  # the engine's own word, None where it has none
    inference_ms: float | None
    attempts: int  # how often it was sent; of one that was repeated the latency does not count
    predictions: list[Prediction]  # one an image


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """A batch through both models."""

    number: int
    seconds: float  # since the batch before was done, or since the measurement began
    ids: list[str]
    labels: list[int]
    requests: dict[str, Request] = field(default_factory=dict)  # by role
