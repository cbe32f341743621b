"""The network that a report is about, and its study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mkf.assignment import Assignment, assign
from mkf.errors import GraphError
from mkf.fitting import Method, ScaleChoice, fit_keys
from mkf.idealization import kernels_by_size
from mkf.idealized import Boundary
from mkf.networks import onnx_graph, tensor_storage
from mkf.networks.sources import Options, load_source
from mkf.report.study import Study, layer_filters


@dataclass(frozen=True)
class Network:
    """A network's graph, and where it comes from."""

    source: str
    license: str  # of the weights
    random_weights: bool
    model: onnx.ModelProto
    folder: Path | None  # of its external data


def load_network(source: str) -> Network:
    """Load a network from `demo`, an ONNX file, `timm:NAME` or `checkpoint:FILE`.

    An ONNX file needs nothing but depthwise convolutions: it is not run.

    Raises
    ------
    MkfError
        As `mkf.networks.sources.load_source` does.
    """
    path = source.removeprefix("onnx:")
    if source.startswith("onnx:") or path.endswith(".onnx"):
        return Network(path, "not stated", False, onnx_graph.load(Path(path)), Path(path).parent)
    loaded = load_source(source, Options())
    provenance = loaded.provenance
    return Network(source, provenance.license, provenance.random_weights, loaded.model, None)


def study_network(
    network: Network,
    keys: NDArray[np.float64],
    *,
    method: Method,
    scales: ScaleChoice,
    boundary: Boundary,
) -> Study:
    """Fit the keys, and give every depthwise filter of the network its key.

    Parameters
    ----------
    keys : (8, k, k) array
        The learned keys.
    method, scales, boundary
        As in `mkf.fitting.fit_keys`.

    Raises
    ------
    GraphError
        The network has no depthwise convolution that can be idealized.
    FitError, KeysError
        The keys cannot be fitted.
    """
    fits = fit_keys(keys, method=method, scales=scales, boundary=boundary)

    by_size = kernels_by_size(fits, boundary)

    def choose(filters: NDArray[np.float64]) -> Assignment:
        return assign(filters, by_size(filters.shape[-1]))

    try:
        found = onnx_graph.assign_layers(
            network.model, choose, skip_unsuitable=True, folder=network.folder
        )
    except GraphError as error:
        raise GraphError(f"{network.source}: {error}") from error
    layers = []
    for one in found.layers:
        learned = tensor_storage.read(one.tensor, network.folder)[:, 0]
        name = one.layer.weight.name.removesuffix(".weight") or one.layer.name
        shapes = by_size(learned.shape[-1])
        layers.append(layer_filters(name, learned, one.assignment.idealized(), kernels=shapes))
    skipped = [layer.name for layer in found.skipped]
    return Study(method, scales, boundary, keys, fits, layers, skipped)
