"""The manifests of deploy/kubernetes: valid, closed by default, and at one with the code.

`tests/contract/test_kubernetes_triton.py` starts a real server with their arguments; nothing starts
a cluster.
"""

from __future__ import annotations

import copy
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from kubernetes_manifests import (
    ADAPTER_RULES,
    COMPONENT,
    FOLDER,
    OVERLAYS,
    ROOT,
    SERVERS,
    WORKLOADS,
    Object,
    component,
    containers,
    flags,
    of_kind,
    one,
    pod_of,
    pods,
    port_number,
    render,
    selects,
    server,
    settings_of,
)

from mkf.v1 import classification_pb2, evaluation_pb2
from services.inference.repository import BASELINE, IDEALIZED
from services.inference.triton_addresses import Address, parse_addresses
from services.runtime.settings import PREFIX, Settings

OLDEST = "1.30"  # preStop's sleep is on since then
GRACE_TO_SPARE_SECONDS = 5

# What of a PodMonitor is used here, as the Prometheus operator's type describes it.
POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": {"type": "object"}},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                            "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+s$"},
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(request.param)


# Validity


@pytest.mark.parametrize("version", [OLDEST, "latest"])
def test_objects_are_valid_by_the_official_schemas(objects: list[Object], version: str) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="install it with: pip install kubernetes-validate"
    )
    number = validator.latest_version() if version == "latest" else version
    for item in objects:
        if item["kind"] != "PodMonitor":
            assert validator.validate(item, number, strict=True) in number
    broken = copy.deepcopy(one(objects, "Deployment", "triton"))
    pod_of(broken)["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(validator.ValidationError, match="terminationGracePeriod"):
        validator.validate(broken, number, strict=True)


def test_pod_monitors_have_no_field_of_another_name(objects: list[Object]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="it comes with kubernetes-validate")
    for item in of_kind(objects, "PodMonitor"):
        jsonschema.validate(item, POD_MONITOR)


def test_every_file_is_used() -> None:
    used = {ADAPTER_RULES}  # the adapter's, no object
    for path in FOLDER.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        names = kustomization.get("resources", []) + kustomization.get("patchesStrategicMerge", [])
        used |= {path, *(path.parent / name for name in names)}
    assert set(FOLDER.rglob("*.yaml")) == used


def test_names_are_unique_and_of_one_namespace(objects: list[Object]) -> None:
    keys = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(keys)) == len(keys)
    (namespace,) = of_kind(objects, "Namespace")
    spaces = {item["metadata"].get("namespace") for item in objects if item is not namespace}
    assert spaces == {namespace["metadata"]["name"]}


# Closed by default


def test_the_namespace_admits_restricted_pods_only(objects: list[Object]) -> None:
    labels = of_kind(objects, "Namespace")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods_are_restricted(objects: list[Object]) -> None:
    accounts = {item["metadata"]["name"]: item for item in of_kind(objects, "ServiceAccount")}
    used = set()
    for name, pod in pods(objects).items():
        spec = pod["spec"]
        used.add(spec["serviceAccountName"])
        assert accounts[spec["serviceAccountName"]]["automountServiceAccountToken"] is False, name
        assert spec["automountServiceAccountToken"] is False, name
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["runAsGroup"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim"}, name
        for volume in spec["volumes"]:
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""}), (name, volume)
    assert used == set(accounts)


def test_containers_are_restricted_and_limited(objects: list[Object]) -> None:
    for name, pod in pods(objects).items():
        for container in containers(pod):
            where = (name, container["name"])
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert not {"privileged", "runAsUser", "runAsNonRoot"} & set(context), where
            limits, requests = (container["resources"][key] for key in ("limits", "requests"))
            assert {"cpu", "memory"} <= set(limits), where
            assert set(requests) == set(limits), where
            for resource, amount in requests.items():
                assert _quantity(amount) <= _quantity(limits[resource]), (*where, resource)


