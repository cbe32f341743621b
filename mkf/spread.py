"""How wide a filter is: mean and covariance of its absolute values; the offset that narrows it.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
sections 3 and 4. Coordinates are in pixels from the center: x to the right, y up, row 0 on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.errors import InputError


@dataclass(frozen=True)
class Spread:
    """Mean and covariance of a filter's absolute values.

    Attributes
    ----------
    mean : tuple of float
        (mx, my), in pixels from the center.
    covariance : ndarray of float64, shape (2, 2)
        ((xx, xy), (xy, yy)), in square pixels.
    """

    mean: tuple[float, float]
    covariance: NDArray[np.float64]


def coordinates(size: int) -> NDArray[np.int_]:
    """Pixel coordinates of `size` (odd) taps about the center: -r, ..., r; shape (size,)."""
    return np.arange(size) - size // 2


def spread(h: ArrayLike, *, window: ArrayLike | None = None) -> Spread:
    """Mean and covariance of a filter under the weights `|h|`, or `|h| * window` [LBK, section 3].

    Parameters
    ----------
    h : array_like, shape (k, k)
        The filter, k odd, row 0 on top.
    window : array_like, shape (k, k), optional
        Further weights, not negative: they damp what a learned filter has far from its center.

    Returns
    -------
    Spread
        The same for `h`, `-h` and any other multiple of `h`.

    Raises
    ------
    InputError
        If `h` is not a square of odd size, holds a value that is not finite, or has no weight left.

    Examples
    --------
    >>> from mkf.spread import spread
    >>> spread([[0, 0, 0], [0, -1, 1], [0, 0, 0]]).mean
    (0.5, 0.0)
    """
    weights = np.abs(_unit_range(h))
    if window is not None:
        weights = weights * np.asarray(window, dtype=np.float64)
    if not weights.sum() > 0:
        raise InputError("a filter that is zero everywhere has no spread: give one with values")
    means, covariances = _moments(weights[None])
    return Spread((float(means[0, 0]), float(means[0, 1])), covariances[0])


def dc_offset(h: ArrayLike, *, preferred: float | None = None) -> float:
    """The offset C that makes `|h - C|` narrowest: least sqrt(det V) [LBK, section 4].

    Between two neighboring values of the filter `|h - C|` is linear in C, so the normalized weights
    move on a segment between two distributions. The covariance of a mixture is concave in its share
    and sqrt(det) is concave and increasing on covariances, so sqrt(det V) is concave there and
    takes its least value at an end. The minimum over all C from the least to the greatest value of
    `h` is therefore at one of the values of `h`, and trying them all finds it exactly.

    Parameters
    ----------
    h : array_like, shape (k, k)
        The filter, k odd.
    preferred : float, optional
        An offset to return instead if sqrt(det V) there is within 2e-5 of the least (relative).

    Returns
    -------
    float
        The offset, in the units of `h`; of equally good ones the least.

    Raises
    ------
    InputError
        If `h` is not a square of odd size, holds a value that is not finite, or is constant.
    """
    values = _unit_range(h)
    candidates = np.unique(values)
    if len(candidates) == 1:
        raise InputError("a constant filter has no spread: give one whose values differ")
    areas = _areas(values, candidates)
    if preferred is not None:
        unit = np.abs(np.asarray(h, dtype=np.float64)).max()
        if _areas(values, np.array([preferred / unit]))[0] <= areas.min() * (1 + 2e-5):
            return preferred
    # Read the offset off the filter itself, so that scaling back costs no digit.
    best = candidates[np.argmin(areas)]
    return float(np.asarray(h, dtype=np.float64)[values == best][0])


def _areas(values: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt(det V) (n,) of |values - offset| for each of the offsets (n,)."""
    _, covariances = _moments(np.abs(values - offsets[:, None, None]))
    xx, yy, xy = covariances[:, 0, 0], covariances[:, 1, 1], covariances[:, 0, 1]
    return np.asarray(np.sqrt(np.maximum(xx * yy - xy**2, 0)))


def _unit_range(h: ArrayLike) -> NDArray[np.float64]:
    """`h` scaled to a greatest absolute value of 1, which leaves its spread, or as it is if 0."""
    values = np.asarray(h, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] % 2 == 0:
        raise InputError(f"a filter is a square of odd size, not of shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise InputError("a filter holds a value that is not finite: replace it by a number")
    greatest = np.abs(values).max()
    return values / greatest if greatest > 0 else values


def _moments(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means (n, 2) and covariances (n, 2, 2), x before y, of weights (n, k, k)."""
    x = coordinates(weights.shape[-1])
    total = weights.sum(axis=(1, 2))
    over_x = weights.sum(axis=1) / total[:, None]  # (n, k), columns left to right
    over_y = weights.sum(axis=2)[:, ::-1] / total[:, None]  # (n, k), rows bottom to top
    mx, my = over_x @ x, over_y @ x
    dx, dy = x - mx[:, None], x - my[:, None]
    xx, yy = (over_x * dx**2).sum(axis=1), (over_y * dy**2).sum(axis=1)
    xy = np.einsum("nyx,nx,ny->n", weights[:, ::-1], dx, dy) / total
    return np.stack([mx, my], axis=1), np.stack([xx, xy, xy, yy], axis=1).reshape(-1, 2, 2)
