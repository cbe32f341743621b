"""A Triton server of this run's own, on free ports of the loopback device."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import UnavailableError

ROOT = Path(__file__).resolve().parents[2]
PREFIX = ROOT / ".triton"
SERVE = ROOT / "deploy" / "triton" / "serve.py"
STOP_SECONDS = 60.0


@contextmanager
def running_triton(repository: Path) -> Iterator[str]:
    """Serve the repository; gives HOST:PORT of gRPC once every model is ready.

    Raises
    ------
    UnavailableError
        The server does not start; why stands on standard error.
    """
    ports = [option for name in ("grpc", "http", "metrics") for option in (f"--{name}-port", "0")]
    with subprocess.Popen(
        [sys.executable, str(SERVE), "--repository", str(repository), *ports],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            words = (line.split() for line in process.stdout)
            address = next((line[1] for line in words if line[:1] == ["gRPC"]), None)
            if address is None:
                raise UnavailableError(
                    "no Triton server starts here; name a running one with --engine "
                    "triton:HOST:PORT, or go without: --without triton"
                )
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def runtime_version() -> str:
    """ONNX Runtime's version in the environment of such a server."""
    folders = [str(folder) for folder in PREFIX.glob("venv/lib/python3*/site-packages")]
    found = importlib.metadata.distributions(name="onnxruntime", path=folders)
    return next((package.version for package in found), "not known")
