"""The geometry of the report's plots of accuracy; the template draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTH = 340  # of a plot, in units of its view box
MARGIN = 24  # left and right of the axis, so that the outer tick labels fit
ROW_HEIGHT = 40


@dataclass(frozen=True)
class Row:
    """A value with its interval; x in units of the view box."""

    label: str
    text: str  # the figures in words
    kind: str  # baseline, idealized or difference: the color and the shape of the dot
    x: float
    x_low: float
    x_high: float
    y: int


@dataclass(frozen=True)
class Plot:
    """Dots with intervals over one axis."""

    title: str
    description: str
    rows: list[Row]
    ticks: list[tuple[float, str]]  # x and label
    zero: float | None  # x of the zero line
    axis_y: int
    width: int = WIDTH

    @property
    def height(self) -> int:
        """Of the view box: the axis and its labels below the rows."""
        return self.axis_y + 26


def interval_plot(
    title: str,
    rows: list[tuple[str, str, str, float, tuple[float, float]]],
    *,
    with_zero: bool = False,
    bounds: tuple[float, float],
) -> Plot:
    """Dots and intervals on a shared axis that holds them all.

    Parameters
    ----------
    rows
        Label, figures in words, kind, value, interval.
    with_zero
        Whether the axis must hold zero, with a line there.
    bounds
        Which the axis does not leave.
    """
    values = [value for *_, interval in rows for value in interval]
    ticks = _ticks(min(values + [0.0] * with_zero), max(values + [0.0] * with_zero), bounds)
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return round(MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN), 1)

    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return Plot(
        title=title,
        description="; ".join(f"{label}: {text}" for label, text, *_ in rows),
        rows=[
            Row(
                label=label,
                text=text,
                kind=kind,
                x=place(value),
                x_low=place(interval[0]),
                x_high=place(interval[1]),
                y=30 + number * ROW_HEIGHT,
            )
            for number, (label, text, kind, value, interval) in enumerate(rows)
        ],
        ticks=[
            (place(tick), f"{tick + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}"))
            for tick in ticks
        ],
        zero=place(0.0) if with_zero else None,
        axis_y=24 + len(rows) * ROW_HEIGHT,
    )


def _ticks(low: float, high: float, bounds: tuple[float, float]) -> list[float]:
    """Round numbers, about four steps, from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-6)
    unit = 10 ** math.floor(math.log10(span / 4))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(span / 4 - s))
    first, last = math.floor(low / step), math.ceil(high / step)
    first -= low <= first * step and first * step > bounds[0]
    last += high >= last * step and last * step < bounds[1]
    return [round(number * step, 10) for number in range(first, last + 1)]
