"""`mkf-eval` as users run it: processes, files, signals, and a service of another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper
from photos import PHOTOS
from PIL import Image
from tiny_models import tiny_graph

from mkf.repository import (
    BASELINE,
    IDEALIZED,
    Model,
    Preprocessing,
    Provenance,
    write_models,
)
from services.evaluation.files import FILES
from services.evaluation.results import Results
from services.evaluation.store import Store
from services.inference.repository import load_models
from services.preprocessing import preprocess

EVAL = Path(sys.executable).with_name("mkf-eval")
SERVE = Path(sys.executable).with_name("mkf-serve")
PATIENCE_SECONDS = 120  # of the tests with other processes; nothing is timed


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(argument) for argument in (EVAL, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def evaluate(*arguments: object) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    return content


def failure(*arguments: object, status: int = 1) -> str:
    """What a command that fails says; with status 1 in one line."""
    done = run(*arguments, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if status == 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("mkf-eval: ")]
        assert len(lines) == 1
    return done.stderr


@contextmanager
def started(*command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def started_run(process: subprocess.Popen[str], results: Path) -> str:
    """The id of the process's run, once that has recorded a few images."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("run "), line + process.stderr.read()
    run_id = line.split()[1]
    store = Store(results)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while store.get(run_id).images_done < 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        store.close()
    return run_id


def test_files_and_json_of_a_run(repository: Path, tmp_path: Path) -> None:
    engine = f"embedded:{repository}"
    results = evaluate("--engine", engine, "--out", tmp_path, "--limit", 100)
    folder = tmp_path / results["run"]["id"]
    assert json.loads((folder / "results.json").read_text()) == results
    assert all((folder / name).stat().st_size for name in FILES)
    assert results["dataset"]["limited"]
    assert results["warnings"][0] == "subset: 100 of 10,000 images"
    assert results["environment"]["engine"] == engine
    assert pq.read_table(folder / "samples.parquet").num_rows == 200


def test_the_table(repository: Path, tmp_path: Path) -> None:
    done = run("--engine", f"embedded:{repository}", "--out", tmp_path, "--limit", 100)
    for words in ("100 of the 10,000 images", "! subset", "top-1", "McNemar p", "latency p50, ms"):
        assert words in done.stdout
    assert "run 2" in done.stderr


