"""What becomes of a network's depthwise filters while the rest is trained, and after."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mkf.assignment import Assignment
from mkf.errors import TrainingError
from mkf.fitting import Scales, idealized_kernels
from mkf.idealized import Boundary
from mkf.networks.torch_module import depthwise_convolutions
from mkf.training.frozen import freeze_idealized
from mkf.training.learned_scales import learn_scales

FilterChoice = Literal["frozen", "learned-scales", "learned"]


class _InFloat32(nn.Conv2d):
    """A convolution that autocast leaves alone: bfloat16 has 8 bits, too few for the filters."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images.float())


@functools.cache
def _in_float32(kind: Any) -> type[nn.Conv2d]:
    return type(f"Float32{kind.__name__}", (_InFloat32, kind), {})


def place_filters(
    network: nn.Module,
    choice: FilterChoice,
    *,
    trained: nn.Module | None = None,
    fits: Sequence[Scales] = (),
    boundary: Boundary = "symmetric",
) -> dict[str, Assignment]:
    """Prepare the depthwise layers of `network` for training, in place.

    Whatever the choice, they are computed in float32, under autocast too.

    Parameters
    ----------
    choice
        `frozen`: a f + b by the keys that the trained network's filters are assigned, fixed.
        `learned-scales`: the same, with the scales of f, and a and b, as parameters. `learned`:
        the filters that the network came with, trained like the rest.
    trained
        The network that assigns the keys; none for `learned`.
    fits
        Scales of the 8 keys; none for `learned`.

    Returns
    -------
    dict
        The assignment of each layer's filters, by the layer's name; empty for `learned`.

    Raises
    ------
    TrainingError
        The network has no depthwise layer, or not those of the trained one.
    """
    layers = depthwise_convolutions(network)
    if not layers:
        raise TrainingError("the network to train has no depthwise convolution; name another")
    for _, layer in layers:
        kind: Any = type(layer)
        layer.__class__ = _in_float32(kind)  # keeps parameters, hooks and names
    if choice == "learned" or trained is None:
        return {}
    if choice == "learned-scales":
        return learn_scales(network, trained=trained, fits=fits, boundary=boundary)
    return freeze_idealized(
        network,
        trained=trained,
        kernels=lambda size: idealized_kernels(fits, boundary=boundary, size=size),
    )


def plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights under the architecture's own names, on the CPU: filters, no scales.

    The network stays as it is. (`remove_parametrizations` on a copy would break it: a copy shares
    the class from which the weight is then removed.)
    """
    weights = {
        name: value
        for name, value in network.state_dict().items()
        if ".parametrizations." not in name
    }
    for name, layer in depthwise_convolutions(network):
        weights[f"{name}.weight"] = layer.weight
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}
