"""What is to be retrained, from what, on what: all that a run's result depends on."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mkf.assignment import Assignment
from mkf.errors import InputError
from mkf.fitting import Method, ScaleChoice, fit_keys
from mkf.idealized import Boundary
from mkf.keys import load_keys
from mkf.training.data import ImageFolders
from mkf.training.filters import FilterChoice, place_filters
from mkf.training.processes import Processes
from mkf.training.recipe import Recipe
from mkf.training.start import Origin, build, find_origin


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a retraining's result depends on.

    Attributes
    ----------
    assigned_by : str or None
        Source of the trained network whose filters choose the keys; none where filters are learned.
    start_from : str
        Source of the network to train: `demo`, `timm:NAME` or `checkpoint:FILE`.
    data : Path
        Folder with `train/` and `val/`, each with a folder of images a class.
    filters : {"frozen", "learned-scales", "learned"}
        What becomes of the depthwise filters (`mkf.training.filters.place_filters`).
    method, scales, boundary, keys
        The idealized kernels, as for `mkf.fitting.fit_keys`; `keys` a CSV of other learned keys.
    architecture : str or None
        timm's name of the checkpoints' network; found by shapes if not given.
    random_weights : bool
        Start from the timm network's architecture alone.
    input_size : int or None
        Height and width in pixels; the start network's own if not given.
    recipe : Recipe
        All other settings.
    """

    assigned_by: str | None
    start_from: str
    data: Path
    filters: FilterChoice = "frozen"
    method: Method = "B"
    scales: ScaleChoice = "separate"
    boundary: Boundary = "symmetric"
    keys: Path | None = None
    architecture: str | None = None
    random_weights: bool = False
    input_size: int | None = None
    recipe: Recipe

    def check(self) -> None:
        """Raise InputError unless the settings go together."""
        self.recipe.check()
        if self.filters == "learned" and self.assigned_by:
            raise InputError("learned filters are assigned no keys; leave --assigned-by away")
        if self.filters != "learned" and not self.assigned_by:
            raise InputError(
                f"{self.filters} filters need a network that assigns their keys; name it with "
                "--assigned-by"
            )
        if self.architecture and not (_file(self.start_from) or _file(self.assigned_by)):
            raise InputError("--architecture goes with checkpoint:FILE, and no source is one")

    def start(self) -> Origin:
        """The network to start from, at the size that its images will have."""
        origin = find_origin(
            self.start_from,
            architecture=self._architecture(self.start_from),
            random_weights=self.random_weights,
        )
        if self.input_size is None:
            return origin
        size = (self.input_size, self.input_size)
        return replace(origin, preprocessing=replace(origin.preprocessing, input_size=size))

    def assigning(self) -> Origin | None:
        """The trained network whose filters choose the keys, or None."""
        if self.assigned_by is None:
            return None
        return find_origin(self.assigned_by, architecture=self._architecture(self.assigned_by))

    def place_filters(self, network: nn.Module, assigning: Origin | None) -> dict[str, Assignment]:
        """Prepare the network's depthwise layers (`mkf.training.filters.place_filters`)."""
        if assigning is None:
            return place_filters(network, self.filters)
        fits = fit_keys(
            load_keys(self.keys), method=self.method, scales=self.scales, boundary=self.boundary
        )
        return place_filters(
            network, self.filters, trained=build(assigning)[0], fits=fits, boundary=self.boundary
        )

    def settings(self, folders: ImageFolders, processes: Processes) -> dict[str, Any]:
        """The plan as JSON has it, with what tells one set of files from another."""
        sources = {"assigned_by": self.assigned_by, "start_from": self.start_from}
        files = {name: _file(uri) for name, uri in sources.items()} | {"keys": self.keys}
        return asdict(self) | {
            "data": str(self.data.resolve()),
            "keys": self.keys and str(self.keys),
            "sha256": {name: _digest(path) for name, path in files.items() if path is not None},
            "training_images": len(folders.training),
            "validation_images": len(folders.validation),
            "classes": len(folders.classes),
            "processes": processes.count,
        }

    def _architecture(self, uri: str) -> str | None:
        return self.architecture if _file(uri) else None


def _file(uri: str | None) -> Path | None:
    scheme, _, rest = (uri or "").partition(":")
    return Path(rest) if scheme == "checkpoint" else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
