"""All depthwise filters of one or several networks, without their graphs being run or exported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mkf.demo import DEMO_BASELINE, DEMO_IDEALIZED
from mkf.errors import GraphError, InputError
from mkf.keys import SIZES
from mkf.networks import onnx_graph, tensor_storage
from mkf.networks.sources import DEMO_SIBLING, Options


@dataclass(frozen=True, eq=False)
class FilterLayer:
    """The filters (n, k, k) float64 of one depthwise convolution, or why they are left out."""

    source: str
    name: str
    filters: NDArray[np.float64]
    left_out: str = ""


def source_uri(text: str) -> str:
    """A source as given on a command line; a bare path of an ONNX file gets its scheme."""
    return f"onnx:{text}" if text.lower().endswith(".onnx") and ":" not in text else text


def collect_filters(uris: Iterable[str], options: Options) -> list[FilterLayer]:
    """The depthwise filters of every source, layer by layer in the order in which they run.

    Parameters
    ----------
    uris
        As `mkf.networks.sources.load_source` takes them. Options that a kind of source does not
        know are kept from it, so that several kinds go together.
    options
        `random_weights` and `seed` are for timm's networks, `architecture` is for checkpoints.

    Raises
    ------
    InputError
        A source cannot be used, is named twice, or has no depthwise convolution; or no source is of
        the kind that an option is for.
    SourceError
        The network's weights cannot be had.
    MissingExtraError
        A timm or checkpoint source without torch and timm.
    """
    uris = list(uris)
    twice = [uri for uri in uris if uris.count(uri) > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice, and its filters would count twice")
    schemes = [uri.partition(":")[0] for uri in uris]
    if options.random_weights and "timm" not in schemes:
        raise InputError("--random-weights goes with timm:NAME, and no source is one")
    if options.architecture and "checkpoint" not in schemes:
        raise InputError("--architecture goes with checkpoint:FILE, and no source is one")
    layers = []
    for uri in uris:
        found = _of_source(uri, options)
        if not found:
            raise GraphError(f"{uri}: holds no depthwise convolutions: name a network with some")
        layers += found
    return layers


def _of_source(uri: str, options: Options) -> list[FilterLayer]:
    scheme, _, rest = uri.partition(":")
    if uri == "demo":
        return _of_onnx(DEMO_BASELINE, uri)
    if uri == DEMO_SIBLING:
        return _of_onnx(DEMO_IDEALIZED, uri)
    if scheme == "onnx" and rest:
        return _of_onnx(Path(rest), uri)
    if scheme in ("timm", "checkpoint") and rest:
        return _of_torch(scheme, rest, uri, options)
    raise InputError(f"unknown source {uri!r}; use demo, onnx:FILE, timm:NAME or checkpoint:FILE")


def _of_onnx(path: Path, uri: str) -> list[FilterLayer]:
    model = onnx_graph.load(path)
    layers = []
    for found in onnx_graph.depthwise_convolutions(model, folder=path.parent):
        if found.weight.tensor is None or found.unsuitable:
            nothing = np.empty((found.filters, 0, 0))
            layers.append(FilterLayer(uri, found.name, nothing, found.unsuitable))
        else:
            filters = tensor_storage.read(found.weight.tensor, path.parent)[:, 0]
            layers.append(FilterLayer(uri, found.name, filters))
    return layers


def _of_torch(scheme: str, rest: str, uri: str, options: Options) -> list[FilterLayer]:
    from mkf.networks import zoo
    from mkf.networks.torch_module import depthwise_convolutions

    if scheme == "checkpoint":
        from mkf.networks.checkpoints import checkpoint_network

        network = checkpoint_network(Path(rest), architecture=options.architecture)
    elif options.random_weights:
        network = zoo.random_network(rest, seed=options.seed)
    else:
        network = zoo.pretrained_network(rest)
    layers = []
    for name, module in depthwise_convolutions(network.module):
        filters = module.weight.detach().cpu().double().numpy()[:, 0]  # (n, height, width)
        height, width = filters.shape[1:]
        layer = FilterLayer(uri, name, filters)
        if height != width or height not in SIZES:
            reason = (
                f"its kernel is {height}x{width}; keys are odd squares from {SIZES[0]} to "
                f"{SIZES[-1]}"
            )
            layer = replace(layer, left_out=reason)
        layers.append(layer)
    return layers
