"""The options that several commands of `mkf` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Method(StrEnum):
    """The four fits."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"


class Scales(StrEnum):
    """Which scales are free."""

    SEPARATE = "separate"
    ISOTROPIC = "isotropic"
    SHARED = "shared"


class FreeScales(StrEnum):
    """Which scales the filters of a network get."""

    SEPARATE = "separate"
    ISOTROPIC = "isotropic"
    SHARED = "shared"
    PER_LAYER = "per-layer"
    PER_FILTER = "per-filter"


class Boundary(StrEnum):
    """How differences end."""

    SYMMETRIC = "symmetric"
    EXACT = "exact"


MethodOption = Annotated[
    Method,
    typer.Option(
        help="A: spread, continuous theory; B: spread of the discrete model; C: least l1 distance; "
        "D: least l2 distance."
    ),
]
ScalesOption = Annotated[
    Scales,
    typer.Option(
        help="separate: sx and sy for each key; isotropic: sx = sy for each key; shared: one scale "
        "for keys 1-4 and 8, one for 5 and 6."
    ),
]
FreeScalesOption = Annotated[
    FreeScales,
    typer.Option(
        help="Scales of the fit, the same in the whole network - separate: sx and sy for each key; "
        "isotropic: sx = sy; shared: one for keys 1-4 and 8, one for 5 and 6. Free scales, more of "
        "the variance kept - per-layer: each layer has its own for each key; per-filter: each "
        "filter has its own for each of its keys, the method then plays no part."
    ),
]
TermsOption = Annotated[
    int,
    typer.Option(
        help="Keys a filter: 1 as published; up to 8 keep more of the variance, the best N found "
        "by orthogonal matching pursuit.",
        min=1,
        max=8,
    ),
]
CalibrateOption = Annotated[
    str | None,
    typer.Option(
        help="A dataset, as `mkf-eval` takes it. Layer after layer, the coefficients, the "
        "offsets, each filter's own scales and the bias behind the filters are refitted by least "
        "squares to the outputs that the learned network gives for its first images; no label is "
        "used.",
        metavar="DATASET",
    ),
]
CalibrationImagesOption = Annotated[
    int | None,
    typer.Option(
        help="Images for --calibrate; all are in memory at once.",
        min=1,
        max=10_000,
        show_default="256",
    ),
]
CALIBRATION_IMAGES = 256
BoundaryOption = Annotated[
    Boundary,
    typer.Option(
        help="symmetric: repeat the edge sample before differencing, as published; exact: crop the "
        "difference of the infinite kernel."
    ),
]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        help="CSV file of 8 keys, columns key,row,c0..c6 (to c{k-1} for k x k keys).",
        show_default="the published master keys",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of a table.")
]


class Interpolation(StrEnum):
    """Pillow's resampling filters."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    LANCZOS = "lanczos"
    NEAREST = "nearest"
    BOX = "box"
    HAMMING = "hamming"


class CropMode(StrEnum):
    """timm's crop modes."""

    CENTER = "center"
    SQUASH = "squash"
    BORDER = "border"


ArchitectureOption = Annotated[
    str | None,
    typer.Option(help="timm's name of a checkpoint's network; found by shape if not given."),
]
InputSizeOption = Annotated[
    tuple[int, int] | None, typer.Option(help="Height and width in pixels.", min=1)
]
CropFractionOption = Annotated[
    float | None, typer.Option(help="Share of the resized edge that is kept.", min=0.01, max=1)
]
InterpolationOption = Annotated[Interpolation | None, typer.Option(help="How images are resized.")]
CropModeOption = Annotated[CropMode | None, typer.Option(help="How images are cropped.")]
ColorOption = Annotated[
    tuple[float, float, float] | None, typer.Option(help="Of R, G, B scaled to [0, 1].")
]
