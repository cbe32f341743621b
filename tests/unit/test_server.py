"""The gRPC server: health, reflection, status codes, limits, metrics and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from mkf.v1 import (
    classification_pb2,
    classification_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
)
from services.errors import InvalidInputError, NotFoundError, UnavailableError
from services.runtime.channel import format_address
from services.runtime.logging import OneLineFormatter
from services.runtime.metrics import serve_metrics
from services.runtime.server import (
    Registration,
    RunningServer,
    running_server,
)
from services.runtime.settings import Settings, load_settings

CLASSIFICATION = "mkf.v1.ClassificationService"
EVALUATION = "mkf.v1.EvaluationService"
STATUS = health_pb2.HealthCheckResponse


class Classification(classification_pb2_grpc.ClassificationServiceServicer):
    """Does what the model's name says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    async def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model == "missing":
            raise NotFoundError(f"no model {request.model!r}")
        if request.model == "verbose":
            raise NotFoundError("x" * 100_000)
        if request.model == "broken":
            raise RuntimeError("a secret of the inside")
        if request.model == "abort":
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "as the handler likes")
        if request.model == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return classification_pb2.ClassifyResponse(model=request.model)


class Evaluation(evaluation_pb2_grpc.EvaluationServiceServicer):
    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def RunEvaluation(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            for done in range(3):
                progress = evaluation_pb2.EvaluationProgress(images_done=done)
                yield evaluation_pb2.RunEvaluationResponse(progress=progress)
            if request.dataset_uri == "bad":
                raise InvalidInputError("no such dataset")
            if request.dataset_uri == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()


def serve(
    servicer: Any, *, port: int = 0, is_ready: Any = None, on_stop: Any = None, **changes: Any
) -> AbstractAsyncContextManager[RunningServer]:
    defaults = {"shutdown_grace_seconds": 20.0, "health_interval_seconds": 0.02}
    settings: Settings = load_settings(**(defaults | changes))
    if isinstance(servicer, Classification):
        name = CLASSIFICATION
        add = classification_pb2_grpc.add_ClassificationServiceServicer_to_server
    else:
        name = EVALUATION
        add = evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server
    registration = Registration(name, lambda server: add(servicer, server), on_stop)
    options = {} if is_ready is None else {"is_ready": is_ready}
    return running_server([registration], host="127.0.0.1", port=port, settings=settings, **options)


async def classify(address: str, model: str, **options: Any) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = classification_pb2_grpc.ClassificationServiceStub(channel)
        request = classification_pb2.ClassifyRequest(model=model, image=options.pop("image", b""))
        return await stub.Classify(request, timeout=options.pop("timeout", 20), **options)


async def failure(address: str, model: str, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await classify(address, model, **options)
    return caught.value.code(), caught.value.details()


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_errors_become_status_codes_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def count(code: str) -> float:
        return sample("mkf_requests_total", service=CLASSIFICATION, method="Classify", code=code)

    codes = ("NOT_FOUND", "INTERNAL", "ALREADY_EXISTS", "OK")
    before = {code: count(code) for code in codes}
    async with serve(Classification()) as server:
        assert await failure(server.address, "missing") == (
            grpc.StatusCode.NOT_FOUND,
            "no model 'missing'",
        )
        code, details = await failure(server.address, "broken")
        assert code == grpc.StatusCode.INTERNAL
        assert "secret" not in details
        assert "a secret of the inside" in caplog.text
        assert await failure(server.address, "abort") == (
            grpc.StatusCode.ALREADY_EXISTS,
            "as the handler likes",
        )
        code, details = await failure(server.address, "verbose")
        assert code == grpc.StatusCode.NOT_FOUND
        assert len(details) == 1000
        assert (await classify(server.address, "fine")).model == "fine"
    changes = {code: count(code) - before[code] for code in codes}
    assert changes == {"NOT_FOUND": 2, "INTERNAL": 1, "ALREADY_EXISTS": 1, "OK": 1}


async def test_a_stream_is_counted_once_it_has_ended() -> None:
    labels = {"service": EVALUATION, "method": "RunEvaluation"}
    before = sample("mkf_requests_total", **labels, code="OK")
    bad_before = sample("mkf_requests_total", **labels, code="INVALID_ARGUMENT")
    gone_before = sample("mkf_requests_total", **labels, code="CANCELLED")
    servicer = Evaluation()
    async with (
        serve(servicer) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = evaluation_pb2_grpc.EvaluationServiceStub(channel)
        request = evaluation_pb2.RunEvaluationRequest(dataset_uri="good")
        received = [message async for message in stub.RunEvaluation(request, timeout=20)]
        assert [message.progress.images_done for message in received] == [0, 1, 2]
        assert sample("mkf_requests_total", **labels, code="OK") == before + 1

        call = stub.RunEvaluation(
            evaluation_pb2.RunEvaluationRequest(dataset_uri="bad"), timeout=20
        )
        for _ in range(3):
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError, match="no such dataset"):
            await call.read()
        assert sample("mkf_requests_total", **labels, code="INVALID_ARGUMENT") == bad_before + 1

        # A client that goes away ends the stream and its generator.
        servicer.closed.clear()
        call = stub.RunEvaluation(
            evaluation_pb2.RunEvaluationRequest(dataset_uri="endless"), timeout=20
        )
        await call.read()
        assert sample("mkf_requests_in_flight", **labels) == 1
        call.cancel()
        await asyncio.wait_for(servicer.closed.wait(), 20)
    assert sample("mkf_requests_total", **labels, code="CANCELLED") == gone_before + 1
    assert sample("mkf_requests_in_flight", **labels) == 0


async def test_a_cancelled_and_an_expired_request_reach_the_handler() -> None:
    for timeout, code in ((20, "CANCELLED"), (0.2, "DEADLINE_EXCEEDED")):
        labels = {"service": CLASSIFICATION, "method": "Classify", "code": code}
        before = sample("mkf_requests_total", **labels)
        servicer = Classification()
        async with (
            serve(servicer) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            call = stub.Classify(classification_pb2.ClassifyRequest(model="wait"), timeout=timeout)
            await asyncio.wait_for(servicer.entered.wait(), 20)
            if code == "CANCELLED":
                call.cancel()
            await asyncio.wait_for(servicer.cancelled.wait(), 20)
            assert await call.code() == grpc.StatusCode[code]
        assert sample("mkf_requests_total", **labels) == before + 1


async def test_one_request_too_many_is_refused_while_health_answers() -> None:
    servicer = Classification()
    async with serve(servicer, max_concurrent_requests=1) as server:
        first = asyncio.create_task(classify(server.address, "wait"))
        await asyncio.wait_for(servicer.entered.wait(), 20)
        code, details = await failure(server.address, "fine")
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "busy" in details
        assert await health(server.address) == STATUS.SERVING
        servicer.release.set()
        assert (await first).model == "wait"
        assert (await classify(server.address, "fine")).model == "fine"


async def test_a_message_over_the_limit_is_refused() -> None:
    limits = {"max_image_bytes": 1000, "max_message_bytes": 100_000}
    async with serve(Classification(), **limits) as server:
        code, _ = await failure(server.address, "fine", image=bytes(200_000))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await classify(server.address, "fine", image=bytes(50_000))).model == "fine"


async def health(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        return int(response.status)


async def test_health_follows_the_engine_for_the_server_and_for_each_service() -> None:
    ready = False

    async def is_ready() -> bool:
        return ready

    async with (
        serve(Classification(), is_ready=is_ready) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        for name in ("", CLASSIFICATION):
            assert await health(server.address, name) == STATUS.NOT_SERVING
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=CLASSIFICATION), timeout=30)
        assert (await watch.read()).status == STATUS.NOT_SERVING
        ready = True
        assert (await watch.read()).status == STATUS.SERVING
        assert await health(server.address) == STATUS.SERVING
        ready = False
        assert (await watch.read()).status == STATUS.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(server.address, "mkf.v1.NoSuchService")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch.cancel()


async def test_reflection_lists_the_services_and_describes_them() -> None:
    async with (
        serve(Classification()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=CLASSIFICATION),
        ]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=20)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {
        CLASSIFICATION,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert b"ClassifyBatch" in answers[1].file_descriptor_response.file_descriptor_proto[0]


async def test_stopping_turns_health_down_and_lets_running_requests_finish() -> None:
    servicer = Classification()
    stopped: list[str] = []

    async def on_stop() -> None:
        stopped.append("on_stop")
        # New requests are refused, the running one still waits. A request on a connection that is
        # already open may cross the server's farewell on its way; gRPC answers CANCELLED then.
        code, _ = await failure(address, "fine", timeout=5)
        assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        servicer.release.set()

    context = serve(servicer, on_stop=on_stop)
    server = await context.__aenter__()
    address = server.address
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=CLASSIFICATION), timeout=30
        )
        assert (await watch.read()).status == STATUS.SERVING
        running = asyncio.create_task(classify(address, "wait"))
        await asyncio.wait_for(servicer.entered.wait(), 20)
        stopping = asyncio.create_task(context.__aexit__(None, None, None))
        assert (await watch.read()).status == STATUS.NOT_SERVING
        assert (await running).model == "wait"
        # The open watch does not hold the server for its whole grace period.
        await asyncio.wait_for(stopping, 10)
    assert stopped == ["on_stop"]


