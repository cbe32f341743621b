"""The results as tables: on the screen, and as the page beside the JSON that they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.serving.machine import QUIET_SHARE, is_quiet
from benchmarks.serving.road import ENGINE, PERF_ANALYZER, SERVICE

AIM = 0.9  # of perf_analyzer's throughput
JSON_NAME, PAGE_NAME = "serving.json", "serving.md"


class Spread(NamedTuple):
    """Over the rounds."""

    median: float
    least: float
    greatest: float


class Part(NamedTuple):
    """One table of the page."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    after: str


def write_results(results: dict[str, Any], out: Path, *, console: Console) -> None:
    """Show the tables; write the JSON and the page into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / JSON_NAME).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / PAGE_NAME).write_text(markdown(results), encoding="utf-8")
    for part in parts(results):
        table = Table(title=part.title, title_justify="left")
        for number, name in enumerate(part.columns):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in part.rows:
            table.add_row(*row)
        console.print(table)
        console.print(part.after, markup=False, highlight=False)
        console.print()
    console.print(quiet_sentence(results), markup=False, style="" if quiet(results) else "red")
    console.print(f"Results: {out / JSON_NAME}, {out / PAGE_NAME}", highlight=False)


def markdown(results: dict[str, Any]) -> str:
    """The page."""
    machine, settings = results["machine"], results["settings"]
    lines = [
        "# Load on the real server",
        "",
        f"Made by `{results['command']}` from [{JSON_NAME}]({JSON_NAME}), which holds every round.",
        "",
        f"{machine['processor']}, {machine['processors']} processors; Triton of "
        f"nvidia-pytriton {machine['server']['nvidia-pytriton']}, Python {machine['python']}, "
        f"tritonclient {machine['versions']['tritonclient']}. Server and clients share these "
        "processors: what a client takes, the server lacks. "
        f"Figures are medians of {settings['rounds']} rounds with the least and the greatest.",
        "",
        ("" if quiet(results) else "**Not a quiet machine.** ") + quiet_sentence(results),
        "",
    ]
    for part in parts(results):
        lines += [f"## {part.title}", "", part.about, ""]
        lines += ["| " + " | ".join(part.columns) + " |"]
        lines += ["|---|" + "---:|" * (len(part.columns) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in part.rows]
        lines += ["", part.after, ""]
    return "\n".join(lines).rstrip() + "\n"


def parts(results: dict[str, Any]) -> list[Part]:
    """The tables of what was measured."""
    return [
        *(_road(network) for network in results.get("road", [])),
        *([_loadgen(results)] if results.get("loadgen") else []),
        *([_servers(results)] if results.get("servers") else []),
    ]


def quiet(results: dict[str, Any]) -> bool:
    """Whether other programs left the machine alone."""
    return is_quiet(results["observations"])


def quiet_sentence(results: dict[str, Any]) -> str:
    """What the observations say."""
    worst = max(one["busy_share"] for one in results["observations"])
    share = f"{100 * worst:.0f} % of the processors' time"
    if quiet(results):
        return f"The machine was quiet: while nothing of this ran, other programs took {share}."
    return (
        f"While nothing of this ran, other programs took up to {share} (more than "
        f"{100 * QUIET_SHARE:.0f} %): no figure here is worth quoting."
    )


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(median(values), min(values), max(values))


def shares(rounds: Sequence[dict[str, Any]], way: str) -> Spread:
    """Throughput of a way as a share of perf_analyzer's in the same round."""
    return spread(
        [one[way]["images_per_second"] / one[PERF_ANALYZER]["images_per_second"] for one in rounds]
    )


def _road(network: dict[str, Any]) -> Part:
    rows, below = [], []
    for case in network["cases"]:
        rounds = case["rounds"]
        rates = [
            _spread_cell([one[way]["images_per_second"] for one in rounds], "{:,.0f}")
            for way in (PERF_ANALYZER, ENGINE, SERVICE)
        ]
        share = shares(rounds, ENGINE)
        if share.median < AIM:
            below.append(f"{case['concurrency']} x {case['batch']}")
        rows.append(
            (
                f"{case['concurrency']} x {case['batch']}",
                *rates,
                _percent(share),
                _percent(shares(rounds, SERVICE)),
                f"{median([one[ENGINE]['client_cpu_us'] for one in rounds]):,.0f}",
            )
        )
    aim = f"The aim is {100 * AIM:.0f} % for the engine. "
    aim += f"Below it: {', '.join(below)}." if below else "It is met in every row."
    height, width = network["input_size"]
    return Part(
        title=f"{network['name']}: our road beside perf_analyzer, images a second",
        about=(
            f"{network['about']} Input {height} x {width}; the server has the repository's own "
            f"threads and instances. Each round measures the three ways in turn for "
            f"{network['seconds']:g} s each. `engine`: our asyncio client, in one process. "
            "`service`: image files to the classification service, which decodes them, asks the "
            "same server and ranks the classes; its own process takes its share of the processors. "
            "Payload: requests in flight x images a request. "
            "Shares are of perf_analyzer's figure in the same round. CPU: processor time of a "
            "request in the engine's process."
        ),
        columns=(
            "payload",
            "perf_analyzer",
            "engine",
            "service",
            "engine's share",
            "service's share",
            "CPU, us",
        ),
        rows=rows,
        after=aim,
    )


