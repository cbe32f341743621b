"""Calibration: a layer's outputs are met, whatever its padding, stride, bias and neighbors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from depthwise_networks import SIZE, classifier
from numpy.typing import NDArray
from onnx import helper

from mkf.assignment import Idealized
from mkf.calibration import calibrate
from mkf.errors import GraphError
from mkf.expansion import Problem, expansion
from mkf.idealization import Choice, idealizer
from mkf.networks.onnx_graph import idealize

ort = pytest.importorskip("onnxruntime", reason="install mkf[serve]")


@pytest.fixture(scope="module")
def inputs() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.normal(0.3, 1, size=(8, 3, SIZE, SIZE)).astype(np.float32) for _ in range(12)]


def unrestricted(learned: NDArray[np.float64], problem: Problem | None = None) -> Idealized:
    """Imposes nothing: the very filters that the problem asks for."""
    assert problem is not None
    assert problem.metric is not None
    values = np.linalg.solve(problem.metric, problem.target[:, :, None]).reshape(learned.shape)
    none = np.full((len(learned), 1), np.nan)
    keys = np.ones((len(learned), 1), dtype=np.int64)
    return expansion(learned, values, keys=keys, a=none, scales=(none, none, none))


def scores(model: onnx.ModelProto, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {model.graph.input[0].name: batch})[0]
    return result


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@pytest.mark.parametrize(
    "convolution",
    [
        {"pads": [2, 2, 2, 2]},
        {"pads": [0, 1, 2, 3]},
        {"pads": [2, 2, 2, 2], "strides": [2, 3]},
        {"pads": [4, 4, 4, 4], "dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
        {"auto_pad": "VALID", "strides": [2, 1]},
        {},
    ],
    ids=str,
)
def test_filters_free_to_stay_as_they_are_do_so(
    convolution: dict[str, Any], inputs: list[NDArray[np.float32]]
) -> None:
    """Wrong patches, of whatever padding or stride, would ask for other filters."""
    learned = classifier(**convolution)
    model = copied(learned)
    result = calibrate(model, inputs, unrestricted)
    assert max(result.missed.values()) < 1e-5
    np.testing.assert_allclose(scores(model, inputs[0]), scores(learned, inputs[0]), atol=1e-2)


def values(model: onnx.ModelProto, name: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a node gives."""
    seen = copied(model)
    seen.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run([name], {"input": batch})[0]
    return result


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    ("bias", "normalized"), [(True, False), (False, True), (True, True), (False, False)]
)
def test_calibrated_outputs_are_nearer_than_substituted_ones(
    multiplier: int, bias: bool, normalized: bool
) -> None:
    """On smooth images, whose outputs are another matter than the filters' values."""
    rng = np.random.default_rng(9)
    coarse = rng.normal(0.3, 1, size=(160, 3, SIZE // 4, SIZE // 4))
    smooth = np.kron(coarse, np.ones((4, 4))).astype(np.float32)
    learned = classifier(multiplier=multiplier, bias=bias, normalized=normalized, pads=[2, 2, 2, 2])
    choose = idealizer(Choice(scales="per-filter"))
    substituted, calibrated = copied(learned), copied(learned)
    idealize(substituted, choose)
    calibrate(calibrated, list(smooth[:128].reshape(8, 16, 3, SIZE, SIZE)), choose)
    layer = "normal" if normalized else "first"
    wanted = values(learned, layer, smooth[128:])
    before = np.square(values(substituted, layer, smooth[128:]) - wanted).mean()
    after = np.square(values(calibrated, layer, smooth[128:]) - wanted).mean()
    assert after < 0.8 * before


@pytest.mark.parametrize("normalized", [False, True])
def test_the_constant_behind_the_filters_keeps_the_mean(
    normalized: bool, inputs: list[NDArray[np.float32]]
) -> None:
    """The bias, or the mean of a normalization, makes up for the change of the filters' sums."""
    learned = classifier(bias=not normalized, normalized=normalized, pads=[2, 2, 2, 2])
    model = copied(learned)
    calibrate(model, inputs, idealizer(Choice(terms=1)))
    batch = np.concatenate(inputs)
    name = "normal" if normalized else "first"
    means = [values(one, name, batch).mean(axis=(0, 2, 3)) for one in (learned, model)]
    # Looked at in some positions of some images only.
    np.testing.assert_allclose(means[1], means[0], atol=0.15)
    stored = {tensor.name: tensor for tensor in learned.graph.initializer}
    after = {tensor.name: tensor for tensor in model.graph.initializer}
    changed = {name for name in stored if stored[name] != after[name]}
    assert changed == {"w1", "mean" if normalized else "b1", "w2", "b2"}


def test_the_same_seed_gives_the_same_filters(inputs: list[NDArray[np.float32]]) -> None:
    learned = classifier(pads=[2, 2, 2, 2])
    one, same, other = copied(learned), copied(learned), copied(learned)
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        calibrate(model, inputs, idealizer(Choice(terms=2)), seed=seed)
    assert one == same
    assert one != other


def test_a_fixed_batch_is_fed_in_pieces(inputs: list[NDArray[np.float32]]) -> None:
    learned = classifier(pads=[2, 2, 2, 2])
    fixed = copied(learned)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    choose = idealizer(Choice(terms=2))
    calibrate(learned, inputs, choose)
    calibrate(fixed, inputs, choose)
    for tensor, same in zip(learned.graph.initializer, fixed.graph.initializer, strict=True):
        assert tensor == same


def test_an_error_leaves_the_model_as_it_was(inputs: list[NDArray[np.float32]]) -> None:
    model = classifier(kernel=17, pads=[8, 8, 8, 8])
    before = model.SerializeToString()
    with pytest.raises(GraphError, match="'first': kernels above 15x15"):
        calibrate(model, inputs, unrestricted)
    assert model.SerializeToString() == before


def test_a_bias_that_is_computed_is_refused(inputs: list[NDArray[np.float32]]) -> None:
    model = classifier(pads=[2, 2, 2, 2])
    made = helper.make_node("Neg", ["b1"], ["computed"])
    model.graph.node.insert(0, made)
    model.graph.node[1].input[2] = "computed"
    with pytest.raises(GraphError, match="bias of 'first' is not stored but comes from Neg"):
        calibrate(model, inputs, unrestricted)


def test_a_convolution_within_a_branch_is_refused(inputs: list[NDArray[np.float32]]) -> None:
    model = classifier(pads=[2, 2, 2, 2])
    graph = model.graph
    convolution = onnx.NodeProto.FromString(graph.node[0].SerializeToString())
    output = helper.make_tensor_value_info("first", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([convolution], "branch", [], [output])
    renamed = helper.make_graph(
        [helper.make_node("Conv", ["input", "w3"], ["other"], group=3, pads=[2] * 4)],
        "other branch",
        [],
        [helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None)],
    )
    weight = onnx.TensorProto.FromString(graph.initializer[0].SerializeToString())
    weight.name = "w3"
    graph.initializer.append(weight)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    chosen = helper.make_node("If", ["yes"], ["first"], then_branch=branch, else_branch=renamed)
    graph.node[0].CopyFrom(chosen)
    with pytest.raises(GraphError, match="inside a function or a branch"):
        calibrate(model, inputs, unrestricted)


def test_channels_that_hardly_vary(inputs: list[NDArray[np.float32]]) -> None:
    """A spread far below the mean is not lost to rounding, and none at all is no error."""
    learned = classifier()
    rng = np.random.default_rng(1)
    steady = []
    for batch in inputs:
        batch = 100 + 1e-3 * rng.normal(size=batch.shape).astype(np.float32)
        batch[:, 1] = 7
        steady.append(batch.astype(np.float32))
    model = copied(learned)
    result = calibrate(model, steady, unrestricted)
    assert result.missed["first"] < 0.05
    calibrate(copied(learned), steady, idealizer(Choice(scales="per-filter", terms=2)))


def test_stored_tensors_among_the_inputs(inputs: list[NDArray[np.float32]]) -> None:
    """As files of old exporters have it, the image last."""
    learned = classifier(pads=[2, 2, 2, 2])
    old = copied(learned)
    del old.graph.input[:]
    old.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in old.graph.initializer
    )
    old.graph.input.extend(learned.graph.input)
    choose = idealizer(Choice(terms=2))
    calibrate(learned, inputs, choose)
    calibrate(old, inputs, choose)
    for tensor, same in zip(learned.graph.initializer, old.graph.initializer, strict=True):
        assert tensor == same
