"""How much structure a trained network's filters can bear with no training: rung by rung.

Each rung idealizes the same network anew, with more free numbers a filter than the one before, and
counts which images it gets right, so that every rung is paired with the learned network.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mkf.accuracy import correct_batches, network_inputs, served
from mkf.calibration import calibrate
from mkf.errors import InputError
from mkf.idealization import Choice, FreeScales, idealizer, numbers_per_filter
from mkf.images import Images
from mkf.keys import load_keys
from mkf.ladder_records import Record, Records
from mkf.ladder_results import Baseline, Calibration, Ladder, Rung
from mkf.networks.onnx_graph import Idealization, idealizable_layers, idealize
from mkf.networks.serving_graph import network_graph
from mkf.networks.sources import Source

_HELD_BYTES = 1_000_000_000  # of decoded pixels; more are decoded again for each rung
_BATCH = 32
_NAMES = {"per-layer": "per layer", "per-filter": "per filter"}  # the scales' reach


@dataclass(frozen=True)
class RungChoice:
    """One rung: what it imposes, and whether it is refitted to the network's activations."""

    choice: Choice
    calibrated: bool

    @property
    def name(self) -> str:
        """In words, such as `3 keys, per filter`."""
        terms = self.choice.terms
        parts = ["1 key" if terms == 1 else f"{terms} keys", _NAMES.get(self.choice.scales, "")]
        return ", ".join(filter(None, [*parts, "calibrated" if self.calibrated else ""]))

    @property
    def key(self) -> str:
        """What tells it from all other rungs."""
        settings = {name: str(value) for name, value in asdict(self.choice).items()}
        return json.dumps(settings | {"calibrated": self.calibrated}, sort_keys=True)


@dataclass(frozen=True)
class Setting:
    """On which images of which datasets the rungs are refitted and measured."""

    images: Images
    limit: int | None  # images that count; None for all there are
    calibration: Images
    calibration_images: int  # the first ones of their dataset; 0 for no calibrated rungs

    @property
    def start(self) -> int:
        """The first image that counts: none on which a rung was refitted does."""
        same = self.calibration.fingerprint == self.images.fingerprint  # whatever its URI
        return self.calibration_images if same else 0

    @property
    def stop(self) -> int:
        """The image behind the last one that counts."""
        left = self.images.count - self.start
        if left <= 0:
            raise InputError(
                f"{self.images.uri} has {self.images.count} images, all of which would go into the "
                "calibration: take fewer with --images, or others with --calibrate"
            )
        return self.start + min(left, self.limit or left)


def rungs(base: Choice, *, calibrated: bool) -> list[RungChoice]:
    """The usual rungs, those of a fit's scales with the method and boundary of `base`."""
    steps: Sequence[tuple[FreeScales, tuple[int, ...]]] = (
        (base.scales, (1, 2, 4, 8)),
        ("per-layer", (1, 2, 4)),
        ("per-filter", (1, 2, 3, 4, 8)),
    )
    kinds = (False, True) if calibrated else (False,)
    return [
        RungChoice(
            Choice(
                method=base.method,
                scales=scales,
                boundary=base.boundary,
                keys=base.keys,
                terms=terms,
            ),
            kind,
        )
        for kind in kinds
        for scales, counts in steps
        for terms in counts
    ]


