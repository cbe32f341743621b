"""`mkf-serve` as a process: ready, healthy, measured, stopped by a signal with status 0."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mkf.v1 import classification_pb2, classification_pb2_grpc

SECONDS = 60  # for a process to start or to end, on a busy machine
RUN = "from services.cli import serve_main; serve_main()"
SERVING = health_pb2.HealthCheckResponse.SERVING


def clean_environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MKF_")}
    return kept | {"OMP_NUM_THREADS": "1"} | variables


@contextmanager
def serving(
    directory: Path, *arguments: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A running `mkf-serve` on free ports and the addresses that it printed."""
    variables = {
        "MKF_CLASSIFICATION_PORT": "0",
        "MKF_EVALUATION_PORT": "0",
        "MKF_METRICS_PORT": "0",
        **variables,
    }
    with (directory / "stderr.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments],
            cwd=directory,
            env=clean_environment(**variables),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            addresses: dict[str, str] = {}
            assert process.stdout is not None
            for line in process.stdout:
                name, address = line.split()
                addresses[name] = address
                if name == "metrics":
                    break
            assert "metrics" in addresses, (directory / "stderr.txt").read_text()
            yield process, addresses
        finally:
            process.kill()  # does nothing to a process that has ended
            process.communicate()


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=directory,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return int(stub.Check(request, timeout=SECONDS).status)


def reflected(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)
        return {service.name for service in answer.list_services_response.service}


def refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=SECONDS):
            return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_services_start_answer_and_stop(
    tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    with serving(tmp_path, MKF_ENGINE=f"embedded:{repository}") as (process, addresses):
        assert list(addresses) == ["classification", "evaluation", "metrics"]
        for name in ("classification", "evaluation"):
            assert addresses[name].startswith("127.0.0.1:")
            service = f"mkf.v1.{name.capitalize()}Service"
            assert health(addresses[name]) == SERVING
            assert health(addresses[name], service) == SERVING
            assert reflected(addresses[name]) >= {service, "grpc.health.v1.Health"}
        process.send_signal(number)
        assert process.wait(SECONDS) == 0
        assert all(refused(addresses[name]) for name in ("classification", "evaluation"))
    log = (tmp_path / "stderr.txt").read_text()
    assert "Traceback" not in log
    assert log.rstrip().endswith("stopped")


def test_metrics_count_what_was_asked(tmp_path: Path, repository: Path) -> None:
    with serving(tmp_path, "classification", "--engine", f"embedded:{repository}") as (
        process,
        addresses,
    ):
        assert list(addresses) == ["classification", "metrics"]
        with grpc.insecure_channel(addresses["classification"]) as channel:
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.Classify(classification_pb2.ClassifyRequest(image=b"none"), timeout=SECONDS)
        assert addresses["metrics"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(addresses["metrics"], timeout=SECONDS) as response:
            lines = response.read().decode().splitlines()
        assert (
            'mkf_requests_total{code="INVALID_ARGUMENT",method="Classify",'
            'service="mkf.v1.ClassificationService"} 1.0'
        ) in lines
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_a_port_in_use_is_one_line_and_status_1(tmp_path: Path, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        free = {"MKF_CLASSIFICATION_PORT": "0", "MKF_EVALUATION_PORT": "0", "MKF_METRICS_PORT": "0"}
        for name in free:
            result = run(
                tmp_path,
                **(free | {name: port}),
                MKF_ENGINE=f"embedded:{repository}",
                MKF_LOG_LEVEL="ERROR",
            )
            assert result.returncode == 1
            assert result.stdout == ""
            (line,) = result.stderr.splitlines()
            assert f"127.0.0.1:{port}" in line
            assert "in use" in line


@pytest.mark.parametrize(
    ("variables", "status", "words"),
    [
        ({"MKF_CLASSIFICATION_PORT": "many"}, 1, "MKF_CLASSIFICATION_PORT"),
        ({"MKF_ENGINE": "embedded:nowhere"}, 1, "mkf export"),
        ({"MKF_ENGINE": "tensorrt:127.0.0.1:8001"}, 1, "embedded:DIR"),
        ({"MKF_ENGINE": "triton:127.0.0.1:8001"}, 1, "mkf export"),  # what it serves is not known
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    tmp_path: Path, variables: dict[str, str], status: int, words: str
) -> None:
    result = run(tmp_path, **variables)
    assert result.returncode == status
    (line,) = result.stderr.splitlines()
    assert words in line


def test_wrong_use_is_status_2(tmp_path: Path) -> None:
    assert run(tmp_path, "everything").returncode == 2
    assert run(tmp_path, "--no-such-flag").returncode == 2
