"""Contract 2: the committed API is what proto/ generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_generated_code_is_in_step_with_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="install the extra dev: pip install 'mkf[dev]'")
    protos = sorted((ROOT / "proto" / "mkf" / "v1").glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs]
    subprocess.run([*command, *map(str, protos)], check=True)
    generated = {p.name: p.read_text() for p in (tmp_path / "mkf" / "v1").iterdir()}
    committed = {
        p.name: p.read_text()
        for p in (ROOT / "mkf" / "v1").iterdir()
        if p.suffix in {".py", ".pyi"} and p.name != "__init__.py"
    }
    assert committed == generated, "run `make proto` and commit what it writes"
