"""`mkf ladder` and `mkf idealize --calibrate`, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from depthwise_networks import classifier, write_images
from onnx import numpy_helper

pytest.importorskip("onnxruntime", reason="install mkf[serve]")

IMAGES = 60


def mkf(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "from mkf.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    onnx.save(classifier(pads=[2, 2, 2, 2]), path)
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), IMAGES)


def test_the_ladder(network: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "ladder"
    arguments = ("ladder", f"onnx:{network}", "--dataset", f"labels:{labels}", "--images", 20)
    first = mkf(*arguments, "--crop-fraction", 1, "--out", out, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found == json.loads((out / "ladder.json").read_text())
    assert (found["images"], found["limited"], found["filters"]) == (40, True, 12)
    assert found["calibration"] == {"dataset": f"labels:{labels}", "images": 20}
    assert found["learned_numbers_per_filter"] == (25 + 9) / 2
    rungs = found["rungs"]
    assert len(rungs) == 24
    assert (out / "ladder.svg").read_bytes().startswith(b"<?xml")
    names = [rung["name"] for rung in rungs]
    assert names[0] == "1 key"
    assert names[10] == "4 keys, per filter"
    assert names[-1] == "8 keys, per filter, calibrated"
    numbers = [rung["numbers_per_filter"] for rung in rungs[:12]]
    assert numbers == pytest.approx(
        [2, 3, 5, 9, 2 + 16 / 6, 3 + 16 / 6, 5 + 16 / 6, 4, 7, 10, 13, 25]
    )
    for rung in rungs:
        right = round(40 * rung["top1"])
        learned = round(40 * found["baseline"]["top1"])
        assert rung["only_idealized"] - rung["only_baseline"] == right - learned
        assert rung["top1_interval"][0] <= rung["top1"] <= rung["top1_interval"][1]
        low, high = rung["difference_interval_pp"]
        assert low <= rung["difference_pp"] <= high
    kept = {rung["name"]: rung["kept"] for rung in rungs}
    assert kept["1 key"] < kept["2 keys"] < kept["4 keys"] < kept["8 keys"]
    assert kept["1 key"] < kept["1 key, per layer"] < kept["1 key, per filter"]

    # An interrupted call: half of the rungs are there, the last of them cut short.
    records = out / "rungs.jsonl"
    lines = [line for line in records.read_text().splitlines() if line]
    assert len(lines) == 25
    records.write_text("\n".join(lines[:9]) + "\n" + lines[9][:50])
    again = mkf(*arguments, "--crop-fraction", 1, "--out", out)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "ladder.json").read_text()) == found
    assert records.read_text().startswith("\n".join(lines[:9]))
    assert "learned filters" in again.stdout
    assert "subset" in again.stdout


def test_idealize_with_calibration(network: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = mkf(
        *("idealize", network, "--out", out, "--terms", 2, "--scales", "per-filter"),
        *("--calibrate", f"labels:{labels}", "--images", 40, "--crop-fraction", 1, "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [layer["name"] for layer in found["layers"]] == ["first", "second"]
    assert all(0 < layer["missed"] < 0.5 for layer in found["layers"])
    assert sum(found["keys"].values()) == 2 * found["filters"]
    before, after = onnx.load(network), onnx.load(out)
    for tensor, changed in zip(before.graph.initializer, after.graph.initializer, strict=True):
        same = np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(changed))
        assert same == (tensor.name == "head")
    assert list(after.graph.node) == list(before.graph.node)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--calibrate", "labels:none.txt"), 1, "none.txt is not there"),
        (("--calibrate", "nothing"), 1, "no dataset of this version"),
        (("--terms", "9"), 2, "less than or equal to 8"),
        (("--mean", "0", "0", "0"), 2, "go with --calibrate"),
        (("--images", "10"), 2, "go with --calibrate"),
        (("--scales", "per-filter", "--keys", "none.csv"), 1, "need no keys"),
    ],
)
def test_wrong_use_of_idealize(
    network: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = mkf("idealize", network, "--out", tmp_path / "out.onnx", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_all_images_into_the_calibration(network: Path, labels: Path, tmp_path: Path) -> None:
    done = mkf(
        *("ladder", f"onnx:{network}", "--dataset", f"labels:{labels}", "--images", IMAGES),
        *("--out", tmp_path / "ladder"),
    )
    assert done.returncode == 1
    assert "all of which would go into the calibration" in done.stderr


def test_too_few_images_to_calibrate(network: Path, labels: Path, tmp_path: Path) -> None:
    done = mkf("idealize", network, "--out", tmp_path / "o.onnx", "--calibrate", f"labels:{labels}")
    assert done.returncode == 1
    assert "has 60 images, fewer than the 256" in done.stderr


def test_a_calibration_never_overwrites_the_networks_own_data(labels: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "network.onnx", tmp_path / "network.data"
    onnx.save(
        classifier(pads=[2, 2, 2, 2]),
        path,
        save_as_external_data=True,
        location=data.name,
        size_threshold=0,
    )
    before = data.read_bytes()
    arguments = ("--calibrate", f"labels:{labels}", "--images", 20)
    refused = mkf("idealize", path, "--out", data, *arguments)
    assert refused.returncode == 1
    assert "holds weights of the network" in refused.stderr
    assert data.read_bytes() == before
    done = mkf("idealize", path, "--out", tmp_path / "out.onnx", *arguments)
    assert done.returncode == 0, done.stderr
    assert data.read_bytes() == before


def test_the_same_images_under_two_names_do_not_count(
    network: Path, labels: Path, tmp_path: Path
) -> None:
    again = labels.parent / ".." / labels.parent.name / labels.name
    done = mkf(
        *("ladder", network, "--dataset", f"labels:{labels}", "--calibrate", f"labels:{again}"),
        *("--images", 20, "--crop-fraction", 1, "--out", tmp_path / "ladder", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == IMAGES - 20
