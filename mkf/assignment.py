"""Which key each filter of a depthwise layer is, and what of it that key keeps.

A filter y becomes a f^ + b, with f^ the key's kernel f made of zero mean and unit norm ([BKRG]_,
[LBK]_ section 5). b = mean y and a = <f^, y> are the least-squares answer for one key, and what
they leave over is ||y - b||^2 - a^2; so the key of least residual is the one of largest |a|, and
all filters are assigned by one matrix product.

References
----------
.. [BKRG] Babaiee, Kiasari, Rus, Grosu, "The Quest for Universal Master Key Filters in DS-CNNs",
   NeurIPS 2025, arXiv 2509.11711.
.. [LBK] Lindeberg, Babaiee, Kiasari, "Modeling and analysis of the 8 filters from the 'master key
   filters hypothesis' ...", J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Assignment:
    """The keys of n filters of k x k values, and a, b of y ~ a f^ + b.

    Attributes
    ----------
    keys : (n,) int64
        The key of each filter, counted from 1.
    a : (n,) float64
        The factor of f^, in the filter's own units; negative where the key is turned over.
    b : (n,) float64
        The filter's mean.
    variation : (n,) float64
        ||y - mean y||^2, all that a key could keep; exactly 0 for a constant filter.
    kernels : (m, k, k) float64
        The f^ of every key: zero mean, unit l2 norm.
    """

    keys: NDArray[np.int64]
    a: Floats
    b: Floats
    variation: Floats
    kernels: Floats

    @property
    def kept_variation(self) -> Floats:
        """What of `variation` each filter's key keeps, (n,)."""
        return np.asarray(self.a**2)

    @property
    def kept(self) -> Floats:
        """Share of each filter's variance that its key keeps, (n,) in 0..1; 1 if it is constant."""
        return share(self.kept_variation, self.variation)

    @property
    def total_kept(self) -> float:
        """`total_kept` of these filters."""
        return total_kept([self])

    def counts(self) -> dict[int, int]:
        """How many filters each key got, keys nobody got included."""
        found = np.bincount(self.keys, minlength=len(self.kernels) + 1)[1:]
        return {key: int(count) for key, count in enumerate(found, start=1)}

    def kept_by_key(self) -> dict[int, float | None]:
        """Share of the variance kept among the filters of each key; None for a key nobody got."""
        return kept_by_key(self)

    def of_key(self, key: int) -> Assignment:
        """The same for the filters of one key alone."""
        chosen = self.keys == key
        return Assignment(
            self.keys[chosen], self.a[chosen], self.b[chosen], self.variation[chosen], self.kernels
        )

    def idealized(self) -> Floats:
        """The filters a f^ + b, (n, k, k) float64."""
        scaled = self.a[:, None, None] * self.kernels[self.keys - 1]
        return np.asarray(scaled + self.b[:, None, None])


