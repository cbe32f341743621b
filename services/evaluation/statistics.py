"""The statistics of a comparison: what an accuracy, a difference and a latency are known to.

Every formula has its source in the docstring; scipy computes what it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, norm

CONFIDENCE = 0.95  # of every interval, unless asked otherwise
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class PairedTable:
    """How two models fared on the same images, in images."""

    both: int  # right by both models
    only_baseline: int
    only_idealized: int
    neither: int

    @property
    def images(self) -> int:
        """All images of the table."""
        return self.both + self.only_baseline + self.only_idealized + self.neither


@dataclass(frozen=True)
class Difference:
    """A paired difference of two accuracies, in percentage points."""

    points: float  # idealized minus baseline
    low: float
    high: float


def wilson_interval(
    correct: int, images: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Wilson's score interval of an accuracy, as shares 0 to 1.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) [Wilson 1927, J. Am. Stat. Assoc.
    22:209; method 3 of Newcombe 1998, Stat. Med. 17:857]: it stays within 0 and 1 and keeps its
    coverage near them, where the textbook interval fails.

    Raises
    ------
    ValueError
        No images, or more of them correct than there are.
    """
    interval = binomtest(correct, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_table(baseline: NDArray[np.bool_], idealized: NDArray[np.bool_]) -> PairedTable:
    """The 2x2 table of which model was right, from one flag an image, both (images,).

    Raises
    ------
    ValueError
        The two do not have the same shape.
    """
    if baseline.shape != idealized.shape:
        raise ValueError(f"{baseline.shape} and {idealized.shape} are not the same images")
    return PairedTable(
        both=int(np.sum(baseline & idealized)),
        only_baseline=int(np.sum(baseline & ~idealized)),
        only_idealized=int(np.sum(~baseline & idealized)),
        neither=int(np.sum(~baseline & ~idealized)),
    )


def mcnemar_exact(table: PairedTable) -> float:
    """The two-sided p of McNemar's exact test that neither model is the better one.

    Given the discordant images, those of either side are binomial with 1/2 when the models are
    equally good [McNemar 1947, Psychometrika 12:153]. Without discordant images p is 1.
    """
    discordant = table.only_baseline + table.only_idealized
    if discordant == 0:
        return 1.0
    return float(binomtest(table.only_idealized, discordant, 0.5).pvalue)


def paired_difference(table: PairedTable, *, confidence: float = CONFIDENCE) -> Difference:
    """Accuracy of the idealized model minus the baseline's, in percentage points.

    The point is the plain difference. The interval is the adjusted Wald interval for paired
    proportions: with p_i = (f_i + 1) / (n + 2) of the two discordant counts,
    p_1 - p_2 +- z sqrt((p_1 + p_2 - (p_1 - p_2)^2) / (n + 2))
    [Bonett & Price 2012, J. Educ. Behav. Stat. 37:479], cut to -100 and 100.

    Raises
    ------
    ValueError
        The table is empty.
    """
    n = table.images
    if n == 0:
        raise ValueError("there are no images to compare on")
    gained = (table.only_idealized + 1) / (n + 2)
    lost = (table.only_baseline + 1) / (n + 2)
    center = gained - lost
    z = float(norm.ppf(0.5 + confidence / 2))
    half_width = z * math.sqrt((gained + lost - center**2) / (n + 2))
    return Difference(
        points=100 * (table.only_idealized - table.only_baseline) / n,
        low=100 * max(center - half_width, -1.0),
        high=100 * min(center + half_width, 1.0),
    )


def smallest_sample(percentile: float) -> int:
    """The smallest number of requests that carries a percentile of the latency.

    MLPerf's rule [mlcommons/inference_policies, "Early stopping"]: so many that at most one of
    them lies above the percentile with a chance of 0.01 or less; that is, the smallest n with
    binom.cdf(1, n, 1 - percentile / 100) <= 0.01.

    Examples
    --------
    >>> [smallest_sample(percentile) for percentile in (90, 95, 99, 99.9)]
    [64, 130, 662, 6636]
    """
    above = 1 - percentile / 100
    low, high = 1, 2
    while binom.cdf(1, high, above) > 0.01:
        low, high = high, 2 * high
    while low < high:  # the chance falls with n, so halving finds the first
        middle = (low + high) // 2
        if binom.cdf(1, middle, above) <= 0.01:
            high = middle
        else:
            low = middle + 1
    return high


def latency_percentiles(
    latencies: Sequence[float] | NDArray[np.float64],
) -> dict[float, float | None]:
    """Each percentile of `PERCENTILES` in the unit of the latencies; None where n is too small.

    A percentile is the smallest measured latency that at least that share of requests does not
    exceed: a value that occurred, never an interpolated one.
    """
    n = len(latencies)
    return {
        percentile: (
            float(np.percentile(latencies, percentile, method="inverted_cdf"))
            if n >= smallest_sample(percentile)
            else None
        )
        for percentile in PERCENTILES
    }
