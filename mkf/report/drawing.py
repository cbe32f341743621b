"""How figures are drawn: one style, SVG that is the same on every run, filters as colored squares.

Figures are made small (360 CSS pixels wide, letters of 9 points and more), so that a page can let
them flow and a phone shows them at full size. Signs are told by color and by a mark, for eyes and
printers that have no colors: purple and orange (ColorBrewer's PuOr) stay apart for all common kinds
of color blindness.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkf.errors import MissingExtraError
from mkf.report.numbers import signed

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
except ImportError as error:
    raise MissingExtraError(
        f"figures need matplotlib ({error}); install it with: pip install 'mkf[report]'"
    ) from error

WIDTH = 360  # CSS pixels
DIVERGING = "PuOr_r"
INK, SOFT, LINE = "#1c1d21", "#5b5e68", "#c9c9c3"
# Okabe and Ito's colors, each with a marker of its own.
SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))

_PIXELS_PER_INCH = 96  # of CSS
_MARKED_SIZE = 11  # kernels beyond it have squares too small for a mark
_MARKED_SHARE = 0.12  # of full color; smaller values carry no mark
_STYLE: Any = {
    "svg.fonttype": "path",  # letters look and measure the same on every machine
    "svg.hashsalt": "mkf",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": "#e6e6e1",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
}


def draw_svg(height: float, draw: Callable[[Canvas], None], *, width: float = WIDTH) -> bytes:
    """The SVG of a figure of that many CSS pixels that `draw` fills."""
    return _draw(height, draw, width, "svg", metadata={"Date": None, "Creator": None})


def draw_png(height: float, draw: Callable[[Canvas], None], *, width: float) -> bytes:
    """The same as a PNG with two of its pixels a CSS pixel."""
    return _draw(height, draw, width, "png", metadata={"Software": None}, dpi=2 * _PIXELS_PER_INCH)


def _draw(
    height: float, draw: Callable[[Canvas], None], width: float, form: str, **options: Any
) -> bytes:
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH))
        draw(canvas)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=form, facecolor="white", **options)
    return buffer.getvalue()


def add_axes(
    canvas: Canvas, left: float, top: float, width: float, height: float, **options: object
) -> Axes:
    """Axes at a place in CSS pixels, counted from the figure's upper left corner."""
    across, down = canvas.get_size_inches() * _PIXELS_PER_INCH
    place = (left / across, 1 - (top + height) / down, width / across, height / down)
    return canvas.add_axes(place, **options)  # type: ignore[call-overload, no-any-return]


def draw_kernel(axes: Axes, kernel: NDArray[np.float64], limit: float, title: str = "") -> None:
    """A kernel (k, k) as squares, full color for `limit`, with the marks of the larger values."""
    size = len(kernel)
    # Uninterpolated images stand in an SVG as they are: a few bytes, and squares at any size.
    axes.imshow(kernel, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none")
    axes.set_title(title, pad=4)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=LINE)
    if size > _MARKED_SIZE:
        return
    points = 0.4 * axes.get_window_extent().width / axes.figure.dpi * 72 / size
    for sign, marker in ((1, "+"), (-1, "_")):
        share = sign * kernel / limit
        for color, low, high in ((INK, _MARKED_SHARE, 0.6), ("white", 0.6, np.inf)):
            rows, columns = np.nonzero((share >= low) & (share < high))
            if len(rows):
                _mark(axes, columns, rows, color, marker, points)


def _mark(axes: Axes, x: Any, y: Any, color: str, marker: str, points: float) -> None:
    axes.plot(
        x, y, color=color, marker=marker, markersize=points, markeredgewidth=0.9, linestyle="none"
    )


def draw_kernels(
    canvas: Canvas,
    kernels: Sequence[tuple[str, NDArray[np.float64]]],
    limit: float,
    *,
    left: float = 0,
    top: float = 0,
    width: float = WIDTH,
) -> None:
    """Titled kernels in a row, on one scale of color."""
    gap = 8
    edge = (width - gap * (len(kernels) + 1)) / len(kernels)
    for place, (title, kernel) in enumerate(kernels):
        axes = add_axes(canvas, left + gap + place * (edge + gap), top + 20, edge, edge)
        draw_kernel(axes, kernel, limit, title)


def row_height(kernels: int, width: float = WIDTH) -> float:
    """The height that `draw_kernels` needs, in CSS pixels."""
    return (width - 8 * (kernels + 1)) / kernels + 26


def draw_color_bar(canvas: Canvas, limit: float, *, left: float, top: float, width: float) -> None:
    """The scale of color of `draw_kernels`, with its marks."""
    axes = add_axes(canvas, left, top, width, 16)
    shades = np.linspace(-limit, limit, 128)[None]
    span = (-limit, limit, 0.0, 1.0)
    axes.imshow(shades, cmap=DIVERGING, aspect="auto", extent=span, interpolation="none")
    ticks = np.array([-1, -0.5, 0, 0.5, 1]) * limit
    axes.set_xticks(ticks, [signed(tick) for tick in ticks])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=LINE)
    for place, color, marker in (
        (-0.8, "white", "_"),
        (-0.3, INK, "_"),
        (0.3, INK, "+"),
        (0.8, "white", "+"),
    ):
        _mark(axes, place * limit, 0.5, color, marker, 5.5)
    axes.set_xlim(-limit, limit)
