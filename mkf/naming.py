"""Which of the 8 operators a found key is: the idealized model of greatest cosine to it.

A found key is known up to a factor and an offset, as a filter's a f + b is. So it is compared to
each model of `mkf.keys.MASTER_KEYS` by the cosine of the two with their means taken away, greatest
over the model's scales: the least l2 distance [LBK, section 4, D] where factor and offset are free.

[LBK]: Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mkf.idealized import Boundary, axis_factor, laplacian_of_gaussian, unit_impulse
from mkf.keys import COUNT, MASTER_KEYS, Operator, master_key
from mkf.scale_space import SIGMA_MAX

Floats = NDArray[np.float64]

_GAMMA_MAX = 100.0  # square pixels
_NODES, _LATTICES = 65, 8  # the last is spaced 4e-11 of the first one's width


def least_cosine(size: int) -> float:
    """The cosine from which on an operator is said to fit a k x k key well: 0.8; 0.9 for 3x3.

    The published keys reach 0.848 (key 1) to 0.998 (key 7) with their own operators. Of 60 random
    filters, the best of 8 operators with free scales reached 0.8 for no 5x5 one, but for 18 % of
    the 3x3 ones, and 0.9 for 2 % of them: on 3x3, 8 numbers are all that is left of a shape.
    """
    return 0.9 if size == 3 else 0.8


@dataclass(frozen=True)
class Name:
    """One operator beside one found key.

    Attributes
    ----------
    key : int
        The operator, by the number of its master key, 1-8.
    cosine : float
        Between the found key and the model at these scales, both of zero mean: 0..1.
    sigma_x, sigma_y : float
        In pixels.
    gamma : float or None
        Of key 7, in square pixels.
    sign : int
        1 or -1: the factor of the found key that turns it toward the model.
    well : bool
        Whether the operator fits the key well: `least_cosine`.
    """

    key: int
    cosine: float
    sigma_x: float
    sigma_y: float
    gamma: float | None
    sign: int
    well: bool

    @property
    def operator(self) -> str:
        """As a formula."""
        master = master_key(self.key)
        return f"{master.operator.value} in {master.axis}" if master.axis else master.operator.value


def name_key(kernel: Floats, *, boundary: Boundary = "symmetric") -> list[Name]:
    """Each of the 8 operators beside a found key (k, k), not constant: key 1 first."""
    centered = kernel - kernel.mean()
    centered = centered / np.linalg.norm(centered)
    return [
        _sharpening(key, centered, boundary)
        if master.operator is Operator.SHARPEN
        else _separable(key, centered, boundary)
        for key, master in MASTER_KEYS.items()
    ]


def best(names: Sequence[Name]) -> Name:
    """The one of greatest cosine."""
    return max(names, key=lambda name: name.cosine)


def one_to_one(names: Sequence[Sequence[Name]]) -> list[int]:
    """Which of 8 found keys stands for key 1, 2, ...: the greatest sum of cosines [Hungarian].

    Parameters
    ----------
    names
        `name_key` of each of the 8.

    Returns
    -------
    list of int
        For key 1 first, the index of the found key.
    """
    cosines = np.array([[name.cosine for name in one] for one in names])  # (found, 8)
    found, operators = linear_sum_assignment(cosines, maximize=True)
    index = dict(zip(operators.tolist(), found.tolist(), strict=True))
    return [index[operator] for operator in range(COUNT)]


def _separable(key: int, h: Floats, boundary: Boundary) -> Name:
    """The best scales of keys 1-6 and 8."""
    master, size = MASTER_KEYS[key], len(h)

    def cosines(sigma_x: Floats, sigma_y: Floats) -> Floats:
        """Signed, of each of (nx,) scales with each of (ny,): (nx, ny)."""
        along_x = axis_factor(master, "x", sigma_x, boundary=boundary, size=size)
        along_y = axis_factor(master, "y", sigma_y, boundary=boundary, size=size)
        products = along_x @ h[::-1].T @ along_y.T  # y is up, and rows go down
        # The norm of an outer product without its mean, from its factors alone.
        squares = np.outer(np.sum(along_x**2, axis=1), np.sum(along_y**2, axis=1))
        sums = np.outer(along_x.sum(axis=1), along_y.sum(axis=1))
        norms = np.sqrt(np.maximum(squares - (sums / size) ** 2, 0))
        # A model that is next to constant has no direction that its rounding would leave.
        clear = norms > 1e-6 * np.sqrt(squares)
        return np.asarray(np.divide(products, norms, out=np.zeros_like(products), where=clear))

    sigma_x, sigma_y = _best_scales(cosines, 2)
    cosine = float(cosines(np.array([sigma_x]), np.array([sigma_y]))[0, 0])
    return _named(key, size, cosine, sigma_x, sigma_y, None)


def _sharpening(key: int, h: Floats, boundary: Boundary) -> Name:
    """The best scale and gamma of key 7, 0 <= gamma <= 100; the best gamma at a scale is exact.

    Below 0 the model would be a Gaussian of small scale, key 8; far above, a Laplacian alone.
    """
    size = len(h)
    impulse = unit_impulse(size) - 1 / size**2
    impulse_square, impulse_product = np.sum(impulse**2), np.sum(impulse * h)

    def solved(sigma: Floats) -> tuple[Floats, Floats]:
        """Signed cosines and gammas (n,) at scales (n,)."""
        curves = -laplacian_of_gaussian(sigma, boundary=boundary, size=size)
        curves = curves - curves.mean(axis=(1, 2), keepdims=True)
        squares = np.einsum("nij,nij->n", curves, curves)
        mixed = np.einsum("nij,ij->n", curves, impulse)
        products = np.einsum("nij,ij->n", curves, h)
        # Of impulse + gamma curve, the cosine's only stationary point, and the ends.
        above = impulse_square * products - mixed * impulse_product
        below = squares * impulse_product - mixed * products
        inner = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
        gammas = np.stack([np.clip(inner, 0, _GAMMA_MAX), 0 * inner, 0 * inner + _GAMMA_MAX])
        norms = np.sqrt(impulse_square + 2 * gammas * mixed + gammas**2 * squares)
        cosines = (impulse_product + gammas * products) / norms  # (3, n)
        best = np.abs(cosines).argmax(axis=0), np.arange(len(sigma))
        return cosines[best], gammas[best]

    (sigma,) = _best_scales(lambda sigma: solved(sigma)[0], 1)
    cosine, gamma = solved(np.array([sigma]))
    return _named(key, size, float(cosine[0]), sigma, sigma, float(gamma[0]))


def _best_scales(cosines: Callable[..., Floats], dimensions: int) -> list[float]:
    """Scales of greatest |cosine|: on a lattice over all, then on finer ones around its best node.

    Lattices are even in u = sigma / (1 + sigma), as in `mkf.model_grid`. Cosines are smooth, so
    that one start is enough where a norm with kinks takes many.
    """
    low, high = np.zeros(dimensions), np.full(dimensions, SIGMA_MAX / (1 + SIGMA_MAX))
    for _ in range(_LATTICES):
        axes = np.linspace(low, high, _NODES, axis=1)  # (dimensions, nodes)
        scales = axes / (1 - axes)
        place = np.unravel_index(np.abs(cosines(*scales)).argmax(), (_NODES,) * dimensions)
        best = axes[np.arange(dimensions), place]
        reach = 2 * (high - low) / (_NODES - 1)
        low, high = np.maximum(best - reach, low), np.minimum(best + reach, high)
    return [float(scale) for scale in best / (1 - best)]


def _named(
    key: int, size: int, cosine: float, sigma_x: float, sigma_y: float, gamma: float | None
) -> Name:
    length = min(abs(cosine), 1.0)
    sign = -1 if cosine < 0 else 1
    return Name(key, length, sigma_x, sigma_y, gamma, sign, length >= least_cosine(size))
