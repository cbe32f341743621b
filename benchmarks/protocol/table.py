"""The protocol's runs as figures: means, paired differences, two kinds of intervals, a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.protocol.records import ARMS, Record
from mkf.errors import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """In percentage points, or in percent."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """An arm minus another on the same seeds and images, in percentage points."""

    points: float
    of_seed: tuple[float, ...]
    seeds: Interval | None  # None with one seed
    images: Interval


@dataclass(frozen=True)
class Row:
    """One arm of one dataset; top-1 in percent."""

    arm: str
    top1: float  # mean over the seeds
    top1_images: Interval
    top1_of_seed: Mapping[str, float]
    kept: float | None  # mean share of the learned filters' variance, 0 to 1
    minus_learned: Difference | None
    minus_b: Difference | None


@dataclass(frozen=True)
class Comparison:
    """All arms of one dataset that are there."""

    dataset: str
    seeds: tuple[int, ...]
    test_images: int
    complete: bool  # every arm has every seed
    rows: tuple[Row, ...]
    b_wins: bool  # over every other arm, each by its interval over seeds
    verdict: str


def read_runs(path: Path) -> list[Record]:
    """The records of `runs.jsonl`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is not there; run the benchmark without --table-only") from None
    return [Record.from_json(json.loads(line)) for line in lines]


def compare(records: Sequence[Record]) -> list[Comparison]:
    """One comparison a dataset, in the order of the records."""
    names = dict.fromkeys(record.dataset for record in records)
    return [_compare(name, [r for r in records if r.dataset == name]) for name in names]


def over_images(flags: NDArray[np.bool_] | NDArray[np.int64]) -> Interval:
    """Interval of a mean over images, in percent: these networks, new images; values (seeds, n).

    An image's values are averaged over the seeds first: the same image under three seeds is no
    three images, so counting it thrice would make the interval too narrow. Normal approximation,
    mean +- z s / sqrt(n).
    """
    of_image = flags.mean(axis=0)
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * of_image.std(ddof=1) / math.sqrt(len(of_image))
    return Interval(100 * float(of_image.mean() - half), 100 * float(of_image.mean() + half))


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean of one value a seed: new trainings, these images."""
    n = len(values)
    if n < 2:
        return None
    half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * np.std(values, ddof=1) / math.sqrt(n)
    return Interval(float(np.mean(values) - half), float(np.mean(values) + half))


def difference(arm: Iterable[Record], other: Iterable[Record]) -> Difference | None:
    """`arm` minus `other`, paired by seed and image; None where they share no seed."""
    others = {record.seed: record for record in other}
    pairs = [(record, others[record.seed]) for record in arm if record.seed in others]
    if not pairs:
        return None
    # (seeds, n) of -1, 0, 1
    signs = np.stack([a.correct.astype(np.int64) - b.correct.astype(np.int64) for a, b in pairs])
    of_seed = [100 * float(row.mean()) for row in signs]
    return Difference(
        points=float(np.mean(of_seed)),
        of_seed=tuple(of_seed),
        seeds=over_seeds(of_seed),
        images=over_images(signs),
    )


def _compare(name: str, records: list[Record]) -> Comparison:
    arms = {arm: [r for r in records if r.arm == arm] for arm in ARMS}
    seeds = sorted({record.seed for record in records})
    rows = []
    for arm, runs in arms.items():
        if not runs:
            continue
        kept = [record.kept for record in runs if record.kept is not None]
        rows.append(
            Row(
                arm=arm,
                top1=100 * float(np.mean([record.top1 for record in runs])),
                top1_images=over_images(np.stack([record.correct for record in runs])),
                top1_of_seed={str(record.seed): 100 * record.top1 for record in runs},
                kept=float(np.mean(kept)) if kept else None,
                minus_learned=None if arm == "learned" else difference(runs, arms["learned"]),
                minus_b=None if arm == "B" else difference(runs, arms["B"]),
            )
        )
    return Comparison(
        dataset=name,
        seeds=tuple(seeds),
        test_images=len(records[0].correct),
        complete=all(len(runs) == len(seeds) for runs in arms.values()),
        rows=tuple(rows),
        b_wins=all(_below_b(row) for row in rows if row.arm != "B"),
        verdict=_verdict(name, rows),
    )


def _verdict(name: str, rows: Sequence[Row]) -> str:
    """One sentence on method B, from the numbers alone."""
    order = [row.arm for row in sorted(rows, key=lambda row: -row.top1)]
    if "B" not in order:
        return f"{name}: B has not been trained yet."
    below = [row.arm for row in rows if _below_b(row)]
    above = [row.arm for row in rows if _above_b(row)]
    alike = [row.arm for row in rows if row.arm not in (*below, *above, "B")]
    parts = [f"B has rank {order.index('B') + 1} of {len(order)} by mean top-1"]
    if not any(row.minus_b and row.minus_b.seeds for row in rows):
        return f"{name}: {parts[0]}; one seed tells no arm from another."
    if below:
        parts.append(f"is better than {_listed(below)}")
    if above:
        parts.append(f"is worse than {_listed(above)}")
    if alike:
        parts.append(f"cannot be told apart from {_listed(alike)}")
    return f"{name}: {'; '.join(parts)} (95 % intervals over seeds)."


def _below_b(row: Row) -> bool:
    seeds = row.minus_b.seeds if row.minus_b else None
    return seeds is not None and seeds.high < 0


def _above_b(row: Row) -> bool:
    seeds = row.minus_b.seeds if row.minus_b else None
    return seeds is not None and seeds.low > 0


def _listed(arms: Sequence[str]) -> str:
    return arms[0] if len(arms) == 1 else f"{', '.join(arms[:-1])} and {arms[-1]}"


def headline(comparisons: Sequence[Comparison]) -> str:
    """The answer to the one question."""
    won = [comparison.dataset for comparison in comparisons if comparison.b_wins]
    if not won:
        return "Does B win here, too? No."
    everywhere = len(won) == len(comparisons)
    return f"Does B win here, too? {'Yes' if everywhere else f'Only on {_listed(won)}'}."


def to_json(comparisons: Sequence[Comparison], records: Sequence[Record]) -> dict[str, object]:
    """All figures of the table, and the settings of the runs."""
    return {
        "confidence": CONFIDENCE,
        "runs": len(records),
        "complete": all(comparison.complete for comparison in comparisons)
        and len({comparison.seeds for comparison in comparisons}) == 1,
        "settings": {c.dataset: _settings_of(c.dataset, records) for c in comparisons},
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def _settings_of(dataset: str, records: Sequence[Record]) -> Mapping[str, object]:
    return next(record.settings for record in records if record.dataset == dataset)
