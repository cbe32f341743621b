"""Find the depthwise convolutions of an ONNX model, and where each one's weights are.

A weight may be an initializer or a Constant, seen through any number of Identity nodes, from inside
the bodies of If, Loop and Scan, and as an argument of one of the model's own functions. So the
model is walked the way it is run, every name standing for the value that was last given to it.

A depthwise convolution is a Conv (or onnxruntime's FusedConv) of more than one group, each of one
channel: weights of shape (channels * multiplier, 1, height, width). ConvTranspose is another kind,
and so are the quantized convolutions.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import onnx
from google.protobuf.message import EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from mkf.errors import GraphError
from mkf.networks.protobuf_patch import Path

_STANDARD = ("", "ai.onnx")
_CONVOLUTIONS = {("", "Conv"), ("ai.onnx", "Conv"), ("com.microsoft", "FusedConv")}
_QUANTIZED = {"ConvInteger", "QLinearConv"}

Attributes = dict[str, AttributeProto]


@dataclass(eq=False)
class Value:
    """What a name stands for: a stored tensor, or something known only when the graph runs.

    Attributes
    ----------
    name : str
        Its name; inside a function, after the names of the calls that lead there.
    source : str
        For a message: what computes it. Empty for a stored tensor.
    tensor, path : TensorProto and Path
        The stored tensor and its place in the model.
    users : list of str
        The names of all that take it, once for every time it is taken.
    """

    name: str
    source: str = ""
    tensor: TensorProto | None = None
    path: Path = ()
    users: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Convolution:
    """A depthwise convolution; `shape` is its weights', empty if known only when the graph runs.

    `node` is its node, and `bias` what is added to its outputs; `path` is where the node stands.
    """

    name: str
    weight: Value
    shape: tuple[int, ...]
    attributes: Attributes
    node: NodeProto
    path: Path
    bias: Value | None

    @property
    def group(self) -> int:
        """The number of groups, which is that of input channels."""
        return int(self.attributes["group"].i)

    def sizes(self, attribute: str) -> tuple[int, ...]:
        """An attribute with a number for each axis of the image; empty where it is not given."""
        return tuple(self.attributes[attribute].ints) if attribute in self.attributes else ()


@dataclass(frozen=True)
class _Frame:
    """Where the walk is: the names it sees, how they are told apart, a function's attributes."""

    path: Path
    scope: ChainMap[str, Value]
    prefix: str
    arguments: Attributes


