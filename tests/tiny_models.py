"""Two tiny, real models: what the tests serve where the demo's would be too slow or too good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mkf.repository import (
    BASELINE,
    IDEALIZED,
    OPSET,
    Idealization,
    Model,
    Preprocessing,
    Provenance,
    write_models,
)

CLASSES = 10
SIZE = (32, 32)


def tiny_graph(
    seed: int, *, size: tuple[int, int] = SIZE, classes: int = CLASSES
) -> onnx.ModelProto:
    """Images -> mean color of each quarter of the image -> a linear layer; sees color and place."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(12, classes)).astype(np.float32) * 4
    half = [size[0] // 2, size[1] // 2]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["scaled"]),
        helper.make_node("AveragePool", ["scaled"], ["pooled"], kernel_shape=half, strides=half),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def write_tiny_repository(directory: Path, *, size: tuple[int, int] = SIZE) -> Path:
    """A repository whose two models agree on most images, not on all."""
    preprocessing = Preprocessing(
        input_size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_fraction=1.0
    )
    provenance = Provenance(
        source="tests", license="Apache-2.0", labels=[f"class {n}" for n in range(CLASSES)]
    )
    identity = np.eye(7).tolist()
    idealization = Idealization(
        fit={
            "method": "B",
            "scales": "separate",
            "boundary": "symmetric",
            "keys": [
                {"key": key, "sigma_x": 0.6, "sigma_y": 0.6, "gamma": 0.5 if key == 7 else None}
                for key in range(1, 9)
            ],
        },
        kernels=[identity] * 8,
        learned_keys=[identity] * 8,
        layers=[{"name": "conv", "channels": 8, "kept": 0.9, "keys": {"1": 8}}],
        trained=False,
    )
    graph = tiny_graph(1, size=size)
    weight = numpy_helper.to_array(graph.graph.initializer[1])
    noise = np.random.default_rng(2).normal(size=weight.shape).astype(np.float32)
    graph.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight + 0.3 * noise, "weight"))
    shared: dict[str, Any] = {"preprocessing": preprocessing, "provenance": provenance}
    models = [
        Model(name=BASELINE, graph=tiny_graph(1, size=size), **shared),
        Model(name=IDEALIZED, graph=graph, idealization=idealization, **shared),
    ]
    write_models(directory, models, threads=1)
    return directory
