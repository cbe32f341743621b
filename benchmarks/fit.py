"""Time of all fits, of assignment and of filters' own scales, beside the plain grid search.

Run `python benchmarks/fit.py`, with OMP_NUM_THREADS=1 for one core. The grid search
(`grid_search.py`) tries 200 x 200 scales a key, as published notebooks do. It and ours take turns:
each round runs a part of the grid and some repeats of ours, so that both see the same machine.
Times are of the processor, not of the clock.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import grid_search as grid
import numpy as np
import scipy
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mkf.assignment import assign
from mkf.filter_scales import expand
from mkf.fitting import KeyFit, Method, ScaleChoice, fit_keys, idealized_kernels
from mkf.idealized import idealized_kernel
from mkf.keys import load_keys, normalize_keys

RESULTS = Path(__file__).parent / "results" / "fit.json"
FILTERS = 50_000
GRID = range(200)
KEYS = load_keys()
NORMALIZED = dict(enumerate(normalize_keys(KEYS), start=1))
SEPARABLE = [1, 2, 3, 4, 5, 6, 8]


@dataclass
class Case:
    """One thing to time.

    Attributes
    ----------
    ours
        What is timed, whole.
    theirs
        From a part of the grid's rows to what the plain way finds there; of `parts` such parts, and
        each to be counted `scale` times to make it whole.
    objectives
        From what ours and theirs found to what each of them reached; less is better.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[Sequence[int]], Any]
    objectives: Callable[[Any, list[Any]], list[tuple[float, float]]]
    note: str
    scale: float = 1
    repeats: int = 10


@dataclass
class Result:
    """Seconds, and the objectives that were reached."""

    name: str
    ours: list[float]
    theirs: list[float]
    objectives: list[tuple[float, float]]
    note: str

    @property
    def ratio(self) -> float:
        return median(self.theirs) / median(self.ours)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "ours_median_s": median(self.ours),
            "theirs_median_s": median(self.theirs),
            "ratio": self.ratio,
            "worst_ours_less_theirs": self.excess,
        }

    @property
    def excess(self) -> float | None:
        """By how much ours is worse where it is worst; negative where it is better everywhere."""
        return max((ours - theirs for ours, theirs in self.objectives), default=None)


def best(found: list[Any]) -> Any:
    return min(found, key=lambda each: each[0])


def fit_case(method: Method) -> Case:
    """Separate scales: a grid of 200 x 200 for each of the 8 keys."""
    distance = grid.l1 if method == "C" else grid.l2

    def theirs(rows: Sequence[int]) -> dict[int, Any]:
        found = {7: grid.search_distance(7, NORMALIZED[7], distance, rows)}
        for key in SEPARABLE if method != "A" else []:
            h = NORMALIZED[key]
            found[key] = (
                grid.search_spread(key, h, rows)
                if method == "B"
                else grid.search_distance(key, h, distance, rows)
            )
        return found

    def objectives(fits: list[KeyFit], parts: list[dict[int, Any]]) -> list[tuple[float, float]]:
        reached = []
        for key in parts[0]:
            fit, h = fits[key - 1], NORMALIZED[key]
            if method == "B" and key != 7:
                window = np.abs(grid.model(key, 1, 1))
                # Each scale is fitted on its own: the models are separable.
                model = grid.model(key, fit.sigma_x, fit.sigma_y)
                off = np.subtract(grid.variances(model, window), grid.variances(h, window))
                ours = float(np.hypot(*off))
            else:
                ours = fit.l1 if method == "C" else fit.l2
            reached.append((ours, float(best([part[key] for part in parts])[0])))
        return reached

    notes = {
        "A": "closed form in both but for key 7, whose grid this is",
        "B": "objective: mismatch of both variances, square pixels; key 7 by l2",
        "C": "objective: l1 of each key",
        "D": "objective: l2 of each key",
    }
    return Case(
        f"fit {method}, separate",
        lambda: fit_keys(KEYS, method=method),
        theirs,
        objectives,
        notes[method],
    )


def line_case(method: Method, scales: ScaleChoice) -> Case:
    """One scale for a key or a group: a line of 200, and key 7's grid."""
    distance = grid.l1 if method == "C" else grid.l2
    power = 1 if method == "C" else 2
    groups = [[1, 2, 3, 4, 8], [5, 6]] if scales == "shared" else [[key] for key in SEPARABLE]

    def theirs(rows: Sequence[int]) -> list[Any]:
        found = [grid.search_distance(7, NORMALIZED[7], distance, rows)]
        for group in groups:
            sums = [
                sum(
                    distance(grid.model(key, sigma, sigma), NORMALIZED[key]) ** power
                    for key in group
                )
                for sigma in grid.SIGMAS[rows]
            ]
            found.append((min(sums),))
        return found

    def objectives(fits: list[KeyFit], parts: list[list[Any]]) -> list[tuple[float, float]]:
        value = {fit.key: fit.l1 if method == "C" else fit.l2 for fit in fits}
        ours = [value[7], *(sum(value[key] ** power for key in group) for group in groups)]
        whole = [float(best(list(each))[0]) for each in zip(*parts, strict=True)]
        return list(zip(ours, whole, strict=True))

    return Case(
        f"fit {method}, {scales}",
        lambda: fit_keys(KEYS, method=method, scales=scales),
        theirs,
        objectives,
        "the plain way: a line of 200 scales, and key 7's grid",
    )


