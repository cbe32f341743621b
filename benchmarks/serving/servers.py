"""Throughput of one engine over 1, 2 and 3 Triton servers of one thread each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks import processes
from benchmarks.serving.measure import closed_loop
from benchmarks.serving.one_thread import with_one_thread
from benchmarks.serving.road import TIMEOUT_SECONDS, as_pixels, demo_images
from services.inference.repository import BASELINE
from services.inference.urls import open_engine
from services.runtime.settings import Settings

COUNTS = (1, 2, 3)
BATCH = 8
CONCURRENCY = 24  # requests in flight, over all servers


async def compare(
    repository: Path,
    *,
    rounds: int,
    seconds: float,
    advance: Callable[[str], None],
    counts: Sequence[int] = COUNTS,
) -> list[dict[str, Any]]:
    """Measure each number of servers in each round; all servers run all the time.

    Returns
    -------
    list[dict[str, Any]]
        For each number of servers its rounds: a `Rate`, and the images that each server says that
        it has seen.
    """
    measured: list[dict[str, Any]] = [
        {"servers": count, "batch": BATCH, "concurrency": CONCURRENCY, "rounds": []}
        for count in counts
    ]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one_thread = with_one_thread(repository, folder / "repository")
        addresses = [stack.enter_context(processes.triton(one_thread)) for _ in range(max(counts))]
        settings = Settings(_env_file=None, model_repository=one_thread)
        engines = []
        for count in counts:
            engine, models = await open_engine(f"triton:{','.join(addresses[:count])}", settings)
            stack.push_async_callback(engine.close)
            engines.append(engine)
        model = models[BASELINE]
        pixels = as_pixels(demo_images(1, model.preprocessing.input_size)[0], model)
        images = np.stack([pixels] * BATCH)  # (n, H, W, 3)
        for number in range(rounds):
            for engine, result in zip(engines, measured, strict=True):
                advance(f"{result['servers']} servers, round {number + 1}")
                before = await _images_seen(addresses[: result["servers"]])
                rate = await closed_loop(
                    lambda engine=engine: engine.infer(
                        model.name, images, timeout_seconds=TIMEOUT_SECONDS
                    ),
                    batch=BATCH,
                    concurrency=CONCURRENCY,
                    seconds=seconds,
                )
                after = await _images_seen(addresses[: result["servers"]])
                seen = [late - early for early, late in zip(before, after, strict=True)]
                result["rounds"].append(rate.to_json() | {"images_of_each_server": seen})
    return measured


async def _images_seen(addresses: Sequence[str]) -> list[int]:
    """What each server counts of the model since it started."""
    seen = []
    for address in addresses:
        async with InferenceServerClient(address) as client:
            answer = await client.get_inference_statistics(BASELINE)
            seen.append(sum(int(stats.inference_count) for stats in answer.model_stats))
    return seen
