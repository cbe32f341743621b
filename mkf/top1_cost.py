"""What a set of keys costs a network: its own top-1 error with its filters as a f + b of the keys.

This is the cost by which [BKRG] (Babaiee, Kiasari, Rus, Grosu, arXiv 2509.11711) drop candidates.
Nothing is trained; filters of other sizes stay as they are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
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

# Sets measured at a time, each a copy of the network: all that `drop` asks of a step by default.
_AT_ONCE = 5


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
        The record is of another network, other candidates or images, or another version of mkf.
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
        self.known = _read(record, _identity(source, candidates, images, count))

    def __call__(self, sets: Sequence[Sequence[int]]) -> list[float]:
        """The error with each set of candidates, given by their indices."""
        wanted = [",".join(map(str, sorted(one))) for one in sets]
        missing = [i for i, name in enumerate(wanted) if name not in self.known]
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            errors = self.measure([self.candidates[list(sets[i])] for i in some])
            with self.record.open("a", encoding="utf-8") as file:
                for i, error in zip(some, errors, strict=True):
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


def _identity(source: Source, candidates: Floats, images: Images, count: int) -> str:
    """A digest of what a set's error depends on beside its indices; of images, ids and labels."""
    digest = hashlib.sha256(source.model.SerializeToString(deterministic=True))
    digest.update(candidates.tobytes())
    told = (
        importlib.metadata.version("mkf"),
        asdict(source.preprocessing),
        images.fingerprint,
        count,
    )
    digest.update(repr(told).encode())
    return digest.hexdigest()


def _read(record: Path, digest: str) -> dict[str, float]:
    """What a record holds, by set; one that is not there, or holds no whole line, is begun."""
    text = record.read_text(encoding="utf-8") if record.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # behind it the call was cut off while it wrote
    kept = whole or json.dumps({"of": digest}) + "\n"
    if kept != text:
        temporary = record.with_name(f"{record.name}.tmp")
        temporary.write_text(kept, encoding="utf-8")
        temporary.replace(record)
    first, *entries = map(json.loads, kept.splitlines())
    if first.get("of") != digest:
        raise TrainingError(
            f"{record} was made by a call with other networks, images or options; "
            f"remove {record.parent} to start afresh"
        )
    return {entry["candidates"]: entry["error"] for entry in entries}
