"""Discrete scale space: the discrete analogue of the Gaussian and the differences applied to it.

`T(n; s) = exp(-s) I_n(s)`, with `I_n` the modified Bessel function of integer order and
`s = sigma^2` the variance, is the kernel that turns smoothing on a grid into a semigroup:
`T(s1) * T(s2) = T(s1 + s2)` (Lindeberg, "Scale-space for discrete signals", IEEE PAMI 12(3), 1990,
below [L90]). A sampled Gaussian has no such property, and at the small scales of learned filters
(sigma near half a pixel) it is far from `T`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ive

from mkf.errors import InputError

SIGMA_MAX = 100.0
"""Greatest scale that fits try, in pixels. A best scale there means that none is best."""

# Beyond variances of some 1e9 the library's Bessel function gives up.
_SIGMA_LIMIT = 1e4


def gaussian(n: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
    """The discrete analogue of the Gaussian, `T(n; sigma^2)` [L90].

    Parameters
    ----------
    n : array_like of int
        Positions on the grid, in pixels.
    sigma : array_like of float
        Scale: the standard deviation over the whole grid, in pixels; 0 gives the unit impulse.
        Broadcast against `n`.

    Returns
    -------
    ndarray of float64, shape broadcast(n, sigma)
        Values of `T`. Over all integers they sum to 1 and have variance `sigma^2` exactly; over a
        few taps they are a crop, which is not renormalized.

    Raises
    ------
    InputError
        If a position is not a whole number, or a scale is negative, above 10,000 or not finite.

    Examples
    --------
    >>> from mkf.scale_space import gaussian
    >>> gaussian([-1, 0, 1], 0.5).round(4)
    array([0.0981, 0.791 , 0.0981])
    """
    positions = np.asarray(n, dtype=np.float64)
    scales = np.asarray(sigma, dtype=np.float64)
    if not np.all(np.isfinite(positions) & (positions == np.round(positions))):
        raise InputError("the discrete Gaussian lives on the grid: give whole numbers for n")
    if not np.all((scales >= 0) & (scales <= _SIGMA_LIMIT)):
        raise InputError(
            f"a scale is a standard deviation in pixels: give sigma from 0 to {_SIGMA_LIMIT:,.0f}"
        )
    # The exponentially scaled Bessel function: `exp(-s) * I_n(s)` itself overflows from s = 713 on,
    # and an upward recurrence over the orders loses every digit for small s.
    return np.asarray(ive(np.abs(positions), scales**2))


def gaussian_derivative(n: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
    """The derivative of `T(n; sigma^2)` in `sigma`.

    `T` obeys the diffusion equation `dT/ds = (T(n-1) - 2 T(n) + T(n+1)) / 2` [L90], and
    `ds/dsigma = 2 sigma`.

    Parameters
    ----------
    n : array_like of int
        Positions on the grid, in pixels.
    sigma : array_like of float
        Scale in pixels, broadcast against `n`.

    Returns
    -------
    ndarray of float64, shape broadcast(n, sigma)
        The derivative, in 1/pixel.

    Raises
    ------
    InputError
        As in `gaussian`.
    """
    positions = np.asarray(n, dtype=np.float64)
    scales = np.asarray(sigma, dtype=np.float64)
    before, here, after = (gaussian(positions + shift, scales) for shift in (-1, 0, 1))
    return np.asarray(scales * (before - 2 * here + after))


def forward_difference(f: ArrayLike, *, axis: int = -1) -> NDArray[np.float64]:
    """`(d+ f)(n) = f(n+1) - f(n)`, toward increasing index, the edge sample repeated.

    Parameters
    ----------
    f : array_like, any shape
        Samples.
    axis : int
        The axis along which to difference.

    Returns
    -------
    ndarray of float64, shape of `f`
        The last sample is 0, because the edge is repeated.
    """
    return _neighbor(f, 1, axis) - np.asarray(f, dtype=np.float64)


def backward_difference(f: ArrayLike, *, axis: int = -1) -> NDArray[np.float64]:
    """`(d- f)(n) = f(n) - f(n-1)`; parameters and result as in `forward_difference`.

    Here it is the first sample that is 0.
    """
    return np.asarray(f, dtype=np.float64) - _neighbor(f, -1, axis)


def central_difference(f: ArrayLike, *, axis: int = -1) -> NDArray[np.float64]:
    """`(d0 f)(n) = (f(n+1) - f(n-1)) / 2`; parameters and result as in `forward_difference`."""
    return (_neighbor(f, 1, axis) - _neighbor(f, -1, axis)) / 2


def second_difference(f: ArrayLike, *, axis: int = -1) -> NDArray[np.float64]:
    """`(d+ d- f)(n) = f(n+1) - 2 f(n) + f(n-1)`; as in `forward_difference`.

    The edge sample is repeated once, before both differences.
    """
    return _neighbor(f, 1, axis) - 2 * np.asarray(f, dtype=np.float64) + _neighbor(f, -1, axis)


def laplacian(f: ArrayLike) -> NDArray[np.float64]:
    """The five-point Laplacian `d+d-` in x plus `d+d-` in y, the edge samples repeated [L90].

    Parameters
    ----------
    f : array_like, shape (..., rows, columns)
        Samples.

    Returns
    -------
    ndarray of float64, shape of `f`
        The Laplacian over the last two axes.

    Examples
    --------
    >>> from mkf.scale_space import laplacian
    >>> laplacian([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    array([[ 0.,  1.,  0.],
           [ 1., -4.,  1.],
           [ 0.,  1.,  0.]])
    """
    return second_difference(f, axis=-1) + second_difference(f, axis=-2)


def _neighbor(f: ArrayLike, step: int, axis: int) -> NDArray[np.float64]:
    """`f(n + step)` at every n, for a step of one, the edge sample repeated."""
    samples = np.asarray(f, dtype=np.float64)
    indices = np.arange(samples.shape[axis]) + step
    return samples.take(indices.clip(0, samples.shape[axis] - 1), axis=axis)
