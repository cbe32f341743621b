"""The serving benchmark: what it reads of other programs, its figures, and each part in short."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from triton_server import triton_prefix
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.errors import UnavailableError
from services.inference.repository import load_models

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import processes  # noqa: E402
from benchmarks.serving import machine, perf_analyzer, report, road, servers  # noqa: E402
from benchmarks.serving.measure import closed_loop  # noqa: E402
from benchmarks.serving.one_thread import with_one_thread  # noqa: E402

# Written by perf_analyzer 2.51.0: batch 8, 1 request in flight.
CSV = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,\
Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,\
p50 latency,p90 latency,p95 latency,p99 latency
1,1157.18,5,723,712,16,4187,220,1,3893,10179,12283,19983
"""

# Written by LoadGen 6.0.17, shortened where nothing is read.
VALID = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : SingleStream
Mode     : PerformanceOnly
90.0th percentile latency (ns) : 608549
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
Early Stopping Result:
 * Processed at least 64 queries (2504).
 * Would discard 214 highest latency queries.
 * Early stopping 90.0th percentile estimate: 610085

================================================
Additional Stats
================================================
QPS w/ loadgen overhead         : 1668.19

Mean latency (ns)               : 596602
50.00 percentile latency (ns)   : 588660

================================================
Test Parameters Used
================================================
samples_per_query : 1
min_duration (ms): 1500
"""
INVALID = """\
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 188.65
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 288 queries.
 * Would need to run at least 32693 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
