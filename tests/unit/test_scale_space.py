from __future__ import annotations

import numpy as np
import pytest

from mkf.errors import InputError
from mkf.scale_space import (
    backward_difference,
    central_difference,
    forward_difference,
    gaussian,
    gaussian_derivative,
    laplacian,
    second_difference,
)

SCALES = [0.0, 0.05, 0.3, 0.5, 1.0, 2.5, 10.0]
WIDE = np.arange(-400, 401)


# exp(-s) I_n(s) with 60 digits.
@pytest.mark.parametrize(
    ("n", "sigma", "value"),
    [
        (0, 0.1, 0.9900745851497075),
        (3, 0.1, 2.0626167116168725e-08),
        (15, 0.1, 2.3105117831883037e-47),
        (0, 0.5, 0.7910171621397194),
        (3, 0.5, 0.0002545077249939988),
        (15, 0.5, 1.6943419633792612e-26),
        (0, 1.0, 0.46575960759364043),
        (15, 1.0, 8.720446226227137e-18),
        (3, 10.0, 0.03817817317558649),
        (0, 100.0, 0.003989472674604732),
        (3, 100.0, 0.003987677726055676),
        (15, 100.0, 0.003944840410879085),
    ],
)
def test_gaussian_is_exact(n: int, sigma: float, value: float) -> None:
    assert float(gaussian(n, sigma)) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("sigma", SCALES)
def test_gaussian_has_unit_sum_zero_mean_and_variance_sigma_squared(sigma: float) -> None:
    values = gaussian(WIDE, sigma)
    assert values.sum() == pytest.approx(1, abs=1e-13)
    assert values @ WIDE == pytest.approx(0, abs=1e-12)
    assert values @ WIDE**2 == pytest.approx(sigma**2, abs=1e-11)


def test_gaussian_at_scale_zero_is_the_unit_impulse() -> None:
    np.testing.assert_array_equal(gaussian([-2, -1, 0, 1, 2], 0), [0, 0, 1, 0, 0])


@pytest.mark.parametrize("sigma", SCALES)
def test_gaussian_is_symmetric_positive_and_falls(sigma: float) -> None:
    values = gaussian(np.arange(0, 8), sigma)
    np.testing.assert_array_equal(values, gaussian(-np.arange(0, 8), sigma))
    assert np.all(values >= 0)
    assert np.all(np.diff(values) <= 0)


@pytest.mark.parametrize(("first", "second"), [(0.4, 0.7), (0, 1.3), (2.0, 3.0)])
def test_smoothing_is_a_semigroup(first: float, second: float) -> None:
    n = np.arange(-60, 61)
    twice = np.convolve(gaussian(n, first), gaussian(n, second), mode="same")
    np.testing.assert_allclose(twice, gaussian(n, np.hypot(first, second)), atol=1e-14)


def test_gaussian_broadcasts() -> None:
    values = gaussian(np.arange(-3, 4), np.array(SCALES)[:, None])
    assert values.shape == (len(SCALES), 7)
    for row, sigma in zip(values, SCALES, strict=True):
        np.testing.assert_array_equal(row, gaussian(np.arange(-3, 4), sigma))


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.5, 8.0])
def test_derivative_agrees_with_finite_differences(sigma: float) -> None:
    n, step = np.arange(-6, 7), 1e-5
    finite = (gaussian(n, sigma + step) - gaussian(n, sigma - step)) / (2 * step)
    np.testing.assert_allclose(gaussian_derivative(n, sigma), finite, atol=1e-9)


def test_derivative_vanishes_at_scale_zero() -> None:
    np.testing.assert_array_equal(gaussian_derivative(np.arange(-3, 4), 0), np.zeros(7))


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf, 1e5])
def test_gaussian_refuses_scales_that_are_none(sigma: float) -> None:
    with pytest.raises(InputError, match="standard deviation"):
        gaussian(0, sigma)


@pytest.mark.parametrize("n", [0.5, np.nan])
def test_gaussian_refuses_positions_off_the_grid(n: float) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        gaussian(n, 1)


def test_differences_of_a_ramp_and_a_parabola() -> None:
    n = np.arange(-3.0, 4)
    inside = slice(1, -1)
    np.testing.assert_array_equal(forward_difference(n), [1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(backward_difference(n), [0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(central_difference(n), [0.5, 1, 1, 1, 1, 1, 0.5])
    np.testing.assert_array_equal(second_difference(n**2)[inside], np.full(5, 2.0))


def test_differences_compose() -> None:
    f = np.random.default_rng(3).normal(size=9)
    inside = slice(1, -1)
    np.testing.assert_allclose(
        central_difference(f), (forward_difference(f) + backward_difference(f)) / 2
    )
    np.testing.assert_allclose(
        second_difference(f)[inside], forward_difference(backward_difference(f))[inside]
    )


def test_differences_run_along_any_axis() -> None:
    f = np.random.default_rng(4).normal(size=(5, 7))
    np.testing.assert_array_equal(forward_difference(f, axis=0), forward_difference(f.T).T)


def test_laplacian_of_a_paraboloid_and_of_an_impulse() -> None:
    y, x = np.mgrid[-3:4, -3:4].astype(float)
    np.testing.assert_array_equal(laplacian(x**2 + y**2)[1:-1, 1:-1], np.full((5, 5), 4.0))
    impulse = np.zeros((3, 3))
    impulse[1, 1] = 1
    np.testing.assert_array_equal(laplacian(impulse), [[0, 1, 0], [1, -4, 1], [0, 1, 0]])
