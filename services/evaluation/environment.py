"""What a run ran on: without it a latency is worth nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from services.evaluation.results import Environment
from services.inference.repository import ServedModel

PACKAGES = (*("mkf", "grpcio", "numpy", "pillow", "protobuf", "pyarrow", "scipy", "tritonclient"),)


def describe_environment(
    *,
    engine: str,
    engine_versions: dict[str, str],
    models: tuple[ServedModel, ServedModel],
    decode_threads: int,
) -> Environment:
    """The machine, the versions and the threads of this process, and of what computed."""
    return Environment(
        platform=platform.platform(),
        cpu=_cpu(),
        cpus=usable_cpus(),
        decode_threads=decode_threads,
        engine=engine,
        engine_threads={
            model.name: parameters["intra_op_thread_count"].string_value
            for model in models
            if "intra_op_thread_count" in (parameters := model.config.parameters)
        },
        versions={"python": platform.python_version()} | _versions() | engine_versions,
    )


def usable_cpus() -> int:
    """The processors that this process may use, where the system says; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
