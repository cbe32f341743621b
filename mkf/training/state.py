"""A run's folder: what it was started with, its last epoch, its log and its results."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mkf.errors import TrainingError, one_line
from mkf.training.learned_scales import ChannelScales

SETTINGS = "run.json"
CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
SUMMARY = "summary.json"
MODEL = "model.safetensors"
LAST = "last.safetensors"
SCALES = "scales.csv"


class RunFolder:
    """The folder of one run. Files are replaced in one move: a stopped run leaves whole ones.

    Parameters
    ----------
    path
        Made by `open` if it is not there.
    settings
        All that the run's result depends on, as JSON has it.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def check(self, *, resume: bool) -> None:
        """Raise TrainingError if another run is here, or one that is not to be resumed."""
        try:
            before = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError("it holds no JSON object")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.path / SETTINGS} cannot be read ({one_line(error)}); "
                "choose another folder with --out"
            ) from error
        if not resume:
            raise TrainingError(
                f"{self.path} holds a run already; go on with it by --resume, or choose another "
                "folder with --out"
            )
        if differing := _differences(before, self.settings):
            raise TrainingError(
                f"{self.path} holds a run of other settings ({', '.join(differing)}); repeat those "
                "it was started with, or choose another folder with --out"
            )

    def open(self) -> None:
        """Make the folder and note the settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(SETTINGS, self.settings)

    def load(self) -> dict[str, Any] | None:
        """The state after the last epoch that ended; None before the first.

        Raises
        ------
        TrainingError
            The checkpoint cannot be read.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen unrelated kinds for a broken file
            raise TrainingError(
                f"{path} cannot be read ({one_line(error, limit=120)}); remove it to start afresh"
            ) from error
        return state

    def save(self, state: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """Replace the checkpoint, and the log by `rows`, which the checkpoint holds too."""
        temporary = self.path / f"{CHECKPOINT}.tmp"
        torch.save(state | {"rows": list(rows)}, temporary)
        temporary.replace(self.path / CHECKPOINT)
        self.write_log(rows)

    def write_log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the log whole, a row an epoch."""
        self._write_csv(LOG, list(rows))

    def write_weights(
        self, name: str, weights: dict[str, Tensor], metadata: dict[str, str]
    ) -> None:
        """Write weights as safetensors."""
        temporary = self.path / f"{name}.tmp"
        save_file(weights, temporary, metadata=metadata)
        temporary.replace(self.path / name)

    def write_scales(self, scales: Sequence[ChannelScales]) -> None:
        """Write the scales of every filter, a row a channel."""
        order = ("layer", "channel", "key", "sigma_x", "sigma_y", "gamma", "a", "b")
        self._write_csv(SCALES, [{name: asdict(one)[name] for name in order} for one in scales])

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write one JSON object."""
        self._write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def _write_csv(self, name: str, rows: list[dict[str, Any]]) -> None:
        temporary = self.path / f"{name}.tmp"
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        temporary.replace(self.path / name)

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The names of the settings that differ."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}")
    return found
