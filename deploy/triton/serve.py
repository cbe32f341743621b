#!/usr/bin/env python3
"""Serve a model repository with the Triton that install.py has set up, until Ctrl-C or SIGTERM.

Waits until the server and every model are ready and prints the addresses. Exit status: 0 after it
was told to stop, 1 where the server or a model does not start, or ends by itself; standard error
then says why in one line. With a COMMAND it serves as long as that runs, and ends as that ended.
Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[2]
PROTOCOLS = {"gRPC": "grpc", "HTTP": "http", "metrics": "metrics"}  # as shown -> as in options
DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}  # Triton's own
DRAIN_SECONDS = 30  # for what the server has accepted, once it shall stop
PR_SET_PDEATHSIG = 1  # of Linux' prctl(2)

# How the server's log says why it does not start.
REASONS = [
    re.compile(r"failed to load(?: model)? '(?P<model>[^']+)'(?: version \d+)?: (?P<why>.*)"),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<why>.*)"),
    re.compile(r"(?P<model>)failed to start \w+ service: (?P<why>.*)"),
    re.compile(r"(?P<model>)error: creating server: (?P<why>.*)"),
    re.compile(r"(?P<model>)^tritonserver: (?P<why>unrecognized option.*)"),
]
LOADED = re.compile(r"successfully loaded '([^']+)'")


class StartError(Exception):
    """Why the server does not serve; one line."""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C."""


def main() -> None:
    """Read the command line and serve."""
    arguments = parse_arguments()
    told = threading.Event()  # to stop, before there is a server to stop
    handle_signals(lambda *_: told.set())
    server = None
    try:
        models = find_models(arguments.repository)
        server = Server(arguments)
        handle_signals(raise_stopped)
        if told.is_set():
            raise Stopped
        server.wait_until_ready(models, arguments.wait_seconds)
        if arguments.command:
            sys.exit(run(arguments.command, server))
        show(server, models)
        server.wait()
    except StartError as error:
        fail(str(error))
    except Stopped:
        print(
            f"Stopping: answering what was accepted, for at most {DRAIN_SECONDS} seconds ...",
            flush=True,
        )
    finally:
        handle_signals(ignore)
        if server is not None:
            server.stop()


