"""Master keys out of a network's own filters: candidates are dropped until few explain them all.

[BKRG]_ train an autoencoder whose code is one number on the normalized 7x7 depthwise filters of
several networks, decode 50 evenly spread codes, write every filter as a f + b of one candidate f,
and drop candidates greedily, each time the one whose loss costs a network the least accuracy, until
the curve bends: at 8. Then they search once more around the best. Here, in their place:

- A filter and its negative are one shape, since a may be negative. All that follows is blind to the
  sign: filters are lines through the origin, and the likeness of two is their squared cosine, which
  is also the share of one's variance that a f + b of the other keeps. (What [BKRG]_ do about signs
  when they train the autoencoder, we do not know.)
- The cost is by default the mean squared error of a f + b over all filters, each scaled to unit
  variance: 1 - mean of the squared cosines. With images, it is a network's error (`mkf.top1_cost`).
- The bend is found by the rule of [SAIR]_, on the logarithm of the cost.
- In place of the second search the keys are refined (ours): each becomes the first principal
  direction of the filters that are most like it, until no filter changes its key: the diametrical
  clustering of [DMR]_, k-means for lines. No round of it can raise the cost.

References
----------
.. [BKRG] Babaiee, Kiasari, Rus, Grosu, "The Quest for Universal Master Key Filters in DS-CNNs",
   NeurIPS 2025, arXiv 2509.11711.
.. [SAIR] Satopaa, Albrecht, Irwin, Raghavan, "Finding a 'kneedle' in a haystack: detecting knee
   points in system behavior", ICDCS Workshops 2011.
.. [DMR] Dhillon, Marcotte, Roshan, "Diametrical clustering for identifying anti-correlated gene
   clusters", Bioinformatics 19(13), 2003.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mkf.errors import InputError
from mkf.networks.filter_collection import FilterLayer

Floats = NDArray[np.float64]

Judge = Callable[[Sequence[Sequence[int]]], Sequence[float]]
"""From sets of candidates, by index, to what each set costs."""

# A filter that varies less than this share of its layer's median is what training left of a dead
# channel: no shape but rounding.
_DEAD = 1e-3
_ROUNDS = 200  # of refinement; thousands of filters settle in a few dozen


@dataclass(frozen=True, eq=False)
class FilterSet:
    """The filters that keys are sought for.

    Attributes
    ----------
    size : int
        k of their k x k values.
    lines : (n, k * k) float64
        Each filter with its mean taken away, at unit l2 norm.
    dead : int
        Filters of this size that are constant or next to it, and not in `lines`.
    other_sizes : dict of int to int
        How many filters of each other size there were.
    """

    size: int
    lines: Floats
    dead: int
    other_sizes: dict[int, int]


@dataclass(frozen=True)
class Dropping:
    """In which order candidates went, and what was left cost each time.

    Attributes
    ----------
    order : tuple of int
        All candidates, the one dropped first in front, the one that stays to the end last.
    costs : tuple of float
        `costs[n - 1]` is the cost of the last n of `order`.
    """

    order: tuple[int, ...]
    costs: tuple[float, ...]

    def survivors(self, count: int) -> list[int]:
        """The `count` candidates that are dropped last."""
        return list(self.order[-count:])


def select(layers: Sequence[FilterLayer], size: int | None = None) -> FilterSet:
    """The usable filters of one size, centered and scaled.

    Parameters
    ----------
    layers
        As `mkf.networks.filter_collection.collect_filters` gives them; those left out do not count.
    size : int, optional
        Of the kernel; by default the one most filters have among those from 5 up (on 3x3 values
        the 8 operators are hard to tell apart), or among all if there are none.

    Raises
    ------
    InputError
        There is no filter of that size that is not constant.
    """
    usable = [layer for layer in layers if not layer.left_out]
    sizes: Counter[int] = Counter()
    for layer in usable:
        sizes[layer.filters.shape[1]] += len(layer.filters)
    if not sizes:
        reasons = "; ".join(f"{layer.name}: {layer.left_out}" for layer in layers[:3])
        raise InputError(f"no layer's filters can be used ({reasons})")
    if size is None:
        large = {k: n for k, n in sizes.items() if k >= 5} or sizes
        size = max(large, key=lambda k: (large[k], k))
    if size not in sizes:
        there = ", ".join(f"{n} of {k}x{k}" for k, n in sorted(sizes.items()))
        raise InputError(f"no filter is {size}x{size}; there are {there}")
    lines, dead = [], 0
    for layer in usable:
        if layer.filters.shape[1] == size and len(layer.filters):
            values = layer.filters.reshape(len(layer.filters), -1)
            varies = np.where(np.ptp(values, axis=1) > 0, np.std(values, axis=1), 0.0)
            alive = varies > _DEAD * np.median(varies)
            dead += int(np.sum(~alive))
            lines.append(unit_lines(layer.filters[alive]))
    found = np.concatenate(lines)
    if not len(found):
        raise InputError(f"all {dead} filters of {size}x{size} are constant: train the network")
    return FilterSet(size, found, dead, {k: n for k, n in sorted(sizes.items()) if k != size})


def unit_lines(filters: Floats) -> Floats:
    """Filters (n, k, k), none constant, as (n, k * k) of zero mean and unit l2 norm."""
    values = np.asarray(filters, dtype=np.float64)
    values = values.reshape(len(values), np.prod(values.shape[1:], dtype=int))
    values = values / np.abs(values).max(axis=1, keepdims=True, initial=1e-300)
    values = values - values.mean(axis=1, keepdims=True)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def likeness(lines: Floats, keys: Floats) -> Floats:
    """Share (n, m) of each line's (n, d) variance that each key (m, d) keeps: cosines squared."""
    return np.asarray((lines @ keys.T) ** 2)


