"""The files of the container stack are at one with each other and with the code.

`make test-compose` starts the containers; nothing here needs one.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from container_engine import env_file

import services.evaluation.metrics
import services.runtime.metrics  # noqa: F401 - both fill prometheus_client's registry
from services.inference.repository import BASELINE, IDEALIZED
from services.runtime.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
GRAFANA = ROOT / "deploy" / "grafana"
GPU = ("docker-compose.yml", "docker-compose.override.yml")  # what Compose reads without -f
CPU = ("docker-compose.yml", "deploy/compose.cpu.yml")
COMBINATIONS = {"gpu": GPU, "cpu": CPU, "neither": GPU[:1]}
OWN = ("export", "classification", "evaluation")
SERVERS = ("triton", "classification", "evaluation", "prometheus", "grafana")
# Files of the machine, which containers do not see.
NOT_IN_CONTAINERS = {"MKF_TLS_CERT_FILE", "MKF_TLS_KEY_FILE"}

# https://github.com/triton-inference-server/server, docs/user_guide/metrics.md; on by default.
TRITON_METRICS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
}
EXACT = re.compile(r"^[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?(@sha256:[0-9a-f]{64})?$")
# A name in PromQL that is no function, keyword, label or string.
METRIC = re.compile(r"\b(?:mkf|nv)_\w+")
GRAFANA_UNITS = {"percentunit", "suffix: pp", "short", "s", "reqps"}


@functools.cache
def rendered(files: tuple[str, ...], **variables: str) -> dict[str, Any]:
    """What docker-compose makes of these files."""
    if not shutil.which("docker-compose"):
        pytest.skip("docker-compose is missing: apt-get install docker-compose")
    environment = {name: value for name, value in os.environ.items() if name not in env_file()}
    chosen = () if files == GPU else [part for name in files for part in ("-f", name)]
    done = subprocess.run(
        ["docker-compose", *chosen, "config"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | variables,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    content: dict[str, Any] = yaml.safe_load(done.stdout)
    return content


@pytest.fixture(scope="module", params=COMBINATIONS)
def stack(request: pytest.FixtureRequest) -> dict[str, Any]:
    services: dict[str, Any] = rendered(COMBINATIONS[request.param])["services"]
    return services


@pytest.fixture(scope="module")
def gpu() -> dict[str, Any]:
    services: dict[str, Any] = rendered(GPU)["services"]
    return services


def written(*files: str) -> dict[str, Any]:
    """The services of compose files with what docker-compose 1.29 does not print of them."""
    found: dict[str, Any] = {}
    for file in files:
        for name, service in yaml.safe_load((ROOT / file).read_text())["services"].items():
            found[name] = found.get(name, {}) | service
    return found


def container_port(service: dict[str, Any], published: str) -> int:
    """The container's end of a published port, which .env names."""
    wanted = f"127.0.0.1:{env_file()[published]}:"
    (found,) = [port for port in service["ports"] if port.startswith(wanted)]
    return int(found.removeprefix(wanted).partition("/")[0])


def dockerfiles() -> dict[str, str]:
    return {path.name.partition(".")[0]: path.read_text() for path in DOCKER.glob("*.Dockerfile")}


def seconds(duration: str) -> float:
    units = {"s": 1, "m": 60}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([ms])", duration))


# Compose


def test_every_service_is_there(stack: dict[str, Any]) -> None:
    assert stack.keys() == {"export", *SERVERS}


def test_the_gpu_is_reserved_by_default_and_not_on_machines_without_one() -> None:
    triton = rendered(GPU)["services"]["triton"]
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    for files in (CPU, COMBINATIONS["neither"]):
        assert "deploy" not in rendered(files)["services"]["triton"]


def test_every_container_is_confined(stack: dict[str, Any]) -> None:
    for service in stack.values():
        uid, _, gid = service["user"].partition(":")
        assert int(uid) > 0
        assert gid
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert service["pids_limit"] > 0
        assert service["tmpfs"] == ["/tmp"]
        assert "privileged" not in service
        assert "cap_add" not in service


