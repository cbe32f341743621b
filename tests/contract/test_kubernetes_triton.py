"""A real Triton with the arguments of its Deployment: what the manifests rely on is so."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import yaml
from kubernetes_manifests import ADAPTER_RULES, flags, port_number, render, server
from triton_server import TritonServer
from tritonclient.utils import InferenceServerException

from services.inference.repository import load_models
from services.inference.triton import TritonEngine

POD_UID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
SECONDS = 10.0


def options(**changed: str) -> list[str]:
    """The Deployment's arguments, but for the place of the models; underscores for hyphens."""
    given = flags(render("gpu")) | {name.replace("_", "-"): text for name, text in changed.items()}
    given.pop("model-repository")
    return [
        f"--{name}={text}".replace("$(POD_UID)", POD_UID) if text else f"--{name}"
        for name, text in given.items()
    ]


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, options=options()) as started:
        yield started


def test_probes_are_answered(triton: TritonServer) -> None:
    container = server(render("gpu"), "triton")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        assert port_number(container, probe["port"]) == 8000
        assert triton.answers(probe["path"].lstrip("/"))


def test_an_empty_repository_would_count_as_ready(tmp_path: Path) -> None:
    """Why the pod waits for its models before Triton starts."""
    with TritonServer(tmp_path, options=options()) as empty:
        assert empty.answers("v2/health/ready")


def test_the_engine_needs_nothing_that_is_closed(triton: TritonServer, repository: Path) -> None:
    async def ask() -> None:
        models = load_models(repository)
        engine = await TritonEngine.open(triton.address, models)
        try:
            for name, model in models.items():
                assert await engine.is_ready(name)
                images = np.zeros((2, *model.preprocessing.input_size, 3), np.uint8)
                answer = await engine.infer(name, images, timeout_seconds=SECONDS)
                assert answer.logits.shape == (2, len(model.labels))
            assert set(await engine.server_times()) == set(models)
        finally:
            await engine.close()

    asyncio.run(ask())


def test_what_changes_the_server_is_closed(triton: TritonServer) -> None:
    with tritonclient.grpc.InferenceServerClient(triton.address) as client:
        for request in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_log_settings,
            client.get_trace_settings,
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                request()
        # The key opens it: the arguments are understood as meant.
        assert client.get_log_settings(headers={"triton-grpc-protocol-pod": POD_UID})
    for path in ("v2/repository/index", "v2/systemsharedmemory/status", "v2/logging"):
        data = b"{}" if path.endswith("index") else None
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{triton.http}/{path}", data=data, timeout=SECONDS)
        with refused.value as answer:
            assert answer.code == 403


def test_the_adapters_queue_figure_is_exported(triton: TritonServer) -> None:
    exported = _exported(triton)
    rules = yaml.safe_load(ADAPTER_RULES.read_text())["rules"]
    series = {rule["seriesQuery"].partition("{")[0] for rule in rules}
    on_every_machine = series - {"nv_gpu_utilization"}  # there with a GPU alone
    assert on_every_machine == {"nv_inference_queue_duration_us"}
    for name in on_every_machine:
        assert f"# TYPE {name} counter" in exported
        assert (
            len(re.findall(rf'^{name}{{model="convnext_\w+",version="1"}} \d', exported, re.M)) == 2
        )


def test_no_request_is_lost_with_its_connection(repository: Path) -> None:
    """Connections that end every half second, as those of the Deployment do every half minute."""
    models = load_models(repository)
    name, model = next(iter(models.items()))
    images = np.zeros((1, *model.preprocessing.input_size, 3), np.uint8)

    async def ask(address: str) -> int:
        engine = await TritonEngine.open(address, models)
        answered = 0
        try:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                answers = await asyncio.gather(
                    *(engine.infer(name, images, timeout_seconds=SECONDS) for _ in range(8))
                )
                answered += len(answers)
        finally:
            await engine.close()
        return answered

    with TritonServer(repository, options=options(grpc_max_connection_age="500")) as started:
        before = _successes(started, name)  # of the warm-up
        answered = asyncio.run(ask(started.address))
        counted = _successes(started, name) - before
        assert started.terminate() == 0
    assert answered > 100
    assert counted == answered  # none was run twice


def _successes(started: TritonServer, model: str) -> int:
    pattern = rf'^nv_inference_request_success{{model="{model}",version="1"}} (\d+)$'
    found = re.search(pattern, _exported(started), re.MULTILINE)
    assert found
    return int(found[1])


def _exported(started: TritonServer) -> str:
    """What Prometheus sees; Triton opens this port last, a moment after it is ready."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            url = f"http://{started.metrics}/metrics"
            with urllib.request.urlopen(url, timeout=SECONDS) as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
