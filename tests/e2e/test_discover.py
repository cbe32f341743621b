"""`mkf discover` from networks to the files that other commands read (extra `train`)."""

from __future__ import annotations

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
import typer
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner, Result

from mkf.commands.discover import discover
from mkf.commands.fit import fit
from mkf.errors import InputError, MkfError
from mkf.keys import load_keys

pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")

app = typer.Typer()
for command in (discover, fit):
    app.command()(command)

# What `mkf` runs, with this command alone: a subprocess that can be killed.
PROGRAM = """
import typer
from mkf.commands.discover import discover
from mkf.errors import MkfError
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(discover)
try:
    app()
except MkfError as error:
    raise SystemExit(f"mkf: {error}")
"""
FEW_STEPS = ("--restarts", "2", "--steps", "500")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    result = run("discover", *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def network(path: Path, *weights: np.ndarray) -> Path:
    """An ONNX file of depthwise convolutions, one after another."""
    nodes = [
        helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"dw{i}", group=len(w))
        for i, w in enumerate(weights)
    ]
    channels = len(weights[0])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "h", "w"])
        for name in ("x0", f"x{len(weights)}")
    ]
    tensors = [
        numpy_helper.from_array(w[:, None].astype(np.float32), f"w{i}")
        for i, w in enumerate(weights)
    ]
    graph = helper.make_graph(nodes, "depthwise", ends[:1], ends[1:], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of 250 filters a f + b of the published keys, with noise; constant ones; 3x3."""
    rng = np.random.default_rng(0)
    keys = load_keys()
    keys = keys / np.linalg.norm(keys, axis=(1, 2), keepdims=True)
    layers = []
    for _ in range(4):
        filters = keys[rng.integers(8, size=250)] + rng.normal(size=(250, 7, 7)) * 0.2 / 7
        a = rng.lognormal(size=(250, 1, 1)) * rng.choice([-1, 1], size=(250, 1, 1))
        layers.append(a * filters + rng.normal(size=(250, 1, 1)))
    layers[1][:3] = 0.25
    small = rng.normal(size=(250, 3, 3))
    return network(tmp_path_factory.mktemp("synthetic") / "network.onnx", *layers, small)


def cosines(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """|cosine| of each key with the other of its number, both of zero mean."""
    rows = [k.reshape(len(k), -1) for k in (keys, others)]
    rows = [r - r.mean(axis=1, keepdims=True) for r in rows]
    rows = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    return np.asarray(np.abs(np.sum(rows[0] * rows[1], axis=1)))


@pytest.mark.parametrize("by", [("autoencoder", *FEW_STEPS), ("clustering",)])
def test_the_8_published_keys_come_back_as_keys_1_to_8(
    synthetic: Path, tmp_path: Path, by: tuple[str, ...]
) -> None:
    out = tmp_path / "keys.csv"
    found = answer(synthetic, "--out", out, "--by", *by)
    assert cosines(load_keys(out), load_keys()).min() >= 0.99
    assert json.loads(out.with_suffix(".json").read_text()) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.csv", "keys.json"]

    assert (found["size"], found["filters"], found["count"]) == (7, 997, 8)
    assert (found["by"], found["seed"], found["sources"]) == (by[0], 0, [f"onnx:{synthetic}"])
    assert found["left_out"] == {"constant": 3, "sizes": {"3": 250}, "layers": []}
    assert [key["key"] for key in found["keys"]] == list(range(1, 9))
    assert sum(key["filters"] for key in found["keys"]) == 997
    for key in found["keys"]:
        assert key["share"] == pytest.approx(1 / 8, abs=0.05)
        assert key["kept"] == pytest.approx(1 / (1 + 0.2**2), abs=0.01)
        assert key["own_well"]
        # Published keys 7 and 8 are alike, and a noisy one may fit the other's operator better.
        assert key["operator_key"] == key["key"] or {key["operator_key"], key["key"]} == {7, 8}
    np.testing.assert_array_equal([key["kernel"] for key in found["keys"]], load_keys(out))
    assert found["kept"] == pytest.approx(1 / (1 + 0.2**2), abs=0.005)
    costs = [entry["cost"] for entry in found["costs"]]
    assert [entry["count"] for entry in found["costs"]] == list(range(1, 51))
    assert costs[7] == pytest.approx(1 - found["kept"], abs=0.01)
    assert costs[6] > 1.2 * costs[7]

    fitted = run("fit", "--method", "B", "--keys", out, "--json")
    published = run("fit", "--method", "B", "--json")
    for one, other in zip(
        json.loads(fitted.stdout)["keys"], json.loads(published.stdout)["keys"], strict=True
    ):
        assert one["sigma_x"] == pytest.approx(other["sigma_x"], abs=0.05)


def test_auto_stops_at_the_elbow_and_numbers_by_share(synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "keys.csv"
    found = answer(synthetic, "--out", out, "--count", "auto", *FEW_STEPS)
    assert found["count"] == found["elbow"] == 8
    four = answer(synthetic, "--out", out, "--count", 4, "--no-refine", *FEW_STEPS)
    shares = [key["share"] for key in four["keys"]]
    assert shares == sorted(shares, reverse=True)
    assert [key["own_cosine"] for key in four["keys"]] == [None] * 4
    assert load_keys(out, count=None).shape == (4, 7, 7)
    assert four["costs"] == found["costs"]
    assert 1 - four["kept"] == pytest.approx(four["costs"][3]["cost"])


def test_a_killed_call_goes_on_where_it_was(synthetic: Path, tmp_path: Path) -> None:
    arguments = [str(synthetic), "--restarts", "1", "--steps", "600", "--out"]
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen([*command, cut], env=environment, stderr=subprocess.DEVNULL)
    state = tmp_path / ".cut.csv.work" / "autoencoder.pt"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cut.exists()

    other = run("discover", *arguments, cut, "--seed", 1)
    assert isinstance(other.exception, MkfError)
    assert "made by a call with other networks or options; remove" in str(other.exception)
    assert run("discover", *arguments, cut).exit_code == 0
    assert not state.parent.exists()
    assert run("discover", *arguments, whole).exit_code == 0
    assert cut.read_text() == whole.read_text()


def test_a_networks_own_accuracy_decides(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="install the extra serve: pip install 'mkf[serve]'")
    arguments = ["demo", "--calibration", "fashion-mnist", "--images", 32, "--candidates", 5]
    arguments += ["--shortlist", 2, "--count", 3, "--steps", 50, "--work", tmp_path / "work"]
    found = answer(*arguments, "--out", tmp_path / "keys.csv")
    assert found["cost"] == "top1_error"
    assert [entry["count"] for entry in found["costs"]] == list(range(1, 6))
    assert all(entry["cost"] * 32 == round(entry["cost"] * 32) for entry in found["costs"])
    assert (found["top1"]["dataset"], found["top1"]["images"]) == ("fashion-mnist", 32)
    assert found["top1"]["learned"] > 0.8 > found["top1"]["keys"]
    measured = (tmp_path / "work" / "top1.jsonl").read_text().splitlines()
    assert len(measured) == 1 + 1 + 2 * 4  # a heading, all 5, and 2 tried at each of 4 drops
    assert answer(*arguments, "--out", tmp_path / "again.csv") == found


def test_a_table_says_what_was_found_and_left_out(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "keys.csv"
    result = run("discover", synthetic, "--out", out, "--size", 3, "--by", "clustering")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    assert "8 keys of 250 3x3 filters" in shown
    assert "none fits well" in shown
    assert "well: fits of this file are of little worth there, and may fail." in shown
    assert "Left out: 1,000 of 7x7." in shown


def test_several_networks_go_together(synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "keys.csv"
    found = answer("timm:convnextv2_atto", "demo", "--random-weights", "--seed", 3, "--out", out,
                   "--restarts", 1, "--steps", 20, "--count", 2)  # fmt: skip
    assert found["sources"] == ["timm:convnextv2_atto", "demo"]
    assert found["filters"] == 504 + 2 * 40 + 2 * 80 + 6 * 160 + 2 * 320


@pytest.mark.parametrize(
    "options",
    [
        ["--count", "many"],
        ["--count", "0"],
        ["--count", "9", "--candidates", "8"],
        ["--by", "guessing"],
        ["--by", "clustering", "--calibration", "fashion-mnist"],
        ["demo-idealized", "--calibration", "fashion-mnist"],
        ["--images", "512"],
        ["--shortlist", "5"],
        ["--input-size", "28", "28"],
        ["--crop-fraction", "0.9"],
        ["--mean", "0", "0", "0"],
        ["--std", "1", "1", "1"],
        ["--by", "clustering", "--candidates", "50"],
        ["--by", "clustering", "--restarts", "4"],
        ["--by", "clustering", "--steps", "2000"],
        ["--by", "clustering", "--work", "work"],
        ["--calibration", "fashion-mnist", "--images", "50001"],
        ["--out", "keys.json"],
        ["--out", "no-such-folder/keys.csv"],
    ],
)
def test_wrong_use(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("discover", "demo", "--out", "keys.csv", *options).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_another_json_is_not_replaced(synthetic: Path, tmp_path: Path) -> None:
    out, beside = tmp_path / "results.csv", tmp_path / "results.json"
    for content in ('{"keys": 3}', "[]", "no JSON"):
        beside.write_text(content)
        result = run("discover", synthetic, "--by", "clustering", "--out", out)
        assert isinstance(result.exception, InputError)
        assert "results.json is there, and not a file that `mkf discover` wrote" in str(
            result.exception
        )
        assert beside.read_text() == content
        assert list(tmp_path.iterdir()) == [beside]


def test_too_few_filters(tmp_path: Path) -> None:
    few = network(tmp_path / "few.onnx", np.random.default_rng(0).normal(size=(3, 5, 5)))
    result = run("discover", few, "--out", tmp_path / "keys.csv")
    assert isinstance(result.exception, InputError)
    assert "there are 3 usable filters of 5x5, and 8 keys are wanted" in str(result.exception)


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not installed')\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "demo", "--out", str(tmp_path / "keys.csv")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'mkf[train]', or use --by clustering" in done.stderr
