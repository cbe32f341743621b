"""What must hold for any scale, key, size and noise, whatever the numbers are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyscsp.discscsp import deltafcn, discgaussconv, filtermean, make1Ddiscgaussfilter, variance

from mkf.assignment import assign
from mkf.errors import FitError, KeysError
from mkf.fitting import KeyFit, Method, ScaleChoice, Scales, fit_keys, idealized_kernels
from mkf.idealized import Boundary, idealized_kernel
from mkf.keys import SIZES, load_keys, master_key, normalize, offset
from mkf.scale_space import gaussian
from mkf.spread import spread

settings.register_profile("mkf", deadline=None, derandomize=True, database=None)
settings.load_profile("mkf")

KEYS = load_keys()
METHODS, CHOICES, BOUNDARIES = get_args(Method), get_args(ScaleChoice), get_args(Boundary)


def grid(sigma: float) -> np.ndarray:
    """Positions beyond which T(.; sigma^2) is below 1e-16."""
    reach = int(9 * sigma + 20)
    return np.arange(-reach, reach + 1)


# The discrete Gaussian


@given(st.floats(0, 100))
def test_gaussian_sums_to_one_and_has_its_variance(sigma: float) -> None:
    n = grid(sigma)
    T = gaussian(n, sigma)
    assert T.sum() == pytest.approx(1, abs=1e-13)
    assert T @ n**2 == pytest.approx(sigma**2, rel=1e-12, abs=1e-13)


@given(st.floats(0, 40), st.floats(0, 40))
def test_smoothing_twice_adds_the_variances(first: float, second: float) -> None:
    both = float(np.hypot(first, second))
    n = grid(both)
    twice = np.convolve(gaussian(n, first), gaussian(n, second), mode="same")
    np.testing.assert_allclose(twice, gaussian(n, both), rtol=0, atol=1e-14)


def test_gaussian_of_the_least_and_the_greatest_scale() -> None:
    np.testing.assert_array_equal(gaussian(grid(0), 0), grid(0) == 0)
    n = grid(100)
    T = gaussian(n, 100)
    assert T.sum() == pytest.approx(1, abs=1e-13)
    assert T @ n**2 == pytest.approx(1e4, rel=1e-12)
    # So wide that it is nearly the Gaussian that is sampled: T = g (1 + O(1 / s)).
    sampled = np.exp(-(n**2) / 2e4) / np.sqrt(2e4 * np.pi)
    np.testing.assert_allclose(T, sampled, atol=1e-4 * T.max())


@given(st.floats(0, 100))
def test_gaussian_agrees_with_pyscsp(sigma: float) -> None:
    # pyscsp cuts the kernel off where 1e-15 of it is left, and does not renormalize: like ours.
    theirs = make1Ddiscgaussfilter(sigma, epsilon=1e-15)
    reach = len(theirs) // 2
    np.testing.assert_allclose(gaussian(np.arange(-reach, reach + 1), sigma), theirs, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.5])
def test_key_8_is_what_pyscsp_makes_of_an_impulse(sigma: float) -> None:
    theirs = discgaussconv(deltafcn(91, 91), sigma, epsilon=1e-15)[30:61, 30:61]
    whole = theirs > 0  # what it has not cut off
    ours = idealized_kernel(8, sigma, sigma, size=31)
    np.testing.assert_allclose(ours[whole], theirs[whole], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[~whole], 0, atol=1e-10)


# Spreads


@pytest.mark.parametrize("key", range(1, 9))
def test_spread_of_a_published_key_agrees_with_pyscsp(key: int) -> None:
    h = KEYS[key - 1]
    found = spread(h)
    np.testing.assert_allclose(found.mean, filtermean(np.abs(h)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, variance(np.abs(h)), rtol=0, atol=1e-12)


@given(
    st.sampled_from(SIZES), st.integers(1, 8), st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 2)
)
def test_spread_of_a_kernel_agrees_with_pyscsp(
    size: int, key: int, sx: float, sy: float, gamma: float
) -> None:
    h = idealized_kernel(key, sx, *((sx, gamma) if key == 7 else (sy,)), size=size)
    found = spread(h)
    np.testing.assert_allclose(found.mean, filtermean(np.abs(h)), rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.covariance, variance(np.abs(h)), rtol=0, atol=1e-11)


# What fits must not depend on

variants = st.tuples(
    st.sampled_from(METHODS), st.sampled_from(CHOICES), st.sampled_from(BOUNDARIES)
)
factors = st.lists(
    st.tuples(st.sampled_from([-1, 1]), st.floats(1e-3, 1e3)).map(np.prod), min_size=8, max_size=8
)


def assert_alike(fits: list[KeyFit], expected: list[tuple[float, float, float | None]]) -> None:
    for fit, (sigma_x, sigma_y, gamma) in zip(fits, expected, strict=True):
        assert fit.sigma_x == pytest.approx(sigma_x, abs=1e-6), f"key {fit.key}"
        assert fit.sigma_y == pytest.approx(sigma_y, abs=1e-6), f"key {fit.key}"
        assert fit.gamma == (None if gamma is None else pytest.approx(gamma, abs=1e-6))


@given(variants, factors)
@settings(max_examples=40)
def test_fits_do_not_see_the_size_and_sign_of_a_key(
    variant: tuple[Method, ScaleChoice, Boundary], factors: list[float]
) -> None:
    method, scales, boundary = variant
    fits = fit_keys(KEYS, method=method, scales=scales, boundary=boundary)
    scaled = KEYS * np.array(factors)[:, None, None]
    again = fit_keys(scaled, method=method, scales=scales, boundary=boundary)
    assert_alike(again, [(fit.sigma_x, fit.sigma_y, fit.gamma) for fit in fits])


# How the plane is turned over; key i afterwards is key MIRRORS[...][i - 1] before; whether x and y
# change places. Row 0 is on top and y points up: the transposed array is the plane mirrored in the
# falling diagonal, (x, y) -> (-y, -x), which takes a step up to a step left: d+ in y to d- in x.
MIRRORS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[int, ...], bool]] = {
    "left to right": (lambda h: h[:, ::-1], (1, 4, 3, 2, 5, 6, 7, 8), False),
    "upside down": (lambda h: h[::-1], (3, 2, 1, 4, 5, 6, 7, 8), False),
    "falling diagonal": (lambda h: h.T, (2, 1, 4, 3, 6, 5, 7, 8), True),
    "rising diagonal": (lambda h: h[::-1, ::-1].T, (4, 3, 2, 1, 6, 5, 7, 8), True),
}


@pytest.mark.parametrize("mirror", MIRRORS)
@given(st.integers(1, 8), st.floats(0, 3), st.floats(0, 3), st.sampled_from(BOUNDARIES))
@settings(max_examples=30)
def test_a_mirrored_model_is_the_model_of_the_mirrored_key(
    mirror: str, key: int, sx: float, sy: float, boundary: Boundary
) -> None:
    mirrored, partners, swaps = MIRRORS[mirror]
    other = partners[key - 1]
    if key == 7:
        sy = sx
    gamma = 0.4 if key == 7 else None
    model = idealized_kernel(key, sx, sy, gamma, boundary=boundary)
    partner = idealized_kernel(other, *((sy, sx) if swaps else (sx, sy)), gamma, boundary=boundary)
    # A difference turns its sign where its axis is turned, which is where its partner is backward.
    axis = master_key(key).axis
    turned = {"left to right": "x", "upside down": "y", "falling diagonal": "xy"}.get(mirror, "")
    sign = -1 if axis is not None and axis in turned else 1
    np.testing.assert_allclose(mirrored(model), sign * partner, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mirror", MIRRORS)
@pytest.mark.parametrize(("method", "scales"), list(itertools.product(METHODS, CHOICES)))
def test_fits_of_mirrored_keys_are_mirrored(
    method: Method, scales: ScaleChoice, mirror: str
) -> None:
    mirrored, partners, swaps = MIRRORS[mirror]
    fits = fit_keys(KEYS, method=method, scales=scales)
    before = [fits[partner - 1] for partner in partners]
    after = fit_keys(
        np.array([mirrored(KEYS[partner - 1]) for partner in partners]),
        method=method,
        scales=scales,
    )
    assert_alike(
        after,
        [
            (fit.sigma_y, fit.sigma_x, fit.gamma)
            if swaps
            else (fit.sigma_x, fit.sigma_y, fit.gamma)
            for fit in before
        ],
    )
    for fit, other in zip(after, before, strict=True):
        assert (fit.l1, fit.l2) == pytest.approx((other.l1, other.l2), rel=1e-9)


# Noise


def models(sigmas: np.ndarray, *, size: int = 7, boundary: Boundary = "symmetric") -> np.ndarray:
    """The 8 models at scales (8, 2), key 7 at (sx, sx) and gamma 0.4."""
    return np.array(
        [model_of(key, scales, size, boundary) for key, scales in enumerate(sigmas, start=1)]
    )


def model_of(
    key: int, scales: Any, size: int = 7, boundary: Boundary = "symmetric", gamma: float = 0.4
) -> np.ndarray:
    if key == 7:
        return idealized_kernel(7, scales[0], scales[0], gamma, size=size, boundary=boundary)
    return idealized_kernel(key, scales[0], scales[1], size=size, boundary=boundary)


NOISE = 5e-4  # uniform noise from -NOISE to NOISE is added to every value; the models peak near 1


def spread_tolerance(key: int, sigmas: np.ndarray, method: Method) -> np.ndarray:
    """How far noise within +-NOISE can move the scales (2,) of methods A and B, to first order.

    The variance V = sum(w |h| (x - m)^2) / sum(w |h|) moves by at most
    NOISE sum(w |(x - m)^2 - V|) / sum(w |h|), and a scale by that over dV / dsigma. The offset of
    key 8, one of its noisy values, adds as much again.
    """
    window = np.abs(model_of(key, (1, 1)))

    def covariance(at: np.ndarray) -> np.ndarray:
        return np.diag(spread(model_of(key, at), window=window).covariance)

    h = model_of(key, sigmas)
    found = spread(h, window=window)
    y, x = np.mgrid[3:-4:-1, -3:4]
    tolerance = []
    for axis, position in enumerate((x, y)):
        V = found.covariance[axis, axis]
        off = np.abs((position - found.mean[axis]) ** 2 - V)
        moved = NOISE * np.sum(window * off) / np.sum(window * np.abs(h))
        step = np.eye(2)[axis] * 1e-5
        slope = (covariance(sigmas + step) - covariance(sigmas - step))[axis] / 2e-5
        if method == "A":  # sigma^2 = 2 V, or 2 V / 3
            part = 3 if master_key(key).axis == "xy"[axis] else 1
            slope = part * np.sqrt(2 * V / part)
        tolerance.append(moved / slope)
    return np.array(tolerance) * (2 if key == 8 else 1)


def distance_tolerance(key: int, sigmas: np.ndarray, method: Method) -> np.ndarray:
    """Five standard deviations of the scales (or of sigma and gamma) of methods C and D.

    Least squares moves the scales by pinv(J) dh, with J the model's derivatives and dh what the
    noise makes of the normalized key: itself, less the key times what noise adds to the divisor.
    Least absolute values have 3 times its variance under uniform noise, in the limit of many values
    (1 / (4 f(0)^2) = NOISE^2 beside NOISE^2 / 3). The offset that keys 7 and 8 lose, a value of the
    noise, adds its greatest effect.
    """
    at = np.array([sigmas[0], 0.4]) if key == 7 else sigmas

    def model(p: np.ndarray) -> np.ndarray:
        return (model_of(7, p, gamma=p[1]) if key == 7 else model_of(key, p)).ravel()

    steps = np.eye(2) * 1e-5
    J = np.stack([(model(at + step) - model(at - step)) / 2e-5 for step in steps], axis=1)
    y, x = (each.ravel() for each in np.mgrid[3:-4:-1, -3:4])
    h = model(at)
    axis = master_key(key).axis
    if axis is None:
        divisor = np.ones_like(h)
    else:
        position = x if axis == "x" else y
        divisor = -position - np.abs(h) @ position / np.abs(h).sum()
    moves = np.linalg.pinv(J) @ (np.eye(len(h)) - np.outer(h, divisor) / (divisor @ h))
    deviation = np.sqrt((moves**2).sum(axis=1) * NOISE**2 / 3) / abs(divisor @ h)
    tolerance = 5 * deviation * (np.sqrt(3) if method == "C" else 1)
    return np.asarray(tolerance + (NOISE * np.abs(moves.sum(axis=1)) if axis is None else 0))


@pytest.mark.parametrize("method", METHODS)
def test_noisy_copies_of_the_models_give_back_their_scales(method: Method) -> None:
    rng = np.random.default_rng(20)
    sigmas = rng.uniform(0.45, 0.65, size=(8, 2))
    sigmas[6, 1] = sigmas[6, 0]
    clean = models(sigmas)
    without = fit_keys(clean, method=method)
    for fit, scales in zip(without, sigmas, strict=True):
        # A is the theory of the continuum, which is off on a grid; C, D lose what 7 taps crop.
        if method != "A":
            allowed = 1e-6 if method == "B" and fit.key < 7 else 1e-2
            assert (fit.sigma_x, fit.sigma_y) == pytest.approx(tuple(scales), abs=allowed)
    for _ in range(10):
        noisy = clean + rng.uniform(-NOISE, NOISE, size=clean.shape)
        for fit, exact in zip(fit_keys(noisy, method=method), without, strict=True):
            at = sigmas[fit.key - 1]
            if fit.key == 7:
                off = (fit.sigma_x - exact.sigma_x, (fit.gamma or 0) - (exact.gamma or 0))
                tolerance = distance_tolerance(7, at, method)
            else:
                off = (fit.sigma_x - exact.sigma_x, fit.sigma_y - exact.sigma_y)
                by = spread_tolerance if method in "AB" else distance_tolerance
                tolerance = by(fit.key, at, method)
            assert np.all(np.abs(off) <= tolerance), f"key {fit.key}: {off} past {tolerance}"
            assert np.all(tolerance < 0.05)  # or it would say nothing


# Sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_models_of_every_size_are_fitted(method: Method, size: int) -> None:
    sigmas = np.tile([0.5, 0.6], (8, 1))
    keys = models(sigmas, size=size)
    for scales in CHOICES if size in (3, 7, 31) else CHOICES[:1]:
        fits = fit_keys(keys, method=method, scales=scales)
        assert np.isfinite([[fit.sigma_x, fit.sigma_y, fit.l1, fit.l2] for fit in fits]).all()
        kernels = idealized_kernels(fits, size=size)
        np.testing.assert_allclose(np.linalg.norm(kernels, axis=(1, 2)), 1)
    if method != "A" and size >= 9:  # where next to nothing is cropped
        for fit in fit_keys(keys, method=method):
            expected = (0.5, 0.5 if fit.key == 7 else 0.6)
            assert (fit.sigma_x, fit.sigma_y) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_learned_keys_of_every_size_are_fitted(size: int) -> None:
    # The published keys cropped, or surrounded by what their offset is: next to nothing.
    margin = abs(size - 7) // 2
    if size < 7:
        keys = KEYS[:, margin : 7 - margin, margin : 7 - margin]
    else:
        around = [0.0] * 6 + [offset(7, KEYS[6]), offset(8, KEYS[7])]
        keys = np.array(
            [np.pad(h, margin, constant_values=c) for h, c in zip(KEYS, around, strict=True)]
        )
    for method, boundary in itertools.product(("A", "B", "D"), BOUNDARIES):
        if size == 3 and method == "B":
            continue  # the spread of a difference over 3 taps does not change with scale
        fits = fit_keys(keys, method=method, boundary=boundary)
        assert all(0 <= fit.sigma_x < 2 and 0 <= fit.sigma_y < 2 for fit in fits)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_filters_of_every_size_are_given_their_key(boundary: Boundary, size: int) -> None:
    fits = [Scales(key, 0.5, 0.5, 0.5 if key == 7 else None) for key in range(1, 9)]
    kernels = idealized_kernels(fits, boundary=boundary, size=size)
    f = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    f /= np.linalg.norm(f, axis=(1, 2), keepdims=True)
    found = assign(-2 * f + 0.3, kernels)
    np.testing.assert_array_equal(found.keys, np.arange(1, 9))
    np.testing.assert_allclose(found.a, -2, rtol=1e-12)
    np.testing.assert_allclose(found.b, 0.3, rtol=1e-12)
    np.testing.assert_allclose(found.kept, 1, rtol=1e-12)


def test_a_spread_that_three_taps_cannot_have_is_refused() -> None:
    keys = models(np.full((8, 2), 0.5), size=3)
    keys[3, :, 1] *= 2  # the two taps of a difference of 3: no longer of equal weight
    with pytest.raises(FitError, match=r"key 4, method B.* on 3x3 has 0\.25 at every scale"):
        fit_keys(keys, method="B")


# Keys that no one can fit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", range(1, 9))
@pytest.mark.parametrize(
    ("h", "why"),
    [
        (np.full((7, 7), -0.3), "is constant"),
        (np.zeros((7, 7)), "is constant"),
        (np.where(np.eye(7) > 0, np.nan, 1.0), "not finite"),
        (np.where(np.eye(7) > 0, np.inf, 1.0), "not finite"),
        (np.ones((7, 5)), r"has shape \(7, 5\)"),
        (np.ones((6, 6)), r"has shape \(6, 6\)"),
        (np.ones(49), r"has shape \(49,\)"),
    ],
)
def test_unusable_keys_are_named(method: Method, key: int, h: np.ndarray, why: str) -> None:
    keys = [h if number == key else learned for number, learned in enumerate(KEYS, start=1)]
    with pytest.raises(KeysError, match=f"^key {key} .*{why}"):
        fit_keys(keys, method=method)


def test_keys_of_two_sizes_are_named() -> None:
    keys = [*KEYS[:5], KEYS[5][1:-1, 1:-1], *KEYS[6:]]
    with pytest.raises(KeysError, match=r"key 6 has shape \(5, 5\), key 1 \(7, 7\)"):
        fit_keys(keys, method="D")


@pytest.mark.parametrize("key", range(1, 9))
def test_constant_keys_are_not_normalized(key: int) -> None:
    with pytest.raises(KeysError, match=f"key {key} is constant"):
        normalize(key, np.full((7, 7), 1e-5))
