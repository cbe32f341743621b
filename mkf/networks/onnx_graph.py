"""Idealize the depthwise convolutions of an ONNX model in memory; `onnx_file` does it to files.

Every filter y of k x k values becomes a f^ + b of its key (see `mkf.assignment`). Only the numbers
of the weight tensors change: not their form of storage, and nothing else in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from mkf.assignment import Idealized, kept_by_key, total_kept
from mkf.errors import GraphError, InputError
from mkf.keys import MASTER_KEYS, SIZES
from mkf.networks import tensor_storage
from mkf.networks.depthwise import Convolution, Value, Walk

Choose = Callable[[NDArray[np.float64]], Idealized]
"""From the filters (n, k, k) of one layer to what becomes of them."""

_NAMED_IN_ERRORS = 4


@dataclass(frozen=True)
class DepthwiseLayer:
    """One depthwise convolution of a model.

    Attributes
    ----------
    name : str
        The node's name, or its output's if it has none; inside functions after the callers' names.
    channels, filters : int
        Input channels, and output channels, of which each has a filter of its own.
    kernel_size, stride, dilation : tuple of int
        Pixels along each axis of the image, height first; empty where only running would tell.
    convolution : Convolution
        Its node, weights and bias, and where they are.
    unsuitable : str
        Why this layer cannot be idealized and what to do; empty if it can.
    """

    name: str
    channels: int
    filters: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    convolution: Convolution
    unsuitable: str

    @property
    def weight(self) -> Value:
        """What the weights are, and where."""
        return self.convolution.weight

    @property
    def idealizable(self) -> bool:
        """Whether every filter of the layer can be replaced by a f^ + b."""
        return not self.unsuitable


@dataclass(frozen=True, eq=False)
class IdealizedLayer:
    """A layer, the tensor of its weights, and the keys of its filters."""

    layer: DepthwiseLayer
    tensor: TensorProto
    assignment: Idealized


@dataclass(frozen=True, eq=False)
class Idealization:
    """What became of a model: the layers idealized, and those left as they were on request."""

    layers: tuple[IdealizedLayer, ...]
    skipped: tuple[DepthwiseLayer, ...]

    @property
    def filters(self) -> int:
        """How many filters were idealized."""
        return sum(layer.layer.filters for layer in self.layers)

    @property
    def kept(self) -> float:
        """Share of the variance of all filters together that was kept, 0..1."""
        return total_kept(layer.assignment for layer in self.layers)

    def counts(self) -> dict[int, int]:
        """How many filters each key got."""
        return {
            key: sum(layer.assignment.counts()[key] for layer in self.layers) for key in MASTER_KEYS
        }

    def kept_by_key(self) -> dict[int, float | None]:
        """Share of the variance kept among the filters of each key; None for a key nobody got."""
        return kept_by_key(*(layer.assignment for layer in self.layers))


def load(path: Path) -> ModelProto:
    """Read an ONNX file, leaving external data where it is.

    Raises
    ------
    GraphError
        The file is no whole ONNX file.
    OSError
        It cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error


def parse(data: bytes) -> ModelProto:
    """The model that the bytes of an ONNX file hold.

    Raises
    ------
    GraphError
        They hold none, or only a part of one.
    """
    damaged = GraphError("is not an ONNX file, or only a part of one: export or copy it again")
    try:
        model: ModelProto = ModelProto.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise damaged from error
    # Protobuf takes any bytes that can be read as fields, and so an empty or cut file.
    if not model.ir_version or not model.graph.node or not model.opset_import:
        raise damaged
    return model


def depthwise_convolutions(
    model: ModelProto, *, folder: Path | None = None
) -> list[DepthwiseLayer]:
    """List every depthwise convolution of a model, in the order in which they run.

    Parameters
    ----------
    model : ModelProto
        The model; with external data, either loaded into it or to be found in `folder`.
    folder : Path, optional
        The folder of the model's file.

    Returns
    -------
    list of DepthwiseLayer
        Those in subgraphs and functions included, each with the reason if it cannot be idealized.

    Raises
    ------
    GraphError
        The model's functions call themselves.
    """
    return [_layer(found, model, folder) for found in Walk(model).convolutions]


def idealize(model: ModelProto, choose: Choose, *, skip_unsuitable: bool = False) -> Idealization:
    """Replace the filters of every depthwise convolution by those of their keys, in place.

    Parameters
    ----------
    model : ModelProto
        The model, external data loaded. After an error it is as it was.
    choose : callable
        From a layer's filters (n, k, k) to their keys, such as `mkf.idealization.idealizer` makes.
    skip_unsuitable : bool
        Leave layers that cannot be idealized as they are instead of refusing the model.

    Returns
    -------
    Idealization
        The keys of every layer.

    Raises
    ------
    GraphError
        There is no depthwise convolution, or one that cannot be idealized.
    """
    found = assign_layers(model, choose, skip_unsuitable=skip_unsuitable)
    for layer in found.layers:
        tensor_storage.store(layer.tensor, layer.assignment.idealized())
    return found


