from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mkf.assignment import Assignment, assign
from mkf.errors import GraphError
from mkf.networks.onnx_file import idealize_file
from mkf.networks.onnx_graph import depthwise_convolutions, idealize, load, parse
from mkf.networks.protobuf_patch import patch

CHANNELS = 6


def kernels(size: int) -> NDArray[np.float64]:
    return np.random.default_rng(size).normal(size=(8, size, size))


def choose(filters: np.ndarray) -> Assignment:
    return assign(filters, kernels(filters.shape[-1]))


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.1, 0.3, size=shape).astype(np.float32)


def convolution(
    weight: str,
    *,
    name: str = "dw",
    x: str = "x",
    y: str = "y",
    group: int = CHANNELS,
    **more: object,
) -> NodeProto:
    return helper.make_node("Conv", [x, weight], [y], name=name, group=group, **more)


def network(
    nodes: Sequence[NodeProto],
    initializers: Sequence[TensorProto] = (),
    *,
    functions: Sequence[onnx.FunctionProto] = (),
    element: int = TensorProto.FLOAT,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    domains: Sequence[str] = (),
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("x", element, ["n", CHANNELS, 32, 32]), *inputs],
        [helper.make_tensor_value_info("y", element, None)],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9)


def simple(array: NDArray[np.generic] | None = None) -> ModelProto:
    array = weights(CHANNELS, 1, 7, 7) if array is None else array
    return network([convolution("w")], [numpy_helper.from_array(array, "w")])


def saved(model: ModelProto, folder: Path, name: str = "network.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def expected(array: NDArray[np.generic]) -> NDArray[np.float64]:
    filters = array[:, 0].astype(np.float64)
    return assign(filters, kernels(filters.shape[-1])).idealized()[:, None]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What counts as a depthwise convolution


def test_lists_every_depthwise_convolution() -> None:
    model = network(
        [
            convolution("stem", name="stem", y="a", group=1),
            convolution("grouped", name="grouped", x="a", y="b", group=2),
            convolution("dw", name="dw", x="b", y="c", strides=[2, 2], dilations=[3, 3]),
            convolution("doubled", name="", x="c", y="d"),
            helper.make_node("ConvTranspose", ["d", "up"], ["y"], name="up", group=12),
        ],
        [
            numpy_helper.from_array(weights(CHANNELS, CHANNELS, 7, 7), "stem"),
            numpy_helper.from_array(weights(CHANNELS, 3, 7, 7), "grouped"),
            numpy_helper.from_array(weights(CHANNELS, 1, 5, 5), "dw"),
            numpy_helper.from_array(weights(2 * CHANNELS, 1, 3, 3), "doubled"),
            numpy_helper.from_array(weights(12, 1, 3, 3), "up"),
        ],
    )
    first, second = depthwise_convolutions(model)
    assert (first.name, first.weight.name, first.channels, first.filters) == ("dw", "dw", 6, 6)
    assert (first.kernel_size, first.stride, first.dilation) == ((5, 5), (2, 2), (3, 3))
    assert (second.name, second.channels, second.filters) == ("d", 6, 12)
    assert (second.kernel_size, second.stride, second.dilation) == ((3, 3), (1, 1), (1, 1))
    assert first.idealizable
    assert second.idealizable


def test_a_single_channel_is_not_depthwise() -> None:
    model = network(
        [convolution("w", group=1)], [numpy_helper.from_array(weights(8, 1, 7, 7), "w")]
    )
    assert depthwise_convolutions(model) == []


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((6, 1, 4, 4), "4x4"),
        ((6, 1, 7, 5), "7x5"),
        ((6, 1, 1, 1), "1x1"),
        ((6, 1, 33, 33), "33x33"),
        ((6, 1, 7), "1-dimensional"),
        ((6, 1, 3, 3, 3), "3-dimensional"),
    ],
)
def test_kernels_that_no_key_fits(shape: tuple[int, ...], reason: str) -> None:
    model = simple(weights(*shape))
    before = model.SerializeToString()
    (layer,) = depthwise_convolutions(model)
    assert not layer.idealizable
    assert reason in layer.unsuitable
    with pytest.raises(GraphError, match=f"'dw': .*{reason}.*odd|images"):
        idealize(model, choose)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    array = weights(CHANNELS, 1, 7, 7)
    array[3, 0, 2, 1] = value
    with pytest.raises(GraphError, match="'dw': its weights 'w' hold NaN or infinite values"):
        idealize(simple(array), choose)


