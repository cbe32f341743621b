"""The A/A run: one model, served twice under two names, goes through the real evaluation.

Whatever differs then is of the road and not of a model: no answer may, and the ratio of the two
latencies is the noise in which a difference between two models would drown.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.errors import ServiceError
from services.evaluation.results import Results
from services.inference.repository import ServedModel

EVAL = Path(sys.executable).with_name("mkf-eval")


@dataclass(frozen=True)
class SameModel:
    """What the evaluation found between a model and itself."""

    model: str
    engine: str
    images: int
    difference_pp: float
    discordant: int  # images that one of the two had right
    mcnemar_p: float
    other_predictions: int  # images for which the two named another class
    largest_probability_difference: float
    p50_ms: tuple[float | None, float | None]  # first name, second name
    mean_ms: tuple[float | None, float | None]
    requests: tuple[int, int]  # that the latencies are of

    def breaches(self) -> list[str]:
        """A line for each thing in which the model differed from itself."""
        found = []
        if self.difference_pp != 0 or self.discordant or self.mcnemar_p != 1:
            found.append(
                f"{self.difference_pp:+.2f} pp, {self.discordant} discordant images, "
                f"p = {self.mcnemar_p:.3g}"
            )
        if self.other_predictions:
            found.append(f"another class for {self.other_predictions} of {self.images} images")
        return [f"{self.model} beside itself: {text}" for text in found]

    def latency_ratio(self) -> dict[str, float | None]:
        """Latency under the second name over that under the first."""
        return {
            name: None if None in pair else pair[1] / pair[0]  # type: ignore[operator]
            for name, pair in (("p50", self.p50_ms), ("mean", self.mean_ms))
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"latency_ratio": self.latency_ratio()}


def run_same_model(
    model: ServedModel,
    serve: Callable[[Path], AbstractContextManager[str]],
    *,
    dataset: str,
    images: int,
) -> SameModel:
    """Serve the model twice and evaluate it beside itself.

    Parameters
    ----------
    serve
        From a model repository to the URL of an engine on it.
    images
        The dataset's first ones.

    Raises
    ------
    ServiceError
        The evaluation failed; why stands on standard error.
    """
    with tempfile.TemporaryDirectory(prefix="parity-") as place:
        repository, results = Path(place) / "models", Path(place) / "results"
        names = (model.name, f"{model.name}_again")
        for name in names:
            copy_model(model, repository / name)
        with serve(repository) as engine:
            done = subprocess.run(
                [
                    str(EVAL),
                    *("--engine", engine, "--models", ",".join(names), "--dataset", dataset),
                    *("--limit", str(images), "--out", str(results), "--json"),
                ],
                env=os.environ | {"MKF_MODEL_REPOSITORY": str(repository)},
                stdout=subprocess.PIPE,
                check=False,
            )
        if done.returncode:
            raise ServiceError(f"the evaluation of {model.name} beside itself failed; see above")
        found = Results.model_validate_json(done.stdout)
        rows = pq.read_table(results / found.run.id / "samples.parquet")
    return _summary(model.name, engine, found, rows)


def copy_model(model: ServedModel, folder: Path) -> None:
    """Copy a model's folder of a repository; the copy is named as its folder."""
    shutil.copytree(model.graph.parents[1], folder)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    config.name = folder.name
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    manifest = json.loads((folder / "1" / "manifest.json").read_bytes())
    manifest["name"] = folder.name
    (folder / "1" / "manifest.json").write_text(json.dumps(manifest))


def _summary(model: str, engine: str, found: Results, rows: Any) -> SameModel:
    by_role = {
        role: {name: np.array(rows[name])[roles == role] for name in ("predicted", "probability")}
        for roles in [np.array(rows["role"].to_pylist())]
        for role in ("baseline", "idealized")
    }
    first, second = by_role["baseline"], by_role["idealized"]
    latencies = (found.latency.baseline, found.latency.idealized)
    return SameModel(
        model=model,
        engine=engine.partition(":")[0],
        images=found.dataset.images,
        difference_pp=found.paired.difference_pp,
        discordant=found.paired.only_baseline + found.paired.only_idealized,
        mcnemar_p=found.paired.mcnemar_p,
        other_predictions=int(np.sum(first["predicted"] != second["predicted"])),
        largest_probability_difference=float(
            np.abs(first["probability"] - second["probability"]).max()
        ),
        p50_ms=(latencies[0].p50_ms, latencies[1].p50_ms),
        mean_ms=(latencies[0].mean_ms, latencies[1].mean_ms),
        requests=(latencies[0].requests, latencies[1].requests),
    )