def assign_layers(
    model: ModelProto,
    choose: Choose,
    *,
    skip_unsuitable: bool = False,
    folder: Path | None = None,
) -> Idealization:
    """Give every filter of a model its key and change nothing; for the rest see `idealize`."""
    suitable, skipped = idealizable_layers(model, skip_unsuitable=skip_unsuitable, folder=folder)
    idealized = []
    for layer in suitable:
        tensor = _stored(layer)
        filters = tensor_storage.read(tensor, folder)[:, 0]  # (n, k, k)
        try:
            assignment = choose(filters)
        except InputError as error:
            raise GraphError(f"{layer.name!r}: {error}") from error
        idealized.append(IdealizedLayer(layer, tensor, assignment))
    return Idealization(tuple(idealized), tuple(skipped))


def idealizable_layers(
    model: ModelProto, *, skip_unsuitable: bool = False, folder: Path | None = None
) -> tuple[list[DepthwiseLayer], list[DepthwiseLayer]]:
    """The depthwise convolutions that can be idealized, and those left aside on request.

    Raises
    ------
    GraphError
        There is none, or one that cannot be idealized and is not to be skipped.
    """
    walk = Walk(model)
    layers = [_layer(convolution, model, folder) for convolution in walk.convolutions]
    suitable = [layer for layer in layers if layer.idealizable]
    skipped = [layer for layer in layers if not layer.idealizable]
    if not layers:
        if walk.quantized:
            raise GraphError(
                f"holds no depthwise convolutions but {walk.quantized} quantized convolutions: "
                "idealize the network before it is quantized"
            )
        raise GraphError("holds no depthwise convolutions: pass a network that has some")
    if skipped and not (skip_unsuitable and suitable):
        raise GraphError(_refusal(skipped, len(layers)))
    return suitable, skipped


def _layer(found: Convolution, model: ModelProto, folder: Path | None) -> DepthwiseLayer:
    kernel_size = found.shape[2:] or found.sizes("kernel_shape")
    return DepthwiseLayer(
        name=found.name,
        channels=found.group,
        filters=found.shape[0] if found.shape else found.group,
        kernel_size=kernel_size,
        stride=found.sizes("strides") or (1,) * len(kernel_size),
        dilation=found.sizes("dilations") or (1,) * len(kernel_size),
        convolution=found,
        unsuitable=_unsuitable(found.weight, kernel_size, model, folder),
    )


def _unsuitable(
    weight: Value, kernel_size: tuple[int, ...], model: ModelProto, folder: Path | None
) -> str:
    """Why a layer of these weights cannot be idealized, empty if it can."""
    if weight.tensor is None:
        quantized = weight.source.startswith("DequantizeLinear")
        cure = (
            "idealize the network before it is quantized"
            if quantized
            else "fold the graph's constants first, as onnxruntime does when it optimizes offline"
        )
        return f"its weights are not stored but come from {weight.source}: {cure}"
    if len(weight.users) > 1:
        others = " and ".join(dict.fromkeys(weight.users))
        return f"its weights {weight.name!r} are shared by {others}: export them once for each"
    if len(kernel_size) != 2:
        return f"its kernel is {len(kernel_size)}-dimensional; keys are images"
    height, width = kernel_size
    if height != width or height not in SIZES:
        return (
            f"its kernel is {height}x{width}; keys are odd squares from {SIZES[0]} to {SIZES[-1]}"
        )
    try:
        values = tensor_storage.read(weight.tensor, folder)
    except GraphError as error:
        return str(error)
    if not np.isfinite(values).all():
        return f"its weights {weight.name!r} hold NaN or infinite values: train or export it again"
    if sharer := _shares_bytes(weight, model):
        return f"its weights {weight.name!r} share external bytes with {sharer!r}: save it again"
    return ""


def _shares_bytes(weight: Value, model: ModelProto) -> str:
    """The name of another tensor on the same bytes of an external file; empty if there is none."""
    if weight.tensor is None or not tensor_storage.is_external(weight.tensor):
        return ""
    own = tensor_storage.external_span(weight.tensor)
    for path, other in tensor_storage.tensors(model):
        if path == weight.path or not tensor_storage.is_external(other):
            continue
        if own.overlaps(tensor_storage.external_span(other)):
            return other.name or "an unnamed tensor"
    return ""


def _stored(layer: DepthwiseLayer) -> TensorProto:
    if layer.weight.tensor is None:
        raise ValueError(f"layer {layer.name!r} has no stored weights")
    return layer.weight.tensor


def _refusal(skipped: Sequence[DepthwiseLayer], layers: int) -> str:
    reasons = [f"{layer.name!r}: {layer.unsuitable}" for layer in skipped[:_NAMED_IN_ERRORS]]
    if len(skipped) > _NAMED_IN_ERRORS:
        reasons.append(f"and {len(skipped) - _NAMED_IN_ERRORS} more (see `mkf inspect`)")
    left = "" if len(skipped) == layers else "; --skip-unsuitable leaves such layers as they are"
    return (
        f"{len(skipped)} of its {layers} depthwise convolutions cannot be idealized: "
        f"{'; '.join(reasons)}{left}"
    )
