"""The services on real Triton servers: the answers of the embedded engine, come what may."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from triton_server import TritonServer

from mkf.repository import BASELINE, IDEALIZED

COMMANDS = Path(sys.executable).parent
IMAGES = 6000  # enough for a server to die and come back meanwhile
PATIENCE_SECONDS = 60.0
# What a run's answers must not depend on.
ANSWERS = ["sample_id", "label", "role", "predicted", "rank", "correct_top1", "correct_top5"]


@pytest.fixture(scope="module")
def expected(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Any]:
    """The same run on the embedded engine."""
    out = tmp_path_factory.mktemp("embedded")
    return finish(evaluation(f"embedded:{repository}", out), out)


def evaluation(
    engine: str, out: Path, *options: object, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [COMMANDS / "mkf-eval", "--engine", engine, "--out", out, "--json", *options]
    if not options:
        command += ["--limit", IMAGES]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )


def finish(process: subprocess.Popen[str], out: Path) -> tuple[dict[str, Any], Any]:
    """The results of a run, and its answers as a table."""
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    results = json.loads(output)
    return results, pq.read_table(out / results["run"]["id"] / "samples.parquet").select(ANSWERS)


def answered(server: TritonServer) -> int:
    """Requests since the server's start, the models' warm-up included."""
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        stats = client.get_inference_statistics().model_stats
        return sum(int(one.inference_stats.success.count) for one in stats)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_requests(server: TritonServer, count: int) -> None:
    wait_for(lambda: answered(server) >= count)


def test_a_comparison_through_triton_is_the_embedded_one(
    repository: Path, tmp_path: Path, expected: tuple[dict[str, Any], Any]
) -> None:
    with TritonServer(repository) as server:
        engine = f"triton:{server.address}"
        environment = {"MKF_MODEL_REPOSITORY": str(repository)}
        results, answers = finish(evaluation(engine, tmp_path, environment=environment), tmp_path)
    assert answers.equals(expected[1])
    assert results["paired"] == expected[0]["paired"]
    assert results["warnings"] == expected[0]["warnings"]
    assert results["environment"]["engine"] == engine
    assert results["environment"]["versions"]["tritonserver"].startswith("2.")
    assert "onnxruntime" not in results["environment"]["versions"]  # it is the server's
    for role in ("baseline", "idealized"):
        latency = results["latency"][role]
        assert latency["requests"] == IMAGES / 8
        # The server's own times lie within what the client saw.
        server_ms = latency["mean_queue_ms"] + latency["mean_inference_ms"]
        assert 0 < server_ms < latency["mean_ms"]


def test_one_of_three_servers_dies_and_comes_back(
    repository: Path, tmp_path: Path, expected: tuple[dict[str, Any], Any]
) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(TritonServer(repository)) for _ in range(3)]
        victim = servers[1]
        engine = "triton:" + ",".join(server.address for server in servers)
        environment = {"MKF_MODEL_REPOSITORY": str(repository)}
        process = evaluation(engine, tmp_path, environment=environment)
        wait_for_requests(victim, answered(victim) + 20)
        victim.kill()
        for server in (servers[0], servers[2]):
            wait_for_requests(server, answered(server) + 5)
        assert process.poll() is None
        victim.start()
        wait_for_requests(victim, answered(victim) + 5)
        assert process.poll() is None
        results, answers = finish(process, tmp_path)
    assert answers.equals(expected[1])  # none lost, none twice, the same accuracy
    assert results["models"]["baseline"]["top1"] == expected[0]["models"]["baseline"]["top1"]
    assert results["paired"] == expected[0]["paired"]


def test_a_run_whose_only_server_goes_for_good_is_resumed(
    repository: Path, tmp_path: Path, expected: tuple[dict[str, Any], Any]
) -> None:
    environment = {"MKF_MODEL_REPOSITORY": str(repository), "MKF_TRITON_RETRY_SECONDS": "0.5"}
    with TritonServer(repository) as server:
        engine = f"triton:{server.address}"
        process = evaluation(engine, tmp_path, environment=environment)
        wait_for_requests(server, answered(server) + 40)
        server.kill()
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 1
        (reason,) = (line for line in errors.splitlines() if line.startswith("mkf-eval: "))
        assert "no Triton server answers" in reason
        (run_id,) = set(re.findall(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", errors))
        server.start()
        options = ("--resume", run_id)
        process = evaluation(engine, tmp_path, *options, environment=environment)
        results, answers = finish(process, tmp_path)
    assert results["run"]["resumed"] == 1
    assert answers.equals(expected[1])


def test_one_model_under_two_names_differs_by_nothing(repository: Path, tmp_path: Path) -> None:
    """A/A: what the comparison says where there is nothing to find."""
    with TritonServer(twins(repository, tmp_path / "models")) as server:
        environment = {"MKF_MODEL_REPOSITORY": str(tmp_path / "models")}
        options = ("--limit", 500, "--models", f"{BASELINE},twin")
        process = evaluation(
            f"triton:{server.address}", tmp_path, *options, environment=environment
        )
        results, _ = finish(process, tmp_path)
    paired = results["paired"]
    assert paired["difference_pp"] == 0
    assert (paired["only_baseline"], paired["only_idealized"], paired["mcnemar_p"]) == (0, 0, 1)


def twins(repository: Path, directory: Path) -> Path:
    """The baseline twice."""
    for name in (BASELINE, "twin"):
        folder = directory / name
        (folder / "1").mkdir(parents=True)
        for file in ("labels.txt", "preprocessing.json", "1/model.onnx", "1/manifest.json"):
            (folder / file).write_bytes((repository / BASELINE / file).read_bytes())
        config = (repository / BASELINE / "config.pbtxt").read_text()
        (folder / "config.pbtxt").write_text(config.replace(f'"{BASELINE}"', f'"{name}"'))
    return directory


@contextmanager
def serving(server: TritonServer, repository: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """`mkf-serve` on a server; the addresses that it prints."""
    environment = os.environ | {
        "MKF_ENGINE": f"triton:{server.address}",
        "MKF_MODEL_REPOSITORY": str(repository),
        "MKF_RESULTS_DIRECTORY": str(tmp_path),
        "MKF_HEALTH_INTERVAL_SECONDS": "0.1",
        "MKF_TRITON_RETRY_SECONDS": "0.5",
        "MKF_CLASSIFICATION_PORT": "0",
        "MKF_EVALUATION_PORT": "0",
        "MKF_METRICS_PORT": "0",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [COMMANDS / "mkf-serve"], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(3)]
        yield dict(lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


def health(address: str) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_the_services_health_is_the_servers(repository: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    up, down = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with TritonServer(repository) as server, serving(server, repository, tmp_path) as addresses:
        classify = [
            *(str(COMMANDS / "mkf-classify"), str(image), "--model", IDEALIZED),
            *("--json", "--address", addresses["classification"]),
        ]
        done = subprocess.run(classify, capture_output=True, text=True, check=True)
        (first,) = json.loads(done.stdout)["results"]
        assert 0 < first["timings"]["inference_seconds"] < first["timings"]["total_seconds"]
        assert health(addresses["classification"]) == up
        server.kill()
        wait_for(lambda: health(addresses["classification"]) == down)
        wait_for(lambda: health(addresses["evaluation"]) == down)
        done = subprocess.run(classify, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "no Triton server answers" in done.stderr
        server.start()
        wait_for(lambda: health(addresses["classification"]) == up)
        done = subprocess.run(classify, capture_output=True, text=True, check=True)
        (again,) = json.loads(done.stdout)["results"]
        assert again["predictions"] == first["predictions"]
