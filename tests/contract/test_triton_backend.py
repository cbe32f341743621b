"""Our onnxruntime backend, in the real Triton: what its first page promises."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from triton_server import TritonServer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ONE_INSTANCE = "instance_group { count: 1 kind: KIND_CPU } "  # Triton's default is 2
TYPES = {  # the configuration's name -> ONNX' type and a value of each sign or kind
    "TYPE_BOOL": (TensorProto.BOOL, np.array([[True, False]])),
    "TYPE_UINT8": (TensorProto.UINT8, np.array([[0, 255]], dtype=np.uint8)),
    "TYPE_UINT16": (TensorProto.UINT16, np.array([[0, 65535]], dtype=np.uint16)),
    "TYPE_UINT32": (TensorProto.UINT32, np.array([[0, 2**32 - 1]], dtype=np.uint32)),
    "TYPE_UINT64": (TensorProto.UINT64, np.array([[0, 2**64 - 1]], dtype=np.uint64)),
    "TYPE_INT8": (TensorProto.INT8, np.array([[-128, 127]], dtype=np.int8)),
    "TYPE_INT16": (TensorProto.INT16, np.array([[-32768, 32767]], dtype=np.int16)),
    "TYPE_INT32": (TensorProto.INT32, np.array([[-(2**31), 2**31 - 1]], dtype=np.int32)),
    "TYPE_INT64": (TensorProto.INT64, np.array([[-(2**63), 2**63 - 1]], dtype=np.int64)),
    "TYPE_FP16": (TensorProto.FLOAT16, np.array([[-1.5, 65504]], dtype=np.float16)),
    "TYPE_FP32": (TensorProto.FLOAT, np.array([[-1.5, 3e38]], dtype=np.float32)),
    "TYPE_FP64": (TensorProto.DOUBLE, np.array([[-1.5, 1e300]], dtype=np.float64)),
    "TYPE_STRING": (TensorProto.STRING, np.array([[b"", "Schl\u00fcssel".encode()]], dtype=object)),
}


@dataclass(frozen=True)
class Served:
    """A server and the repository that its models are written to."""

    server: TritonServer
    client: triton.InferenceServerClient
    repository: Path

    def add(self, name: str, graph: bytes | onnx.GraphProto, config: str | None) -> str:
        """Write a model and load it; its name."""
        if isinstance(graph, onnx.GraphProto):
            opset = [helper.make_opsetid("", 20)]
            model = helper.make_model(graph, opset_imports=opset, ir_version=10)
            onnx.checker.check_model(model)
            graph = model.SerializeToString()
        folder = self.repository / name
        (folder / "1").mkdir(parents=True)
        file = "network.onnx" if config and "network.onnx" in config else "model.onnx"
        (folder / "1" / file).write_bytes(graph)
        if config is not None:
            header = f'backend: "onnxruntime" {ONE_INSTANCE}'
            (folder / "config.pbtxt").write_text(header + config)
        self.client.load_model(name)
        return name

    def infer(
        self, model: str, asked: Sequence[str] = (), **inputs: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """The outputs, all or those asked for."""
        tensors = []
        for name, value in inputs.items():
            tensor = triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        wanted = [triton.InferRequestedOutput(name) for name in asked] or None
        result = self.client.infer(model, tensors, outputs=wanted, client_timeout=30)
        return {out.name: result.as_numpy(out.name) for out in result.get_response().outputs}

    def infer_at_once(self, model: str, requests: Sequence[dict[str, NDArray[Any]]]) -> list[Any]:
        """Answers, or errors, to requests that are sent at the same time."""

        def one(inputs: dict[str, NDArray[Any]]) -> Any:
            try:
                return self.infer(model, **inputs)
            except InferenceServerException as error:
                return error

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(one, requests))

    def executions(self, model: str, *, requests: int) -> tuple[int, int]:
        """Rows and batches, once so many requests are counted, which is after they are answered."""
        deadline = time.monotonic() + 10
        while True:
            (stats,) = self.client.get_inference_statistics(model).model_stats
            counted = stats.inference_stats
            if counted.success.count + counted.fail.count >= requests:
                return stats.inference_count, stats.execution_count
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("models"), auto_complete=False)


@pytest.fixture(scope="module")
def completing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that asks the backend for what a configuration lacks."""
    yield from serve(tmp_path_factory.mktemp("models"), auto_complete=True)