def test_no_log_grows_without_end(stack: dict[str, Any]) -> None:
    for service in stack.values():
        assert service["logging"]["driver"] == "json-file"
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_every_server_has_a_health_check_and_comes_back(stack: dict[str, Any]) -> None:
    for name in SERVERS:
        check = stack[name]["healthcheck"]
        assert check["test"][0] == "CMD"
        assert not any(" " in word for word in check["test"])  # which podman would split
        assert {"interval", "timeout", "retries", "start_period"} <= check.keys()
        assert stack[name]["restart"] == "unless-stopped"
    assert stack["export"]["restart"] == "no"
    assert stack["export"]["healthcheck"]["test"] == ["NONE"]


def test_what_takes_no_signal_as_the_first_process_is_not_it(stack: dict[str, Any]) -> None:
    assert {name for name, service in stack.items() if service.get("init")} == {"export", "triton"}


def test_each_waits_for_what_it_needs(stack: dict[str, Any]) -> None:
    def needs(name: str) -> dict[str, str]:
        return {other: how["condition"] for other, how in stack[name].get("depends_on", {}).items()}

    healthy = "service_healthy"
    assert needs("export") == {}
    assert needs("triton") == {"export": "service_completed_successfully"}
    assert needs("classification") == {"triton": healthy}
    # Compose builds in the order of these, and classification builds the image of both.
    assert needs("evaluation") == {"triton": healthy, "classification": "service_started"}
    assert needs("prometheus") == dict.fromkeys(("triton", "classification", "evaluation"), healthy)
    assert needs("grafana") == {"prometheus": healthy}


def test_ports_are_published_on_loopback_and_come_from_env(stack: dict[str, Any]) -> None:
    published = {
        "triton": {"TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT"},
        "classification": {"MKF_CLASSIFICATION_PORT"},
        "evaluation": {"MKF_EVALUATION_PORT"},
        "prometheus": {"PROMETHEUS_PORT"},
        "grafana": {"GRAFANA_PORT"},
        "export": set(),
    }
    for name, variables in published.items():
        assert len(stack[name].get("ports", [])) == len(variables)
        for variable in variables:
            container_port(stack[name], variable)


def test_another_address_and_port_are_taken_from_the_environment() -> None:
    services = rendered(CPU, BIND_ADDRESS="0.0.0.0", TRITON_GRPC_PORT="9001")["services"]
    assert "0.0.0.0:9001:8001/tcp" in services["triton"]["ports"]


def test_the_services_listen_where_their_ports_are_published(stack: dict[str, Any]) -> None:
    for name in ("classification", "evaluation"):
        said = stack[name]["environment"]
        variable = f"MKF_{name.upper()}_PORT"
        assert container_port(stack[name], variable) == int(said[variable])
        assert said["MKF_HOST"] == said["MKF_METRICS_HOST"] == "0.0.0.0"
        assert stack[name]["command"] == [name]
        assert stack[name]["healthcheck"]["test"] == ["CMD", "mkf-healthcheck", name]


def test_the_services_take_their_settings(
    stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name in ("classification", "evaluation"):
        for variable, value in stack[name]["environment"].items():
            monkeypatch.setenv(variable, str(value))
        settings = Settings(_env_file=None)
        engine = stack["triton"]
        assert settings.engine == f"triton:triton:{container_port(engine, 'TRITON_GRPC_PORT')}"
        mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in stack[name]["volumes"]}
        assert mounts[str(settings.model_repository)] == "models"
        if name == "evaluation":
            assert mounts[str(settings.results_directory)] == "results"
        assert settings.shutdown_grace_seconds < seconds(stack[name]["stop_grace_period"])


@pytest.mark.parametrize(
    ("name", "others"),
    [("classification", "MKF_EVALUATION_PORT"), ("evaluation", "MKF_CLASSIFICATION_PORT")],
)
def test_a_service_is_given_every_setting_and_nothing_else(
    stack: dict[str, Any], name: str, others: str
) -> None:
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert stack[name]["environment"].keys() == known - NOT_IN_CONTAINERS - {others}


