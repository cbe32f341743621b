"""Scales of each filter's and of each layer's own: the optimum, and what free scales promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lattice_search import least

from mkf import filter_scales, layer_scales
from mkf.assignment import assign
from mkf.errors import InputError
from mkf.expansion import Problem
from mkf.fitting import KeyFit, fit_keys, idealized_kernels
from mkf.idealized import axis_factor, idealized_kernel, laplacian_of_gaussian, outer, unit_impulse
from mkf.keys import MASTER_KEYS, load_keys


def centered_unit(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12)


def best_single_key(y: np.ndarray) -> float:
    """The most of a filter's variance that one key can keep, by the exhaustive lattice search."""
    size = len(y)
    values = y.ravel() - y.mean()
    impulse = centered_unit(unit_impulse(size).ravel())

    def kept(key: int, sigma: np.ndarray) -> np.ndarray:
        master = MASTER_KEYS[key]
        if key == 7:
            rows = laplacian_of_gaussian(sigma[:, 0], boundary="symmetric", size=size)
            flat = centered_unit(rows.reshape(len(sigma), -1))
            beyond = centered_unit(flat - np.outer(flat @ impulse, impulse))
            return (impulse @ values) ** 2 + (beyond @ values) ** 2
        along_x = axis_factor(master, "x", sigma[:, 0], boundary="symmetric", size=size)
        along_y = axis_factor(master, "y", sigma[:, 1], boundary="symmetric", size=size)
        return (centered_unit(outer(along_x, along_y).reshape(len(sigma), -1)) @ values) ** 2

    best = 0.0
    for key in MASTER_KEYS:
        sigma = least(lambda s, key=key: -kept(key, s), dimensions=1 if key == 7 else 2)
        best = max(best, float(kept(key, sigma[None])[0]))
    return best / float(values @ values)


def test_one_key_a_filter_is_within_a_thousandth_of_the_optimum() -> None:
    """On filters that are a key plus noise, and on noise alone."""
    rng = np.random.default_rng(3)
    pure = [idealized_kernel(key, *rng.uniform(0.2, 2.5, 2)) for key in (1, 2, 3, 4, 5, 6, 8, 8)]
    noise = rng.normal(size=(14, 7, 7))
    filters = noise.copy()
    filters[:8] = [p / np.linalg.norm(p) + 0.5 * n / 7 for p, n in zip(pure, noise, strict=False)]
    found = filter_scales.expand(filters, terms=1)
    for y, kept in zip(filters, found.kept, strict=True):
        optimum = best_single_key(y)
        assert optimum - 1e-3 <= kept <= optimum + 1e-6


@pytest.mark.parametrize("size", [3, 7, 11])
def test_a_filter_made_of_a_key_gives_back_its_scales(size: int) -> None:
    made = [(1, 0.5, 1.1), (2, 0.9, 0.6), (5, 0.8, 0.7), (6, 1.2, 0.3), (8, 0.4, 1.3)]
    filters = np.stack([-2 * idealized_kernel(k, x, y, size=size) + 0.3 for k, x, y in made])
    found = filter_scales.expand(filters, terms=1)
    np.testing.assert_allclose(found.idealized(), filters, atol=1e-5)
    if size > 3:  # nine values leave some scales open
        np.testing.assert_array_equal(found.keys[:, 0], [key for key, _, _ in made])
        np.testing.assert_allclose(found.sigma_x[:, 0], [x for _, x, _ in made], atol=1e-2)
        np.testing.assert_allclose(found.sigma_y[:, 0], [y for _, _, y in made], atol=1e-2)


def test_key_7_gives_back_scale_and_gamma() -> None:
    y = 3 * idealized_kernel(7, 0.8, 0.8, 0.5) - 0.1
    found = filter_scales.expand(y[None], terms=1)
    assert found.keys.tolist() == [[7]]
    assert found.sigma_x[0, 0] == found.sigma_y[0, 0] == pytest.approx(0.8, abs=1e-3)
    assert found.gamma[0, 0] == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(found.idealized()[0], y, atol=1e-6)


