"""What every engine must do, the embedded one and a real Triton server: the same tests for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from triton_server import TritonServer
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from mkf.repository import (
    BASELINE,
    IDEALIZED,
    OPSET,
    Model,
    Preprocessing,
    Provenance,
    write_models,
)
from services.errors import (
    DeadlineError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    RepositoryError,
    ServiceError,
    UnavailableError,
)
from services.inference.embedded import EmbeddedEngine
from services.inference.engine import Engine, Inference
from services.inference.repository import load_models
from services.inference.urls import open_engine
from services.runtime.settings import Settings

SIZE = (4, 4)
LONG = 60.0  # seconds; far beyond what any of these requests take
HOLD = 255  # makes a request take a good part of a second
ARRIVAL = 0.05  # seconds, in which a request has arrived where it waits


def probe_graph() -> onnx.ModelProto:
    """A model that tells on the engine.

    Logits of an image: how many images its batch had, and its own red value. Green is how long the
    batch takes, in the units of a loop; blue, where not 0, makes the run fail.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("MatMul", ["state", "turn"], ["next_state"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [48, 48]),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [48, 48]),
        ],
    )
    constants = {
        "one": np.array([1]),
        "zero": np.array([0]),
        "two": np.array([2]),
        "three": np.array([3]),
        "corner": np.array([0, 0]),
        "corner_end": np.array([1, 1]),
        "corner_axes": np.array([1, 2]),
        "steps": np.array(800),
        "true": np.array(True),
        "turn": np.eye(48, dtype=np.float32),
        "pixel_shape": np.array([-1, 3]),
        "safe": np.zeros(1, dtype=np.float32),
        "last": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("Slice", ["images", "corner", "corner_end", "corner_axes"], ["cut"]),
        node("Reshape", ["cut", "pixel_shape"], ["pixels"]),
        node("Cast", ["pixels"], ["numbers"], to=TensorProto.INT64),
        node("Slice", ["numbers", "zero", "one", "last"], ["red"]),
        node("Slice", ["numbers", "one", "two", "last"], ["green"]),
        node("Slice", ["numbers", "two", "three", "last"], ["blue"]),
        node("ReduceMax", ["green"], ["longest"], keepdims=0),
        node("Mul", ["longest", "steps"], ["trips"]),
        node("Loop", ["trips", "true", "turn"], ["turned"], body=body),
        node("ReduceMin", ["turned"], ["nothing"], keepdims=0),  # 0, but the loop must run for it
        node("Gather", ["safe", "blue"], ["failing"]),  # an index that is not there
        node("Shape", ["images"], ["shape"], start=0, end=1),
        node("Mul", ["red", "zero"], ["zeros"]),
        node("Add", ["zeros", "shape"], ["batch"]),
        node("Concat", ["batch", "red"], ["answers"], axis=1),
        node("Cast", ["answers"], ["answers_float"], to=TensorProto.FLOAT),
        node("Add", ["answers_float", "failing"], ["sound"]),
        node("Add", ["sound", "nothing"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def images(count: int = 1, *, red: int = 0, green: int = 0, blue: int = 0) -> NDArray[np.uint8]:
    return np.full((count, *SIZE, 3), (red, green, blue), dtype=np.uint8)


Configure = Callable[[ModelConfig], None]


@dataclass
class Probe:
    """The probe model behind an engine."""

    engine: Engine

    async def __call__(self, pixels: NDArray[np.uint8], *, timeout: float = LONG) -> Inference:
        return await self.engine.infer("probe", pixels, timeout_seconds=timeout)

    def start(self, pixels: NDArray[np.uint8], *, timeout: float = LONG) -> asyncio.Task[Inference]:
        return asyncio.create_task(self(pixels, timeout=timeout))

    async def hold(self) -> asyncio.Task[Inference]:
        """Keep one instance busy, so that what comes next has to wait."""
        holding = self.start(images(green=HOLD))
        await asyncio.sleep(ARRIVAL)
        return holding

    async def queue(self, *sizes: int) -> list[asyncio.Task[Inference]]:
        """Requests of so many images, one behind the other, as a server takes them."""
        tasks = []
        for size in sizes:
            tasks.append(self.start(images(size)))
            await asyncio.sleep(ARRIVAL / 5)
        await asyncio.sleep(ARRIVAL)
        return tasks


def batch_sizes(answers: list[Inference]) -> list[int]:
    return [int(answer.logits[0, 0]) for answer in answers]


def write_probe(directory: Path, configure: Configure | None = None) -> Path:
    model = Model(
        name="probe",
        graph=probe_graph(),
        preprocessing=Preprocessing(input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3),
        provenance=Provenance(source="tests", license="Apache-2.0", labels=["batch", "red"]),
    )
    write_models(directory, [model], threads=1)
    path = directory / "probe" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.max_batch_size = 8
    config.ClearField("model_warmup")
    config.dynamic_batching.max_queue_delay_microseconds = 0
    if configure is not None:
        configure(config)
    path.write_text(text_format.MessageToString(config))
    return directory


@pytest.fixture(params=["embedded", "triton", "triton with shared memory"])
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[Path], Awaitable[Any]]]:
    """Opens an engine on a model repository; closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_on(repository: Path) -> Engine:
            url = f"embedded:{repository}"
            if request.param != "embedded":
                url = f"triton:{stack.enter_context(TritonServer(repository)).address}"
            settings = Settings(
                _env_file=None,
                model_repository=repository,
                triton_shared_memory="shared memory" in request.param,
            )
            engine, _ = await open_engine(url, settings)
            stack.push_async_callback(engine.close)
            return engine

        yield open_on


@pytest.fixture
def probe(
    serve: Callable[[Path], Awaitable[Engine]], tmp_path: Path
) -> Callable[..., Awaitable[Probe]]:
    """Opens an engine on the probe model, its config changed first."""

    async def make(configure: Configure | None = None) -> Probe:
        return Probe(await serve(write_probe(tmp_path, configure)))

    return make


MakeProbe = Callable[..., Awaitable[Probe]]


async def test_logits_are_those_of_the_graph(
    serve: Callable[[Path], Awaitable[Engine]], repository: Path
) -> None:
    engine = await serve(repository)
    pixels = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    for name in (BASELINE, IDEALIZED):
        assert await engine.is_ready(name)
        answer = await engine.infer(name, pixels, timeout_seconds=LONG)
        session = ort.InferenceSession(repository / name / "1" / "model.onnx")
        (expected,) = session.run(None, {"images": pixels})
        assert answer.logits.dtype == np.float32
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-5, atol=1e-5)
        assert answer.queue_seconds >= 0
        assert answer.inference_seconds > 0


async def test_pixels_need_not_be_contiguous(
    serve: Callable[[Path], Awaitable[Engine]], repository: Path
) -> None:
    engine = await serve(repository)
    pixels = np.random.default_rng(0).integers(256, size=(4, 32, 64, 3), dtype=np.uint8)
    strided = pixels[::2, :, ::2]
    one = await engine.infer(BASELINE, strided, timeout_seconds=LONG)
    two = await engine.infer(BASELINE, strided.copy(), timeout_seconds=LONG)
    np.testing.assert_array_equal(one.logits, two.logits)


async def test_an_unknown_model_is_not_found(probe: MakeProbe) -> None:
    engine = (await probe()).engine
    with pytest.raises(NotFoundError, match=r"nothing.*probe"):
        await engine.infer("nothing", images(), timeout_seconds=LONG)
    assert await engine.is_ready("probe")
    assert not await engine.is_ready("nothing")


@pytest.mark.parametrize(
    "pixels",
    [
        images(0),
        images(9),
        images()[0],
        images().astype(np.float32),
        images().astype(np.int8),
        np.zeros((1, 4, 5, 3), dtype=np.uint8),
        np.zeros((1, 3, 4, 4), dtype=np.uint8),
        np.zeros((1, 4, 4, 4), dtype=np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
async def test_what_the_model_does_not_take_is_refused(
    probe: MakeProbe, pixels: NDArray[Any]
) -> None:
    model = await probe()
    with pytest.raises(InvalidInputError, match="probe takes uint8"):
        await model(pixels)
    assert batch_sizes([await model(images(8))]) == [8]


async def test_waiting_requests_share_a_batch_and_each_gets_its_own_logits(
    probe: MakeProbe,
) -> None:
    model = await probe()
    holding = await model.hold()
    waiting = [model.start(images(n, red=10 * n)) for n in (1, 2, 3)]
    answers = await asyncio.gather(*waiting)
    assert batch_sizes(answers) == [6, 6, 6]
    for n, answer in zip((1, 2, 3), answers, strict=True):
        assert answer.logits.shape == (n, 2)
        assert (answer.logits[:, 1] == 10 * n).all()
    assert batch_sizes([await holding]) == [1]
    if times := await model.engine.server_times():
        while times["probe"].requests < 4:  # a server counts a request once it is answered
            await asyncio.sleep(0.01)
            times = await model.engine.server_times()
        assert times["probe"].requests == 4
        assert times["probe"].queue_seconds > 0
        assert times["probe"].inference_seconds > 0
    else:
        assert all(answer.queue_seconds > 0 for answer in answers)


async def test_a_request_is_never_split_and_the_order_is_kept(probe: MakeProbe) -> None:
    model = await probe()
    holding = await model.hold()
    answers = await asyncio.gather(*await model.queue(5, 3, 5, 2, 2, 8, 1))
    assert batch_sizes(answers) == [8, 8, 7, 7, 2, 8, 1]
    await holding


async def test_without_dynamic_batching_every_request_is_a_batch(probe: MakeProbe) -> None:
    model = await probe(lambda config: config.ClearField("dynamic_batching"))
    holding = await model.hold()
    assert batch_sizes(await asyncio.gather(*(model(images(n)) for n in (1, 1, 2)))) == [1, 1, 2]
    await holding


def wait_long(config: ModelConfig) -> None:
    config.dynamic_batching.max_queue_delay_microseconds = 3_600_000_000


async def test_a_full_batch_does_not_wait_for_the_delay(probe: MakeProbe) -> None:
    model = await probe(wait_long)
    assert batch_sizes(await asyncio.gather(*(model(images(2)) for _ in range(4)))) == [8] * 4


async def test_the_delay_lets_a_batch_grow_and_ends(probe: MakeProbe) -> None:
    def configure(config: ModelConfig) -> None:
        config.dynamic_batching.max_queue_delay_microseconds = 1_000_000

    model = await probe(configure)
    first = model.start(images())
    await asyncio.sleep(0.01)
    answers = [await model(images()), await first]
    assert batch_sizes(answers) == [2, 2]


async def test_a_preferred_batch_does_not_wait_for_the_delay(probe: MakeProbe) -> None:
    def configure(config: ModelConfig) -> None:
        wait_long(config)
        config.dynamic_batching.preferred_batch_size.extend([2, 4])

    model = await probe(configure)
    waiting = await model.queue(1, 1, 1)
    assert batch_sizes(await asyncio.gather(*waiting[:2])) == [2, 2]
    assert not waiting[2].done()
    assert batch_sizes(await asyncio.gather(model(images()), waiting[2])) == [2, 2]


async def test_a_full_queue_refuses_and_recovers(probe: MakeProbe) -> None:
    def configure(config: ModelConfig) -> None:
        config.dynamic_batching.default_queue_policy.max_queue_size = 2

    model = await probe(configure)
    holding = await model.hold()
    waiting = await model.queue(1, 1)
    with pytest.raises(LimitError, match="try again later"):
        await model(images())
    assert batch_sizes(await asyncio.gather(*waiting)) == [2, 2]
    await holding
    assert batch_sizes([await model(images())]) == [1]


async def test_instances_run_at_the_same_time(probe: MakeProbe) -> None:
    def configure(config: ModelConfig) -> None:
        config.instance_group[0].count = 2

    model = await probe(configure)
    holding = await model.hold()
    await model(images())
    assert not holding.done()
    await holding


def bound(config: ModelConfig) -> None:
    """With this Triton makes up no batch ahead of time: in one, it looks at no cancellation."""
    config.dynamic_batching.default_queue_policy.max_queue_size = 64


async def test_a_cancelled_request_leaves_the_queue(probe: MakeProbe) -> None:
    model = await probe(bound)
    holding = await model.hold()
    cancelled, kept = model.start(images(3)), model.start(images(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert batch_sizes([await kept]) == [2]
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await holding


async def test_an_expired_request_leaves_the_queue(probe: MakeProbe) -> None:
    model = await probe(bound)
    holding = await model.hold()
    expired, kept = model.start(images(3), timeout=0.01), model.start(images(2))
    with pytest.raises(DeadlineError, match=r"0\.01 seconds"):
        await expired
    assert not holding.done()
    assert batch_sizes([await kept]) == [2]
    await holding
    with pytest.raises(DeadlineError):
        await model(images(), timeout=0)


async def test_a_request_that_ends_while_it_runs_harms_nobody(probe: MakeProbe) -> None:
    model = await probe(bound)
    cancelled = await model.hold()
    cancelled.cancel()
    with pytest.raises(DeadlineError):
        await model(images(green=HOLD), timeout=0.1)
    assert batch_sizes([await model(images())]) == [1]


async def test_requests_that_end_change_no_others_answer(probe: MakeProbe) -> None:
    model = await probe()  # as exported: a batch may be made up before a request in it ends
    holding = await model.hold()
    limits = [0.1 if red % 3 == 0 else LONG for red in range(12)]
    tasks = [model.start(images(2, red=red), timeout=limits[red]) for red in range(12)]
    await asyncio.sleep(ARRIVAL / 2)
    for task in tasks[1::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, DeadlineError) for answer in answers[::3])
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[1::3])
    for red in range(2, 12, 3):
        answer = answers[red]
        assert isinstance(answer, Inference)
        assert answer.logits[:, 1].tolist() == [red, red]
    await holding


async def test_a_failing_batch_fails_alone(probe: MakeProbe) -> None:
    model = await probe(lambda config: config.ClearField("dynamic_batching"))
    holding = await model.hold()
    before, bad, after = (model.start(images(blue=blue)) for blue in (0, 1, 0))
    answers = [await before, await after, await holding]
    assert batch_sizes(answers) == [1, 1, 1]
    with pytest.raises(ServiceError) as caught:
        await bad
    assert "Gather" not in str(caught.value)  # the runtime's words stay in the log
    for _ in range(3):
        with pytest.raises(ServiceError):
            await model(images(blue=1))
    assert await model.engine.is_ready("probe")
    assert batch_sizes([await model(images())]) == [1]


async def test_close_finishes_what_was_accepted_and_refuses_the_rest(probe: MakeProbe) -> None:
    model = await probe()
    accepted = [await model.hold(), *(model.start(images(n, red=n)) for n in (5, 6))]
    await asyncio.sleep(0)
    closing = asyncio.create_task(model.engine.close())
    await asyncio.sleep(0.01)
    assert not await model.engine.is_ready("probe")
    with pytest.raises(UnavailableError, match="closing"):
        await model(images())
    assert batch_sizes(await asyncio.gather(*accepted)) == [1, 5, 6]
    await closing
    await model.engine.close()
    with pytest.raises(UnavailableError):
        await model(images())


async def test_many_requests_all_get_their_own_answer(probe: MakeProbe) -> None:
    def configure(config: ModelConfig) -> None:
        config.instance_group[0].count = 3

    model = await probe(configure)
    sizes = np.random.default_rng(1).integers(1, 9, size=200)
    answers = await asyncio.gather(
        *(model(images(int(n), red=place)) for place, n in enumerate(sizes))
    )
    for place, (n, answer) in enumerate(zip(sizes, answers, strict=True)):
        assert answer.logits.shape == (n, 2)
        assert (answer.logits[:, 1] == place).all()


# From here on the embedded engine alone: how it opens a repository.


async def test_close_does_not_wait_for_the_delay(tmp_path: Path) -> None:
    engine, _ = await open_engine(f"embedded:{write_probe(tmp_path, wait_long)}")
    accepted = Probe(engine).start(images(3))
    await asyncio.sleep(0.01)
    await engine.close()
    assert batch_sizes([await accepted]) == [3]


async def test_urls_that_name_no_engine_are_refused(tmp_path: Path) -> None:
    for url in ("embedded", "embedded:", "triton:", "http://127.0.0.1", "", "model_repository"):
        with pytest.raises(InvalidInputError, match="unknown engine"):
            await open_engine(url)
    with pytest.raises(RepositoryError, match="mkf export"):
        await open_engine(f"embedded:{tmp_path / 'nowhere'}")


async def test_warm_up_runs_before_the_model_is_ready(tmp_path: Path) -> None:
    def fails(config: ModelConfig) -> None:  # random pixels have blue in them
        warm_up = config.model_warmup.add(name="random", batch_size=2)
        warm_up.inputs["images"].random_data = True

    with pytest.raises(RepositoryError, match="cannot be run"):
        await open_engine(f"embedded:{write_probe(tmp_path, fails)}")


@pytest.mark.parametrize("name", ["intra_op_thread_count", "inter_op_thread_count"])
async def test_thread_counts_that_are_no_numbers_are_refused(tmp_path: Path, name: str) -> None:
    def configure(config: ModelConfig) -> None:
        config.parameters[name].string_value = "many"

    with pytest.raises(RepositoryError, match=f"{name} is 'many'"):
        await open_engine(f"embedded:{write_probe(tmp_path, configure)}")


async def test_what_config_leaves_out_has_a_default(tmp_path: Path) -> None:
    def configure(config: ModelConfig) -> None:
        for name in ("parameters", "instance_group", "dynamic_batching"):
            config.ClearField(name)

    engine, _ = await open_engine(f"embedded:{write_probe(tmp_path, configure)}")
    answer = await engine.infer("probe", images(red=7), timeout_seconds=LONG)
    assert answer.logits.tolist() == [[1, 7]]
    await engine.close()


async def test_kind_cpu_is_honored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def configure(config: ModelConfig) -> None:
        config.instance_group[0].kind = ModelInstanceGroup.KIND_CPU

    caplog.set_level("INFO")
    engine, _ = await open_engine(f"embedded:{write_probe(tmp_path, configure)}")
    await engine.close()
    assert "on CPUExecutionProvider" in caplog.text


async def test_a_batch_size_of_zero_is_refused(tmp_path: Path) -> None:
    def configure(config: ModelConfig) -> None:
        config.max_batch_size = 0

    with pytest.raises(RepositoryError, match="max_batch_size"):
        await open_engine(f"embedded:{write_probe(tmp_path, configure)}")


async def test_graphs_that_do_not_keep_the_contract_are_refused(tmp_path: Path) -> None:
    model = load_models(write_probe(tmp_path))["probe"]
    with pytest.raises(RepositoryError, match="float32"):
        await EmbeddedEngine.open({"probe": replace(model, labels=("one", "two", "three"))})
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a graph")
    with pytest.raises(RepositoryError, match="garbage"):
        await EmbeddedEngine.open({"probe": replace(model, graph=garbage)})
