"""A closed loop of requests: so many in flight, each followed by the next, for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from services.errors import UnavailableError

WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Rate:
    """What one way reached in one round."""

    images_per_second: float
    p50_ms: float  # of a request
    p99_ms: float
    server_queue_ms: float | None = None  # mean; of perf_analyzer, which asks the server
    client_cpu_us: float | None = None  # a request; of the clients in this process

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


async def closed_loop(
    request: Callable[[], Awaitable[object]], *, batch: int, concurrency: int, seconds: float
) -> Rate:
    """Images a second of what was answered within the seconds, as perf_analyzer counts.

    A request that fails ends the measurement with its error.

    Raises
    ------
    UnavailableError
        Not one answer came in that time.
    """
    loop_began = time.perf_counter()
    began, end = loop_began + WARM_UP_SECONDS, loop_began + WARM_UP_SECONDS + seconds
    latencies: list[float] = []
    processor_seconds = 0.0

    async def one_after_the_other() -> None:
        while (sent := time.perf_counter()) < end:
            await request()
            answered = time.perf_counter()
            if began <= answered < end:
                latencies.append(answered - sent)

    async def watch_the_processor() -> None:
        nonlocal processor_seconds
        await asyncio.sleep(began - time.perf_counter())
        before = time.process_time()
        await asyncio.sleep(end - time.perf_counter())
        processor_seconds = time.process_time() - before

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch_the_processor())
            for _ in range(concurrency):
                group.create_task(one_after_the_other())
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None  # the first to fail ended the others
    if not latencies:
        raise UnavailableError(f"no answer within {seconds:g} seconds; measure longer: --seconds")
    return Rate(
        images_per_second=len(latencies) * batch / seconds,
        p50_ms=1000 * float(np.percentile(latencies, 50)),
        p99_ms=1000 * float(np.percentile(latencies, 99)),
        client_cpu_us=1e6 * processor_seconds / len(latencies),
    )