def test_the_terms_describe_the_filter() -> None:
    """Keys, scales and factors, put together by the plain formulas, are the filters."""
    filters = np.random.default_rng(0).normal(size=(20, 7, 7))
    found = filter_scales.expand(filters, terms=3)
    for row in range(20):
        built = np.full(49, found.b[row])
        for term in range(3):
            key = int(found.keys[row, term])
            gamma = float(found.gamma[row, term]) if key == 7 else None
            scales = float(found.sigma_x[row, term]), float(found.sigma_y[row, term])
            kernel = idealized_kernel(key, *scales, gamma).ravel()
            built += found.a[row, term] * centered_unit(kernel)
        np.testing.assert_allclose(built, found.idealized()[row].ravel(), atol=1e-6)


@pytest.fixture(scope="module")
def fits() -> list[KeyFit]:
    return fit_keys(load_keys(), method="B")


def test_every_rung_keeps_more_than_the_one_below(fits: list[KeyFit]) -> None:
    filters = np.random.default_rng(2).normal(size=(60, 7, 7))
    fixed = assign(filters, idealized_kernels(fits)).total_kept
    layer = [
        layer_scales.expand(filters, terms=terms, start=fits).total_kept for terms in (1, 2, 4)
    ]
    own = [filter_scales.expand(filters, terms=terms).total_kept for terms in (1, 2, 4)]
    assert fixed < layer[0] < own[0]
    for fewer, more in itertools.pairwise(layer):
        assert fewer < more
    for fewer, more in itertools.pairwise(own):
        assert fewer < more


def test_a_layer_gives_back_the_scales_that_its_filters_share(fits: list[KeyFit]) -> None:
    rng = np.random.default_rng(4)
    true = {1: (0.9, 0.5), 4: (0.6, 1.2), 8: (1.1, 0.8)}
    filters = np.concatenate(
        [rng.normal(size=(12, 1, 1)) * idealized_kernel(k, x, y) for k, (x, y) in true.items()]
    )
    found = layer_scales.expand(filters, terms=1, start=fits)
    assert found.total_kept > 0.9999
    for key, (x, y) in true.items():
        chosen = found.keys[:, 0] == key
        assert chosen.sum() == 12
        np.testing.assert_allclose(found.sigma_x[chosen], x, atol=0.02)
        np.testing.assert_allclose(found.sigma_y[chosen], y, atol=0.02)


def test_no_filters_and_constant_ones(fits: list[KeyFit]) -> None:
    empty = np.empty((0, 5, 5))
    assert filter_scales.expand(empty, terms=2).idealized().shape == (0, 5, 5)
    assert layer_scales.expand(empty, terms=2, start=fits).idealized().shape == (0, 5, 5)
    constant = np.full((3, 5, 5), 0.7)
    for found in (
        filter_scales.expand(constant, terms=2),
        layer_scales.expand(constant, terms=2, start=fits),
    ):
        np.testing.assert_allclose(found.idealized(), 0.7, atol=1e-9)
        assert found.total_kept == 1


def test_wrong_use() -> None:
    with pytest.raises(InputError, match="0 terms of 8 keys"):
        filter_scales.expand(np.ones((1, 7, 7)), terms=0)
    with pytest.raises(InputError, match="finite"):
        filter_scales.expand(np.full((1, 7, 7), np.inf), terms=1)


def test_a_problem_is_met_under_its_metric() -> None:
    """Noise in directions that a metric does not see changes nothing."""
    rng = np.random.default_rng(8)
    y = idealized_kernel(3, 0.7, 0.9).ravel()
    blind = np.linalg.qr(rng.normal(size=(49, 49)))[0][:, :10]  # ten directions unseen
    metric = (np.eye(49) - blind @ blind.T)[None]
    noisy = y + blind @ rng.normal(size=10)
    problem = Problem(np.einsum("nmd,d->nm", metric, noisy), metric)
    found = filter_scales.expand(noisy.reshape(1, 7, 7), problem, terms=1)
    np.testing.assert_allclose(found.idealized().ravel(), y, atol=1e-4)
