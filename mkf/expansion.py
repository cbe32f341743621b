"""Filters as sums of several keys: what they are made of, and how they are found by pursuit.

One key a filter, as published, is `mkf.assignment`. Here a filter y becomes b + the sum of a_t f^_t
over a few of the keys, their kernels as given. Which, is found by orthogonal matching pursuit: the
key that goes best with what is left over joins, and all factors are solved for again, by least
squares (Pati, Rezaiifar, Krishnaprasad, "Orthogonal matching pursuit", Asilomar Conf. 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.assignment import kept_by_key, share, total_kept
from mkf.errors import InputError
from mkf.keys import COUNT

Floats = NDArray[np.float64]
Keys = NDArray[np.int64]

RIDGE = 1e-9  # of a column's squared norm: keeps equal models from cancelling one another


@dataclass(frozen=True, eq=False)
class Problem:
    """What n filters are to become, and how distance from it is measured.

    Attributes
    ----------
    target : (n, m) float64
        The filters' d = k k values, or what `metric` makes of them.
    metric : (n, m, d) float64 or None
        The linear map of each filter's values to those whose squared distance counts; None counts
        the values themselves.
    """

    target: Floats
    metric: Floats | None = None

    @classmethod
    def of(cls, filters: ArrayLike) -> Problem:
        """Learned filters (n, k, k), each value counting alike.

        Raises
        ------
        InputError
            The shape is another one, or a value is NaN, infinite or too large to be squared.
        """
        y = np.asarray(filters, dtype=np.float64)
        if y.ndim != 3 or y.shape[1] != y.shape[2]:
            raise InputError(f"filters of shape {y.shape}: pass (n, k, k)")
        if not np.isfinite(y).all() or (y.size and np.abs(y).max() > 1e150):
            raise InputError("the filters hold NaN, infinite or huge values: pass finite ones")
        return cls(y.reshape(len(y), y.shape[1] ** 2))

    def measured(self, columns: Floats) -> Floats:
        """Columns (n, c, d) or (c, d), common to all, as distance sees them: (n, c, m)."""
        if self.metric is None:
            return np.broadcast_to(columns, (len(self.target), *columns.shape[-2:]))
        return np.asarray(columns @ self.metric.swapaxes(1, 2))

    def __getitem__(self, chosen: Keys | NDArray[np.bool_]) -> Problem:
        """The same for some of the filters."""
        return Problem(self.target[chosen], None if self.metric is None else self.metric[chosen])


@dataclass(frozen=True, eq=False)
class Expansion:
    """n filters, each of t terms; a term of key 0 is none.

    Attributes
    ----------
    keys : (n, t) int64
        The key of each term, counted from 1, in the order in which they were found.
    a : (n, t) float64
        The factor of the key's kernel made of zero mean and unit l2 norm.
    sigma_x, sigma_y, gamma : (n, t) float64
        The kernel's scales in pixels, and key 7's weight of its Laplacian; else NaN.
    filters : (n, k, k) float64
        The new filters; b is their mean.
    variation, kept_variation : (n,) float64
        ||y - mean y||^2 of the learned filter, and that less ||y - new filter||^2.
    """

    keys: Keys
    a: Floats
    sigma_x: Floats
    sigma_y: Floats
    gamma: Floats
    filters: Floats
    variation: Floats
    kept_variation: Floats

    @property
    def b(self) -> Floats:
        """The mean of each new filter, (n,)."""
        return np.asarray(self.filters.mean(axis=(1, 2)))

    @property
    def kept(self) -> Floats:
        """Share of each learned filter's variance that is kept, (n,) in 0..1; 1 if it is constant.

        After a calibration, which looks at outputs instead, it may be less than could be had.
        """
        return share(self.kept_variation, self.variation)

    @property
    def total_kept(self) -> float:
        """`mkf.assignment.total_kept` of these filters."""
        return total_kept([self])

    def counts(self) -> dict[int, int]:
        """How many filters have each key among their terms."""
        return {key: int((self.keys == key).any(axis=1).sum()) for key in range(1, COUNT + 1)}

    def kept_by_key(self) -> dict[int, float | None]:
        """Share of the variance kept among the filters that have the key; None where none has."""
        return kept_by_key(self)

    def of_key(self, key: int) -> Expansion:
        """The same for the filters that have one key among their terms."""
        chosen = (self.keys == key).any(axis=1)
        return Expansion(
            self.keys[chosen],
            self.a[chosen],
            self.sigma_x[chosen],
            self.sigma_y[chosen],
            self.gamma[chosen],
            self.filters[chosen],
            self.variation[chosen],
            self.kept_variation[chosen],
        )

    def idealized(self) -> Floats:
        """The new filters, (n, k, k) float64."""
        return self.filters


def expansion(
    learned: Floats,
    filters: Floats,
    *,
    keys: Keys,
    a: Floats,
    scales: tuple[Floats, Floats, Floats],
) -> Expansion:
    """Put an expansion together and measure what it keeps of the learned filters (n, k, k)."""
    spread = learned - learned.mean(axis=(1, 2), keepdims=True)
    variation = np.einsum("nij,nij->n", spread, spread)
    left = learned - filters
    lost = np.einsum("nij,nij->n", left, left)
    # A constant filter has no variation, and the rounding of its mean is no loss.
    variation[np.ptp(learned, axis=(1, 2)) == 0] = 0
    kept = np.where(variation > 0, variation - lost, 0.0)
    return Expansion(keys, a, *scales, filters, variation, kept)


def pursue(problem: Problem, kernels: Floats, *, terms: int) -> tuple[Keys, Floats, Floats]:
    """The best `terms` of the kernels for each filter, by orthogonal matching pursuit.

    Parameters
    ----------
    problem
        n filters of d values.
    kernels : (m, k, k) float64
        The idealized kernel of each key, key 1 first, in any scale and offset, or (n, m, k, k).
    terms
        1 to m.

    Returns
    -------
    keys : (n, terms) int64
        Counted from 1, in the order in which they were found.
    weights : (n, terms) float64
        The factors of the kernels as given.
    values : (n, d) float64
        The new filters: the kernels' sum and a constant.

    Raises
    ------
    InputError
        There are fewer kernels than terms.
    """
    count = kernels.shape[-3]
    if not 1 <= terms <= count:
        raise InputError(f"{terms} terms of {count} keys: ask for 1 to {count}")
    n, area = len(problem.target), kernels.shape[-1] ** 2
    rows = np.broadcast_to(kernels.reshape(*kernels.shape[:-2], area), (n, count, area))
    columns = np.concatenate([np.ones((n, 1, area)), rows], axis=1)  # the constant first
    seen = problem.measured(columns)  # (n, 1 + m, m')
    pulls = np.einsum("ncm,nm->nc", seen, problem.target)
    gram = seen @ seen.swapaxes(1, 2)
    norms = np.einsum("ncc->nc", gram)
    # What of a kernel lies along the constant, which every filter has, counts for nothing.
    free = norms - gram[:, 0] ** 2 / norms[:, :1]
    taken = np.zeros((n, 1 + count), dtype=bool)
    taken[:, 0] = True
    order = np.empty((n, terms), dtype=np.int64)
    weights = _solve(gram, pulls, taken)
    for term in range(terms):
        left = pulls - np.einsum("ncd,nd->nc", gram, weights)
        gain = np.where(free <= RIDGE * norms, -1.0, left**2 / np.maximum(free, 1e-300))
        gain[taken] = -np.inf  # even kernels that are constant go before those taken
        order[:, term] = gain.argmax(axis=1)
        taken[np.arange(n), order[:, term]] = True
        weights = _solve(gram, pulls, taken)
    values = np.einsum("nc,ncd->nd", weights, columns)
    return order, np.take_along_axis(weights, order, axis=1), values


def scaled_gram(columns: Floats) -> tuple[Floats, Floats]:
    """1 / norm of each column (n, c), 0 for a column of zeros, and the Gram matrix of the scaled.

    Its ridge, and a 1 on the diagonal of a column of zeros, make it invertible.
    """
    norm = np.sqrt(np.einsum("ncm,ncm->nc", columns, columns))
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 1e-150)
    scaled = columns * scale[:, :, None]
    gram = scaled @ scaled.swapaxes(1, 2)
    index = np.arange(gram.shape[1])
    gram[:, index, index] += np.where(scale > 0, RIDGE, 1.0)
    return scale, gram


def _solve(gram: Floats, pulls: Floats, taken: NDArray[np.bool_]) -> Floats:
    """Least-squares weights (n, c) of the columns taken, 0 of the others."""
    norm = np.sqrt(np.einsum("ncc->nc", gram))
    scale = np.where(taken & (norm > 1e-150), 1 / np.maximum(norm, 1e-150), 0.0)
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    index = np.arange(gram.shape[1])
    scaled[:, index, index] += np.where(scale > 0, RIDGE, 1.0)
    return np.asarray(np.linalg.solve(scaled, (pulls * scale)[:, :, None])[:, :, 0] * scale)
