from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mkf.assignment import assign
from mkf.cli import main
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(shape[-1]).normal(size=shape).astype(np.float32)


def network(
    *arrays: NDArray[np.generic], shared: bool = False, computed: bool = False
) -> ModelProto:
    """A chain of depthwise convolutions of these weights."""
    nodes, stored = [], []
    for i, array in enumerate(arrays):
        name = "w0" if shared else f"w{i}"
        if computed:
            nodes.append(helper.make_node("Transpose", [f"t{i}"], [name], perm=[3, 2, 1, 0]))
            stored.append(numpy_helper.from_array(array.T.copy(), f"t{i}"))
        elif not shared or i == 0:
            stored.append(numpy_helper.from_array(array, name))
        group, strides = array.shape[0], [i + 1, i + 1]
        nodes.append(
            helper.make_node(
                "Conv", [f"x{i}", name], [f"x{i + 1}"], name=f"dw{i}", group=group, strides=strides
            )
        )
    if not arrays:
        nodes.append(helper.make_node("Relu", ["x0"], ["x1"]))
    channels = arrays[0].shape[0] if arrays else 3
    graph = helper.make_graph(
        nodes,
        "[bold]network",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", channels, 32, 32])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def save(model: ModelProto, folder: Path) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mkf", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_inspect_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(network(weights(4, 1, 7, 7), weights(4, 1, 2, 2)), tmp_path)
    assert run(monkeypatch, "inspect", path, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, second = json.loads(captured.out)["layers"]
    assert first == {
        "name": "dw0",
        "weight": "w0",
        "channels": 4,
        "filters": 4,
        "kernel_size": [7, 7],
        "stride": [1, 1],
        "dilation": [1, 1],
        "idealizable": True,
        "reason": None,
    }
    assert (second["stride"], second["idealizable"]) == ([2, 2], False)
    assert "2x2" in second["reason"]


def test_inspect_of_a_network_without_depthwise_convolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "inspect", save(network(), tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"layers": []}


def test_inspect_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    model = network(weights(4, 1, 7, 7), weights(4, 1, 2, 2))
    model.graph.node[0].name = "[red]dw"
    assert run(monkeypatch, "inspect", save(model, tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "2 depthwise convolutions" in shown
    assert "[red]dw" in shown
    assert "no: its kernel is 2x2" in shown


def test_idealize_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = [weights(4, 1, 7, 7), weights(4, 1, 3, 3)]
    out = tmp_path / "out.onnx"
    options = ["--method", "A", "--scales", "shared", "--boundary", "exact", "--json"]
    assert (
        run(monkeypatch, "idealize", save(network(*arrays), tmp_path), "--out", out, *options) == 0
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert (report["method"], report["scales"], report["boundary"]) == ("A", "shared", "exact")
    assert (report["filters"], report["skipped"], report["out"]) == (8, [], str(out))

    assert sum(report["keys"].values()) == 8
    least, most = sorted(layer["kept"] for layer in report["layers"])
    assert least <= report["kept"] <= most
    for key, count in report["keys"].items():
        assert (report["kept_by_key"][key] is None) == (count == 0)

    fits = fit_keys(load_keys(), method="A", scales="shared", boundary="exact")
    written = ModelProto.FromString(out.read_bytes()).graph.initializer
    for i, (array, layer, tensor) in enumerate(zip(arrays, report["layers"], written, strict=True)):
        kernels = idealized_kernels(fits, boundary="exact", size=array.shape[-1])
        found = assign(array[:, 0], kernels)
        assert (layer["name"], layer["channels"]) == (f"dw{i}", 4)
        assert layer["kept"] == pytest.approx(found.total_kept)
        assert layer["keys"] == {str(key): count for key, count in found.counts().items()}
        assert sum(layer["keys"].values()) == 4
        assert set(layer["kept_by_key"]) == set("12345678")
        np.testing.assert_allclose(
            numpy_helper.to_array(tensor)[:, 0], found.idealized(), rtol=1e-5, atol=1e-7
        )


def test_idealize_as_a_table_with_a_layer_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = save(network(weights(4, 1, 7, 7), weights(4, 1, 2, 2)), tmp_path)
    out = tmp_path / "out.onnx"
    assert run(monkeypatch, "idealize", path, "--out", out, "--skip-unsuitable") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 filters idealized by method B, separate scales" in shown
    assert "left as it is: dw1: its kernel is 2x2" in shown
    assert out.exists()


def not_a_number(model: ModelProto) -> ModelProto:
    broken = numpy_helper.to_array(model.graph.initializer[0]).copy()
    broken[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w0"))
    return model


SEVEN = weights(4, 1, 7, 7)
WHOLE = network(SEVEN).SerializeToString()
UNUSABLE = {
    "no depthwise": (network().SerializeToString(), "holds no depthwise convolutions"),
    "even": (network(weights(4, 1, 4, 4)).SerializeToString(), "'dw0': its kernel is 4x4"),
    "nan": (not_a_number(network(SEVEN)).SerializeToString(), "'w0' hold NaN"),
    "shared": (network(SEVEN, SEVEN, shared=True).SerializeToString(), "shared by dw0 and dw1"),
    "computed": (network(SEVEN, computed=True).SerializeToString(), "come from Transpose"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "not an ONNX file, or only a part of one"),
    "empty": (b"", "not an ONNX file"),
    "text": (b"# A network\n\nIts weights are elsewhere.\n", "not an ONNX file"),
    "compressed": (gzip.compress(WHOLE), "not an ONNX file"),
    "safetensors": (b"\x3a\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"}}', "not an ONNX file"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_files(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, message = UNUSABLE[kind]
    source, out = tmp_path / "network.onnx", tmp_path / "out.onnx"
    source.write_bytes(data)
    assert run(monkeypatch, "idealize", source, "--out", out, "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"mkf: {source}: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


@pytest.mark.parametrize("command", ["inspect", "idealize"])
def test_paths_that_lead_to_no_file(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--out", tmp_path / "out.onnx"] if command == "idealize" else []
    for path, message in ((tmp_path, "directory"), (tmp_path / "missing.onnx", "No such file")):
        assert run(monkeypatch, command, path, *options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert str(path) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [["--method", "E"], ["--scales", "all"], ["--boundary", "none"], ["--no-such"]]
)
def test_wrong_use(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = save(network(SEVEN), tmp_path), tmp_path / "out.onnx"
    assert run(monkeypatch, "idealize", path, "--out", out, *options) == 2
    assert not out.exists()


def test_idealize_needs_a_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "idealize", save(network(SEVEN), tmp_path)) == 2


def test_neither_torch_nor_a_runtime_is_imported(tmp_path: Path) -> None:
    path, out = save(network(SEVEN), tmp_path), tmp_path / "out.onnx"
    code = (
        "import sys\n"
        "from mkf.cli import app\n"
        f"for arguments in (['inspect', {str(path)!r}], "
        f"['idealize', {str(path)!r}, '--out', {str(out)!r}]):\n"
        "    app(arguments, standalone_mode=False)\n"
        "banned = {'torch', 'timm', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'imported {banned}' if banned else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
