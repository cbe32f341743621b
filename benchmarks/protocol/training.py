"""Train the learned network and its siblings of frozen filters, one record a finished run.

The protocol of [BKRG; LBK section 5]: the learned network is trained from a seeded start; its
depthwise filters choose their keys; a f + b goes into the same start and stays; all the rest is
trained with the same recipe, seed and budget.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.protocol.data import CLASSES, Dataset
from benchmarks.protocol.records import ARMS, Record
from mkf.assignment import Assignment, total_kept
from mkf.errors import InputError
from mkf.fitting import Method, ScaleChoice, fit_keys, idealized_kernels
from mkf.keys import load_keys
from mkf.networks.zoo import import_timm
from mkf.training.frozen import freeze_idealized
from mkf.training.loop import Images, Recipe, predict, train

DIMS = (16, 32, 64, 128)  # channels of the four stages, at 16, 8, 4 and 2 pixels a side
DEPTHS = (1, 1, 2, 1)  # blocks of the four stages
PROGRESS_IMAGES = 500  # test images measured after each epoch; all are after the last

FITS: Mapping[str, tuple[Method, ScaleChoice]] = {
    "A": ("A", "separate"),
    "B": ("B", "separate"),
    "C1": ("C", "separate"),
    "C2": ("C", "isotropic"),
    "D1": ("D", "separate"),
    "D2": ("D", "isotropic"),
}


def recipe_of(dataset: Dataset, *, epochs: int, seed: int) -> Recipe:
    """The one recipe of all arms."""
    return Recipe(
        epochs=epochs,
        batch_size=64,
        peak_learning_rate=4e-3,
        warmup_share=0.2,
        weight_decay=0.05,
        label_smoothing=0.1,
        drop_path_rate=0.0,
        max_gradient_norm=1.0,
        crop_padding=dataset.crop_padding,
        mean=dataset.mean,
        std=dataset.std,
        seed=seed,
    )


def run_seed(
    name: str,
    dataset: Dataset,
    *,
    seed: int,
    images: int,
    epochs: int,
    work: Path,
    compiled: bool = False,
) -> list[Record]:
    """All arms of one dataset and seed; what `work` already holds is not trained again.

    Parameters
    ----------
    images
        So many training images, drawn by the seed, the same ones for all arms.
    compiled
        By torch.compile: about a third faster once compiled, which takes a minute or two.

    Raises
    ------
    InputError
        `work` holds runs of other settings.
    """
    recipe = recipe_of(dataset, epochs=epochs, seed=seed)
    training = _subset(dataset.training, images, seed)
    folder = work / name / f"seed{seed}"
    settings = {
        "images": len(training.labels),
        "test_images": len(dataset.test.labels),
        "dims": DIMS,
        "depths": DEPTHS,
        "recipe": asdict(recipe),
    }
    _require_same(folder / "settings.json", settings)
    runs = {arm: folder / f"{arm}.json" for arm in ARMS}
    learned = _start(recipe)
    seconds = 0.0
    if not all(path.exists() for path in runs.values()):
        # Where it was trained before, its checkpoint is read and nothing else happens.
        seconds = _train(learned, training, dataset.test, recipe, folder / "learned", compiled)
    records = []
    for arm, path in runs.items():
        if path.exists():
            records.append(Record.from_json(json.loads(path.read_text(encoding="utf-8"))))
            continue
        network = learned
        assignments: list[Assignment] = []
        if arm != "learned":
            network = _start(recipe)
            kernels = kernels_of(arm, seed)
            found = freeze_idealized(network, trained=learned, kernels=_always(kernels))
            assignments = list(found.values())
            seconds = _train(network, training, dataset.test, recipe, folder / arm, compiled)
        counts = [layer.counts() for layer in assignments]
        record = Record(
            dataset=name,
            arm=arm,
            seed=seed,
            settings=settings,
            seconds=seconds,
            correct=predict(network, dataset.test, recipe) == dataset.test.labels,
            kept=total_kept(assignments) if assignments else None,
            keys={str(key): sum(c[key] for c in counts) for key in range(1, 9)} if counts else {},
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record.to_json()) + "\n", encoding="utf-8")
        temporary.replace(path)
        records.append(record)
    return records


def create_network() -> nn.Module:
    """A ConvNeXt V2 in small for 32x32 images, its weights from torch's global generator."""
    import_timm()
    from timm.models.convnext import ConvNeXt

    network = ConvNeXt(
        in_chans=3,
        num_classes=CLASSES,
        dims=DIMS,
        depths=DEPTHS,
        patch_size=2,
        use_grn=True,
        ls_init_value=None,
    )
    # timm adds a step of 2 in stage 0 when the stem's is 2; a true stem of 2 keeps 16x16 there.
    network.stages[0].downsample = nn.Identity()
    return network


def kernels_of(arm: str, seed: int) -> NDArray[np.float64]:
    """The 8 kernels (8, 7, 7) that an arm freezes; the random ones are drawn by the seed."""
    if arm == "random":
        return np.random.default_rng(seed).standard_normal((8, 7, 7))
    method, scales = FITS[arm]
    return idealized_kernels(fit_keys(load_keys(), method=method, scales=scales), size=7)


def _always(kernels: NDArray[np.float64]) -> Callable[[int], NDArray[np.float64]]:
    return lambda size: kernels  # noqa: ARG005  (every filter of the network is 7x7)


def _start(recipe: Recipe) -> nn.Module:
    torch.manual_seed(recipe.seed)
    return create_network()


def _train(
    network: nn.Module,
    training: Images,
    test: Images,
    recipe: Recipe,
    directory: Path,
    compiled: bool,
) -> float:
    """Train to the end or from the last epoch on; returns the seconds it took."""
    started = time.perf_counter()
    if compiled:
        network.compile(dynamic=False)
    few = Images(test.pixels[:PROGRESS_IMAGES], test.labels[:PROGRESS_IMAGES])
    title = " ".join(directory.parts[-3:])  # dataset, seed, arm
    train(network, training, few, recipe, directory=directory, title=title)
    return time.perf_counter() - started


def _subset(images: Images, count: int, seed: int) -> Images:
    chosen = np.random.default_rng(seed).permutation(len(images.labels))[:count]
    return Images(images.pixels[chosen], images.labels[chosen])


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    """Keep the settings beside the runs, so that no table mixes two budgets."""
    text = json.dumps(settings, indent=1) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(
                f"{path.parent} holds runs of other settings; give them, or another --work folder"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
