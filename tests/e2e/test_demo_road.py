"""The first road: export the demo, evaluate it, without torch; the same from timm on photos."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from photos import PHOTOS
from tiny_models import write_tiny_repository

from mkf.demo import card

BIN = Path(sys.executable).parent


def run(*command: object, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    program, *arguments = map(str, command)
    return subprocess.run(
        [str(BIN / program), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the path, makes torch and timm as good as not installed."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in ("torch", "timm", "torchvision", "safetensors"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    return folder


def test_the_demo_is_exported_and_evaluated_without_torch(tmp_path: Path, no_torch: Path) -> None:
    exported = run("mkf", "export", "--source", "demo", cwd=tmp_path, path=no_torch)
    assert exported.returncode == 0, exported.stderr
    evaluated = run("mkf-eval", "--limit", 1500, "--json", cwd=tmp_path, path=no_torch)
    assert evaluated.returncode == 0, evaluated.stderr
    results = json.loads(evaluated.stdout)

    for role in ("baseline", "idealized"):
        low, high = results["models"][role]["top1_interval"]
        # 1,500 of the card's 10,000 images: far from the whole, near enough to catch a wrong pixel.
        assert low - 0.02 < card()[role]["test_top1"] < high + 0.02
        assert results["latency"][role]["p90_ms"] > 0
        assert results["latency"][role]["p99_ms"] is None  # 188 requests do not carry it
    assert results["dataset"] | {"images": 1500, "limited": True} == results["dataset"]
    assert any("subset" in warning for warning in results["warnings"])

    folder = tmp_path / "results" / results["run"]["id"]
    samples = pq.read_table(folder / "samples.parquet")
    assert samples.num_rows == 2 * 1500
    report = (folder / "report.html").read_text()
    figures = re.findall(r"data:image/svg\+xml;base64,[\w+/=]+", report)
    assert len(figures) > 8  # each of the 8 keys, learned beside idealized, and more
    assert "Top-1 of every rung" in report  # the demo brings its ladder along
    for figure in figures:
        report = report.replace(figure, "")
    assert "://" not in report.replace("http://www.w3.org", "")  # nothing from outside


def test_models_of_two_exports_are_compared_with_a_warning(tmp_path: Path) -> None:
    repository = write_tiny_repository(tmp_path / "model_repository")
    manifest = repository / "convnext_idealized" / "1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"baseline_sha256": "0"}))
    evaluated = run("mkf-eval", "--limit", 16, "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    warnings = json.loads(evaluated.stdout)["warnings"]
    assert any("was not exported beside convnext_baseline" in warning for warning in warnings)


def test_without_torch_a_timm_source_says_what_to_install(tmp_path: Path, no_torch: Path) -> None:
    result = run("mkf", "export", "--source", "timm:convnextv2_atto", cwd=tmp_path, path=no_torch)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "pip install 'mkf[train]'" in result.stderr


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no ImageNet photos in {PHOTOS}")
def test_photos_go_through_an_untrained_network_of_timms(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
    source = "timm:convnextv2_atto"
    exported = run("mkf", "export", "--source", source, "--random-weights", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "random" in exported.stdout
    dataset = f"labels:{PHOTOS / 'dataset.txt'}"
    command = ["mkf-eval", "--dataset", dataset, "--limit", 32, "--json"]
    evaluated = run(*command, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    results = json.loads(evaluated.stdout)
    assert results["dataset"]["available"] == 1300
    for role in ("baseline", "idealized"):
        assert results["models"][role]["random_weights"] is True
        assert results["models"][role]["classes"] == 1000
    assert any("random" in warning for warning in results["warnings"])
