"""Writes Contract 1: one model of a Triton model repository, in one move."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from mkf.errors import ExportError, MissingExtraError

BASELINE = "convnext_baseline"
IDEALIZED = "convnext_idealized"
LARGEST_BATCH = 32
MANIFEST_SCHEMA_VERSION = 1
OPSET = 20


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How image files become a model's pixels, in the terms of timm's evaluation transform."""

    input_size: tuple[int, int]  # height, width in pixels
    mean: tuple[float, float, float]  # of pixels scaled to [0, 1]
    std: tuple[float, float, float]
    crop_fraction: float = 0.875  # timm's crop_pct
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    color_mode: str = "RGB"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is the same for the baseline and the idealized model of one export."""

    source: str  # as given to `mkf export`
    license: str  # of the weights
    labels: Sequence[str]
    class_ids: Sequence[str] | None = None  # synset ids in the order of the labels
    expected_top1: float | None = None  # percent, where a source states one for the baseline
    random_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class Idealization:
    """What the idealized model's manifest says beyond its baseline's."""

    fit: dict[str, Any]  # method, scales, boundary, keys: [{key, sigma_x, sigma_y, gamma}]
    kernels: list[list[list[float]]]  # 8 x 7 x 7, unit norm
    learned_keys: list[list[list[float]]]  # 8 x 7 x 7
    layers: list[dict[str, Any]]  # name, channels, kept, keys
    trained: bool  # whether the other weights were trained around the idealized filters


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of the keys or the filters, and what a page says of it."""

    name: str  # lower-case letters, digits, hyphens; of its file 1/figures/<name>.svg
    section: str  # the heading that it stands under
    title: str
    caption: str
    alt: str  # for those who do not see it
    width: int  # at its natural size, CSS pixels
    svg: bytes


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model to write."""

    name: str
    graph: onnx.ModelProto  # images UINT8 (N, H, W, 3) -> logits FP32 (N, classes)
    preprocessing: Preprocessing
    provenance: Provenance
    idealization: Idealization | None = None  # None for the baseline
    figures: Sequence[Figure] = ()


def write_models(repository: Path, models: Sequence[Model], *, threads: int = 0) -> None:
    """Write `<repository>/<name>/` for each model; older models of these names are replaced.

    All files are written to hidden folders first, which are then moved into place, so that an
    interrupted export leaves no half model. One that was killed leaves hidden folders, which the
    next one removes; so two exports at once into one repository are not possible.

    Parameters
    ----------
    threads
        ONNX Runtime's threads within an operator; 0 leaves the choice to the runtime.

    Raises
    ------
    ExportError
        A folder cannot be written.
    MissingExtraError
        tritonclient, whose message describes config.pbtxt, is not installed.
    """
    graphs = [model.graph.SerializeToString() for model in models]
    hashes = [hashlib.sha256(graph).hexdigest() for graph in graphs]
    baselines = [
        digest for model, digest in zip(models, hashes, strict=True) if not model.idealization
    ]
    places = {
        repository / f".{model.name}.{secrets.token_hex(4)}": repository / model.name
        for model in models
    }
    for model in models:  # what an export left that was killed: Triton would take it for a model
        for left in repository.glob(f".{model.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
    try:
        for folder, model, graph, digest in zip(places, models, graphs, hashes, strict=True):
            manifest = _manifest(model, digest, (baselines or [digest])[0])
            _write_files(folder, model, graph, manifest, threads)
        _move_in(places)
    except OSError as error:
        raise ExportError(f"the models cannot be written to {repository}: {error}") from error
    finally:
        for folder in places:
            shutil.rmtree(folder, ignore_errors=True)


def _write_files(
    folder: Path, model: Model, graph: bytes, manifest: dict[str, Any], threads: int
) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(graph)
    _write_json(folder / "1" / "manifest.json", manifest)
    for figure in model.figures:
        (folder / "1" / "figures").mkdir(exist_ok=True)
        (folder / "1" / "figures" / _figure_file(figure)).write_bytes(figure.svg)
    _write_json(folder / "preprocessing.json", asdict(model.preprocessing))
    labels = "".join(f"{label}\n" for label in model.provenance.labels)
    (folder / "labels.txt").write_text(labels, encoding="utf-8")
    config = _config(model, threads, manifest["graph_sha256"])
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def _manifest(model: Model, graph_sha256: str, baseline_sha256: str) -> dict[str, Any]:
    provenance = model.provenance
    baseline = model.idealization is None
    return {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        "name": model.name,
        "role": "baseline" if baseline else "idealized",
        "graph_sha256": graph_sha256,
        "baseline_sha256": baseline_sha256,  # of the graph that it was exported beside
        "source": provenance.source,
        "license": provenance.license,
        "random_weights": provenance.random_weights,
        "opset": OPSET,
        "versions": _versions(),
        "expected_top1": provenance.expected_top1 if baseline else None,
        "class_ids": None if provenance.class_ids is None else list(provenance.class_ids),
        "fit": None,
        "kernels": None,
        "learned_keys": None,
        "layers": None,
        "figures": [_figure_record(figure) for figure in model.figures],
    } | ({} if model.idealization is None else asdict(model.idealization))


def _figure_file(figure: Figure) -> str:
    return f"{figure.name}.svg"


def _figure_record(figure: Figure) -> dict[str, Any]:
    fields = {"file": _figure_file(figure)} | asdict(figure)
    return {name: value for name, value in fields.items() if name not in ("name", "svg")}


def _config(model: Model, threads: int, graph_sha256: str) -> str:
    """The model's config.pbtxt, in the terms of Triton's ModelConfig message.

    A server shows the parameters to its clients: by the hash they see which graph it serves.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as triton
    except ImportError as error:
        raise MissingExtraError(
            f"writing config.pbtxt needs tritonclient ({error}); "
            "install it with: pip install 'mkf[serve]'"
        ) from error
    input_size = model.preprocessing.input_size
    config = triton.ModelConfig(
        name=model.name,
        backend="onnxruntime",
        max_batch_size=LARGEST_BATCH,
        input=[
            triton.ModelInput(name="images", data_type=triton.TYPE_UINT8, dims=[*input_size, 3])
        ],
        output=[
            triton.ModelOutput(
                name="logits",
                data_type=triton.TYPE_FP32,
                dims=[len(model.provenance.labels)],
                label_filename="labels.txt",
            )
        ],
        instance_group=[
            triton.ModelInstanceGroup(kind=triton.ModelInstanceGroup.KIND_AUTO, count=1)
        ],
        # No default_queue_policy: with a bounded queue Triton prepares no batch while one runs, and
        # a request that comes meanwhile may wait until it looks again, 500 ms later. The price: one
        # whose client has gone may still be computed, with a batch that was made up before. What
        # waits is bounded by the services, for what they send.
        dynamic_batching=triton.ModelDynamicBatching(max_queue_delay_microseconds=500),
        model_warmup=[_warmup(size, input_size) for size in (1, LARGEST_BATCH)],
        parameters={
            "intra_op_thread_count": triton.ModelParameter(string_value=str(threads)),
            "inter_op_thread_count": triton.ModelParameter(string_value="1"),
            "graph_sha256": triton.ModelParameter(string_value=graph_sha256),
        },
    )
    return str(text_format.MessageToString(config))


def _warmup(batch_size: int, input_size: tuple[int, int]) -> Any:
    from tritonclient.grpc import model_config_pb2 as triton

    images = triton.ModelWarmup.Input(
        data_type=triton.TYPE_UINT8, dims=[*input_size, 3], zero_data=True
    )
    return triton.ModelWarmup(
        name=f"batch_{batch_size}", batch_size=batch_size, inputs={"images": images}
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("mkf", "numpy", "onnx", "onnxruntime", "torch", "timm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _move_in(places: Mapping[Path, Path]) -> None:
    """Move new folders to their places; cut short, all that stood there before comes back."""
    olds = {new: new.with_name(f"{new.name}.old") for new in places}
    try:
        for new, place in places.items():
            if place.exists():
                place.rename(olds[new])
            new.rename(place)
    except BaseException:  # a Ctrl-C must not leave one new model beside an old one
        for new, place in places.items():
            if not new.exists():
                shutil.rmtree(place, ignore_errors=True)
            if olds[new].exists():
                olds[new].rename(place)
        raise
    for old in olds.values():
        shutil.rmtree(old, ignore_errors=True)
