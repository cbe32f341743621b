"""What a set of keys costs a network: its own top-1 error with its filters as a f + b of the keys.

This is the cost by which [BKRG] (Babaiee, Kiasari, Rus, Grosu, arXiv 2509.11711) drop candidates.
Nothing is trained; filters of other sizes stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mkf.accuracy import correct, served
from mkf.assignment import assign
from mkf.errors import TrainingError
from mkf.images import Images
from mkf.networks import onnx_graph, tensor_storage
from mkf.networks.sources import Source

Floats = NDArray[np.float64]


class Top1Cost:
    """Top-1 errors (0 to 1) of one network on the first `count` images, each measured once.

    Parameters
    ----------
    source
        The network.
    candidates : (m, k, k) float64
        The keys that sets are made of.
    images, count
        Where the error is measured.
    record : Path
        File of what was measured, a line a set. A call that finds it does not measure them again.
    advance : callable
        Called with the number of images after each batch.

    Raises
    ------
    TrainingError
        The record is of other candidates or images.
    """

    def __init__(
        self,
        source: Source,
        candidates: Floats,
        images: Images,
        count: int,
        *,
        record: Path,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.source = source
        self.candidates = candidates
        self.images = images
        self.count = count
        self.record = record
        self.advance = advance
        identity = f"{source.provenance.source} {images.uri} {count}"
        digest = sha256(identity.encode() + candidates.tobytes()).hexdigest()
        self.known = _read(record, digest)

    def __call__(self, sets: Sequence[Sequence[int]]) -> list[float]:
        """The error with each set of candidates, given by their indices."""
        wanted = [",".join(map(str, sorted(one))) for one in sets]
        missing = [i for i, name in enumerate(wanted) if name not in self.known]
        errors = self.measure([self.candidates[list(sets[i])] for i in missing])
        with self.record.open("a", encoding="utf-8") as file:
            for i, error in zip(missing, errors, strict=True):
                self.known[wanted[i]] = error
                file.write(json.dumps({"candidates": wanted[i], "error": error}) + "\n")
        return [self.known[name] for name in wanted]

    def measure(self, keys: Sequence[Floats | None]) -> list[float]:
        """The error with each of several sets of keys (n, k, k); None: the filters as learned."""
        if not keys:
            return []
        graphs = [served(self.source, self._replaced(one)) for one in keys]
        right = correct(graphs, self.images, stop=self.count, advance=self.advance)
        return [float(1 - one.mean()) for one in right]

    def _replaced(self, keys: Floats | None) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.source.model)
        if keys is not None:
            for layer in onnx_graph.depthwise_convolutions(model):
                if layer.idealizable and layer.kernel_size == keys.shape[1:]:
                    tensor = layer.weight.tensor
                    assert tensor is not None  # noqa: S101  (an idealizable layer has one)
                    filters = tensor_storage.read(tensor, None)[:, 0]
                    tensor_storage.store(tensor, assign(filters, keys).idealized())
        return model


def _read(record: Path, digest: str) -> dict[str, float]:
    """What a record holds, by set; a record that is not there is begun."""
    if not record.exists():
        record.write_text(json.dumps({"of": digest}) + "\n", encoding="utf-8")
        return {}
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # the call was cut off while it wrote
        lines.pop()
        record.write_text("".join(lines), encoding="utf-8")
    first, *entries = map(json.loads, lines)
    if first.get("of") != digest:
        raise TrainingError(
            f"{record} was made by a call with other networks, images or options; "
            f"remove {record.parent} to start afresh"
        )
    return {entry["candidates"]: entry["error"] for entry in entries}
