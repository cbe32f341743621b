"""A network's graph becomes the served one: same answers from uint8 pixels, any batch size."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mkf.errors import GraphError
from mkf.networks.serving_graph import network_graph, serving_graph, without_softmax
from mkf.repository import Preprocessing

PREPROCESSING = Preprocessing(
    input_size=(8, 6), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def classifier(
    *,
    dims: list[str | int],
    opset: int = 20,
    softmax: bool = False,
    input_name: str = "input",
    output_name: str = "output",
) -> onnx.ModelProto:
    """Global mean of each channel, then a linear layer to 5 classes."""
    rng = np.random.default_rng(3)
    axes = [2, 3] if dims[1] in (3, "c") else [1, 2]
    scores = "scores" if softmax else output_name
    nodes = [
        helper.make_node("GlobalAveragePool", [input_name], ["mean"])
        if axes == [2, 3]
        else helper.make_node("ReduceMean", [input_name, "axes"], ["mean"], keepdims=1),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], [scores]),
    ]
    initializers = [
        numpy_helper.from_array(rng.normal(size=(3, 5)).astype(np.float32), "weight"),
        numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "bias"),
    ]
    if axes == [1, 2]:
        initializers.append(numpy_helper.from_array(np.array(axes), "axes"))
    if softmax:
        nodes.append(helper.make_node("Softmax", [scores], [output_name], axis=-1))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [dims[0], 5])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return result


@pytest.mark.parametrize("batch", [1, 2, 32])
@pytest.mark.parametrize(
    ("dims", "opset", "channels_first"),
    [
        (["n", 3, 8, 6], 20, True),
        (["n", "c", "h", "w"], 20, True),
        ([1, 3, 8, 6], 20, True),  # a fixed batch becomes any batch
        (["n", 3, 8, 6], 13, True),
        (["n", 8, 6, 3], 20, False),
    ],
)
def test_the_served_graph_answers_as_the_network_does(
    dims: list[str | int], opset: int, channels_first: bool, batch: int
) -> None:
    model = classifier(dims=dims, opset=opset)
    network = network_graph(model, (8, 6))
    assert network.channels_first is channels_first
    assert network.classes == 5
    served = serving_graph(network, PREPROCESSING)

    images = np.random.default_rng(batch).integers(256, size=(batch, 8, 6, 3), dtype=np.uint8)
    normalized = (images / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    if channels_first:
        normalized = normalized.transpose(0, 3, 1, 2)
    pieces = [run(model, image[None].astype(np.float32)) for image in normalized]
    np.testing.assert_allclose(run(served, images), np.concatenate(pieces), atol=2e-6)


def test_the_served_graph_keeps_contract_1() -> None:
    served = serving_graph(network_graph(classifier(dims=["n", 3, 8, 6]), None), PREPROCESSING)
    session = onnxruntime.InferenceSession(served.SerializeToString())
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == (
        "images",
        "tensor(uint8)",
        ["batch", 8, 6, 3],
    )
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 5])
    assert [entry.version for entry in served.opset_import] == [20]


@pytest.mark.parametrize(
    "names", [("images", "logits"), ("logits", "images"), ("input", "logits"), ("images", "out")]
)
def test_names_of_the_contract_may_be_taken(names: tuple[str, str]) -> None:
    model = classifier(dims=["n", 3, 8, 6], input_name=names[0], output_name=names[1])
    network = network_graph(model, None)
    served = serving_graph(network, PREPROCESSING)
    images = np.full((2, 8, 6, 3), 200, np.uint8)
    expected = run(model, network.normalize(images, PREPROCESSING))
    np.testing.assert_allclose(run(served, images), expected, atol=2e-6)


def test_a_last_softmax_is_taken_off() -> None:
    plain, probable = (classifier(dims=["n", 3, 8, 6], softmax=flag) for flag in (False, True))
    inputs = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(without_softmax(probable), inputs), run(plain, inputs))
    assert without_softmax(plain) is plain
    np.testing.assert_allclose(run(probable, inputs).sum(1), 1, rtol=1e-6)  # left as it was


def test_a_softmax_behind_casts_is_taken_off() -> None:
    plain, probable = (classifier(dims=["n", 3, 8, 6], softmax=flag) for flag in (False, True))
    (output,) = probable.graph.output
    probable.graph.node[-1].output[0] = "probabilities"
    probable.graph.node.extend(
        [
            helper.make_node("Cast", ["probabilities"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Identity", ["cast"], [output.name]),
        ]
    )
    inputs = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(without_softmax(probable), inputs), run(plain, inputs))


@pytest.mark.parametrize(
    ("dims", "size", "message"),
    [
        (["n", "c", "h", "w"], None, "give them with --input-size"),
        (["n", 3, 8, 6], (9, 9), "takes 8x6 pixels, not 9x9"),
        (["n", 1, 8, 6], None, "images of 3 channels"),
    ],
)
def test_a_graph_that_cannot_be_served_is_refused(
    dims: list[str | int], size: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        network_graph(classifier(dims=dims), size)


def test_several_inputs_or_outputs_are_refused() -> None:
    model = classifier(dims=["n", 3, 8, 6])
    model.graph.output.append(model.graph.output[0])
    with pytest.raises(GraphError, match="2 outputs"):
        network_graph(model, None)
    del model.graph.output[1]
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(GraphError, match="2 inputs"):
        network_graph(model, None)
