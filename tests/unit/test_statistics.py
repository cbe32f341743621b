"""The statistics against published values, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.evaluation.statistics import (
    PairedTable,
    latency_percentiles,
    mcnemar_exact,
    paired_difference,
    paired_table,
    smallest_sample,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(correct: int, images: int, low: float, high: float) -> None:
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="not less than 1"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(
    ("table", "p"),
    [
        # Agresti, Categorical Data Analysis: approval ratings, 86 against 150
        (PairedTable(794, 150, 86, 570), 3.716e-05),
        # Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91, table 3: p = 0.070
        (PairedTable(1, 1, 7, 12), 0.0703),
        (PairedTable(5, 4, 4, 5), 1.0),
        (PairedTable(5, 0, 0, 5), 1.0),
    ],
)
def test_mcnemar_exact(table: PairedTable, p: float) -> None:
    assert mcnemar_exact(table) == pytest.approx(p, rel=1e-3)


def test_paired_difference_as_published() -> None:
    # se.prop.ps(16, 64, 5, 15) of the R package vcmeta, by Bonett: center 0.5784314 and standard
    # error 0.05953213
    difference = paired_difference(PairedTable(16, 5, 64, 15))
    assert difference.points == pytest.approx(59.0)
    assert (difference.low + difference.high) / 2 == pytest.approx(57.84314, abs=1e-5)
    assert (difference.high - difference.low) / 2 == pytest.approx(1.959964 * 5.953213, abs=1e-4)


def test_paired_difference_changes_sign_with_the_models() -> None:
    forward = paired_difference(PairedTable(50, 3, 7, 40))
    backward = paired_difference(PairedTable(50, 7, 3, 40))
    assert forward.points == -backward.points == 4
    assert forward.low == pytest.approx(-backward.high)


@pytest.mark.parametrize("images", [1, 2, 5, 100])
def test_paired_difference_stays_within_its_range(images: int) -> None:
    difference = paired_difference(PairedTable(0, 0, images, 0))
    assert difference.points == 100
    assert difference.low < difference.high <= 100


def test_paired_difference_at_fifty_thousand_images() -> None:
    """5 % discordant images of 50,000: 0.20 percentage points to either side."""
    difference = paired_difference(PairedTable(40_000, 1_250, 1_250, 7_500))
    assert difference.high == pytest.approx(0.20, abs=0.005)


def test_paired_difference_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        paired_difference(PairedTable(0, 0, 0, 0))


def test_paired_table() -> None:
    baseline = np.array([True, True, False, False, True])
    idealized = np.array([True, False, True, False, True])
    assert paired_table(baseline, idealized) == PairedTable(2, 1, 1, 1)
    with pytest.raises(ValueError, match="not the same images"):
        paired_table(baseline, idealized[:4])


@pytest.mark.parametrize(
    ("percentile", "requests"), [(50, 11), (90, 64), (95, 130), (99, 662), (99.9, 6636)]
)
def test_smallest_sample_by_mlperf(percentile: float, requests: int) -> None:
    assert smallest_sample(percentile) == requests


def test_percentiles_only_where_the_sample_carries_them() -> None:
    latencies = np.random.default_rng(0).permutation(np.arange(1.0, 131.0))
    percentiles = latency_percentiles(latencies)
    assert percentiles == {50: 65.0, 90: 117.0, 95: 124.0, 99: None, 99.9: None}
    assert set(latency_percentiles([]).values()) == {None}
    assert latency_percentiles(latencies[:129])[95] is None


@pytest.mark.parametrize(("accuracy", "images"), [(0.5, 40), (0.83, 500), (0.99, 200)])
def test_wilson_interval_covers(accuracy: float, images: int) -> None:
    """The interval holds the truth in about 95 % of 4,000 draws.

    The share's sampling error is 0.0034; the nominal level itself is missed by up to 0.02 because
    counts are whole numbers, so 0.03 is allowed.
    """
    draws = np.random.default_rng(7).binomial(images, accuracy, size=4_000)
    intervals = {int(count): wilson_interval(int(count), images) for count in np.unique(draws)}
    covered = np.mean([intervals[count][0] <= accuracy <= intervals[count][1] for count in draws])
    assert covered == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    "chances",  # both, only the baseline, only the idealized, neither
    [(0.80, 0.03, 0.02, 0.15), (0.5, 0.2, 0.1, 0.2), (0.9, 0.01, 0.01, 0.08)],
)
def test_paired_difference_covers(chances: tuple[float, float, float, float]) -> None:
    """As above, with 4,000 tables of 500 images; the adjusted interval errs to the wide side."""
    truth = 100 * (chances[2] - chances[1])
    tables = np.random.default_rng(11).multinomial(500, chances, size=4_000)
    differences = [paired_difference(PairedTable(*map(int, table))) for table in tables]
    covered = np.mean([d.low <= truth <= d.high for d in differences])
    standard_error = math.sqrt(0.95 * 0.05 / len(tables))  # 0.0034
    assert 0.95 - 4 * standard_error <= covered <= 0.985


@pytest.mark.parametrize("percentile", [90.0, 95.0])
def test_a_carried_percentile_has_requests_above_it(percentile: float) -> None:
    """At the smallest sample, fewer than two requests lie above the truth in at most 1 % of draws.

    4,000 draws: a sampling error of 0.0016, four of which are allowed.
    """
    rng = np.random.default_rng(13)
    above = rng.binomial(smallest_sample(percentile), 1 - percentile / 100, size=4_000)
    assert np.mean(above <= 1) <= 0.01 + 4 * 0.0016
