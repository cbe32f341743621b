"""From a source to the two served models: idealize, wrap, check, write."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mkf.accuracy import network_inputs, open_images_of
from mkf.calibration import calibrate
from mkf.errors import ExportError, GraphError, InputError, MissingExtraError, one_line
from mkf.idealization import Choice, fit, idealizer, kernels_by_size
from mkf.keys import load_keys
from mkf.ladder_results import Ladder
from mkf.networks import onnx_graph, tensor_storage
from mkf.networks.serving_graph import NetworkGraph, network_graph, serving_graph
from mkf.networks.sources import Reference, Source, open_session, run_graph
from mkf.repository import (
    BASELINE,
    IDEALIZED,
    LARGEST_BATCH,
    Figure,
    Idealization,
    Model,
    write_models,
)

CHECKED_BATCHES = (1, 2, LARGEST_BATCH)
# Largest difference of a score, relative to the largest score: float32 sums in another order stay
# below it, a wrong mean, channel order or weight does not.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """A model that was written, and how far it is from its source."""

    name: str
    folder: Path
    differences: dict[int, float]  # by batch size, the largest difference of a score
    kept: float | None  # share of all filters' variance; None for the baseline


@dataclass(frozen=True)
class CalibrationImages:
    """The images on which an idealized network is refitted."""

    dataset: str  # URI
    images: int  # its first ones


def export(
    source: Source,
    repository: Path,
    *,
    choice: Choice,
    retrained: Source | None = None,
    calibration: CalibrationImages | None = None,
    ladder: Ladder | None = None,
    threads: int = 0,
) -> list[Exported]:
    """Write `convnext_baseline` and `convnext_idealized` to a model repository.

    Parameters
    ----------
    source
        The baseline; its idealized version has every depthwise filter replaced by a f + b and
        nothing else changed [BKRG, LBK section 5, "substitute"].
    retrained
        A network of the same graph with those same filters, whose other weights were trained around
        them ("retrain"), to be written as the idealized model instead.
    calibration
        Images to whose activations the substituted filters are refitted, and with them the biases
        behind (`mkf.calibration`); not for a retrained network.
    ladder
        What `mkf ladder` found of the source, for the figures.

    Raises
    ------
    GraphError
        The network has no depthwise convolution that can be idealized, or cannot be served.
    InputError
        A network is to be both retrained and calibrated, or a dataset cannot be used.
    ExportError
        A served graph does not reproduce its source, `retrained` is not the baseline's sibling, or
        the files cannot be written.
    """
    if retrained is not None and calibration is not None:
        raise InputError("a retrained network is complete: leave the calibration away")
    substituted = onnx.ModelProto()
    substituted.CopyFrom(source.model)
    try:
        if calibration is None:
            found = onnx_graph.idealize(substituted, idealizer(choice))
        else:
            found = _calibrate(source, substituted, choice, calibration)
    except GraphError as error:
        raise GraphError(f"{source.provenance.source}: {error}") from error
    if ladder is not None and ladder.filters != found.filters:
        raise InputError(
            f"the ladder is of {ladder.source}, with {ladder.filters} filters, and this network "
            f"has {found.filters}: give the one that was made of it"
        )
    idealization = _record(found, choice, calibration, trained=retrained is not None)
    if retrained is None:
        idealized, idealized_reference = substituted, run_graph(substituted)
    else:
        _require_same_filters(retrained.model, substituted)
        idealized, idealized_reference = retrained.model, retrained.reference

    figures = _figures(idealization, source.model, idealized, ladder)
    models, differences = [], []
    for name, model, reference, detail in (
        (BASELINE, source.model, source.reference, None),
        (IDEALIZED, idealized, idealized_reference, idealization),
    ):
        network = network_graph(model, source.preprocessing.input_size)
        served = serving_graph(network, source.preprocessing)
        differences.append(_check(name, served, network, reference, source))
        models.append(
            Model(
                name=name,
                graph=served,
                preprocessing=source.preprocessing,
                provenance=source.provenance,
                idealization=detail,
                figures=figures if detail else (),
            )
        )
    _require_same_graph(models[0].graph, models[1].graph)
    write_models(repository, models, threads=threads)
    return [
        Exported(
            model.name,
            repository / model.name,
            difference,
            found.kept if model.idealization else None,
        )
        for model, difference in zip(models, differences, strict=True)
    ]


def _calibrate(
    source: Source, model: onnx.ModelProto, choice: Choice, calibration: CalibrationImages
) -> onnx_graph.Idealization:
    """Idealize the model in place, refitted to the source's activations."""
    images = open_images_of(source, calibration.dataset)
    inputs = network_inputs(source, images, count=calibration.images)
    return calibrate(model, inputs, idealizer(choice)).idealization