def test_the_same_images_give_the_same_figures_as_the_graphs_alone(
    repository: Path, tmp_path: Path
) -> None:
    """Image files of random colors: the service's answers against plain NumPy."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(60):
        pixels = rng.integers(256, size=(4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((48, 40), Image.Resampling.NEAREST)
        image.save(tmp_path / f"image {number}.png")
        lines.append(f"image {number}.png {rng.integers(10)}\n")
    (tmp_path / "labels.txt").write_text("".join(lines))
    labels = np.array([int(line.split()[-1]) for line in lines])
    results = evaluate(
        *("--engine", f"embedded:{repository}", "--out", tmp_path / "out"),
        *("--dataset", f"labels:{tmp_path / 'labels.txt'}", "--batch-size", 7),
    )
    table = pq.read_table(tmp_path / "out" / results["run"]["id"] / "samples.parquet").to_pylist()
    for name in (BASELINE, IDEALIZED):
        predicted = [
            _logits(repository, name, tmp_path / f"image {number}.png").argmax()
            for number in range(60)
        ]
        rows = [row for row in table if row["model"] == name]
        assert [row["predicted"] for row in rows] == predicted
        assert [row["sample_id"] for row in rows] == [f"image {n}.png" for n in range(60)]
        role = rows[0]["role"]
        assert results["models"][role]["top1"] == np.mean(np.array(predicted) == labels)


def _logits(repository: Path, name: str, path: Path) -> np.ndarray:
    """What the tiny graph computes: mean color of each quarter, then a linear layer."""
    model = load_models(repository)[name]
    with Image.open(path) as image:
        pixels = preprocess(image.convert("RGB"), model.preprocessing) / 255.0  # (32, 32, 3)
    pooled = pixels.reshape(2, 16, 2, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)  # (3, 2, 2)
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    weight = {item.name: numpy_helper.to_array(item) for item in graph.initializer}["weight"]
    logits: np.ndarray = pooled.reshape(-1) @ weight
    return logits


def test_a_killed_run_is_resumed_with_the_same_result(repository: Path, tmp_path: Path) -> None:
    common = ("--engine", f"embedded:{repository}", "--seed", 7)
    request = (*common, "--limit", 300, "--batch-size", 1)
    results = tmp_path / "results"
    with started(EVAL, *request, "--out", results) as process:
        run_id = started_run(process, results)
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = Store(results)
    interrupted = store.get(run_id)
    store.close()
    assert interrupted.state == "INTERRUPTED"
    assert 0 < interrupted.images_done < 300

    resumed = evaluate("--engine", f"embedded:{repository}", "--out", results, "--resume", run_id)
    whole = evaluate(*request, "--out", tmp_path / "whole")
    assert resumed["run"]["id"] == run_id
    assert (resumed["run"]["resumed"], resumed["run"]["seed"]) == (1, 7)
    for part in ("models", "paired", "dataset"):
        assert resumed[part] == whole[part]
    assert any("resumed" in warning for warning in resumed["warnings"])
    assert resumed["latency"]["baseline"]["requests"] == 300  # nothing twice, nothing lost
    assert _samples(results, run_id) == _samples(tmp_path / "whole", whole["run"]["id"])
    message = failure("--engine", common[1], "--out", results, "--resume", run_id)
    assert "complete" in message


def _samples(out: Path, run_id: str) -> list[dict[str, Any]]:
    rows = pq.read_table(out / run_id / "samples.parquet").to_pylist()
    return [{key: row[key] for key in row if key != "latency_ms"} for row in rows]


def test_ctrl_c_says_how_to_resume(repository: Path, tmp_path: Path) -> None:
    engine = f"embedded:{repository}"
    arguments = (*("--engine", engine), *("--out", tmp_path), *("--batch-size", 1))
    with started(EVAL, *arguments) as process:
        run_id = started_run(process, tmp_path)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert stdout == ""
    assert "Traceback" not in stderr
    assert f"mkf-eval --resume {run_id} --engine {engine} --out {tmp_path}" in stderr
    store = Store(tmp_path)
    assert store.get(run_id).state == "INTERRUPTED"
    store.close()


def test_a_service_of_another_process(repository: Path, tmp_path: Path) -> None:
    server, client = tmp_path / "server", tmp_path / "client"
    options = {
        "MKF_RESULTS_DIRECTORY": str(server),
        "MKF_EVALUATION_PORT": "0",
        "MKF_METRICS_PORT": "0",
    }
    command = (SERVE, "evaluation", "--engine", f"embedded:{repository}")
    with started(*command, env=os.environ | options) as service:
        assert service.stdout is not None
        address = service.stdout.readline().split()[-1]
        results = evaluate("--address", address, "--out", client, "--limit", 80)
        run_id = results["run"]["id"]
        for name in FILES:
            ours, theirs = client / run_id / name, server / run_id / name
            assert ours.read_bytes() == theirs.read_bytes()
        assert "it knows fashion-mnist" in failure("--address", address, "--dataset", "nonsense")
        service.terminate()
        assert service.wait(PATIENCE_SECONDS) == 0
    assert f"at {address}" in failure("--address", address, "--out", client)


def test_nobody_at_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else will
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in failure("--address", address)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--address", "127.0.0.1:1", "--engine", "embedded:x"),
        ("--models", "one"),
        ("--models", "one,two,three"),
        ("--models", "one,"),
        ("--limit", "-1"),
        ("--batch-size", "0"),
        ("--nonsense",),
    ],
)
def test_wrong_use(arguments: tuple[str, ...]) -> None:
    failure(*arguments, status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dataset", "nonsense:x"), "it knows fashion-mnist"),
        (("--dataset", "labels:none.txt"), "none.txt is not there"),
        (("--models", f"{BASELINE},other"), "no model 'other'"),
        (("--resume", "../../etc"), "no run id"),
        (("--batch-size", "1000"), "batch_size 1000"),
    ],
)
def test_failures_say_why(
    repository: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    engine = f"embedded:{repository}"
    assert words in failure("--engine", engine, "--out", tmp_path, *arguments)


def test_engines_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "unknown engine" in failure("--engine", "nonsense:x", "--out", tmp_path)
    engine = f"embedded:{tmp_path / 'none'}"
    assert "is not there" in failure("--engine", engine, "--out", tmp_path)


@pytest.fixture
def imagenet_repository(tmp_path: Path) -> Path:
    """Two models of 1,000 classes that take photos as ImageNet networks do; both guess."""
    shared: dict[str, Any] = {
        "preprocessing": Preprocessing(
            input_size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        "provenance": Provenance(
            source="tests",
            license="Apache-2.0",
            labels=[f"class {number}" for number in range(1000)],
            random_weights=True,
        ),
    }
    models = [
        Model(name=name, graph=tiny_graph(seed, size=(224, 224), classes=1000), **shared)
        for seed, name in enumerate((BASELINE, IDEALIZED))
    ]
    write_models(tmp_path / "repository", models, threads=1)
    return tmp_path / "repository"


@pytest.mark.skipif(
    not (PHOTOS / "dataset.txt").is_file(), reason=f"no ImageNet photos in {PHOTOS}"
)
def test_imagenet_photos(imagenet_repository: Path, tmp_path: Path) -> None:
    results = evaluate(
        *("--dataset", f"labels:{PHOTOS / 'dataset.txt'}", "--limit", 40),
        *("--engine", f"embedded:{imagenet_repository}", "--out", tmp_path),
    )
    checked = Results.model_validate(results)
    assert (checked.dataset.images, checked.dataset.available) == (40, 1300)
    assert checked.models.baseline.classes == 1000
    rows = pq.read_table(tmp_path / checked.run.id / "samples.parquet").to_pylist()
    assert len({row["sample_id"] for row in rows}) == 40
    assert all(0 <= row["rank"] < 1000 for row in rows)
    assert any("are random" in warning for warning in checked.warnings)
