"""The CPU stack, from its start to its end; the tests build on each other and run in this order."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from container_engine import ROOT, Stack, until
from PIL import Image

SERVICES = ("triton", "classification", "evaluation", "prometheus")
BIN = Path(sys.executable).parent
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "comparison.json"
NO_CAPABILITY = "0" * 16


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test image of Fashion-MNIST, an ankle boot."""
    data = ROOT / "mkf" / "demo" / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    with gzip.open(data) as file:
        pixels = file.read(16 + 28 * 28)[16:]
    path = tmp_path_factory.mktemp("images") / "boot.png"
    Image.frombytes("L", (28, 28), pixels).save(path)
    return path


def classify(stack: Stack, image: Path) -> subprocess.CompletedProcess[str]:
    """`mkf-classify` of this machine against the published port."""
    address = stack.address("MKF_CLASSIFICATION_PORT")
    command = [BIN / "mkf-classify", image, "--address", address, "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=image.parent)


def evaluate(stack: Stack, folder: Path, images: int) -> dict[str, Any]:
    """`mkf-eval` of this machine against the published port."""
    command = [
        BIN / "mkf-eval", "--address", stack.address("MKF_EVALUATION_PORT"), "--limit", str(images),
        "--out", folder, "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def ask_prometheus(stack: Stack, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    url = f"http://{stack.address('PROMETHEUS_PORT')}/api/v1/{path}?{query}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        content = json.load(answer)
    assert content["status"] == "success"
    return content["data"]


def top_label(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    label: str = json.loads(done.stdout)["results"][0]["predictions"][0]["label"]
    return label


def test_each_starts_when_what_it_needs_is_healthy(stack: Stack) -> None:
    export = stack.container("export")["State"]
    started = {service: stack.container(service)["State"]["StartedAt"] for service in SERVICES}
    assert export["ExitCode"] == 0
    assert export["FinishedAt"] < started["triton"]
    assert started["triton"] < min(started["classification"], started["evaluation"])
    assert max(started["classification"], started["evaluation"]) < started["prometheus"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_confined(stack: Stack, service: str) -> None:
    container = stack.container(service)
    status = Path(f"/proc/{container['State']['Pid']}/status").read_text()
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {said[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {NO_CAPABILITY}
    assert said["NoNewPrivs"] == "1"
    assert "0" not in said["Uid"].split()
    assert container["HostConfig"]["Memory"] > 0
    assert container["HostConfig"]["PidsLimit"] == 1024
    writes = stack.engine.run(
        "podman", "exec", container["Id"], "sh", "-c",
        "touch /here 2> /dev/null && echo root; touch /tmp/here && echo tmp; :",
    ).split()  # fmt: skip
    assert writes == ["tmp"]


def test_ports_are_published_on_loopback_alone(stack: Stack) -> None:
    for service in SERVICES:
        ports = stack.container(service)["NetworkSettings"]["Ports"].values()
        hosts = {place["HostIp"] for places in ports for place in places or ()}
        assert hosts == {"127.0.0.1"}


def test_an_image_is_classified_through_the_published_port(stack: Stack, boot: Path) -> None:
    assert top_label(classify(stack, boot)) == "Ankle boot"


def test_an_evaluation_runs_through_the_published_port(stack: Stack, tmp_path: Path) -> None:
    results = evaluate(stack, tmp_path, images=200)
    assert results["dataset"]["images"] == 200
    assert results["environment"]["engine"] == "triton:triton:8001"
    assert all(model["top1"] > 0.8 for model in results["models"].values())
    run = results["run"]["id"]
    assert (tmp_path / run / "report.html").is_file()
    kept = stack.engine.podman("exec", stack.container("evaluation")["Id"], "ls", f"/results/{run}")
    assert {"results.json", "samples.parquet", "report.html"} <= set(kept.split())


def test_prometheus_reads_every_target(stack: Stack) -> None:
    def health() -> dict[str, str]:
        targets = ask_prometheus(stack, "targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in targets}

    until(lambda: set(health().values()) == {"up"}, seconds=30)
    assert health().keys() == {"prometheus", "classification", "evaluation", "triton"}


def test_every_panel_of_the_dashboard_has_data(stack: Stack, boot: Path, tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    wanted = {target["expr"] for panel in panels for target in panel["targets"]}
    end = time.monotonic() + 90
    while wanted and time.monotonic() < end:  # rates are of what happens between two readings
        classify(stack, boot)
        evaluate(stack, tmp_path, images=64)
        for expression in sorted(wanted):
            query = expression.replace("$__rate_interval", "30s")
            series = ask_prometheus(stack, "query", query=query)["result"]
            values = [float(one["value"][1]) for one in series]
            if values and all(map(math.isfinite, values)):
                wanted.remove(expression)
    assert not wanted


def test_a_service_that_dies_comes_back(stack: Stack, boot: Path) -> None:
    before = stack.container("classification")
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    until(
        lambda: (
            stack.container("classification")["State"]["Pid"] not in (0, before["State"]["Pid"])
        ),
        seconds=30,
    )
    until(lambda: classify(stack, boot).returncode == 0, seconds=30)
    assert stack.container("classification")["RestartCount"] == before["RestartCount"] + 1
    stack.wait_healthy("classification")


def test_the_services_recover_when_triton_was_stopped(stack: Stack, boot: Path) -> None:
    stack.compose("stop", "triton")
    assert stack.container("triton")["State"]["ExitCode"] == 0
    # Asked for itself: failures within a container's start_period do not count for its status.
    check = ("exec", stack.container("evaluation")["Id"], "mkf-healthcheck", "evaluation")
    until(lambda: "NOT_SERVING" in stack.engine.complaint("podman", *check), seconds=30)
    failed = classify(stack, boot)
    assert failed.returncode == 1
    assert "Triton" in failed.stderr
    stack.compose("start", "triton")
    until(lambda: classify(stack, boot).returncode == 0, seconds=60)
    stack.wait_healthy("triton", "classification", "evaluation")
    assert stack.container("classification")["State"]["Running"]


def test_the_export_can_be_stopped(stack: Stack) -> None:
    """As process 1 it would take no SIGTERM, and be killed 10 seconds later."""
    script = "import time; print('started', flush=True); time.sleep(300)"
    name = f"{stack.project}_waits"
    stack.compose(
        "run", "--detach", "--no-deps", "--name", name, "--entrypoint", "python3", "export",
        "-c", script,
    )  # fmt: skip
    podman = stack.engine.podman
    until(lambda: "started" in podman("logs", name), seconds=30)
    began = time.monotonic()
    podman("stop", "--time", "10", name)
    assert time.monotonic() - began < 8
    podman("rm", name)


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    before = {service: stack.container(service)["Id"] for service in SERVICES}
    stack.up("export", *SERVICES)
    assert {service: stack.container(service)["Id"] for service in SERVICES} == before
    logs = stack.engine.podman("logs", stack.container("export")["Id"])
    assert logs.splitlines()[-1] == "/models already holds the models of demo"
    stack.wait_healthy(*SERVICES)


def test_another_model_takes_the_place_of_the_first(stack: Stack, boot: Path) -> None:
    before = {service: stack.container(service)["Id"] for service in SERVICES}
    source = "onnx:/opt/mkf/lib/python3.11/site-packages/mkf/demo/idealized.onnx"
    stack.up("export", *SERVICES, MODEL=source)
    stack.wait_healthy(*SERVICES)
    after = {service: stack.container(service)["Id"] for service in SERVICES}
    assert {name for name in SERVICES if before[name] == after[name]} == {"prometheus"}
    manifest = "/models/convnext_baseline/1/manifest.json"
    content = stack.engine.podman("exec", after["triton"], "cat", manifest)
    assert json.loads(content)["source"] == source
    assert classify(stack, boot).returncode == 0


def test_all_stop_in_time_and_leave_nothing(stack: Stack) -> None:
    began = time.monotonic()
    stack.compose("stop")
    assert time.monotonic() - began < 40
    states = {service: stack.container(service)["State"] for service in SERVICES}
    assert {name: state["ExitCode"] for name, state in states.items()} == dict.fromkeys(SERVICES, 0)
    stack.compose("down", "--volumes")
    podman = stack.engine.podman
    for left in (
        podman("ps", "--all", "--format", "{{.Names}}"),
        podman("volume", "ls", "--format", "{{.Name}}"),
        podman("network", "ls", "--format", "{{.Name}}"),
    ):
        assert stack.project not in left