def _record(
    found: onnx_graph.Idealization,
    choice: Choice,
    calibration: CalibrationImages | None,
    *,
    trained: bool,
) -> Idealization:
    """What the manifest says of an idealization."""
    keys, fits = load_keys(choice.keys), fit(choice)
    scales = [
        {"key": one.key, "sigma_x": one.sigma_x, "sigma_y": one.sigma_y, "gamma": one.gamma}
        for one in fits
    ]
    settings = {name: value for name, value in asdict(choice).items() if name != "keys"}
    refitted = None if calibration is None else asdict(calibration)
    return Idealization(
        fit=settings | {"calibration": refitted, "keys": scales},
        kernels=kernels_by_size(fits, choice.boundary)(keys.shape[1]).tolist(),
        learned_keys=keys.tolist(),
        layers=[_layer_record(layer) for layer in found.layers],
        trained=trained,
    )


def _figures(
    record: Idealization,
    baseline: onnx.ModelProto,
    idealized: onnx.ModelProto,
    ladder: Ladder | None,
) -> list[Figure]:
    """The figures of the keys and the filters; none without matplotlib, which a line tells."""
    try:
        from mkf.report.exported import export_figures
    except MissingExtraError as error:
        logging.getLogger(__name__).warning("mkf: exported without figures: %s", error)
        return []
    learned, changed = _depthwise_filters(baseline), _depthwise_filters(idealized)
    return export_figures(record, learned, changed, ladder=ladder)


def _layer_record(layer: onnx_graph.IdealizedLayer) -> dict[str, Any]:
    # Exporters number their nodes; the weights keep the name that the network's author gave them.
    return {
        "name": layer.layer.weight.name.removesuffix(".weight") or layer.layer.name,
        "channels": layer.layer.channels,
        "kept": layer.assignment.total_kept,
        "keys": {str(key): count for key, count in layer.assignment.counts().items() if count},
    }


def _check(
    name: str,
    served: onnx.ModelProto,
    network: NetworkGraph,
    reference: Reference,
    source: Source,
) -> dict[int, float]:
    """The largest difference of a score between the served graph and its source, by batch size."""
    session = open_session(served)
    rng = np.random.default_rng(0)
    differences = {}
    for batch in CHECKED_BATCHES:
        images = rng.integers(256, size=(batch, *network.input_size, 3), dtype=np.uint8)
        inputs = network.normalize(images, source.preprocessing)
        try:
            logits = session.run(None, {"images": images})[0]
            expected = reference(inputs)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise ExportError(
                f"{name} does not run at batch {batch}: {one_line(error)}; "
                "export the source with a dynamic batch size"
            ) from error
        if logits.shape != expected.shape or not np.isfinite(logits).all():
            raise ExportError(
                f"{name} gives {logits.shape} scores at batch {batch}, its source "
                f"{expected.shape}, "
                "or some that are not finite; check the source's weights"
            )
        differences[batch] = float(np.abs(logits - expected).max())
        if differences[batch] > TOLERANCE * float(np.abs(expected).max()):
            raise ExportError(
                f"{name} differs from its source by {differences[batch]:.3g} at batch {batch}; "
                f"the largest score is {np.abs(expected).max():.3g}. Nothing was written"
            )
    return differences


def _require_same_filters(retrained: onnx.ModelProto, substituted: onnx.ModelProto) -> None:
    """The sibling must hold the very filters that the baseline's assignment gives."""
    expected = _depthwise_filters(substituted)
    found = _depthwise_filters(retrained)
    same = len(expected) == len(found) and all(
        own.shape == other.shape and np.allclose(own, other, rtol=1e-4, atol=1e-6)
        for own, other in zip(expected, found, strict=True)
    )
    if not same:
        raise ExportError(
            "the retrained network's depthwise filters are not the baseline's idealized ones; "
            "name the method, scales and boundary that it was trained with"
        )


def _depthwise_filters(model: onnx.ModelProto) -> list[NDArray[np.float64]]:
    return [
        tensor_storage.read(layer.weight.tensor, None)
        for layer in onnx_graph.depthwise_convolutions(model)
        if layer.weight.tensor is not None
    ]


def _require_same_graph(baseline: onnx.ModelProto, idealized: onnx.ModelProto) -> None:
    """The served models may differ in their weights and in nothing else."""
    if _structure(baseline) != _structure(idealized):
        raise ExportError(
            "the two networks' graphs differ in more than their weights; "
            "export both from the same architecture with the same exporter"
        )


def _structure(model: onnx.ModelProto) -> bytes:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for _, tensor in tensor_storage.tensors(bare):
        dims = list(tensor.dims)
        tensor.Clear()
        tensor.dims.extend(dims)
    structure: bytes = bare.SerializeToString(deterministic=True)
    return structure
