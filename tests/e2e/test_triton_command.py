"""deploy/triton/serve.py as users start it: ready, stopped, killed; what it says when it fails."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from triton_server import INSTALLER, ROOT, free_ports, triton_prefix

SERVE = INSTALLER.with_name("serve.py")
START_SECONDS = 60
STOP_SECONDS = 30

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts serve.py on free ports; whatever it started ends with the test."""
    prefix = triton_prefix()
    processes = []

    def start_one(repository: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SERVE), "--prefix", str(prefix)]
        command += ["--repository", str(repository)]
        command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=STOP_SECONDS)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Standard output up to these words."""
    assert process.stdout is not None
    seen, deadline = "", time.monotonic() + START_SECONDS
    while words not in seen:
        left = max(deadline - time.monotonic(), 0)
        readable, _, _ = select.select([process.stdout], [], [], left)
        text = os.read(process.stdout.fileno(), 1 << 16).decode() if readable else ""
        if not text:
            process.kill()
            raise AssertionError(f"no {words!r} in {seen!r}: {process.communicate()[1]}")
        seen += text
    return seen


def children(parent: int) -> dict[int, str]:
    """Descendants of a process that run, and their command lines."""
    listing = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
    found: dict[int, str] = {}
    for pid, ppid, state, arguments in rows:  # parents come before their children
        if (int(ppid) == parent or int(ppid) in found) and not state.startswith("Z"):
            found[int(pid)] = arguments
    return found


def none_runs(processes: dict[int, str]) -> bool:
    """Whether all of them are gone, or soon will be."""
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if not any(command_line(pid) for pid in processes):
            return True
        time.sleep(0.05)
    return False


def command_line(pid: int) -> bytes:
    """Of a process that runs; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def listens_elsewhere(ports: set[int]) -> bool:
    """Whether a socket on one of the ports listens on another address than 127.0.0.1."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # the latter as IPv6 writes it
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
    for line in lines:
        _, local, _, state, *_ = line.split()
        address, port = local.split(":")
        if state == "0A" and int(port, 16) in ports and address not in loopback:
            return True
    return False


def regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("triton_*")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_all_models_are_ready_and_stops_when_told_to(
    start: Start, repository: Path, number: signal.Signals
) -> None:
    process = start(repository)
    shown = read_until(process, "Ctrl-C stops")
    assert "Triton is ready: convnext_baseline, convnext_idealized\n" in shown
    assert "Loading: 0 of 2 models\n" in shown
    (http,) = re.findall(r"^HTTP +(http://127\.0\.0\.1:\d+)$", shown, re.MULTILINE)
    (metrics,) = re.findall(r"^metrics +(http://\S+)$", shown, re.MULTILINE)
    (grpc,) = re.findall(r"^gRPC +(127\.0\.0\.1:\d+)$", shown, re.MULTILINE)
    assert f"mkf-eval --engine triton:{grpc}\n" in shown
    for model in ("convnext_baseline", "convnext_idealized"):
        with urllib.request.urlopen(f"{http}/v2/models/{model}/ready", timeout=5) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(metrics, timeout=5) as answer:
        assert b"nv_inference_count" in answer.read()
    ports = {int(port) for port in re.findall(r":(\d+)(?:/metrics)?$", shown, re.MULTILINE)}
    assert len(ports) == 3
    assert not listens_elsewhere(ports)
    running = children(process.pid)
    stubs = [pid for pid, arguments in running.items() if "stub" in arguments]
    assert len(stubs) == 2
    for pid in stubs:
        assert b"\0ORT_DISABLE_TELEMETRY=1\0" in Path(f"/proc/{pid}/environ").read_bytes()

    process.send_signal(number)
    _, errors = process.communicate(timeout=STOP_SECONDS)

    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert none_runs(running)
    assert not any(name.startswith(f"triton_{process.pid}_") for name in regions())


def test_a_server_that_is_killed_leaves_nothing_behind(start: Start, repository: Path) -> None:
    process = start(repository)
    read_until(process, "Ctrl-C stops")
    running = children(process.pid)
    (server,) = [pid for pid, arguments in running.items() if "libexec/tritonserver" in arguments]
    os.kill(server, signal.SIGKILL)
    _, errors = process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        "serve.py: the server ended by itself: signal 9; --log FILE keeps what it says"
    )
    assert none_runs(running)
    assert not any(name.startswith(f"triton_{process.pid}_") for name in regions())


def test_the_server_ends_with_the_program_that_started_it(
    start: Start, repository: Path, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    process = start(repository, "--log", str(log))
    read_until(process, "Ctrl-C stops")
    text = log.read_text()
    assert "successfully loaded 'convnext_idealized'" in text
    assert re.search(r"cache_enabled +\| 0 ", text)
    assert re.search(r"strict_readiness +\| 1 ", text)
    running = children(process.pid)
    process.kill()
    assert none_runs(running)


def failure(process: subprocess.Popen[str]) -> str:
    """The one line of a program that has failed."""
    _, errors = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    return errors.strip()


def test_a_port_that_is_taken_is_told(start: Start, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = failure(start(repository, "--grpc-port", str(port)))
    assert line.startswith(f"serve.py: port {port} on 127.0.0.1 cannot be used: ")
    assert line.endswith("choose another with --grpc-port")


def test_ports_come_from_the_environment(
    start: Start, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("TRITON_GRPC_PORT", str(port))
    help_text = subprocess.run(
        [sys.executable, str(SERVE), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert f"(default: {port})" in " ".join(help_text.split())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("graph", "serve.py: model convnext_idealized: RuntimeError: "),
        ("config", "serve.py: model convnext_idealized: failed to read text proto from "),
        ("version", "serve.py: model convnext_idealized: at least one version must be available"),
    ],
)
def test_a_model_that_does_not_load_is_told_in_a_line(
    start: Start, repository: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    broken = tmp_path / "models"
    shutil.copytree(repository, broken)
    model = broken / "convnext_idealized"
    if damage == "graph":
        (model / "1" / "model.onnx").write_bytes(b"no graph")
    elif damage == "config":
        (model / "config.pbtxt").write_text("no configuration {")
    else:
        shutil.rmtree(model / "1")
    process = start(broken)
    assert failure(process).startswith(reason)


def test_a_repository_that_is_missing_or_empty_is_told(start: Start, tmp_path: Path) -> None:
    missing = failure(start(tmp_path / "models"))
    assert missing.endswith(f"mkf export --source demo --repository {tmp_path / 'models'}")
    assert "is not there" in missing
    assert "holds no model" in failure(start(tmp_path))


def test_a_server_that_is_not_installed_is_told(
    start: Start, repository: Path, tmp_path: Path
) -> None:
    line = failure(start(repository, "--prefix", str(tmp_path)))
    assert f"install.py --prefix {tmp_path}" in line


ASK = """
import json, os, sys
from tritonclient.grpc import InferenceServerClient
with InferenceServerClient(os.environ["MKF_ENGINE"].removeprefix("triton:")) as client:
    ready = client.is_model_ready("convnext_baseline")
