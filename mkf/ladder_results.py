"""What `mkf ladder` found out, as `ladder.json` holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mkf.json_files import read_json

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Calibration(_Part):
    """Images on which rungs were refitted."""

    dataset: str
    images: int


class Baseline(_Part):
    """The network as it was learned."""

    top1: Share
    top1_interval: tuple[Share, Share]


class Rung(_Part):
    """One way to idealize the network, and what it costs."""

    name: str
    terms: int
    scales: Literal["fixed", "per-layer", "per-filter"]
    calibrated: bool
    numbers_per_filter: Annotated[float, Field(gt=0)]
    kept: Share  # of the filters' variance
    missed: Share | None = None  # of the convolutions' outputs, where the rung is calibrated
    top1: Share
    top1_interval: tuple[Share, Share]
    difference_pp: float  # from the baseline, paired, in percentage points
    difference_interval_pp: tuple[float, float]
    mcnemar_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    only_baseline: int = 0  # images that the learned network alone has right
    only_idealized: int = 0
    share_of_baseline: Annotated[float, Field(ge=0)]

    @property
    def label(self) -> str:
        """Its name, which tells calibrated rungs from others."""
        told = not self.calibrated or "calibrat" in self.name
        return self.name if told else f"{self.name}, calibrated"


class Ladder(_Part):
    """All rungs of one network on one dataset."""

    schema_version: Literal[1]
    source: str
    dataset: str
    images: int
    limited: bool
    calibration: Calibration | None
    filters: int
    learned_numbers_per_filter: Annotated[float, Field(gt=0)] | None = None  # mean of k k
    baseline: Baseline
    rungs: Annotated[list[Rung], Field(min_length=1)]

    def enough(self, share: float) -> Rung | None:
        """The rung of fewest free numbers that keeps this share of the baseline's top-1."""
        enough = [rung for rung in self.rungs if rung.share_of_baseline >= share]
        return min(enough, key=lambda rung: rung.numbers_per_filter, default=None)


def read_ladder(path: Path) -> Ladder:
    """What `mkf ladder` wrote.

    Raises
    ------
    InputError
        The file cannot be read or is none of `mkf ladder`'s.
    """
    return read_json(path, Ladder, wanted="a file that `mkf ladder` wrote")
