from __future__ import annotations

import numpy as np
import pytest

from mkf.assignment import assign
from mkf.errors import InputError

RAMP = np.array([[-1.0, 0, 1], [-1, 0, 1], [-1, 0, 1]])
KERNELS = np.stack([RAMP, RAMP.T, RAMP * RAMP.T, np.eye(3)])


def brute_force(y: np.ndarray, kernels: np.ndarray) -> tuple[int, float, np.ndarray]:
    """Key, least squared residual and fitted filter by solving y ~ a f + b for each key in turn."""
    answers = []
    for key, kernel in enumerate(kernels, start=1):
        columns = np.stack([kernel.ravel(), np.ones(kernel.size)], axis=1)
        solution = np.linalg.lstsq(columns, y.ravel())[0]
        fitted = columns @ solution
        answers.append((float(np.sum((y.ravel() - fitted) ** 2)), key, fitted.reshape(y.shape)))
    residual, key, fitted = min(answers, key=lambda answer: answer[0])
    return key, residual, fitted


@pytest.mark.parametrize("size", [3, 5, 7, 31])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_brute_force_least_squares(size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    kernels = random.normal(2.0, 3.0, size=(8, size, size))
    filters = random.normal(random.normal(), 0.02, size=(40, size, size))
    found = assign(filters, kernels)
    for i, y in enumerate(filters):
        key, residual, fitted = brute_force(y, kernels)
        assert found.keys[i] == key
        np.testing.assert_allclose(found.idealized()[i], fitted, atol=1e-12)
        assert found.kept[i] == pytest.approx(1 - residual / np.sum((y - y.mean()) ** 2), abs=1e-10)


def test_scaled_turned_and_shifted_keys_are_recovered() -> None:
    key = np.array([4, 1, 3, 2])
    a, b = np.array([2.0, -3.0, 1e-9, -1e9]), np.array([0.0, 5.0, -1.0, 1.0])
    centered = KERNELS - KERNELS.mean(axis=(1, 2), keepdims=True)
    unit = centered / np.linalg.norm(centered, axis=(1, 2), keepdims=True)
    filters = a[:, None, None] * unit[key - 1] + b[:, None, None]
    found = assign(filters, KERNELS)
    assert found.keys.tolist() == key.tolist()
    np.testing.assert_allclose(found.a, a, rtol=1e-6)
    np.testing.assert_allclose(found.b, b, atol=1e-6)
    np.testing.assert_allclose(found.kept, 1.0, atol=1e-12)


def test_kernels_count_up_to_scale_and_offset() -> None:
    filters = np.random.default_rng(1).normal(size=(30, 3, 3))
    plain, changed = assign(filters, KERNELS), assign(filters, 7.0 * KERNELS - 4.0)
    assert plain.keys.tolist() == changed.keys.tolist()
    np.testing.assert_allclose(plain.a, changed.a, atol=1e-12)


def test_idealized_filters_are_their_own_idealization() -> None:
    once = assign(np.random.default_rng(2).normal(size=(50, 3, 3)), KERNELS)
    twice = assign(once.idealized(), KERNELS)
    assert once.keys.tolist() == twice.keys.tolist()
    np.testing.assert_allclose(once.idealized(), twice.idealized(), atol=1e-12)
    np.testing.assert_allclose(twice.kept, 1.0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e30])
def test_a_constant_filter_is_kept_whole(value: float) -> None:
    found = assign(np.full((1, 7, 7), value), np.random.default_rng(3).normal(size=(8, 7, 7)))
    assert (found.keys[0], found.a[0], found.kept[0], found.total_kept) == (1, 0.0, 1.0, 1.0)
    np.testing.assert_allclose(found.idealized(), value, rtol=1e-15)


def test_of_equal_keys_the_lowest_wins() -> None:
    found = assign([RAMP], [RAMP.T, RAMP, RAMP, -RAMP])
    assert found.keys.tolist() == [2]


def test_single_precision_is_computed_in_double() -> None:
    filters = np.random.default_rng(4).normal(size=(20, 3, 3)).astype(np.float32)
    found, exact = assign(filters, KERNELS), assign(filters.astype(np.float64), KERNELS)
    assert found.idealized().dtype == np.float64
    np.testing.assert_array_equal(found.a, exact.a)


def test_totals_weigh_each_filter_by_its_variance() -> None:
    filters = np.stack([100 * RAMP, RAMP, RAMP * RAMP.T + RAMP])
    found = assign(filters, KERNELS[:2])
    left = np.sum((filters - found.idealized()) ** 2)
    whole = np.sum((filters - filters.mean(axis=(1, 2), keepdims=True)) ** 2)
    assert found.total_kept == pytest.approx(1 - left / whole, abs=1e-12)
    assert found.counts() == {1: 3, 2: 0}
    assert found.kept_by_key() == {1: pytest.approx(found.total_kept), 2: None}


def test_no_filters() -> None:
    found = assign(np.empty((0, 3, 3)), KERNELS)
    assert found.keys.shape == (0,)
    assert found.idealized().shape == (0, 3, 3)
    assert found.total_kept == 1.0


@pytest.mark.parametrize(
    ("filters", "kernels", "message"),
    [
        (np.ones((2, 3, 3)), np.ones((8, 5, 5)), "cannot be assigned"),
        (np.ones((2, 9)), KERNELS, "cannot be assigned"),
        (np.ones((2, 3, 3)), np.empty((0, 3, 3)), "cannot be assigned"),
        (np.full((1, 3, 3), np.nan), KERNELS, "the filters hold NaN"),
        (np.ones((1, 3, 3)), np.full((1, 3, 3), np.inf), "the kernels hold NaN"),
        (np.ones((1, 3, 3)), np.ones((8, 3, 3)), "constant kernel"),
        (1e200 * RAMP[None], KERNELS, "too large"),
        (1.5e308 * RAMP[None], KERNELS, "too large"),
    ],
)
def test_unusable_arrays(filters: np.ndarray, kernels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign(filters, kernels)
