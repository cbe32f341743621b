"""The servers under load: Triton and the classification service, on free ports of the loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.errors import UnavailableError

ROOT = Path(__file__).resolve().parents[2]
PREFIX = ROOT / ".triton"
STOP_SECONDS = 60.0


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
    settings = {"MKF_MODEL_REPOSITORY": str(repository), "MKF_LOG_LEVEL": "WARNING"}
    with _server([*program, *arguments], says="classification", settings=settings) as address:
        yield address


def with_one_thread(repository: Path, copy: Path) -> Path:
    """A copy of a repository whose models have one instance of one thread each."""
    shutil.copytree(repository, copy)
    for path in copy.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        for name in ("intra_op_thread_count", "inter_op_thread_count"):
            config.parameters[name].string_value = "1"
        del config.instance_group[1:]
        config.instance_group[0].count = 1
        path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return copy


@contextmanager
def _server(
    command: Sequence[str], *, says: str, settings: dict[str, str] | None = None
) -> Iterator[str]:
    """A program that prints a line `SAYS ADDRESS` once it serves, and ends upon SIGTERM."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | (settings or {})
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
