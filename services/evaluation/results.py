"""The schema of results.json; `python -m services.evaluation.results` prints it as JSON Schema.

Shares are 0 to 1, differences are in percentage points, latencies in milliseconds. Intervals are
of 95 % confidence, low end first.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(ge=-100, le=100)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RunInfo(_Part):
    """The run."""

    id: str
    created: datetime
    finished: datetime
    batch_size: Count
    """Images a request to the engine."""
    seed: Count
    """Of the order in which the models saw a batch."""
    resumed: Count
    """How many times the run was taken up again after an interruption."""
    seconds: float
    """Of measurement: decoding and both models, without warm-up and interruptions."""


class DatasetInfo(_Part):
    """The images."""

    uri: str
    images: Count
    """That were evaluated."""
    available: Count
    """In the whole dataset."""
    limited: bool
    """Whether only a part of the dataset was evaluated."""
    fingerprint: str
    """SHA-256 of the evaluated samples' ids and labels, in order; not of their pixels."""
    notes: list[str]


class ModelResult(_Part):
    """One model, where it comes from, and its accuracy."""

    name: str
    source: str
    license: str
    random_weights: bool
    graph_sha256: str
    expected_top1: float | None
    """Percent, as its source states it; null where it states none."""
    classes: Count
    correct_top1: Count
    top1: Share
    top1_interval: tuple[Share, Share]
    """Wilson's score interval."""
    correct_top5: Count
    top5: Share
    top5_interval: tuple[Share, Share]
    """Wilson's score interval."""


class Models(_Part):
    """The two models."""

    baseline: ModelResult
    idealized: ModelResult


class Paired(_Part):
    """The comparison on the same images, by top-1."""

    both: Count
    """Images that both models had right."""
    only_baseline: Count
    only_idealized: Count
    neither: Count
    difference_pp: Points
    """Top-1 of the idealized model minus the baseline's, in percentage points."""
    difference_interval_pp: tuple[Points, Points]
    """Adjusted Wald interval for paired proportions (Bonett & Price 2012)."""
    mcnemar_p: Share
    """Exact, two-sided; 1 where no image is discordant."""


class ModelLatency(_Part):
    """Latency of the requests of full batches; a percentile that they do not carry is null."""

    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p99_9_ms: float | None
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    mean_queue_ms: float | None
    """Of which the request waited in the engine, or in the server behind it."""
    mean_inference_ms: float | None
    """Of which its batch was computed; a server counts the copying of input and output in."""
    requests: Count


class Latency(_Part):
    """Of both models."""

    baseline: ModelLatency
    idealized: ModelLatency


class Throughput(_Part):
    """Images a second."""

    run: float
    """Decoding and both models, one after the other."""
    baseline: float
    """Images over the summed latency of all requests to the model."""
    idealized: float


class Measurement(_Part):
    """How latency was measured."""

    method: str
    batch_size: Count
    warmup_requests: Count
    """To each model before the first that counts, each time the run was taken up."""
    percentile_requests: dict[str, Count]
    """The smallest number of requests that carries each percentile (MLPerf's rule)."""


class Environment(_Part):
    """Where the run was finished."""

    platform: str
    cpu: str
    cpus: Count
    """That the process may use."""
    decode_threads: Count
    engine: str
    engine_threads: dict[str, str]
    """Threads within an operator, by model, as config.pbtxt has them; 0: the runtime's choice."""
    versions: dict[str, str]


class Results(_Part):
    """The comparison of a baseline with its idealized model on one dataset."""

    schema_version: Literal[1] = 1
    warnings: list[str]
    """What a reader must know before the figures."""
    run: RunInfo
    dataset: DatasetInfo
    models: Models
    paired: Paired
    latency: Latency
    throughput: Throughput
    measurement: Measurement
    environment: Environment

    def to_json(self) -> str:
        """The text of results.json."""
        return self.model_dump_json(indent=2) + "\n"


def json_schema() -> str:
    """The JSON Schema of results.json, as docs/results.schema.json holds it."""
    return json.dumps(Results.model_json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
