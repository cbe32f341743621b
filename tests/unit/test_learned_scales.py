"""Scales as parameters: T and its gradient, the filters they make (extra `train`)."""

from __future__ import annotations

import copy
from typing import Any, get_args

import numpy as np
import pytest
from scipy.special import ive

from mkf.errors import TrainingError
from mkf.fitting import Scales, fit_keys, idealized_kernels
from mkf.idealized import Boundary
from mkf.keys import load_keys

torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")

from torch.nn.utils import parametrize  # noqa: E402  (these need torch)

from mkf.training.discrete_gaussian import discrete_gaussian  # noqa: E402
from mkf.training.frozen import freeze_idealized  # noqa: E402
from mkf.training.learned_scales import (  # noqa: E402
    LEAST_START,
    ScaleFilters,
    learn_scales,
    scales_of,
)

SIGMAS = np.concatenate(
    [[0, 1e-9, 1e-4], np.geomspace(1e-3, 100, 400), np.linspace(0, 100, 2001), np.sqrt([1.0, 81.0])]
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("reach", [1, 2, 4, 16])
def test_discrete_gaussian_is_exact(reach: int) -> None:
    n = np.arange(reach + 1)
    double = discrete_gaussian(torch.tensor(SIGMAS) ** 2, reach)
    expected = ive(n, SIGMAS[:, None] ** 2)
    np.testing.assert_allclose(double, expected, rtol=1e-12, atol=1e-300)

    single = torch.tensor(SIGMAS, dtype=torch.float32) ** 2
    expected = ive(n, single.double().numpy()[:, None])
    np.testing.assert_allclose(discrete_gaussian(single, reach), expected, rtol=0, atol=1e-6)


def test_discrete_gaussian_keeps_shape_and_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        values = discrete_gaussian(torch.ones(3, 2, dtype=dtype), 4)
        assert values.shape == (3, 2, 5)
        assert values.dtype == dtype
    impulse = discrete_gaussian(torch.tensor(0.0, dtype=torch.float64), 3)
    assert impulse.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("reach", [1, 4, 16])
def test_gradients_agree_with_finite_differences(reach: int) -> None:
    # Both sides of where the recurrence turns, and a scale of no size.
    s = torch.tensor([0.0, 0.3, 1.7, 9.5, 70.0, 100.0], dtype=torch.float64, requires_grad=True)
    step = 1e-5
    for n in range(reach + 1):
        (slope,) = torch.autograd.grad(discrete_gaussian(s, reach)[:, n].sum(), s)
        inner = s.detach()[1:].numpy()
        finite = (ive(n, inner + step) - ive(n, inner - step)) / (2 * step)
        np.testing.assert_allclose(slope[1:], finite, atol=1e-9)
        assert slope[0] == {0: -1.0, 1: 0.5}.get(n, 0.0)

    def of_sigma(sigma: Any) -> Any:
        return discrete_gaussian(sigma**2, reach)

    sigma = torch.tensor([0.0, 0.4, 1.1, 3.0, -0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of_sigma, sigma)
    assert torch.autograd.gradgradcheck(of_sigma, sigma)
    (slope,) = torch.autograd.grad(of_sigma(sigma)[0].sum(), sigma)
    assert slope[0] == 0


class Network(torch.nn.Module):
    """Two depthwise layers of two sizes, with a convolution that is none between them."""

    def __init__(self, seed: int = 0, n: int = 40) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = torch.nn.Conv2d(n, n, 7, groups=n)
        self.mix = torch.nn.Conv2d(n, n, 1)
        self.last = torch.nn.Conv2d(n, n, 3, groups=n, bias=False)

    def forward(self, images: Any) -> Any:
        return self.last(self.mix(self.stem(images)))


@pytest.mark.parametrize("boundary", get_args(Boundary))
@pytest.mark.parametrize("method", ["B", "D"])  # key 4 under D has sigma_y = 0
def test_learning_starts_from_the_frozen_network(boundary: Boundary, method: Any) -> None:
    fits = fit_keys(load_keys(), method=method, boundary=boundary)
    trained, frozen, network = Network(1), Network(2), Network(2)
    expected = freeze_idealized(
        frozen,
        trained=trained,
        kernels=lambda size: idealized_kernels(fits, boundary=boundary, size=size),
    )
    found = learn_scales(network, trained=trained, fits=fits, boundary=boundary)
    assert found.keys() == expected.keys() == {"stem", "last"}
    for name in ("stem", "last"):
        np.testing.assert_array_equal(found[name].keys, expected[name].keys)
        assert len(set(found[name].keys)) >= 7
        weights, plain = getattr(network, name).weight, getattr(frozen, name).weight
        assert weights.dtype == torch.float32
        np.testing.assert_allclose(weights.detach(), plain, rtol=0, atol=1e-6)

    records = scales_of(network)
    assert len(records) == 80
    for record in records:
        assignment = expected[record.layer]
        fit = fits[record.key - 1]
        assert record.key == assignment.keys[record.channel]
        assert record.a == pytest.approx(assignment.a[record.channel], rel=1e-6)
        assert record.b == pytest.approx(assignment.b[record.channel], rel=1e-6, abs=1e-9)
        assert record.sigma_x == pytest.approx(max(fit.sigma_x, LEAST_START))
        assert record.sigma_y == pytest.approx(max(fit.sigma_y, LEAST_START))
        assert record.gamma == (None if fit.gamma is None else pytest.approx(fit.gamma))


def filters_of_all_keys(boundary: Boundary, size: int, **changes: Any) -> ScaleFilters:
    values = {
        "sigma_x": [0.5, 0.6, 0.7, 0.8, 1.1, 0.9, 0.7, 0.6],
        "sigma_y": [0.4, 0.5, 0.6, 0.3, 0.8, 1.0, 0.7, 0.7],
        "gamma": [0, 0, 0, 0, 0, 0, 0.5, 0],
        "a": [1, -0.5, 2, 0.3, 1, 1, -1, 1.5],
        "b": [0, 0.1, -0.2, 0, 0, 0.3, 0, 0],
    }
    return ScaleFilters(list(range(1, 9)), **(values | changes), size=size, boundary=boundary)


@pytest.mark.parametrize("size", [3, 7, 31])
@pytest.mark.parametrize("boundary", get_args(Boundary))
def test_weights_are_the_idealized_kernels(boundary: Boundary, size: int) -> None:
    filters = filters_of_all_keys(boundary, size).double()
    fits = [
        Scales(key, sx, sx if key == 7 else sy, gamma if key == 7 else None)
        for key, sx, sy, gamma in zip(
            filters.keys.tolist(),
            filters.sigma_x.tolist(),
            filters.sigma_y.tolist(),
            filters.gamma.tolist(),
            strict=True,
        )
    ]
    f = idealized_kernels(fits, boundary=boundary, size=size)
    f -= f.mean(axis=(1, 2), keepdims=True)
    f /= np.linalg.norm(f, axis=(1, 2), keepdims=True)
    a, b = (each.detach().numpy()[:, None, None] for each in (filters.a, filters.b))
    np.testing.assert_allclose(filters().detach()[:, 0], a * f + b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("boundary", get_args(Boundary))
def test_gradients_of_the_weights_agree_with_finite_differences(
    boundary: Boundary, size: int
) -> None:
    filters = filters_of_all_keys(boundary, size).double()
    names, values = zip(*filters.named_parameters(), strict=True)

    def weights(*parameters: Any) -> Any:
        return torch.func.functional_call(filters, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(weights, values)
    weights(*values).square().sum().backward()
    assert set(names) == {"sigma_x", "sigma_y", "gamma", "a", "b"}
    assert all(torch.isfinite(value.grad).all() for value in values)


def test_descent_finds_the_scales_of_a_filter() -> None:
    other = {
        "sigma_x": [0.6, 0.5, 0.9, 0.6, 0.9, 1.0, 0.6, 0.8],
        "sigma_y": [0.6, 0.7, 0.4, 0.5, 1.0, 0.8, 0.6, 0.5],
        "gamma": [0, 0, 0, 0, 0, 0, 0.4, 0],
    }
    target = filters_of_all_keys("symmetric", 7, **other).double()().detach()
    filters = filters_of_all_keys("symmetric", 7).double()
    optimizer = torch.optim.SGD(filters.parameters(), lr=0.03, momentum=0.9)
    for _ in range(1000):
        loss = (filters() - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(filters.sigma_x.detach(), other["sigma_x"], atol=1e-3)
    np.testing.assert_allclose(filters.sigma_y.detach()[:6], other["sigma_y"][:6], atol=1e-3)
    assert filters.gamma[6].item() == pytest.approx(0.4, abs=1e-3)


def test_a_scale_that_starts_at_zero_can_grow() -> None:
    target = ScaleFilters([8], [0.6], [0.6], [0], [1], [0], size=7)().detach()
    filters = ScaleFilters([8], [0], [0.6], [0], [1], [0], size=7)
    optimizer = torch.optim.Adam(filters.parameters(), lr=0.01)
    for _ in range(200):
        loss = (filters() - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(filters.sigma_x.item()) == pytest.approx(0.6, abs=0.01)


def test_a_sign_of_a_scale_changes_nothing() -> None:
    filters = filters_of_all_keys("symmetric", 7)
    before = filters().detach()
    with torch.no_grad():
        filters.sigma_x.neg_()
    assert torch.equal(filters(), before)


def test_autocast_leaves_the_filters_in_single_precision() -> None:
    filters = filters_of_all_keys("symmetric", 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = filters()
    assert weights.dtype == torch.float32
    assert torch.equal(weights, filters())


def test_learned_scales_are_saved_trained_and_made_plain_again() -> None:
    fits = fit_keys(load_keys(), method="B")
    network = Network(2)
    learn_scales(network, trained=Network(1), fits=fits)
    names = {name for name, _ in network.named_parameters()}
    assert {name for name in names if name.startswith("last.")} == {
        f"last.parametrizations.weight.0.{name}"
        for name in ("sigma_x", "sigma_y", "gamma", "a", "b")
    }
    assert {"stem.bias", "mix.weight", "mix.bias"} < names

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images = torch.randn(2, 40, 12, 12)
    network(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()
    outputs = network(images)

    again = copy.deepcopy(network)
    assert torch.equal(again(images), outputs)
    other = Network(3)
    learn_scales(other, trained=Network(4), fits=fits)  # other keys: they come with the state
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(images), outputs)
    assert scales_of(other) == scales_of(network)

    for layer in (network.stem, network.last):
        parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(network(images), outputs)
    assert network.state_dict().keys() == Network().state_dict().keys()
    assert scales_of(network) == []


def test_another_architecture_cannot_lend_its_filters() -> None:
    fits = fit_keys(load_keys(), method="B")
    with pytest.raises(TrainingError, match="same depthwise layers"):
        learn_scales(Network(), trained=torch.nn.Conv2d(3, 3, 7, groups=3), fits=fits)