def climb(
    source: Source,
    setting: Setting,
    steps: Sequence[RungChoice],
    *,
    records: Path,
    announce: Callable[[str, int], None] = lambda *_: None,
    advance: Callable[[int], None] = lambda _: None,
    done: Callable[[], None] = lambda: None,
) -> Ladder:
    """Measure every rung; what `records` holds of an earlier call is not measured again.

    Parameters
    ----------
    records
        A file of JSON lines, one a rung, with which images it got right.
    announce, advance, done
        Called before each measurement with its rung's key and its number of images, with each
        number of images done, and after each rung.

    Raises
    ------
    InputError
        There are no images to count, or one cannot be used.
    GraphError, SourceError
        The network cannot be idealized, calibrated or run.
    """
    network = network_graph(source.model, source.preprocessing.input_size)
    layers, _ = idealizable_layers(network.model)
    filters = np.array([layer.filters for layer in layers])
    store = Records(records, _identity(network.model, source, setting, steps))
    pixels = _Pixels(setting)
    inputs: list[NDArray[np.float32]] = []

    def measured(name: str, make: Callable[[], tuple[onnx.ModelProto, dict[str, Any]]]) -> Record:
        if (known := store.get(name)) is not None:
            return known
        announce(name, setting.stop - setting.start)
        model, facts = make()
        graph = served(source, model)
        flags = correct_batches([graph], pixels(), uri=setting.images.uri, advance=advance)[0]
        return store.put(name, flags, facts)

    def rung_model(step: RungChoice) -> tuple[onnx.ModelProto, dict[str, Any]]:
        model = onnx.ModelProto()
        model.CopyFrom(network.model)
        choose = idealizer(step.choice)
        if not step.calibrated:
            return model, _facts(idealize(model, choose))
        if not inputs:
            inputs.extend(
                network_inputs(source, setting.calibration, count=setting.calibration_images)
            )
        found = calibrate(model, inputs, choose)
        missed = float(np.clip(np.mean(list(found.missed.values())), 0, 1))
        return model, _facts(found.idealization) | {"missed": missed}

    baseline = measured("learned", lambda: (network.model, {}))
    done()
    found = []
    for step in steps:
        record = measured(step.key, partial(rung_model, step))
        numbers = [numbers_per_filter(step.choice, int(count)) for count in filters]
        average = float(np.average(numbers, weights=filters))
        found.append(_rung(step, record, baseline.flags, average))
        done()
    return Ladder(
        schema_version=1,
        source=source.provenance.source,
        dataset=setting.images.uri,
        images=len(baseline.flags),
        limited=len(baseline.flags) < setting.images.count,
        calibration=Calibration(dataset=setting.calibration.uri, images=setting.calibration_images)
        if setting.calibration_images
        else None,
        filters=int(filters.sum()),
        learned_numbers_per_filter=float(
            np.average([layer.kernel_size[0] ** 2 for layer in layers], weights=filters)
        ),
        baseline=_baseline(baseline.flags),
        rungs=found,
    )


def _facts(found: Idealization) -> dict[str, Any]:
    return {"kept": found.kept}


def _baseline(flags: NDArray[np.bool_]) -> Baseline:
    from services.evaluation.statistics import wilson_interval

    right = int(flags.sum())
    return Baseline(top1=right / len(flags), top1_interval=wilson_interval(right, len(flags)))


def _rung(step: RungChoice, record: Record, baseline: NDArray[np.bool_], numbers: float) -> Rung:
    """The statistics of a rung, paired with the learned network, as an evaluation's."""
    from services.evaluation.statistics import (
        mcnemar_exact,
        paired_difference,
        paired_table,
        wilson_interval,
    )

    flags = record.flags
    right, images = int(flags.sum()), len(flags)
    table = paired_table(baseline, flags)
    difference = paired_difference(table)
    return Rung(
        name=step.name,
        terms=step.choice.terms,
        scales=step.choice.scales if step.choice.scales in _NAMES else "fixed",
        calibrated=step.calibrated,
        numbers_per_filter=numbers,
        kept=record.facts["kept"],
        missed=record.facts.get("missed"),
        top1=right / images,
        top1_interval=wilson_interval(right, images),
        difference_pp=difference.points,
        difference_interval_pp=(difference.low, difference.high),
        mcnemar_p=mcnemar_exact(table),
        only_baseline=table.only_baseline,
        only_idealized=table.only_idealized,
        share_of_baseline=right / max(int(baseline.sum()), 1),
    )


class _Pixels:
    """The batches that count, held in memory where they are few."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._held: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] | None = None

    def __call__(self) -> Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        setting = self._setting
        batches = setting.images.batches(size=_BATCH, start=setting.start, stop=setting.stop)
        height, width = setting.images.preprocessing.input_size
        if (setting.stop - setting.start) * height * width * 3 > _HELD_BYTES:
            return batches
        if self._held is None:
            self._held = list(batches)
        return self._held


def _identity(
    model: onnx.ModelProto, source: Source, setting: Setting, steps: Sequence[RungChoice]
) -> str:
    """A digest of what a rung's outcome depends on beside its key; of images, ids and labels."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for keys in {step.choice.keys for step in steps}:
        digest.update(load_keys(keys).tobytes())
    told = (
        importlib.metadata.version("mkf"),
        asdict(source.preprocessing),
        setting.images.fingerprint,
        (setting.start, setting.stop),
        setting.calibration.fingerprint,
        setting.calibration_images,
    )
    digest.update(repr(told).encode())
    return digest.hexdigest()
