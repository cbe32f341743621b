"""The embedded default: a small ConvNeXt V2 on Fashion-MNIST, its idealized sibling, its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkf.repository import Preprocessing, Provenance

DIRECTORY = Path(__file__).parent
DEMO_BASELINE = DIRECTORY / "baseline.onnx"
DEMO_IDEALIZED = DIRECTORY / "idealized.onnx"
CARD = DIRECTORY / "card.json"
DEMO_LADDER = DIRECTORY / "ladder.json"  # of `mkf ladder demo --dataset fashion-mnist`
INPUT_SIZE = 32  # pixels
# Mean and standard deviation of Fashion-MNIST's 60,000 training images scaled to [0, 1].
MEAN = 0.2860
STD = 0.3530
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def demo_preprocessing() -> Preprocessing:
    """Fashion-MNIST's 28x28 pixels go to 32x32, nothing is cropped."""
    return Preprocessing(
        input_size=(INPUT_SIZE, INPUT_SIZE),
        crop_fraction=1.0,
        interpolation="bicubic",
        mean=(MEAN, MEAN, MEAN),
        std=(STD, STD, STD),
    )


def demo_provenance() -> Provenance:
    """Where the committed networks come from, with the baseline's own measured top-1."""
    return Provenance(
        source="demo",
        license="Apache-2.0",
        labels=CLASSES,
        expected_top1=100 * card()["baseline"]["test_top1"],
    )


def card() -> dict[str, Any]:
    """The figures of the model card: recipe, and test top-1 (0 to 1) of both networks."""
    figures: dict[str, Any] = json.loads(CARD.read_text(encoding="utf-8"))
    return figures
