"""Methods A and B: the scales at which the model is as wide as the learned key.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
section 4. Width is the covariance under the weights `|h| * w`, with the window `w` the absolute
values of the same key's model at sx = sy = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mkf.errors import FitError, InputError
from mkf.idealized import Boundary, axis_factor, idealized_kernel
from mkf.keys import MasterKey, master_key
from mkf.scale_search import SIGMA_MAX
from mkf.spread import coordinates, spread

Axis = Literal["x", "y"]

_ZOOMS = 8
_NODES = 65
# A spread is a ratio of sums over k * k values: it is not known better than this.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class SpreadFit:
    """Fits of keys 1-6 and 8 by equal spread.

    Attributes
    ----------
    method : {"A", "B"}
        A: the spread of a continuous Gaussian derivative under a Gaussian window; B: the spread
        of the discrete model itself.
    boundary : {"symmetric", "exact"}
        How differences end (`mkf.idealized.idealized_kernel`).
    """

    method: Literal["A", "B"]
    boundary: Boundary

    def separate(self, key: int, h: NDArray[np.float64]) -> tuple[float, float]:
        """Scales (sx, sy) of the key `h` (k, k), normalized.

        Raises
        ------
        FitError
            If the key has no spread, or one that its model never has (B).
        """
        size = h.shape[0]
        window = np.abs(idealized_kernel(key, 1, 1, boundary=self.boundary, size=size))
        try:
            covariance = spread(h, window=window).covariance
        except InputError as error:
            raise FitError(
                f"key {key}, method {self.method}: the filter is zero wherever its model is not, "
                "so its spread says nothing; check the order of the keys, or use method D"
            ) from error
        scale = _SCALE[self.method]
        return (
            scale(key, "x", float(covariance[0, 0]), self.boundary, size),
            scale(key, "y", float(covariance[1, 1]), self.boundary, size),
        )

    def pooled(self, members: Mapping[int, NDArray[np.float64]]) -> float:
        """One scale for all `members` (key -> normalized filter (k, k)).

        The geometric mean of all their sx and sy: what [LBK] does for shared scales. For one scale
        a key (sx = sy), of which [LBK] has no variant in A and B, it is the same mean over one
        member. Raises FitError as `separate` does.
        """
        scales = np.array([self.separate(key, h) for key, h in members.items()])
        return float(np.prod(scales) ** (1 / scales.size))


def _continuous_scale(
    key: int, axis: Axis, variance: float, boundary: Boundary, size: int
) -> float:
    """Method A: sqrt(2 V) along a smoothed axis, sqrt(2 V / 3) along a differentiated one.

    A Gaussian times a window of equal width has half its variance; a first derivative of a Gaussian
    times its like, three halves.
    """
    del boundary, size  # the continuous theory knows neither
    return float(np.sqrt(2 * variance / (3 if master_key(key).axis == axis else 1)))


def _discrete_scale(key: int, axis: Axis, variance: float, boundary: Boundary, size: int) -> float:
    """Method B: the sigma at which the model has this variance along the axis.

    The model and its window are separable, so the scale of the other axis (1 in [LBK]) drops out.
    Of several such sigma the least.
    """
    operator = master_key(key)

    def excess(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        return _model_variance(operator, axis, sigma, boundary, size) - variance

    # Even in sigma / (1 + sigma), as the widths are sensitive to small scales above all.
    u = np.linspace(0, SIGMA_MAX / (1 + SIGMA_MAX), 8 * _NODES)
    sigma = u / (1 - u)
    found = excess(sigma)
    if abs(found[0]) <= _ROUNDING:
        return 0.0
    crossings = np.flatnonzero(np.sign(found[:-1]) != np.sign(found[1:]))
    if not len(crossings):
        raise FitError(
            f"key {key}, method B: its variance along {axis} is {variance:.4g} square pixels and "
            f"its model {_reach(found + variance, size)}; use method A, C or D for these keys"
        )
    low, high = sigma[crossings[0]], sigma[crossings[0] + 1]
    for _ in range(_ZOOMS):
        nodes = np.linspace(low, high, _NODES)
        signs = np.sign(excess(nodes))
        step = int(np.argmax(signs != signs[0])) or _NODES - 1
        low, high = nodes[step - 1], nodes[step]
    return float((low + high) / 2)


def _reach(variances: NDArray[np.float64], size: int) -> str:
    """What variances a model has over all scales, in words."""
    least, greatest = variances.min(), variances.max()
    if greatest - least <= _ROUNDING:  # two taps of equal weight: a difference on 3x3
        return f"on {size}x{size} has {least:.4g} at every scale"
    return f"reaches only {least:.4g} to {greatest:.4g}"


def _model_variance(
    operator: MasterKey, axis: Axis, sigma: NDArray[np.float64], boundary: Boundary, size: int
) -> NDArray[np.float64]:
    """Variance (n,) of the windowed model along one axis at scales (n,)."""
    model = axis_factor(operator, axis, sigma, boundary=boundary, size=size)
    window = axis_factor(operator, axis, 1.0, boundary=boundary, size=size)
    weights = np.abs(model * window)
    weights /= weights.sum(axis=1, keepdims=True)
    position = coordinates(size)
    return np.asarray(weights @ position**2 - (weights @ position) ** 2)


_SCALE: Mapping[str, Callable[[int, Axis, float, Boundary, int], float]] = {
    "A": _continuous_scale,
    "B": _discrete_scale,
}
