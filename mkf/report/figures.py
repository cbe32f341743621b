"""The figures of contract 1: the keys, the scales, the layers, the filters that keep least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mkf.keys import COUNT
from mkf.report.drawing import (
    INK,
    LINE,
    SERIES,
    WIDTH,
    add_axes,
    draw_color_bar,
    draw_kernels,
    draw_svg,
    row_height,
)
from mkf.report.numbers import percent, signed
from mkf.report.study import KeyPair, Study, WorstFilter
from mkf.repository import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SIGMA, GAMMA = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER GAMMA}"
KEYS_SECTION = "The 8 learned keys beside their models"
FIT_SECTION = "The scales by method, and the keys of each layer"
WORST_SECTION = "The filters that lose most variance"
WORST_SHOWN = 12
_ROW = 20  # height of a layer, CSS pixels


def science_figures(study: Study) -> list[Figure]:
    """All figures of a study, in the order in which a page shows them.

    Parameters
    ----------
    study : Study
        The keys, the chosen fit and a network's layers.
    """
    return [
        *key_figures(study),
        scales_figure(study),
        layers_figure(study),
        *worst_figures(study),
    ]


def key_figures(study: Study) -> list[Figure]:
    """The scale of color, then each key: learned, idealized, difference, all on that scale."""
    limit = color_limit(study.pairs)
    figures = [
        Figure(
            name="keys-scale",
            section=KEYS_SECTION,
            title="One scale of color for all",
            caption="Purple squares are negative, orange ones positive; the larger values carry "
            "their sign. Learned, idealized and difference of all keys share this scale. Each "
            "filter has the norm 1, because a key's factor is free in use; x points right, y up.",
            alt=f"Scale of color from {signed(-limit)}, purple, over white to {signed(limit)}, "
            "orange.",
            width=WIDTH,
            svg=draw_svg(
                44, lambda canvas: draw_color_bar(canvas, limit, left=16, top=4, width=WIDTH - 32)
            ),
        )
    ]
    for pair in study.pairs:
        key = pair.fit.key
        panels = key_panels(pair)
        figures.append(
            Figure(
                name=f"key-{key}",
                section=KEYS_SECTION,
                title=f"Key {key}: {pair.operator}",
                caption=f"{scales_text(pair)}; cosine {pair.cosine:.3f}, the difference has "
                f"{percent(pair.missed)} of the key's norm",
                alt=f"Key {key} as learned, its model ({pair.operator}) and their difference as "
                f"squares; the largest difference is {np.abs(pair.difference).max():.2f}.",
                width=WIDTH,
                svg=draw_svg(
                    row_height(3),
                    lambda canvas, panels=panels: draw_kernels(canvas, panels, limit),  # type: ignore[misc]
                ),
            )
        )
    return figures


def color_limit(pairs: Sequence[KeyPair]) -> float:
    """The value of full color: the largest of all that is shown of the keys, rounded up."""
    largest = max(float(np.abs(panel).max()) for pair in pairs for _, panel in key_panels(pair))
    return math.ceil(10 * largest) / 10


def key_panels(pair: KeyPair) -> list[tuple[str, np.ndarray]]:
    """What is shown of a key, with titles."""
    return [
        ("learned", pair.learned),
        ("idealized", pair.idealized),
        ("difference", pair.difference),
    ]


def scales_text(pair: KeyPair) -> str:
    """The scales of a key's model."""
    fit = pair.fit
    if fit.gamma is not None:
        return f"{SIGMA} {fit.sigma_x:.3f}, {GAMMA} {fit.gamma:.3f}"
    return f"{SIGMA}x {fit.sigma_x:.3f}, {SIGMA}y {fit.sigma_y:.3f}"