def test_the_shell_wins_over_the_env_file_for_limits_alone() -> None:
    decided = {
        "MKF_HOST", "MKF_METRICS_HOST", "MKF_METRICS_PORT", "MKF_ENGINE", "MKF_MODEL_REPOSITORY",
        "MKF_RESULTS_DIRECTORY", "MKF_TRITON_SHARED_MEMORY", "MKF_EVALUATION_PORT",
    }  # fmt: skip
    given = rendered(CPU)["services"]["evaluation"]["environment"]
    ports = {"MKF_CLASSIFICATION_PORT": "50061", "MKF_EVALUATION_PORT": "50062"}
    shell = dict.fromkeys(given, "7") | ports
    services = rendered(CPU, **shell)["services"]
    said = services["evaluation"]["environment"]
    assert {name for name in said if said[name] == "7"} == said.keys() - decided
    assert {name: said[name] for name in decided} == {name: given[name] for name in decided}


def test_a_variable_changes_no_container_but_its_own() -> None:
    before, after = rendered(CPU)["services"], rendered(CPU, GRAFANA_PORT="3001")["services"]
    assert {name for name in before if before[name] != after[name]} == {"grafana"}


def test_triton_serves_what_export_writes_and_stops_in_time(stack: dict[str, Any]) -> None:
    command = stack["triton"]["command"]
    flags = dict(word.removeprefix("--").split("=") for word in command[1:])
    assert command[0] == "tritonserver"
    assert f"models:{flags['model-repository']}:ro" in stack["triton"]["volumes"]
    assert stack["export"]["command"] == ["demo", flags["model-repository"]]
    assert f"models:{flags['model-repository']}:rw" in stack["export"]["volumes"]
    for kind in ("http", "grpc", "metrics"):
        assert int(flags[f"{kind}-port"]) == container_port(
            stack["triton"], f"TRITON_{kind.upper()}_PORT"
        )
    assert float(flags["exit-timeout-secs"]) < seconds(stack["triton"]["stop_grace_period"])
    assert flags["strict-readiness"] == "true"
    assert not {"model-control-mode", "cache-config", "response-cache-byte-size"} & flags.keys()


def test_only_export_and_evaluation_write_volumes_of_ours(stack: dict[str, Any]) -> None:
    writable = {
        (name, volume.split(":")[0])
        for name, service in stack.items()
        for volume in service["volumes"]
        if not volume.endswith(":ro")
    }
    assert writable == {
        ("export", "models"),
        ("export", "cache"),
        ("evaluation", "results"),
        ("prometheus", "prometheus"),
        ("grafana", "grafana"),
    }


def test_triton_is_asked_for_both_models(tmp_path: Path) -> None:
    gpu, cpu = (rendered(files)["services"]["triton"]["healthcheck"] for files in (GPU, CPU))
    assert cpu["test"] == ["CMD", "triton-ready", BASELINE, IDEALIZED]
    assert f"/v2/models/{{{BASELINE},{IDEALIZED}}}/ready" in gpu["test"][-1]


