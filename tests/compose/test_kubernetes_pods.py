"""The pods of deploy/kubernetes/overlays/cpu under podman: their users, limits, files, arguments.

`podman kube play` knows most of a pod. What it does not know is left out, and tested elsewhere: no
probes, no service and no policy; an emptyDir is a folder of this machine, a service's name an entry
in /etc/hosts. The tests build on each other and run in this order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from container_engine import Engine, until
from kubernetes_manifests import SERVERS, Object, of_kind, pods, render

NETWORK = "kubernetes"
PODS = ("export", *SERVERS, "evaluation-client")


class Cluster:
    """Starts pods, each knowing those before it by name."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self._folder = folder
        self._objects = render("cpu")
        self._addresses: dict[str, str] = {}

    def start(self, name: str) -> str:
        """Start a pod; the name of its container."""
        spec = copy.deepcopy(pods(self._objects)[name]["spec"])
        (container,) = spec["containers"]
        spec["hostAliases"] = [{"ip": ip, "hostnames": [host]} for host, ip in self._known()]
        spec["restartPolicy"] = "Never"
        for one in (*spec.get("initContainers", []), container):
            for unknown in (
                "ports",
                "startupProbe",
                "livenessProbe",
                "readinessProbe",
                "lifecycle",
            ):
                one.pop(unknown, None)  # ports would be published
            for amounts in one["resources"].values():
                amounts.pop("ephemeral-storage", None)
        spec["volumes"] = [self._volume(name, volume) for volume in spec["volumes"]]
        if name == "evaluation":  # the StatefulSet's template of a claim
            claim = {"persistentVolumeClaim": {"claimName": "results"}}
            spec["volumes"].append({"name": "results"} | claim)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all([*of_kind(self._objects, "ConfigMap"), pod]))
        self.engine.podman("kube", "play", "--network", NETWORK, file, timeout=120)
        return f"{name}-{container['name']}"

    def ended(self, container: str) -> bool:
        return self.engine.inspect("container", container)["State"]["Status"] == "exited"

    def succeeds(self, container: str, *command: str) -> bool:
        """Whether a command in the container ends with 0."""
        script = f'podman exec "{container}" {" ".join(command)} > /dev/null 2>&1 && echo yes'
        return self.engine.run("sh", "-c", script, check=False).strip() == "yes"

    def _known(self) -> list[tuple[str, str]]:
        running = self.engine.podman("pod", "ps", "--format", "{{.Name}} {{.InfraID}}")
        for name, infra in (line.split() for line in running.splitlines()):
            networks = self.engine.inspect("container", infra)["NetworkSettings"]["Networks"]
            self._addresses[name] = networks[NETWORK]["IPAddress"]
        return [(name, ip) for name, ip in self._addresses.items() if ip]

    def _volume(self, pod: str, volume: Object) -> Object:
        if "emptyDir" not in volume:
            return volume
        folder = self._folder / f"{pod}-{volume['name']}"
        folder.mkdir()
        folder.chmod(0o777)
        return {"name": volume["name"], "hostPath": {"path": str(folder), "type": "Directory"}}


@pytest.fixture(scope="module")
def cluster(
    engine: Engine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("kubernetes")
    for parent in folder.parents[:2]:
        parent.chmod(0o755)  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    engine.podman("network", "create", NETWORK)
    try:
        yield Cluster(engine, folder)
    finally:
        for name in PODS:
            engine.podman("pod", "rm", "--force", "--time", "1", name, check=False)
        engine.podman("volume", "rm", "--force", "models", "results", check=False)
        engine.podman("network", "rm", "--force", NETWORK, check=False)


def test_the_export_fills_the_volume(cluster: Cluster) -> None:
    container = cluster.start("export")
    until(lambda: cluster.ended(container), seconds=120)
    assert cluster.engine.inspect("container", container)["State"]["ExitCode"] == 0


def test_triton_serves_both_models(cluster: Cluster) -> None:
    container = cluster.start("triton")
    ready = ("triton-ready", "convnext_baseline", "convnext_idealized")
    until(lambda: cluster.succeeds(container, *ready), seconds=60)


@pytest.mark.parametrize("name", ["classification", "evaluation"])
def test_services_find_triton_by_its_name(cluster: Cluster, name: str) -> None:
    container = cluster.start(name)
    until(lambda: cluster.succeeds(container, "mkf-healthcheck", name), seconds=60)


@pytest.mark.parametrize("name", SERVERS)
def test_pods_run_as_their_manifests_say(cluster: Cluster, name: str) -> None:
    found = cluster.engine.inspect("container", f"{name}-{name}")
    user = 1000 if name == "triton" else 10001
    assert found["Config"]["User"] == f"{user}:{user}"
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert not found["EffectiveCaps"]
    assert "no-new-privileges" in found["HostConfig"]["SecurityOpt"]
    assert found["HostConfig"]["Memory"] >= 2 << 30
    assert not cluster.succeeds(f"{name}-{name}", "touch", "/written")
    models_can_be_written = cluster.succeeds(f"{name}-{name}", "touch", "/models/written")
    assert not models_can_be_written


def test_the_job_evaluates_by_the_service(cluster: Cluster) -> None:
    container = cluster.start("evaluation-client")
    until(lambda: cluster.ended(container), seconds=300)
    printed = cluster.engine.podman("logs", container)
    assert cluster.engine.inspect("container", container)["State"]["ExitCode"] == 0, printed
    assert "Evaluation of all 10,000 images of fashion-mnist" in printed
    results = cluster.engine.podman(
        "exec", "evaluation-evaluation", "sh", "-c", "cat /results/*/results.json"
    )
    assert json.loads(results)["environment"]["engine"] == "triton:triton:8001"
