"""ClassificationService as its proto describes it, over a real socket and a real engine."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY
from scipy.special import softmax

from mkf.v1 import classification_pb2 as pb
from mkf.v1 import classification_pb2_grpc
from services.classification.service import NAME, ClassificationServicer
from services.errors import LimitError, UnavailableError
from services.inference.engine import Engine, Inference
from services.inference.repository import BASELINE, IDEALIZED
from services.inference.urls import open_engine
from services.preprocessing import ImageLimits, decode, preprocess
from services.runtime.server import Registration, running_server
from services.runtime.settings import load_settings

Code = grpc.StatusCode


def photo(seed: int, *, size: tuple[int, int] = (48, 40), format_: str = "PNG") -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(buffer, format_)
    return buffer.getvalue()


@dataclass
class Service:
    stub: Any
    repository: Path

    async def classify(self, image: bytes, *, timeout: float = 30, **fields: Any) -> Any:
        return await self.stub.Classify(pb.ClassifyRequest(image=image, **fields), timeout=timeout)

    async def batch(self, images: list[bytes], **fields: Any) -> Any:
        return await self.stub.ClassifyBatch(
            pb.ClassifyBatchRequest(images=images, **fields), timeout=30
        )


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


Serve = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def serve(repository: Path) -> Serve:
    @asynccontextmanager
    async def run(
        wrap: Callable[[Engine], Engine] = lambda engine: engine, **changes: Any
    ) -> AsyncIterator[Service]:
        settings = load_settings(**({"decode_threads": 2} | changes))
        engine, models = await open_engine(f"embedded:{repository}")
        servicer = ClassificationServicer(wrap(engine), models, settings)
        registration = Registration(
            NAME,
            lambda server: classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
                servicer, server
            ),
        )
        async with (
            running_server([registration], host="127.0.0.1", port=0, settings=settings) as server,
            grpc.aio.insecure_channel(
                server.address, options=[("grpc.max_send_message_length", -1)]
            ) as channel,
        ):
            yield Service(classification_pb2_grpc.ClassificationServiceStub(channel), repository)
        await servicer.close()
        await engine.close()

    return run


@pytest.fixture
async def service(serve: Serve) -> AsyncIterator[Service]:
    async with serve() as running:
        yield running


def expected(repository: Path, model: str, image: bytes) -> NDArray[np.float64]:
    """The probabilities, computed past the service and its engine."""
    from services.inference.repository import load_models

    pixels = preprocess(
        decode(image, limits=ImageLimits()), load_models(repository)[model].preprocessing
    )
    session = ort.InferenceSession(repository / model / "1" / "model.onnx")
    (logits,) = session.run(None, {"images": pixels[np.newaxis]})
    probabilities: NDArray[np.float64] = softmax(logits[0].astype(np.float64))
    return probabilities


@pytest.mark.parametrize("model", [BASELINE, IDEALIZED])
async def test_the_answer_is_the_models(service: Service, model: str) -> None:
    for seed in range(5):
        response = await service.classify(photo(seed), model=model, top_k=10)
        probabilities = expected(service.repository, model, photo(seed))
        assert response.model == model
        indices = [prediction.class_index for prediction in response.predictions]
        assert indices == np.argsort(-probabilities).tolist()
        for prediction in response.predictions:
            assert prediction.label == f"class {prediction.class_index}"
            assert prediction.probability == pytest.approx(
                probabilities[prediction.class_index], abs=1e-5
            )
        assert math.fsum(p.probability for p in response.predictions) == pytest.approx(1, abs=1e-5)


async def test_empty_fields_have_their_documented_meaning(service: Service) -> None:
    response = await service.classify(photo(1))
    assert response.model == BASELINE
    assert len(response.predictions) == 5


@pytest.mark.parametrize("top_k", [1, 3, 10])
async def test_top_k_is_honored(service: Service, top_k: int) -> None:
    assert len((await service.classify(photo(1), top_k=top_k)).predictions) == top_k
    (result,) = (await service.batch([photo(1)], top_k=top_k)).results
    assert len(result.predictions) == top_k


async def test_the_timings_are_measured_after_the_work(service: Service) -> None:
    for response in (
        await service.classify(photo(1)),
        await service.batch([photo(n) for n in range(40)]),
    ):
        timings = response.timings
        assert timings.decode_seconds > 0
        assert timings.inference_seconds > 0
        assert timings.queue_seconds >= 0
        parts = timings.decode_seconds + timings.queue_seconds + timings.inference_seconds
        assert parts <= timings.total_seconds


async def test_out_of_range_and_unknown(service: Service) -> None:
    image = photo(1)
    for call in (service.classify(image, top_k=11), service.batch([image], top_k=11)):
        code, details = await refusal(call)
        assert code == Code.INVALID_ARGUMENT
        assert "10 classes" in details
    for call in (
        service.classify(image, model="resnet"),
        service.batch([image], model="resnet"),
        service.classify(image, model="\n" * 5000),
    ):
        code, details = await refusal(call)
        assert code == Code.NOT_FOUND
    assert (await service.classify(image)).model == BASELINE


BAD_BYTES = {
    "empty": b"",
    "text": b"this is no image",
    "header alone": b"\x89PNG\r\n\x1a\n",
    "truncated PNG": photo(1)[:60],
    "truncated JPEG": photo(1, size=(400, 300), format_="JPEG")[:1500],
    "zeros": bytes(10_000),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "another format": photo(1, format_="PPM"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
async def test_bad_bytes_are_refused_and_the_next_request_is_served(
    service: Service, name: str
) -> None:
    code, details = await refusal(service.classify(BAD_BYTES[name]))
    assert code == Code.INVALID_ARGUMENT
    assert details
    assert (await service.classify(photo(1))).predictions


async def test_images_over_the_limits_are_refused_and_the_next_is_served(serve: Serve) -> None:
    async with serve(max_image_bytes=20_000, max_image_pixels=2000) as service:
        code, details = await refusal(service.classify(bytes(20_001)))
        assert (code, "20001 bytes" in details) == (Code.RESOURCE_EXHAUSTED, True)
        code, details = await refusal(service.classify(photo(1, size=(50, 41))))
        assert (code, "50 x 41 pixels" in details) == (Code.RESOURCE_EXHAUSTED, True)
        assert (await service.classify(photo(1))).predictions
    async with serve(max_image_bytes=20_000, max_message_bytes=100_000) as service:
        code, _ = await refusal(service.classify(bytes(200_000)))
        assert code == Code.RESOURCE_EXHAUSTED
        assert (await service.classify(photo(1))).predictions


async def test_in_a_batch_an_image_fails_alone(serve: Serve) -> None:
    images = [photo(1), b"", photo(2), bytes(20_001), b"no image", photo(3)]
    async with serve(max_image_bytes=20_000) as service:
        response = await service.batch(images)
        assert response.model == BASELINE
        codes = [result.error.code for result in response.results]
        ok, invalid, exhausted = (
            code.value[0] for code in (Code.OK, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)
        )
        assert codes == [ok, invalid, ok, exhausted, invalid, ok]
        for image, result in zip(images, response.results, strict=True):
            assert result.HasField("error") == (not result.predictions)
            if result.HasField("error"):
                assert result.error.message == (await refusal(service.classify(image)))[1]
            else:
                assert list(result.predictions) == list((await service.classify(image)).predictions)
        only_bad = await service.batch([b"", b""])
        assert [result.error.code for result in only_bad.results] == [invalid, invalid]


async def test_a_batch_may_be_larger_than_the_models_and_keeps_its_order(service: Service) -> None:
    images = [photo(seed) for seed in range(50)]  # the model takes 32
    response = await service.batch(images, top_k=1)
    assert len(response.results) == 50
    for image, result in list(zip(images, response.results, strict=True))[::7]:
        probabilities = expected(service.repository, BASELINE, image)
        assert result.predictions[0].class_index == probabilities.argmax()


async def test_batches_without_images_or_with_too_many_are_refused(serve: Serve) -> None:
    async with serve(max_batch_images=3) as service:
        assert (await refusal(service.batch([])))[0] == Code.INVALID_ARGUMENT
        code, details = await refusal(service.batch([photo(1)] * 4))
        assert (code, "limit of 3" in details) == (Code.RESOURCE_EXHAUSTED, True)
        assert len((await service.batch([photo(1)] * 3)).results) == 3


class Failing:
    """A real engine behind a door that is shut once."""

    def __init__(self, engine: Engine, error: Exception) -> None:
        self._engine = engine
        self._errors = [error]

    async def infer(
        self, model: str, images: NDArray[np.uint8], *, timeout_seconds: float
    ) -> Inference:
        if self._errors:
            raise self._errors.pop()
        return await self._engine.infer(model, images, timeout_seconds=timeout_seconds)

    async def is_ready(self, model: str) -> bool:
        return await self._engine.is_ready(model)

    async def close(self) -> None:
        await self._engine.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LimitError("the queue is full"), Code.RESOURCE_EXHAUSTED),
        (UnavailableError("the engine is down"), Code.UNAVAILABLE),
        (RuntimeError("a secret"), Code.INTERNAL),
    ],
)
async def test_what_the_engine_raises_reaches_the_client_as_a_status(
    serve: Serve, error: Exception, code: grpc.StatusCode
) -> None:
    async with serve(lambda engine: Failing(engine, error)) as service:
        answered, details = await refusal(service.classify(photo(1)))
        assert answered == code
        assert "secret" not in details
        assert (await service.classify(photo(1))).predictions
    async with serve(lambda engine: Failing(engine, error)) as service:
        assert (await refusal(service.batch([photo(1)])))[0] == code


async def test_the_services_own_timeout_is_honored(serve: Serve) -> None:
    async with serve(request_timeout_seconds=1e-6) as service:
        for call in (service.classify(photo(1)), service.batch([photo(1)])):
            code, details = await refusal(call)
            assert code == Code.DEADLINE_EXCEEDED
            assert "1e-06 seconds" in details


async def test_an_expired_deadline_leaves_the_service_in_order(service: Service) -> None:
    assert (await refusal(service.classify(photo(1), timeout=0)))[0] == Code.DEADLINE_EXCEEDED
    assert (await service.classify(photo(1))).predictions


async def test_many_clients_at_once_each_get_their_own_answer(service: Service) -> None:
    alone = [(await service.classify(photo(seed))).predictions for seed in range(30)]
    together = await asyncio.gather(*(service.classify(photo(seed)) for seed in range(30)))
    for one, other in zip(alone, together, strict=True):
        assert [p.class_index for p in one] == [p.class_index for p in other.predictions]
        np.testing.assert_allclose(
            [p.probability for p in one], [p.probability for p in other.predictions], rtol=1e-5
        )


async def test_each_phase_is_observed(service: Service) -> None:
    def counts() -> dict[str, float]:
        return {
            phase: REGISTRY.get_sample_value(
                "mkf_phase_duration_seconds_count", {"model": IDEALIZED, "phase": phase}
            )
            or 0
            for phase in ("decode", "queue", "inference", "total")
        }

    before = counts()
    await service.classify(photo(1), model=IDEALIZED)
    assert {phase: count - before[phase] for phase, count in counts().items()} == {
        "decode": 1,
        "queue": 1,
        "inference": 1,
        "total": 1,
    }