@pytest.mark.parametrize("ready", [(), (BASELINE,), (BASELINE, IDEALIZED)])
@pytest.mark.parametrize("kind", ["curl", "triton-ready"])
def test_a_health_check_passes_once_both_models_are_ready(
    ready: tuple[str, ...], kind: str
) -> None:
    """Both checks of compose, against a server that answers as Triton does."""
    code = (
        "import http.server, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        ready = self.path.split('/')[3] in sys.argv[1:]\n"
        "        self.send_response(200 if ready else 400)\n"
        "        self.end_headers()\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), Handler)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *ready],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            if kind == "curl":
                test = rendered(GPU)["services"]["triton"]["healthcheck"]["test"][1:]
                if not shutil.which("curl"):
                    pytest.skip("curl is missing: apt-get install curl")
                command = [word.replace(":8000/", f":{port}/") for word in test]
            else:
                script = (DOCKER / "triton_ready.py").read_text().replace(":8000/", f":{port}/")
                command = [sys.executable, "-c", script, BASELINE, IDEALIZED]
            done = subprocess.run(command, capture_output=True, timeout=30)
        finally:
            server.kill()
    assert (done.returncode == 0) == (len(ready) == 2)


def test_another_model_makes_the_containers_that_serve_it_anew() -> None:
    demo, other = (rendered(CPU, MODEL=model)["services"] for model in ("demo", "timm:some_net"))
    for name in ("export", "triton", "classification", "evaluation"):
        assert demo[name] != other[name]
    assert demo["prometheus"] == other["prometheus"]
    assert other["export"]["command"][0] == "timm:some_net"
    assert other["export"]["build"]["args"]["MODEL"] == "timm:some_net"


def test_datasets_are_read_only_wherever_they_lie() -> None:
    for given, source in (("datasets", "datasets"), ("/data/imagenet", "/data/imagenet")):
        volumes = rendered(CPU, DATASETS=given)["services"]["evaluation"]["volumes"]
        assert f"{source}:/datasets:ro" in volumes


def test_grafana_can_be_seen_and_not_changed(gpu: dict[str, Any]) -> None:
    said = gpu["grafana"]["environment"]
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert said["GF_AUTH_BASIC_ENABLED"] == "false"
    assert said["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not [name for name in env_file() if "PASSWORD" in name or "SECRET" in name]


# Images


def test_every_image_is_pinned(stack: dict[str, Any]) -> None:
    for service in stack.values():
        assert EXACT.match(service["image"]), service["image"]
    for name, value in env_file().items():
        if name.endswith("_IMAGE"):
            assert EXACT.match(value), value


@pytest.mark.parametrize("files", COMBINATIONS.values(), ids=COMBINATIONS)
def test_an_image_is_built_by_one_service_and_never_pulled(files: tuple[str, ...]) -> None:
    """Compose builds at once, and two that export one tag get in each other's way."""
    services = written(*files)
    built = [service["image"] for service in services.values() if "build" in service]
    assert len(set(built)) == len(built)
    for name, service in services.items():
        if service["image"] in built:
            policy = "build" if "build" in service else "never"
            assert service.get("pull_policy") == policy, name
        else:
            assert "pull_policy" not in service, name


def test_triton_from_wheels_is_for_the_wheels_processor() -> None:
    assert rendered(CPU)["services"]["triton"]["platform"] == "linux/amd64"
    assert "platform" not in rendered(GPU)["services"]["triton"]


def test_every_dockerfile_is_used_and_pins_its_base() -> None:
    services = rendered(CPU)["services"]
    built = {
        Path(service["build"]["dockerfile"]).name
        for service in services.values()
        if "build" in service
    }
    assert built == {path.name for path in DOCKER.glob("*.Dockerfile")}
    for text in dockerfiles().values():
        assert f"ARG PYTHON_IMAGE={env_file()['PYTHON_IMAGE']}\n" in text
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
        assert text.count("\nFROM ") == 2


def test_dockerfiles_run_as_the_users_of_compose() -> None:
    services = rendered(CPU)["services"]
    users = {
        service["build"]["dockerfile"]: service["user"]
        for service in services.values()
        if "build" in service
    }
    for name, text in dockerfiles().items():
        (user,) = re.findall(r"^USER (\S+)", text, re.MULTILINE)
        assert users[f"deploy/docker/{name}.Dockerfile"] == user
        assert int(user.partition(":")[0]) > 0


def test_dockerfiles_copy_what_their_context_holds() -> None:
    kept = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for text in dockerfiles().values():
        for line in re.findall(r"^COPY (?!--from)(.*)", text, re.MULTILINE):
            for source in [word for word in line.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == name or source.startswith(f"{name}/") for name in kept), source


def test_labels_are_those_of_the_open_container_initiative() -> None:
    wanted = {"title", "description", "source", "licenses", "version", "revision"}
    for text in dockerfiles().values():
        assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text)) == wanted


def test_the_images_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert env_file()["STACK_VERSION"] == project["version"]
    for text in dockerfiles().values():
        assert f"ARG VERSION={project['version']}\n" in text