def _loadgen(results: dict[str, Any]) -> Part:
    rows, notes = [], []
    for test in results["loadgen"]:
        figures, rules = test["figures"], test["rules"]
        rows.append(
            (
                f"{test['client']}, {test['scenario']}",
                "VALID" if test["valid"] else "INVALID",
                _HEADLINES[test["scenario"]](figures),
                *(
                    f"{figures[f'{name} percentile latency (ns)'] / 1e6:,.1f}"
                    if test["scenario"] != "Offline"
                    else "-"
                    for name in ("50.00", "99.00")
                ),
                "-" if rules["target_qps"] is None else f"{rules['target_qps']:,.0f}",
                f"{test['answered']:,} of {test['samples']:,}",
            )
        )
        unmet = [name for name, met in test["reasons"].items() if not met]
        words = [f"not satisfied: {', '.join(unmet)}"] if unmet else []
        words += test["cures"] + test["errors"]
        if not test["valid"]:
            words += test["early_stopping"]
        if words:
            notes.append(f"{test['client']}, {test['scenario']}: {' '.join(words)}")
    rules = results["settings"]["loadgen"]
    return Part(
        title="MLPerf LoadGen",
        about=(
            f"LoadGen {results['machine']['versions']['mlcommons-loadgen']} on the demo's network, "
            f"its verdict as it gives it, and INVALID where a sample has no answer. At least "
            f"{rules['min_duration_ms'] / 1000:g} s and {rules['min_query_count']} queries a test "
            "(official runs take 600 s: `--min-duration-ms 600000`); percentile 99 within "
            f"{rules['target_latency_ms']:g} ms for Server, whose rate is "
            + (
                "the first of a falling row of shares of a closed loop's throughput that is VALID "
                "for a short and then for the full time. "
                if rules["target_qps"] is None
                else "given. "
            )
            + "This is no MLPerf submission."
        ),
        columns=(
            "client, scenario",
            "verdict",
            "result",
            "p50, ms",
            "p99, ms",
            "target, a second",
            "answered",
        ),
        rows=rows,
        after="\n\n".join(notes) or "LoadGen has nothing to recommend.",
    )


_HEADLINES: dict[str, Callable[[dict[str, float]], str]] = {
    "SingleStream": lambda figures: f"p90 {figures['90.0th percentile latency (ns)'] / 1e6:.1f} ms",
    "Offline": lambda figures: f"{figures['Samples per second']:,.0f} a second",
    "Server": lambda figures: f"{figures['Completed samples per second']:,.0f} a second",
}


def _servers(results: dict[str, Any]) -> Part:
    rows = []
    measured = results["servers"]["cases"]
    first = [one["images_per_second"] for one in measured[0]["rounds"]]
    for case in measured:
        rates = [one["images_per_second"] for one in case["rounds"]]
        seen = [
            sum(each)
            for each in zip(*(one["images_of_each_server"] for one in case["rounds"]), strict=True)
        ]
        rows.append(
            (
                str(case["servers"]),
                _spread_cell(rates, "{:,.0f}"),
                f"{median([rate / one for rate, one in zip(rates, first, strict=True)]):.2f}",
                " / ".join(f"{100 * count / sum(seen):.1f} %" for count in seen),
                f"{median([one['client_cpu_us'] for one in case['rounds']]):,.0f}",
            )
        )
    processors = results["machine"]["processors"]
    batch, concurrency = measured[0]["batch"], measured[0]["concurrency"]
    return Part(
        title="One engine over several servers",
        about=(
            f"The demo's network; each server has one instance with one thread. {concurrency} "
            f"requests of {batch} images are in flight, over all servers together; gRPC's round "
            "robin spreads them. What each server got is of its own statistics. CPU: processor "
            "time of a request in the engine's process."
        ),
        columns=(
            "servers",
            "images a second",
            "times one server",
            "share of each server",
            "CPU, us",
        ),
        rows=rows,
        after=(
            f"All servers and the client share {processors} processors, so this shows that the "
            "work is spread evenly and what the client costs, and not how far servers on machines "
            "of their own would scale."
        ),
    )


def _spread_cell(values: Sequence[float], form: str) -> str:
    middle, least, greatest = (form.format(value) for value in spread(values))
    return middle if len(values) == 1 else f"{middle} ({least} to {greatest})"


def _percent(share: Spread) -> str:
    middle, least, greatest = (f"{100 * value:.0f}" for value in share)
    return f"{middle} %" if least == greatest else f"{middle} % ({least} to {greatest})"