def test_weights_too_large_to_be_squared() -> None:
    with pytest.raises(GraphError, match="'dw': the filters are too large"):
        idealize(simple(1e200 * weights(CHANNELS, 1, 7, 7).astype(np.float64)), choose)


def test_a_signaling_nan_is_found_without_a_warning() -> None:
    model = simple()
    stored = model.graph.initializer[0]
    stored.raw_data = b"\x01\x00\xa0\x7f" + stored.raw_data[4:]
    with pytest.raises(GraphError, match="hold NaN"):
        idealize(model, choose)


def test_damaged_weights() -> None:
    model = simple()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]
    with pytest.raises(GraphError, match="count of its weights does not fit"):
        idealize(model, choose)
    model.graph.initializer[0].data_type = TensorProto.INT8
    with pytest.raises(GraphError, match="of type int8"):
        idealize(model, choose)


def test_no_depthwise_convolution() -> None:
    model = network([helper.make_node("Relu", ["x"], ["y"])])
    with pytest.raises(GraphError, match="no depthwise convolutions: pass a network"):
        idealize(model, choose)


def test_quantized_convolutions_are_named() -> None:
    model = network([helper.make_node("ConvInteger", ["x", "w"], ["y"], group=6)])
    with pytest.raises(GraphError, match="1 quantized convolutions: idealize the network before"):
        idealize(model, choose)


# Weights that several nodes use, or that are not stored


def second_user(kind: str) -> ModelProto:
    first = convolution("w", y="a")
    stored = numpy_helper.from_array(weights(CHANNELS, 1, 7, 7), "w")
    if kind == "convolution":
        return network([first, convolution("w", name="dw2", x="a")], [stored])
    if kind == "identity":
        alias = helper.make_node("Identity", ["w"], ["w2"])
        return network([first, alias, convolution("w2", name="dw2", x="a")], [stored])
    if kind == "other":
        total = helper.make_node("ReduceSum", ["w"], ["s"], name="sum")
        return network([first, total, helper.make_node("Add", ["a", "s"], ["y"])], [stored])
    model = network([convolution("w")], [stored])
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 1, 7, 7]))
    return model


@pytest.mark.parametrize(
    ("kind", "other"),
    [("convolution", "dw2"), ("identity", "dw2"), ("other", "sum"), ("output", "the output")],
)
def test_shared_weights(kind: str, other: str) -> None:
    with pytest.raises(GraphError, match=f"'dw': its weights 'w' are shared by dw and {other}"):
        idealize(second_user(kind), choose)


def computed(kind: str) -> ModelProto:
    if kind == "DequantizeLinear":
        made = helper.make_node(kind, ["q", "scale"], ["w"], name="made")
        stored = [
            numpy_helper.from_array(np.ones((CHANNELS, 1, 7, 7), np.int8), "q"),
            numpy_helper.from_array(np.float32(0.1), "scale"),
        ]
        return network([made, convolution("w")], stored)
    if kind == "Transpose":
        made = helper.make_node(kind, ["hwio"], ["w"], name="made", perm=[3, 2, 0, 1])
        stored = [numpy_helper.from_array(weights(7, 7, 1, CHANNELS), "hwio")]
        return network([made, convolution("w")], stored)
    fed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [CHANNELS, 1, 7, 7])
    return network([convolution("w")], inputs=[fed])


