"""Several keys a filter: orthogonal matching pursuit against its definition and plain cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mkf.assignment import assign, total_kept
from mkf.errors import InputError
from mkf.expansion import Problem, expansion, pursue
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    return idealized_kernels(fit_keys(load_keys(), method="B"))


@pytest.fixture
def filters() -> np.ndarray:
    return np.random.default_rng(5).normal(0.2, 1.0, size=(50, 7, 7))


def left_over(filters: np.ndarray, values: np.ndarray) -> np.ndarray:
    return ((filters.reshape(values.shape) - values) ** 2).sum(axis=1)


def test_one_term_is_the_published_assignment(kernels: np.ndarray, filters: np.ndarray) -> None:
    keys, _, values = pursue(Problem.of(filters), kernels, terms=1)
    published = assign(filters, kernels)
    np.testing.assert_array_equal(keys[:, 0], published.keys)
    np.testing.assert_allclose(values.reshape(filters.shape), published.idealized(), atol=1e-7)


def test_all_terms_are_the_plain_least_squares(kernels: np.ndarray, filters: np.ndarray) -> None:
    keys, _, values = pursue(Problem.of(filters), kernels, terms=8)
    assert (np.sort(keys, axis=1) == np.arange(1, 9)).all()
    columns = np.vstack([np.ones(49), kernels.reshape(8, 49)]).T
    for y, value in zip(filters.reshape(-1, 49), values, strict=True):
        weights = np.linalg.lstsq(columns, y)[0]
        np.testing.assert_allclose(value, columns @ weights, atol=1e-6)


def test_each_step_takes_the_key_nearest_to_what_is_left(
    kernels: np.ndarray, filters: np.ndarray
) -> None:
    """Orthogonal matching pursuit written down once more, for one filter at a time."""
    found, _, _ = pursue(Problem.of(filters), kernels, terms=3)
    flat = kernels.reshape(8, 49)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    for y, keys in zip(filters.reshape(-1, 49), found, strict=True):
        taken: list[int] = []
        rest = y - y.mean()
        for key in keys:
            nearness = np.abs(flat @ rest)
            nearness[taken] = -1
            assert nearness.argmax() == key - 1
            taken.append(key - 1)
            columns = np.vstack([np.ones(49), flat[taken]]).T
            rest = y - columns @ np.linalg.lstsq(columns, y)[0]


def test_more_terms_never_keep_less(kernels: np.ndarray, filters: np.ndarray) -> None:
    errors = [
        left_over(filters, pursue(Problem.of(filters), kernels, terms=terms)[2])
        for terms in range(1, 9)
    ]
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer + 1e-9).all()


def test_a_metric_measures_distance(kernels: np.ndarray, filters: np.ndarray) -> None:
    """Under a metric the answer is the least-squares one there, not that of the plain distance."""
    rng = np.random.default_rng(1)
    metric = rng.normal(size=(len(filters), 60, 49))
    target = np.einsum("nmd,nd->nm", metric, filters.reshape(-1, 49))
    _, _, values = pursue(Problem(target, metric), kernels, terms=8)
    columns = np.vstack([np.ones(49), kernels.reshape(8, 49)]).T
    for one, wanted, value in zip(metric, target, values, strict=True):
        weights = np.linalg.lstsq(one @ columns, wanted)[0]
        np.testing.assert_allclose(value, columns @ weights, atol=1e-5)


def test_what_is_kept(filters: np.ndarray) -> None:
    half = filters.copy()
    half[25:] = filters[25:].mean(axis=(1, 2), keepdims=True)
    nan = np.full((50, 1), np.nan)
    keys = np.repeat([[2], [3]], 25, axis=0)
    found = expansion(filters, half, keys=keys, a=np.ones((50, 1)), scales=(nan, nan, nan))
    np.testing.assert_allclose(found.kept, np.repeat([1.0, 0.0], 25), atol=1e-12)
    assert found.counts() == {1: 0, 2: 25, 3: 25, 4: 0, 5: 0, 6: 0, 7: 0, 8: 0}
    assert found.kept_by_key()[2] == pytest.approx(1)
    assert found.kept_by_key()[3] == pytest.approx(0)
    assert found.kept_by_key()[1] is None
    assert 0.3 < total_kept([found]) < 0.7
    np.testing.assert_allclose(found.b, filters.mean(axis=(1, 2)))


def test_a_constant_filter_is_kept_whole(kernels: np.ndarray) -> None:
    constant = np.full((1, 7, 7), 0.1)
    _, _, values = pursue(Problem.of(constant), kernels, terms=4)
    np.testing.assert_allclose(values, 0.1)
    nan = np.full((1, 1), np.nan)
    found = expansion(
        constant,
        values.reshape(1, 7, 7),
        keys=np.ones((1, 1), np.int64),
        a=nan,
        scales=(nan, nan, nan),
    )
    assert found.kept == [1.0]


def test_kernels_that_are_constant_come_last(filters: np.ndarray, kernels: np.ndarray) -> None:
    flat = kernels.copy()
    flat[[2, 5]] = 1.0
    keys, weights, _ = pursue(Problem.of(filters), flat, terms=8)
    assert (np.sort(keys, axis=1) == np.arange(1, 9)).all()
    assert (np.sort(keys[:, 6:], axis=1) == [3, 6]).all()
    assert np.isfinite(weights).all()


def test_wrong_use(kernels: np.ndarray) -> None:
    with pytest.raises(InputError, match="9 terms of 8 keys"):
        pursue(Problem.of(np.ones((1, 7, 7))), kernels, terms=9)
    with pytest.raises(InputError, match=r"pass \(n, k, k\)"):
        Problem.of(np.ones((7, 7)))
    with pytest.raises(InputError, match="finite"):
        Problem.of(np.full((1, 7, 7), np.nan))
