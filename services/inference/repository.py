"""Reads Contract 1: all that a service must know of a model stands in the model repository."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from google.protobuf import text_format
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.errors import NotFoundError, RepositoryError, one_line

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
BASELINE = "convnext_baseline"
IDEALIZED = "convnext_idealized"
FIGURES_BYTES = 4 * 1024 * 1024  # of all figures of a model together

Words = Annotated[str, Field(max_length=10_000)]


class Preprocessing(BaseModel):
    """How image files become pixels, in the terms of timm's transform (preprocessing.json)."""

    model_config = ConfigDict(frozen=True)

    input_size: tuple[int, int]  # height, width in pixels
    crop_fraction: float = Field(gt=0, le=1)  # timm's crop_pct
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest", "box", "hamming"]
    crop_mode: Literal["center", "squash", "border"]
    color_mode: Literal["RGB"]
    mean: tuple[float, float, float]  # of pixels scaled to [0, 1]; for the record, the graph has it
    std: tuple[float, float, float]


class LayerKept(BaseModel):
    """What one depthwise layer kept when its filters were idealized."""

    model_config = ConfigDict(frozen=True)

    name: str
    channels: int
    kept: float  # share of the filters' variance, 0 to 1
    keys: dict[str, int]  # filters assigned to each key


class KeyScales(BaseModel):
    """The fitted scales of one key, in pixels."""

    model_config = ConfigDict(frozen=True)

    key: int
    sigma_x: float
    sigma_y: float
    gamma: float | None


class CalibrationImages(BaseModel):
    """The images on whose activations an idealized model was refitted, without their labels."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    images: int


class Fit(BaseModel):
    """How the idealized kernels were fitted to the learned keys."""

    model_config = ConfigDict(frozen=True)

    method: Literal["A", "B", "C", "D"]
    scales: Literal["separate", "isotropic", "shared", "per-layer", "per-filter"]
    boundary: Literal["symmetric", "exact"]
    terms: int = 1  # keys a filter
    calibration: CalibrationImages | None = None
    keys: list[KeyScales]  # of free scales: where their search began


class FigureInfo(BaseModel):
    """A picture in 1/figures, and what a page says of it."""

    model_config = ConfigDict(frozen=True)

    file: str = Field(pattern=r"\A[a-z0-9][a-z0-9-]{0,63}\.svg\z")
    section: Words  # the heading that it stands under
    title: Words
    caption: Words
    alt: Words  # for those who do not see it
    width: int = Field(ge=1, le=4096)  # at its natural size, CSS pixels


class Manifest(BaseModel):
    """Where a model comes from (1/manifest.json); fields that are not named here are ignored."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1]
    name: str
    role: Literal["baseline", "idealized"]
    graph_sha256: str
    baseline_sha256: str  # of the graph that the model was exported beside; a baseline's own
    source: str
    license: str
    random_weights: bool
    opset: int
    versions: dict[str, str]
    expected_top1: float | None  # percent
    class_ids: list[str] | None  # synset ids in the order of the logits
    # The idealized model's alone:
    fit: Fit | None
    kernels: list[list[list[float]]] | None  # the 8 idealized kernels
    learned_keys: list[list[list[float]]] | None  # the 8 keys they were fitted to
    layers: list[LayerKept] | None
    figures: tuple[FigureInfo, ...] = Field(default=(), max_length=64)


@dataclass(frozen=True)
class Figure:
    """A picture of the model's keys or filters, drawn when it was exported."""

    info: FigureInfo
    svg: bytes  # of unknown hands: for an image element, never for the page itself


@dataclass(frozen=True)
class ServedModel:
    """One model of the repository, without its weights."""

    name: str
    graph: Path
    config: ModelConfig
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    manifest: Manifest
    figures: tuple[Figure, ...] = ()


def load_models(repository: Path) -> dict[str, ServedModel]:
    """Every model of the repository, by name, each checked against its manifest's hash.

    Raises
    ------
    RepositoryError
        The folder is missing or empty, or a file of a model is missing, unreadable, or does not
        belong to the others.
    """
    if not repository.is_dir():
        raise RepositoryError(
            f"the model repository {repository} is not there; make one with: "
            f"mkf export --source demo --repository {repository}"
        )
    folders = sorted(
        path for path in repository.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not folders:
        raise RepositoryError(
            f"the model repository {repository} holds no model; fill it with: "
            f"mkf export --source demo --repository {repository}"
        )
    return {folder.name: _load_model(folder) for folder in folders}


def find_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """The model of that name.

    Raises
    ------
    NotFoundError
        No such model; the message lists those that are served.
    """
    try:
        return models[name]
    except KeyError:
        raise NotFoundError(f"no model {name!r}; served are {', '.join(models)}") from None


def _load_model(folder: Path) -> ServedModel:
    graph = folder / "1" / "model.onnx"
    try:
        config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
        labels = tuple((folder / "labels.txt").read_text(encoding="utf-8").splitlines())
        preprocessing = Preprocessing.model_validate_json(
            (folder / "preprocessing.json").read_bytes()
        )
        manifest = Manifest.model_validate_json((folder / "1" / "manifest.json").read_bytes())
        with graph.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        figures = _read_figures(folder / "1" / "figures", manifest)
    except (OSError, UnicodeDecodeError, ValidationError, text_format.ParseError) as error:
        raise RepositoryError(f"{folder}: {one_line(error)}; export the model again") from error
    if digest != manifest.graph_sha256:
        raise RepositoryError(
            f"{graph} is not the graph that its manifest describes; export the model again"
        )
    if config.name != folder.name:
        raise RepositoryError(
            f"{folder / 'config.pbtxt'} describes {config.name!r}, not {folder.name!r}; "
            "export the model again"
        )
    outputs = {tensor.name: list(tensor.dims) for tensor in config.output}
    if outputs != {OUTPUT_NAME: [len(labels)]}:
        raise RepositoryError(
            f"{folder}: {len(labels)} labels do not go with the outputs {outputs}; "
            "export the model again"
        )
    inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
    if inputs != {INPUT_NAME: [*preprocessing.input_size, 3]}:
        raise RepositoryError(
            f"{folder}: images of {preprocessing.input_size} pixels do not go with the inputs "
            f"{inputs}; export the model again"
        )
    return ServedModel(folder.name, graph, config, labels, preprocessing, manifest, figures)


def _read_figures(folder: Path, manifest: Manifest) -> tuple[Figure, ...]:
    """Read at once, so that a report shows the figures of the graph that it is about."""
    figures, left, version = [], FIGURES_BYTES, folder.parent.resolve()
    for info in manifest.figures:
        path = folder / info.file
        if not path.resolve().is_relative_to(version):
            raise RepositoryError(f"{path} lies elsewhere; export the model again")
        with path.open("rb") as file:
            svg = file.read(left + 1)
        left -= len(svg)
        if left < 0:
            raise RepositoryError(
                f"{folder} holds more than {FIGURES_BYTES >> 20} MiB; export the model again"
            )
        figures.append(Figure(info, svg))
    return tuple(figures)
