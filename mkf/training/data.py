"""Folders of images by class, through timm's datasets, augmentation and loaders."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from mkf.errors import InputError, one_line
from mkf.networks.zoo import import_timm
from mkf.repository import Preprocessing
from mkf.training.processes import Processes
from mkf.training.recipe import Recipe


@dataclass(frozen=True)
class ImageFolders:
    """timm's datasets of `train/` and `val/`, with the classes' names in their order."""

    training: Any
    validation: Any
    classes: list[str]


class Loader(Protocol):
    """A loader of timm's: normalized images (n, 3, h, w) float32 and labels (n,) on the device."""

    sampler: Any

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


def open_folders(directory: Path) -> ImageFolders:
    """The images under `directory/train` and `directory/val`, in a folder a class.

    Classes are numbered in the natural order of their folders' names, as timm does.

    Raises
    ------
    InputError
        A folder is missing or empty, or `val` has a class that `train` does not have.
    """
    found: dict[str, Any] = {}
    for split in ("train", "val"):
        if not (directory / split).is_dir():
            raise InputError(
                f"{directory / split} is no folder; give with --data one that holds train/ and "
                "val/, each with a folder of images a class"
            )
        found[split] = _dataset(directory / split, None)
    numbers: dict[str, int] = found["train"].reader.class_to_idx
    unknown = sorted(set(found["val"].reader.class_to_idx) - set(numbers))
    if unknown:
        raise InputError(
            f"{directory / 'val'} has classes that train/ has not: {', '.join(unknown[:3])}"
            f"{' and others' if len(unknown) > 3 else ''}; give both the same class folders"
        )
    if len(numbers) < 2:
        raise InputError(f"{directory / 'train'} has one class; give images in a folder a class")
    return ImageFolders(found["train"], _dataset(directory / "val", numbers), list(numbers))


def _dataset(folder: Path, numbers: dict[str, int] | None) -> Any:
    import_timm()
    from timm.data import create_dataset

    try:
        return create_dataset(
            name="", root=str(folder), search_split=False, class_map=numbers or {}
        )
    except RuntimeError as error:
        raise InputError(f"{one_line(error)}; put the images into a folder a class") from error


def training_loader(
    folders: ImageFolders,
    recipe: Recipe,
    preprocessing: Preprocessing,
    processes: Processes,
    *,
    workers: int,
) -> Loader:
    """Augmented batches in random order; the last, incomplete one is left out.

    What it draws follows the global generators at the moment it is iterated (`seed_epoch`): its
    workers are started anew each epoch, since those that live on would keep a state that a resumed
    run cannot have.
    """
    return _loader(
        folders.training,
        recipe,
        preprocessing,
        processes,
        workers,
        is_training=True,
        scale=(recipe.least_crop, 1.0),
        color_jitter=None,
        auto_augment=recipe.auto_augment or None,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )


def validation_loader(
    folders: ImageFolders,
    recipe: Recipe,
    preprocessing: Preprocessing,
    processes: Processes,
    *,
    workers: int,
) -> Loader:
    """Every validation image in order, resized and cropped as for serving."""
    return _loader(
        folders.validation,
        recipe,
        preprocessing,
        processes,
        workers,
        crop_pct=preprocessing.crop_fraction,
        crop_mode=preprocessing.crop_mode,
    )


def _loader(
    dataset: Any,
    recipe: Recipe,
    preprocessing: Preprocessing,
    processes: Processes,
    workers: int,
    **options: Any,
) -> Loader:
    import_timm()
    from timm.data import create_loader

    mend_posterizing()
    loader = create_loader(
        dataset,
        input_size=(3, *preprocessing.input_size),
        batch_size=recipe.batch_size,
        interpolation=preprocessing.interpolation,
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        num_workers=workers,
        distributed=processes.count > 1,
        device=processes.device,
        pin_memory=processes.device.type == "cuda",
        persistent_workers=False,
        **options,
    )
    return cast(Loader, loader)


def own_images(loader: Loader, processes: Processes) -> int:
    """The validation images that this process is to count: not those that fill up the others."""
    if processes.count == 1:
        return len(loader.sampler)
    return int(loader.sampler.num_valid_samples)


def seed_epoch(loader: Loader, recipe: Recipe, processes: Processes, epoch: int) -> None:
    """Seed all that draws in an epoch: the order, the augmentation, mixup, dropped paths.

    From the recipe's seed, the epoch and the process alone, so that a resumed run draws what an
    uninterrupted one would have drawn.
    """
    for_python, for_numpy, for_torch = np.random.SeedSequence(
        (recipe.seed, epoch, processes.rank)
    ).generate_state(3)
    random.seed(int(for_python))
    np.random.seed(int(for_numpy))
    torch.manual_seed(int(for_torch))
    if processes.count > 1:  # the processes share one order
        loader.sampler.seed = recipe.seed
        loader.sampler.set_epoch(epoch)


def mend_posterizing() -> None:
    """Make timm's augmentation use `posterize` below in place of its own."""
    from timm.data import auto_augment

    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        auto_augment.NAME_TO_OP[name] = posterize


def posterize(image: Any, bits: int, **_: Any) -> Any:
    """What timm does under that name, for an image of no bits, too.

    Its strongest setting keeps no bit, which makes all black; Pillow refuses that from version 13
    on, and a training would end there.
    """
    from PIL import ImageOps

    if bits < 1:
        return image.point(lambda _: 0)
    return image if bits >= 8 else ImageOps.posterize(image, bits)