def test_requirements_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def printed(*arguments: str) -> set[str]:
        command = [sys.executable, DOCKER / "requirements.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        return set(done.stdout.split())

    assert printed() == set(project["dependencies"])
    assert printed("services") == {*project["dependencies"], *extras["services"]}
    assert printed("serve") == printed("services") | {extras["serve"][1]}
    assert {line for line in printed("services") if line.startswith("onnx")}
    assert not {line for line in printed("services", "--without", "onnx") if "onnx" in line}


# Export


def test_the_export_is_made_once_and_again_for_another_model(tmp_path: Path) -> None:
    one, other = (ROOT / "mkf" / "demo" / f"{name}.onnx" for name in ("baseline", "idealized"))
    repository = tmp_path / "models"

    def export(source: str) -> tuple[str, list[str], dict[str, int]]:
        done = subprocess.run(
            [sys.executable, DOCKER / "export_once.py", source, repository],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        assert done.returncode == 0, done.stderr
        manifests = [repository / name / "1" / "manifest.json" for name in (BASELINE, IDEALIZED)]
        sources = [json.loads(path.read_text())["source"] for path in manifests]
        times = {path.parent.parent.name: path.stat().st_mtime_ns for path in manifests}
        return done.stdout, sources, times

    _, sources, first = export(f"onnx:{one}")
    assert sources == [f"onnx:{one}"] * 2
    said, sources, second = export(f"onnx:{one}")
    assert said == f"{repository} already holds the models of onnx:{one}\n"
    assert second == first
    _, sources, third = export(f"onnx:{other}")
    assert sources == [f"onnx:{other}"] * 2
    assert third != first


def test_an_export_that_fails_is_not_taken_for_made(tmp_path: Path) -> None:
    command = [sys.executable, DOCKER / "export_once.py", f"onnx:{tmp_path}/none.onnx", tmp_path]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 1
    assert "none.onnx" in done.stderr
    assert not list(tmp_path.iterdir())


# Prometheus and Grafana


def test_prometheus_asks_the_services_where_they_answer(gpu: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    metrics_port = gpu["classification"]["environment"]["MKF_METRICS_PORT"]
    assert gpu["evaluation"]["environment"]["MKF_METRICS_PORT"] == metrics_port
    assert targets == {
        "prometheus": [f"localhost:{container_port(gpu['prometheus'], 'PROMETHEUS_PORT')}"],
        "classification": [f"classification:{metrics_port}"],
        "evaluation": [f"evaluation:{metrics_port}"],
        "triton": [f"triton:{container_port(gpu['triton'], 'TRITON_METRICS_PORT')}"],
    }
    command = dict(word.removeprefix("--").split("=") for word in gpu["prometheus"]["command"])
    assert f"{ROOT}/deploy/prometheus:/etc/prometheus:ro" in gpu["prometheus"]["volumes"]
    assert command["config.file"] == "/etc/prometheus/prometheus.yml"
    assert f"prometheus:{command['storage.tsdb.path']}:rw" in gpu["prometheus"]["volumes"]


def test_grafana_finds_prometheus_and_the_dashboards(gpu: dict[str, Any]) -> None:
    volumes = gpu["grafana"]["volumes"]
    (source,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    port = container_port(gpu["prometheus"], "PROMETHEUS_PORT")
    assert source["url"] == f"http://prometheus:{port}"
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "mkf.yml").read_text())[
        "providers"
    ]
    assert f"{GRAFANA}/dashboards:{provider['options']['path']}:ro" in volumes
    assert f"{GRAFANA}/provisioning:/etc/grafana/provisioning:ro" in volumes
    home = gpu["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).relative_to(provider["options"]["path"])).is_file()


def test_grafana_finds_every_folder_that_it_looks_for() -> None:
    """An error is logged where one is missing; in alerting, files of another kind may end it."""
    for name in ("alerting", "dashboards", "datasources", "plugins"):
        files = list((GRAFANA / "provisioning" / name).iterdir())
        assert [path.suffix for path in files] == [".yml"], name
        assert yaml.safe_load(files[0].read_text())["apiVersion"] == 1


@pytest.mark.parametrize(
    "path", sorted((GRAFANA / "dashboards").glob("*.json")), ids=lambda p: p.stem
)
def test_a_dashboard_asks_for_what_exists(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    source = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"][0]
    exposed = {
        sample
        for family in prometheus_client.REGISTRY.collect()
        for sample in samples_of(family)
        if sample.startswith("mkf_")
    }
    assert dashboard["uid"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in GRAFANA_UNITS
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel["targets"]:
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}
            asked = set(METRIC.findall(target["expr"]))
            assert asked
            assert asked <= exposed | TRITON_METRICS, asked - exposed - TRITON_METRICS


def samples_of(family: prometheus_client.Metric) -> set[str]:
    """Names under which a metric without samples yet will be exposed."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {f"{family.name}{suffix}" for suffix in suffixes.get(family.type, ("",))}
