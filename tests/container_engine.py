"""Podman for tests of the containers: an engine of its own, and docker-compose on it.

Needs root, and Debian's packages of `PACKAGES`. All that the engine keeps lies in a temporary
folder; base images, which no registry is asked for, are made of Debian packages and kept in
`CACHE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from triton_server import free_ports

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "containers"
SUITE = "bookworm"  # Debian 12, whose Python is 3.11
BASE_PACKAGES = ("ca-certificates", "libpython3.11", "python3", "python3-venv")
UNUSED = (
    *("tmp", "var/cache/apt", "var/lib/apt/lists"),
    *("usr/share/doc", "usr/share/locale", "usr/share/man"),
)
PACKAGES = {  # program: Debian package
    "aardvark-dns": "aardvark-dns",
    "buildah": "buildah",
    "catatonit": "catatonit",
    "debootstrap": "debootstrap",
    "docker-compose": "docker-compose",
    "iptables": "iptables",
    "netavark": "netavark",
    "podman": "podman",
    "runc": "runc",
}
HELPERS = "/usr/lib/podman"  # where Debian keeps the programs that only podman starts
VARIABLES = re.compile(r"^(\w+)=(.*)$", re.MULTILINE)


def why_not() -> str | None:
    """What is missing here for containers; None where nothing is."""
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin", HELPERS))
    missing = sorted({PACKAGES[name] for name in PACKAGES if not shutil.which(name, path=path)})
    if missing:
        return f"containers need Debian's packages: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0:
        return "containers need root here: sudo make test-compose"
    return None


class Engine:
    """A container engine; `running_engine` makes one, and takes it down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "podman.sock"
        environment = {
            name: value for name, value in os.environ.items() if name not in env_file() and name
        }
        self.environment = environment | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"),
            "DOCKER_HOST": f"unix://{self.socket}",
            "COMPOSE_HTTP_TIMEOUT": "300",
        }

    def run(
        self, *command: str | Path, timeout: float = 300, check: bool = True, **variables: str
    ) -> str:
        """Standard output of a program; a failure shows all that it said."""
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            env=self.environment | variables,
            cwd=ROOT,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def complaint(self, *command: str) -> str:
        """Standard error of a program that fails; nothing of one that does not."""
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=60
        )
        return done.stderr if done.returncode else ""

    def podman(self, *arguments: str | Path, **options: Any) -> str:
        return self.run("podman", *arguments, **options)

    def build(self, dockerfile: Path, tag: str, **arguments: str) -> None:
        """Build an image from the root, as `docker build -f` does, with this machine's network."""
        self.run(
            "buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never",
            "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro", "--file", dockerfile, "--tag", tag,
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            ROOT, timeout=600,
        )  # fmt: skip

    def inspect(self, what: str, name: str) -> dict[str, Any]:
        content: list[dict[str, Any]] = json.loads(self.podman(what, "inspect", name))
        return content[0]


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine with its API, that runs health checks; at the end nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="mkf-", ignore_cleanup_errors=True) as name:
        engine = Engine(Path(name))
        configure(engine)
        log = (engine.folder / "service.log").open("w")
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", engine.environment["DOCKER_HOST"]],
            env=engine.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stop = threading.Event()
        checks = threading.Thread(target=run_health_checks, args=(engine, stop))
        try:
            until(engine.socket.is_socket, seconds=30)
            checks.start()
            yield engine
        finally:
            stop.set()
            if checks.is_alive():
                checks.join()
            clean(engine)
            service.terminate()
            service.wait(30)
            log.close()
            unmount(engine.folder)


def configure(engine: Engine) -> None:
    """Podman's files, so that it neither sees nor touches another engine of this machine."""
    folder = engine.folder
    driver = "overlay" if can_overlay(folder) else "vfs"
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    # Ulimits above those of this machine, and the journal, are refused in a container or a VM.
    (folder / "containers.conf").write_text(f"""\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{folder}/tmp"
compat_api_enforce_docker_hub = false
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
""")
    (folder / "registries.conf").write_text("unqualified-search-registries = []\n")


def can_overlay(folder: Path) -> bool:
    """Whether layers can be stacked here, which saves copying each for each container."""
    places = {name: folder / "overlay" / name for name in ("lower", "upper", "work", "merged")}
    for place in places.values():
        place.mkdir(parents=True)
    options = f"lowerdir={places['lower']},upperdir={places['upper']},workdir={places['work']}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(places["merged"])]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(places["merged"])], check=True)
    return True


def run_health_checks(engine: Engine, stop: threading.Event) -> None:
    """What podman leaves to systemd's timers: run each container's check again and again."""
    while not stop.wait(1):
        for name in engine.podman("ps", "--quiet", check=False).split():
            if stop.is_set():
                return
            engine.podman("healthcheck", "run", name, check=False)


def clean(engine: Engine) -> None:
    """Remove containers, networks and volumes; whatever fails, go on."""
    for command in (
        ("rm", "--all", "--force", "--time", "1"),
        ("network", "prune", "--force"),
        ("volume", "prune", "--force"),
    ):
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.podman(*command, check=False, timeout=120)


