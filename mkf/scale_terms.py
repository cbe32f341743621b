"""The models of the keys as smooth functions of their scales, for thousands of filters at once.

A term of a filter is the model of one key [LBK, section 4] at scales of the filter's own. Here a
scale is its position q = s / (1 + s) in 0..1, with s = sigma^2: T is smooth in s down to s = 0,
where it is the impulse, and its shape settles as s grows, so that q moves it about evenly. Of T the
derivative is exact, `dT/ds = (T(n-1) - 2 T(n) + T(n+1)) / 2` [L90].

References
----------
.. [L90] Lindeberg, "Scale-space for discrete signals", IEEE PAMI 12(3), 1990.
.. [LBK] Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.idealized import DIFFERENCE, Boundary, check_shape
from mkf.keys import MASTER_KEYS, Operator
from mkf.scale_space import SIGMA_MAX, gaussian

Floats = NDArray[np.float64]

SHARPEN_KEY = 7
POSITION_MAX = SIGMA_MAX**2 / (1 + SIGMA_MAX**2)
_OPERATORS = list(Operator)
_SHARPEN = _OPERATORS.index(Operator.SHARPEN)
_SMOOTH = _OPERATORS.index(Operator.SMOOTH)


def _axis_operators(axis: str) -> NDArray[np.int64]:
    """The operator along one axis of each key, (9,), counted as in `Operator`; key 0 is no key."""
    found = [
        _OPERATORS.index(master.operator if master.axis == axis else Operator.SMOOTH)
        for master in MASTER_KEYS.values()
    ]
    return np.array([_SMOOTH, *found])


OPERATOR_X, OPERATOR_Y = _axis_operators("x"), _axis_operators("y")


def to_position(sigma: ArrayLike) -> Floats:
    """Positions q of scales in pixels, of any shape."""
    s = np.asarray(sigma, dtype=np.float64) ** 2
    return np.asarray(s / (1 + s))


def to_sigma(position: ArrayLike) -> Floats:
    """Scales in pixels of positions q, of any shape."""
    q = np.asarray(position, dtype=np.float64)
    return np.asarray(np.sqrt(q / (1 - q)))


@dataclass(frozen=True, eq=False)
class TermModels:
    """The models on one grid; arguments and results are vectors over filters.

    Attributes
    ----------
    size : int
        Pixels an edge, k.
    value, slope : (operators, k, taps) float64
        From T(0..taps - 1) to T differenced along an axis, by increasing coordinate, and to its
        derivative in s.
    """

    size: int
    value: Floats
    slope: Floats

    @classmethod
    def on_grid(cls, size: int, boundary: Boundary) -> TermModels:
        """The models of `mkf.idealized.idealized_kernel` on k x k pixels.

        Raises
        ------
        InputError
            `boundary` or `size` is not one that kernels can have.
        """
        check_shape(boundary, size)
        reach = size // 2 + 1
        # T is even: each tap -reach..reach reads the half n >= 0.
        n = np.arange(-reach, reach + 1)
        unfold = np.abs(n)[:, None] == np.arange(reach + 2)  # (2 reach + 1, reach + 2)
        differenced = []
        for operator in _OPERATORS:
            if boundary == "exact":
                matrix = DIFFERENCE[operator](np.eye(len(n)), axis=0)[1:-1]
            else:
                matrix = np.pad(DIFFERENCE[operator](np.eye(size), axis=0), ((0, 0), (1, 1)))
            differenced.append(matrix)
        half = np.arange(reach + 1)[:, None]  # dT/ds = diffusion @ T
        taps = np.arange(reach + 2)
        diffusion = (
            (np.abs(half - 1) == taps) * 0.5 - (half == taps) * 1.0 + (half + 1 == taps) * 0.5
        )
        diffusion = np.vstack([diffusion, np.zeros(reach + 2)])
        value = np.array(differenced) @ unfold
        return cls(size, value, value @ diffusion)

    def factors(self, operator: NDArray[np.int64], position: Floats) -> tuple[Floats, Floats]:
        """One axis of the models at positions (n,): values and derivatives in q, (n, k) each."""
        q = position
        taps = gaussian(np.arange(self.value.shape[-1]), to_sigma(q)[:, None])  # (n, taps)
        values = np.empty((len(q), self.size))
        slopes = np.empty((len(q), self.size))
        for kind in np.unique(operator):
            chosen = operator == kind
            values[chosen] = taps[chosen] @ self.value[kind].T
            slopes[chosen] = taps[chosen] @ self.slope[kind].T
        return values, slopes / (1 - q[:, None]) ** 2  # ds/dq = 1 / (1 - q)^2

    def columns(
        self, keys: NDArray[np.int64], x: Floats, y: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Models of keys (n,) at positions x, y (n,), and their derivatives in x and in y.

        Of key 7 it is the Laplacian alone, whose weight the impulse beside it leaves free; its
        scale is `x`, and its derivative in y is 0. Key 0, no key, has a model of zeros.

        Returns
        -------
        three ndarrays of float64, (n, k k)
            Rows from the top, as filters are stored.
        """
        fx, dx = self.factors(OPERATOR_X[keys], x)
        fy, dy = self.factors(OPERATOR_Y[keys], y)
        model, in_x, in_y = _outer(fx, fy), _outer(dx, fy), _outer(fx, dy)
        sharpen = keys == SHARPEN_KEY
        if sharpen.any():
            q = x[sharpen]
            smooth, smooth_slope = self.factors(np.full(len(q), _SMOOTH), q)
            curved, curved_slope = self.factors(np.full(len(q), _SHARPEN), q)
            model[sharpen] = _outer(curved, smooth) + _outer(smooth, curved)
            in_x[sharpen] = (
                _outer(curved_slope, smooth)
                + _outer(curved, smooth_slope)
                + _outer(smooth_slope, curved)
                + _outer(smooth, curved_slope)
            )
            in_y[sharpen] = 0
        model[keys == 0] = in_x[keys == 0] = in_y[keys == 0] = 0
        return model, in_x, in_y


def _outer(along_x: Floats, along_y: Floats) -> Floats:
    """(n, k) twice, by increasing x and y (upward) -> (n, k k) with row 0 on top."""
    n, size = along_x.shape
    return np.asarray((along_y[:, ::-1, None] * along_x[:, None, :]).reshape(n, size * size))
