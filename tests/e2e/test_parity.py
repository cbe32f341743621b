"""`python -m benchmarks.parity` on a real Triton and a real service, and on ones that differ."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from triton_server import TritonServer, triton_prefix

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.parity.bytes_sent import bytes_sent  # noqa: E402  (needs ROOT)
from benchmarks.parity.images import load_images  # noqa: E402
from benchmarks.parity.recorder import running_recorder  # noqa: E402
from benchmarks.parity.same_model import run_same_model  # noqa: E402
from mkf.repository import BASELINE, IDEALIZED  # noqa: E402
from services.inference.repository import load_models  # noqa: E402
from services.inference.triton import TritonEngine  # noqa: E402

MODELS = {BASELINE, IDEALIZED}


def parity(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.parity", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def perturb(graph: Path) -> None:
    """Change one of the tiny graph's weights by about a thousandth of the largest."""
    model = onnx.load(graph)
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[5, 3] += 0.01
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, graph)


def test_all_hops_agree_on_a_server_of_the_runs_own(repository: Path, tmp_path: Path) -> None:
    triton_prefix()
    out = tmp_path / "results" / "parity.json"
    done = parity(
        *("--repository", repository, "--limit", 20, "--noise", 20, "--out", out, "--json"),
        *("--same-model-images", 160),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    assert found["passed"]
    assert found["breaches"] == []
    assert found["images"] == {"dataset": "fashion-mnist", "of_dataset": 20, "noise": 20}

    compared = found["comparisons"]
    pairs = {(one["hop"], one["against"]) for one in compared}
    assert pairs >= {
        ("embedded", "onnxruntime"),
        ("triton", "onnxruntime"),
        ("triton, at once", "triton"),
        ("triton, /dev/shm", "triton"),
        ("classification", "triton"),
        ("classification", "onnxruntime"),
    }
    assert {one["model"] for one in compared} == MODELS
    assert {one["batch_size"] for one in compared if one["hop"] == "triton"} == {1, 2, 8, 32}
    assert all(one["agreeing"] == one["images"] == 40 for one in compared)
    assert set(found["not_run"]) == {f"torch, {model}" for model in MODELS}  # made without torch

    hops = [sent["hop"] for sent in found["bytes_sent"]]
    assert hops == ["triton", "triton, at once", "classification"]
    for sent in found["bytes_sent"]:
        assert set(sent["sha256"]) == MODELS
        assert set(sent["sha256"].values()) == {sent["expected_sha256"]}
    assert found["bytes_sent"][2]["requests"] == dict.fromkeys(MODELS, 40 + 20 + 5 + 2)
    for batched in found["batched"].values():
        assert batched["images"] == 3 * 40
    for cache in found["caches"]:
        assert cache["after"]["cache_hits"] == 0
        assert cache["after"]["executions"] == cache["before"]["executions"] + 2

    itself = found["same_model"]
    assert (itself["images"], itself["discordant"], itself["other_predictions"]) == (160, 0, 0)
    assert (itself["difference_pp"], itself["mcnemar_p"]) == (0, 1)
    assert itself["requests"] == [20, 20]
    assert itself["latency_ratio"]["p50"] is None or itself["latency_ratio"]["p50"] > 0
    assert itself["latency_ratio"]["mean"] > 0
    assert "tritonserver" in found["environment"]["versions"]


def test_a_server_with_one_other_weight_is_found(repository: Path, tmp_path: Path) -> None:
    served = shutil.copytree(repository, tmp_path / "served")
    perturb(served / IDEALIZED / "1" / "model.onnx")  # its configuration names the old graph
    with TritonServer(served) as server:
        done = parity(
            *("--repository", repository, "--engine", f"triton:{server.address}"),
            *("--limit", 16, "--noise", 16, "--same-model-images", 0, "--without", "torch"),
        )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("parity: ")]
    assert lines
    assert all(line.startswith(f"parity: {IDEALIZED}: ") for line in lines)
    for hop in ("triton", "triton, at once", "classification"):
        assert any(f"{hop} against onnxruntime at batch 8: a lo" in line for line in lines)
    assert "Every hop" not in done.stdout
    assert "Not run: one model beside itself: left out." in done.stdout


def test_other_bytes_for_one_model_are_found(repository: Path) -> None:
    models = load_models(repository)
    images = load_images("fashion-mnist", models[BASELINE], limit=4, noise=0)
    other = images.pixels.copy()
    other[3, 31, 31, 2] ^= 1

    async def send(address: str) -> list[str]:
        async with running_recorder(address) as recorder:
            engine = await TritonEngine.open(recorder.address, models)
            try:
                lines = []
                for pixels in (images.pixels, other):
                    await engine.infer(BASELINE, images.pixels, timeout_seconds=30)
                    await engine.infer(IDEALIZED, pixels, timeout_seconds=30)
                    sent = bytes_sent("triton", recorder.take(), models, images, [4])
                    lines.append(sent.breaches())
            finally:
                await engine.close()
        assert lines[0] == []
        return lines[1]

    with TritonServer(repository) as server:
        lines = asyncio.run(send(server.address))
    assert len(lines) == 2
    assert lines[0].startswith(f"{IDEALIZED}: at triton, the bytes")


def test_a_model_that_is_not_itself_is_found(repository: Path) -> None:
    @contextmanager
    def serve_another(copies: Path) -> Iterator[str]:
        graph = copies / f"{BASELINE}_again" / "1" / "model.onnx"
        original = load_models(repository)[IDEALIZED]
        shutil.copyfile(original.graph, graph)
        manifest = graph.with_name("manifest.json")
        record = json.loads(manifest.read_text())
        record["graph_sha256"] = original.manifest.graph_sha256
        manifest.write_text(json.dumps(record))
        yield f"embedded:{copies}"

    found = run_same_model(
        load_models(repository)[BASELINE], serve_another, dataset="fashion-mnist", images=400
    )
    assert found.other_predictions > 0
    assert any("another class for" in line for line in found.breaches())


def test_a_server_that_is_not_there_is_told_in_one_line(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = parity(
        *("--repository", repository, "--engine", f"triton:127.0.0.1:{port}"),
        *("--without", "torch", "--limit", 16, "--noise", 16),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("parity: no Triton server answers at 127.0.0.1:")


def test_images_that_do_not_fill_the_largest_batch_are_too_few(repository: Path) -> None:
    done = parity("--repository", repository, "--limit", 30, "--noise", 1)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("parity: 31 images do not fill the largest batch, 32; ")


@pytest.mark.parametrize(
    "arguments",
    [("--engine", "embedded:models"), ("--engine", "triton:a:1", "--without", "triton")],
)
def test_wrong_use_is_told(repository: Path, arguments: tuple[str, ...]) -> None:
    done = parity("--repository", repository, *arguments)
    assert done.returncode == 2
    assert "--engine" in done.stderr
