"""Filters as sums of the keys' models, each layer with scales of its own for each key.

The filters of a layer share one sigma_x, sigma_y for each of the 8 keys (key 7: sigma and gamma),
those with which the most of their variance is kept. Two steps take turns: each filter's keys by
orthogonal matching pursuit, then the scales by L-BFGS-B (scipy), with the exact derivative of what
the least-squares factors leave over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from mkf.expansion import Expansion, Floats, Keys, Problem, expansion, pursue, scaled_gram
from mkf.fitting import Scales
from mkf.idealized import Boundary
from mkf.keys import COUNT
from mkf.scale_terms import POSITION_MAX, SHARPEN_KEY, TermModels, to_position, to_sigma

_ROUNDS = 5
_ITERATIONS = 25  # of L-BFGS-B a round
_ENOUGH = 1e-5  # of the layer's variance: a round that gains less is the last
_KEYS = np.arange(1, COUNT + 1)
_SEVEN = SHARPEN_KEY - 1


def expand(
    learned: Floats,
    problem: Problem | None = None,
    *,
    terms: int,
    start: Sequence[Scales],
    boundary: Boundary = "symmetric",
) -> Expansion:
    """Give each filter of a layer its best `terms` keys, at the layer's best scales.

    Parameters
    ----------
    learned : (n, k, k) float64
        The learned filters, on whose variance the scales are chosen.
    problem
        What the filters are to become at these scales, where that is not to stay near themselves.
    terms
        1 to 8.
    start
        The scales of all 8 keys to begin with, key 1 first; nothing worse is returned.

    Raises
    ------
    InputError
        There are no so many keys, or the filters cannot be used.
    """
    plain = Problem.of(learned)
    models = TermModels.on_grid(learned.shape[-1], boundary)
    parameters = np.concatenate(
        [
            to_position([scale.sigma_x for scale in start]),
            to_position([scale.sigma_y for scale in start]),
            [start[_SEVEN].gamma or 0.0],
        ]
    )
    whole = Problem(plain.target - plain.target.mean(axis=1, keepdims=True)).target
    variation = float(np.einsum("nd,nd->", whole, whole))
    best, left = parameters, np.inf
    for _ in range(_ROUNDS if variation > 0 else 0):
        keys, _, values = pursue(plain, _kernels(models, parameters)[0], terms=terms)
        error = float(((plain.target - values) ** 2).sum())
        if left - error < _ENOUGH * variation:
            break
        best, left = parameters, error
        parameters = _improved(models, plain.target, keys, parameters, variation)
    kernels = _kernels(models, best)[0].reshape(COUNT, *learned.shape[1:])
    keys, weights, values = pursue(problem or plain, kernels, terms=terms)
    return describe(learned, keys, weights, values, kernels, _scales(best))


def describe(
    learned: Floats,
    keys: Keys,
    weights: Floats,
    values: Floats,
    kernels: Floats,
    scales: Sequence[Scales],
) -> Expansion:
    """The outcome of a pursuit among kernels (8, k, k) of these scales, as an `Expansion`."""
    spread = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    norms = np.linalg.norm(spread.reshape(len(kernels), -1), axis=1)
    table = np.array(
        [(s.sigma_x, s.sigma_y, np.nan if s.gamma is None else s.gamma) for s in scales]
    )
    sigma_x, sigma_y, gamma = (table[keys - 1, column] for column in range(3))
    return expansion(
        learned,
        values.reshape(learned.shape),
        keys=keys,
        a=weights * norms[keys - 1],
        scales=(sigma_x, sigma_y, gamma),
    )


def _improved(
    models: TermModels, filters: Floats, keys: Keys, parameters: Floats, variation: float
) -> Floats:
    """Scales that keep more, each filter's keys as they are."""

    def objective(point: Floats) -> tuple[float, Floats]:
        kernels, slopes = _kernels(models, point)
        left, weights = _least_squares(kernels, filters, keys)
        pulled = -2 * weights.T @ left  # (8, d): derivative in each kernel's values
        gradient = np.concatenate(
            [np.einsum("kd,kd->k", pulled, slope) for slope in slopes[:2]]
            + [pulled[_SEVEN : _SEVEN + 1] @ slopes[2][_SEVEN]]
        )
        return float(np.einsum("nd,nd->", left, left)) / variation, gradient / variation

    bounds = [(0.0, POSITION_MAX)] * (2 * COUNT) + [(None, None)]
    found = minimize(
        objective,
        parameters,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _ITERATIONS},
    )
    return np.asarray(found.x)


def _kernels(models: TermModels, parameters: Floats) -> tuple[Floats, list[Floats]]:
    """The 8 kernels (8, d) and their derivatives in x, in y and in gamma, (8, d) each."""
    x, y, gamma = parameters[:COUNT], parameters[COUNT:-1], parameters[-1]
    columns, in_x, in_y = models.columns(_KEYS, x, y)
    in_gamma = np.zeros_like(columns)
    in_gamma[_SEVEN] = -columns[_SEVEN]
    impulse = np.zeros(columns.shape[1])
    impulse[len(impulse) // 2] = 1
    columns[_SEVEN] = impulse - gamma * columns[_SEVEN]
    in_x[_SEVEN] *= -gamma
    return columns.reshape(COUNT, models.size, models.size), [in_x, in_y, in_gamma]


def _least_squares(kernels: Floats, filters: Floats, keys: Keys) -> tuple[Floats, Floats]:
    """What is left of the filters (n, d), and the kernels' factors (n, 8)."""
    rows = kernels.reshape(COUNT, -1)
    columns = np.concatenate([np.ones((len(keys), 1, rows.shape[1])), rows[keys - 1]], axis=1)
    scale, gram = scaled_gram(columns)
    pulls = np.einsum("ncd,nd->nc", columns, filters) * scale
    weights = np.linalg.solve(gram, pulls[:, :, None])[:, :, 0] * scale
    left = filters - np.einsum("nc,ncd->nd", weights, columns)
    factors = np.zeros((len(keys), COUNT))
    np.put_along_axis(factors, keys - 1, weights[:, 1:], axis=1)
    return left, factors


def _scales(parameters: Floats) -> list[Scales]:
    x, y = to_sigma(parameters[:COUNT]), to_sigma(parameters[COUNT:-1])
    return [
        Scales(int(key), float(x[key - 1]), float(x[key - 1]), float(parameters[-1]))
        if key == SHARPEN_KEY
        else Scales(int(key), float(x[key - 1]), float(y[key - 1]))
        for key in _KEYS
    ]
