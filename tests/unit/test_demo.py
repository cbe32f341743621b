"""The committed demo networks are what their card says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from mkf.assignment import assign
from mkf.demo import (
    DEMO_BASELINE,
    DEMO_IDEALIZED,
    DIRECTORY,
    card,
    demo_preprocessing,
    fashion_mnist,
)
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys
from mkf.networks import onnx_graph, tensor_storage
from services.inference.repository import Preprocessing
from services.preprocessing import preprocess

GRAPHS = {"baseline": DEMO_BASELINE, "idealized": DEMO_IDEALIZED}


@pytest.fixture(scope="module")
def test_set() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 10,000 images as the services make them, (n, 32, 32, 3), and their labels."""
    images, labels = fashion_mnist.load("test")
    preprocessing = Preprocessing(**asdict(demo_preprocessing()))
    pixels = [preprocess(Image.fromarray(image).convert("RGB"), preprocessing) for image in images]
    return np.stack(pixels), labels


@pytest.mark.parametrize("name", GRAPHS)
def test_the_accuracy_is_the_cards(name: str, test_set: Any) -> None:
    pixels, labels = test_set
    preprocessing = demo_preprocessing()
    normalized = (pixels / 255 - preprocessing.mean) / preprocessing.std
    session = onnxruntime.InferenceSession(GRAPHS[name])
    logits = session.run(None, {"input": normalized.transpose(0, 3, 1, 2).astype(np.float32)})[0]
    top1 = np.mean(logits.argmax(1) == labels)
    # torch measured the card's figure; a tie in the last digit may fall the other way.
    assert abs(top1 - card()[name]["test_top1"]) <= 2 / len(labels)


def test_the_baseline_reaches_92_percent() -> None:
    assert card()["baseline"]["test_top1"] >= 0.92


def test_the_idealized_filters_are_multiples_of_the_keys_and_a_constant() -> None:
    kernels = idealized_kernels(fit_keys(load_keys(), method=card()["method"]), size=7)
    filters = {
        name: [
            tensor_storage.read(layer.weight.tensor, None)[:, 0]
            for layer in onnx_graph.depthwise_convolutions(onnx_graph.load(path))
            if layer.weight.tensor is not None
        ]
        for name, path in GRAPHS.items()
    }
    assert len(filters["baseline"]) == sum(card()["depths"])
    for learned, idealized in zip(filters["baseline"], filters["idealized"], strict=True):
        np.testing.assert_allclose(assign(learned, kernels).idealized(), idealized, atol=1e-6)


def test_the_graphs_hold_weights_and_no_paths() -> None:
    for path in GRAPHS.values():
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert b".py" not in content
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_log_tells_the_whole_run(name: str) -> None:
    lines = (DIRECTORY / "logs" / f"{name}.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [line["epoch"] for line in log] == list(range(1, card()["recipe"]["epochs"] + 1))
    assert log[-1]["test_top1"] == card()[name]["test_top1"]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_weights_are_the_graphs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
    from safetensors.torch import load_file

    from mkf.demo.architecture import create_network

    path = DIRECTORY / f"{name}.safetensors"
    assert path.stat().st_size < 4_000_000
    network = create_network().eval()
    network.load_state_dict(load_file(path))
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(GRAPHS[name])
    np.testing.assert_allclose(session.run(None, {"input": images})[0], expected, atol=1e-4)


def test_the_recipe_is_the_cards() -> None:
    pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
    from mkf.demo.architecture import DEPTHS, DIMS
    from mkf.demo.build import RECIPE

    assert card()["recipe"] == asdict(RECIPE)
    assert (card()["dims"], card()["depths"]) == (list(DIMS), list(DEPTHS))


def test_the_page_is_written_from_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
    from mkf.demo.build import RECIPE
    from mkf.demo.model_card import write_card

    write_card(card() | {"recipe": RECIPE}, tmp_path)
    for name in ("README.md", "card.json"):
        assert (tmp_path / name).read_text() == (DIRECTORY / name).read_text()
