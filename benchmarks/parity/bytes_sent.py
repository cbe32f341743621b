"""Whether both models were sent the same bytes, and whether those are the images' own pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.parity.images import Images
from benchmarks.parity.recorder import Sent

Request = tuple[tuple[int, ...], str]  # shape, SHA-256


@dataclass(frozen=True)
class BytesSent:
    """The requests of one hop."""

    hop: str
    requests: dict[str, int]  # by model
    sha256: dict[str, str]  # by model, of its requests' shapes and hashes in their order
    expected_sha256: str  # of the images' pixels, in the batches that the hop was asked for

    def breaches(self) -> list[str]:
        """A line for each model that was sent something else."""
        return [
            f"{model}: at {self.hop}, the bytes that Triton was sent are not the images' pixels"
            for model, digest in self.sha256.items()
            if digest != self.expected_sha256
        ] + (
            [f"{self.hop}: the models were not sent the same bytes"]
            if len(set(self.sha256.values())) > 1
            else []
        )


def bytes_sent(
    hop: str,
    sent: Sequence[Sent],
    models: Mapping[str, object],
    images: Images,
    sizes: Sequence[int],
    *,
    in_order: bool = True,
) -> BytesSent:
    """Compare what was recorded of a hop with its images.

    Parameters
    ----------
    in_order
        Whether the requests were sent one after the other.
    """
    by_model = {
        model: [(one.shape, one.sha256) for one in sent if one.model == model] for model in models
    }
    expected = [
        (pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest())
        for size in sizes
        for pixels in (images.pixels[part] for part in images.batches(size))
    ]
    return BytesSent(
        hop=hop,
        requests={model: len(requests) for model, requests in by_model.items()},
        sha256={model: _digest(requests, in_order) for model, requests in by_model.items()},
        expected_sha256=_digest(expected, in_order),
    )


def _digest(requests: list[Request], in_order: bool) -> str:
    listed = requests if in_order else sorted(requests)
    return hashlib.sha256(repr(listed).encode()).hexdigest()
