"""Descent to the least l1 or l2 distance from a start near it: exact, and quadratic in speed.

A least l1 distance lies where some of the residuals vanish, at a kink: at a point where two do, on
a curve where one does, or where none does. Which, no derivative tells. Each step therefore solves
for all of them, with the residuals that are nearest to zero, and takes what is best in a
second-order model of the residuals, within a region in which that model has held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Norm = Literal["l1", "l2"]

Residuals = Callable[[NDArray[np.int64], Floats], Floats]
"""From the numbers of some starts (m,) and parameters (m, 2) to the residuals there, n values, and
their derivatives, (m, 6, n): the residuals, the derivatives in the first and second parameter, and
the second derivatives (11, 12, 22)."""

_STEPS = 60
_ENOUGH = 1e-13  # of a distance or a parameter: not worth another step
_PATIENCE = 10  # how many times its next step a start may still gain
_NEAR = {"l1": 1e-3, "l2": 1.0}  # where no promise within such a radius ends it
_NEAREST = 4
_TINY = 1e-300
# Slopes beneath this change no sum, and a ratio to them would overflow.
_NO_WEIGHT = 1e-100


def total(residuals: Floats, norm: Norm) -> Floats:
    """l1, or squared l2, over the last axis."""
    if norm == "l1":
        return np.asarray(np.abs(residuals) @ np.ones(residuals.shape[-1]))  # faster than a sum
    return np.asarray(np.einsum("...n,...n->...", residuals, residuals))


def descend(
    residuals: Residuals,
    start: Floats,
    fit: NDArray[np.int64],
    *,
    norm: Norm,
    floor: tuple[float, float],
    ceiling: tuple[float, float],
) -> tuple[Floats, Floats]:
    """Least distances near the starts, all of them at once.

    Parameters
    ----------
    residuals : callable
        As `Residuals` says; what does not depend on the second parameter has zeros there.
    start : ndarray, shape (m, 2)
        Where to start.
    fit : ndarray of int, shape (m,)
        Which fit each start is of: a start that has fallen behind the best of its fit is given up.
    norm : {"l1", "l2"}
        The distance.
    floor, ceiling : tuple of float
        Least and greatest value of each parameter; infinite for none.

    Returns
    -------
    parameters : ndarray, shape (m, 2)
        Never worse than the start; the best of each fit is a minimum.
    distances : ndarray, shape (m,)
        Sum of absolute values, or of squares.
    """
    p = np.array(start)
    terms = residuals(np.arange(len(p)), p)
    cost = total(terms[:, 0], norm)
    radius = np.full(len(p), 0.25)
    going, nearest = np.arange(len(p)), _NEAR[norm]
    least = np.full(fit.max() + 1, np.inf)
    np.minimum.at(least, fit, cost)
    for _ in range(_STEPS):
        step, promised = _best_step(terms[going], p[going], radius[going], norm, floor)
        idle = promised <= _ENOUGH * cost[going]
        radius[going[idle]] /= 30  # beyond a kink nearby no promise may have held: look nearer
        hopeful = cost[going] - _PATIENCE * promised <= least[fit[going]]
        worthwhile = hopeful & (radius[going] > np.where(idle, nearest, _ENOUGH))
        going, step = going[worthwhile], step[worthwhile]
        if not len(going):
            break
        ahead = np.clip(p[going] + step, floor, ceiling)
        found = residuals(going, ahead)
        reached = total(found[:, 0], norm)
        better = reached < cost[going]
        radius[going] = np.where(better, np.minimum(2 * radius[going], 0.5), radius[going] / 8)
        there = going[better]
        p[there], terms[there], cost[there] = ahead[better], found[better], reached[better]
        np.minimum.at(least, fit, cost)
    return p, cost


def _best_step(
    terms: Floats, p: Floats, radius: Floats, norm: Norm, floor: tuple[float, float]
) -> tuple[Floats, Floats]:
    """The step (m, 2) that the second-order model likes best, and what it promises to save (m,)."""
    scale = radius[:, None] * (np.abs(p) + 0.05)  # how far each parameter may go
    r, first, second = terms[:, 0], terms[:, 1:3], terms[:, 3:]
    weight = np.sign(r) if norm == "l1" else r
    gradient = (first @ weight[..., None])[..., 0]  # (m, 2)
    curvature = (second @ weight[..., None])[..., 0]  # (m, 3)
    if norm == "l2":
        a, b = first[:, 0], first[:, 1]
        curvature += np.stack([(a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)], axis=-1)

    # What may vanish at the optimum: residuals (l1), and distances from the floor.
    m = len(r)
    value = np.maximum(p - np.array(floor), 0)
    rows = np.broadcast_to(np.eye(2), (m, 2, 2))
    bends, weights = np.zeros((m, 2, 3)), np.zeros((m, 2))
    if norm == "l1":
        distance = np.abs(r) / ((np.abs(first) * scale[:, :, None]).sum(axis=1) + _TINY)
        nearest = np.argpartition(distance, _NEAREST, axis=1)[:, :_NEAREST]
        row = np.arange(m)[:, None]
        value = np.concatenate([value, r[row, nearest]], axis=1)
        rows = np.concatenate([rows, first[row, :, nearest]], axis=1)
        bends = np.concatenate([bends, second[row, :, nearest]], axis=1)
        weights = np.concatenate([weights, weight[row, nearest]], axis=1)
    value = np.where(np.isfinite(value), value, 1e9)

    free = _free(gradient, curvature, scale)
    onto, along, newton = _along(gradient, curvature, value, rows, bends, weights)
    step = np.concatenate([free, onto + newton[..., None] * along], axis=1)  # (m, 2 + q, 2)
    bends = np.concatenate([np.zeros((m, 2, 3)), bends], axis=1)
    rows = np.concatenate([np.zeros((m, 2, 2)), rows], axis=1)
    if norm == "l1":
        origin = np.concatenate([np.zeros_like(free), onto], axis=1)
        direction = np.concatenate([free, along], axis=1)
        kink = origin + _to_kinks(r, first, origin, direction)[..., None] * direction
        step = np.concatenate([step, kink], axis=1)
        bends, rows = np.tile(bends, (1, 2, 1)), np.tile(rows, (1, 2, 1))
    step *= np.minimum(1, (scale[:, None] / (np.abs(step) + _TINY)).min(axis=2))[..., None]
    # Back onto the curve, which is no straight line.
    away = (_powers(step)[..., 2:] * bends).sum(axis=-1) / ((rows**2).sum(axis=-1) + _TINY)
    step = np.maximum(step - away[..., None] * rows, np.array(floor) - p[:, None])
    expected = total(_powers(step) @ terms[:, 1:] + r[:, None], norm)
    best = expected.argmin(axis=1)
    return step[np.arange(m), best], total(r, norm) - expected[np.arange(m), best]


def _powers(step: Floats) -> Floats:
    """What first and second derivatives are multiplied by, (..., 5), for steps (..., 2)."""
    a, b = step[..., 0], step[..., 1]
    return np.stack([a, b, a * a / 2, a * b, b * b / 2], axis=-1)


def _free(gradient: Floats, curvature: Floats, scale: Floats) -> Floats:
    """Newton's step where nothing vanishes, and the steepest one: (m, 2, 2)."""
    aa, ab, bb = curvature[:, 0], curvature[:, 1], curvature[:, 2]
    aa, bb = aa + (aa == 0), bb + (bb == 0)  # of a parameter that nothing depends on
    determinant = aa * bb - ab * ab
    convex = (aa > 0) & (determinant > 0)
    ga, gb = gradient[:, 0], gradient[:, 1]
    newton = np.stack([ab * gb - bb * ga, ab * ga - aa * gb], axis=1)
    newton /= np.where(convex, determinant, 1)[:, None]
    newton[~convex] = 0
    pull = gradient * scale
    steepest = -scale * pull / (np.abs(pull).max(axis=1, keepdims=True) + _TINY)
    return np.stack([newton, steepest], axis=1)