class Walk:
    """One walk through a model.

    Attributes
    ----------
    convolutions : list of Convolution
        The depthwise ones, in the order in which they run.
    quantized : int
        How many quantized convolutions there are, which are not among them.
    """

    def __init__(self, model: ModelProto) -> None:
        self.convolutions: list[Convolution] = []
        self.quantized = 0
        self._model = model
        self._inferred: dict[str, tuple[int, ...]] | None = None
        self._running: list[int] = []
        self._functions = {
            (function.domain, function.name, function.overload): (i, function)
            for i, function in enumerate(model.functions)
        }
        self._graph(model.graph, _Frame((("graph", 0),), ChainMap(), "", {}))

    def _graph(self, graph: GraphProto, frame: _Frame) -> None:
        for info in graph.input:
            frame.scope[info.name] = Value(_text(info.name), "the caller of the graph")
        # After the inputs: an initializer of the same name is the input's default value.
        for i, tensor in enumerate(graph.initializer):
            path = (*frame.path, ("initializer", i))
            frame.scope[tensor.name] = Value(_text(tensor.name), tensor=tensor, path=path)
        for sparse in graph.sparse_initializer:
            frame.scope[sparse.values.name] = Value(_text(sparse.values.name), "a sparse tensor")
        self._nodes(graph.node, frame)
        for info in graph.output:
            if info.name in frame.scope:
                frame.scope[info.name].users.append("the output of a graph")

    def _nodes(self, nodes: Iterable[NodeProto], frame: _Frame) -> None:
        for i, node in enumerate(nodes):
            self._node(node, replace(frame, path=(*frame.path, ("node", i))))

    def _node(self, node: NodeProto, frame: _Frame) -> None:
        name = frame.prefix + _text(node.name or next(filter(None, node.output), node.op_type))
        inputs = [frame.scope.get(given) for given in node.input]
        attributes = _attributes(node, frame.arguments)
        standard = node.domain in _STANDARD

        if (node.domain, node.op_type, node.overload) in self._functions:
            self._call(node, name, inputs, attributes, frame)
            return
        if standard and node.op_type == "Identity" and inputs and inputs[0] and node.output:
            frame.scope[node.output[0]] = inputs[0]
            return
        for value in filter(None, inputs):
            value.users.append(name)
        for path, graph in _subgraphs(node):
            inner = replace(frame, path=(*frame.path, *path), scope=frame.scope.new_child())
            self._graph(graph, inner)
        for output in node.output:
            made = Value(frame.prefix + _text(output), f"{_text(node.op_type)} {name!r}")
            if standard and node.op_type == "Constant":
                made = _constant(node, frame.path) or made
            frame.scope[output] = made
        self.quantized += standard and node.op_type in _QUANTIZED
        if (node.domain, node.op_type) in _CONVOLUTIONS and len(inputs) > 1 and inputs[1]:
            bias = inputs[2] if len(inputs) > 2 else None
            self._convolution(Convolution(name, inputs[1], (), attributes, node, frame.path, bias))

    def _call(
        self,
        node: NodeProto,
        name: str,
        inputs: list[Value | None],
        attributes: Attributes,
        frame: _Frame,
    ) -> None:
        i, function = self._functions[node.domain, node.op_type, node.overload]
        if i in self._running:
            raise GraphError(f"the function {function.name!r} calls itself: the file is damaged")
        names = ChainMap(
            {formal: v for formal, v in zip(function.input, inputs, strict=False) if v}
        )
        defaults = {attribute.name: attribute for attribute in function.attribute_proto}
        self._running.append(i)
        self._nodes(
            function.node, _Frame((("functions", i),), names, f"{name}/", defaults | attributes)
        )
        self._running.pop()
        for output, formal in zip(node.output, function.output, strict=False):
            missing = Value(frame.prefix + _text(output), f"{_text(node.op_type)} {name!r}")
            frame.scope[output] = names.get(formal, missing)

    def _convolution(self, found: Convolution) -> None:
        if "group" not in found.attributes or found.group < 2:
            return
        weight = found.weight
        shape = tuple(weight.tensor.dims) if weight.tensor else self._infer_shape(weight)
        # Grouped, and of weights whose shape nobody knows: listed, for it may well be one.
        if not shape or (len(shape) > 2 and shape[1] == 1):
            self.convolutions.append(replace(found, shape=shape))

    def _infer_shape(self, value: Value) -> tuple[int, ...]:
        if self._inferred is None:
            self._inferred = _inferred_shapes(self._model)
        return self._inferred.get(value.name, ())


def _text(name: str | bytes) -> str:
    """A name as text; protobuf hands over bytes where one is not in UTF-8."""
    return name if isinstance(name, str) else name.decode(errors="replace")


def _attributes(node: NodeProto, arguments: Attributes) -> Attributes:
    """A node's attributes, those that stand for an attribute of the calling node looked up."""
    found = {}
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            found[attribute.name] = attribute
        elif attribute.ref_attr_name in arguments:
            found[attribute.name] = arguments[attribute.ref_attr_name]
    return found


def _constant(node: NodeProto, path: Path) -> Value | None:
    """The tensor of a Constant node; None if it is given otherwise."""
    for i, attribute in enumerate(node.attribute):
        if attribute.name == "value" and attribute.HasField("t"):
            inner = (*path, ("attribute", i), ("t", 0))
            return Value(_text(node.output[0]), tensor=attribute.t, path=inner)
    return None


def _subgraphs(node: NodeProto) -> Iterator[tuple[Path, GraphProto]]:
    for i, attribute in enumerate(node.attribute):
        if attribute.HasField("g"):
            yield (("attribute", i), ("g", 0)), attribute.g
        for j, graph in enumerate(attribute.graphs):
            yield (("attribute", i), ("graphs", j)), graph


def _inferred_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes, where known in full, of the values that the main graph computes."""
    # Where inference gives up, what the exporter noted still stands.
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError, EncodeError):
        model = onnx.shape_inference.infer_shapes(model)
    shapes = {}
    for info in (*model.graph.input, *model.graph.value_info):
        dims = info.type.tensor_type.shape.dim
        if dims and all(dim.HasField("dim_value") for dim in dims):
            shapes[info.name] = tuple(dim.dim_value for dim in dims)
    return shapes
