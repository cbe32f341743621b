"""How far two hops may be apart, how far they are, and which image says so.

A hop's answers are compared with another's for the same images in batches of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

# Tolerances are of the largest logit, or of 1 where that is smaller: float32 rounds relative to
# what it rounds.
#
# torch and ONNX Runtime sum the same float32 numbers in different orders; on CPUs that made 1.0e-6
# for the demo's networks and 0.7e-6 for ConvNeXt V2 Atto and Tiny. The margin is 20; a wrong mean
# or order of channels shows from 1e-3 on.
TORCH_TOLERANCE = 2e-5
# An engine runs the same graph on the same runtime, bit-equal where that is of one version and on
# one processor. Another version, or another processor's kernels, may sum in another order, as torch
# does; the margin above that is 5.
ENGINE_TOLERANCE = 5e-6
# The classification service answers with float32 probabilities. Rounding changes one by at most
# this share (2^-24, rounded up), and its logarithm, the logit up to a constant, by as much.
PROBABILITY_ROUNDING = 6e-8
# Below it float32 keeps ever fewer digits: smaller probabilities count as this one.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).smallest_normal)  # 1.2e-38


@dataclass(frozen=True)
class Answers:
    """What one model said of the images, asked in batches of one size."""

    scores: NDArray[np.float32]  # (images, classes): logits, or probabilities
    top1: NDArray[np.intp]  # (images,)

    @classmethod
    def of_logits(cls, logits: NDArray[np.float32]) -> Answers:
        return cls(logits, logits.argmax(axis=1))


@dataclass(frozen=True)
class Hop:
    """One station of an image's road."""

    name: str
    before: str | None  # the hop that it is next to
    tolerance: float  # of its logits beside that hop's and beside ONNX Runtime's
    answers: Mapping[tuple[str, int], Answers]  # by model and batch size
    probabilities: bool = False  # whether the scores are softmax of the logits


@dataclass(frozen=True)
class Comparison:
    """One model's answers at one hop beside those of another."""

    model: str
    hop: str
    against: str
    batch_size: int
    images: int
    unit: Literal["logit", "log-probability"]
    largest_difference: float | None  # None where a number is not finite
    limit: float
    compared: float  # share of the numbers that carry enough digits to be compared
    bit_equal: bool
    agreeing: int  # images with the same top-1
    ties: int  # images with another one, whose logits lie within the limit of each other
    worst_image: str
    disagreeing_image: str | None  # the first with another top-1 that is no tie

    def breaches(self) -> list[str]:
        """What is past its tolerance, a line each."""
        where = f"{self.model}: {self.hop} against {self.against} at batch {self.batch_size}"
        found = []
        if self.largest_difference is None:
            found.append(f"{where}: scores that are no finite numbers (image {self.worst_image})")
        elif self.largest_difference > self.limit:
            found.append(
                f"{where}: a {self.unit} differs by {self.largest_difference:.3g}, more than "
                f"{self.limit:.2g} (image {self.worst_image})"
            )
        if self.disagreeing_image is not None:
            found.append(
                f"{where}: another top-1 for {self.images - self.agreeing - self.ties} of "
                f"{self.images} images (first {self.disagreeing_image})"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_all(hops: Sequence[Hop], *, reference: str, images: Sequence[str]) -> list[Comparison]:
    """Each hop beside the one before it and beside the reference, for every model and batch size.

    A hop that was not run is left out, and nothing is compared with it.

    Parameters
    ----------
    reference
        The hop that all are compared with.
    images
        What they are called, in the order of the scores' rows.
    """
    by_name = {hop.name: hop for hop in hops}
    return [
        compare(hop, by_name[other], model=model, batch_size=size, images=images)
        for hop in hops
        if hop.before is not None  # else it is where the road begins
        for other in dict.fromkeys([hop.before, reference])
        if other in by_name and other != hop.name
        for model, size in hop.answers
        if (model, size) in by_name[other].answers
    ]


def compare(
    hop: Hop, against: Hop, *, model: str, batch_size: int, images: Sequence[str]
) -> Comparison:
    """One model's answers at a hop beside those at another, which are logits."""
    ours, theirs = hop.answers[model, batch_size], against.answers[model, batch_size]
    if ours.scores.shape != theirs.scores.shape or len(ours.scores) != len(images):
        raise ValueError(f"{ours.scores.shape} beside {theirs.scores.shape}, {len(images)} images")
    logits = theirs.scores.astype(np.float64)
    limit = hop.tolerance * float(np.abs(logits[np.isfinite(logits)]).max(initial=1.0))
    compared = 1.0
    with np.errstate(divide="ignore", invalid="ignore"):  # not finite is a finding
        found = ours.scores.astype(np.float64)
        if hop.probabilities:
            # log p = logit - log sum exp(logits), and the latter is off by no more than the logits.
            limit = 2 * limit + PROBABILITY_ROUNDING
            expected, floor = log_softmax(logits, axis=1), np.log(SMALLEST_PROBABILITY)
            compared = float(np.mean(expected >= floor))
            off = np.abs(np.maximum(np.log(found), floor) - np.maximum(expected, floor))
        else:
            off = np.abs(found - logits)
    off = np.where(np.isnan(off), np.inf, off).max(axis=1)  # (images,)
    worst = int(off.argmax())
    rows = np.arange(len(images))
    gaps = logits[rows, theirs.top1] - logits[rows, ours.top1]
    differs = ours.top1 != theirs.top1
    apart = differs & ~(gaps <= limit)
    return Comparison(
        model=model,
        hop=hop.name,
        against=against.name,
        batch_size=batch_size,
        images=len(images),
        unit="log-probability" if hop.probabilities else "logit",
        largest_difference=float(off[worst]) if np.isfinite(off[worst]) else None,
        limit=limit,
        compared=compared,
        bit_equal=ours.scores.tobytes() == theirs.scores.tobytes(),
        agreeing=int(np.sum(~differs)),
        ties=int(np.sum(differs & ~apart)),
        worst_image=images[worst],
        disagreeing_image=images[int(apart.argmax())] if apart.any() else None,
    )
