"""A network and images: what it is given, and which of them served graphs get right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from mkf.errors import GraphError, InputError
from mkf.images import Images, open_images
from mkf.networks.serving_graph import network_graph, serving_graph
from mkf.networks.sources import Source, open_session


def served(source: Source, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """The graph that serves the source (or `model`, its like): uint8 (n, h, w, 3) -> logits."""
    network = network_graph(
        source.model if model is None else model, source.preprocessing.input_size
    )
    return serving_graph(network, source.preprocessing)


def open_images_of(source: Source, uri: str) -> Images:
    """The images of a dataset URI as the source takes them; errors as `open_images` raises them."""
    provenance = source.provenance
    return open_images(
        uri,
        preprocessing=source.preprocessing,
        classes=len(provenance.labels),
        class_ids=provenance.class_ids,
    )


def network_inputs(source: Source, images: Images, *, count: int) -> list[NDArray[np.float32]]:
    """The first images of a dataset as the source's own graph takes them, in batches of 16.

    Raises
    ------
    InputError
        The dataset has fewer images, or one cannot be used.
    """
    if images.count < count:
        raise InputError(
            f"{images.uri} has {images.count} images, fewer than the {count} that are to "
            "calibrate: ask for fewer with --images"
        )
    network = network_graph(source.model, source.preprocessing.input_size)
    return [
        network.normalize(pixels, source.preprocessing)
        for pixels, _ in images.batches(size=16, stop=count)
    ]


def correct(
    graphs: Sequence[onnx.ModelProto],
    images: Images,
    *,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda _: None,
) -> NDArray[np.bool_]:
    """Whether each graph's top-1 is the label, (graphs, images).

    Parameters
    ----------
    graphs
        Served graphs, `images` UINT8 (n, h, w, 3) -> `logits`.
    start, stop
        The images that count.
    advance
        Called after each batch with its number of images.

    Raises
    ------
    InputError
        An image cannot be used.
    GraphError
        There are no images to count, or a graph gives scores that are not finite.
    """
    batches = images.batches(size=batch_size, start=start, stop=stop)
    return correct_batches(graphs, batches, uri=images.uri, advance=advance)


def correct_batches(
    graphs: Sequence[onnx.ModelProto],
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]],
    *,
    uri: str,
    advance: Callable[[int], None] = lambda _: None,
) -> NDArray[np.bool_]:
    """The same over batches of pixels and labels at hand; `uri` names them in errors."""
    sessions = [open_session(graph) for graph in graphs]
    flags = []
    for pixels, labels in batches:
        row = []
        for session in sessions:
            (logits,) = session.run(None, {"images": pixels})
            if not np.isfinite(logits).all():
                raise GraphError(f"{uri}: a network's scores are not finite")
            row.append(logits.argmax(axis=1) == labels)
        flags.append(np.stack(row))
        advance(len(labels))
    if not flags:
        raise GraphError(f"{uri}: no images are left to measure the accuracy on")
    return np.concatenate(flags, axis=1)
