"""Real Triton servers for tests: `with TritonServer(repository) as server`; loopback, free ports.

A server starts in about 0.4 s, which is why tests start their own ones rather than share them. It
ends with its context, with the test process, and leaves neither processes nor shared memory.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest
import tritonclient.grpc

ROOT = Path(__file__).parents[1]
INSTALLER = ROOT / "deploy" / "triton" / "install.py"
START_SECONDS = 60.0
STOP_SECONDS = 20


@functools.cache
def triton_prefix() -> Path:
    """The installed server, installed now if it is not; skips where it cannot be."""
    prefix = ROOT / ".triton"
    command = [sys.executable, str(INSTALLER), "--prefix", str(prefix)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        reason = ([line for line in lines if line.startswith("ERROR: ")] or lines)[-1]  # pip's
        pytest.skip(f"Triton cannot be installed here ({reason}); see deploy/triton/README.md")
    return prefix


class TritonServer:
    """One server on a model repository; starts on entering its context, is killed on leaving it.

    Parameters
    ----------
    repository
        What it serves.
    auto_complete
        Ask the backend for what the configurations lack; a model takes 1.2 s longer to load.
    explicit
        Load no model at the start, but those that `load` names.
    ready
        Wait until all models are ready; else until the server answers.
    options
        More arguments of tritonserver.
    """

    def __init__(
        self,
        repository: Path,
        *,
        auto_complete: bool = False,
        explicit: bool = False,
        ready: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self._prefix = triton_prefix()
        self._http, self._grpc, self._metrics = free_ports(3)
        self._shared_memory = f"mkf_test_{os.getpid()}_{self._grpc}_"
        self._options = [f"--model-repository={repository}", *options]
        if not auto_complete:
            self._options.append("--disable-auto-complete-config")
        if explicit:
            self._options.append("--model-control-mode=explicit")
        self._wait_until = "ready" if ready else "live"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving

    @property
    def address(self) -> str:
        """Of gRPC, HOST:PORT."""
        return f"127.0.0.1:{self._grpc}"

    @property
    def http(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._http}"

    @property
    def metrics(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._metrics}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it and its backends have written, over all its starts."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        """Start, and wait; after `kill` or `terminate` again, on the same ports."""
        assert self._process is None
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                str(self._prefix / "bin" / "tritonserver"),
                *("--http-address=127.0.0.1", f"--http-port={self._http}"),
                *("--grpc-address=127.0.0.1", f"--grpc-port={self._grpc}"),
                *("--metrics-address=127.0.0.1", f"--metrics-port={self._metrics}"),
                *("--strict-readiness=true", "--exit-timeout-secs=10", "--allow-gpu-metrics=false"),
                f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # its processes are a group
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers(f"v2/health/{self._wait_until}"):
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended at its start:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {START_SECONDS:g} seconds:\n{self.log}")
            time.sleep(0.02)

    def answers(self, path: str) -> bool:
        """Whether a GET of the path ends with 200."""
        connection = http.client.HTTPConnection(self.http, timeout=5)
        try:
            connection.request("GET", f"/{path}")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL to the server and its backends' processes; nothing where it has ended already."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def terminate(self) -> int:
        """SIGTERM, upon which it answers what it accepted; about 3 s. Its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._reap()

    def _reap(self) -> int:
        """Wait for the server, and see that nothing is left of it."""
        assert self._process is not None
        process, self._process = self._process, None
        try:
            return process.wait(STOP_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):
                region.unlink(missing_ok=True)

    def load(self, model: str) -> None:
        """Load a model, of a server with `explicit`."""
        with tritonclient.grpc.InferenceServerClient(self.address) as client:
            client.load_model(model)

    def unload(self, model: str) -> None:
        """Unload a model, of a server with `explicit`; returns before it is gone."""
        with tritonclient.grpc.InferenceServerClient(self.address) as client:
            client.unload_model(model)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
