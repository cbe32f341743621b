"""The keys' models for many filters at once: equal to those one by one, with exact derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from mkf.idealized import Boundary, idealized_kernel, laplacian_of_gaussian
from mkf.keys import MASTER_KEYS
from mkf.scale_terms import SHARPEN_KEY, TermModels, to_position, to_sigma

KEYS = np.array(list(MASTER_KEYS))
SIGMA_X = np.array([0.0, 0.3, 0.7, 1.5, 4.0, 20.0, 0.6, 99.0])
SIGMA_Y = np.array([0.5, 0.0, 2.0, 0.4, 9.0, 0.8, 0.6, 60.0])


def expected(key: int, sigma_x: float, sigma_y: float, boundary: Boundary, size: int) -> np.ndarray:
    if key == SHARPEN_KEY:
        return laplacian_of_gaussian(sigma_x, boundary=boundary, size=size)
    return idealized_kernel(key, sigma_x, sigma_y, boundary=boundary, size=size)


@pytest.mark.parametrize("boundary", ["symmetric", "exact"])
@pytest.mark.parametrize("size", [3, 7, 31])
def test_models_equal_those_made_one_by_one(boundary: Boundary, size: int) -> None:
    models = TermModels.on_grid(size, boundary)
    columns, _, _ = models.columns(KEYS, to_position(SIGMA_X), to_position(SIGMA_Y))
    for key, x, y, column in zip(KEYS, SIGMA_X, SIGMA_Y, columns, strict=True):
        kernel = expected(int(key), x, y, boundary, size)
        np.testing.assert_allclose(column.reshape(size, size), kernel, atol=1e-15)


@pytest.mark.parametrize("boundary", ["symmetric", "exact"])
@pytest.mark.parametrize("size", [3, 7, 15])
def test_derivatives_are_those_of_finite_differences(boundary: Boundary, size: int) -> None:
    models = TermModels.on_grid(size, boundary)
    rng = np.random.default_rng(0)
    x, y, step = rng.uniform(0.05, 0.9, 8), rng.uniform(0.05, 0.9, 8), 1e-6
    _, in_x, in_y = models.columns(KEYS, x, y)
    for found, (dx, dy) in ((in_x, (step, 0)), (in_y, (0, step))):
        above = models.columns(KEYS, x + dx, y + dy)[0]
        below = models.columns(KEYS, x - dx, y - dy)[0]
        np.testing.assert_allclose(found, (above - below) / (2 * step), atol=1e-8)


def test_no_key_is_a_model_of_zeros() -> None:
    models = TermModels.on_grid(5, "symmetric")
    zero = np.zeros(1, dtype=np.int64)
    for column in models.columns(zero, np.full(1, 0.3), np.full(1, 0.3)):
        assert not column.any()


def test_positions_and_scales_are_inverse() -> None:
    np.testing.assert_allclose(to_sigma(to_position(SIGMA_X)), SIGMA_X, rtol=1e-9)
