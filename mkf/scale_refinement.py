"""Refine the scales of filters' terms, for thousands of filters at once.

For given scales the factors of the terms are a linear least-squares problem, so only the scales are
searched: variable projection [GP] with Kaufman's derivative [K], by damped Gauss-Newton steps, each
filter with a damping of its own.

References
----------
.. [GP] Golub, Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems
   whose variables separate", SIAM J. Numer. Anal. 10(2), 1973.
.. [K] Kaufman, "A variable projection method for solving separable nonlinear least squares
   problems", BIT 15, 1975.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkf.expansion import Floats, Keys, Problem, scaled_gram
from mkf.scale_terms import POSITION_MAX, SHARPEN_KEY, TermModels

STEPS = 30
_ENOUGH = 1e-6  # a step that gains less of the filter's variance is the last


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of n filters: keys (n, t) and positions of their scales (n, t); key 0 is none."""

    keys: Keys
    x: Floats
    y: Floats

    def __getitem__(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Terms:
        """The same for some of the filters."""
        return Terms(self.keys[chosen], self.x[chosen], self.y[chosen])


@dataclass(frozen=True, eq=False)
class Solution:
    """Terms with the linear least-squares answer for them.

    Attributes
    ----------
    weights : (n, 2 + t) float64
        Of the constant, of the impulse (where key 7 is among the terms), and of each term's model.
    error : (n,) float64
        Squared distance left over.
    """

    terms: Terms
    weights: Floats
    error: Floats
    residual: Floats  # (n, m), after the metric

    def put(self, places: NDArray[np.int64], state: _State) -> None:
        """Take over where a refinement of some of the filters stands."""
        for own, new in (
            (self.terms.x, state.terms.x),
            (self.terms.y, state.terms.y),
            (self.weights, state.weights),
            (self.error, state.error),
            (self.residual, state.residual),
        ):
            own[places] = new


def refine(models: TermModels, problem: Problem, terms: Terms, *, steps: int = STEPS) -> Solution:
    """Damped Gauss-Newton steps in the scales, each filter with a damping of its own."""
    now = _State.at(models, problem, terms)
    terms = Terms(terms.keys, terms.x.copy(), terms.y.copy())
    found = Solution(terms, now.weights.copy(), now.error.copy(), now.residual.copy())
    whole = np.einsum("nm,nm->n", problem.target, problem.target)
    live = np.flatnonzero((now.error > 0) & (terms.keys > 0).any(axis=1))
    now, damping = now[live], np.full(len(live), 1e-2)
    for _ in range(steps):
        if not len(live):
            break
        tried = _State.at(models, problem[live], now.step(damping))
        gain = now.error - tried.error
        taken = gain > 0
        now = now.replaced(taken, tried)
        damping *= np.where(taken, 0.2, 8.0)
        done = np.where(taken, gain < _ENOUGH * whole[live], damping > 1e4)
        found.put(live, now)
        live, now, damping = live[~done], now[~done], damping[~done]
    return found


def better(one: Solution, other: Solution) -> Solution:
    """Of each filter the solution of less error."""
    chosen = other.error < one.error
    column = chosen[:, None]
    return Solution(
        Terms(
            np.where(column, other.terms.keys, one.terms.keys),
            np.where(column, other.terms.x, one.terms.x),
            np.where(column, other.terms.y, one.terms.y),
        ),
        np.where(column, other.weights, one.weights),
        np.where(chosen, other.error, one.error),
        np.where(column, other.residual, one.residual),
    )


def joined(parts: Sequence[Solution]) -> Solution:
    """Solutions of some filters each, of all."""
    return Solution(
        Terms(
            np.concatenate([part.terms.keys for part in parts]),
            np.concatenate([part.terms.x for part in parts]),
            np.concatenate([part.terms.y for part in parts]),
        ),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.error for part in parts]),
        np.concatenate([part.residual for part in parts]),
    )


