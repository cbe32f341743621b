"""What the measurements run on: models of ImageNet's shape without weights, and photos."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc.model_config_pb2 import (
    TYPE_FP32,
    TYPE_UINT8,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
)

from services.inference.repository import (
    BASELINE,
    IDEALIZED,
    INPUT_NAME,
    OUTPUT_NAME,
    Manifest,
    Preprocessing,
    ServedModel,
    load_models,
)

SIZE, CLASSES, LARGEST_BATCH = 224, 1000, 32
PHOTO = (500, 375)  # width, height: ImageNet's most common
QUALITY = 95
GRAPH = b"no graph: the server answers without one"
GRAPH_SHA256 = hashlib.sha256(GRAPH).hexdigest()
PREPROCESSING = Preprocessing(
    input_size=(SIZE, SIZE),
    crop_fraction=0.875,
    interpolation="bicubic",
    crop_mode="center",
    color_mode="RGB",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def config(name: str) -> ModelConfig:
    """As Triton would show it."""
    return ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=LARGEST_BATCH,
        input=[ModelInput(name=INPUT_NAME, data_type=TYPE_UINT8, dims=[SIZE, SIZE, 3])],
        output=[ModelOutput(name=OUTPUT_NAME, data_type=TYPE_FP32, dims=[CLASSES])],
        parameters={"graph_sha256": ModelParameter(string_value=GRAPH_SHA256)},
    )


def write_repository(repository: Path) -> dict[str, ServedModel]:
    """Both models as the services read them; nothing could run them."""
    for name, role in ((BASELINE, "baseline"), (IDEALIZED, "idealized")):
        manifest = Manifest(
            schema_version=1,
            name=name,
            role=role,
            graph_sha256=GRAPH_SHA256,
            baseline_sha256=GRAPH_SHA256,
            source="benchmarks.growth",
            license="Apache-2.0",
            random_weights=True,
            opset=20,
            versions={},
            expected_top1=None,
            class_ids=None,
            fit=None,
            kernels=None,
            learned_keys=None,
            layers=None,
        )
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(GRAPH)
        (folder / "1" / "manifest.json").write_text(manifest.model_dump_json())
        (folder / "preprocessing.json").write_text(PREPROCESSING.model_dump_json())
        (folder / "labels.txt").write_text("".join(f"class {n}\n" for n in range(CLASSES)))
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config(name)))
    return load_models(repository)


def pixels(batch: int) -> NDArray[np.uint8]:
    """Noise, (batch, SIZE, SIZE, 3)."""
    return np.random.default_rng(0).integers(256, size=(batch, SIZE, SIZE, 3), dtype=np.uint8)


def photo(seed: int) -> bytes:
    """A JPEG of a common photo's size: noise of all scales, as photos have it."""
    rng = np.random.default_rng(seed)
    width, height = PHOTO
    image = np.full((height, width, 3), 128.0)
    for scale in (64, 32, 16, 8, 4, 2, 1):
        small = rng.normal(0, 0.45 * scale + 8, (height // scale + 1, width // scale + 1, 3))
        layer = Image.fromarray(np.clip(128 + small, 0, 255).astype(np.uint8))
        image += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) - 128
    file = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