def scales_figure(study: Study) -> Figure:
    """Scale along x and along y of each key by each method that has an answer."""
    found = study.fits_by_method
    largest = max(max(fit.sigma_x, fit.sigma_y) for fits in found.values() for fit in fits)

    def draw(canvas: Canvas) -> None:
        for panel, axis in enumerate("xy"):
            axes = add_axes(canvas, 34 + 166 * panel, 50, 148, 320)
            for lane, (method, fits) in enumerate(found.items()):
                color, marker = SERIES["ABCD".index(method)]
                # One lane a method within a key's row, so that equal scales do not hide each other.
                offset = 0.19 * (lane - (len(found) - 1) / 2)
                axes.plot(
                    [getattr(fit, f"sigma_{axis}") for fit in fits],
                    [fit.key + offset for fit in fits],
                    color=color,
                    marker=marker,
                    linestyle="none",
                    markersize=5,
                    label=method,
                    clip_on=False,
                )
            axes.set(xlim=(0, 1.06 * largest), ylim=(COUNT + 0.5, 0.5))
            axes.set_yticks(range(1, COUNT + 1), [str(n) for n in range(1, COUNT + 1)])
            axes.set_yticks(np.arange(1.5, COUNT), minor=True)
            axes.tick_params(axis="y", which="both", length=0)
            axes.grid(which="minor", axis="y")
            axes.grid(which="major", axis="x")
            axes.set_axisbelow(True)
            axes.set_title(f"{SIGMA}{axis} in pixels", pad=5)
            if panel:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("key", labelpad=4)
        handles, labels = axes.get_legend_handles_labels()
        canvas.legend(
            handles,
            [f"method {label}" if not place else label for place, label in enumerate(labels)],
            loc="upper center",
            ncols=len(found),
            frameon=False,
            handletextpad=0.1,
            columnspacing=1.6,
        )

    gammas = ", ".join(f"{fits[6].gamma:.3f} by {method}" for method, fits in found.items())
    scales = {
        "separate": "own scales in x and y",
        "isotropic": "one scale a key",
        "shared": "scales shared by keys 1-4 and 8, and by 5 and 6",
    }[study.scales]
    return Figure(
        name="scales",
        section=FIT_SECTION,
        title=f"Fitted scales, {scales}",
        caption="A: spread, continuous theory. B: spread of the discrete model. C: least l1 "
        f"distance. D: least l2 distance. Key 7 has one scale and a weight {GAMMA}: {gammas}.",
        alt=f"Dot plot of the scales of the 8 keys along x and along y by {len(found)} methods, "
        f"from 0 to {largest:.2f} pixels.",
        width=WIDTH,
        svg=draw_svg(396, draw),
    )


def layers_figure(study: Study) -> Figure:
    """The share of each key in each layer, and the variance that the layer keeps."""
    names = short_names([layer.name for layer in study.layers])
    shares = np.array(
        [
            [layer.counts.get(key, 0) / len(layer.learned) for key in study.counts()]
            for layer in study.layers
        ]
    )
    kept = [layer.kept for layer in study.layers]
    limit = max(0.5, shares.max())
    rows = [*names, "all"] if len(names) > 1 else names
    label = 12 + 6.6 * max(len(name) for name in rows)

    def draw(canvas: Canvas) -> None:
        _draw_shares(canvas, names, shares, kept, limit, label=label, top=38)
        if len(names) > 1:
            whole = np.array([list(study.counts().values())]) / study.filters
            top = 46 + _ROW * len(names)
            _draw_shares(canvas, ["all"], whole, [study.kept], limit, label=label, top=top)
        first, second = canvas.axes[:2]
        first.set_xticks(range(COUNT), [str(key) for key in study.counts()])
        first.set_title("filters of each key, percent", pad=18)
        second.set_title("kept", pad=18)

    return Figure(
        name="layers",
        section=FIT_SECTION,
        title="Share of each key, and variance kept, by layer",
        caption="A row is a layer, first to last; a column a key. Kept: the share of the variance "
        f"of its filters. {_counting(study)}{_naming(study, names)}",
        alt="; ".join(
            f"{layer.name}: most filters of key {int(np.argmax(share)) + 1} "
            f"({percent(share.max())}), {percent(layer.kept)} of the variance kept"
            for layer, share in zip(study.layers, shares, strict=True)
        ),
        width=WIDTH,
        svg=draw_svg(52 + _ROW * len(rows), draw),
    )


