from __future__ import annotations

import numpy as np
import pytest

from mkf.errors import InputError
from mkf.keys import load_keys
from mkf.scale_space import gaussian
from mkf.spread import coordinates, dc_offset, spread

N = coordinates(31)


def test_coordinates_are_centered() -> None:
    np.testing.assert_array_equal(coordinates(5), [-2, -1, 0, 1, 2])


@pytest.mark.parametrize(("sx", "sy"), [(0.5, 0.5), (1.0, 2.0), (2.0, 0.0)])
def test_spread_of_a_gaussian_is_its_variance(sx: float, sy: float) -> None:
    found = spread(np.outer(gaussian(N, sy), gaussian(N, sx)))
    np.testing.assert_allclose(found.mean, (0, 0), atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.diag([sx**2, sy**2]), atol=1e-9)


def test_y_points_up() -> None:
    h = np.zeros((5, 5))
    h[0, 4] = 3  # top right
    assert spread(h).mean == (2, 2)
    np.testing.assert_array_equal(spread(h).covariance, np.zeros((2, 2)))


def test_covariance_along_the_rising_diagonal_is_positive() -> None:
    np.testing.assert_allclose(spread(np.eye(3)[::-1]).covariance, np.full((2, 2), 2 / 3))


@pytest.mark.parametrize("factor", [-1, 1e300, 1e-300])
def test_spread_does_not_change_with_sign_or_size(factor: float) -> None:
    h = load_keys()[3]
    np.testing.assert_allclose(spread(factor * h).covariance, spread(h).covariance, rtol=1e-12)


def test_window_multiplies_the_weights() -> None:
    rng = np.random.default_rng(1)
    h, window = rng.normal(size=(7, 7)), rng.uniform(size=(7, 7))
    np.testing.assert_allclose(
        spread(h, window=window).covariance, spread(np.abs(h) * window).covariance
    )


@pytest.mark.parametrize("key", [7, 8])
def test_offset_is_the_global_minimum(key: int) -> None:
    h = load_keys()[key - 1]

    def area(offset: float) -> float:
        return float(np.sqrt(np.linalg.det(spread(h - offset).covariance)))

    best = area(dc_offset(h))
    sampled = np.linspace(h.min() - 1, h.max() + 1, 3001)
    assert best <= min(map(area, sampled))
    near = dc_offset(h) + np.linspace(-1e-3, 1e-3, 1000)
    assert best <= min(map(area, near)) + 1e-12


def test_offset_of_random_filters_is_the_global_minimum() -> None:
    rng = np.random.default_rng(5)
    for _ in range(5):
        h = rng.normal(size=(5, 5))
        best = np.linalg.det(spread(h - dc_offset(h)).covariance)
        sampled = np.linspace(h.min(), h.max(), 1001)
        assert best <= min(np.linalg.det(spread(h - c).covariance) for c in sampled) + 1e-12


def test_offset_of_an_impulse_on_a_pedestal_is_the_pedestal() -> None:
    h = np.full((7, 7), 0.25)
    h[3, 3] = 2
    assert dc_offset(h) == 0.25


def test_preferred_offset_is_taken_only_where_it_is_as_good() -> None:
    h = load_keys()[6]
    assert dc_offset(h, preferred=-0.011775) == -0.011775
    assert dc_offset(h, preferred=-0.012) == dc_offset(h)


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (np.zeros((3, 3)), "zero everywhere"),
        (np.ones((3, 5)), "square of odd size"),
        (np.ones((4, 4)), "square of odd size"),
        (np.full((3, 3), np.nan), "not finite"),
    ],
)
def test_spread_refuses_what_has_none(h: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spread(h)


def test_offset_refuses_a_constant() -> None:
    with pytest.raises(InputError, match="constant"):
        dc_offset(np.full((7, 7), 3.0))