def parse_arguments() -> argparse.Namespace:
    """Of the command line; ports come from the environment, then from .env."""
    settings = read_settings(ROOT / ".env") | dict(os.environ)
    parser = argparse.ArgumentParser(
        description="Serve a model repository with Triton, on this machine's CPU, until Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), help="the models to serve"
    )
    parser.add_argument(
        "--prefix", type=Path, default=ROOT / ".triton", help="where install.py has put the server"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the IPv4 address to listen on")
    for shown, name in PROTOCOLS.items():
        parser.add_argument(
            f"--{name}-port",
            type=int,
            # A string is parsed as if it had been typed, with the same complaint.
            default=settings.get(f"TRITON_{name.upper()}_PORT") or str(DEFAULT_PORTS[name]),
            help=f"of {shown}; 0 takes any free one; TRITON_{name.upper()}_PORT sets the default",
        )
    parser.add_argument(
        "--wait-seconds", type=float, default=120.0, help="how long the models may take to load"
    )
    parser.add_argument(
        "--log", type=Path, help="file for the server's whole log; without it, warnings are shown"
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="serve while this runs; MKF_ENGINE and MKF_MODEL_REPOSITORY tell it of the server",
    )
    arguments = parser.parse_args()
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    return arguments


def read_settings(path: Path) -> dict[str, str]:
    """The lines NAME=VALUE of a file."""
    if not path.is_file():
        return {}
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {name.strip(): value.strip().strip("\"'") for name, value in pairs}


def find_models(repository: Path) -> list[str]:
    """Names of the models in the repository."""
    if not repository.is_dir():
        raise StartError(
            f"the model repository {repository} is not there; make one with: "
            f"mkf export --source demo --repository {repository}"
        )
    folders = [path for path in repository.iterdir() if path.is_dir()]
    models = sorted(path.name for path in folders if not path.name.startswith("."))
    if not models:
        raise StartError(
            f"the model repository {repository} holds no model; fill it with: "
            f"mkf export --source demo --repository {repository}"
        )
    return models


class Server:
    """One tritonserver, its process group, and what it says."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._program = arguments.prefix.resolve() / "bin" / "tritonserver"
        if not self._program.is_file():
            raise StartError(
                f"no Triton in {arguments.prefix}; set it up with: "
                f"{sys.executable} {Path(__file__).with_name('install.py')} "
                f"--prefix {arguments.prefix}"
            )
        self.repository = arguments.repository.resolve()
        self.host = arguments.host
        self.ports = choose_ports(
            self.host, {name: getattr(arguments, f"{name}_port") for name in PROTOCOLS.values()}
        )
        self._shared_memory = f"triton_{os.getpid()}_"
        try:
            self._log = arguments.log.open("w") if arguments.log else None
        except OSError as error:
            raise StartError(f"the log cannot be written: {error}") from error
        self._loaded: set[str] = set()
        self._reasons: list[str] = []
        self._ready = False
        self._process = self._start()
        # Standard output is the command's.
        self._progress = sys.stderr if arguments.command else sys.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603
            [
                str(self._program),
                f"--model-repository={self.repository}",
                "--model-control-mode=none",
                "--strict-readiness=true",
                f"--exit-timeout-secs={DRAIN_SECONDS}",
                f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
                *(f"--{name}-address={self.host}" for name in self.ports),
                *(f"--{name}-port={port}" for name, port in self.ports.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this program alone
            preexec_fn=end_with_parent,
        )

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if self._log:
                self._log.write(line)
                self._log.flush()
            elif self._ready and line[0] in "WE":
                print(line, end="", file=sys.stderr, flush=True)
            if loaded := LOADED.search(line):
                self._loaded.add(loaded[1])
            if reason := explain(line):
                self._reasons.append(reason)

    def wait_until_ready(self, models: list[str], seconds: float) -> None:
        """Return once the server and all models are ready."""
        progress = Progress(self._progress)
        deadline = time.monotonic() + seconds
        progress.show(f"Loading: 0 of {len(models)} models")
        while not self._answers("/v2/health/ready") or self._missing(models):
            if self._process.poll() is not None:
                progress.end()
                self._raise_ended("the server did not start")
            if time.monotonic() > deadline:
                progress.end()
                waiting = ", ".join(self._missing(models)) or "the server"
                raise StartError(f"not ready after {seconds:g} seconds: {waiting}; see --log")
            progress.show(f"Loading: {len(self._loaded)} of {len(models)} models")
            time.sleep(0.1)
        progress.end()
        self._ready = True

    def wait(self) -> NoReturn:
        """Wait for the server's end, which nobody asked for."""
        self._process.wait()
        self._raise_ended("the server ended by itself")

    def stop(self) -> None:
        """Let the server answer what it has accepted, then end it and all that belongs to it."""
        process = self._process
        try:
            process.terminate()
            process.wait(DRAIN_SECONDS + 10)
        except subprocess.TimeoutExpired:
            print("serve.py: it did not end; killing it", file=sys.stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the backends' processes
            process.wait()
            for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):  # noqa: S108
                region.unlink(missing_ok=True)

    def _raise_ended(self, what: str) -> NoReturn:
        status = self._process.poll()
        self._reader.join(timeout=1)  # the last words
        if self._reasons:
            raise StartError("; ".join(dict.fromkeys(self._reasons)))
        how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        raise StartError(f"{what}: {how}; --log FILE keeps what it says")

    def _missing(self, models: list[str]) -> list[str]:
        return [name for name in models if not self._answers(f"/v2/models/{name}/ready")]

    def _answers(self, path: str) -> bool:
        return get_status(reachable(self.host), self.ports["http"], path) == 200


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line for each change."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""
        self._began = time.monotonic()

    def show(self, text: str) -> None:
        """Show the text and the seconds."""
        if self._stream.isatty():
            seconds = time.monotonic() - self._began
            print(f"\r{text}, {seconds:.0f} s ", end="", file=self._stream, flush=True)
        elif text != self._last:
            print(text, file=self._stream, flush=True)
        self._last = text

    def end(self) -> None:
        """Leave the line."""
        if self._stream.isatty() and self._last:
            print(file=self._stream, flush=True)


def explain(line: str) -> str | None:
    """What a line of the server's log says of a failed start, on one line."""
    for pattern in REASONS:
        if found := pattern.search(line):
            # The rest is where in the backend it happened; line breaks come as two characters.
            why = found["why"].split("\\n")[0].strip().strip('"')
            why = re.sub(r"^(Internal|Invalid argument|Unavailable)( -|:) ", "", why)
            if why == "failed to load all models":
                return None  # the reason stands in a line before
            return f"model {found['model']}: {why}" if found["model"] else why
    return None


def get_status(host: str, port: int, path: str) -> int | None:
    """HTTP status of a GET; None where nothing answers. Without urllib, which minds proxies."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def choose_ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """The ports, 0 replaced by free ones; refuses what is taken."""
    sockets = []
    try:
        for name, port in wanted.items():
            try:
                sockets.append(socket.create_server((host, port)))
            except (OSError, OverflowError) as error:
                raise StartError(
                    f"port {port} on {host} cannot be used: {error}; choose another with "
                    f"--{name}-port"
                ) from error
        return {name: opened.getsockname()[1] for name, opened in zip(wanted, sockets, strict=True)}
    finally:
        for opened in sockets:
            opened.close()


def reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on the host."""
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104


def address(server: Server, protocol: str) -> str:
    """HOST:PORT of one of the server's ports."""
    return f"{reachable(server.host)}:{server.ports[protocol]}"


def run(command: list[str], server: Server) -> int:
    """The exit status of a command that asks the server; on a signal both get it."""
    environment = {
        "MKF_ENGINE": f"triton:{address(server, 'grpc')}",
        "MKF_MODEL_REPOSITORY": str(server.repository),
    }
    try:
        process = subprocess.Popen(command, env=os.environ | environment)  # noqa: S603
    except OSError as error:
        raise StartError(f"{command[0]} does not start: {error.strerror}") from error
    try:
        status = process.wait()
    except Stopped:
        process.terminate()
        try:
            status = process.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    return status if status >= 0 else 128 - status


def show(server: Server, models: list[str]) -> None:
    """The addresses, one a line."""
    print(
        f"Triton is ready: {', '.join(models)}\n"
        f"gRPC     {address(server, 'grpc')}\n"
        f"HTTP     http://{address(server, 'http')}\n"
        f"metrics  http://{address(server, 'metrics')}/metrics\n"
        f"Compare the models with: mkf-eval --engine triton:{address(server, 'grpc')}\n"
        "Ctrl-C stops the server.",
        flush=True,
    )


def end_with_parent() -> None:
    """Have the kernel ask this process to stop when the program that started it is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def handle_signals(handler: Callable[[int, object], None]) -> None:
    """What SIGTERM and Ctrl-C do from now on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def raise_stopped(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    """Stop once."""
    handle_signals(ignore)
    raise Stopped


def ignore(number: int, frame: object) -> None:
    """Let a further signal pass; SIG_IGN would complain of one that is on its way."""


def fail(message: str) -> NoReturn:
    """End with one line on standard error."""
    print(f"serve.py: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
