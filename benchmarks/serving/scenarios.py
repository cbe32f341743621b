"""LoadGen's scenarios through the engine and through the classification service."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes
from benchmarks.serving.loadgen import Answer, Rules, Scenario, Verdict, background_loop, run_test
from benchmarks.serving.measure import closed_loop
from benchmarks.serving.road import (
    ENGINE,
    SERVICE,
    TIMEOUT_SECONDS,
    as_pixels,
    classify,
    demo_images,
    open_service,
)
from services.inference.repository import BASELINE, load_models
from services.inference.urls import open_engine
from services.runtime.settings import Settings

SAMPLES = 256
BATCH = 8  # images a request, of queries with many samples
CONCURRENCY = 32  # requests in flight
PROBE_MS = 4_000
ESTIMATE_SECONDS = 2.0
# Of what a closed loop reaches: the arrivals tried for the scenario Server, until one is VALID.
SHARES = (0.85, 0.7, 0.55, 0.4, 0.25, 0.1)
OFFLINE_MARGIN = 1.25  # expected above estimated, so that the samples last long enough


@dataclass(frozen=True)
class Options:
    """Of all tests."""

    min_duration_ms: int
    min_query_count: int
    target_latency_ms: float
    target_qps: float | None  # None: searched


def measure(
    repository: Path, options: Options, *, out: Path, advance: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The verdicts of the three scenarios for both clients, on a server of this function's own.

    Parameters
    ----------
    out
        LoadGen's logs go into a folder for each test.
    advance
        Told before each test what comes.
    """
    results = []
    with (
        processes.triton(repository) as address,
        processes.classification(f"triton:{address}", repository) as service,
        background_loop() as loop,
    ):
        clients = {ENGINE: _engine(address, repository), SERVICE: _service(service, repository)}
        for name, client in clients.items():
            with _entered(client, loop) as answer:
                tests = _Tests(answer, loop, options, out / name, name, advance)
                results += [
                    {"client": name} | result
                    for result in (tests.single_stream(), tests.offline(), tests.server())
                ]
    return results


@dataclass(frozen=True)
class _Tests:
    answer: Answer
    loop: asyncio.AbstractEventLoop
    options: Options
    out: Path
    client: str
    advance: Callable[[str], None]

    def single_stream(self) -> dict[str, Any]:
        return self._run(Scenario.SINGLE_STREAM).to_json()

    def offline(self) -> dict[str, Any]:
        estimate = self._estimate(batch=BATCH)
        return self._run(Scenario.OFFLINE, target_qps=OFFLINE_MARGIN * estimate).to_json()

    def server(self) -> dict[str, Any]:
        """The first rate that a short and then a full run find VALID; else the last one tried."""
        if self.options.target_qps is not None:
            return self._run(Scenario.SERVER, target_qps=self.options.target_qps).to_json()
        estimate = self._estimate(batch=1)
        tried = []
        verdict: Verdict | None = None
        for share in SHARES:
            for milliseconds in (PROBE_MS, self.options.min_duration_ms):
                qps = share * estimate
                verdict = self._run(Scenario.SERVER, target_qps=qps, milliseconds=milliseconds)
                tried.append(
                    {"target_qps": qps, "duration_ms": milliseconds, "valid": verdict.valid}
                )
                if not verdict.valid:
                    break
            if verdict and verdict.valid:
                break
        assert verdict is not None
        return verdict.to_json() | {"closed_loop_images_per_second": estimate, "tried": tried}

    def _estimate(self, *, batch: int) -> float:
        """Images a second of a closed loop."""
        self.advance(f"{self.client}: estimating its throughput")
        numbers = itertools.cycle(range(SAMPLES - batch + 1))

        def request() -> Any:
            start = next(numbers)
            return self.answer(range(start, start + batch))

        loop = closed_loop(request, batch=batch, concurrency=CONCURRENCY, seconds=ESTIMATE_SECONDS)
        rate = asyncio.run_coroutine_threadsafe(loop, self.loop).result()
        return max(rate.images_per_second, 1.0)

    def _run(
        self,
        scenario: Scenario,
        *,
        target_qps: float | None = None,
        milliseconds: int | None = None,
    ) -> Verdict:
        milliseconds = milliseconds or self.options.min_duration_ms
        rate = "" if target_qps is None else f" at {target_qps:.0f} a second"
        self.advance(f"{self.client}: {scenario.value}{rate}, {milliseconds / 1000:g} s or more")
        server = scenario is Scenario.SERVER
        rules = Rules(
            scenario=scenario,
            min_duration_ms=milliseconds,
            # Offline is one query of many samples.
            min_query_count=1 if scenario is Scenario.OFFLINE else self.options.min_query_count,
            target_qps=target_qps,
            target_latency_ms=self.options.target_latency_ms if server else None,
        )
        return run_test(
            self.answer,
            self.loop,
            rules=rules,
            samples=SAMPLES,
            batch=BATCH,
            concurrency=CONCURRENCY,
            out=self.out / scenario.value,
        )


@asynccontextmanager
async def _engine(address: str, repository: Path) -> AsyncIterator[Answer]:
    settings = Settings(_env_file=None, model_repository=repository)
    engine, models = await open_engine(f"triton:{address}", settings)
    model = models[BASELINE]
    files = demo_images(SAMPLES, model.preprocessing.input_size)
    images = np.stack([as_pixels(file, model) for file in files])  # (n, H, W, 3)

    async def answer(numbers: Sequence[int]) -> int:
        chosen = images[list(numbers)]
        inference = await engine.infer(model.name, chosen, timeout_seconds=TIMEOUT_SECONDS)
        return int(np.isfinite(inference.logits).all(axis=1).sum())

    try:
        yield answer
    finally:
        await engine.close()


@asynccontextmanager
async def _service(address: str, repository: Path) -> AsyncIterator[Answer]:
    files = demo_images(SAMPLES, load_models(repository)[BASELINE].preprocessing.input_size)
    async with open_service(address) as stub:
        yield lambda numbers: classify(stub, [files[number] for number in numbers], BASELINE)


@contextmanager
def _entered(
    context: AbstractAsyncContextManager[Answer], loop: asyncio.AbstractEventLoop
) -> Iterator[Answer]:
    """A context that is entered and left in a loop of another thread."""
    yielded = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    try:
        yield yielded
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