@pytest.mark.parametrize(
    ("kind", "cure"),
    [
        ("DequantizeLinear", "DequantizeLinear 'made': idealize the network before"),
        ("Transpose", "Transpose 'made': fold the graph's constants"),
        ("input", "the caller of the graph"),
    ],
)
def test_computed_weights(kind: str, cure: str) -> None:
    model = computed(kind)
    (layer,) = depthwise_convolutions(model)
    assert (layer.kernel_size, layer.filters, layer.idealizable) == ((7, 7), CHANNELS, False)
    with pytest.raises(GraphError, match=f"'dw': its weights are not stored but come from {cure}"):
        idealize(model, choose)


def test_computed_weights_of_another_convolution_do_not_matter() -> None:
    made = helper.make_node("Transpose", ["t"], ["g"], perm=[3, 2, 0, 1])
    model = network(
        [made, convolution("g", name="grouped", y="a", group=2), convolution("w", x="a")],
        [
            numpy_helper.from_array(weights(7, 7, 3, CHANNELS), "t"),
            numpy_helper.from_array(weights(CHANNELS, 1, 7, 7), "w"),
        ],
    )
    assert [layer.name for layer in depthwise_convolutions(model)] == ["dw"]


def test_unsuitable_layers_are_all_named_and_skipped_on_request() -> None:
    nodes = [convolution(f"w{i}", name=f"dw{i}", x=f"x{i}", y=f"x{i + 1}") for i in range(7)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    sizes = [2, 4, 7, 6, 8, 2, 4]
    stored = [
        numpy_helper.from_array(weights(CHANNELS, 1, size, size), f"w{i}")
        for i, size in enumerate(sizes)
    ]
    model = network(nodes, stored)
    with pytest.raises(GraphError) as error:
        idealize(model, choose)
    message = str(error.value)
    assert "6 of its 7 depthwise convolutions cannot be idealized" in message
    assert all(name in message for name in ("'dw0'", "'dw1'", "'dw3'", "'dw4'", "and 2 more"))
    assert "--skip-unsuitable" in message

    found = idealize(model, choose, skip_unsuitable=True)
    assert [layer.layer.name for layer in found.layers] == ["dw2"]
    assert len(found.skipped) == 6
    for before, after in zip(stored, model.graph.initializer, strict=True):
        assert (before == after) == (before.name != "w2")


def test_skipping_leaves_something_to_do() -> None:
    with pytest.raises(GraphError, match="1 of its 1"):
        idealize(simple(weights(CHANNELS, 1, 4, 4)), choose, skip_unsuitable=True)


# Where weights may be


def in_constant(stored: TensorProto) -> ModelProto:
    return network([helper.make_node("Constant", [], ["w"], value=stored), convolution("w")])


def in_alias(stored: TensorProto) -> ModelProto:
    alias = [helper.make_node("Identity", [a], [b]) for a, b in (("w", "v"), ("v", "u"))]
    return network([*alias, convolution("u")], [stored])


def in_old_style(stored: TensorProto) -> ModelProto:
    listed = helper.make_tensor_value_info("w", stored.data_type, stored.dims)
    return network([convolution("w")], [stored], inputs=[listed])


def branch(nodes: Sequence[NodeProto], stored: Sequence[TensorProto] = ()) -> GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [output], list(stored))


def in_branch(stored: TensorProto) -> ModelProto:
    choice = helper.make_node(
        "If",
        ["yes"],
        ["y"],
        then_branch=branch([helper.make_node("Relu", ["x"], ["r"])]),
        else_branch=branch([convolution("w", y="c")], [stored]),
    )
    return network([choice], [numpy_helper.from_array(np.array(True), "yes")])


def in_outer_scope(stored: TensorProto) -> ModelProto:
    choice = helper.make_node(
        "If",
        ["yes"],
        ["y"],
        then_branch=branch([convolution("w", y="c")]),
        else_branch=branch([helper.make_node("Relu", ["x"], ["r"])]),
    )
    return network([choice], [numpy_helper.from_array(np.array(True), "yes"), stored])


