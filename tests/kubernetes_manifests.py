"""The manifests of deploy/kubernetes as kubectl renders them, and what tests ask of them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.runtime.settings import PREFIX, Settings

Object = dict[str, Any]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
ADAPTER_RULES = FOLDER / "monitoring" / "prometheus-adapter-rules.yaml"
OVERLAYS = ("cpu", "gpu", "imagenet")
COMPONENT = "app.kubernetes.io/component"
WORKLOADS = ("Deployment", "StatefulSet", "Job")
SERVERS = ("triton", "classification", "evaluation")


@functools.cache
def _render(folder: str) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; on Debian: apt-get install kubernetes-client")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(overlay: str) -> list[Object]:
    """The objects of an overlay, and of the evaluation that is applied beside it."""
    texts = [_render(f"overlays/{overlay}"), _render("evaluation")]
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    found = [item for item in objects if item["kind"] in kinds]
    assert found, kinds
    return found


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [item for item in of_kind(objects, kind) if item["metadata"]["name"] == name]
    return found


def pod_of(workload: Object) -> Object:
    return workload["spec"]["template"]


def component(item: Object) -> str:
    return item["metadata"]["labels"][COMPONENT]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod templates by their component."""
    return {component(pod_of(item)): pod_of(item) for item in of_kind(objects, *WORKLOADS)}


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def server(objects: list[Object], name: str) -> Object:
    """The one container of a server's pod that stays."""
    (container,) = pods(objects)[name]["spec"]["containers"]
    return container


def port_number(container: Object, port: str | int) -> int:
    numbers = {entry["name"]: entry["containerPort"] for entry in container.get("ports", [])}
    return numbers[port] if isinstance(port, str) else port


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """A label selector of Kubernetes; an empty one selects all."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}, selector
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def flags(objects: list[Object]) -> dict[str, str]:
    """Triton's arguments."""
    program, *arguments = server(objects, "triton")["args"]
    assert program == "tritonserver"
    pairs = [argument.removeprefix("--").partition("=") for argument in arguments]
    assert all(argument.startswith("--") for argument in arguments), arguments
    return {name: value for name, _, value in pairs}


def settings_of(objects: list[Object]) -> Settings:
    """The services' settings, from the ConfigMap alone."""
    (config,) = of_kind(objects, "ConfigMap")
    values = {name.removeprefix(PREFIX).lower(): text for name, text in config["data"].items()}
    return Settings(_env_file=None, **values)
