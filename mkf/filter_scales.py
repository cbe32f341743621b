"""Filters as sums of the keys' models, each filter at scales of its own.

A filter y is approached by b + sum over its terms of a_t f_t, with f_t the model of one of the 8
keys at its own sigma_x, sigma_y (and gamma, key 7). Terms are found one after the other, by
orthogonal matching pursuit [PRK]: the key and the scales, off a table, that go best with what is
left over; then all scales so far are refined together (`mkf.scale_refinement`).

References
----------
.. [PRK] Pati, Rezaiifar, Krishnaprasad, "Orthogonal matching pursuit", Asilomar Conf. 1993.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mkf.errors import InputError
from mkf.expansion import RIDGE, Expansion, Floats, Keys, Problem, expansion
from mkf.idealized import Boundary
from mkf.keys import COUNT, MASTER_KEYS
from mkf.scale_refinement import (
    STEPS,
    Solution,
    Terms,
    better,
    joined,
    refine,
    term_columns,
)
from mkf.scale_terms import SHARPEN_KEY, TermModels, to_position, to_sigma

# Filters at once, so that their columns stay in the processor's cache; and nodes of the table along
# each scale. Under a metric each filter needs a table of its own.
_BLOCK = {"plain": 1024, "metric": 64}
_NODES = {"plain": 20, "metric": 10}
_TABLE_SIGMA_MAX = 8.0
_CANDIDATES = 3  # keys that are refined before one is chosen
_FIRST_STEPS = 3


def expand(
    learned: Floats,
    problem: Problem | None = None,
    *,
    terms: int,
    boundary: Boundary = "symmetric",
) -> Expansion:
    """Give each filter its best `terms` keys, each at scales of its own.

    Parameters
    ----------
    learned : (n, k, k) float64
        The learned filters.
    problem
        What they are to become, where that is not simply to stay near themselves.
    terms
        1 to 8; each key is taken once at most.

    Raises
    ------
    InputError
        There are no so many keys, or the filters cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from mkf.idealized import idealized_kernel
    >>> y = 3 * idealized_kernel(5, 0.9, 1.4) + 0.1
    >>> found = expand(y[None], terms=1)
    >>> found.keys, found.sigma_x.round(3), found.sigma_y.round(3)
    (array([[5]]), array([[0.9]]), array([[1.4]]))
    """
    if not 1 <= terms <= COUNT:
        raise InputError(f"{terms} terms of {COUNT} keys: ask for 1 to {COUNT}")
    problem = problem or Problem.of(learned)
    kind = "plain" if problem.metric is None else "metric"
    models = TermModels.on_grid(learned.shape[-1], boundary)
    table = _Table.of(models, _NODES[kind])
    starts = range(0, len(learned), _BLOCK[kind])
    blocks = [np.arange(start, min(start + _BLOCK[kind], len(learned))) for start in starts]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy computes outside Python's lock
        work = partial(_pursue, models, table, count=terms)
        parts = list(pool.map(work, (problem[block] for block in blocks)))
    solution = joined(parts) if parts else _nothing(problem, terms)
    return _described(models, solution, learned)


def _pursue(models: TermModels, table: _Table, problem: Problem, *, count: int) -> Solution:
    best = refine(models, problem, _nothing(problem, 0).terms)
    for term in range(1, count + 1):
        grown: Solution | None = None
        for keys, x, y in table.candidates(problem, best):
            longer = Terms(
                np.column_stack([best.terms.keys, keys]),
                np.column_stack([best.terms.x, x]),
                np.column_stack([best.terms.y, y]),
            )
            # A few steps tell which key it is; only the last choice is refined to the end.
            tried = refine(models, problem, longer, steps=_FIRST_STEPS)
            grown = tried if grown is None else better(grown, tried)
        if grown is not None:
            steps = STEPS if term == count else _FIRST_STEPS
            best = refine(models, problem, grown.terms, steps=steps)
    return best


def _nothing(problem: Problem, count: int) -> Solution:
    n = len(problem.target)
    terms = Terms(np.zeros((n, count), dtype=np.int64), np.zeros((n, count)), np.zeros((n, count)))
    return Solution(terms, np.zeros((n, 2 + count)), np.zeros(n), np.zeros_like(problem.target))


def _described(models: TermModels, solution: Solution, learned: Floats) -> Expansion:
    """The solution in the terms of an `Expansion`: kernels of unit norm, scales in pixels."""
    terms, size = solution.terms, models.size
    a = np.zeros(terms.keys.shape)
    gamma = np.full(terms.keys.shape, np.nan)
    filters = np.empty_like(learned)
    for start in range(0, len(learned), _BLOCK["plain"]):
        block = slice(start, start + _BLOCK["plain"])
        part = Terms(terms.keys[block], terms.x[block], terms.y[block])
        columns, _ = term_columns(models, part)
        weights = solution.weights[block]
        filters[block] = np.einsum("nc,ncd->nd", weights, columns).reshape(-1, size, size)
        weighted = weights[:, 2:, None] * columns[:, 2:]  # (n, t, d)
        seven = part.keys == SHARPEN_KEY
        weighted += seven[:, :, None] * (weights[:, 1:2] * columns[:, 1])[:, None, :]
        spread = np.linalg.norm(weighted - weighted.mean(axis=2, keepdims=True), axis=2)
        # a is that of the impulse for key 7, of the model for the others.
        leading = np.where(seven, weights[:, 1:2], weights[:, 2:])
        a[block] = np.copysign(spread, leading)
        with np.errstate(divide="ignore", invalid="ignore"):
            gamma[block] = np.where(seven, -weights[:, 2:] / weights[:, 1:2], np.nan)
    sigma_x, sigma_y = to_sigma(terms.x), to_sigma(terms.y)
    sigma_y = np.where(terms.keys == SHARPEN_KEY, sigma_x, sigma_y)  # key 7 has one scale
    return expansion(learned, filters, keys=terms.keys, a=a, scales=(sigma_x, sigma_y, gamma))


@dataclass(frozen=True, eq=False)
class _Table:
    """Models over a lattice of scales, key after key."""

    keys: Keys  # (nodes,)
    x: Floats
    y: Floats
    columns: Floats  # (nodes, d); of key 7 the Laplacian
    starts: NDArray[np.int64]  # the first node of each key

    @classmethod
    def of(cls, models: TermModels, nodes: int) -> Self:
        # Even in sigma / (1 + sigma), as in `mkf.model_grid`.
        u = np.linspace(0, _TABLE_SIGMA_MAX / (1 + _TABLE_SIGMA_MAX), nodes)
        q = to_position(u / (1 - u))
        both = np.stack(np.meshgrid(q, q, indexing="ij"), axis=-1).reshape(-1, 2)
        parts = [
            (np.full(len(scales), key), scales[:, 0], scales[:, 1])
            for key in MASTER_KEYS
            for scales in [np.column_stack([q, q]) if key == SHARPEN_KEY else both]
        ]
        keys, x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
        starts = np.searchsorted(keys, list(MASTER_KEYS))
        return cls(keys, x, y, models.columns(keys, x, y)[0], starts)

    def candidates(
        self, problem: Problem, solution: Solution
    ) -> Iterator[tuple[Keys, Floats, Floats]]:
        """For each filter the best node of its best further keys, best key first."""
        taken = solution.terms.keys
        scores = self._gains(problem, solution.residual)  # (n, nodes)
        ends = [*self.starts[1:], len(self.keys)]
        best = np.stack(
            [
                start + scores[:, start:end].argmax(axis=1)
                for start, end in zip(self.starts, ends, strict=True)
            ],
            axis=1,
        )  # (n, keys)
        gains = np.take_along_axis(scores, best, axis=1)
        for term in taken.T:
            used = term > 0
            gains[used, term[used] - 1] = -1
        order = np.argsort(-gains, axis=1, kind="stable")
        left = len(self.starts) - taken.shape[1]
        for choice in order.T[: min(_CANDIDATES, left)]:
            nodes = np.take_along_axis(best, choice[:, None], axis=1)[:, 0]
            yield self.keys[nodes], self.x[nodes], self.y[nodes]

    def _gains(self, problem: Problem, residual: Floats) -> Floats:
        """How much of the residual's squared norm each node takes away, (n, nodes).

        The constant is in every filter already: what of a node lies along it counts for nothing.
        Key 7 brings the impulse with it, whose weight is free.
        """
        area = self.columns.shape[1]
        center = area // 2
        if problem.metric is None:
            gram = np.eye(area)[None]
            pulled = residual
        else:
            gram = problem.metric.swapaxes(1, 2) @ problem.metric  # (n, d, d)
            pulled = np.einsum("nmd,nm->nd", problem.metric, residual)
        seen = self.columns @ gram  # (1 or n, nodes, d)
        constant = gram.sum(axis=2)  # (1 or n, d)
        level = constant.sum(axis=1, keepdims=True)
        along = constant @ self.columns.T / level  # (1 or n, nodes)
        raw = np.einsum("njd,jd->nj", seen, self.columns)
        norm = np.maximum(raw - along**2 * level, RIDGE * raw)
        pull = pulled @ self.columns.T
        gain = pull**2 / norm

        seven = self.keys == SHARPEN_KEY
        impulse = pulled[:, center, None]
        height = gram[:, center, center, None] - constant[:, center, None] ** 2 / level
        overlap = seen[:, seven, center] - along[:, seven] * constant[:, center, None]
        rest = np.maximum(norm[:, seven] - overlap**2 / height, RIDGE * raw[:, seven])
        beyond = pull[:, seven] - impulse * overlap / height
        gain[:, seven] = impulse**2 / height + beyond**2 / rest
        return np.asarray(gain)
