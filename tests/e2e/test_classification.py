"""`mkf-classify` as a process against a running service."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mkf.v1 import classification_pb2_grpc
from services.classification.service import NAME, ClassificationServicer
from services.inference.repository import BASELINE, IDEALIZED
from services.inference.urls import open_engine
from services.runtime.server import Registration, running_server
from services.runtime.settings import load_settings

RUN = "from services.cli import classify_main; classify_main()"


@pytest.fixture
async def address(repository: Path) -> AsyncIterator[str]:
    settings = load_settings()
    engine, models = await open_engine(f"embedded:{repository}")
    servicer = ClassificationServicer(engine, models, settings)
    registration = Registration(
        NAME,
        lambda server: classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
            servicer, server
        ),
    )
    async with running_server(
        [registration], host="127.0.0.1", port=0, settings=settings
    ) as server:
        yield server.address
    await servicer.close()
    await engine.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "[bold]b.png"):
        coarse = rng.integers(256, size=(3, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 50)).save(tmp_path / name)
    (tmp_path / "text.jpg").write_text("this is no image")
    return tmp_path


async def classify(
    folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs beside the event loop, where the service is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MKF_")}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RUN, *arguments],
        cwd=folder,
        env=kept | {"COLUMNS": "100"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_a_table_shows_the_best_classes(address: str, folder: Path) -> None:
    result = await classify(folder, "a.jpg", "[bold]b.png", "--address", address, "--top", "3")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"a.jpg: {BASELINE}" in result.stdout
    assert f"[bold]b.png: {BASELINE}" in result.stdout
    assert result.stdout.count("%") == 6


async def test_json_is_one_object(address: str, folder: Path) -> None:
    result = await classify(
        folder, "a.jpg", "--address", address, "--json", "--model", IDEALIZED, "--top", "10"
    )
    assert result.returncode == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    (image,) = content["results"]
    assert (image["image"], image["model"]) == ("a.jpg", IDEALIZED)
    assert {prediction["class_index"] for prediction in image["predictions"]} == set(range(10))
    assert sum(prediction["probability"] for prediction in image["predictions"]) == pytest.approx(
        1, abs=1e-4
    )
    assert set(image["timings"]) == {
        "decode_seconds",
        "queue_seconds",
        "inference_seconds",
        "total_seconds",
    }


async def test_images_that_fail_leave_the_others_results(address: str, folder: Path) -> None:
    images = ["missing.jpg", "a.jpg", "text.jpg", "."]
    result = await classify(folder, *images, "--address", address, "--json")
    assert result.returncode == 1
    results = json.loads(result.stdout)["results"]
    assert [("error" in entry) for entry in results] == [True, False, True, True]
    assert results[2]["error"]["code"] == "INVALID_ARGUMENT"
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert "missing.jpg: No such file" in lines[0]
    assert "text.jpg: the bytes are no JPEG" in lines[1]
    assert "directory" in lines[2]


async def test_an_unknown_model_and_too_many_classes_are_clear(address: str, folder: Path) -> None:
    for arguments, words in ((["--model", "resnet"], BASELINE), (["--top", "11"], "10 classes")):
        result = await classify(folder, "a.jpg", "--address", address, *arguments)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert words in line


async def test_without_a_service_one_line_says_where_and_what_to_do(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = str(place.getsockname()[1])
    for arguments, variables in (
        (["--address", f"127.0.0.1:{port}"], {}),
        ([], {"MKF_CLASSIFICATION_PORT": port}),
    ):
        result = await classify(folder, "a.jpg", *arguments, **variables)
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert f"127.0.0.1:{port}" in line
        assert "make serve" in line


async def test_wrong_use_is_status_2(folder: Path) -> None:
    for arguments in ([], ["a.jpg", "--top", "0"], ["a.jpg", "--no-such-flag"]):
        assert (await classify(folder, *arguments)).returncode == 2