def assign(filters: ArrayLike, kernels: ArrayLike) -> Assignment:
    """Give every filter the key that keeps most of its variance.

    All is computed in float64, whatever comes in. Of keys that keep the same, the lowest wins. A
    constant filter has no shape to keep: it gets key 1, a = 0 and b = its value, and counts as kept
    whole.

    Parameters
    ----------
    filters : (n, k, k) array
        The learned filters; n may be 0.
    kernels : (m, k, k) array
        The idealized kernel of each key, key 1 first, in any scale and offset.

    Returns
    -------
    Assignment
        Keys, factors and offsets, in the order of `filters`.

    Raises
    ------
    InputError
        A shape does not fit, a value is NaN, infinite or too large to be squared, or a kernel is
        constant.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = np.array([[-1.0, 0, 1], [-1, 0, 1], [-1, 0, 1]])
    >>> found = assign([3 - 2 * ramp.T], [ramp, ramp.T])
    >>> found.keys, found.b, found.kept.round(12)
    (array([2]), array([3.]), array([1.]))
    >>> found.idealized()[0].round(12)
    array([[5., 5., 5.],
           [3., 3., 3.],
           [1., 1., 1.]])
    """
    y, f = np.asarray(filters, dtype=np.float64), np.asarray(kernels, dtype=np.float64)
    if f.ndim != 3 or not f.size or y.ndim != 3 or y.shape[1:] != f.shape[1:]:
        raise InputError(
            f"filters of shape {y.shape} cannot be assigned to kernels of shape {f.shape}: "
            "pass (n, k, k) and (m, k, k)"
        )
    for what, array in (("filters", y), ("kernels", f)):
        if not np.isfinite(array).all():
            raise InputError(f"the {what} hold NaN or infinite values: pass finite ones")

    values = f[0].size
    rows, models = y.reshape(-1, values), f.reshape(-1, values)
    if (np.ptp(models, axis=1) == 0).any():
        raise InputError("a constant kernel is the model of no filter: pass kernels that vary")
    models = models - models.mean(axis=1, keepdims=True)
    models /= np.linalg.norm(models, axis=1, keepdims=True)

    with np.errstate(over="ignore", invalid="ignore"):
        # The mean of equal numbers may be off by a rounding, which would pass for a shape.
        b = np.where(np.ptp(rows, axis=1) == 0, rows[:, 0], rows.mean(axis=1))
        # Centered first: a filter far from zero would lose <f^, y> to rounding.
        centered = rows - b[:, None]
        variation = np.einsum("ij,ij->i", centered, centered)
    if not np.isfinite(variation).all():
        raise InputError("the filters are too large for their squares: scale them down")
    factors = centered @ models.T  # (n, m)
    best = np.abs(factors).argmax(axis=1)
    return Assignment(
        keys=best + 1,
        a=factors[np.arange(len(y)), best],
        b=b,
        variation=variation,
        kernels=models.reshape(f.shape),
    )


class Idealized(Protocol):
    """n filters that became others, by one key each or by several."""

    @property
    def variation(self) -> Floats:
        """||y - mean y||^2 of each learned filter, (n,)."""
        ...

    @property
    def kept_variation(self) -> Floats:
        """What of it was kept, (n,)."""
        ...

    @property
    def total_kept(self) -> float:
        """Share of the variance of all filters together that was kept, 0..1."""
        ...

    def counts(self) -> dict[int, int]:
        """How many filters have each key."""
        ...

    def kept_by_key(self) -> dict[int, float | None]:
        """Share of the variance kept among the filters of each key; None for a key nobody has."""
        ...

    def of_key(self, key: int) -> Self:
        """The same for the filters that have one key."""
        ...

    def idealized(self) -> Floats:
        """The new filters, (n, k, k) float64."""
        ...


def total_kept(parts: Iterable[Idealized]) -> float:
    """Share of the variance of all filters together that was kept, 0..1.

    It is the sum of what was kept over the sum of ||y - mean y||^2, each filter weighing what it
    weighs in its layer: in a mean of shares, filters that are almost zero would count like those
    that do the work. Where nothing varies, all is kept.
    """
    sums = [(np.sum(one.kept_variation), np.sum(one.variation)) for one in parts]
    return float(share(sum(kept for kept, _ in sums), sum(whole for _, whole in sums)))


def kept_by_key(*parts: Idealized) -> dict[int, float | None]:
    """`total_kept` of the filters of each key in all parts; None for a key that none has."""
    return {
        key: total_kept(part.of_key(key) for part in parts)
        if any(part.counts()[key] for part in parts)
        else None
        for key in parts[0].counts()
    }


def share(kept: ArrayLike, whole: ArrayLike) -> Floats:
    """Kept / whole within 0..1 (rounding goes past it), and 1 where there was nothing to lose."""
    kept, whole = np.asarray(kept), np.asarray(whole)
    shares = np.divide(kept, whole, out=np.ones(whole.shape), where=whole > 0)
    return np.asarray(np.clip(shares, 0.0, 1.0))
