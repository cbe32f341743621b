"""The ladder: accuracy over the free numbers of a filter, from what `mkf ladder` wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkf.ladder_results import Ladder
from mkf.report.drawing import INK, LINE, SERIES, WIDTH, add_axes, draw_svg
from mkf.report.numbers import percent
from mkf.repository import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SECTION = "The ladder: accuracy over free numbers a filter"
_SCALES = {
    "fixed": ("the keys' scales", "o"),
    "per-layer": ("scales of each layer", "s"),
    "per-filter": ("scales of each filter", "^"),
}


def ladder_figure(ladder: Ladder) -> Figure:
    """Top-1 of every rung with its interval; the baseline is a line with its band."""
    baseline = ladder.baseline
    numbers = np.array([rung.numbers_per_filter for rung in ladder.rungs])

    def draw(canvas: Canvas) -> None:
        axes = add_axes(canvas, 42, 8, WIDTH - 54, 250)
        low, high = (100 * end for end in baseline.top1_interval)
        axes.axhspan(low, high, color="#e2e2dd", linewidth=0)
        line = axes.axhline(100 * baseline.top1, color=INK, linewidth=1.2, label="learned filters")
        handles = [line]
        for (scales, (label, marker)), (color, _) in zip(_SCALES.items(), SERIES, strict=False):
            for calibrated in (False, True):
                rungs = sorted(
                    (r for r in ladder.rungs if (r.scales, r.calibrated) == (scales, calibrated)),
                    key=lambda rung: rung.numbers_per_filter,
                )
                if not rungs:
                    continue
                top1 = np.array([rung.top1 for rung in rungs])
                ends = np.array([rung.top1_interval for rung in rungs]).T
                drawn = axes.errorbar(
                    [rung.numbers_per_filter for rung in rungs],
                    100 * top1,
                    yerr=100 * np.abs(ends - top1),
                    color=color,
                    marker=marker,
                    markerfacecolor=color if calibrated else "white",
                    linestyle="-" if calibrated else ":",
                    capsize=2,
                    elinewidth=1,
                    label=label + (", calibrated" if calibrated else ""),
                )
                handles.append(drawn)  # type: ignore[arg-type]
        if numbers.max() > 8 * numbers.min():
            axes.set_xscale("log")
            ticks = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
            inside = [n for n in ticks if 0.8 * numbers.min() <= n <= 1.25 * numbers.max()]
            axes.set_xticks(inside, [str(n) for n in inside])
            axes.set_xticks([], minor=True)
            axes.set_xlim(0.8 * numbers.min(), 1.3 * numbers.max())
        else:
            axes.set_xlim(0, 1.12 * numbers.max())
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0), top=min(axes.get_ylim()[1], 100.5))
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel("free numbers a filter")
        axes.set_ylabel("top-1 accuracy, percent", labelpad=2)
        axes.spines[["left", "bottom"]].set_color(LINE)
        canvas.legend(handles=handles, loc="lower left", frameon=False, borderaxespad=0.4)

    series = len({(rung.scales, rung.calibrated) for rung in ladder.rungs})
    best = max(ladder.rungs, key=lambda rung: rung.top1)
    return Figure(
        name="ladder",
        section=SECTION,
        title="Top-1 of every rung",
        caption=f"{ladder.source} on {ladder.images:,} images of {ladder.dataset}"
        f"{' (a subset)' if ladder.limited else ''}. "
        "Bars are intervals of 95 %; the gray band is the learned network's. Full markers "
        "on solid lines: refitted on images without labels. Hollow markers on dotted lines: the "
        "filters replaced and nothing else.",
        alt=f"Top-1 accuracy of {len(ladder.rungs)} rungs over the free numbers of a filter, from "
        f"{numbers.min():.3g} to {numbers.max():.3g}; the best is {best.label} with "
        f"{percent(best.top1, 1)}, the learned network has {percent(baseline.top1, 1)}.",
        width=WIDTH,
        svg=draw_svg(310 + 18 * (series + 1), draw),
    )
