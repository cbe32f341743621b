"""Put idealized filters into a torch network and keep them fixed while the rest is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mkf.assignment import Assignment, assign
from mkf.errors import TrainingError
from mkf.networks.torch_module import depthwise_convolutions


def freeze_idealized(
    network: nn.Module,
    *,
    trained: nn.Module,
    kernels: Callable[[int], NDArray[np.float64]],
) -> dict[str, Assignment]:
    """Give `network` the idealized filters of the trained one, fixed [BKRG, LBK section 5].

    Every depthwise filter of `trained` is assigned its key; a f + b replaces the filter of the same
    layer and channel in `network`, whose depthwise weights require no gradient from then on. Their
    biases stay free.

    Parameters
    ----------
    kernels
        From a kernel size k, in pixels, to the 8 idealized kernels (8, k, k).

    Returns
    -------
    dict
        The assignment of each layer's filters, by the layer's name.

    Raises
    ------
    TrainingError
        The two networks do not have the same depthwise layers.
    """
    layers = dict(depthwise_convolutions(network))
    sources = dict(depthwise_convolutions(trained))
    if not layers or {name: layer.weight.shape for name, layer in layers.items()} != {
        name: layer.weight.shape for name, layer in sources.items()
    }:
        raise TrainingError(
            "the network to train and the trained one do not have the same depthwise layers; "
            "build both from one architecture"
        )
    assignments = {}
    for name, layer in layers.items():
        filters = sources[name].weight.detach().cpu().numpy()[:, 0]  # (n, k, k)
        assignments[name] = assign(filters, kernels(filters.shape[-1]))
        idealized = torch.from_numpy(assignments[name].idealized()[:, None])  # (n, 1, k, k)
        with torch.no_grad():
            layer.weight.copy_(idealized)
        layer.weight.requires_grad_(False)
    return assignments
