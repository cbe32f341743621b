"""The figures of an export, which go into the model repository beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mkf.fitting import ScaleChoice, Scales, idealized_kernels
from mkf.ladder_results import Ladder
from mkf.report.figures import science_figures
from mkf.report.ladder import ladder_figure
from mkf.report.study import Study, layer_filters
from mkf.repository import Figure, Idealization

Floats = NDArray[np.float64]


def export_figures(
    record: Idealization,
    learned: Sequence[Floats],
    idealized: Sequence[Floats],
    *,
    ladder: Ladder | None = None,
) -> list[Figure]:
    """Draw what an idealization did.

    Parameters
    ----------
    record
        What the manifest says of it.
    learned, idealized
        The filters (n, 1, k, k) of each of its layers, before and after.
    ladder
        What `mkf ladder` found of the network.
    """
    fits = [Scales(**fit) for fit in record.fit["keys"]]
    boundary, fitted = record.fit["boundary"], record.fit["scales"]
    layers = [
        layer_filters(
            layer["name"],
            before[:, 0],
            after[:, 0],
            kernels=idealized_kernels(fits, boundary=boundary, size=before.shape[-1]),
            counts={int(key): count for key, count in layer["keys"].items()},
        )
        for layer, before, after in zip(record.layers, learned, idealized, strict=True)
    ]
    # Scales of each layer's or filter's own begin at those of the separate fit.
    study = Study(
        method=record.fit["method"],
        scales=fitted if fitted in get_args(ScaleChoice) else "separate",
        boundary=boundary,
        learned_keys=np.array(record.learned_keys),
        fits=fits,
        layers=layers,
    )
    return science_figures(study) + ([] if ladder is None else [ladder_figure(ladder)])
