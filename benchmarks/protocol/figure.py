"""A dot plot of the arms: difference to the learned network, with both intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.protocol.table import Comparison, Difference
from mkf.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#555555"  # Okabe and Ito's, told apart by everyone


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """A PNG, one panel a dataset.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            f"the figure needs matplotlib ({error}); install it with: pip install 'mkf[report]'"
        ) from error

    figure = Figure(figsize=(5.2 * len(comparisons), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for panel, comparison in zip(axes, comparisons, strict=True):
        _panel(panel, comparison)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _panel(panel: Axes, comparison: Comparison) -> None:
    rows = [(row, row.minus_learned) for row in comparison.rows if row.minus_learned]
    learned = next((row for row in comparison.rows if row.arm == "learned"), None)
    for y, (_, found) in enumerate(rows):
        _arm(panel, y, found)
    panel.axvline(0, color=GRAY, linewidth=1, linestyle="--")
    panel.set_yticks(range(len(rows)), [f"{row.arm}  {row.top1:.2f} %" for row, _ in rows])
    panel.invert_yaxis()
    panel.set_xlabel("top-1 minus the learned network's, percentage points")
    title = comparison.dataset + (f" (learned: {learned.top1:.2f} %)" if learned else "")
    panel.set_title(title, fontsize=11)
    panel.spines[["top", "right"]].set_visible(False)


def _arm(panel: Axes, y: int, found: Difference) -> None:
    if found.seeds:
        panel.plot(
            [found.seeds.low, found.seeds.high],
            [y, y],
            color=BLUE,
            linewidth=1,
            label="95 % over seeds" if y == 0 else None,
        )
    panel.plot(
        [found.images.low, found.images.high],
        [y, y],
        color=BLUE,
        linewidth=5,
        alpha=0.45,
        solid_capstyle="butt",
        label="95 % over images" if y == 0 else None,
    )
    panel.plot(
        found.of_seed,
        [y + 0.22] * len(found.of_seed),
        marker="|",
        color=ORANGE,
        linestyle="none",
        markersize=7,
        label="each seed" if y == 0 else None,
    )
    panel.plot(
        found.points,
        y,
        marker="o",
        color=BLUE,
        linestyle="none",
        label="mean" if y == 0 else None,
    )
