"""Small ONNX classifiers with depthwise convolutions, and folders of images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE = 16
CLASSES = 5


def classifier(
    *,
    kernel: int = 5,
    multiplier: int = 2,
    bias: bool = True,
    normalized: bool = False,
    seed: int = 0,
    **convolution: Any,
) -> onnx.ModelProto:
    """Images (n, 3, 16, 16) -> two depthwise layers -> scores (n, 5).

    The first layer's attributes are `convolution`; `normalized` puts a batch normalization behind
    it.
    """
    rng = np.random.default_rng(seed)
    width = 3 * multiplier
    stored = {
        "w1": rng.normal(size=(width, 1, kernel, kernel)) / kernel,
        "b1": rng.normal(size=width),
        "w2": rng.normal(size=(width, 1, 3, 3)) / 3,
        "b2": rng.normal(size=width),
        "scale": rng.uniform(0.5, 2, width),
        "shift": rng.normal(size=width),
        "mean": rng.normal(size=width),
        "variance": rng.uniform(0.5, 2, width),
        "head": rng.normal(size=(width, CLASSES)),
    }
    nodes = [
        helper.make_node(
            "Conv",
            ["input", "w1", *(["b1"] if bias else [])],
            ["first"],
            name="first",
            group=3,
            **convolution,
        )
    ]
    behind = "first"
    if normalized:
        statistics = ["scale", "shift", "mean", "variance"]
        nodes.append(helper.make_node("BatchNormalization", ["first", *statistics], ["normal"]))
        behind = "normal"
    nodes += [
        helper.make_node("Relu", [behind], ["active"]),
        helper.make_node(
            "Conv", ["active", "w2", "b2"], ["second"], name="second", group=width, pads=[1] * 4
        ),
        helper.make_node("Relu", ["second"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["scores"]),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in stored.items()
            if name in used
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_images(folder: Path, count: int, *, seed: int = 0) -> Path:
    """A label file of `count` smooth random images; returns it."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        small = rng.integers(256, size=(6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIZE, SIZE)).save(folder / f"{number}.png")
        lines.append(f"{number}.png {rng.integers(CLASSES)}\n")
    labels = folder / "labels.txt"
    labels.write_text("".join(lines), encoding="utf-8")
    return labels
