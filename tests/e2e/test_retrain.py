"""`mkf retrain` as a user has it: to a served pair, in several processes, and interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mkf.repository import BASELINE, IDEALIZED

torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")

from mkf.demo import DIRECTORY  # noqa: E402  (these need torch)
from mkf.networks.zoo import import_timm  # noqa: E402
from mkf.training.start import build, find_origin  # noqa: E402

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
DEMO = ("--start-from", "demo", "--assigned-by", "demo", "--device", "cpu", "--workers", "0")
SHORT = ("--preset", "small", "--epochs", "2", "--warmup-epochs", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images to train with, 19 to validate: two processes cannot share them evenly."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in range(10):
            (folder / split / f"class{label}").mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(256, size=(32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{index}.png")
    (folder / "val" / "class9" / "1.png").unlink()
    return folder


def run(*command: object) -> subprocess.CompletedProcess[str]:
    program, *arguments = map(str, command)
    return subprocess.run(
        [str(BIN / program), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_from_images_to_a_served_pair(tmp_path: Path, images: Path) -> None:
    out, repository = tmp_path / "run", tmp_path / "repository"
    batch = ("--batch-size", 8, "--json")
    trained = run("mkf", "retrain", *DEMO, *SHORT, *batch, "--data", images, "--out", out)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads(trained.stdout)
    exported = run(
        "mkf",
        "export",
        *("--source", f"checkpoint:{DIRECTORY / 'baseline.safetensors'}"),
        *("--retrained", f"checkpoint:{out / 'model.safetensors'}"),
        *("--architecture", "demo", "--repository", repository, "--json"),
    )
    assert exported.returncode == 0, exported.stderr
    models = {model["name"]: model for model in json.loads(exported.stdout)["models"]}
    assert models[IDEALIZED]["kept"] == pytest.approx(summary["kept"], abs=1e-6)
    manifest = json.loads((repository / IDEALIZED / "1" / "manifest.json").read_text())
    assert manifest["trained"] is True
    assert (repository / BASELINE / "1" / "model.onnx").is_file()


def accuracy(weights: Path, images: Path) -> float:
    """Top-1 of the validation images, each resized by itself as an evaluation does."""
    origin = find_origin(f"checkpoint:{weights}")
    network = build(origin)[0].eval()
    import_timm()
    from timm.data import create_transform

    known = origin.preprocessing
    transform: Any = create_transform(32, crop_pct=1.0, mean=known.mean, std=known.std)
    files = sorted((images / "val").glob("*/*.png"))
    with torch.inference_mode():
        inputs = torch.stack([transform(Image.open(file)) for file in files])
        found = network(inputs).argmax(1).tolist()
    right = [f"class{label}" == file.parent.name for label, file in zip(found, files, strict=True)]
    return sum(right) / len(right)


def test_two_processes_train_one_network(tmp_path: Path, images: Path) -> None:
    batch = ("--batch-size", 4, "--accumulate", 2, "--filters", "learned-scales", "--json")
    command = ("--no-python", BIN / "mkf", "retrain", *DEMO, *SHORT, *batch)
    trained = run(
        *("torchrun", "--standalone", "--nproc-per-node", 2, *command),
        *("--data", images, "--out", tmp_path),
    )
    assert trained.returncode == 0, trained.stderr
    summary = json.loads(trained.stdout)  # one process writes
    assert summary["settings"]["processes"] == 2
    assert summary["effective_batch"] == 16
    assert summary["updates"] == 2 * (20 // 4 // 2)
    for name, file in (("last", "last.safetensors"), ("ema", "model.safetensors")):
        assert summary[name]["top1"] == accuracy(tmp_path / file, images)  # none counted twice
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, images: Path) -> None:
    command = ("retrain", *DEMO, "--batch-size", 8, "--data", images, "--out", tmp_path)
    process = subprocess.Popen(
        [str(BIN / "mkf"), *map(str, command)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"]
    assert f"mkf: interrupted; {saved} of 300 epochs are saved" in errors
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
