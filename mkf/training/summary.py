"""The results of a run as JSON has them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import binomtest

import mkf
from mkf.assignment import Assignment, total_kept
from mkf.networks.zoo import import_timm


def accuracies(row: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Top-1 of the last and of the averaged weights, each with Wilson's interval of 95 %.

    Parameters
    ----------
    row
        The log's of the last epoch.
    images
        The validation images.
    """
    return {
        "last": _accuracy(row["val_top1"], images),
        "ema": None if row["ema_top1"] is None else _accuracy(row["ema_top1"], images),
        "validation_images": images,
    }


def idealization(assignments: Mapping[str, Assignment]) -> dict[str, Any]:
    """The keys that the filters were assigned, by layer, and what of the filters they keep."""
    return {
        "kept": total_kept(assignments.values()) if assignments else None,
        "layers": [
            {
                "name": name,
                "channels": len(one.keys),
                "kept": one.total_kept,
                "keys": {str(key): count for key, count in one.counts().items() if count},
            }
            for name, one in assignments.items()
        ],
    }


def environment(device: torch.device) -> dict[str, Any]:
    """What the run's last digits depend on."""
    return {
        "mkf": mkf.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": import_timm().__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def _accuracy(share: float, images: int) -> dict[str, Any]:
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return {"top1": share, "top1_interval": [float(interval.low), float(interval.high)]}
