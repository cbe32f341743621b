from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
from scipy.optimize import differential_evolution

from mkf.errors import FitError, InputError, KeysError
from mkf.fitting import KeyFit, Method, ScaleChoice, Scales, fit_keys, idealized_kernels
from mkf.idealized import Boundary, idealized_kernel
from mkf.keys import load_keys, normalize, normalize_keys

KEYS = load_keys()
VARIANTS = list(itertools.product(get_args(Method), get_args(ScaleChoice), get_args(Boundary)))

# (sx, sy) of keys 1-6 and 8: the tables of Lindeberg, Babaiee, Kiasari (2026), section 4, and the
# values published with its code for the variants with one scale.
PUBLISHED: dict[tuple[Method, ScaleChoice], dict[int, tuple[float, float]]] = {
    ("A", "separate"): {
        1: (0.581, 0.558),
        2: (0.559, 0.580),
        3: (0.617, 0.601),
        4: (0.642, 0.424),
        5: (1.075, 0.800),
        6: (0.771, 1.003),
        8: (0.552, 0.545),
    },
    ("B", "separate"): {
        1: (0.644, 0.583),
        2: (0.586, 0.644),
        3: (0.690, 0.674),
        4: (0.756, 0.460),
        5: (1.107, 0.945),
        6: (0.900, 0.889),
        8: (0.609, 0.601),
    },
    ("C", "separate"): {
        1: (0.360, 0.510),
        2: (0.555, 0.453),
        3: (0.701, 0.655),
        4: (0.563, 0.384),
        5: (1.309, 0.875),
        6: (0.973, 1.171),
        8: (0.637, 0.587),
    },
    ("D", "separate"): {
        1: (0.491, 0.722),
        2: (0.581, 0.519),
        3: (0.483, 0.503),
        4: (0.501, 0.000),
        5: (1.300, 1.004),
        6: (0.984, 1.074),
        8: (0.616, 0.608),
    },
    ("C", "isotropic"): {
        key: (sigma, sigma)
        for key, sigma in zip(
            (1, 2, 3, 4, 5, 6, 8), (0.458, 0.448, 0.671, 0.420, 1.387, 1.090, 0.612), strict=True
        )
    },
    ("D", "isotropic"): {
        key: (sigma, sigma)
        for key, sigma in zip(
            (1, 2, 3, 4, 5, 6, 8), (0.644, 0.558, 0.495, 0.380, 1.193, 1.038, 0.612), strict=True
        )
    },
    ("C", "shared"): {
        **dict.fromkeys((1, 2, 3, 4, 8), (0.607, 0.607)),
        **dict.fromkeys((5, 6), (1.133, 1.133)),
    },
    ("D", "shared"): {
        **dict.fromkeys((1, 2, 3, 4, 8), (0.522, 0.522)),
        **dict.fromkeys((5, 6), (1.108, 1.108)),
    },
}


def scales_of(fits: list[KeyFit]) -> dict[int, tuple[float, float]]:
    return {fit.key: (fit.sigma_x, fit.sigma_y) for fit in fits}


@pytest.mark.parametrize(("method", "scales"), PUBLISHED)
def test_published_scales_are_met(method: Method, scales: ScaleChoice) -> None:
    found = scales_of(fit_keys(KEYS, method=method, scales=scales))
    for key, expected in PUBLISHED[method, scales].items():
        assert found[key] == pytest.approx(expected, abs=1e-3), f"key {key}"


@pytest.mark.parametrize(
    ("method", "scales"), list(itertools.product("ABD", get_args(ScaleChoice)))
)
def test_published_key_7_is_met(method: Method, scales: ScaleChoice) -> None:
    fit = fit_keys(KEYS, method=method, scales=scales)[6]
    assert fit.sigma_x == fit.sigma_y == pytest.approx(0.675, abs=1e-3)
    assert fit.gamma == pytest.approx(0.526, abs=1e-3)


def test_key_7_under_c_goes_by_the_definition_and_not_by_the_published_gamma() -> None:
    h = normalize(7, KEYS[6])
    fit = fit_keys(KEYS, method="C")[6]
    published = np.abs(idealized_kernel(7, 0.654, 0.654, 0.522) - h).sum()
    assert published == pytest.approx(0.642, abs=2e-3)
    assert fit.l1 == pytest.approx(0.600, abs=2e-3)
    assert fit.sigma_x == pytest.approx(0.658, abs=1e-3)
    assert fit.gamma == pytest.approx(0.498, abs=1e-3)