def term_columns(models: TermModels, terms: Terms) -> tuple[Floats, Floats]:
    """Columns of the linear problem (n, 2 + t, d) and derivatives in x, then y (n, 2 t, d)."""
    n, count = terms.keys.shape
    area = models.size**2
    columns = np.zeros((n, 2 + count, area))
    slopes = np.empty((n, 2 * count, area))
    columns[:, 0] = 1
    columns[(terms.keys == SHARPEN_KEY).any(axis=1), 1, area // 2] = 1
    for term in range(count):
        columns[:, 2 + term], slopes[:, term], slopes[:, count + term] = models.columns(
            terms.keys[:, term], terms.x[:, term], terms.y[:, term]
        )
    return columns, slopes


@dataclass(frozen=True, eq=False)
class _State:
    """Where the refinement of n filters stands, with all that its next step needs."""

    terms: Terms
    columns: Floats  # (n, 2 + t, m), in the metric
    moves: Floats  # (n, 2 t, m): derivatives of what the terms add up to, in x, then in y
    weights: Floats
    residual: Floats  # (n, m)
    error: Floats

    @classmethod
    def at(cls, models: TermModels, problem: Problem, terms: Terms) -> _State:
        """The linear least-squares answer for these terms."""
        raw, slopes = term_columns(models, terms)
        columns = problem.measured(raw)
        scale, gram = scaled_gram(columns)
        pull = np.einsum("ncm,nm->nc", columns, problem.target) * scale
        weights = np.linalg.solve(gram, pull[:, :, None])[:, :, 0] * scale
        residual = problem.target - np.einsum("nc,ncm->nm", weights, columns)
        error = np.einsum("nm,nm->n", residual, residual)
        moves = problem.measured(slopes * np.tile(weights[:, 2:], 2)[:, :, None])
        return cls(terms, columns, moves, weights, residual, error)

    def __getitem__(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> _State:
        return _State(
            self.terms[chosen],
            self.columns[chosen],
            self.moves[chosen],
            self.weights[chosen],
            self.residual[chosen],
            self.error[chosen],
        )

    def replaced(self, taken: NDArray[np.bool_], other: _State) -> _State:
        """The same state with some of the filters taken from another one."""

        def merged(own: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
            return np.where(taken.reshape(-1, *[1] * (own.ndim - 1)), others, own)

        return _State(
            Terms(
                self.terms.keys,
                merged(self.terms.x, other.terms.x),
                merged(self.terms.y, other.terms.y),
            ),
            merged(self.columns, other.columns),
            merged(self.moves, other.moves),
            merged(self.weights, other.weights),
            merged(self.residual, other.residual),
            merged(self.error, other.error),
        )

    def step(self, damping: Floats) -> Terms:
        """The scales after one step; they stay within 0 and the greatest."""
        count = self.terms.keys.shape[1]
        scale, gram = scaled_gram(self.columns)
        crossed = (self.columns * scale[:, :, None]) @ self.moves.swapaxes(1, 2)  # (n, 2 + t, 2 t)
        linear = crossed.swapaxes(1, 2) @ np.linalg.solve(gram, crossed)
        curvature = self.moves @ self.moves.swapaxes(1, 2) - linear
        pull = np.einsum("npm,nm->np", self.moves, self.residual)
        position = np.concatenate([self.terms.x, self.terms.y], axis=1)
        # A scale at its bound that is pulled outward stays, and is out of the others' equations.
        fixed = ((position <= 0) & (pull < 0)) | ((position >= POSITION_MAX) & (pull > 0))
        diagonal = np.einsum("npp->np", curvature).clip(min=0)
        fixed |= diagonal <= 1e-14 * diagonal.max(axis=1, keepdims=True)
        free = ~fixed
        index = np.arange(2 * count)
        curvature *= free[:, :, None] & free[:, None, :]
        curvature[:, index, index] = np.where(fixed, 1.0, diagonal * (1 + damping[:, None]))
        step = np.linalg.solve(curvature, np.where(free, pull, 0.0)[:, :, None])[:, :, 0]
        # A model changes its shape within some tenths of q: longer steps leave where they hold.
        moved = np.clip(position + step.clip(-0.25, 0.25), 0.0, POSITION_MAX)
        return Terms(self.terms.keys, moved[:, :count], moved[:, count:])
