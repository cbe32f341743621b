"""One axis of the models on one grid: values and derivatives at any scale, tables over all scales.

A model is a product of one factor along x and one along y, `T` smoothed or differenced. In the
variance s = sigma^2 the factors are smooth, down to s = 0 too, and their derivatives are exact:
`dT/ds = (T(n-1) - 2 T(n) + T(n+1)) / 2` (Lindeberg, IEEE PAMI 12(3), 1990).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from mkf.idealized import DIFFERENCE, Boundary
from mkf.keys import MasterKey, Operator
from mkf.scale_space import SIGMA_MAX, gaussian

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEPS = 512
"""Steps of the tables, even in u = sigma / (1 + sigma) from sigma = 0 to `SIGMA_MAX`."""

_OPERATORS = list(Operator)


def operator_along(key: MasterKey, axis: str) -> int:
    """The operator of a key along an axis, as factors are counted."""
    return _OPERATORS.index(key.operator if axis == key.axis else Operator.SMOOTH)


SMOOTH = _OPERATORS.index(Operator.SMOOTH)
SECOND_DIFFERENCE = _OPERATORS.index(Operator.SHARPEN)


@dataclass(frozen=True, eq=False)
class ModelGrid:
    """Factors over `size` taps; by increasing coordinate, to the right for x and up for y.

    Attributes
    ----------
    size : int
        Taps, k.
    sigma : (STEPS + 1,) float64
        The scales of the tables, in pixels.
    table : (operators, STEPS + 1, k) float64
        Factors at those scales.
    mass, steepness : (operators, STEPS + 1) float64
        l1 norms of the factors and of their derivatives in u.
    """

    size: int
    sigma: Floats
    table: Floats
    mass: Floats
    steepness: Floats
    _matrices: Floats  # (operators, taps, 3 k): from T(0..taps - 1) to factors and derivatives

    def factors(self, operators: Ints, s: Floats) -> Floats:
        """Factors and their first two derivatives in s: (..., 3, k) at variances s (...)."""
        taps = gaussian(np.arange(self._matrices.shape[1]), np.sqrt(s)[..., None])
        values = taps[..., None, :] @ self._matrices[operators]
        return np.asarray(values.reshape(*s.shape, 3, self.size))

    def greatest_within(self, steps: int) -> tuple[Floats, Floats]:
        """`mass` and `steepness`, the greatest within so many steps on either side."""
        mass, steepness = (
            maximum_filter1d(each, 2 * steps + 1, mode="nearest")
            for each in (self.mass, self.steepness)
        )
        return mass, steepness


@lru_cache(maxsize=32)
def model_grid(size: int, boundary: Boundary) -> ModelGrid:
    """The factors on grids of `size` taps; differences end as `mkf.idealized` says."""
    reach = size // 2 + 3  # one tap more for the difference, and one for each derivative
    half = np.eye(reach + 1)
    taps = np.concatenate([half[:, :0:-1], half], axis=1)  # (reach + 1, 2 reach + 1): T is even
    flows = [taps]
    for _ in range(2):
        flows.append(DIFFERENCE[Operator.SHARPEN](flows[-1]) / 2)
    # What the crop leaves is free of the ends of `taps`; one tap stays where it is differenced.
    margin = 1 if boundary == "exact" else 0
    edge = reach - size // 2 - margin
    cropped = np.stack(flows, axis=1)[:, :, edge : 2 * reach + 1 - edge]
    matrices = np.array(
        [DIFFERENCE[each](cropped)[:, :, margin : margin + size] for each in _OPERATORS]
    ).reshape(len(_OPERATORS), reach + 1, 3 * size)

    u = np.linspace(0, SIGMA_MAX / (1 + SIGMA_MAX), STEPS + 1)
    sigma = u / (1 - u)
    values = (gaussian(np.arange(reach + 1), sigma[:, None]) @ matrices).reshape(
        len(_OPERATORS), STEPS + 1, 3, size
    )
    slope = np.abs(values[:, :, 1]).sum(axis=-1) * 2 * sigma * (1 + sigma) ** 2
    mass = np.abs(values[:, :, 0]).sum(axis=-1)
    return ModelGrid(size, sigma, np.ascontiguousarray(values[:, :, 0]), mass, slope, matrices)