@pytest.mark.parametrize(("method", "scales", "boundary"), VARIANTS)
def test_every_variant_keeps_its_promises(
    method: Method, scales: ScaleChoice, boundary: Boundary
) -> None:
    fits = fit_keys(KEYS, method=method, scales=scales, boundary=boundary)
    assert [fit.key for fit in fits] == list(range(1, 9))
    for fit, h in zip(fits, normalize_keys(KEYS), strict=True):
        assert (fit.gamma is not None) == (fit.key == 7)
        model = idealized_kernel(fit.key, fit.sigma_x, fit.sigma_y, fit.gamma, boundary=boundary)
        assert fit.l1 == pytest.approx(np.abs(model - h).sum(), rel=1e-12)
        assert fit.l2 == pytest.approx(np.sqrt(((model - h) ** 2).sum()), rel=1e-12)
        if scales != "separate":
            assert fit.sigma_x == fit.sigma_y
    if scales == "shared":
        assert len({fits[key - 1].sigma_x for key in (1, 2, 3, 4, 8)}) == 1
        assert len({fits[key - 1].sigma_x for key in (5, 6)}) == 1
    again = fit_keys(KEYS, method=method, scales=scales, boundary=boundary)
    assert fits == again


@pytest.mark.parametrize("method", ["A", "B"])
def test_one_scale_by_spread_is_the_geometric_mean(method: Method) -> None:
    separate = scales_of(fit_keys(KEYS, method=method))
    isotropic = scales_of(fit_keys(KEYS, method=method, scales="isotropic"))
    shared = scales_of(fit_keys(KEYS, method=method, scales="shared"))
    for key in (1, 2, 3, 4, 5, 6, 8):
        assert isotropic[key][0] == pytest.approx(np.sqrt(np.prod(separate[key])))
    for group in ((1, 2, 3, 4, 8), (5, 6)):
        mean = np.exp(np.mean([np.log(separate[key]) for key in group]))
        assert shared[group[0]][0] == pytest.approx(mean)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("factor", [-1, 250.0])
def test_multiples_of_the_keys_are_fitted_alike(method: Method, factor: float) -> None:
    for fit, other in zip(
        fit_keys(KEYS, method=method), fit_keys(factor * KEYS, method=method), strict=True
    ):
        assert other.sigma_x == pytest.approx(fit.sigma_x, abs=1e-6)
        assert other.sigma_y == pytest.approx(fit.sigma_y, abs=1e-6)
        assert other.gamma == pytest.approx(fit.gamma, abs=1e-6)


def models(sigmas: np.ndarray, *, size: int, boundary: Boundary = "symmetric") -> np.ndarray:
    """Keys (8, size, size) that are models themselves, key 7 at (sx, sx, 0.4)."""
    return np.array(
        [
            idealized_kernel(
                key,
                sx,
                sx if key == 7 else sy,
                0.4 if key == 7 else None,
                size=size,
                boundary=boundary,
            )
            for key, (sx, sy) in enumerate(sigmas, start=1)
        ]
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["B", "C", "D"])
@pytest.mark.parametrize("boundary", get_args(Boundary))
def test_models_are_recovered(method: Method, boundary: Boundary, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sigmas = rng.uniform(0.2, 1.3, size=(8, 2))
    # Over 25 taps nothing is cropped, so that a model is its own normalized key.
    keys = models(sigmas, size=25, boundary=boundary) * rng.choice([-3.0, 0.5], size=(8, 1, 1))
    for fit in fit_keys(keys, method=method, boundary=boundary):
        sx, sy = sigmas[fit.key - 1]
        assert fit.sigma_x == pytest.approx(sx, abs=1e-6), f"key {fit.key}"
        if fit.key == 7:
            assert fit.gamma == pytest.approx(0.4, abs=1e-6)
        else:
            assert fit.sigma_y == pytest.approx(sy, abs=1e-6), f"key {fit.key}"


def test_spread_recovers_models_on_seven_taps() -> None:
    sigmas = np.random.default_rng(8).uniform(0.2, 2.5, size=(8, 2))
    for fit in fit_keys(-2 * models(sigmas, size=7), method="B")[:6]:
        assert (fit.sigma_x, fit.sigma_y) == pytest.approx(tuple(sigmas[fit.key - 1]), abs=1e-6)


def distance(model: np.ndarray, h: np.ndarray, method: Method) -> float:
    difference = model - h
    return float(np.abs(difference).sum() if method == "C" else np.linalg.norm(difference))


def evolved(cost: Any, bounds: list[tuple[float, float]]) -> float:
    return min(
        differential_evolution(cost, bounds, seed=seed, popsize=12, maxiter=40, polish=False).fun
        for seed in (0, 1)
    )


def perturbed(seed: int) -> np.ndarray:
    """The published keys (seed 0), and keys with noise."""
    noise = (0, 0.03, 0.06)[seed]
    return KEYS + np.random.default_rng(seed).normal(0, 1, KEYS.shape) * noise


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["C", "D"])
def test_distances_are_globally_least(method: Method, seed: int) -> None:
    keys = perturbed(seed)
    for fit, h in zip(fit_keys(keys, method=method), normalize_keys(keys), strict=True):
        own = fit.l1 if method == "C" else fit.l2

        def cost(p: Any, key: int = fit.key, h: np.ndarray = h) -> float:
            if key == 7:
                return distance(idealized_kernel(7, p[0], p[0], p[1]), h, method)
            return distance(idealized_kernel(key, p[0], p[1]), h, method)

        bounds = [(0.0, 4.0), (-1.0, 3.0) if fit.key == 7 else (0.0, 4.0)]
        assert own <= evolved(cost, bounds) + 1e-6, f"key {fit.key}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["C", "D"])
