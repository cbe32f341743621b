"""The machine that was measured on, and whether it had nothing else to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

from services.evaluation.environment import usable_cpus

QUIET_SHARE = 0.1  # of all processors' time; more is other programs' work
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mkf", "grpcio", "numpy", "tritonclient", "mlcommons-loadgen")


def describe_machine() -> dict[str, Any]:
    """Processor, system and versions."""
    return {
        "processor": _processor(),
        "processors": usable_cpus(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "server": _pins((ROOT / "deploy" / "triton" / "requirements.txt").read_text()),
    }


def observe(when: str, *, seconds: float = 2.0) -> dict[str, Any]:
    """How busy the machine is while nothing of ours runs; a sample of `seconds`."""
    before = processor_times(_stat())
    time.sleep(seconds)
    after = processor_times(_stat())
    total = sum(after) - sum(before)
    return {
        "when": when,
        "busy_share": (after[0] - before[0]) / total if total else 0.0,
        "load_1min": os.getloadavg()[0],
    }


def is_quiet(observations: list[dict[str, Any]]) -> bool:
    """Whether other programs never took more than a tenth of the processors."""
    return all(one["busy_share"] <= QUIET_SHARE for one in observations)


def processor_times(stat: str) -> tuple[int, int]:
    """Busy and idle time of all processors in ticks, from the text of /proc/stat (man 5 proc)."""
    # user nice system idle iowait irq softirq steal; guests are counted in user and nice.
    ticks = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, idle


def _stat() -> str:
    return Path("/proc/stat").read_text(encoding="ascii")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _pins(requirements: str) -> dict[str, str]:
    """Of the server's own environment."""
    lines = [line.split()[0] for line in requirements.splitlines() if "==" in line.split("#")[0]]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