print(json.dumps({"ready": ready, "repository": os.environ["MKF_MODEL_REPOSITORY"]}))
sys.exit(3)
"""


def test_it_serves_while_a_command_runs(start: Start, repository: Path) -> None:
    process = start(repository, "--", sys.executable, "-c", ASK)
    output, errors = process.communicate(timeout=START_SECONDS)
    assert json.loads(output) == {"ready": True, "repository": str(repository)}
    assert process.returncode == 3, errors  # the command's own
    assert not children(process.pid)


def test_a_command_that_does_not_start_is_told(start: Start, repository: Path) -> None:
    process = start(repository, "--", "no-such-program")
    _, errors = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 1
    assert "serve.py: no-such-program does not start: No such file" in errors


def test_a_command_is_stopped_before_the_server(start: Start, repository: Path) -> None:
    sleep = "import time; print('here', flush=True); time.sleep(600)"
    process = start(repository, "--", sys.executable, "-c", sleep)
    read_until(process, "here")
    started = children(process.pid)
    process.terminate()
    assert process.wait(STOP_SECONDS) == 128 + signal.SIGTERM  # as the command ended
    assert started
    assert none_runs(started)


def test_installing_again_changes_nothing() -> None:
    prefix = triton_prefix()
    before = installed(prefix)
    command = [sys.executable, str(INSTALLER), "--prefix", str(prefix)]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == f"Triton is ready: {prefix / 'bin' / 'tritonserver'}\n"
    assert installed(prefix) == before


def installed(prefix: Path) -> dict[Path, int]:
    """The files and when each was written; without what running programs write."""
    files = [path for path in prefix.rglob("*") if path.is_file()]
    return {
        path: path.stat().st_mtime_ns
        for path in files
        if path.name != ".lock" and path.suffix != ".pyc"
    }
