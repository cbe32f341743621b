from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mkf.errors import InputError, KeysError
from mkf.idealized import Boundary, idealized_kernel
from mkf.scale_space import gaussian, laplacian

BOUNDARIES: list[Boundary] = ["symmetric", "exact"]
SX, SY = 0.7, 1.1


def kernel(key: int, **options: Any) -> np.ndarray:
    gamma = 0.5 if key == 7 else None
    return idealized_kernel(key, SX, SX if key == 7 else SY, gamma, **options)


def smoothed(size: int) -> np.ndarray:
    n = np.arange(size) - size // 2
    return np.outer(gaussian(n, SY), gaussian(n, SX))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_key_8_is_the_discrete_gaussian(boundary: Boundary) -> None:
    np.testing.assert_allclose(kernel(8, boundary=boundary), smoothed(7), rtol=1e-13)


def test_keys_difference_the_infinite_kernel_and_crop_it() -> None:
    T, crop = smoothed(11), (slice(2, -2), slice(2, -2))
    up, right = {"shift": 1, "axis": 0}, {"shift": -1, "axis": 1}
    down, left = {"shift": -1, "axis": 0}, {"shift": 1, "axis": 1}
    # y points up: f(y + 1) is one row above.
    expected = {
        1: np.roll(T, **up) - T,
        2: T - np.roll(T, **left),
        3: T - np.roll(T, **down),
        4: np.roll(T, **right) - T,
        5: (np.roll(T, **right) - np.roll(T, **left)) / 2,
        6: (np.roll(T, **up) - np.roll(T, **down)) / 2,
    }
    # np.roll(shift=1, axis=0) moves rows down, so the row above arrives in place.
    for key, infinite in expected.items():
        np.testing.assert_allclose(
            kernel(key, boundary="exact"), infinite[crop], atol=1e-15, err_msg=f"key {key}"
        )


def test_symmetric_boundary_repeats_the_edge_sample() -> None:
    T = smoothed(7)
    above = np.vstack([T[:1], T[:-1]])
    np.testing.assert_allclose(kernel(1), above - T, atol=1e-16)
    right = np.hstack([T[:, 1:], T[:, -1:]])
    np.testing.assert_allclose(kernel(4), right - T, atol=1e-16)


def test_boundaries_differ_at_the_edge_only() -> None:
    for key in range(1, 9):
        inside = (slice(1, -1), slice(1, -1))
        symmetric, exact = (kernel(key, boundary=boundary) for boundary in BOUNDARIES)
        np.testing.assert_allclose(symmetric[inside], exact[inside], atol=1e-15)


def test_key_7_takes_the_laplacian_from_the_impulse() -> None:
    n = np.arange(-6, 7)
    T = np.outer(gaussian(n, SX), gaussian(n, SX))
    expected = -0.5 * laplacian(T)[3:-3, 3:-3]
    expected[3, 3] += 1
    np.testing.assert_allclose(kernel(7, boundary="exact"), expected, atol=1e-15)
    assert kernel(7, size=15).sum() == pytest.approx(1, abs=1e-9)
    cropped = np.zeros((7, 7))
    cropped[3, 3] = 1
    cropped -= 0.5 * laplacian(T[3:-3, 3:-3])
    np.testing.assert_allclose(kernel(7), cropped, atol=1e-15)


def test_sums_and_first_moments_over_a_wide_grid() -> None:
    n = np.arange(-15, 16)
    for key in range(1, 7):
        h = kernel(key, size=31)
        along_x = key in (2, 4, 5)
        assert h.sum() == pytest.approx(0, abs=1e-12)
        profile = h.sum(axis=0) if along_x else h.sum(axis=1)[::-1]
        # The derivative of a unit-sum kernel responds to a unit ramp, as a convolution, with 1.
        assert -(profile @ n) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_keys_are_each_others_rotations_and_mirrors(boundary: Boundary) -> None:
    def made(key: int, sx: float, sy: float) -> np.ndarray:
        return idealized_kernel(key, sx, sy, boundary=boundary)

    # A quarter turn to the left takes +x to +y.
    np.testing.assert_allclose(made(1, SY, SX), np.rot90(made(4, SX, SY)), atol=1e-16)
    np.testing.assert_allclose(made(3, SY, SX), np.rot90(made(2, SX, SY)), atol=1e-16)
    np.testing.assert_allclose(made(6, SY, SX), np.rot90(made(5, SX, SY)), atol=1e-16)
    np.testing.assert_allclose(made(2, SX, SY), -made(4, SX, SY)[:, ::-1], atol=1e-16)
    np.testing.assert_allclose(made(5, SX, SY), (made(2, SX, SY) + made(4, SX, SY)) / 2, atol=1e-16)


@pytest.mark.parametrize("size", [3, 5, 9, 31])
def test_sizes_are_crops_of_one_kernel(size: int) -> None:
    for key in range(1, 9):
        margin = (31 - size) // 2
        crop = slice(margin, 31 - margin)
        np.testing.assert_allclose(
            kernel(key, size=size, boundary="exact"),
            kernel(key, size=31, boundary="exact")[crop, crop],
            atol=1e-16,
        )


def test_scale_zero_is_the_difference_of_the_impulse() -> None:
    np.testing.assert_array_equal(
        idealized_kernel(1, 0, 0, size=3), [[0, 0, 0], [0, -1, 0], [0, 1, 0]]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, -0.1, 1), "scales are"),
        ((1, 1, float("nan")), "scales are"),
        ((1, 1, 1, 0.5), "gamma for key 7 only"),
        ((7, 1, 1), "gamma is None"),
        ((7, 1, 1, float("inf")), "gamma is inf"),
        ((7, 1, 1.1, 0.5), "one scale"),
    ],
)
def test_impossible_scales_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        idealized_kernel(*arguments)


@pytest.mark.parametrize("options", [{"size": 1}, {"size": 8}, {"size": 33}, {"boundary": "zero"}])
def test_impossible_shapes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        idealized_kernel(1, 1, 1, **options)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(KeysError, match="no key 0"):
        idealized_kernel(0, 1, 1)
