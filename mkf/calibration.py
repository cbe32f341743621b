"""Refit idealized filters to what the network itself computes; no label is used.

Layer after layer, each depthwise convolution of the idealized network learns to give the outputs
that the learned network gives for the same images, from the inputs that the layers before it, by
then idealized, now give. With patches p of the input, centered, and the learned network's outputs
z, also centered, a filter f leaves E (z - <f, p>)^2: a squared distance of f under the metric
G = E p p^T from w = G^-1 E p z. So all that finds terms for a filter finds them here too, under
that metric, and the bias behind the filter follows from the two means. (Reconstruction of a
layer's outputs, as Nagel et al., "Up or down? Adaptive rounding for post-training quantization",
ICML 2020, arXiv 2004.10568, do it for quantized weights.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from mkf.errors import GraphError
from mkf.expansion import Floats, Problem
from mkf.idealization import Idealizer
from mkf.networks import tensor_storage
from mkf.networks.activations import Inputs, Samples, patches, sampled_outputs
from mkf.networks.depthwise import Value
from mkf.networks.onnx_graph import (
    DepthwiseLayer,
    Idealization,
    IdealizedLayer,
    idealizable_layers,
)

LARGEST_SIZE = 15  # pixels; the moments of larger kernels would take gigabytes

# Of the mean variance of a patch: it holds a filter to the learned one in what the images do not
# tell.
_RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What became of a model, and the share of each layer's outputs' variance that is missed."""

    idealization: Idealization
    missed: dict[str, float]


