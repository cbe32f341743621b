"""What a graph's convolutions see and give for some images, at positions drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from mkf.errors import GraphError
from mkf.networks import tensor_storage
from mkf.networks.depthwise import Convolution
from mkf.networks.sources import open_session

Inputs = Sequence[NDArray[np.float32]]
"""Batches of a network's own input."""

POSITIONS = 24  # of an image, drawn for each layer


@dataclass(frozen=True, eq=False)
class Samples:
    """A convolution's outputs at some positions of each image, batch by batch.

    Attributes
    ----------
    positions : list of (n, p) int64
        Indices into the output's rows, one after the other.
    outputs : list of (filters, n p) float32
        What the filters alone give: the convolution's bias is taken off.
    """

    positions: list[NDArray[np.int64]]
    outputs: list[NDArray[np.float32]]


def sampled_outputs(
    model: onnx.ModelProto,
    convolutions: Sequence[Convolution],
    inputs: Inputs,
    rng: np.random.Generator,
) -> list[Samples]:
    """The outputs of convolutions of the main graph at random positions, for each of them.

    Raises
    ------
    GraphError
        A bias is not stored in the model.
    """
    names = [convolution.node.output[0] for convolution in convolutions]
    biases = [_bias(convolution) for convolution in convolutions]
    samples = [Samples([], []) for _ in names]
    for outputs in _run(model, names, inputs):
        for sample, output, bias in zip(samples, outputs, biases, strict=True):
            n, filters, height, width = output.shape
            count = min(POSITIONS, height * width)
            drawn = rng.random((n, height * width)).argpartition(count - 1, axis=1)[:, :count]
            values = np.take_along_axis(
                output.reshape(n, filters, -1), drawn[:, None, :], axis=2
            )  # (n, filters, p)
            sample.positions.append(drawn)
            flat = values.swapaxes(0, 1).reshape(filters, -1)
            sample.outputs.append(flat - bias.reshape(-1, 1))
    return samples


def patches(
    model: onnx.ModelProto, convolution: Convolution, inputs: Inputs, samples: Samples
) -> Iterator[NDArray[np.float32]]:
    """What the filters see at the sampled positions, (channels, n p, k k), batch by batch.

    Raises
    ------
    GraphError
        The convolution's padding is one that this version does not know.
    """
    (size, _) = convolution.shape[2:]
    stride = convolution.sizes("strides") or (1, 1)
    dilation = convolution.sizes("dilations") or (1, 1)
    batches = _run(model, [convolution.node.input[0]], inputs)
    for (seen,), positions in zip(batches, samples.positions, strict=True):
        padding = _padding(convolution, seen.shape[2:], size, stride, dilation)
        padded = np.pad(seen, ((0, 0), (0, 0), *padding))
        n, channels, _, width = padded.shape
        columns = (width - dilation[1] * (size - 1) - 1) // stride[1] + 1
        taps = np.arange(size)
        rows = (positions // columns * stride[0])[:, :, None] + taps * dilation[0]  # (n, p, k)
        across = (positions % columns * stride[1])[:, :, None] + taps * dilation[1]
        found = padded[
            np.arange(n)[:, None, None, None], :, rows[:, :, :, None], across[:, :, None, :]
        ]  # (n, p, k, k, channels)
        flat = found.reshape(-1, size * size, channels)
        yield np.ascontiguousarray(flat.transpose(2, 0, 1))


def _bias(convolution: Convolution) -> NDArray[np.float32]:
    """What is added to each filter's outputs, (filters,) or (1,)."""
    if convolution.bias is None:
        return np.zeros(1, np.float32)
    if convolution.bias.tensor is None:
        raise GraphError(
            f"the bias of {convolution.name!r} is not stored but comes from "
            f"{convolution.bias.source}: fold the graph's constants first"
        )
    return tensor_storage.read(convolution.bias.tensor, None).astype(np.float32)


def _padding(
    convolution: Convolution,
    image: tuple[int, ...],
    size: int,
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """Zeros before and after each axis of the image, as ONNX defines `pads` and `auto_pad`."""
    automatic = convolution.attributes.get("auto_pad")
    kind = automatic.s.decode() if automatic is not None and automatic.s else "NOTSET"
    if kind == "VALID":
        return [(0, 0), (0, 0)]
    if kind == "NOTSET":
        top, left, bottom, right = convolution.sizes("pads") or (0, 0, 0, 0)
        return [(top, bottom), (left, right)]
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        raise GraphError(f"{convolution.name!r} pads by {kind!r}, which ONNX does not define")
    padding = []
    for pixels, step, apart in zip(image, stride, dilation, strict=True):
        steps = -(-pixels // step)
        whole = max(0, (steps - 1) * step + apart * (size - 1) + 1 - pixels)
        less, more = whole // 2, whole - whole // 2
        padding.append((less, more) if kind == "SAME_UPPER" else (more, less))
    return padding


def _run(
    model: onnx.ModelProto, names: Sequence[str], inputs: Inputs
) -> Iterator[list[NDArray[np.float32]]]:
    """The values of these names, batch by batch; nothing is run that they do not need."""
    stored = {tensor.name for tensor in model.graph.initializer}
    given = next(value.name for value in model.graph.input if value.name not in stored)
    if list(names) == [given]:
        yield from ([batch] for batch in inputs)
        return
    session = open_session(_reduced(model, names))
    (image,) = session.get_inputs()
    fixed = image.shape[0]
    for batch in inputs:
        size = fixed if isinstance(fixed, int) else len(batch)
        ends = [*range(0, len(batch), size), len(batch)]
        pieces = []
        for start, end in pairwise(ends):
            whole = np.resize(batch[start:end], (size, *batch.shape[1:]))
            pieces.append([out[: end - start] for out in session.run(None, {given: whole})])
        yield [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def _reduced(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that computes these values of the main graph and no more than they need."""
    needed = set(names)
    nodes: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _read(node)
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    graph = reduced.graph
    _replace(graph.node, list(reversed(nodes)))
    _replace(graph.initializer, [one for one in model.graph.initializer if one.name in needed])
    _replace(
        graph.output,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
    )
    # In old files stored tensors stand among the inputs, as defaults that a caller may replace.
    stored = {one.name for one in model.graph.initializer}
    _replace(graph.input, [one for one in model.graph.input if one.name not in stored])
    del graph.value_info[:]
    return reduced


def _read(node: NodeProto) -> set[str]:
    """All names that a node reads, those that its branches and loops capture included."""

    def captured(graph: GraphProto) -> set[str]:
        return set().union(*(_read(inner) for inner in graph.node), {o.name for o in graph.output})

    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= captured(graph)
    return names


def _replace(field: Any, items: list[Any]) -> None:
    """Put other items into a repeated field; they may be of another message."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)