def _draw_shares(
    canvas: Canvas,
    names: Sequence[str],
    shares: np.ndarray,
    kept: Sequence[float],
    limit: float,
    *,
    label: float,
    top: float,
) -> None:
    """Rows of shares (rows, keys) as numbers on blue, full blue for `limit`, and bars of `kept`."""
    cells, height = WIDTH - label - 78, _ROW * len(names)
    axes = add_axes(canvas, label, top, cells, height)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=limit, aspect="auto", interpolation="none")
    for (y, x), share in np.ndenumerate(shares):
        if share > 0:
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            color = "white" if share > 0.68 * limit else INK
            axes.text(x, y, text, ha="center", va="center", color=color)
    axes.set_xticks([])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.tick_params(axis="y", colors=INK)
    axes.spines[:].set(visible=True, color=LINE)

    bars = add_axes(canvas, label + cells + 8, top, 66, height)
    bars.barh(range(len(names)), 1, height=0.6, color="#e2e2dd")
    bars.barh(range(len(names)), kept, height=0.6, color="#B4690E")
    for y, share in enumerate(kept):
        bars.text(2, y, percent(share), ha="right", va="center")
    bars.set(xlim=(0, 2), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=[])
    bars.spines[:].set_visible(False)


def short_names(names: Sequence[str], limit: int = 14) -> list[str]:
    """Names without the parts that they all share: "stages.0.blocks.1.conv_dw" is "0.1"."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) == 1 and len(names) > 1:
        telling = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
        parts = [[p for p, told in zip(part, telling, strict=True) if told] for part in parts]
    shortened = [".".join(part) for part in parts]
    cut = [n if len(n) <= limit else "\N{HORIZONTAL ELLIPSIS}" + n[1 - limit :] for n in shortened]
    return cut if len(set(cut)) == len(set(names)) else [str(n) for n in range(1, len(names) + 1)]


def _counting(study: Study) -> str:
    several = sum(study.counts().values()) > study.filters
    return "Filters have several keys, so a row adds up to more than 100. " if several else ""


def _naming(study: Study, names: Sequence[str]) -> str:
    first = study.layers[0].name
    return "" if names[0] == first else f"{names[0]} stands for {first}, and so on."


def worst_figures(study: Study) -> list[Figure]:
    """The filters that lose most variance: learned, idealized, difference."""
    return [
        _worst_figure(place, one) for place, one in enumerate(study.worst(WORST_SHOWN), start=1)
    ]


def _worst_figure(place: int, one: WorstFilter) -> Figure:
    learned = one.layer.learned[one.channel]
    idealized = one.layer.idealized[one.channel]
    panels = [
        ("learned", learned),
        ("idealized", idealized),
        ("difference", learned - idealized),
    ]
    limit = max(float(np.abs(panel).max()) for _, panel in panels)
    return Figure(
        name=f"filter-{place:02d}",
        section=WORST_SECTION,
        title=f"{place}. {one.layer.name}, channel {one.channel}",
        caption=f"nearest to key {one.key}, {percent(one.kept)} of its variance kept, "
        f"{percent(one.share_of_loss, 1)} of all that is lost; full color is {limit:.2g}",
        alt=f"Channel {one.channel} of {one.layer.name} as learned, as idealized (nearest to key "
        f"{one.key}), and the difference; {percent(one.kept)} of its variance is kept.",
        width=WIDTH,
        svg=draw_svg(row_height(3), lambda canvas: draw_kernels(canvas, panels, limit)),
    )