def calibrate(
    model: onnx.ModelProto,
    inputs: Inputs,
    idealize: Idealizer,
    *,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> Calibrated:
    """Idealize all depthwise filters of a model, in place, so that each layer's outputs are kept.

    Parameters
    ----------
    model
        The learned network, external data loaded. After an error it is as it was.
    inputs
        Batches of some hundred images, as the network takes them.
    idealize
        What is imposed on the filters.
    seed
        Of the positions that are looked at.
    advance
        Called after each layer, with the number of layers done and of all.

    Raises
    ------
    GraphError
        A depthwise convolution cannot be idealized, or its inputs cannot be seen.
    """
    idealized = onnx.ModelProto()
    idealized.CopyFrom(model)
    layers = _layers(idealized)
    convolutions = [layer.convolution for layer in layers]
    learned = sampled_outputs(model, convolutions, inputs, np.random.default_rng(seed))
    found, missed = [], {}
    for done, (layer, samples) in enumerate(zip(layers, learned, strict=True), start=1):
        weight = layer.weight.tensor
        if weight is None:  # `_layers` has seen to it
            raise GraphError(f"{layer.name!r} has no stored weights")
        filters = tensor_storage.read(weight, None)[:, 0]
        bias = _bias(idealized, layer)
        moments = _Moments.of(idealized, layer, inputs, samples, centered=bias is not None)
        result = idealize(filters, moments.problem(filters))
        values = result.idealized()
        tensor_storage.store(weight, values[:, None])
        if bias is not None:
            bias.add(moments.shift(values))
        found.append(IdealizedLayer(layer, weight, result))
        missed[layer.name] = moments.missed(values)
        advance(done, len(layers))
    model.CopyFrom(idealized)
    return Calibrated(Idealization(tuple(found), ()), missed)


def _layers(model: onnx.ModelProto) -> list[DepthwiseLayer]:
    """The depthwise convolutions in the order in which they run, all of which can be calibrated."""
    layers, _ = idealizable_layers(model)
    for layer in layers:
        if len(layer.convolution.path) != 2:  # its graph, its node
            raise GraphError(
                f"{layer.name!r} lies inside a function or a branch, where its inputs cannot be "
                "seen: inline the model's functions first"
            )
        if layer.kernel_size[0] > LARGEST_SIZE:
            raise GraphError(
                f"{layer.name!r}: kernels above {LARGEST_SIZE}x{LARGEST_SIZE} cannot be calibrated"
            )
    return layers


@dataclass(frozen=True, eq=False)
class _Bias:
    """A stored tensor that shifts a convolution's outputs, up or (`sign` -1) down."""

    tensor: onnx.TensorProto
    sign: int

    def add(self, shift: Floats) -> None:
        """Shift the outputs by so much, (filters,)."""
        values = tensor_storage.read(self.tensor, None)
        tensor_storage.store(self.tensor, values + self.sign * shift)


def _bias(model: onnx.ModelProto, layer: DepthwiseLayer) -> _Bias | None:
    """The convolution's own bias, or the mean that the normalization behind it takes off."""

    def own(value: Value | None) -> onnx.TensorProto | None:
        return value.tensor if value is not None and len(value.users) == 1 else None

    convolution = layer.convolution
    if convolution.bias is not None:
        tensor = own(convolution.bias)
        return None if tensor is None else _Bias(tensor, 1)
    (output,) = convolution.node.output
    users = [node for node in model.graph.node if output in node.input]
    if len(users) == 1 and users[0].op_type == "BatchNormalization":
        mean = users[0].input[3]
        takers = sum(list(node.input).count(mean) for node in model.graph.node)
        for tensor in model.graph.initializer:
            if tensor.name == mean and takers == 1:
                return _Bias(tensor, -1)
    return None


@dataclass(frozen=True, eq=False)
class _Moments:
    """What a layer's inputs and wanted outputs say of its n filters of d values.

    Attributes
    ----------
    gram : (n, d, d) float64
        E p p^T of the patches p that each filter sees.
    cross : (n, d) float64
        E p z with the wanted outputs z.
    power : (n,) float64
        E z^2.
    variance : (n,) float64
        Of the wanted outputs.
    patch, output : (n, d), (n,) float64
        The means that were taken off; zeros where there is no bias to make up for them.
    """

    gram: Floats
    cross: Floats
    power: Floats
    variance: Floats
    patch: Floats
    output: Floats

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        layer: DepthwiseLayer,
        inputs: Inputs,
        samples: Samples,
        *,
        centered: bool,
    ) -> _Moments:
        """The moments of `layer` as `model` runs it, against outputs sampled elsewhere."""
        multiplier = layer.filters // layer.channels
        area = layer.kernel_size[0] ** 2
        gram = np.zeros((layer.channels, area, area))
        patch = np.zeros((layer.channels, area))
        cross = np.zeros((layer.filters, area))
        outputs = np.concatenate(samples.outputs, axis=1).astype(np.float64)
        # Sums of squares around a value near the mean: around 0 they would lose what varies little.
        origin: Floats | None = None
        for seen, wanted in zip(
            patches(model, layer.convolution, inputs, samples), samples.outputs, strict=True
        ):  # (channels, s, d), (filters, s)
            if origin is None:
                origin = seen.mean(axis=(1, 2), dtype=np.float64) * centered
            near = seen - origin[:, None, None]  # float64
            gram += near.swapaxes(1, 2) @ near
            patch += near.sum(axis=1)
            grouped = wanted.reshape(layer.channels, multiplier, -1)
            cross += (grouped @ near).reshape(layer.filters, area)
        count = outputs.shape[1]
        gram, patch, cross = gram / count, patch / count, cross / count
        variance, power = outputs.var(axis=1), np.einsum("ns,ns->n", outputs, outputs) / count
        patch = np.repeat(patch, multiplier, axis=0)
        gram = np.repeat(gram, multiplier, axis=0)
        output = outputs.mean(axis=1)
        if centered:
            gram -= patch[:, :, None] * patch[:, None, :]
            cross -= patch * output[:, None]
            power = variance
            if origin is not None:
                patch = patch + np.repeat(origin, multiplier)[:, None]
        else:
            patch, output = np.zeros_like(patch), np.zeros_like(output)
        return cls(gram, cross, power, variance, patch, output)

    def problem(self, learned: Floats) -> Problem:
        """Filters whose outputs are the wanted ones, near `learned` (n, k, k) in what is open."""
        n, area = self.cross.shape
        ridge = _RIDGE * np.trace(self.gram, axis1=1, axis2=2) / area
        ridge = np.where(ridge > 0, ridge, 1.0)  # a channel that is never on: stay as learned
        cross = self.cross + ridge[:, None] * learned.reshape(n, area)
        # The square root of the matrix, by its eigenvalues, which rounding may leave below 0.
        values, vectors = np.linalg.eigh(self.gram)
        roots = np.sqrt(values.clip(min=0) + ridge[:, None])
        metric = np.asarray(roots[:, :, None] * vectors.swapaxes(1, 2), dtype=np.float64)
        pulled = (vectors.swapaxes(1, 2) @ cross[:, :, None])[:, :, 0]
        return Problem(pulled / roots, metric)

    def shift(self, filters: Floats) -> Floats:
        """What a bias must add for the outputs' mean to be met, (n,)."""
        seen = np.einsum("nd,nd->n", filters.reshape(self.patch.shape), self.patch)
        return np.asarray(self.output - seen)

    def missed(self, filters: Floats) -> float:
        """Share of the outputs' variance that filters (n, k, k) and their bias do not give."""
        f = filters.reshape(self.cross.shape)
        explained = 2 * np.einsum("nd,nd->n", f, self.cross)
        error = self.power - explained + np.einsum("nd,nde,ne->n", f, self.gram, f)
        whole = float(self.variance.sum())
        return float(error.sum()) / whole if whole > 0 else 0.0
