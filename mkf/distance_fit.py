"""Methods C and D: the scales whose model is nearest to the normalized learned key.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
section 4: least l1 distance (C), least l2 distance (D), over (sx, sy) or over sx = sy.

The distances have several local minima, and l1 has kinks. Every fit first looks at all scales from
0 to 100 at once, on the lattice of `mkf.model_grid`, and then descends from its lowest places to
the minimum itself (`mkf.scale_descent`): no start to choose, nothing random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mkf.errors import FitError
from mkf.idealized import Boundary, unit_impulse
from mkf.keys import master_key
from mkf.model_grid import (
    SECOND_DIFFERENCE,
    SMOOTH,
    STEPS,
    Floats,
    Ints,
    ModelGrid,
    model_grid,
    operator_along,
)
from mkf.scale_descent import Norm, descend, total, weighted_median
from mkf.scale_space import SIGMA_MAX

_S_MAX = SIGMA_MAX**2
_STARTS = 8  # descents a fit, at most
_COARSE = {"l1": 32, "l2": 8}  # steps of the table between the nodes of the first lattice
_FINE = 4  # and between those of the last
_BLOCK = 320  # nodes at a time: their kernels stay in the processor's cache
_APART = 6  # steps of the table that two starts are apart


@dataclass(frozen=True)
class DistanceFit:
    """Fits of keys 1-6 and 8 by least distance.

    Attributes
    ----------
    method : str
        Name of the method, for messages.
    norm : {"l1", "l2"}
        Distance: sum of absolute differences, or root of the sum of their squares.
    boundary : {"symmetric", "exact"}
        How differences end (`mkf.idealized.idealized_kernel`).
    """

    method: str
    norm: Norm
    boundary: Boundary

    def separate(
        self, members: Mapping[int, NDArray[np.float64]]
    ) -> dict[int, tuple[float, float]]:
        """Scales (sx, sy) of least distance to each normalized key (k, k) [LBK, C1 and D1].

        Raises
        ------
        FitError
            If the distance falls on as a scale grows without end.
        """
        models = _Models(list(members.items()), self.boundary)
        which, nodes = (_lowest_l1 if self.norm == "l1" else _lowest_l2)(models)
        self._require_inside([[key] for key in members], which, nodes)

        def residuals(starts: Ints, p: Floats) -> Floats:
            return models.terms(which[starts], p[:, 0], p[:, 1])

        start = models.grid.sigma[nodes] ** 2
        p, cost = descend(
            residuals, start, which, norm=self.norm, floor=(0, 0), ceiling=(_S_MAX, _S_MAX)
        )
        found = p[_best(which, cost)]
        return {
            key: (float(np.sqrt(sx)), float(np.sqrt(sy)))
            for key, (sx, sy) in zip(members, found, strict=True)
        }

    def pooled(self, groups: Sequence[Mapping[int, NDArray[np.float64]]]) -> list[float]:
        """One scale for all members (key -> normalized filter (k, k)) of each group [LBK, C2, D2].

        The sum of the l1 distances, or of the squared l2 distances, is least. Raises FitError as
        `separate` does.
        """
        found: dict[int, float] = {}
        for count in {len(members) for members in groups}:
            alike = [index for index, members in enumerate(groups) if len(members) == count]
            scales = self._pooled([groups[index] for index in alike])
            found |= dict(zip(alike, scales, strict=True))
        return [found[index] for index in range(len(groups))]

    def _pooled(self, groups: Sequence[Mapping[int, NDArray[np.float64]]]) -> list[float]:
        """As `pooled`, for groups of as many members each."""
        count = len(groups[0])
        models = _Models(
            [(key, h) for members in groups for key, h in members.items()], self.boundary
        )
        line = np.arange(STEPS + 1)
        cost = models.distances(
            np.arange(len(models.keys)).repeat(len(line)),
            np.tile(line, len(models.keys)),
            np.tile(line, len(models.keys)),
            self.norm,
        )
        which, nodes = _line_dips(cost.reshape(len(groups), count, -1).sum(axis=1))
        self._require_inside([list(members) for members in groups], which, nodes[:, None])

        def residuals(starts: Ints, p: Floats) -> Floats:
            everyone = (which[starts, None] * count + np.arange(count)).ravel()
            s = p[:, 0].repeat(count)
            r, a, b, aa, ab, bb = np.moveaxis(models.terms(everyone, s, s), 1, 0)
            nothing = np.zeros_like(r)
            terms = np.stack([r, a + b, nothing, aa + 2 * ab + bb, nothing, nothing], axis=1)
            return (
                terms.reshape(len(starts), count, 6, -1).swapaxes(1, 2).reshape(len(starts), 6, -1)
            )

        start = np.stack([models.grid.sigma[nodes] ** 2, np.zeros(len(nodes))], axis=1)
        p, cost = descend(
            residuals, start, which, norm=self.norm, floor=(0, -np.inf), ceiling=(_S_MAX, np.inf)
        )
        scales = np.sqrt(p[_best(which, cost), :1])
        return [float(sigma) for (sigma,) in scales]

    def _require_inside(self, fits: Sequence[Sequence[int]], which: Ints, nodes: Ints) -> None:
        """Raise FitError where the lowest node of a fit (of its keys) is at the greatest scale."""
        _, first = np.unique(which, return_index=True)
        for lowest in first[(nodes[first] == STEPS).any(axis=1)]:
            keys = fits[which[lowest]]
            names = ", ".join(map(str, keys))
            _refuse(f"key{'s' if len(keys) > 1 else ''} {names}", self.method)


class _Models:
    """The separable models of some keys beside their filters."""

    def __init__(
        self, members: Sequence[tuple[int, NDArray[np.float64]]], boundary: Boundary
    ) -> None:
        self.keys = [key for key, _ in members]
        self.filters = np.stack([h for _, h in members])  # (keys, k, k)
        self.grid: ModelGrid = model_grid(self.filters.shape[-1], boundary)
        masters = [master_key(key) for key in self.keys]
        self.along_x = np.array([operator_along(master, "x") for master in masters])
        self.along_y = np.array([operator_along(master, "y") for master in masters])

    def terms(self, which: Ints, sx: Floats, sy: Floats) -> Floats:
        """Model minus filter and its derivatives in the variances, as `descend` takes them."""
        operators = np.stack([self.along_x[which], self.along_y[which]])
        fx, fy = self.grid.factors(operators, np.stack([sx, sy]))  # (m, 3, k) each
        found = _outer(fx[:, [0, 1, 0, 2, 1, 0]], fy[:, [0, 0, 1, 0, 1, 2]])
        found[:, 0] -= self.filters[which]
        return found.reshape(len(which), 6, -1)

    def distances(self, which: Ints, x: Ints, y: Ints, norm: Norm) -> Floats:
        """Distances (n,) of models to filters, in the order of the keys, at nodes of the table."""
        found = []
        ends = np.searchsorted(which, np.arange(len(self.keys) + 1))
        for key, (start, end) in enumerate(pairwise(ends)):
            fx = self.grid.table[self.along_x[key]]
            fy = self.grid.table[self.along_y[key]]
            for block in range(start, end, _BLOCK):
                part = slice(block, min(block + _BLOCK, end))
                difference = _outer(fx[x[part]], fy[y[part]])
                difference -= self.filters[key]
                found.append(total(difference.reshape(len(difference), -1), norm))
        return np.concatenate(found)


def _lowest_l2(models: _Models) -> tuple[Ints, Ints]:
    """Where squared l2 is lower than all around it: keys (n,) and nodes (n, 2), lowest first."""
    step = _COARSE["l2"]
    fx = models.grid.table[models.along_x, ::step]  # (keys, nodes, k)
    fy = models.grid.table[models.along_y, ::step, ::-1]  # row 0 on top
    # |fy fx - h|^2 without the models: they are products, so the sums over pixels are too.
    cost = (fy**2).sum(-1)[:, :, None] * (fx**2).sum(-1)[:, None] - 2 * (
        fy @ models.filters @ fx.swapaxes(1, 2)
    )  # (keys, y, x)
    which, y, x = (each.ravel() for each in np.indices(cost.shape))
    return _dips(which, x, y, cost.ravel(), step)


def _lowest_l1(models: _Models) -> tuple[Ints, Ints]:
    """Where l1 can be least: keys (n,) and nodes (n, 2), lowest first.

    A cell of a lattice is dropped where even the steepest descent from its node to its edge would
    not reach the lowest value known; what is left is divided. The derivatives' l1 norms in the
    table bound the descent.
    """
    grid, step = models.grid, _COARSE["l1"]
    count, across = len(models.keys), STEPS // step + 1
    which, y, x = (each.ravel() for each in np.indices((count, across, across)))
    while True:
        cost = models.distances(which, x * step, y * step, "l1")
        least = np.full(count, np.inf)
        np.minimum.at(least, which, cost)
        mass, steepness = (each[:, ::step] for each in grid.greatest_within(step // 2))
        ox, oy = models.along_x[which], models.along_y[which]
        slope = steepness[ox, x] * mass[oy, y] + mass[ox, x] * steepness[oy, y]
        alive = cost - slope * (step / 2 / STEPS) <= least[which]
        which, x, y = which[alive], x[alive], y[alive]
        if step == _FINE:
            # Along a valley the lattice shows no dips: all of what is left is to start from.
            return _apart(which, np.stack([x, y], axis=1) * step, cost[alive])
        step //= 2
        across = STEPS // step + 1
        wanted = np.zeros((count, across + 2, across + 2), dtype=bool)  # a margin all around
        for dy, dx in np.ndindex(3, 3):
            wanted[which, 2 * y + dy, 2 * x + dx] = True
        which, y, x = np.nonzero(wanted[:, 1:-1, 1:-1])


def _dips(which: Ints, x: Ints, y: Ints, cost: Floats, step: int) -> tuple[Ints, Ints]:
    """Where values (n,) of keys on a lattice are as low as all around: keys and nodes."""
    across = STEPS // step + 3  # with a margin
    lattice = np.full((which.max() + 1) * across**2, np.inf)
    place = (which * across + y + 1) * across + x + 1
    lattice[place] = cost
    lowest = np.flatnonzero((cost <= lattice[place - 1]) & (cost <= lattice[place + 1]))
    dy, dx = np.indices((3, 3)).reshape(2, -1) - 1
    beside = lattice[place[lowest, None] + dy * across + dx].min(axis=1)
    lowest = lowest[cost[lowest] <= beside]
    nodes = np.stack([x[lowest], y[lowest]], axis=1) * step
    return _apart(which[lowest], nodes, cost[lowest])


def _apart(which: Ints, nodes: Ints, cost: Floats) -> tuple[Ints, Ints]:
    """Of each key the lowest nodes that are `_APART`, at most `_STARTS`, lowest first."""
    kept = []
    for key in np.unique(which):
        mine = np.flatnonzero(which == key)
        mine = mine[np.argsort(cost[mine], kind="stable")]
        for _ in range(_STARTS):
            if not len(mine):
                break
            kept.append(mine[0])
            mine = mine[np.abs(nodes[mine] - nodes[mine[0]]).max(axis=1) > _APART]
    return which[kept], nodes[kept]


def _line_dips(cost: Floats) -> tuple[Ints, Ints]:
    """The lowest dips of values (fits, n) along lines: fits and nodes, lowest first in each fit."""
    padded = np.pad(cost, ((0, 0), (1, 1)), constant_values=np.inf)
    which, nodes = np.nonzero((cost <= padded[:, :-2]) & (cost <= padded[:, 2:]))
    order = np.lexsort((cost[which, nodes], which))
    which, nodes = which[order], nodes[order]
    rank = np.arange(len(which)) - np.searchsorted(which, which)
    return which[rank < _STARTS], nodes[rank < _STARTS]


def _best(which: Ints, cost: Floats) -> Ints:
    """The place of the least cost of each key, in the order of the keys."""
    order = np.lexsort((np.arange(len(cost)), cost, which))
    _, first = np.unique(which[order], return_index=True)
    return np.asarray(order[first])


def fit_sharpening(
    h: NDArray[np.float64], *, method: str, norm: Norm, boundary: Boundary
) -> tuple[float, float]:
    """(sigma, gamma) of key 7, `delta - gamma * Laplacian(T)`, nearest to the normalized key.

    Given sigma the model is linear in gamma, and the best gamma is exact: a projection for l2, a
    weighted median for l1. So all of sigma can be looked at, and the descent goes on from there.

    For the published key 7 and l1, [LBK] prints gamma = 0.522 at sigma = 0.654, where the distance
    is 0.64. It is not the least, which is 0.599, at gamma = 0.498 and sigma = 0.658: this function
    goes by the definition.

    Parameters
    ----------
    h : ndarray, shape (k, k)
        The normalized key.
    method : str
        Name of the method, for messages.
    norm : {"l1", "l2"}
        The distance.
    boundary : {"symmetric", "exact"}
        How differences end.

    Returns
    -------
    sigma : float
        In pixels.
    gamma : float
        In square pixels.

    Raises
    ------
    FitError
        If the distance falls on as sigma grows without end.
    """
    size = h.shape[0]
    grid = model_grid(size, boundary)
    target = (unit_impulse(size) - h).ravel()
    step = _COARSE["l2"] // 2
    smooth, curved = grid.table[SMOOTH, ::step], grid.table[SECOND_DIFFERENCE, ::step]
    laplacians = (_outer(curved, smooth) + _outer(smooth, curved)).reshape(len(smooth), -1)
    gammas = _best_factor(target, laplacians, norm)
    _, nodes = _line_dips(total(target - gammas[:, None] * laplacians, norm)[None])
    if nodes[0] * step == STEPS:
        _refuse("key 7", method)

    def residuals(starts: Ints, p: Floats) -> Floats:
        del starts  # one filter for all
        s, gamma = p[:, 0], p[:, 1, None]
        both = np.array([[SMOOTH], [SECOND_DIFFERENCE]])
        t, c = grid.factors(both, np.broadcast_to(s, (2, len(s))))  # (m, 3, k) each
        # The Laplacian c x t + t x c, and its derivatives by the product rule.
        found = _outer(c[:, [0, 1, 0, 2, 1, 0]], t[:, [0, 0, 1, 0, 1, 2]])
        found = (found + found[..., ::-1, ::-1].swapaxes(-1, -2)).reshape(len(s), 6, -1)
        value, slope = found[:, 0], found[:, 1] + found[:, 2]
        bend = found[:, 3] + 2 * found[:, 4] + found[:, 5]
        nothing = np.zeros_like(value)
        terms = (target - gamma * value, -gamma * slope, -value, -gamma * bend, -slope, nothing)
        return np.stack(terms, axis=1)

    start = np.stack([grid.sigma[nodes * step] ** 2, gammas[nodes]], axis=1)
    p, cost = descend(
        residuals,
        start,
        np.zeros_like(nodes),
        norm=norm,
        floor=(0, -np.inf),
        ceiling=(_S_MAX, np.inf),
    )
    s, gamma = p[cost.argmin()]
    return float(np.sqrt(s)), float(gamma)


def _best_factor(target: Floats, shapes: Floats, norm: Norm) -> Floats:
    """Factors g (n,) for which target (k k,) - g * shapes (n, k k) is least in the norm."""
    if norm == "l2":
        return np.asarray(shapes @ target / (shapes**2).sum(axis=1))
    return weighted_median(np.broadcast_to(target, shapes.shape), shapes)


def _outer(along_x: Floats, along_y: Floats) -> Floats:
    """Kernels (..., k, k), row 0 on top, of factors (..., k) by increasing x and y (upward)."""
    return np.asarray(along_y[..., ::-1, None] * along_x[..., None, :])


def _refuse(who: str, method: str) -> None:
    raise FitError(
        f"{who}, method {method}: the distance falls on as the scale grows, so no scale is "
        "best; check that the filters are in the order of the master keys, or use method A"
    )