def _along(
    gradient: Floats, curvature: Floats, value: Floats, rows: Floats, bends: Floats, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Steps onto the curve where one of q values vanishes, along it, and how often that (Newton).

    Shapes (m, q, 2), (m, q, 2) and (m, q).
    """
    length = (rows**2).sum(axis=-1) + _TINY
    rest = gradient[:, None] - weights[..., None] * rows  # of the others' distance
    # On the curve, its own bend counts as much as it holds the rest back: Lagrange's multiplier.
    multiplier = -(rows * rest).sum(axis=-1) / length
    bend = curvature[:, None] + (multiplier - weights)[..., None] * bends
    onto = -(value / length)[..., None] * rows
    along = np.stack([-rows[..., 1], rows[..., 0]], axis=-1)

    def product(d: Floats, e: Floats) -> Floats:
        return np.asarray(
            bend[..., 0] * d[..., 0] * e[..., 0]
            + bend[..., 1] * (d[..., 0] * e[..., 1] + d[..., 1] * e[..., 0])
            + bend[..., 2] * d[..., 1] * e[..., 1]
        )

    slope = (rest * along).sum(axis=-1) + product(onto, along)
    convex = product(along, along)
    far = -np.sign(slope) * 1e3
    return onto, along, np.where(convex > 0, -slope / np.where(convex > 0, convex, 1), far)


def _to_kinks(r: Floats, first: Floats, origin: Floats, direction: Floats) -> Floats:
    """How often to go each direction (m, q, 2) from its origin, for the least sum of |r + J step|.

    It is least at one of its kinks: where residual i vanishes, after -r_i / slope_i.
    """
    slope = direction @ first  # (m, q, n)
    return weighted_median(-(r[:, None] + origin @ first), slope)


def weighted_median(target: Floats, shape: Floats) -> Floats:
    """Factors g (...) for which the sum of |target - g shape| over the last axis is least."""
    # sum |t - g s| = sum |s| |t / s - g|: least at the median of t / s under the weights |s|.
    weights = np.abs(shape)
    ratios = np.divide(target, shape, out=np.zeros(shape.shape), where=weights > _NO_WEIGHT)
    order = np.argsort(ratios, axis=-1)
    below = np.take_along_axis(weights, order, axis=-1).cumsum(axis=-1)
    median = np.argmax(below >= below[..., -1:] / 2, axis=-1)[..., None]
    place = np.take_along_axis(order, median, axis=-1)
    return np.asarray(np.take_along_axis(ratios, place, axis=-1)[..., 0])
