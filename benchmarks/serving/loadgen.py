"""MLPerf's LoadGen as a client of the engine and of the classification service.

LoadGen (https://github.com/mlcommons/inference/tree/master/loadgen) makes the traffic and the
verdict: VALID or INVALID, with its reasons and cures, is read from the summary that it writes. What
is here hands its queries to an event loop in a thread of its own and reports each answer.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg

from services.errors import one_line

# Seeds are LoadGen's own idea of repeatability: which samples, in which order, at which times.
SEEDS = {"qsl_rng_seed": 1, "sample_index_rng_seed": 2, "schedule_rng_seed": 3}
PERCENTILE = 0.99

Answer = Callable[[Sequence[int]], Awaitable[int]]  # sample numbers -> how many were answered


class Scenario(StrEnum):
    """LoadGen's names."""

    SINGLE_STREAM = "SingleStream"  # one query after the other
    OFFLINE = "Offline"  # all samples at once
    SERVER = "Server"  # one sample a query, Poisson arrivals


@dataclass(frozen=True)
class Rules:
    """What one test asks for; LoadGen's own names.

    Attributes
    ----------
    target_qps
        Server: of the arrivals; Offline: how many samples are made, for `min_duration_ms` of work;
        SingleStream: none.
    """

    scenario: Scenario
    min_duration_ms: int
    min_query_count: int
    target_qps: float | None = None
    target_latency_ms: float | None = None  # of the percentile 99; Server alone


@dataclass(frozen=True)
class Verdict:
    """What LoadGen says, and what was really answered."""

    scenario: str
    valid: bool
    figures: dict[str, float]  # of the summary, by LoadGen's names
    reasons: dict[str, bool]  # of LoadGen's checks, whether each is satisfied
    cures: list[str]  # LoadGen's recommendations
    early_stopping: list[str]  # what LoadGen says of percentiles that few queries carry
    samples: int  # asked for
    answered: int
    errors: list[str]  # kinds of failure, once each
    rules: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def run_test(
    answer: Answer,
    loop: asyncio.AbstractEventLoop,
    *,
    rules: Rules,
    samples: int,
    batch: int,
    concurrency: int,
    out: Path,
) -> Verdict:
    """Run one test.

    Parameters
    ----------
    answer
        Sends one request of some samples.
    loop
        Where it is called; runs in another thread, because LoadGen keeps this one.
    samples
        How many there are; LoadGen draws from them.
    batch
        Samples a request at most, where a query has more than one.
    concurrency
        Requests in flight at most; more queries wait, and LoadGen's clock runs for them.
    out
        Folder of LoadGen's logs, made if it is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    system = _System(answer, loop, batch=batch, concurrency=concurrency)
    sut = lg.ConstructSUT(system.issue, lambda: None)
    library = lg.ConstructQSL(samples, samples, lambda _: None, lambda _: None)
    settings, logs = _test_settings(rules), _log_settings(out)
    try:
        lg.StartTestWithLogSettings(sut, library, settings, logs, str(out / "audit.config"))
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    return parse_summary(
        (out / "mlperf_log_summary.txt").read_text(encoding="utf-8"),
        rules=rules,
        samples=system.samples,
        answered=system.answered,
        errors=sorted(system.errors),
    )


class _System:
    """The system under test, as LoadGen sees it: takes queries, reports each as complete."""

    def __init__(
        self, answer: Answer, loop: asyncio.AbstractEventLoop, *, batch: int, concurrency: int
    ) -> None:
        self.samples = 0
        self.answered = 0
        self.errors: set[str] = set()
        self._answer = answer
        self._loop = loop
        self._batch = batch
        self._free = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()

    def issue(self, query: Sequence[lg.QuerySample]) -> None:
        """Called by LoadGen, which waits for nothing but the return."""
        pairs = [(sample.id, sample.index) for sample in query]
        self._loop.call_soon_threadsafe(self._accept, pairs)

    def _accept(self, pairs: list[tuple[int, int]]) -> None:
        self.samples += len(pairs)
        for start in range(0, len(pairs), self._batch):
            task = self._loop.create_task(self._send(pairs[start : start + self._batch]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, pairs: list[tuple[int, int]]) -> None:
        try:
            async with self._free:
                answered = await self._answer([index for _, index in pairs])
            self.answered += answered
        except Exception as error:
            # Told in the verdict; LoadGen would wait forever for a query that is not completed.
            self.errors.add(f"{type(error).__name__}: {one_line(error, limit=200)}")
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, 0, 0) for number, _ in pairs])


@contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread while the context lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _test_settings(rules: Rules) -> lg.TestSettings:
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.scenario = getattr(lg.TestScenario, rules.scenario.value)
    settings.min_duration_ms = rules.min_duration_ms
    settings.min_query_count = rules.min_query_count
    for name, seed in SEEDS.items():
        setattr(settings, name, seed)
    if rules.scenario is Scenario.OFFLINE:
        settings.offline_expected_qps = rules.target_qps
    if rules.scenario is Scenario.SERVER and rules.target_latency_ms is not None:
        settings.server_target_qps = rules.target_qps
        settings.server_target_latency_ns = round(1e6 * rules.target_latency_ms)
        settings.server_target_latency_percentile = PERCENTILE
    return settings


def _log_settings(out: Path) -> lg.LogSettings:
    output = lg.LogOutputSettings()
    output.outdir = str(out)
    settings = lg.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


def parse_summary(
    text: str, *, rules: Rules, samples: int, answered: int, errors: list[str]
) -> Verdict:
    """Read LoadGen's summary; a sample without its answer makes a test invalid, too."""
    measured = text.partition("Test Parameters Used")[0]
    figures = {
        name: float(value)
        for name, value in re.findall(r"^(\w[^:\n]*?) *: ([-+0-9.e]+)$", measured, re.MULTILINE)
    }
    reasons = {
        name.strip(): answer == "Yes"
        for name, answer in re.findall(r"^ +(.+?) satisfied ?: (Yes|NO)", text, re.MULTILINE)
    }
    return Verdict(
        scenario=rules.scenario.value,
        valid="Result is : VALID" in text and samples == answered,
        figures=figures,
        reasons=reasons,
        cures=_bullets(text, "Recommendations:"),
        early_stopping=_bullets(text, "Early Stopping Result:"),
        samples=samples,
        answered=answered,
        errors=errors,
        rules=asdict(rules) | {"percentile": PERCENTILE, "seeds": SEEDS},
    )


def _bullets(text: str, title: str) -> list[str]:
    """The items " * ..." below a title, each with the lines that go on with it."""
    items: list[str] = []
    for line in text.partition(f"{title}\n")[2].splitlines():
        if not line.startswith(" "):
            break
        if line.startswith(" * "):
            items.append(line.removeprefix(" * ").strip())
        elif items:
            items[-1] += f" {line.strip()}"
    return items