async def test_what_outlasts_the_grace_period_is_cancelled() -> None:
    servicer = Classification()
    async with serve(servicer, shutdown_grace_seconds=0.05) as server:
        running = asyncio.create_task(classify(server.address, "wait"))
        await asyncio.wait_for(servicer.entered.wait(), 20)
    assert servicer.cancelled.is_set()
    with pytest.raises(grpc.aio.AioRpcError):
        await running


async def test_a_port_in_use_is_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    async with serve(Classification()) as server:
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{server.port}.*in use"):
            async with serve(Classification(), port=server.port):
                pass
        assert (await classify(server.address, "fine")).model == "fine"
    assert capfd.readouterr().err == ""


async def test_a_host_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(UnavailableError, match=r"host\.invalid"):
        async with running_server([], host="host.invalid", port=0, settings=load_settings()):
            pass


async def test_files_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("not a certificate")
    (tmp_path / "key.pem").write_text("not a key")
    with pytest.raises(InvalidInputError, match="MKF_TLS_CERT_FILE"):
        async with serve(
            Classification(),
            tls_cert_file=tmp_path / "cert.pem",
            tls_key_file=tmp_path / "key.pem",
        ):
            pass


async def test_with_a_certificate_the_server_speaks_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("MKF_TEST_REQUIRE_ALL"):
            pytest.fail("openssl is not installed")
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    arguments = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *arguments.split(), *names, *files], check=True, capture_output=True)
    async with serve(Classification(), tls_cert_file=certificate, tls_key_file=key) as server:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(server.address, trusted) as channel:
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            request = classification_pb2.ClassifyRequest(model="fine")
            assert (await stub.Classify(request, timeout=20)).model == "fine"
        assert (await failure(server.address, "fine"))[0] == grpc.StatusCode.UNAVAILABLE


def test_addresses_are_written_as_clients_write_them() -> None:
    assert format_address("127.0.0.1", 1) == "127.0.0.1:1"
    assert format_address("::1", 1) == "[::1]:1"


def test_metrics_answer_over_http() -> None:
    with serve_metrics(host="127.0.0.1", port=0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
            text = response.read().decode()
        with (
            pytest.raises(UnavailableError, match="MKF_METRICS_PORT"),
            serve_metrics(host="127.0.0.1", port=port),
        ):
            pass
    for family in (
        "mkf_requests_total counter",
        "mkf_request_duration_seconds histogram",
        "mkf_requests_in_flight gauge",
        "mkf_phase_duration_seconds histogram",
        "mkf_batch_images histogram",
        "mkf_queue_requests gauge",
    ):
        assert f"# TYPE {family}" in text
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_a_log_event_is_one_line_whatever_is_in_it() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        record = logging.LogRecord(
            "mkf", logging.ERROR, __file__, 1, "%s\r\n%s", ("a", "b"), (type(error), error, None)
        )
    text = OneLineFormatter("%(levelname)s %(message)s").format(record)
    assert text.startswith("ERROR a\\r\\nb\\n")
    assert "\n" not in text