def assignment_case(filters: np.ndarray) -> Case:
    """8 keys for every filter; the plain way, one filter after the other, for a few of them."""
    kernels = idealized_kernels(fit_keys(KEYS, method="B"))
    few = 400

    def theirs(rows: Sequence[int]) -> list[Any]:
        chosen = filters[: few * len(rows) // len(GRID)]
        return grid.assign(chosen, kernels)

    def objectives(found: Any, parts: list[list[Any]]) -> list[tuple[float, float]]:
        left = np.sqrt(np.maximum(found.variation - found.a**2, 0))
        return [(float(left[i]), float(each[0])) for i, each in enumerate(parts[0])]

    return Case(
        f"assign {FILTERS:,} filters",
        lambda: assign(filters, kernels),
        theirs,
        objectives,
        f"the plain way: filter by filter, {few} of them, counted {FILTERS // few} times",
        scale=FILTERS / few,
        repeats=2,
    )


def filter_case(filters: np.ndarray, few: int) -> Case:
    """The best key of each filter at scales of the filter's own."""

    def theirs(rows: Sequence[int]) -> list[Any]:
        return [grid.search_filter(y, rows) for y in filters[:few]]

    def objectives(found: Any, parts: list[list[Any]]) -> list[tuple[float, float]]:
        left = found.variation - found.kept_variation
        whole = [best(list(each))[0] for each in zip(*parts, strict=True)]
        return [(float(left[i]), float(each)) for i, each in enumerate(whole)]

    return Case(
        f"own scales of {FILTERS:,} filters",
        lambda: expand(filters, terms=1),
        theirs,
        objectives,
        f"the grid: {few} filters, counted {FILTERS // few:,} times; objective: squared residual",
        scale=FILTERS / few,
        repeats=1,
    )


def learned_like(count: int) -> np.ndarray:
    """Filters like learned ones: a model at scales of its own, factor, offset, noise of 20 %."""
    random = np.random.default_rng(0)
    filters = []
    for key in random.integers(1, 9, size=count):
        sx, sy = random.uniform(0.3, 1.5, size=2)
        f = idealized_kernel(key, sx, *((sx, 0.5) if key == 7 else (sy,)))
        f = f / np.linalg.norm(f) + random.normal(0, 0.2 / 7, f.shape)
        filters.append(random.normal() * f + random.normal(0, 0.05))
    return np.array(filters)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


def measure(cases: list[Case], rounds: int) -> list[Result]:
    """Every case in every round: ours, and one part of the grid."""
    for case in cases:  # first calls make tables
        if case.repeats > 1:
            case.ours()
    results = [Result(case.name, [], [], [], case.note) for case in cases]
    last: list[Any] = [None] * len(cases)
    parts: list[list[Any]] = [[] for _ in cases]
    for turn in track(range(rounds), "Rounds", console=Console(stderr=True)):
        for number, (case, result) in enumerate(zip(cases, results, strict=True)):
            seconds, found = timed(lambda case=case, turn=turn: case.theirs(GRID[turn::rounds]))
            result.theirs.append(seconds * rounds * case.scale)
            parts[number].append(found)
            for _ in range(case.repeats if case.repeats > 1 or turn == 0 else 0):
                seconds, last[number] = timed(case.ours)
                result.ours.append(seconds)
    for case, result, found, each in zip(cases, results, last, parts, strict=True):
        result.objectives = case.objectives(found, each)
    return results


def total(name: str, results: list[Result], note: str) -> Result:
    """Several results as one: median times added."""
    return Result(
        name,
        [sum(median(each.ours) for each in results)],
        [sum(median(each.theirs) for each in results)],
        [pair for each in results for pair in each.objectives],
        note,
    )


def show(results: list[Result], console: Console) -> None:
    table = Table(title="Processor time: median (least to greatest)")
    for title in ("", "ours", "plain way", "times as fast", "ours - theirs, at worst"):
        table.add_column(title, justify="left" if not title else "right")
    for each in results:
        excess = "" if each.excess is None else f"{each.excess:+.1e}"
        table.add_row(
            each.name, spread(each.ours), spread(each.theirs), f"{each.ratio:,.0f}", excess
        )
    console.print(table)


def spread(seconds: list[float]) -> str:
    unit, factor = ("ms", 1e3) if median(seconds) < 1 else ("s", 1)
    middle, low, high = (factor * each for each in (median(seconds), min(seconds), max(seconds)))
    if len(seconds) == 1:
        return f"{middle:,.1f} {unit}"
    return f"{middle:,.1f} ({low:,.1f} to {high:,.1f}) {unit}"


def environment() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def main(
    rounds: Annotated[int, typer.Option(help="Turns; each has its share of the grid.", min=1)] = 5,
    filters: Annotated[
        int, typer.Option(help="Filters for the grid search over own scales.", min=0)
    ] = 2,
    out: Annotated[Path, typer.Option(help="Where the figures are written.")] = RESULTS,
) -> None:
    """Time fits, assignment and own scales beside the plain grid search; about a minute.

    Write a JSON file with every time, the objectives reached and the machine.
    """
    learned = learned_like(FILTERS)
    separate = [fit_case(method) for method in ("A", "B", "C", "D")]
    lines = [line_case(m, s) for m in ("C", "D") for s in ("isotropic", "shared")]
    many = [assignment_case(learned), *([filter_case(learned, filters)] if filters else [])]
    results = measure([*separate, *lines, *many], rounds)
    fits = total("fit A to D, separate", results[:4], "the four above")
    results.insert(4, fits)
    show(results, Console())
    for each in results:
        print(f"{each.name}: {each.note}")
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), "results": [each.to_json() for each in results]}
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
