"""How the filters of a layer are idealized: from one published key to several at their own scales.

Each rung imposes less: one key a filter at the fitted scales, as published; several keys; scales of
each layer's own; scales of each filter's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mkf import filter_scales, layer_scales
from mkf.assignment import Idealized, assign
from mkf.errors import InputError
from mkf.expansion import Problem, pursue
from mkf.fitting import KeyFit, Method, ScaleChoice, fit_keys, idealized_kernels
from mkf.idealized import Boundary
from mkf.keys import COUNT, load_keys

FreeScales = Literal["separate", "isotropic", "shared", "per-layer", "per-filter"]
_LAYER_SCALES = 2 * COUNT  # numbers: sigma_x and sigma_y, for key 7 sigma and gamma


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What an idealization imposes.

    Attributes
    ----------
    method, boundary
        As in `mkf.fitting.fit_keys`; the fit gives the scales, or where their search begins.
    scales
        `separate`, `isotropic`, `shared`: those of the fit, the same in the whole network;
        `per-layer`: for each key, of each layer's own; `per-filter`: of each term of each filter.
    keys
        A CSV of learned keys instead of the published ones.
    terms
        Keys a filter, 1 to 8.
    """

    method: Method = "B"
    scales: FreeScales = "separate"
    boundary: Boundary = "symmetric"
    keys: Path | None = None
    terms: int = 1

    @property
    def fitted_scales(self) -> ScaleChoice:
        """The scales of the fit that this starts from."""
        fitted = self.scales in get_args(ScaleChoice)
        return cast(ScaleChoice, self.scales) if fitted else "separate"


class Idealizer(Protocol):
    """From a layer's filters (n, k, k) to idealized ones, near them or as a problem asks."""

    def __call__(self, learned: NDArray[np.float64], problem: Problem | None = None) -> Idealized:
        """The layer's idealized filters."""
        ...


def fit(choice: Choice) -> list[KeyFit]:
    """The fit that a choice names, key 1 first; errors as `fit_keys` raises them."""
    return fit_keys(
        load_keys(choice.keys),
        method=choice.method,
        scales=choice.fitted_scales,
        boundary=choice.boundary,
    )


def kernels_by_size(
    fits: Sequence[KeyFit], boundary: Boundary
) -> Callable[[int], NDArray[np.float64]]:
    """From a kernel size k to the idealized kernels (8, k, k), made once for each size."""

    @cache
    def kernels(size: int) -> NDArray[np.float64]:
        return idealized_kernels(fits, boundary=boundary, size=size)

    return kernels


def idealizer(choice: Choice) -> Idealizer:
    """The function that idealizes layers as chosen.

    Raises
    ------
    InputError
        There are no so many keys.
    FitError, KeysError
        The keys cannot be read or fitted.
    """
    if not 1 <= choice.terms <= COUNT:
        raise InputError(f"{choice.terms} terms of {COUNT} keys: ask for 1 to {COUNT}")
    terms, boundary = choice.terms, choice.boundary
    if choice.scales == "per-filter":
        if choice.keys is not None:
            raise InputError("scales of each filter's own need no keys: leave the file away")

        def per_filter(learned: NDArray[Any], problem: Problem | None = None) -> Idealized:
            return filter_scales.expand(learned, problem, terms=terms, boundary=boundary)

        return per_filter
    fits = fit(choice)
    if choice.scales == "per-layer":

        def per_layer(learned: NDArray[Any], problem: Problem | None = None) -> Idealized:
            return layer_scales.expand(learned, problem, terms=terms, start=fits, boundary=boundary)

        return per_layer
    by_size = kernels_by_size(fits, boundary)

    def fixed(learned: NDArray[Any], problem: Problem | None = None) -> Idealized:
        kernels = by_size(learned.shape[-1])
        if terms == 1 and problem is None:
            return assign(learned, kernels)
        found = pursue(problem or Problem.of(learned), kernels, terms=terms)
        return layer_scales.describe(learned, *found, kernels, fits)

    return fixed


def numbers_per_filter(choice: Choice, filters: int) -> float:
    """How many numbers are free for each of a layer's filters; which keys they take is not counted.

    The constant; for each term its factor, and with scales of its own two more (key 7: sigma and
    gamma). Scales of a layer's own are shared out among its filters; those of a fit cost nothing.
    """
    own = 3 if choice.scales == "per-filter" else 1
    layer = _LAYER_SCALES / filters if choice.scales == "per-layer" else 0.0
    return 1 + own * choice.terms + layer