def unmount(folder: Path) -> None:
    """Unmount what the engine left mounted, innermost first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True)


def import_base_images(engine: Engine) -> None:
    """The images of `.env` that no registry gives here: Python's, and Prometheus'."""
    images = env_file()
    engine.podman("import", "--quiet", debian_rootfs(), "debian-python")
    engine.run(
        "buildah", "bud", "--isolation", "chroot", "--pull-never", "--tag", images["PYTHON_IMAGE"],
        "--file", write_python_dockerfile(), CACHE,
    )  # fmt: skip
    engine.run(
        "buildah", "bud", "--isolation", "chroot", "--pull-never", "--tag",
        images["PROMETHEUS_IMAGE"], "--file", write_prometheus_dockerfile(images), CACHE,
    )  # fmt: skip


def write_python_dockerfile() -> Path:
    """Debian's Python, with an installer of packages where Python's own image has it."""
    dockerfile = CACHE / "python.Dockerfile"
    dockerfile.write_text("""\
FROM debian-python
RUN python3 -m venv /tmp/pip \\
    && mkdir -p /usr/local/lib/python3.11/ensurepip \\
    && mv /tmp/pip/lib/python3.11/site-packages /usr/local/lib/python3.11 \\
    && mv /tmp/pip/bin/pip* /usr/local/bin \\
    && rm -r /tmp/pip
""")
    return dockerfile


def write_prometheus_dockerfile(images: Mapping[str, str]) -> Path:
    """Prometheus where its own image has it, on the same user, with BusyBox' wget."""
    dockerfile = CACHE / "prometheus.Dockerfile"
    dockerfile.write_text(f"""\
FROM {images["PYTHON_IMAGE"]}
COPY prometheus/usr /usr
COPY prometheus/bin/busybox /usr/bin/wget
RUN install --directory --owner 65534 --group 65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/bin/prometheus"]
""")
    return dockerfile


def debian_rootfs() -> Path:
    """A tar of a minimal Debian with Python, from the mirror that apt uses here; made once."""
    target = CACHE / f"{SUITE}-{'-'.join(BASE_PACKAGES)}.tar"
    if target.is_file() and (CACHE / "prometheus").is_dir():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        rootfs = Path(name) / "rootfs"
        subprocess.run(
            [
                "debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", SUITE,
                str(rootfs), apt_mirror(),
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        fetch_prometheus(rootfs)
        for unused in UNUSED:
            for path in (rootfs / unused).iterdir():
                is_folder = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path) if is_folder else path.unlink()
        with tarfile.open(Path(name) / "rootfs.tar", "w") as tar:
            tar.add(rootfs, arcname=".")
        (Path(name) / "rootfs.tar").replace(target)
    return target


def fetch_prometheus(rootfs: Path) -> None:
    """Prometheus and BusyBox, out of Debian's packages, into the cache."""
    target = CACHE / "prometheus"
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(
        ["chroot", str(rootfs), "sh", "-c",
         "cd /tmp && apt-get update -qq && apt-get download -qq prometheus busybox-static"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        for package in (rootfs / "tmp").glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(package), name], check=True)
        for program in ("usr/bin/prometheus", "usr/bin/promtool", "bin/busybox"):
            found = Path(name) / program
            (target / program).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(found, target / program)


def apt_mirror() -> str:
    """Where apt takes this suite from, as it is configured on this machine."""
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    mirrors = [line.split()[1] for line in lines if line.split()[0] == SUITE]
    assert mirrors, f"apt is not set up for Debian's {SUITE} on this machine"
    return mirrors[0]


class Stack:
    """The compose project on an engine, with free ports for all that it publishes."""

    PORTS = (
        "MKF_CLASSIFICATION_PORT", "MKF_EVALUATION_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT",
        "TRITON_METRICS_PORT", "PROMETHEUS_PORT",
    )  # fmt: skip

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Engines share the folder in which a network's names are kept, by the network's name.
        self.project = f"mkftest{os.getpid()}"
        self.ports = dict(zip(self.PORTS, free_ports(len(self.PORTS)), strict=True))
        self.variables = {name: str(port) for name, port in self.ports.items()}
        self.variables["COMPOSE_PROJECT_NAME"] = self.project

    def compose(self, *arguments: str, **options: Any) -> str:
        files = ("-f", "docker-compose.yml", "-f", "deploy/compose.cpu.yml")
        return self.engine.run("docker-compose", *files, *arguments, **self.variables | options)

    def up(self, *services: str, **variables: str) -> None:
        self.compose("up", "--detach", "--no-build", *services, **variables)

    def container(self, service: str) -> dict[str, Any]:
        return self.engine.inspect("container", f"{self.project}_{service}_1")

    def health(self, service: str) -> str:
        return str(self.container(service)["State"]["Health"]["Status"])

    def address(self, port: str) -> str:
        return f"127.0.0.1:{self.ports[port]}"

    def wait_healthy(self, *services: str, seconds: float = 90) -> None:
        for service in services:
            until(lambda one=service: self.health(one) == "healthy", seconds=seconds)


def until(condition: Callable[[], object], *, seconds: float) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} was not met within {seconds:g} s"
        time.sleep(0.2)


def env_file() -> dict[str, str]:
    """What .env sets."""
    return dict(VARIABLES.findall((ROOT / ".env").read_text()))
