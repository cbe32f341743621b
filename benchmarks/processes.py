"""Servers for benchmarks: Triton and the classification service, on free ports of the loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services.errors import UnavailableError
from services.runtime import settings

ROOT = Path(__file__).resolve().parents[1]
PREFIX = ROOT / ".triton"
STOP_SECONDS = 60.0


def forget_settings() -> None:
    """Measure with the services' defaults, whatever `MKF_...` the environment holds."""
    for name in [name for name in os.environ if name.startswith(settings.PREFIX)]:
        del os.environ[name]


@contextmanager
def triton(repository: Path) -> Iterator[str]:
    """A Triton server; gives HOST:PORT of gRPC once every model is ready.

    Raises
    ------
    UnavailableError
        It does not start; why stands on standard error.
    """
    ports = [option for name in ("grpc", "http", "metrics") for option in (f"--{name}-port", "0")]
    program = [sys.executable, str(ROOT / "deploy" / "triton" / "serve.py")]
    arguments = ["--prefix", str(PREFIX), "--repository", str(repository), *ports]
    with _server([*program, *arguments], says="gRPC") as address:
        yield address


@contextmanager
def classification(engine: str, repository: Path) -> Iterator[str]:
    """The classification service on an engine; gives its HOST:PORT.

    Raises
    ------
    UnavailableError
        It does not start; why stands on standard error.
    """
    program = [str(Path(sys.executable).with_name("mkf-serve")), "classification"]
    arguments = ["--engine", engine, "--classification-port", "0", "--metrics-port", "0"]
    environment = {
        "MKF_HOST": "127.0.0.1",
        "MKF_METRICS_HOST": "127.0.0.1",
        "MKF_MODEL_REPOSITORY": str(repository),
        "MKF_LOG_LEVEL": "WARNING",
    }
    with _server([*program, *arguments], says="classification", environment=environment) as address:
        yield address


@contextmanager
def _server(
    command: Sequence[str], *, says: str, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """A program that prints a line `SAYS ADDRESS` once it serves, and ends upon SIGTERM."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    ) as process:
        assert process.stdout is not None
        try:
            words = (line.split() for line in process.stdout)
            address = next((line[1] for line in words if line[:1] == [says]), None)
            if address is None:
                raise UnavailableError(f"{' '.join(command)} did not start; see above")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