def reconstruction_cost(lines: Floats, keys: Floats) -> float:
    """Mean squared error of a f + b with each filter's best key, filters of unit variance."""
    return float(1 - likeness(lines, keys).max(axis=1).mean())


def drop(
    lines: Floats,
    candidates: Floats,
    *,
    judge: Judge | None = None,
    shortlist: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> Dropping:
    """Drop candidates one by one, each time the one whose loss costs least [BKRG]_.

    What a loss costs in reconstruction is what the filters of that candidate lose by going over to
    their second best, so no step fits anything again.

    Parameters
    ----------
    lines : (n, d) float64
        The filters, `FilterSet.lines`.
    candidates : (m, d) float64
        Of zero mean and unit norm.
    judge : callable, optional
        Another cost than reconstruction's. It would be asked m (m + 1) / 2 times; instead
        reconstruction proposes the `shortlist` cheapest losses, and the judge decides among them,
        in a tie for the one that reconstruction prefers.
    advance : callable
        Called after each step.
    """
    shares = likeness(lines, candidates)
    live = list(range(len(candidates)))
    cost = float(1 - shares.max(axis=1).mean()) if judge is None else judge([live])[0]
    advance()
    dropped, costs = [], [cost]
    while len(live) > 1:
        left = shares[:, live]
        best = left.argmax(axis=1)
        second, first = np.partition(left, -2, axis=1)[:, -2:].T
        losses = np.bincount(best, weights=first - second, minlength=len(live))
        cheapest = np.argsort(losses, kind="stable")[: shortlist if judge else 1]
        if judge is None:
            chosen = cheapest[0]
            cost = float(1 - (first.sum() - losses[chosen]) / len(lines))
        else:
            judged = judge([live[:i] + live[i + 1 :] for i in cheapest.tolist()])
            chosen = cheapest[int(np.argmin(judged))]
            cost = min(judged)
        dropped.append(live.pop(int(chosen)))
        costs.append(cost)
        advance()
    return Dropping((*dropped, *live), tuple(costs[::-1]))


def elbow(costs: Sequence[float]) -> int:
    """The count at which the curve of costs, `costs[n - 1]` for n keys, bends most [SAIR]_.

    It is the point farthest below the chord from the first point to the last, in log cost over
    count: in the logarithm, because each further key takes off a share of what is left. (With a
    cost of 0 somewhere, in the cost itself.)

    Examples
    --------
    >>> from mkf.discovery import elbow
    >>> elbow([0.8, 0.4, 0.2, 0.1, 0.099, 0.098, 0.097, 0.096])
    4
    """
    values = np.asarray(costs, dtype=np.float64)
    if values.min() > 0:
        values = np.log(values)
    if len(values) < 3 or values[0] <= values[-1]:
        return 1
    along = np.linspace(0, 1, len(values))
    down = (values - values[-1]) / (values[0] - values[-1])
    return int(np.argmax(1 - along - down)) + 1


def refine(lines: Floats, keys: Floats) -> Floats:
    """Each key (m, d) as the first principal direction of its filters, until all stay [DMR]_.

    A key that no filter prefers stays as it is.
    """
    keys = keys.copy()
    assigned = np.full(len(lines), -1)
    for _ in range(_ROUNDS):
        previous, assigned = assigned, likeness(lines, keys).argmax(axis=1)
        if np.array_equal(previous, assigned):
            break
        for key in range(len(keys)):
            members = lines[assigned == key]
            if len(members):
                keys[key] = principal_direction(members)
    return keys


def principal_direction(lines: Floats) -> Floats:
    """The unit vector (d,) of greatest summed squared product with the lines (n, d)."""
    if len(lines) < lines.shape[1]:
        direction = np.linalg.svd(lines, full_matrices=False)[2][0]
    else:
        direction = np.linalg.eigh(lines.T @ lines)[1][:, -1]
    # Exactly centered again; of the two signs the one whose greatest value is positive.
    direction = direction - direction.mean()
    greatest = direction[np.argmax(np.abs(direction))]
    return np.asarray(direction / np.linalg.norm(direction) * np.sign(greatest))


def filters_by_key(lines: Floats, keys: Floats) -> tuple[list[int], list[float | None]]:
    """How many filters prefer each key, and the mean share of their variance that it keeps."""
    shares = likeness(lines, keys)
    assigned, best = shares.argmax(axis=1), shares.max(axis=1)
    counts = np.bincount(assigned, minlength=len(keys)).tolist()
    kept = [
        float(best[assigned == key].mean()) if count else None for key, count in enumerate(counts)
    ]
    return counts, kept
