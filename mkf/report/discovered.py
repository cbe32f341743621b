"""The keys that `mkf discover` found in networks' own filters, from the file that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mkf.json_files import read_json
from mkf.keys import MASTER_KEYS
from mkf.report.drawing import INK, LINE, SERIES, WIDTH, add_axes, draw_kernels, draw_svg
from mkf.report.numbers import percent
from mkf.report.study import operator_name
from mkf.repository import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SECTION = "The keys found in the network's own filters"
Share = Annotated[float, Field(ge=0, le=1)]
_PICTURE = 120  # CSS pixels across


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class FoundKey(_Part):
    """A key that was found."""

    key: int
    kernel: list[list[float]]  # k x k, row 0 on top
    operator_key: Annotated[int, Field(ge=1, le=8)]  # the master key whose operator fits it best
    cosine: float  # with that operator's best model
    well: bool  # whether that fits well
    share: Share  # of the filters that take this key

    @field_validator("kernel")
    @classmethod
    def _square(cls, kernel: list[list[float]]) -> list[list[float]]:
        if not kernel or any(len(row) != len(kernel) for row in kernel):
            raise ValueError("is no square")
        if not np.isfinite(kernel).all():
            raise ValueError("holds a value that is not finite")
        return kernel

    @property
    def name(self) -> str:
        """The operator in words, or that there is none."""
        return operator_name(MASTER_KEYS[self.operator_key]) if self.well else "no operator fits"


class Cost(_Part):
    """What a number of keys costs."""

    count: int  # of keys
    cost: float


class Discovered(_Part):
    """What `mkf discover` found."""

    sources: list[str]
    filters: int
    keys: Annotated[list[FoundKey], Field(min_length=1)]
    cost: Literal["reconstruction", "top1_error"]
    costs: list[Cost]
    elbow: int  # the count at which the curve bends most


def read_discovered(path: Path) -> Discovered:
    """What `mkf discover` wrote.

    Raises
    ------
    InputError
        The file cannot be read or is none of `mkf discover`'s.
    """
    return read_json(path, Discovered, wanted="the .json file that `mkf discover` wrote")


def discovered_figures(found: Discovered) -> list[Figure]:
    """The cost curve with the number of keys taken, then the keys, each on a scale of its own."""
    curve = [cost_figure(found)] if len(found.costs) > 1 else []
    return [*curve, *(_key_figure(key) for key in found.keys)]


def cost_figure(found: Discovered) -> Figure:
    """The cost over the number of keys; the number taken and the elbow stand out."""
    costs = {cost.count: cost.cost for cost in sorted(found.costs, key=lambda cost: cost.count)}
    taken = len(found.keys)
    bend = "taken, where it bends most" if found.elbow == taken else "where it bends most"
    marks = {taken: ("taken", (6, 10)), found.elbow: (bend, (6, -16))}
    what = "top-1 error" if found.cost == "top1_error" else "share of variance lost"

    def draw(canvas: Canvas) -> None:
        axes = add_axes(canvas, 52, 10, WIDTH - 64, 190)
        color, marker = SERIES[0]
        axes.plot(list(costs), list(costs.values()), color=color, marker=marker, markersize=3)
        for (count, (text, offset)), (color, marker) in zip(
            marks.items(), SERIES[1:], strict=False
        ):
            if count not in costs:
                continue
            axes.plot(count, costs[count], color=color, marker=marker, markersize=9)
            axes.annotate(
                f"{count}: {text}",
                (count, costs[count]),
                xytext=offset,
                textcoords="offset points",
                color=INK,
            )
        axes.set_xlim(left=0)
        axes.grid()
        axes.set_axisbelow(True)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.set_xlabel("keys")
        axes.set_ylabel(what, labelpad=2)

    return Figure(
        name="discovered-cost",
        section=SECTION,
        title="What fewer keys cost",
        caption=f"The {what} over the number of keys, as candidates are dropped one by one; "
        f"{taken} were taken, and the curve bends most at {found.elbow}.",
        alt=f"The {what} falls from {costs[min(costs)]:.3g} with {min(costs)} keys to "
        f"{costs[max(costs)]:.3g} with {max(costs)}.",
        width=WIDTH,
        svg=draw_svg(240, draw),
    )


def _key_figure(found: FoundKey) -> Figure:
    kernel = np.array(found.kernel, dtype=np.float64)
    limit = float(np.abs(kernel).max()) or 1.0
    return Figure(
        name=f"discovered-{found.key:02d}",
        section=SECTION,
        title=f"{found.key}: {found.name}",
        caption=f"{percent(found.share, 1)} of the filters; cosine {found.cosine:.3f}",
        alt=f"Found key {found.key} as squares: {found.name}.",
        width=_PICTURE,
        svg=draw_svg(
            _PICTURE - 8,
            lambda canvas: draw_kernels(canvas, [("", kernel)], limit, top=-16, width=_PICTURE),
            width=_PICTURE,
        ),
    )