def serve(repository: Path, *, auto_complete: bool) -> Iterator[Served]:
    with (
        TritonServer(repository, explicit=True, auto_complete=auto_complete) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        yield Served(server, client, repository)


def tensor(name: str, kind: int, *dims: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def io(kind: str, name: str, data_type: str, *dims: int, more: str = "") -> str:
    return f'{kind} {{ name: "{name}" data_type: {data_type} dims: {list(dims)} {more} }} '


def doubling(*, dims: tuple[int | str, ...] = ("n", 2)) -> onnx.GraphProto:
    """y = 2 x; size: how many rows ran together, in every row."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["rows", "shape"], ["size"]),
    ]
    one = numpy_helper.from_array(np.array([1], dtype=np.int64), "one")
    outputs = [tensor("y", TensorProto.FLOAT, *dims), tensor("size", TensorProto.INT64, dims[0], 1)]
    inputs = [tensor("x", TensorProto.FLOAT, *dims)]
    return helper.make_graph(nodes, "doubling", inputs, outputs, [one])


DOUBLING = (
    "max_batch_size: 8 "
    + io("input", "x", "TYPE_FP32", 2)
    + io("output", "y", "TYPE_FP32", 2)
    + io("output", "size", "TYPE_INT64", 1)
)
# Time enough for requests that are sent at once to become one batch.
SLOW_BATCHING = "dynamic_batching { max_queue_delay_microseconds: 500000 preferred_batch_size: 8 } "


@pytest.mark.parametrize("batching", [True, False])
def test_every_type_goes_in_and_comes_out_unchanged(served: Served, batching: bool) -> None:
    nodes = [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in TYPES]
    graph = helper.make_graph(
        nodes,
        "identity",
        [tensor(f"x_{name}", kind, "n", 2) for name, (kind, _) in TYPES.items()],
        [tensor(f"y_{name}", kind, "n", 2) for name, (kind, _) in TYPES.items()],
    )
    dims = (2,) if batching else (-1, 2)
    config = f"max_batch_size: {4 if batching else 0} "
    for name in TYPES:
        config += io("input", f"x_{name}", name, *dims) + io("output", f"y_{name}", name, *dims)
    model = served.add(f"identity_{batching}", graph, config)
    inputs = {f"x_{name}": np.repeat(value, 3, axis=0) for name, (_, value) in TYPES.items()}

    outputs = served.infer(model, **inputs)

    for name in TYPES:
        expected = inputs[f"x_{name}"]
        np.testing.assert_array_equal(outputs[f"y_{name}"], expected, strict=True)


def test_requests_that_come_together_run_as_one(served: Served) -> None:
    model = served.add("together", doubling(), DOUBLING + SLOW_BATCHING)
    rows = [np.full((n, 2), n, dtype=np.float32) for n in (1, 2, 3)]

    answers = served.infer_at_once(model, [{"x": x} for x in rows])

    for x, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * x)
        np.testing.assert_array_equal(answer["size"], np.full((len(x), 1), 6))
    assert served.executions(model, requests=3) == (6, 1)


def test_without_batching_the_graph_sees_the_request_as_it_is(served: Served) -> None:
    config = (
        io("input", "x", "TYPE_FP32", -1, 2)
        + io("output", "y", "TYPE_FP32", -1, 2)
        + io("output", "size", "TYPE_INT64", -1, 1)
    )
    model = served.add("unbatched", doubling(), config)
    answers = served.infer_at_once(model, [{"x": np.ones((5, 2), np.float32)}] * 3)
    for answer in answers:
        np.testing.assert_array_equal(answer["size"], np.full((5, 1), 5))
    assert served.executions(model, requests=3) == (3, 3)


def test_only_the_outputs_that_were_asked_for_come_back(served: Served) -> None:
    model = served.add("asked", doubling(), DOUBLING)
    x = np.ones((1, 2), np.float32)
    assert set(served.infer(model, x=x)) == {"y", "size"}
    assert set(served.infer(model, ["size"], x=x)) == {"size"}


def test_requests_of_other_shapes_in_one_batch_run_apart(served: Served) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"])],
        "sum",
        [tensor("x", TensorProto.FLOAT, "n", "m")],
        [tensor("y", TensorProto.FLOAT, "n", 1)],
        [numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")],
    )
    config = (
        "max_batch_size: 8 "
        + io("input", "x", "TYPE_FP32", -1, more="allow_ragged_batch: true")
        + io("output", "y", "TYPE_FP32", 1)
    )
    model = served.add("ragged", graph, config + SLOW_BATCHING)
    lengths = (3, 5, 3, 1)
    requests = [{"x": np.ones((1, length), np.float32)} for length in lengths]
    answers = served.infer_at_once(model, requests)
    assert [answer["y"].tolist() for answer in answers] == [[[length]] for length in lengths]
    assert served.executions(model, requests=4) == (4, 1)


def test_an_optional_input_may_be_left_out(served: Served) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        "bias",
        [tensor("x", TensorProto.FLOAT, "n", 2), tensor("bias", TensorProto.FLOAT, 2)],
        [tensor("y", TensorProto.FLOAT, "n", 2)],
        [numpy_helper.from_array(np.array([10, 20], dtype=np.float32), "bias")],
    )
    config = (
        io("input", "x", "TYPE_FP32", -1, 2)
        + io("input", "bias", "TYPE_FP32", 2, more="optional: true")
        + io("output", "y", "TYPE_FP32", -1, 2)
    )
    model = served.add("optional", graph, config)
    x = np.zeros((1, 2), np.float32)
    assert served.infer(model, x=x)["y"].tolist() == [[10, 20]]
    assert served.infer(model, x=x, bias=np.array([1, 2], np.float32))["y"].tolist() == [[1, 2]]


def test_requests_that_do_not_fit_are_refused_and_the_next_is_answered(served: Served) -> None:
    model = served.add("strict", doubling(), DOUBLING)
    for x in (
        np.ones((1, 3), np.float32),  # sizes
        np.ones((1, 2), np.float64),  # type
        np.ones((9, 2), np.float32),  # more than the largest batch
    ):
        with pytest.raises(InferenceServerException) as refused:
            served.infer(model, x=x)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert served.infer(model, x=np.ones((1, 2), np.float32))["y"].tolist() == [[2, 2]]


def test_a_request_that_the_graph_fails_on_spoils_no_other_of_its_batch(served: Served) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        "table",
        [tensor("index", TensorProto.INT64, "n", 1)],
        [tensor("y", TensorProto.FLOAT, "n", 1)],
        [numpy_helper.from_array(np.array([10, 11, 12], dtype=np.float32), "table")],
    )
    config = (
        "max_batch_size: 8 "
        + io("input", "index", "TYPE_INT64", 1)
        + io("output", "y", "TYPE_FP32", 1)
        + SLOW_BATCHING
    )
    model = served.add("picky", graph, config)

    indices = [0, 99, 2]
    answers = served.infer_at_once(model, [{"index": np.array([[i]])} for i in indices])

    assert served.executions(model, requests=3)[1] == 1  # they were one batch
    assert answers[0]["y"].tolist() == [[10]]
    assert isinstance(answers[1], InferenceServerException)
    assert "out of" in str(answers[1])
    assert "\n" not in str(answers[1])
    assert answers[2]["y"].tolist() == [[12]]
    # Alone, too, and the model lives on.
    with pytest.raises(InferenceServerException, match="out of"):
        served.infer(model, index=np.array([[99]]))
    assert served.infer(model, index=np.array([[1]]))["y"].tolist() == [[11]]


def test_a_string_that_is_no_text_is_refused(served: Served) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "text",
        [tensor("x", TensorProto.STRING, "n")],
        [tensor("y", TensorProto.STRING, "n")],
    )
    config = io("input", "x", "TYPE_STRING", -1) + io("output", "y", "TYPE_STRING", -1)
    model = served.add("text", graph, config)
    with pytest.raises(InferenceServerException, match="x holds a string that is not UTF-8") as bad:
        served.infer(model, x=np.array([b"\xff"], dtype=object))
    assert bad.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert served.infer(model, x=np.array([b"a\0b"], dtype=object))["y"].tolist() == [b"a\0b"]


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "BASIC"), (0, "ENABLE_ALL"), (1, "EXTENDED"), (2, "DISABLE_ALL")],
)
def test_threads_mode_and_optimization_are_those_of_the_configuration(
    served: Served, level: int, name: str
) -> None:
    config = DOUBLING + f"optimization {{ graph {{ level: {level} }} }} "
    for key, value in (
        ("intra_op_thread_count", 3),
        ("inter_op_thread_count", 2),
        ("execution_mode", 1),
    ):
        config += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }} '
    model = served.add(f"tuned_{name}", doubling(), config)
    line = logged(served.server, f'"{model}: ')
    assert "intra_op_thread_count 3, inter_op_thread_count 2, ORT_PARALLEL, " in line
    assert f"{name};" in line


def logged(server: TritonServer, words: str) -> str:
    """The one line with the words; the backends' lines reach the log a little later."""
    deadline = time.monotonic() + 10
    lines: list[str] = []
    while not lines and time.monotonic() < deadline:
        lines = [line for line in server.log.splitlines() if words in line]
    assert len(lines) == 1
    return lines[0]


def test_the_file_may_have_another_name(served: Served) -> None:
    model = served.add("renamed", doubling(), DOUBLING + 'default_model_filename: "network.onnx"')
    assert served.infer(model, x=np.ones((1, 2), np.float32))["y"].tolist() == [[2, 2]]


def parameter(key: str, value: str) -> str:
    return DOUBLING + f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }} '


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (parameter("intra_op_thread_count", "many"), "intra_op_thread_count is 'many', not a"),
        (parameter("execution_mode", "2"), "execution_mode is 2, not one of 0, 1"),
        (parameter("enable_mem_arena", "maybe"), "enable_mem_arena is 'maybe', not one of"),
        (DOUBLING + "optimization { graph { level: 7 } }", "level is 7, not one of -1, 0, 1, 2"),
        (DOUBLING.replace('"x" data_type: TYPE_FP32', '"x" data_type: TYPE_INT32'), "TYPE_INT32"),
        (DOUBLING.replace('"x"', '"z"'), "the graph's input x is not in the configuration"),
        (DOUBLING.replace('"y"', '"z"'), "output z is not in the graph, which has y, size"),
        (DOUBLING.replace("dims: [2]", "dims: [4]"), r"input x is \[-1, 4\] in the configuration"),
        (DOUBLING + 'default_model_filename: "other.onnx"', "other.onnx is not there"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(
    served: Served, config: str, reason: str, request: pytest.FixtureRequest
) -> None:
    number = request.node.callspec.indices["config"]
    with pytest.raises(InferenceServerException, match=reason):
        served.add(f"refused_{number}", doubling(), config)


def test_a_graph_that_cannot_be_served_is_refused_and_the_server_lives_on(served: Served) -> None:
    good = served.add("beside", doubling(), DOUBLING)
    with pytest.raises(InferenceServerException, match=r"model\.onnx cannot be loaded: "):
        served.add("garbage", b"no graph", DOUBLING)
    with pytest.raises(InferenceServerException, match="x has 3 rows in the graph, always"):
        served.add("fixed", doubling(dims=(3, 2)), DOUBLING)
    bfloat16 = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "bfloat16",
        [tensor("x", TensorProto.BFLOAT16, 2)],
        [tensor("y", TensorProto.BFLOAT16, 2)],
    )
    config = io("input", "x", "TYPE_BF16", 2) + io("output", "y", "TYPE_BF16", 2)
    with pytest.raises(InferenceServerException, match=r"tensor\(bfloat16\), which this backend"):
        served.add("bfloat16", bfloat16, config)
    assert served.infer(good, x=np.ones((1, 2), np.float32))["y"].tolist() == [[2, 2]]
    assert served.client.is_model_ready(good)
    assert not served.client.is_model_ready("garbage")


