"""Fit the idealized models to the 8 learned keys: methods A, B, C and D.

Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK],
section 4. A and B match spreads (`mkf.spread_fit`), C and D take the nearest model
(`mkf.distance_fit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.distance_fit import DistanceFit, fit_sharpening
from mkf.errors import FitError, InputError, KeysError
from mkf.idealized import Boundary, check_shape, idealized_kernel
from mkf.keys import COUNT, MASTER_KEYS, SIZES, ScaleGroup, normalize_keys
from mkf.scale_descent import Norm
from mkf.spread_fit import SpreadFit

Method = Literal["A", "B", "C", "D"]
ScaleChoice = Literal["separate", "isotropic", "shared"]


@dataclass(frozen=True)
class Scales:
    """Scales of one key's model.

    Attributes
    ----------
    key : int
        Number of the key, 1-8.
    sigma_x, sigma_y : float
        In pixels.
    gamma : float or None
        Weight of key 7's Laplacian, in square pixels; None for the others.
    """

    key: int
    sigma_x: float
    sigma_y: float
    gamma: float | None = None


@dataclass(frozen=True, kw_only=True)
class KeyFit(Scales):
    """Fitted scales and how near the model comes to the normalized learned key.

    Attributes
    ----------
    l1 : float
        Sum of the absolute differences.
    l2 : float
        Root of the sum of the squared differences.
    """

    l1: float
    l2: float


class _Estimator(Protocol):
    def separate(
        self, members: Mapping[int, NDArray[np.float64]]
    ) -> Mapping[int, tuple[float, float]]: ...

    def pooled(self, groups: Sequence[Mapping[int, NDArray[np.float64]]]) -> list[float]: ...


def fit_keys(
    keys: ArrayLike,
    *,
    method: Method,
    scales: ScaleChoice = "separate",
    boundary: Boundary = "symmetric",
) -> list[KeyFit]:
    """Fit a model to each of the 8 learned keys [LBK, section 4].

    Parameters
    ----------
    keys : array_like, shape (8, k, k)
        The learned keys in their order, as published (not normalized), k odd from 3 to 31.
    method : {"A", "B", "C", "D"}
        A: spread, continuous theory. B: spread of the discrete model. C: least l1 distance.
        D: least l2 distance.
    scales : {"separate", "isotropic", "shared"}
        `separate`: sx and sy for each key (C1 and D1 of [LBK]). `isotropic`: sx = sy for each key
        (C2 and D2; for A and B, of which [LBK] has no such variant, the geometric mean of sx and
        sy). `shared`: one scale for keys 1-4 and 8 and one for keys 5 and 6.
    boundary : {"symmetric", "exact"}
        How differences end (`mkf.idealized.idealized_kernel`); [LBK] used `symmetric`.

    Returns
    -------
    list of KeyFit, length 8
        Key 1 first. Key 7 has one scale of its own in every variant, of least l2 distance for A, B
        and D and of least l1 distance for C. Its gamma under C is not the one that [LBK] prints,
        which does not minimize the distance (`mkf.distance_fit.fit_sharpening`).

    Raises
    ------
    KeysError
        If the keys are not 8 finite filters of odd size that can be normalized.
    FitError
        If a key has no answer under this method.
    InputError
        If an option is not one of those above.

    Examples
    --------
    >>> from mkf.fitting import fit_keys
    >>> from mkf.keys import load_keys
    >>> fit = fit_keys(load_keys(), method="B")[0]
    >>> f"{fit.sigma_x:.3f} {fit.sigma_y:.3f}"
    '0.644 0.583'
    """
    learned = _require_keys(keys)
    size = learned.shape[-1]
    _require_choice("method", method, get_args(Method))
    _require_choice("scales", scales, get_args(ScaleChoice))
    check_shape(boundary, size)

    normalized = dict(enumerate(normalize_keys(learned), start=1))
    separable = {key: h for key, h in normalized.items() if key != 7}
    estimator = _estimator(method, boundary)
    found: dict[int, Scales] = {}
    if scales == "separate":
        for key, (sigma_x, sigma_y) in estimator.separate(separable).items():
            found[key] = Scales(key, sigma_x, sigma_y)
    else:
        groups = [{key: separable[key] for key in members} for members in _groups(scales)]
        for members, sigma in zip(groups, estimator.pooled(groups), strict=True):
            found |= {key: Scales(key, sigma, sigma) for key in members}
    norm: Norm = "l1" if method == "C" else "l2"
    sigma, gamma = fit_sharpening(normalized[7], method=method, norm=norm, boundary=boundary)
    found[7] = Scales(7, sigma, sigma, gamma)
    return [_measure(found[key], normalized[key], boundary) for key in MASTER_KEYS]


def idealized_kernels(
    fits: Iterable[Scales], *, boundary: Boundary = "symmetric", size: int = 7
) -> NDArray[np.float64]:
    """The models at fitted scales, each of unit l2 norm.

    Parameters
    ----------
    fits : iterable of Scales
        Such as `fit_keys` returns.
    boundary : {"symmetric", "exact"}
        How differences end (`mkf.idealized.idealized_kernel`).
    size : int
        Odd, from 3 to 31; it need not be that of the learned keys.

    Returns
    -------
    ndarray of float64, shape (len(fits), size, size)
        In the order of `fits`, row 0 on top.

    Raises
    ------
    FitError
        If a model vanishes on this size.
    InputError
        If `boundary`, `size` or a scale cannot be used.
    """
    kernels = []
    for fit in fits:
        kernel = _model(fit, boundary, size)
        norm = np.linalg.norm(kernel)
        if not norm > 0:
            raise FitError(f"key {fit.key} vanishes on {size}x{size}; give finite, smaller scales")
        kernels.append(kernel / norm)
    return np.array(kernels).reshape(-1, size, size)


def _estimator(method: Method, boundary: Boundary) -> _Estimator:
    estimators: Mapping[Method, _Estimator] = {
        "A": SpreadFit("A", boundary),
        "B": SpreadFit("B", boundary),
        "C": DistanceFit("C", "l1", boundary),
        "D": DistanceFit("D", "l2", boundary),
    }
    return estimators[method]


def _groups(scales: ScaleChoice) -> list[list[int]]:
    """The keys that have one scale in common: keys 1-6 and 8, each alone or as their group says."""
    if scales == "isotropic":
        return [[key] for key in MASTER_KEYS if key != 7]
    shared = (ScaleGroup.G1, ScaleGroup.G2)
    return [[key for key, master in MASTER_KEYS.items() if master.group is g] for g in shared]


def _model(fit: Scales, boundary: Boundary, size: int) -> NDArray[np.float64]:
    return idealized_kernel(
        fit.key, fit.sigma_x, fit.sigma_y, fit.gamma, boundary=boundary, size=size
    )


def _measure(fit: Scales, h: NDArray[np.float64], boundary: Boundary) -> KeyFit:
    difference = _model(fit, boundary, h.shape[0]) - h
    return KeyFit(
        fit.key,
        fit.sigma_x,
        fit.sigma_y,
        fit.gamma,
        l1=float(np.abs(difference).sum()),
        l2=float(np.linalg.norm(difference)),
    )


def _require_keys(keys: ArrayLike) -> NDArray[np.float64]:
    try:
        # One by one, so that a key of another shape can be named.
        learned = [np.asarray(h, dtype=np.float64) for h in cast("Iterable[ArrayLike]", keys)]
    except (TypeError, ValueError) as error:
        raise KeysError(f"the keys are not numbers ({error}); give an array (8, k, k)") from error
    if len(learned) != COUNT:
        raise KeysError(f"there are {len(learned)} keys where {COUNT} are needed; give all of them")
    for key, h in enumerate(learned, start=1):
        shape = h.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] not in SIZES:
            raise KeysError(
                f"key {key} has shape {shape}; give a square of odd size from {SIZES[0]} to "
                f"{SIZES[-1]}"
            )
        if shape != learned[0].shape:
            raise KeysError(f"key {key} has shape {shape}, key 1 {learned[0].shape}; give one size")
        if not np.all(np.isfinite(h)):
            raise KeysError(f"key {key} holds a value that is not finite; replace it by a number")
    return np.stack(learned)


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; give one of {', '.join(choices)}")