Scheduled samples per second : 188.73
"""


def test_perf_analyzers_report() -> None:
    rate = perf_analyzer.parse_report(CSV)
    assert rate.to_json() == {
        "images_per_second": 1157.18,
        "p50_ms": 3.893,
        "p99_ms": 19.983,
        "server_queue_ms": 0.712,
    }


@pytest.mark.parametrize("text", ["", "Concurrency,Inferences/Second\n", "Concurrency\n1\n"])
def test_a_report_without_figures_is_told(text: str) -> None:
    with pytest.raises(UnavailableError, match="cannot be read"):
        perf_analyzer.parse_report(text)


def test_loadgens_verdicts() -> None:
    loadgen = _loadgen()
    rules = loadgen.Rules(loadgen.Scenario.SINGLE_STREAM, 1500, 100)
    verdict = loadgen.parse_summary(VALID, rules=rules, samples=2504, answered=2504, errors=[])
    assert verdict.valid
    assert verdict.figures == {
        "90.0th percentile latency (ns)": 608549.0,
        "QPS w/ loadgen overhead": 1668.19,
        "Mean latency (ns)": 596602.0,
        "50.00 percentile latency (ns)": 588660.0,
    }
    assert verdict.reasons == {"Min duration": True, "Min queries": True, "Early stopping": True}
    assert verdict.cures == []

    verdict = loadgen.parse_summary(INVALID, rules=rules, samples=288, answered=288, errors=[])
    assert not verdict.valid
    assert [name for name, met in verdict.reasons.items() if not met] == [
        "Performance constraints",
        "Early stopping",
    ]
    assert verdict.cures == ["Reduce target QPS to improve latency."]
    assert verdict.early_stopping[-1].endswith("if every additional query were under latency.")


def test_a_sample_without_answer_makes_a_test_invalid() -> None:
    loadgen = _loadgen()
    rules = loadgen.Rules(loadgen.Scenario.SINGLE_STREAM, 1500, 100)
    verdict = loadgen.parse_summary(VALID, rules=rules, samples=2504, answered=2503, errors=[])
    assert not verdict.valid


def test_failures_are_counted_and_end_no_test(tmp_path: Path) -> None:
    loadgen = _loadgen()
    asked = 0

    async def answer(numbers: Any) -> int:
        nonlocal asked
        asked += len(numbers)
        if asked == 3:
            raise UnavailableError("the server went")
        return len(numbers)

    with loadgen.background_loop() as loop:
        verdict = loadgen.run_test(
            answer,
            loop,
            rules=loadgen.Rules(loadgen.Scenario.SINGLE_STREAM, 100, 20),
            samples=8,
            batch=4,
            concurrency=2,
            out=tmp_path,
        )
    assert (verdict.samples, verdict.answered) == (asked, asked - 1)
    assert verdict.errors == ["UnavailableError: the server went"]
    assert not verdict.valid


def test_offline_samples_travel_in_batches(tmp_path: Path) -> None:
    loadgen = _loadgen()
    batches: list[int] = []
    flying = most = 0

    async def answer(numbers: Any) -> int:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.001)
        flying -= 1
        batches.append(len(numbers))
        return len(numbers)

    with loadgen.background_loop() as loop:
        verdict = loadgen.run_test(
            answer,
            loop,
            rules=loadgen.Rules(loadgen.Scenario.OFFLINE, 50, 1, target_qps=500.0),
            samples=8,
            batch=4,
            concurrency=3,
            out=tmp_path,
        )
    assert verdict.samples == verdict.answered == sum(batches) >= 25
    assert max(batches) == 4
    assert most == 3


async def test_closed_loop_counts_what_was_answered_in_time() -> None:
    flying = most = 0

    async def request() -> None:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.02)
        flying -= 1

    rate = await closed_loop(request, batch=8, concurrency=4, seconds=0.5)
    assert most == 4
    # 4 requests of 8 images in 20 ms are 1,600 a second; a busy machine sleeps longer.
    assert 400 < rate.images_per_second <= 1700
    assert 20 <= rate.p50_ms <= rate.p99_ms


async def test_closed_loop_ends_with_the_first_error() -> None:
    async def request() -> None:
        await asyncio.sleep(0.01)
        raise UnavailableError("no server")

    with pytest.raises(UnavailableError, match="no server"):
        await closed_loop(request, batch=1, concurrency=2, seconds=5.0)


async def test_closed_loop_without_answers_is_told() -> None:
    with pytest.raises(UnavailableError, match="measure longer"):
        await closed_loop(lambda: asyncio.sleep(1.5), batch=1, concurrency=1, seconds=0.5)


def test_processor_times() -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice; guests stand in user already
    stat = "cpu  3318003 3150 189009 1122437 6799 7 1632 2337 11 13\ncpu0 1 2 3 4\n"
    assert machine.processor_times(stat) == (3318003 + 3150 + 189009 + 7 + 1632 + 2337, 1129236)


def test_other_programs_work_is_seen() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        share = machine.observe("now", seconds=0.5)["busy_share"]
        assert share > 0.5 / (os.cpu_count() or 1)  # one of the processors
    finally:
        worker.kill()
        worker.wait()
    assert machine.is_quiet([{"busy_share": 0.05}])
    assert not machine.is_quiet([{"busy_share": 0.05}, {"busy_share": 0.2}])


def results(*, engine: float, busy_share: float) -> dict[str, Any]:
    """Of one payload, in three rounds of a falling machine."""
    rounds = [
        {
            "perf_analyzer": {"images_per_second": 1000.0 * speed},
            "engine": {"images_per_second": 1000.0 * speed * engine, "client_cpu_us": 100.0},
            "service": {"images_per_second": 500.0 * speed},
        }
        for speed in (1.0, 0.8, 0.5)
    ]
    case = {"batch": 8, "concurrency": 32, "rounds": rounds}
    network = {"name": "N", "about": "A.", "input_size": [32, 32], "seconds": 2.0, "cases": [case]}
    return {
        "command": "make bench-serving",
        "machine": machine.describe_machine(),
        "settings": {"rounds": 3},
        "observations": [{"busy_share": 0.0}, {"busy_share": busy_share}],
        "road": [network],
    }


def test_shares_are_of_the_same_round() -> None:
    measured = results(engine=0.95, busy_share=0.01)
    rounds = measured["road"][0]["cases"][0]["rounds"]
    assert report.shares(rounds, "engine") == pytest.approx((0.95, 0.95, 0.95))
    page = report.markdown(measured)
    assert "| 32 x 8 | 800 (500 to 1,000) | 760 (475 to 950) | 400 (250 to 500) | 95 %" in page
    assert "It is met in every row." in page
    assert "The machine was quiet" in page


def test_the_page_says_what_is_missed_and_that_the_machine_was_busy() -> None:
    page = report.markdown(results(engine=0.7, busy_share=0.5))
    assert "Below it: 32 x 8." in page
    assert "**Not a quiet machine.**" in page
    assert "50 % of the processors' time" in page


def test_the_committed_page_is_of_the_committed_results() -> None:
    folder = ROOT / "benchmarks" / "results" / "serving"
    written = json.loads((folder / report.JSON_NAME).read_text(encoding="utf-8"))
    page = (folder / report.PAGE_NAME).read_text(encoding="utf-8")
    assert report.markdown(written) == page


def test_one_thread_each(repository: Path, tmp_path: Path) -> None:
    copy = with_one_thread(repository, tmp_path / "copy")
    for path in copy.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), ModelConfig())
        original = text_format.Parse(
            (repository / path.relative_to(copy)).read_text(), ModelConfig()
        )
        assert config.parameters["intra_op_thread_count"].string_value == "1"
        assert [group.count for group in config.instance_group] == [1]
        assert config.input == original.input
    assert len(list(copy.glob("*/config.pbtxt"))) == 2


def test_the_three_ways_on_a_real_server(repository: Path) -> None:
    _perf_analyzer()
    told: list[str] = []
    measured = asyncio.run(
        road.compare(repository, [road.Case(4, 2)], rounds=1, seconds=1.0, advance=told.append)
    )
    (case,) = measured
    (rates,) = case["rounds"]
    assert list(rates) == list(road.WAYS) == [text.split(",")[0] for text in told]
    assert all(rate["images_per_second"] > 0 for rate in rates.values())
    assert all(0 < rate["p50_ms"] <= rate["p99_ms"] for rate in rates.values())


def test_perf_analyzers_failure_is_told(repository: Path) -> None:
    _perf_analyzer()
    with pytest.raises(UnavailableError, match=r"perf_analyzer failed on .*onnect"):
        perf_analyzer.run(
            processes.PREFIX,
            "127.0.0.1:1",
            next(iter(load_models(repository).values())),
            bytes(32 * 32 * 3),
            batch=1,
            concurrency=1,
            seconds=0.5,
        )


def test_every_server_gets_its_share(repository: Path) -> None:
    triton_prefix()
    measured = asyncio.run(
        servers.compare(repository, rounds=1, seconds=0.5, advance=lambda _: None, counts=(1, 2))
    )
    assert [case["servers"] for case in measured] == [1, 2]
    for case in measured:
        (one,) = case["rounds"]
        seen = one["images_of_each_server"]
        assert len(seen) == case["servers"]
        assert min(seen) > 0.3 * max(seen)
        assert sum(seen) >= 0.5 * one["images_per_second"]  # what came in half a second, and more


def test_loadgen_loads_the_engine_and_the_service(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _loadgen()
    triton_prefix()
    from benchmarks.serving import scenarios

    monkeypatch.setattr(scenarios, "ESTIMATE_SECONDS", 0.6)
    options = scenarios.Options(
        min_duration_ms=500, min_query_count=64, target_latency_ms=2000.0, target_qps=100.0
    )
    tests = scenarios.measure(repository, options, out=tmp_path, advance=lambda _: None)
    assert [(test["client"], test["scenario"]) for test in tests] == [
        (client, scenario)
        for client in ("engine", "service")
        for scenario in ("SingleStream", "Offline", "Server")
    ]
    for test in tests:
        assert test["samples"] == test["answered"] > 0
        assert not test["errors"]
        assert test["reasons"]
    assert tests[0]["valid"]
    assert (tmp_path / "service" / "Server" / "mlperf_log_detail.txt").is_file()


def _perf_analyzer() -> None:
    prefix = triton_prefix()
    script = ROOT / "deploy" / "triton" / "perf_analyzer.py"
    command = [sys.executable, str(script), "--prefix", str(prefix)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"perf_analyzer cannot be installed: {result.stderr.strip()[-200:]}")


def _loadgen() -> Any:
    pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")
    from benchmarks.serving import loadgen

    return loadgen