def in_loop(stored: TensorProto) -> ModelProto:
    body = helper.make_graph(
        [convolution("w", x="state", y="next"), helper.make_node("Identity", ["on"], ["go"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
        [stored],
    )
    loop = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
    return network([loop], [numpy_helper.from_array(np.array(3), "times")])


def block(nodes: Sequence[NodeProto], inputs: Sequence[str], **more: object) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_function("local", "Block", inputs, ["out"], list(nodes), opsets, **more)


def in_function_argument(stored: TensorProto) -> ModelProto:
    function = block([convolution("weight", x="in", y="out")], ["in", "weight"])
    call = helper.make_node("Block", ["x", "w"], ["y"], domain="local", name="stage")
    return network([call], [stored], functions=[function], domains=["local"])


def in_function_body(stored: TensorProto) -> ModelProto:
    conv = helper.make_node("Conv", ["in", "weight"], ["out"], name="dw")
    group = conv.attribute.add(name="group", type=onnx.AttributeProto.INT)
    group.ref_attr_name = "groups"
    constant = helper.make_node("Constant", [], ["weight"], value=stored)
    function = block([constant, conv], ["in"], attributes=["groups"])
    call = helper.make_node("Block", ["x"], ["y"], domain="local", name="stage", groups=CHANNELS)
    return network([call], functions=[function], domains=["local"])


PLACES: list[Callable[[TensorProto], ModelProto]] = [
    in_constant,
    in_alias,
    in_old_style,
    in_branch,
    in_outer_scope,
    in_loop,
    in_function_argument,
    in_function_body,
]


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_and_nothing_else_changes(
    place: Callable[[TensorProto], ModelProto], tmp_path: Path
) -> None:
    array = weights(CHANNELS, 1, 7, 7)
    source = saved(place(numpy_helper.from_array(array, "w")), tmp_path)
    out = tmp_path / "out.onnx"
    found = idealize_file(source, out, choose)
    assert found.filters == CHANNELS
    assert found.layers[0].layer.name in ("dw", "stage/dw")

    before, after = source.read_bytes(), out.read_bytes()
    start = before.index(array.tobytes())
    end = start + array.nbytes
    assert (after[:start], after[end:]) == (before[:start], before[end:])
    written = np.frombuffer(after[start:end], np.float32).reshape(array.shape)
    np.testing.assert_allclose(written, expected(array), rtol=1e-6)


def test_a_function_called_twice_with_weights_of_its_own_each_time() -> None:
    function = block([convolution("weight", x="in", y="out")], ["in", "weight"])
    calls = [
        helper.make_node("Block", ["x", "w1"], ["a"], domain="local", name="one"),
        helper.make_node("Block", ["a", "w2"], ["y"], domain="local", name="two"),
    ]
    stored = [numpy_helper.from_array(weights(CHANNELS, 1, 7, 7, seed=i), f"w{i}") for i in (1, 2)]
    model = network(calls, stored, functions=[function], domains=["local"])
    assert [(layer.name, layer.weight.name) for layer in depthwise_convolutions(model)] == [
        ("one/dw", "w1"),
        ("two/dw", "w2"),
    ]
    calls[1].input[1] = "w1"
    shared = network(calls, stored, functions=[function], domains=["local"])
    with pytest.raises(GraphError, match="'w1' are shared by one/dw and two/dw"):
        idealize(shared, choose)


def test_a_function_that_calls_itself() -> None:
    function = block([helper.make_node("Block", ["in"], ["out"], domain="local")], ["in"])
    call = helper.make_node("Block", ["x"], ["y"], domain="local")
    with pytest.raises(GraphError, match="calls itself"):
        depthwise_convolutions(network([call], functions=[function], domains=["local"]))


# How weights are stored


def stored_as(array: NDArray[np.float32], data_type: int, *, raw: bool) -> TensorProto:
    if data_type != TensorProto.BFLOAT16:
        array = array.astype(helper.tensor_dtype_to_np_dtype(data_type))
        if raw:
            return numpy_helper.from_array(array, "w")
        if data_type != TensorProto.FLOAT16:
            return helper.make_tensor("w", data_type, array.shape, array.ravel().tolist())
        bits = array.view(np.uint16)
    else:
        bits = (array.view(np.uint32) >> 16).astype(np.uint16)
    tensor = TensorProto(name="w", data_type=data_type, dims=array.shape)
    if raw:
        tensor.raw_data = bits.tobytes()
    else:
        tensor.int32_data.extend(bits.ravel().tolist())
    return tensor


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("data_type", "precision"),
    [
        (TensorProto.FLOAT, 2**-23),
        (TensorProto.DOUBLE, 1e-14),
        (TensorProto.FLOAT16, 2**-10),
        (TensorProto.BFLOAT16, 2**-8),
    ],
)
def test_types_and_forms_of_storage_stay(
    data_type: int, precision: float, raw: bool, tmp_path: Path
) -> None:
    tensor = stored_as(weights(CHANNELS, 1, 7, 7), data_type, raw=raw)
    source = saved(network([convolution("w")], [tensor], element=data_type), tmp_path)
    out = tmp_path / "out.onnx"
    idealize_file(source, out, choose)

    written = load(out)
    after = written.graph.initializer[0]
    assert {field.name for field, _ in after.ListFields()} == {
        field.name for field, _ in tensor.ListFields()
    }
    values = numpy_helper.to_array(tensor).astype(np.float64)
    np.testing.assert_allclose(
        numpy_helper.to_array(after).astype(np.float64),
        expected(values),
        rtol=precision,
        atol=1e-7 if data_type == TensorProto.FLOAT16 else 1e-12,
    )
    after.CopyFrom(tensor)
    assert written.SerializeToString() == source.read_bytes()


def test_weights_beyond_the_type_become_its_largest_number() -> None:
    array = np.zeros((CHANNELS, 1, 3, 3), np.float16)
    array[:, 0, 0, 0], array[:, 0, 2, 2] = 65504, -65504
    model = simple(array)
    ramp = np.arange(9.0).reshape(1, 3, 3) ** 8
    idealize(model, lambda filters: assign(filters, ramp))
    assert np.isfinite(numpy_helper.to_array(model.graph.initializer[0])).all()


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def test_bytes_that_no_library_would_write_stay(tmp_path: Path) -> None:
    """Fields from last to first, fields nobody knows, overlong lengths, unpacked numbers."""
    array = weights(CHANNELS, 1, 7, 7)
    unknown = varint(999 << 3 | 2) + varint(4) + b"kept"
    tensor = unknown + varint(9 << 3 | 2) + varint(array.nbytes) + array.tobytes()
    tensor += varint(8 << 3 | 2) + b"\x01w" + varint(2 << 3) + b"\x01"
    tensor += b"".join(varint(1 << 3) + varint(dim) for dim in array.shape)
    graph = simple().graph
    del graph.initializer[:]
    overlong = bytes([len(tensor) & 0x7F | 0x80, len(tensor) >> 7 & 0x7F | 0x80, 0x80, 0])
    body = varint(5 << 3 | 2) + overlong + tensor + graph.SerializeToString()
    bare = simple()
    bare.ClearField("graph")
    data = varint(7 << 3 | 2) + varint(len(body)) + body + unknown + bare.SerializeToString()
    assert ModelProto.FromString(data).SerializeToString() != data

    source, out = tmp_path / "odd.onnx", tmp_path / "out.onnx"
    source.write_bytes(data)
    idealize_file(source, out, choose)
    start = data.index(array.tobytes())
    after = out.read_bytes()
    assert after[:start] == data[:start]
    assert after[start + array.nbytes :] == data[start + array.nbytes :]
    written = numpy_helper.to_array(load(out).graph.initializer[0])
    np.testing.assert_allclose(written, expected(array), rtol=1e-6)


def test_other_nan_in_the_graph_does_not_matter(tmp_path: Path) -> None:
    nodes = [convolution("w", y="a"), helper.make_node("LeakyRelu", ["a"], ["y"], alpha=math.nan)]
    stored = numpy_helper.from_array(weights(CHANNELS, 1, 7, 7), "w")
    idealize_file(saved(network(nodes, [stored]), tmp_path), tmp_path / "out.onnx", choose)


def test_nodes_of_other_domains_are_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], domain="custom", group=CHANNELS),
        helper.make_node("FusedConv", ["a", "w2"], ["y"], domain="com.microsoft", group=CHANNELS),
    ]
    stored = [numpy_helper.from_array(weights(CHANNELS, 1, 7, 7), name) for name in ("w", "w2")]
    model = network(nodes, stored, domains=["custom", "com.microsoft"])
    found = idealize_file(saved(model, tmp_path), tmp_path / "out.onnx", choose)
    assert [layer.layer.weight.name for layer in found.layers] == ["w2"]


