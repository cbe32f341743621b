"""The Triton server that a run starts where none is named."""

from __future__ import annotations

import importlib.metadata

from benchmarks.processes import PREFIX


def runtime_version() -> str:
    """ONNX Runtime's version in the environment of such a server."""
    folders = [str(folder) for folder in PREFIX.glob("venv/lib/python3*/site-packages")]
    found = importlib.metadata.distributions(name="onnxruntime", path=folders)
    return next((package.version for package in found), "not known")
