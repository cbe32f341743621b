"""`mkf-healthcheck`, against real servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.runtime.healthcheck import FULL_NAMES, Service
from services.runtime.server import Registration, RunningServer, running_server
from services.runtime.settings import PREFIX, Settings


def healthcheck(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if PREFIX not in name}
    return subprocess.run(
        [Path(sys.executable).parent / "mkf-healthcheck", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment | variables,
    )


@asynccontextmanager
async def serving(*, ready: bool = True, **settings: object) -> AsyncIterator[RunningServer]:
    """A server of one service, without methods."""

    async def is_ready() -> bool:
        return ready

    registration = Registration(FULL_NAMES[Service.EVALUATION].full_name, lambda server: None)
    async with running_server(
        [registration],
        host="127.0.0.1",
        port=0,
        settings=Settings(_env_file=None, **settings),
        is_ready=is_ready,
    ) as server:
        yield server


async def test_a_service_that_serves_is_healthy() -> None:
    async with serving() as server:
        variables = {"MKF_HOST": "0.0.0.0", "MKF_EVALUATION_PORT": str(server.port)}
        done = await asyncio.to_thread(healthcheck, "evaluation", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_a_service_whose_engine_is_down_is_not_healthy() -> None:
    async with serving(ready=False) as server:
        done = await asyncio.to_thread(healthcheck, "evaluation", "--address", server.address)
    assert done.returncode == 1
    assert done.stderr.startswith(f"mkf-healthcheck: evaluation at {server.address} is NOT_SERVING")
    assert "MKF_ENGINE=" in done.stderr


async def test_a_server_of_another_service_is_not_healthy() -> None:
    async with serving() as server:
        done = await asyncio.to_thread(healthcheck, "classification", "--address", server.address)
    assert done.returncode == 1
    assert "NOT_FOUND" in done.stderr


async def test_a_certificate_is_trusted(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing: apt-get install openssl")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *command.split(), *names, *files], check=True, capture_output=True)
    async with serving(tls_cert_file=certificate, tls_key_file=key) as server:
        variables = {
            "MKF_HOST": "0.0.0.0",
            "MKF_EVALUATION_PORT": str(server.port),
            "MKF_TLS_CERT_FILE": str(certificate),
            "MKF_TLS_KEY_FILE": str(key),
        }
        done = await asyncio.to_thread(healthcheck, "evaluation", **variables)
        bare = await asyncio.to_thread(healthcheck, "evaluation", "--address", server.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert bare.returncode == 1


def test_a_service_that_does_not_answer_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = healthcheck("classification", MKF_CLASSIFICATION_PORT=str(port), MKF_HOST="0.0.0.0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"localhost:{port} does not answer" in done.stderr


def test_another_service_is_wrong_use() -> None:
    assert healthcheck("grafana").returncode == 2
