"""The CPU stack for real: images built, containers started. Only `make test-compose` runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_engine import (
    ROOT,
    Engine,
    Stack,
    env_file,
    import_base_images,
    running_engine,
    why_not,
)

SERVICES = ("triton", "classification", "evaluation", "prometheus")
IMAGES = ("services", "export", "triton-cpu")

# It takes minutes and root, so that `make test` leaves it out.
if not os.environ.get("MKF_TEST_COMPOSE"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A container engine of its own, which leaves nothing behind."""
    if reason := why_not():
        pytest.skip(reason)
    with running_engine() as engine:
        yield engine
    left = processes_that_name(engine.folder)
    assert not left, f"left running: {left}"
    assert not engine.folder.exists()


@pytest.fixture(scope="session")
def images(engine: Engine) -> dict[str, str]:
    """All Dockerfiles, built; the images' names by those of the Dockerfiles."""
    import_base_images(engine)
    version = env_file()["STACK_VERSION"]
    tags = {name: f"mkf-{name}:{version}" for name in IMAGES}
    for name, tag in tags.items():
        dockerfile = ROOT / "deploy" / "docker" / f"{name}.Dockerfile"
        engine.build(dockerfile, tag, VERSION=version, REVISION="tested", SOURCE="here")
    return tags


@pytest.fixture(scope="session")
def stack(engine: Engine, images: dict[str, str]) -> Stack:
    """The stack, up; Grafana, whose image cannot be made here, is left out."""
    stack = Stack(engine)
    try:
        stack.up("export", *SERVICES)
        stack.wait_healthy(*SERVICES)
    except AssertionError as error:
        logs = stack.compose("logs", "--no-color", "--tail", "60", check=False)
        raise AssertionError(f"{error}\n{logs}") from error
    return stack


def processes_that_name(folder: Path) -> list[str]:
    """Command lines of running processes with this folder in them."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
        if str(folder) in line:
            lines.append(line)
    return lines
