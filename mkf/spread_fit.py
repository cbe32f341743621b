"""Methods A and B: the scales at which the model is as wide as the learned key.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
section 4. Width is the covariance under the weights `|h| * w`, with the window `w` the absolute
values of the same key's model at sx = sy = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mkf.errors import FitError, InputError
from mkf.idealized import Boundary, idealized_kernel
from mkf.keys import master_key
from mkf.model_grid import Floats, ModelGrid, model_grid, operator_along
from mkf.spread import coordinates, spread

Axis = Literal["x", "y"]

_STEPS = 100
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

    def separate(
        self, members: Mapping[int, NDArray[np.float64]]
    ) -> dict[int, tuple[float, float]]:
        """Scales (sx, sy) of each key (k, k), normalized.

        Raises
        ------
        FitError
            If a key has no spread, or one that its model never has (B).
        """
        sides: list[tuple[int, Axis]] = [(key, axis) for key in members for axis in ("x", "y")]
        variances = np.array([self._variances(key, h) for key, h in members.items()]).ravel()
        if self.method == "A":
            scales = _continuous_scales(sides, variances)
        else:
            size = next(iter(members.values())).shape[0]
            scales = _discrete_scales(sides, variances, model_grid(size, self.boundary))
        return {
            key: (float(sx), float(sy))
            for key, (sx, sy) in zip(members, scales.reshape(-1, 2), strict=True)
        }

    def pooled(self, groups: Sequence[Mapping[int, NDArray[np.float64]]]) -> list[float]:
        """One scale for all members (key -> normalized filter (k, k)) of each group.

        The geometric mean of all their sx and sy: what [LBK] does for shared scales. For one scale
        a key (sx = sy), of which [LBK] has no variant in A and B, it is the same mean over one
        member. Raises FitError as `separate` does.
        """
        scales = self.separate({key: h for members in groups for key, h in members.items()})
        found = (np.array([scales[key] for key in members]) for members in groups)
        return [float(np.prod(each) ** (1 / each.size)) for each in found]

    def _variances(self, key: int, h: NDArray[np.float64]) -> tuple[float, float]:
        """Variances of a key along x and y under its window."""
        window = np.abs(idealized_kernel(key, 1, 1, boundary=self.boundary, size=h.shape[0]))
        try:
            covariance = spread(h, window=window).covariance
        except InputError as error:
            raise FitError(
                f"key {key}, method {self.method}: the filter is zero wherever its model is not, "
                "so its spread says nothing; check the order of the keys, or use method D"
            ) from error
        return float(covariance[0, 0]), float(covariance[1, 1])


def _continuous_scales(sides: Sequence[tuple[int, Axis]], variances: Floats) -> Floats:
    """Method A: sqrt(2 V) along a smoothed axis, sqrt(2 V / 3) along a differentiated one.

    A Gaussian times a window of equal width has half its variance; a first derivative of a Gaussian
    times its like, three halves.
    """
    parts = [3 if master_key(key).axis == axis else 1 for key, axis in sides]
    return np.asarray(np.sqrt(2 * variances / np.array(parts)))


def _discrete_scales(
    sides: Sequence[tuple[int, Axis]], variances: Floats, grid: ModelGrid
) -> Floats:
    """Method B: the sigma at which the model has these variances (n,) along these axes.

    The model and its window are separable, so the scale of the other axis (1 in [LBK]) drops out.
    Of several such sigma the least: the first step of the table over which the model's variance
    passes it, in which Newton's method, kept within what brackets the root, goes on.
    """
    operators = np.array([operator_along(master_key(key), axis) for key, axis in sides])
    different, which = np.unique(operators, return_inverse=True)
    table = grid.table[different][:, :, None]  # (different, nodes, 1, k)
    widths, _ = _variances(table, grid.factors(different, np.ones(len(different)))[:, None, :1])
    excess = widths[which] - variances[:, None]  # (n, nodes)
    at_zero = np.abs(excess[:, 0]) <= _ROUNDING
    passed = np.sign(excess[:, :-1]) != np.sign(excess[:, 1:])
    for (key, axis), variance, found, width in zip(
        sides, variances, at_zero | passed.any(axis=1), widths[which], strict=True
    ):
        if not found:
            raise FitError(
                f"key {key}, method B: its variance along {axis} is {variance:.4g} square pixels "
                f"and its model {_reach(width, grid.size)}; use method A, C or D for these keys"
            )
    step, n = passed.argmax(axis=1), np.arange(len(sides))
    low, high = grid.sigma[step] ** 2, grid.sigma[step + 1] ** 2
    rising = excess[n, step + 1] > excess[n, step]
    s = (low + high) / 2
    windows = grid.factors(operators, np.ones(len(sides)))[:, :1]
    for _ in range(_STEPS):
        width, slope = _variances(grid.factors(operators, s)[:, :2], windows)
        above = (width > variances) == rising
        low, high = np.where(above, low, s), np.where(above, s, high)
        newton = s - (width - variances) / np.where(slope == 0, np.inf, slope)
        ahead = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        moved, s = np.abs(ahead - s), ahead
        if np.all((moved <= _ROUNDING * (s + _ROUNDING)) | at_zero):
            break
    return np.where(at_zero, 0.0, np.sqrt(s))


def _variances(factors: Floats, models: Floats) -> tuple[Floats, Floats]:
    """Variances (...) of factors (..., 1, k) under the windows |models|, and how fast they grow.

    With the derivatives of the factors in some parameter, (..., 2, k) in all; else 0.
    """
    weights = factors * np.abs(models) * np.sign(factors[..., :1, :])
    x = coordinates(factors.shape[-1])
    sums = weights @ np.stack([np.ones_like(x), x, x**2], axis=1)  # (..., 1 or 2, 3)
    mass, mean, square = np.moveaxis(sums[..., 0, :], -1, 0)
    mean, square = mean / mass, square / mass
    in_mass, in_mean, in_square = np.moveaxis(sums[..., -1, :] / mass[..., None], -1, 0)
    slope = in_square - square * in_mass - 2 * mean * (in_mean - mean * in_mass)
    return np.asarray(square - mean**2), np.asarray(slope)


def _reach(variances: NDArray[np.float64], size: int) -> str:
    """What variances a model has over all scales, in words."""
    least, greatest = variances.min(), variances.max()
    if greatest - least <= _ROUNDING:  # two taps of equal weight: a difference on 3x3
        return f"on {size}x{size} has {least:.4g} at every scale"
    return f"reaches only {least:.4g} to {greatest:.4g}"