def test_volumes_are_there_and_models_are_written_by_the_export_alone(
    objects: list[Object],
) -> None:
    claims = {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    for workload in of_kind(objects, *WORKLOADS):
        name, spec = component(workload), pod_of(workload)["spec"]
        templates = workload["spec"].get("volumeClaimTemplates", [])
        volumes = {volume["name"] for volume in spec["volumes"]}
        volumes |= {template["metadata"]["name"] for template in templates}
        mounted = set()
        for container in containers(pod_of(workload)):
            for mount in container.get("volumeMounts", []):
                mounted.add(mount["name"])
                if mount["name"] in ("models", "dataset"):
                    assert mount.get("readOnly", False) is (name != "export"), (name, mount)
        assert mounted == volumes, name
        for volume in spec["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "models")
            assert claim in claims | {"dataset"}, (name, claim)  # the user's own


# At one with the code


def test_settings_are_the_services_own(objects: list[Object]) -> None:
    (config,) = of_kind(objects, "ConfigMap")
    known = {f"{PREFIX}{field}".upper() for field in Settings.model_fields}
    assert set(config["data"]) <= known
    for name in ("classification", "evaluation"):
        container = server(objects, name)
        (source,) = container["envFrom"]
        assert source == {"configMapRef": {"name": config["metadata"]["name"]}}
        assert {variable["name"] for variable in container["env"]} <= known
        threads = container["env"][0]
        assert threads["name"] == "MKF_DECODE_THREADS"
        assert threads["valueFrom"]["resourceFieldRef"] == {
            "containerName": container["name"],
            "resource": "limits.cpu",
        }
    settings = settings_of(objects)
    assert settings.host == settings.metrics_host == "0.0.0.0"


def test_ports_of_containers_are_the_settings(objects: list[Object]) -> None:
    settings = settings_of(objects)
    for name, port in (
        ("classification", settings.classification_port),
        ("evaluation", settings.evaluation_port),
    ):
        container = server(objects, name)
        assert container["command"] == ["mkf-serve"]
        assert container["args"] == [name]
        assert port_number(container, "grpc") == port
        assert port_number(container, "metrics") == settings.metrics_port
        assert port == Settings.model_fields[f"{name}_port"].default
    assert settings.metrics_port == Settings.model_fields["metrics_port"].default


def test_the_engine_is_the_headless_service(objects: list[Object]) -> None:
    settings = settings_of(objects)
    scheme, _, addresses = settings.engine.partition(":")
    service = one(objects, "Service", "triton")
    (port,) = service["spec"]["ports"]
    assert scheme == "triton"
    assert parse_addresses(addresses) == (Address("triton", port["port"]),)
    assert service["spec"]["clusterIP"] == "None"
    # A headless service maps no ports: clients reach the pods' own.
    assert port_number(server(objects, "triton"), port["targetPort"]) == port["port"]


def test_all_read_the_repository_that_the_export_writes(objects: list[Object]) -> None:
    container = pods(objects)["export"]["spec"]["containers"][0]
    folder = Path(container["args"][1])  # export-once SOURCE REPOSITORY [OPTION ...]
    assert container["command"] == ["export-once"]
    assert settings_of(objects).model_repository == folder
    assert Path(flags(objects)["model-repository"]) == folder
    for name in ("export", *SERVERS):
        mounts = pods(objects)[name]["spec"]["containers"][0]["volumeMounts"]
        (path,) = [mount["mountPath"] for mount in mounts if mount["name"] == "models"]
        assert folder.parent == Path(path), name


def test_services_lead_to_pods(objects: list[Object]) -> None:
    for service in of_kind(objects, "Service"):
        name = service["metadata"]["name"]
        chosen = [
            key
            for key, pod in pods(objects).items()
            if selects({"matchLabels": service["spec"]["selector"]}, pod["metadata"]["labels"])
        ]
        assert chosen == [name]
        for port in service["spec"]["ports"]:
            assert port_number(server(objects, name), port["targetPort"]) == port["port"]


def test_workloads_select_their_own_pods(objects: list[Object]) -> None:
    for item in of_kind(objects, "Deployment", "StatefulSet"):
        assert selects(item["spec"]["selector"], pod_of(item)["metadata"]["labels"])
        assert item["spec"]["selector"]["matchLabels"][COMPONENT] == component(item)


def test_budgets_and_autoscalers_are_of_the_deployments(objects: list[Object]) -> None:
    deployments = {item["metadata"]["name"]: item for item in of_kind(objects, "Deployment")}
    for kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler"):
        assert {item["metadata"]["name"] for item in of_kind(objects, kind)} == set(deployments)
    for budget in of_kind(objects, "PodDisruptionBudget"):
        labels = pod_of(deployments[budget["metadata"]["name"]])["metadata"]["labels"]
        assert selects(budget["spec"]["selector"], labels)
        assert budget["spec"]["maxUnavailable"] == 1
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert target["name"] == scaler["metadata"]["name"]
        assert "replicas" not in deployments[target["name"]]["spec"]  # applying would reset it
        on_gpus = "nvidia.com/gpu" in server(objects, "triton")["resources"]["limits"]
        assert scaler["spec"]["minReplicas"] == (2 if on_gpus else 1)
        assert scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]


# Probes, and the way out


def test_servers_are_probed(objects: list[Object]) -> None:
    for name in SERVERS:
        container = server(objects, name)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            (action,) = {"httpGet", "grpc", "tcpSocket"} & set(probe)
            assert port_number(container, probe[action]["port"]) in {
                port["containerPort"] for port in container["ports"]
            }
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 120


def test_readiness_asks_for_what_the_code_answers(objects: list[Object]) -> None:
    api = {
        "classification": classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"],
        "evaluation": evaluation_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
    }
    for name, service in api.items():
        container = server(objects, name)
        assert container["readinessProbe"]["grpc"] == {
            "port": port_number(container, "grpc"),
            "service": service.full_name,
        }
        # A service whose engine is away is not ready; to start it again would bring nothing back.
        assert "tcpSocket" in container["livenessProbe"]
    triton = server(objects, "triton")
    assert triton["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert triton["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert flags(objects)["strict-readiness"] == "true"


def test_pods_have_time_to_end(objects: list[Object]) -> None:
    grace = settings_of(objects).shutdown_grace_seconds
    ending = {
        "triton": int(flags(objects)["exit-timeout-secs"]),
        "classification": grace,
        "evaluation": grace,
    }
    for name, seconds in ending.items():
        pause = server(objects, name)["lifecycle"]["preStop"]["sleep"]["seconds"]
        allowed = pods(objects)[name]["spec"]["terminationGracePeriodSeconds"]
        assert pause > 0
        assert allowed >= pause + seconds + GRACE_TO_SPARE_SECONDS, name


def test_connections_end_but_no_request_with_them(objects: list[Object]) -> None:
    given = flags(objects)
    timeout_ms = 1000 * settings_of(objects).request_timeout_seconds
    assert 0 < int(given["grpc-max-connection-age"]) <= 60_000
    assert int(given["grpc-max-connection-age-grace"]) > timeout_ms
    assert int(given["exit-timeout-secs"]) * 1000 >= timeout_ms


@pytest.mark.parametrize("ready", [(), (BASELINE,), (IDEALIZED,), (BASELINE, IDEALIZED)])
def test_triton_waits_for_both_models(tmp_path: Path, ready: tuple[str, ...]) -> None:
    (init,) = pods(render("cpu"))["triton"]["spec"]["initContainers"]
    for name in ready:
        graph = tmp_path / "repository" / name / "1" / "model.onnx"
        graph.parent.mkdir(parents=True)
        graph.write_bytes(b"onnx")
    shell, option, script = init["command"]
    waiting = subprocess.Popen([shell, option, script.replace("/models/", f"{tmp_path}/")])
    try:
        if len(ready) == 2:
            assert waiting.wait(timeout=10) == 0
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=0.5)
    finally:
        waiting.kill()
        waiting.wait()


@pytest.mark.parametrize("name", ["classification", "evaluation"])
def test_services_wait_for_a_server(name: str) -> None:
    (init,) = pods(render("cpu"))[name]["spec"]["initContainers"]
    shell, option, script = init["command"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f'("127.0.0.1", {listener.getsockname()[1]})'
        assert '("triton", 8001)' in script
        script = script.replace("python3", sys.executable).replace('("triton", 8001)', place)
        done = subprocess.run([shell, option, script], timeout=20, check=False)
        assert done.returncode == 0
    waiting = subprocess.Popen([shell, option, script])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=0.7)
    finally:
        waiting.kill()
        waiting.wait()


# Metrics


def test_the_autoscalers_figures_are_the_adapters(objects: list[Object]) -> None:
    rules = yaml.safe_load(ADAPTER_RULES.read_text())
    offered = {rule["name"]["as"]: rule for rule in rules["rules"]}
    scaler = one(objects, "HorizontalPodAutoscaler", "triton")
    wanted = [
        metric["pods"]["metric"]["name"]
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    ]
    assert "triton_queue_seconds_per_second" in wanted
    assert set(wanted) <= set(offered)
    assert len(scaler["spec"]["metrics"]) == 2  # the queue, and one that holds the servers
    assert all(
        metric["resource"]["name"] == "cpu"
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Resource"
    )


def test_adapter_rules_are_whole() -> None:
    rules = yaml.safe_load(ADAPTER_RULES.read_text())
    for rule in rules["rules"]:
        assert set(rule) == {"seriesQuery", "resources", "name", "metricsQuery"}
        assert rule["resources"]["overrides"] == {
            "namespace": {"resource": "namespace"},
            "pod": {"resource": "pod"},
        }
        series = rule["seriesQuery"].partition("{")[0]
        assert re.fullmatch(rule["name"]["matches"], series)
        for place in ("<<.Series>>", "<<.LabelMatchers>>", "by (<<.GroupBy>>)"):
            assert place in rule["metricsQuery"]


def test_pod_monitors_find_the_metrics(objects: list[Object]) -> None:
    found = set()
    metrics_port = settings_of(objects).metrics_port
    for monitor in of_kind(objects, "PodMonitor"):
        for name, pod in pods(objects).items():
            if selects(monitor["spec"]["selector"], pod["metadata"]["labels"]):
                found.add(name)
                (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
                assert endpoint["path"] == "/metrics"
                number = port_number(server(objects, name), endpoint["port"])
                # 8002 is Triton's own choice where no argument names another.
                assert number == (8002 if name == "triton" else metrics_port)
    assert found == set(SERVERS)


# Images, and what sets the overlays apart


def test_images_are_those_of_the_compose_stack() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    stack = dict(
        line.split("=", 1)
        for line in (ROOT / ".env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert stack["STACK_VERSION"] == version
    ours = {f"mkf-services:{version}", f"mkf-export:{version}"}
    expected = {
        "cpu": ours | {f"mkf-triton-cpu:{version}"},
        "gpu": ours | {stack["TRITON_IMAGE"]},
        "imagenet": {
            f"mkf-services:{version}",
            f"mkf-export:{version}-timm",
            stack["TRITON_IMAGE"],
        },
    }
    for overlay, images in expected.items():
        templates = pods(render(overlay)).values()
        assert images == {entry["image"] for pod in templates for entry in containers(pod)}
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, uid in (("triton", 1000), ("classification", 10001), ("export", 10001)):
        context = pods(render("gpu"))[name]["spec"]["securityContext"]
        assert compose[name]["user"] == f"{uid}:{uid}"
        assert (context["runAsUser"], context["runAsGroup"]) == (uid, uid)


def test_the_gpu_overlays_serve_on_gpus() -> None:
    for overlay in OVERLAYS:
        pod, container = pods(render(overlay))["triton"], server(render(overlay), "triton")
        on_gpu = overlay != "cpu"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is on_gpu
        assert bool(pod["spec"].get("tolerations")) is on_gpu
        # The stock image's entry point finds the driver's libraries: it must stay.
        assert "command" not in container


def test_the_job_asks_the_service() -> None:
    objects = render("cpu")
    (container,) = pods(objects)["evaluation-client"]["spec"]["containers"]
    port = settings_of(objects).evaluation_port
    assert container["command"] == ["mkf-eval"]
    assert f"--address=evaluation:{port}" in container["args"]


_UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}


def _quantity(text: str | int) -> float:
    match = re.fullmatch(r"([0-9.]+)(m|Mi|Gi|)", str(text))
    assert match, text
    return float(match[1]) * _UNITS[match[2]]
