"""From a network's own graph to the served one: uint8 pixels in, logits out, any batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from mkf.errors import GraphError, one_line
from mkf.repository import OPSET, Preprocessing

IR_VERSION = 10  # what ONNX Runtime 1.18 (in current Triton releases) and later read
PREFIX = "mkf_preprocessing/"
_PASSING = {"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze"}


@dataclass(frozen=True)
class NetworkGraph:
    """A network's own graph, in the form that can be served: one float image input, one output."""

    model: onnx.ModelProto  # opset 20, float32, any batch size
    input_name: str
    output_name: str
    input_size: tuple[int, int]  # height, width in pixels
    channels_first: bool
    classes: int

    def normalize(
        self, images: NDArray[np.uint8], preprocessing: Preprocessing
    ) -> NDArray[np.float32]:
        """Pixels (n, h, w, 3) as the network's own input, float32, in its own layout."""
        scaled = (images / 255 - preprocessing.mean) / preprocessing.std
        if self.channels_first:
            scaled = scaled.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(scaled, dtype=np.float32)


def without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the scores before its last softmax as its output; a copy, if it has one."""
    producers = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    name = model.graph.output[0].name if len(model.graph.output) == 1 else ""
    # Exporters put casts and reshapes behind it.
    while name in producers and model.graph.node[producers[name]].op_type in _PASSING:
        name = model.graph.node[producers[name]].input[0]
    if name not in producers or model.graph.node[producers[name]].op_type != "Softmax":
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    node = plain.graph.node[producers[name]]
    node.op_type = "Identity"
    del node.attribute[:]
    return plain


def network_graph(model: onnx.ModelProto, input_size: tuple[int, int] | None) -> NetworkGraph:
    """Bring a classifier's graph to opset 20 and to any batch size.

    Parameters
    ----------
    input_size
        Height and width in pixels, for graphs that leave them open.

    Raises
    ------
    GraphError
        The graph has no single float32 image input of 3 channels or no single output of class
        scores, its size is not the one asked for, or it cannot be converted to opset 20.
    """
    model = _convert(model)
    image, channels_first, size = _image_input(model.graph, input_size)
    output = _class_output(model.graph)
    batch = "batch"
    image_dims = [3, *size] if channels_first else [*size, 3]
    del model.graph.input[:]
    model.graph.input.append(
        helper.make_tensor_value_info(image, TensorProto.FLOAT, [batch, *image_dims])
    )
    del model.graph.output[:]
    del model.graph.value_info[:]  # intermediate shapes may hold the source's fixed batch
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return NetworkGraph(model, image, output, size, channels_first, _classes(model, output))


def serving_graph(network: NetworkGraph, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Contract 1's graph: `images` UINT8 (batch, h, w, 3) -> `logits` FP32 (batch, classes).

    The scaling to [0, 1], the mean and the standard deviation become one product and one sum.

    Raises
    ------
    GraphError
        The result is not a valid graph.
    """
    source = _free_names(network, ("images", "logits"))
    model = source.model
    std = np.asarray(preprocessing.std)
    scale = (1 / (255 * std)).astype(np.float32)
    shift = (-np.asarray(preprocessing.mean) / std).astype(np.float32)
    normalized = PREFIX + "normalized" if source.channels_first else source.input_name
    nodes = [
        helper.make_node("Cast", ["images"], [PREFIX + "float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [PREFIX + "float", PREFIX + "scale"], [PREFIX + "scaled"]),
        helper.make_node("Add", [PREFIX + "scaled", PREFIX + "shift"], [normalized]),
    ]
    if source.channels_first:
        nodes.append(
            helper.make_node("Transpose", [normalized], [source.input_name], perm=[0, 3, 1, 2])
        )
    logits = helper.make_node("Identity", [source.output_name], ["logits"])
    graph = helper.make_graph(
        [*nodes, *model.graph.node, logits],
        model.graph.name,
        [
            helper.make_tensor_value_info(
                "images", TensorProto.UINT8, ["batch", *source.input_size, 3]
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", source.classes])],
        [
            numpy_helper.from_array(scale, PREFIX + "scale"),
            numpy_helper.from_array(shift, PREFIX + "shift"),
            *model.graph.initializer,
        ],
        sparse_initializer=model.graph.sparse_initializer,
    )
    served = onnx.ModelProto()
    served.CopyFrom(model)
    served.graph.CopyFrom(graph)
    served.producer_name = "mkf"
    served.producer_version = ""
    try:
        onnx.checker.check_model(served)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"the graph to serve is not valid ONNX: {one_line(error)}") from error
    return served


def _convert(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    if opset != OPSET:
        try:
            converted = version_converter.convert_version(model, OPSET)
        except (RuntimeError, ValueError) as error:
            raise GraphError(
                f"the graph of opset {opset} cannot be converted to opset {OPSET}: "
                f"{one_line(error)}; "
                f"export it from its framework with opset {OPSET}"
            ) from error
    converted.ir_version = IR_VERSION
    return converted


def _image_input(
    graph: onnx.GraphProto, input_size: tuple[int, int] | None
) -> tuple[str, bool, tuple[int, int]]:
    """Name, whether channels come first, and size of the only input that is no weight."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise GraphError(
            f"the graph has {len(inputs)} inputs ({_names(inputs)}); "
            "export one that takes images only"
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]  # 0 where open
    kind = TensorProto.DataType.Name(tensor.elem_type)
    if kind != "FLOAT" or len(dims) != 4 or not {dims[1], dims[3]} & {0, 3}:
        raise GraphError(
            f"the input {inputs[0].name!r} is {kind} {dims}; "
            "needed are float32 images of 3 channels, (N, 3, H, W) or (N, H, W, 3)"
        )
    channels_first = dims[1] == 3 or dims[3] != 3
    height, width = dims[2:] if channels_first else dims[1:3]
    if input_size is None and 0 in (height, width):
        raise GraphError(
            f"the input {inputs[0].name!r} leaves height and width open; "
            "give them with --input-size"
        )
    size = input_size or (height, width)
    if any(own not in (0, asked) for own, asked in zip((height, width), size, strict=True)):
        raise GraphError(
            f"the graph takes {height}x{width} pixels, not {size[0]}x{size[1]}; "
            "leave --input-size away, or export the network for that size"
        )
    return inputs[0].name, channels_first, size


def _class_output(graph: onnx.GraphProto) -> str:
    if len(graph.output) != 1:
        raise GraphError(
            f"the graph has {len(graph.output)} outputs ({_names(graph.output)}); "
            "export one that gives the class scores only"
        )
    return str(graph.output[0].name)


def _classes(model: onnx.ModelProto, output: str) -> int:
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise GraphError(f"the graph's shapes do not fit together: {one_line(error)}") from error
    tensor = inferred.graph.output[0].type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if tensor.elem_type != TensorProto.FLOAT or len(dims) != 2 or dims[1] < 2:
        raise GraphError(
            f"the output {output!r} is {TensorProto.DataType.Name(tensor.elem_type)} {dims}; "
            "needed are float32 scores, (N, classes) with a fixed number of classes"
        )
    return int(dims[1])


def _free_names(network: NetworkGraph, names: Sequence[str]) -> NetworkGraph:
    """The same network with all its tensors renamed where one of them has a name that we need."""
    graph = network.model.graph
    taken = {value for node in graph.node for value in (*node.input, *node.output)}
    if taken.isdisjoint(names):
        return network
    renamed = onnx.compose.add_prefix(network.model, "network/", rename_nodes=False)
    return NetworkGraph(
        renamed,
        "network/" + network.input_name,
        "network/" + network.output_name,
        network.input_size,
        network.channels_first,
        network.classes,
    )


def _names(values: Sequence[onnx.ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values)
