"""Methods C and D: the scales whose model is nearest to the normalized learned key.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
section 4: least l1 distance (C), least l2 distance (D), over (sx, sy) or over sx = sy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mkf.errors import FitError
from mkf.idealized import Boundary, axis_factor, laplacian_of_gaussian, outer, unit_impulse
from mkf.keys import master_key
from mkf.scale_search import SIGMA_MAX, least

Norm = Literal["l1", "l2"]

# Taps beneath this change no sum, and a ratio to them would overflow.
_NO_WEIGHT = 1e-100


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

    def separate(self, key: int, h: NDArray[np.float64]) -> tuple[float, float]:
        """Scales (sx, sy) of least distance to the normalized key `h` (k, k) [LBK, C1 and D1].

        Raises
        ------
        FitError
            If the distance falls on as a scale grows without end.
        """
        scales = least(lambda sigma: self._cost(key, h, sigma), dimensions=2)
        _require_finite(scales, f"key {key}", self.method)
        return float(scales[0]), float(scales[1])

    def pooled(self, members: Mapping[int, NDArray[np.float64]]) -> float:
        """One scale for all `members` (key -> normalized filter (k, k)) [LBK, C2 and D2].

        The sum of the l1 distances, or of the squared l2 distances, is least. Raises FitError as
        `separate` does.
        """
        sigma = least(
            lambda sigma: np.sum(
                [self._cost(key, h, sigma.repeat(2, axis=1)) for key, h in members.items()], axis=0
            ),
            dimensions=1,
        )
        names = ", ".join(map(str, members))
        _require_finite(sigma, f"key{'s' if len(members) > 1 else ''} {names}", self.method)
        return float(sigma[0])

    def _cost(
        self, key: int, h: NDArray[np.float64], sigma: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """l1 distance or squared l2 distance (n,) at scales (n, 2)."""
        along_x = self._factor(key, "x", sigma[:, 0], h.shape[0])
        along_y = self._factor(key, "y", sigma[:, 1], h.shape[0])
        difference = outer(along_x, along_y)
        difference -= h
        return _total(difference, self.norm)

    def _factor(
        self, key: int, axis: Literal["x", "y"], sigma: NDArray[np.float64], size: int
    ) -> NDArray[np.float64]:
        """Factors (n, size) of the model along one axis at scales (n,)."""
        # On a lattice few scales are different, and the Bessel functions are what costs.
        different, which = np.unique(sigma, return_inverse=True)
        operator = master_key(key)
        factors = axis_factor(operator, axis, different, boundary=self.boundary, size=size)
        return np.asarray(factors[which])


def fit_sharpening(
    h: NDArray[np.float64], *, method: str, norm: Norm, boundary: Boundary
) -> tuple[float, float]:
    """(sigma, gamma) of key 7, `delta - gamma * Laplacian(T)`, nearest to the normalized key.

    Given sigma the model is linear in gamma, and the best gamma is exact: a projection for l2, a
    weighted median for l1. What is left is a search over sigma alone.

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
    difference = unit_impulse(h.shape[0]) - h

    def smoothed(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        return laplacian_of_gaussian(sigma, boundary=boundary, size=h.shape[0])

    def cost(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        laplacians = smoothed(sigma[:, 0])
        gammas = _best_factor(difference, laplacians, norm)
        return _total(difference - gammas[:, None, None] * laplacians, norm)

    sigma = least(cost, dimensions=1)
    _require_finite(sigma, "key 7", method)
    return float(sigma[0]), float(_best_factor(difference, smoothed(sigma), norm)[0])


def _best_factor(
    target: NDArray[np.float64], shapes: NDArray[np.float64], norm: Norm
) -> NDArray[np.float64]:
    """Factors g (n,) for which target (k, k) - g * shapes (n, k, k) is least in the norm."""
    if norm == "l2":
        products = np.einsum("nij,ij->n", shapes, target)
        return np.asarray(products / np.einsum("nij,nij->n", shapes, shapes))
    # sum |t - g s| = sum |s| |t / s - g|: least at the median of t / s under the weights |s|.
    weights = np.abs(shapes).reshape(len(shapes), -1)
    ratios = np.divide(
        target.ravel(),
        shapes.reshape(len(shapes), -1),
        out=np.zeros_like(weights),
        where=weights > _NO_WEIGHT,
    )
    order = np.argsort(ratios, axis=1, kind="stable")
    below = np.take_along_axis(weights, order, axis=1).cumsum(axis=1)
    median = np.argmax(below >= below[:, -1:] / 2, axis=1)
    return np.asarray(ratios[np.arange(len(ratios)), order[np.arange(len(ratios)), median]])


def _require_finite(sigma: NDArray[np.float64], who: str, method: str) -> None:
    """Raise FitError if the search ended at the greatest scale it tries."""
    if np.any(sigma >= SIGMA_MAX * (1 - 1e-6)):
        raise FitError(
            f"{who}, method {method}: the distance falls on as the scale grows, so no scale is "
            "best; check that the filters are in the order of the master keys, or use method A"
        )


def _total(difference: NDArray[np.float64], norm: Norm) -> NDArray[np.float64]:
    """l1, or squared l2, over the last two axes; `difference` is overwritten."""
    if norm == "l1":
        return np.asarray(np.abs(difference, out=difference).sum(axis=(1, 2)))
    return np.asarray(np.einsum("nij,nij->n", difference, difference))
