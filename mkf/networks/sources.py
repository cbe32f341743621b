"""The networks that `mkf export` takes: demo, onnx:FILE, timm:NAME, checkpoint:FILE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.checker import ValidationError
from onnx.external_data_helper import load_external_data_for_model

from mkf.demo import DEMO_BASELINE, DEMO_IDEALIZED, demo_preprocessing, demo_provenance
from mkf.errors import GraphError, InputError, MissingExtraError, SourceError, one_line
from mkf.networks import onnx_graph
from mkf.networks.serving_graph import network_graph, without_softmax
from mkf.repository import Preprocessing, Provenance

if TYPE_CHECKING:
    from mkf.networks.zoo import LoadedNetwork

DEMO_SIBLING = "demo-idealized"
_DEMO_GRAPHS = {"demo": DEMO_BASELINE, DEMO_SIBLING: DEMO_IDEALIZED}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line can say about a source; None leaves it to the source."""

    architecture: str | None = None  # timm's name, for checkpoints
    random_weights: bool = False
    seed: int = 0  # of the random weights
    license: str | None = None
    input_size: tuple[int, int] | None = None  # height, width in pixels
    crop_fraction: float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: Path | None = None  # a text file, a label a line
    expected_top1: float | None = None  # percent


Reference = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Source:
    """A loaded network with all that the model repository says of it."""

    model: onnx.ModelProto  # takes normalized float32 images, gives class scores
    # The source's own answer: float32 network inputs (n, ...) -> float32 scores (n, classes).
    reference: Reference
    preprocessing: Preprocessing
    provenance: Provenance


def load_source(uri: str, options: Options) -> Source:
    """Load a network from `demo`, `demo-idealized`, `onnx:FILE`, `timm:NAME` or `checkpoint:FILE`.

    A path that ends in .onnx needs no scheme.

    Raises
    ------
    InputError
        The URI or an option cannot be used.
    SourceError
        The network's weights cannot be had.
    GraphError
        The network's graph cannot be served.
    MissingExtraError
        A timm or checkpoint source without torch and timm.
    """
    scheme, _, rest = uri.partition(":")
    if uri.endswith(".onnx") and scheme not in _LOADERS:
        scheme, rest = "onnx", uri
    if options.random_weights and scheme != "timm":
        raise InputError(f"--random-weights goes with timm:NAME, not with {uri}")
    if uri in _DEMO_GRAPHS:
        return _from_demo(uri, options)
    if rest and scheme in _LOADERS:
        return _LOADERS[scheme](rest, uri, options)
    raise InputError(f"unknown source {uri!r}; use demo, onnx:FILE, timm:NAME or checkpoint:FILE")


def _from_demo(uri: str, options: Options) -> Source:
    if options != Options():
        raise InputError(f"{uri} is complete as it is; leave the options of other sources away")
    model = onnx_graph.load(_DEMO_GRAPHS[uri])
    return Source(model, run_graph(model), demo_preprocessing(), demo_provenance())


def _from_onnx(path: str, uri: str, options: Options) -> Source:
    model = onnx_graph.load(Path(path))
    try:
        load_external_data_for_model(model, str(Path(path).parent))
    except (OSError, ValueError, ValidationError) as error:
        raise GraphError(f"{path}: its external data cannot be read: {error}") from error
    model = without_softmax(model)
    network = network_graph(model, options.input_size)
    preprocessing = _preprocessing(
        options,
        Preprocessing(input_size=network.input_size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )
    provenance = Provenance(
        source=uri,
        license=options.license or "not stated",
        labels=_labels(options, network.classes, None),
        expected_top1=options.expected_top1,
    )
    return Source(model, run_graph(model), preprocessing, provenance)


def _from_timm(name: str, uri: str, options: Options) -> Source:
    from mkf.networks import zoo

    if options.random_weights:
        return _from_torch(zoo.random_network(name, seed=options.seed), uri, options)
    return _from_torch(zoo.pretrained_network(name), uri, options)


def _from_checkpoint(path: str, uri: str, options: Options) -> Source:
    from mkf.networks.checkpoints import checkpoint_network

    loaded = checkpoint_network(Path(path), architecture=options.architecture)
    return _from_torch(loaded, uri, options)


_LOADERS: dict[str, Callable[[str, str, Options], Source]] = {
    "onnx": _from_onnx,
    "timm": _from_timm,
    "checkpoint": _from_checkpoint,
}


def _from_torch(loaded: LoadedNetwork, uri: str, options: Options) -> Source:
    import torch

    from mkf.networks.torch_module import to_onnx

    def reference(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: NDArray[np.float32] = loaded.module(torch.from_numpy(inputs)).numpy()
        return scores

    preprocessing = _preprocessing(options, loaded.preprocessing)
    provenance = Provenance(
        source=uri,
        license=options.license or loaded.license,
        labels=_labels(options, loaded.classes, loaded.labels),
        class_ids=loaded.class_ids,
        expected_top1=options.expected_top1 or loaded.expected_top1,
        random_weights=loaded.random_weights,
    )
    model = to_onnx(loaded.module, preprocessing.input_size)
    return Source(model, reference, preprocessing, provenance)


def run_graph(model: onnx.ModelProto) -> Reference:
    """A float network's own answer, by ONNX Runtime on the CPU; a fixed batch is fed in pieces."""
    session = open_session(model)
    images = session.get_inputs()[0]
    fixed = images.shape[0] if isinstance(images.shape[0], int) else None

    def reference(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = fixed or len(inputs)
        padded = np.resize(inputs, (-(-len(inputs) // batch) * batch, *inputs.shape[1:]))
        pieces = [
            session.run(None, {images.name: padded[start : start + batch]})[0]
            for start in range(0, len(padded), batch)
        ]
        return np.concatenate(pieces)[: len(inputs)]

    return reference


def open_session(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises
    ------
    MissingExtraError
        onnxruntime is not installed.
    SourceError
        ONNX Runtime cannot run the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "checking an export needs onnxruntime; install it with: pip install 'mkf[serve]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise SourceError(f"ONNX Runtime cannot run this graph: {one_line(error)}") from error


def _preprocessing(options: Options, default: Preprocessing) -> Preprocessing:
    given = {
        name: getattr(options, name)
        for name in ("input_size", "crop_fraction", "interpolation", "crop_mode", "mean", "std")
        if getattr(options, name) is not None
    }
    preprocessing = replace(default, **given)
    if not np.isfinite([*preprocessing.mean, *preprocessing.std]).all():
        raise InputError("--mean and --std take finite numbers")
    if min(preprocessing.std) <= 0:
        raise InputError(f"--std is {preprocessing.std}; give standard deviations above 0")
    return preprocessing


def _labels(options: Options, classes: int, default: list[str] | None) -> list[str]:
    if options.labels is None:
        return default or [f"class {index}" for index in range(classes)]
    try:
        labels = options.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labels {options.labels} cannot be read: {error}") from error
    if len(labels) != classes:
        raise InputError(
            f"{options.labels} has {len(labels)} lines, the network {classes} classes; "
            "give one label a line, in the order of the classes"
        )
    return labels