def test_patch_refuses_a_path_that_leads_nowhere() -> None:
    with pytest.raises(GraphError, match="encoded in a way"):
        patch(
            simple().SerializeToString(),
            {(("graph", 0), ("initializer", 1)): {"raw_data": b""}},
            ModelProto.DESCRIPTOR,
        )


# External data


def saved_outside(model: ModelProto, folder: Path, *, one_file: bool) -> Path:
    path = folder / "network.onnx"
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="weights.bin" if one_file else None,
        size_threshold=0,
        convert_attribute=True,
    )
    return path


def two_layers() -> ModelProto:
    return network(
        [convolution("w1", name="dw1", y="a"), convolution("w2", name="dw2", x="a")],
        [
            numpy_helper.from_array(weights(CHANNELS, 1, 5, 5), "w1"),
            numpy_helper.from_array(weights(CHANNELS, 1, 7, 7), "w2"),
        ],
    )


@pytest.mark.parametrize("one_file", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_external_data_goes_into_one_new_file(
    one_file: bool, elsewhere: bool, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    source = saved_outside(two_layers(), inputs, one_file=one_file)
    contents = {path.name: path.read_bytes() for path in inputs.iterdir()}
    outputs = tmp_path if elsewhere else inputs
    for _ in range(2):  # the second time over the first
        idealize_file(source, outputs / "out.onnx", choose)

    assert {name: (inputs / name).read_bytes() for name in contents} == contents
    assert set(files(outputs)) - set(contents) - {"in"} == {"out.onnx", "out.onnx.data"}
    before, after = onnx.load(source), onnx.load(outputs / "out.onnx")
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        array = numpy_helper.to_array(old)
        np.testing.assert_allclose(numpy_helper.to_array(new), expected(array), rtol=1e-6)
        new.CopyFrom(old)
    assert after.SerializeToString() == before.SerializeToString()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read .*put it beside the graph"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut short"),
    ],
)
def test_damaged_external_data(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    source = saved_outside(simple(), tmp_path, one_file=True)
    damage(tmp_path / "weights.bin")
    before = files(tmp_path)
    with pytest.raises(GraphError, match=message):
        idealize_file(source, tmp_path / "out.onnx", choose)
    assert files(tmp_path) == before


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", ""])
def test_external_data_out_of_the_folder(location: str, tmp_path: Path) -> None:
    model = simple()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(GraphError, match="not one in the graph's folder"):
        idealize_file(saved(model, tmp_path), tmp_path / "out.onnx", choose)


def test_tensors_on_the_same_external_bytes_are_shared_weights(tmp_path: Path) -> None:
    model = network(
        [convolution("w1", y="a"), convolution("w2", name="dw2", x="a")],
        [numpy_helper.from_array(weights(CHANNELS, 1, 7, 7), name) for name in ("w1", "w2")],
    )
    path = saved_outside(model, tmp_path, one_file=True)
    model = load(path)
    first, second = model.graph.initializer
    del second.external_data[:]
    second.external_data.extend(first.external_data)
    with pytest.raises(GraphError, match="'w1' share external bytes with 'w2'"):
        idealize_file(saved(model, tmp_path), tmp_path / "out.onnx", choose)


def test_external_data_of_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = saved_outside(simple(), tmp_path, one_file=True)
    (tmp_path / "weights.bin").rename(tmp_path / "out.onnx.data")
    model = load(source)
    model.graph.initializer[0].external_data[0].value = "out.onnx.data"
    before = files(tmp_path)
    with pytest.raises(GraphError, match="write to another name"):
        idealize_file(saved(model, tmp_path), tmp_path / "out.onnx", choose)
    assert files(tmp_path) == before


def test_external_data_not_loaded_into_memory() -> None:
    model = simple()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    with pytest.raises(GraphError, match="load the model with its external data"):
        idealize(model, choose)


# Files


def test_what_is_no_whole_onnx_file() -> None:
    whole = simple().SerializeToString()
    random = np.random.default_rng(0)
    for cut in range(len(whole)):
        with pytest.raises(GraphError, match="not an ONNX file, or only a part"):
            parse(whole[:cut])
    for _ in range(200):
        with pytest.raises(GraphError):
            parse(random.bytes(300))


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    stored = simple().graph.initializer[0]
    whole = np.frombuffer(in_branch(stored).SerializeToString(), np.uint8)
    where = [*range(120), *range(len(whole) - 120, len(whole))]  # the rest is weights
    random = np.random.default_rng(1)
    source, out = tmp_path / "damaged.onnx", tmp_path / "out.onnx"
    for _ in range(300):
        damaged = whole.copy()
        damaged[random.choice(where, size=2)] = random.integers(0, 256, size=2)
        source.write_bytes(damaged.tobytes())
        out.unlink(missing_ok=True)
        try:
            idealize_file(source, out, choose)
        except GraphError:
            assert not out.exists()
    assert set(files(tmp_path)) <= {"damaged.onnx", "out.onnx"}


def test_an_existing_file_survives_an_error_and_gives_way_to_success(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("precious")
    with pytest.raises(GraphError):
        idealize_file(saved(simple(weights(6, 1, 4, 4)), tmp_path, "bad.onnx"), out, choose)
    assert out.read_text() == "precious"
    idealize_file(saved(simple(), tmp_path, "good.onnx"), out, choose)
    assert depthwise_convolutions(load(out))
    assert files(tmp_path) == ["bad.onnx", "good.onnx", "out.onnx"]


def test_destinations_that_cannot_be(tmp_path: Path) -> None:
    source = saved(simple(), tmp_path)
    before = source.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(source)
    for out, message in (
        (source, "the network itself"),
        (link, "the network itself"),
        (tmp_path, "is a folder"),
        (tmp_path / "missing" / "out.onnx", "does not exist: make it first"),
    ):
        with pytest.raises(GraphError, match=message):
            idealize_file(source, out, choose)
    assert source.read_bytes() == before


def test_a_graph_the_checker_refuses_stays_as_it_was(tmp_path: Path) -> None:
    model = simple()
    model.graph.node.add(op_type="NoSuchOperator", input=["y"], output=["z"])
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    idealize_file(saved(model, tmp_path), tmp_path / "out.onnx", choose)


# Networks of other exporters


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_networks_exported_by_torch(dynamo: bool, half: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, stride=4),
        torch.nn.Conv2d(8, 8, 7, padding=3, groups=8),
        torch.nn.BatchNorm2d(8),
        torch.nn.GELU(),
        torch.nn.Conv2d(8, 16, 5, stride=2, padding="valid", groups=8, bias=False),
    ).eval()
    images = torch.zeros(2, 3, 64, 64)
    if half:
        module, images = module.half(), images.half()
    source, out = tmp_path / "torch.onnx", tmp_path / "out.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (images,), source, dynamo=dynamo, external_data=False)
    found = idealize_file(source, out, choose)
    assert [
        (layer.layer.channels, layer.layer.filters, layer.layer.kernel_size, layer.layer.stride)
        for layer in found.layers
    ] == [(8, 8, (7, 7), (1, 1)), (8, 16, (5, 5), (2, 2))]

    before, after = load(source), load(out)
    changed = {layer.layer.weight.name for layer in found.layers}
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert (old.name in changed) == (old != new)
        new.CopyFrom(old)
    assert after.SerializeToString() == before.SerializeToString()
    assert len(out.read_bytes()) == len(source.read_bytes())

    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    session.run(None, {given.name: images.numpy()})
