"""Idealized kernels: the scale-space model of each master key at given scales.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
section 4: `T = T(x; sx^2) T(y; sy^2)` differenced as `mkf.keys.MASTER_KEYS` says, and
`delta - gamma * Laplacian(T)` for key 7. (The scripts published with the paper start key 7 from T
in one place; its formula, and this module, start it from the unit impulse.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.errors import InputError
from mkf.keys import SIZES, MasterKey, Operator, master_key
from mkf.scale_space import (
    backward_difference,
    central_difference,
    forward_difference,
    gaussian,
    second_difference,
)

Boundary = Literal["symmetric", "exact"]

DIFFERENCE: Mapping[Operator, Callable[..., NDArray[np.float64]]] = {
    Operator.SMOOTH: lambda f, **_: f,
    Operator.FORWARD: forward_difference,
    Operator.BACKWARD: backward_difference,
    Operator.CENTRAL: central_difference,
    Operator.SHARPEN: second_difference,
}


def idealized_kernel(
    key: int,
    sigma_x: float,
    sigma_y: float,
    gamma: float | None = None,
    *,
    boundary: Boundary = "symmetric",
    size: int = 7,
) -> NDArray[np.float64]:
    """The idealized model of one master key [LBK, section 4], not normalized.

    Parameters
    ----------
    key : int
        Number of the key, 1-8.
    sigma_x, sigma_y : float
        Scales in pixels, at least 0; equal for key 7.
    gamma : float, optional
        Weight of the Laplacian, in square pixels: given for key 7 and for no other.
    boundary : {"symmetric", "exact"}
        How differences end: `symmetric` crops T to the kernel and repeats its edge sample before
        differencing, as [LBK] computed; `exact` crops the difference of the infinite T.
    size : int
        Odd, from 3 to 31.

    Returns
    -------
    ndarray of float64, shape (size, size)
        Row 0 on top, y up; to be applied as a cross-correlation.

    Raises
    ------
    KeysError
        If there is no such key.
    InputError
        If a scale, `gamma`, `boundary` or `size` is not as above.

    Examples
    --------
    >>> from mkf.idealized import idealized_kernel
    >>> idealized_kernel(4, 0.5, 0.5, boundary="exact", size=3).round(3)
    array([[ 0.068, -0.068, -0.009],
           [ 0.548, -0.548, -0.073],
           [ 0.068, -0.068, -0.009]])
    """
    operator = master_key(key)
    check_shape(boundary, size)
    scales = np.array([sigma_x, sigma_y], dtype=np.float64)
    if not np.all(np.isfinite(scales) & (scales >= 0)):
        raise InputError(f"key {key}: scales are {sigma_x}, {sigma_y}; give finite numbers >= 0")
    if operator.operator is not Operator.SHARPEN:
        if gamma is not None:
            raise InputError(f"key {key} has no Laplacian to weigh: give gamma for key 7 only")
        along_x = axis_factor(operator, "x", scales[0], boundary=boundary, size=size)
        along_y = axis_factor(operator, "y", scales[1], boundary=boundary, size=size)
        return outer(along_x, along_y)
    if gamma is None or not np.isfinite(gamma):
        raise InputError(f"key {key}: gamma is {gamma}; give the weight of the Laplacian")
    if sigma_x != sigma_y:
        raise InputError(f"key {key} has one scale: give sigma_x = sigma_y")
    smoothed = laplacian_of_gaussian(scales[0], boundary=boundary, size=size)
    return unit_impulse(size) - gamma * smoothed


def axis_factor(
    key: MasterKey,
    axis: Literal["x", "y"],
    sigma: ArrayLike,
    *,
    boundary: Boundary,
    size: int,
) -> NDArray[np.float64]:
    """One axis of a separable model (keys 1-6 and 8), for many scales at once.

    Parameters
    ----------
    key : MasterKey
        The operator; along the other axis than its own it only smooths.
    axis : {"x", "y"}
        The axis.
    sigma : array_like, shape (...)
        Scales in pixels.
    boundary, size
        As in `idealized_kernel`.

    Returns
    -------
    ndarray of float64, shape (..., size)
        By increasing coordinate: to the right for x, **up** for y.
    """
    operator = key.operator if axis == key.axis else Operator.SMOOTH
    return _differenced(operator, sigma, boundary, size)


def outer(along_x: NDArray[np.float64], along_y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernels (..., k, k), row 0 on top, of factors (..., k) by increasing x and y (upward)."""
    return np.asarray(along_y[..., ::-1, None] * along_x[..., None, :])


def laplacian_of_gaussian(
    sigma: ArrayLike, *, boundary: Boundary, size: int
) -> NDArray[np.float64]:
    """Five-point Laplacian of T(x; sigma^2) T(y; sigma^2), shape (..., size, size).

    Written as the sum of two outer products, which repeating the edge sample leaves it.
    """
    smoothed = _differenced(Operator.SMOOTH, sigma, boundary, size)
    curved = _differenced(Operator.SHARPEN, sigma, boundary, size)
    return outer(curved, smoothed) + outer(smoothed, curved)


def unit_impulse(size: int) -> NDArray[np.float64]:
    """1 at the center of (size, size), else 0."""
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1.0
    return impulse


def check_shape(boundary: str, size: int) -> None:
    """Raise InputError unless `boundary` and `size` are ones that kernels can have."""
    if boundary not in get_args(Boundary):
        raise InputError(f"no boundary {boundary!r}: give one of {', '.join(get_args(Boundary))}")
    if size not in SIZES:
        raise InputError(f"size is {size}; give an odd number from {SIZES[0]} to {SIZES[-1]}")


def _differenced(
    operator: Operator, sigma: ArrayLike, boundary: Boundary, size: int
) -> NDArray[np.float64]:
    """T differenced along its axis, shape (..., size)."""
    # One tap more at each end keeps the repeated edge sample out of what is left after the crop.
    margin = 1 if boundary == "exact" else 0
    # T is even, and its Bessel functions are what a fit spends most of its time on.
    half = gaussian(np.arange(size // 2 + margin + 1), np.asarray(sigma)[..., None])
    taps = np.concatenate([half[..., :0:-1], half], axis=-1)
    return DIFFERENCE[operator](taps)[..., margin : margin + size]
