"""What a finished run leaves: its settings and which test images it got right."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARMS = ("learned", "A", "B", "C1", "C2", "D1", "D2", "random")


class DatasetName(StrEnum):
    """The datasets of the protocol."""

    FASHION_MNIST = "fashion-mnist"
    CIFAR10 = "cifar10"


@dataclass(frozen=True, eq=False)
class Record:
    """One trained network.

    Attributes
    ----------
    correct : (n,) bool
        Of each test image, in the dataset's order.
    kept : float or None
        Share of the learned filters' variance that the frozen ones keep; None for the learned arm.
    keys : mapping
        From a key's number to the filters that chose it; empty for the learned arm.
    """

    dataset: str
    arm: str
    seed: int
    settings: Mapping[str, Any]
    seconds: float
    correct: NDArray[np.bool_]
    kept: float | None = None
    keys: Mapping[str, int] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Share of the test images that are right, 0 to 1."""
        return float(np.mean(self.correct))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the flags are packed, 8 images a byte, first image highest, in base64."""
        return {
            "dataset": self.dataset,
            "arm": self.arm,
            "seed": self.seed,
            "top1": self.top1,
            "kept": self.kept,
            "keys": dict(self.keys),
            "seconds": round(self.seconds, 1),
            "settings": dict(self.settings),
            "test_images": len(self.correct),
            "correct": base64.b64encode(np.packbits(self.correct).tobytes()).decode("ascii"),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote."""
        packed = np.frombuffer(base64.b64decode(values["correct"]), np.uint8)
        return cls(
            dataset=values["dataset"],
            arm=values["arm"],
            seed=values["seed"],
            settings=values["settings"],
            seconds=values["seconds"],
            correct=np.unpackbits(packed, count=values["test_images"]).astype(bool),
            kept=values["kept"],
            keys=values["keys"],
        )
