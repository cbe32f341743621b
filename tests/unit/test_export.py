"""`mkf export`: both models, checked against their source, or an error and no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from depthwise_networks import classifier, write_images
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from mkf.cli import app
from mkf.errors import ExportError, GraphError, InputError
from mkf.export import CalibrationImages, export
from mkf.idealization import Choice
from mkf.networks import onnx_graph
from mkf.networks.sources import Options, load_source
from mkf.repository import BASELINE, IDEALIZED
from services.inference.repository import load_models


def depthwise_network(*, seed: int = 0, fixed_reshape: bool = False) -> onnx.ModelProto:
    """A 7x7 depthwise layer, a global mean and a linear layer: 3 x 16 x 16 -> 4 classes."""
    rng = np.random.default_rng(seed)
    target = [1, 6] if fixed_reshape else [-1, 6]
    nodes = [
        helper.make_node(
            "Conv", ["input", "filters"], ["features"], name="dw", group=3, pads=[3, 3, 3, 3]
        ),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
        helper.make_node("Reshape", ["mean", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "depthwise",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(rng.normal(size=(6, 1, 7, 7)).astype(np.float32), "filters"),
            numpy_helper.from_array(rng.normal(size=(6, 4)).astype(np.float32), "weight"),
            numpy_helper.from_array(np.array(target), "target"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(depthwise_network(), path)
    return path


def filters_of(path: Path) -> np.ndarray:
    (tensor,) = (t for t in onnx.load(path).graph.initializer if t.name == "filters")
    return numpy_helper.to_array(tensor)


def test_an_onnx_file_becomes_both_models(tmp_path: Path, network: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    arguments = ["--source", f"onnx:{network}", "--repository", str(tmp_path / "repository")]
    arguments += ["--labels", str(labels), "--license", "MIT", "--method", "D", "--json"]
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [model["name"] for model in report["models"]] == [BASELINE, IDEALIZED]
    for model in report["models"]:
        assert set(model["largest_difference"]) == {"1", "2", "32"}
        assert max(model["largest_difference"].values()) < 1e-4

    baseline, idealized = (tmp_path / "repository" / name / "1" for name in (BASELINE, IDEALIZED))
    manifest = json.loads((idealized / "manifest.json").read_text())
    assert manifest["fit"]["method"] == "D"
    assert manifest["license"] == "MIT"
    assert manifest["trained"] is False
    assert np.shape(manifest["kernels"]) == np.shape(manifest["learned_keys"]) == (8, 7, 7)
    # The baseline has the source's filters; each idealized one is a kernel times a plus b.
    (layer,) = manifest["layers"]
    assert sum(layer["keys"].values()) == 6
    assert 0 < layer["kept"] < 1
    np.testing.assert_array_equal(filters_of(baseline / "model.onnx"), filters_of(network))
    kernels = np.asarray(manifest["kernels"]).reshape(8, 49)
    for weights in filters_of(idealized / "model.onnx").reshape(6, 49):
        residuals = [
            np.linalg.lstsq(np.stack([kernel, np.ones(49)], 1), weights, rcond=None)[1]
            for kernel in kernels
        ]
        assert min(float(residual[0]) for residual in residuals) < 1e-10


def test_the_graphs_differ_in_the_filters_alone(tmp_path: Path, network: Path) -> None:
    export(load_source(f"onnx:{network}", Options()), tmp_path, choice=Choice())
    models = [onnx.load(tmp_path / name / "1" / "model.onnx") for name in (BASELINE, IDEALIZED)]
    for tensors in zip(*(model.graph.initializer for model in models), strict=True):
        assert (tensors[0] == tensors[1]) is (tensors[0].name != "filters")
        tensors[1].CopyFrom(tensors[0])
    assert models[0] == models[1]


def test_a_graph_with_a_fixed_batch_inside_is_refused(tmp_path: Path) -> None:
    onnx.save(depthwise_network(fixed_reshape=True), tmp_path / "fixed.onnx")
    source = load_source(f"onnx:{tmp_path / 'fixed.onnx'}", Options())
    with pytest.raises((ExportError, GraphError), match=r"batch|shapes"):
        export(source, tmp_path / "repository", choice=Choice())
    assert not (tmp_path / "repository").exists()


def test_a_graph_that_differs_from_its_source_is_refused(tmp_path: Path, network: Path) -> None:
    source = load_source(f"onnx:{network}", Options())
    wrong = type(source)(
        source.model, lambda x: source.reference(x) + 0.1, source.preprocessing, source.provenance
    )
    with pytest.raises(ExportError, match=r"differs from its source by 0\.1 at batch 1"):
        export(wrong, tmp_path / "repository", choice=Choice())
    assert not (tmp_path / "repository").exists()


def test_a_sibling_must_hold_the_baselines_idealized_filters(tmp_path: Path, network: Path) -> None:
    source = load_source(f"onnx:{network}", Options())
    onnx.save(depthwise_network(seed=1), tmp_path / "other.onnx")
    other = load_source(f"onnx:{tmp_path / 'other.onnx'}", Options())
    with pytest.raises(ExportError, match="not the baseline's idealized ones"):
        export(source, tmp_path / "repository", choice=Choice(), retrained=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "two.txt"], "has 2 lines, the network 4 classes"),
        (["--input-size", "8", "8"], "takes 16x16 pixels, not 8x8"),
        (["--keys", "two.txt"], "two.txt"),
        (["--std", "0.2", "0", "0.2"], "standard deviations above 0"),
        (["--std", "inf", "1", "1"], "finite numbers"),
        (["--mean", "nan", "0", "0"], "finite numbers"),
    ],
)
def test_wrong_options_leave_nothing_behind(
    tmp_path: Path,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.txt").write_text("a\nb\n")
    command = ["export", "--source", f"onnx:{network}", "--repository", "repository", *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert not Path("repository").exists()


def test_the_demo_needs_no_option_and_no_torch(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "--repository", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.exception
    manifest = json.loads((tmp_path / IDEALIZED / "1" / "manifest.json").read_text())
    assert manifest["trained"] is True
    assert len(manifest["layers"]) == 6
    session = onnxruntime.InferenceSession(tmp_path / BASELINE / "1" / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 32, 32, 3]
    loaded = onnx_graph.load(tmp_path / BASELINE / "1" / "model.onnx")
    assert len(onnx_graph.depthwise_convolutions(loaded)) == 6


def test_the_demo_with_another_fit_is_substituted(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "--repository", str(tmp_path), "--method", "A"])
    assert result.exit_code == 0, result.exception
    manifest = json.loads((tmp_path / IDEALIZED / "1" / "manifest.json").read_text())
    assert manifest["trained"] is False
    assert manifest["fit"]["method"] == "A"


def test_a_network_without_depthwise_convolutions_is_named(tmp_path: Path, network: Path) -> None:
    model = onnx.load(network)
    (model.graph.node[0].attribute[0].i, weight) = (1, np.zeros((6, 3, 7, 7), np.float32))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "filters"))
    onnx.save(model, tmp_path / "dense.onnx")
    source = load_source(f"onnx:{tmp_path / 'dense.onnx'}", Options())
    with pytest.raises(GraphError, match=r"dense\.onnx: holds no depthwise convolutions"):
        export(source, tmp_path / "repository", choice=Choice())


def test_a_calibrated_export_says_on_what(tmp_path: Path) -> None:
    network, images = tmp_path / "network.onnx", tmp_path / "images"
    images.mkdir()
    onnx.save(classifier(pads=[2, 2, 2, 2]), network)
    uri = f"labels:{write_images(images, 40)}"
    source = load_source(f"onnx:{network}", Options(crop_fraction=1.0))
    choice = Choice(scales="per-filter", terms=2)
    plain, calibrated = tmp_path / "plain", tmp_path / "calibrated"
    export(source, plain, choice=choice)
    export(source, calibrated, choice=choice, calibration=CalibrationImages(uri, 32))
    served = load_models(calibrated)
    fit = served["convnext_idealized"].manifest.fit
    assert fit is not None
    assert (fit.scales, fit.terms) == ("per-filter", 2)
    assert fit.calibration is not None
    assert (fit.calibration.dataset, fit.calibration.images) == (uri, 32)
    other = load_models(plain)["convnext_idealized"].manifest
    assert other.fit is not None
    assert other.fit.calibration is None
    assert other.graph_sha256 != served["convnext_idealized"].manifest.graph_sha256
    with pytest.raises(InputError, match="leave the calibration away"):
        export(
            source,
            calibrated,
            choice=choice,
            retrained=source,
            calibration=CalibrationImages(uri, 32),
        )