@pytest.mark.parametrize("scales", ["isotropic", "shared"])
def test_pooled_distances_are_globally_least(
    method: Method, scales: ScaleChoice, seed: int
) -> None:
    keys = perturbed(seed)
    normalized = normalize_keys(keys)
    found = scales_of(fit_keys(keys, method=method, scales=scales))
    shared = [(1, 2, 3, 4, 8), (5, 6)]
    groups = shared if scales == "shared" else [(key,) for key in (1, 2, 3, 4, 5, 6, 8)]
    power = 1 if method == "C" else 2
    for group in groups:

        def cost(sigma: float, group: tuple[int, ...] = group) -> float:
            return sum(
                distance(idealized_kernel(key, sigma, sigma), normalized[key - 1], method) ** power
                for key in group
            )

        own = cost(found[group[0]][0])
        assert own <= min(map(cost, np.linspace(0, 5, 801))) + 1e-12, f"keys {group}"


def test_fits_accept_other_sizes() -> None:
    for size in (3, 31):
        keys = models(np.full((8, 2), 0.6), size=size)
        assert len(fit_keys(keys, method="D")) == 8


def replaced(key: int, h: Any) -> np.ndarray:
    keys = KEYS.copy()
    keys[key - 1] = h
    return keys


def test_spreads_that_no_model_has_are_refused() -> None:
    # All weight in two far columns: wider than any d0 T over 7 taps.
    wide = np.tile([-1.0, 0, 0, 0, 0, 0, 1], (7, 1))
    with pytest.raises(FitError, match="key 5, method B: its variance along x is 9"):
        fit_keys(replaced(5, wide), method="B")
    # One pixel: narrower than the difference of an impulse.
    narrow = np.zeros((7, 7))
    narrow[3, 2] = 1
    with pytest.raises(FitError, match=r"key 4, method B.*use method A, C or D"):
        fit_keys(replaced(4, narrow), method="B")


@pytest.mark.parametrize("method", ["C", "D"])
def test_distances_that_fall_on_for_ever_are_refused(method: Method) -> None:
    corner = np.zeros((7, 7))
    corner[0, :2] = 1, -1
    with pytest.raises(FitError, match=f"key 2, method {method}.*no scale is best"):
        fit_keys(replaced(2, corner), method=method)


def test_keys_off_their_window_are_refused() -> None:
    # d- T on 7 taps ends with a column of zeros, and so does its window.
    edge = np.zeros((7, 7))
    edge[2:5, 0] = 1
    with pytest.raises(FitError, match="key 2, method A: the filter is zero wherever"):
        fit_keys(replaced(2, edge), method="A")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (KEYS[:7], "7 keys where 8 are needed"),
        (KEYS[:, :6], r"key 1 has shape \(6, 7\)"),
        (KEYS[:, :6, :6], r"key 1 has shape \(6, 6\)"),
        ([["a"]], "not numbers"),
        (replaced(3, np.nan), "key 3 holds a value that is not finite"),
        (replaced(6, 0.5), "key 6 is constant"),
        (replaced(8, 0), "key 8 is constant"),
    ],
)
def test_unusable_keys_are_refused(keys: Any, message: str) -> None:
    with pytest.raises(KeysError, match=message):
        fit_keys(keys, method="B")


@pytest.mark.parametrize("options", [{"method": "E"}, {"scales": "both"}, {"boundary": "wrapped"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give one of"):
        fit_keys(KEYS, **({"method": "B"} | options))


@pytest.mark.parametrize("size", [3, 7, 31])
@pytest.mark.parametrize("boundary", get_args(Boundary))
def test_kernels_have_unit_norm(boundary: Boundary, size: int) -> None:
    fits = fit_keys(KEYS, method="B", boundary=boundary)
    made = idealized_kernels(fits, boundary=boundary, size=size)
    assert made.shape == (8, size, size)
    np.testing.assert_allclose(np.linalg.norm(made, axis=(1, 2)), 1)
    for fit, kernel in zip(fits, made, strict=True):
        model = idealized_kernel(
            fit.key, fit.sigma_x, fit.sigma_y, fit.gamma, boundary=boundary, size=size
        )
        np.testing.assert_allclose(kernel * np.linalg.norm(model), model, atol=1e-15)


def test_kernels_of_chosen_scales() -> None:
    made = idealized_kernels([Scales(8, 0, 0), Scales(7, 1, 1, 0.0)], size=3)
    impulse = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(made, [impulse, impulse])
    with pytest.raises(InputError, match="size is 4"):
        idealized_kernels([Scales(8, 1, 1)], size=4)