def test_a_model_without_configuration_gets_it_from_its_graph(completing: Served) -> None:
    model = completing.add("bare", doubling(), None)
    config = completing.client.get_model_config(model).config
    assert config.max_batch_size == 4  # Triton's default
    assert config.HasField("dynamic_batching")
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", 11, [2])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("y", 11, [2]),
        ("size", 9, [1]),
    ]
    assert completing.infer(model, x=np.ones((4, 2), np.float32))["y"].tolist() == [[2, 2]] * 4


def test_what_a_configuration_says_is_kept_when_the_rest_is_completed(completing: Served) -> None:
    model = completing.add("partial", doubling(), "max_batch_size: 16")
    assert completing.client.get_model_config(model).config.max_batch_size == 16
    fixed = completing.add("fixed", doubling(dims=(3, 2)), None)
    config = completing.client.get_model_config(fixed).config
    assert config.max_batch_size == 0
    assert [list(i.dims) for i in config.input] == [[3, 2]]


def test_a_tensor_with_a_number_a_row_is_reshaped(completing: Served) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "numbers",
        [tensor("x", TensorProto.FLOAT, "n")],
        [tensor("y", TensorProto.FLOAT, "n")],
    )
    model = completing.add("numbers", graph, None)
    config = completing.client.get_model_config(model).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (4, [1])
    x = np.array([[1], [2], [3]], dtype=np.float32)
    np.testing.assert_array_equal(completing.infer(model, x=x)["y"], 2 * x)


def test_a_graph_that_cannot_be_read_is_refused_at_completion(completing: Served) -> None:
    with pytest.raises(InferenceServerException, match=r"model\.onnx cannot be loaded: "):
        completing.add("garbage", b"no graph", None)


def test_an_exported_repository_gives_what_onnx_runtime_gives(repository: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    with (
        TritonServer(repository) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        served = Served(server, client, repository)
        for model in ("convnext_baseline", "convnext_idealized"):
            session = ort.InferenceSession(repository / model / "1" / "model.onnx")
            for n in (1, 2, 32):
                (expected,) = session.run(["logits"], {"images": images[:n]})
                logits = served.infer(model, images=images[:n])["logits"]
                np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
