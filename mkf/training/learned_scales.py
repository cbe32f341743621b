"""Train the scales of idealized filters: sigma_x, sigma_y and gamma become parameters.

Each depthwise filter keeps its key and stays a f^ + b, with f^ the key's idealized kernel made of
zero mean and unit norm (Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026),
arXiv 2509.12746, sections 4 and 5); what is trained are the scales of f, and a and b (extra
`train`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mkf.assignment import Assignment
from mkf.fitting import Scales, idealized_kernels
from mkf.idealized import Boundary
from mkf.keys import MASTER_KEYS, Operator
from mkf.networks.torch_module import depthwise_convolutions
from mkf.training.discrete_gaussian import discrete_gaussian
from mkf.training.frozen import freeze_idealized

LEAST_START = 1e-3
"""Where a sigma of 0 starts, in pixels: at 0 itself its gradient is 0 and it would stay there. The
kernel is off by less than 1e-6 of its norm."""

# What is done along an operator's axis, as weights of f(n-1), f(n), f(n+1).
_STENCILS: Mapping[Operator, tuple[float, float, float]] = {
    Operator.SMOOTH: (0, 1, 0),
    Operator.FORWARD: (0, -1, 1),
    Operator.BACKWARD: (-1, 1, 0),
    Operator.CENTRAL: (-0.5, 0, 0.5),
}


@dataclass(frozen=True, kw_only=True)
class ChannelScales(Scales):
    """One learned filter a f^ + b: the scales of f, and where it stands.

    Attributes
    ----------
    layer : str
        Name of the depthwise convolution in the network.
    channel : int
        From 0.
    a, b : float
        Factor of f^ and offset.
    """

    layer: str
    channel: int
    a: float
    b: float


class ScaleFilters(nn.Module):
    """The weight of one depthwise layer as a function of its scales (`parametrize`).

    The kernels depend on sigma by way of the variance s = sigma**2 alone, so sigma may take any
    sign and sigma and -sigma are one scale: nothing has to be clamped, and the function is smooth
    everywhere, through sigma = 0 too, which several keys come close to. A softplus, or log sigma,
    could not reach 0.

    Parameters
    ----------
    keys : array_like of int, shape (n,)
        The key of each channel; it stays.
    sigma_x, sigma_y : array_like of float, shape (n,)
        Scales in pixels to start from; from below `LEAST_START`, that.
    gamma : array_like of float, shape (n,)
        Weight of the Laplacian where the key is 7, in square pixels; elsewhere of no effect.
    a, b : array_like of float, shape (n,)
        Factor of f^ and offset.
    size : int
        Of the kernels: odd, from 3 to 31.
    boundary : {"symmetric", "exact"}
        How differences end (`mkf.idealized.idealized_kernel`).

    Notes
    -----
    Channels of key 7 have one scale, sigma_x; their sigma_y is not used and gets no gradient.
    All is computed in the dtype of the parameters, float32 if not converted, autocast or not.
    """

    keys: Tensor
    stencils: Tensor
    impulse: Tensor

    def __init__(
        self,
        keys: Sequence[int],
        sigma_x: Sequence[float],
        sigma_y: Sequence[float],
        gamma: Sequence[float],
        a: Sequence[float],
        b: Sequence[float],
        *,
        size: int,
        boundary: Boundary = "symmetric",
    ) -> None:
        super().__init__()
        self.size, self.boundary = size, boundary

        def parameter(values: Sequence[float]) -> nn.Parameter:
            return nn.Parameter(torch.as_tensor(np.array(values), dtype=torch.float32))

        self.sigma_x = parameter(np.maximum(sigma_x, LEAST_START).tolist())
        self.sigma_y = parameter(np.maximum(sigma_y, LEAST_START).tolist())
        self.gamma, self.a, self.b = parameter(gamma), parameter(a), parameter(b)

        impulse = torch.zeros(size, size)
        impulse[size // 2, size // 2] = 1
        self.register_buffer("keys", torch.tensor(list(keys), dtype=torch.int64))
        self.register_buffer("stencils", torch.tensor(_stencils()), persistent=False)  # (2, 8, 3)
        self.register_buffer("impulse", impulse, persistent=False)

    def forward(self) -> Tensor:
        """The weight a f^ + b, shape (n, 1, size, size)."""
        with torch.autocast(self.a.device.type, enabled=False):
            f = self._kernels()
            f = f - f.mean((1, 2), keepdim=True)
            norm = f.square().sum((1, 2), keepdim=True).sqrt()
            # Only a kernel that vanishes, of a scale beyond any fit, is as small as that.
            f = f / norm.clamp(min=torch.finfo(f.dtype).tiny)
            return (self.a[:, None, None] * f + self.b[:, None, None])[:, None]

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Nothing of the layer's own weight is kept: the parameters here are all there is."""
        del weight
        return ()

    def _kernels(self) -> Tensor:
        """The models of [LBK, section 4], shape (n, size, size), row 0 on top."""
        sharpens = self.keys == 7
        sigma_y = torch.where(sharpens, self.sigma_x, self.sigma_y)
        taps = self._taps(torch.stack([self.sigma_x, sigma_y]) ** 2)  # (2, n, size + 2)
        before, here, after = taps[..., :-2], taps[..., 1:-1], taps[..., 2:]
        weights = self.stencils[:, self.keys - 1, :, None]  # (2, n, 3, 1)
        factors = weights[:, :, 0] * before + weights[:, :, 1] * here + weights[:, :, 2] * after
        separable = _outer(factors[0], factors[1])

        smoothed, curved = here[0], (before - 2 * here + after)[0]
        laplacian = _outer(curved, smoothed) + _outer(smoothed, curved)
        sharpened = self.impulse - self.gamma[:, None, None] * laplacian
        return torch.where(sharpens[:, None, None], sharpened, separable)

    def _taps(self, s: Tensor) -> Tensor:
        """T over the kernel and one sample more at each end, shape (..., size + 2)."""
        exact = self.boundary == "exact"
        half = discrete_gaussian(s, self.size // 2 + exact)
        if not exact:  # the edge sample again
            half = torch.cat([half, half[..., -1:]], dim=-1)
        return torch.cat([half.flip(-1), half[..., 1:]], dim=-1)


def learn_scales(
    network: nn.Module,
    *,
    trained: nn.Module,
    fits: Sequence[Scales],
    boundary: Boundary = "symmetric",
) -> dict[str, Assignment]:
    """Give `network` the idealized filters of the trained one, with scales that can be trained.

    It starts from the network that `mkf.training.frozen.freeze_idealized` makes. The depthwise
    weights then are functions of `ScaleFilters`' parameters: create the optimizer afterwards, and
    spare them weight decay, which would pull scales to 0. Biases stay free.
    `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")` gives plain weights back.

    Parameters
    ----------
    network
        The network to train; changed in place.
    trained
        The network whose filters are assigned their keys; of the same architecture.
    fits
        Scales of the keys, such as `mkf.fitting.fit_keys` returns.
    boundary : {"symmetric", "exact"}
        How differences end (`mkf.idealized.idealized_kernel`).

    Returns
    -------
    dict
        The assignment of each layer's filters, by the layer's name; key i + 1 is `fits[i]`.

    Raises
    ------
    TrainingError
        The two networks do not have the same depthwise layers.
    FitError
        A model vanishes on the size of a layer's kernels.
    """
    assignments = freeze_idealized(
        network,
        trained=trained,
        kernels=lambda size: idealized_kernels(fits, boundary=boundary, size=size),
    )
    for name, layer in depthwise_convolutions(network):
        chosen = [fits[index] for index in assignments[name].keys - 1]
        filters = ScaleFilters(
            [fit.key for fit in chosen],
            [fit.sigma_x for fit in chosen],
            [fit.sigma_y for fit in chosen],
            [fit.gamma or 0.0 for fit in chosen],
            assignments[name].a.tolist(),
            assignments[name].b.tolist(),
            size=layer.kernel_size[0],
            boundary=boundary,
        )
        parametrize.register_parametrization(layer, "weight", filters.to(layer.weight))
    return assignments


def scales_of(network: nn.Module) -> list[ChannelScales]:
    """The scales of every channel that `learn_scales` made trainable, as they are now.

    Scales are given as they act: not negative, and sigma_y = sigma_x and a gamma for key 7 alone.
    """
    found = []
    for name, layer in depthwise_convolutions(network):
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        filters = layer.get_submodule("parametrizations.weight.0")
        columns = ("keys", "sigma_x", "sigma_y", "gamma", "a", "b")
        rows = zip(*(getattr(filters, column).tolist() for column in columns), strict=True)
        for channel, (key, sigma_x, sigma_y, gamma, a, b) in enumerate(rows):
            found.append(
                ChannelScales(
                    key,
                    abs(sigma_x),
                    abs(sigma_x if key == 7 else sigma_y),
                    gamma if key == 7 else None,
                    layer=name,
                    channel=channel,
                    a=a,
                    b=b,
                )
            )
    return found


def _stencils() -> list[list[tuple[float, float, float]]]:
    """The stencils of keys 1-8, along x and along y; those of key 7 are not used."""
    return [
        [
            _STENCILS[key.operator if key.axis == axis else Operator.SMOOTH]
            for key in MASTER_KEYS.values()
        ]
        for axis in ("x", "y")
    ]


def _outer(along_x: Tensor, along_y: Tensor) -> Tensor:
    """Kernels (n, size, size), row 0 on top, of factors by increasing x and y (upward)."""
    return along_y.flip(-1)[:, :, None] * along_x[:, None, :]
