"""The search for keys from a set of filters to the keys: seeded, with progress, resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from mkf.discovery import Dropping, FilterSet, drop, elbow, reconstruction_cost, refine
from mkf.errors import InputError, MissingExtraError
from mkf.images import Images
from mkf.networks.sources import Source
from mkf.top1_cost import Top1Cost

Floats = NDArray[np.float64]

# Beyond these a curve of clusterings is flat, and its chord too long.
_MOST_CLUSTERS = 50
_STARTS = 10  # of the clustering whose keys are taken; those of the curve have one each


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How keys are sought; the options of `mkf discover` by the same names."""

    count: int | None = 8  # None: at the elbow
    candidates: int = 50
    shortlist: int = 5
    seed: int = 0
    restarts: int = 4
    steps: int = 2000
    refine: bool = True


@dataclass(frozen=True)
class Calibration:
    """A network and the images on which its top-1 is measured."""

    source: Source
    images: Images
    count: int


@dataclass(frozen=True, eq=False)
class Found:
    """The keys found, and the curve they were chosen on.

    Attributes
    ----------
    lines : (m, k * k) float64
        The keys, of zero mean and unit norm, in no order.
    costs : list of float
        `costs[n - 1]`: what n keys cost, before they are refined.
    elbow : int
        Where that curve bends most.
    cost : str
        What the costs are: `reconstruction`, or the network's `top1_error`, both 0 to 1.
    top1 : dict or None
        Top-1 (0 to 1) of the network as learned and with the keys, with `dataset` and `images`.
    """

    lines: Floats
    costs: list[float]
    elbow: int
    cost: str
    top1: dict[str, object] | None


def search_by_autoencoder(
    filters: FilterSet,
    settings: Settings,
    folder: Path,
    progress: Progress,
    calibration: Calibration | None = None,
) -> Found:
    """Train, decode, drop, refine ([BKRG], see `mkf.discovery`).

    The state is kept in `folder`; a call that was interrupted goes on where it was, and ends with
    the same keys.

    Raises
    ------
    TrainingError
        The training fails, or `folder` holds the state of another call.
    MissingExtraError
        torch is not installed.
    """
    try:
        from mkf.training.autoencoder import AutoencoderRecipe, candidates
    except ImportError as error:
        raise MissingExtraError(
            f"the autoencoder needs torch ({error}); "
            "install it with: pip install 'mkf[train]', or use --by clustering"
        ) from error
    recipe = AutoencoderRecipe(seed=settings.seed, restarts=settings.restarts, steps=settings.steps)
    bar = progress.add_task("autoencoder", total=settings.steps)
    decoded = candidates(
        filters.lines,
        settings.candidates,
        recipe,
        checkpoint=folder / "autoencoder.pt",
        advance=lambda steps: progress.advance(bar, steps),
    )
    bar = progress.add_task("dropping", total=settings.candidates)

    def step() -> None:
        progress.advance(bar)

    if calibration is None:
        dropping = drop(filters.lines, decoded, advance=step)
        return _found(filters, settings, decoded, dropping)
    judge = Top1Cost(
        calibration.source,
        decoded.reshape(-1, filters.size, filters.size),
        calibration.images,
        calibration.count,
        record=folder / "top1.jsonl",
    )
    dropping = drop(filters.lines, decoded, judge=judge, shortlist=settings.shortlist, advance=step)
    found = _found(filters, settings, decoded, dropping)
    learned, with_keys = judge.measure([None, found.lines.reshape(-1, filters.size, filters.size)])
    top1: dict[str, object] = {
        "dataset": calibration.images.uri,
        "images": min(calibration.count, calibration.images.count),
        "learned": 1 - learned,
        "keys": 1 - with_keys,
    }
    return Found(found.lines, found.costs, found.elbow, "top1_error", top1)


def search_by_clustering(filters: FilterSet, settings: Settings, progress: Progress) -> Found:
    """k-means for every count of keys up to 50, or more if more are wanted.

    Raises
    ------
    InputError
        More keys are wanted than there are filters that differ.
    MissingExtraError
        scikit-learn is not installed.
    """
    from mkf.training.clustering import LineClusters

    clusters = LineClusters(filters.lines, seed=settings.seed)
    if (settings.count or 1) > clusters.distinct:
        raise InputError(
            f"there are {clusters.distinct} filters of {filters.size}x{filters.size} that differ "
            f"by more than sign and scale, and {settings.count} keys are wanted: lower --count, or "
            "add networks"
        )
    most = min(max(_MOST_CLUSTERS, settings.count or 1), clusters.distinct)
    bar = progress.add_task("clustering", total=most)
    costs = []
    for count in range(1, most + 1):
        costs.append(reconstruction_cost(filters.lines, clusters.keys(count)))
        progress.advance(bar)
    bend = elbow(costs)
    keys = clusters.keys(settings.count or bend, starts=_STARTS)
    if settings.refine:
        keys = refine(filters.lines, keys)
    return Found(keys, costs, bend, "reconstruction", None)


def _found(filters: FilterSet, settings: Settings, decoded: Floats, dropping: Dropping) -> Found:
    costs = list(dropping.costs)
    bend = elbow(costs)
    keys = decoded[dropping.survivors(settings.count or bend)]
    if settings.refine:
        keys = refine(filters.lines, keys)
    return Found(keys, costs, bend, "reconstruction", None)


def require_enough(filters: FilterSet, settings: Settings) -> None:
    """Raise InputError if there are fewer filters than keys are wanted, or only one."""
    least = settings.count or 2
    if len(filters.lines) < least:
        raise InputError(
            f"there are {len(filters.lines)} usable filters of {filters.size}x{filters.size}, and "
            f"{least} keys are wanted: add networks, or name another --size"
        )
