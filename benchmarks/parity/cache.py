"""Whether Triton computes every answer: no response cache, by configuration and by its counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.parity.counts import CONTROL_SECONDS, Counts, count
from services.inference.engine import Engine

REQUESTS = 2  # of the same image, for each server
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class CacheCheck:
    """What the servers say of a model before and after equal requests were sent."""

    model: str
    enabled: bool  # in the configuration that one of them serves
    before: Counts
    after: Counts
    requests: int

    def breaches(self) -> list[str]:
        """What speaks against it that every request was computed."""
        found = []
        if self.enabled:
            found.append("its response cache is on")
        if self.after.cache_hits or self.after.cache_misses:
            found.append(
                f"its response cache was asked ({self.after.cache_hits} hits, "
                f"{self.after.cache_misses} misses)"
            )
        for what in ("inferences", "executions"):
            more = getattr(self.after, what) - getattr(self.before, what)
            if more < self.requests:
                found.append(f"{self.requests} equal requests made {more} {what}")
        return [f"{self.model}: {text}" for text in found]


async def check_cache(
    model: str,
    clients: Sequence[InferenceServerClient],
    engine: Engine,
    image: NDArray[np.uint8],
) -> CacheCheck:
    """Ask the servers, send them one image (1, height, width, 3) again and again, ask again.

    Of several servers behind the engine one gets it twice, whichever it chooses.
    """
    configs = [
        (await client.get_model_config(model, client_timeout=CONTROL_SECONDS)).config
        for client in clients
    ]
    before = await count(model, clients)
    requests = REQUESTS * len(clients)
    for _ in range(requests):
        await engine.infer(model, image, timeout_seconds=TIMEOUT_SECONDS)
    after = await count(model, clients)
    enabled = any(config.response_cache.enable for config in configs)
    return CacheCheck(model, enabled, before, after, requests)
