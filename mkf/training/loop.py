"""Train a classifier on uint8 images held in memory: seeded, with progress, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from mkf.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the same object serves the learned and the idealized one."""

    epochs: int
    batch_size: int
    peak_learning_rate: float  # of a one-cycle cosine schedule
    warmup_share: float  # of all steps
    weight_decay: float  # AdamW, on weights of two dimensions and more
    label_smoothing: float
    drop_path_rate: float
    max_gradient_norm: float
    crop_padding: int  # pixels of zeros on each side before the random crop
    mean: float  # of the pixels scaled to [0, 1], the same for all channels
    std: float
    seed: int


@dataclass(frozen=True)
class Images:
    """Images uint8, gray (n, height, width) or color (n, height, width, 3); labels (n,) uint8."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def train(
    network: nn.Module,
    training: Images,
    test: Images,
    recipe: Recipe,
    *,
    directory: Path,
    title: str,
) -> float:
    """Train all that requires a gradient; returns the last epoch's test top-1, 0 to 1.

    After each epoch `directory/checkpoint.pt` is replaced and a line goes to `directory/log.jsonl`.
    A call that finds the checkpoint of the same recipe goes on behind it, with the same result as
    an uninterrupted run. The test images are measured and never used to choose anything. A GPU is
    used where torch finds one; its result differs in the last digits from a CPU's.

    Raises
    ------
    TrainingError
        The checkpoint belongs to another recipe, or the loss is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # torch's stubs do not know this form.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
    )
    steps_per_epoch = len(training.labels) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.peak_learning_rate,
        total_steps=recipe.epochs * steps_per_epoch,
        pct_start=recipe.warmup_share,
    )
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint = _Checkpoint(directory / "checkpoint.pt", recipe)
    epoch, top1 = checkpoint.load(network, optimizer, schedule)
    with _progress() as progress:
        bar = progress.add_task(title, total=recipe.epochs * steps_per_epoch, note="")
        progress.advance(bar, epoch * steps_per_epoch)
        while epoch < recipe.epochs:
            started = time.perf_counter()
            # One seed per epoch, so that a resumed run sees the same crops and dropped paths.
            torch.manual_seed(recipe.seed * 1_000 + epoch)
            loss_sum = 0.0
            network.train()
            for images, labels in _batches(training, recipe):
                loss = functional.cross_entropy(
                    network(images.to(device)),
                    labels.to(device),
                    label_smoothing=recipe.label_smoothing,
                )
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"{title}: the loss is {loss.item()} in epoch {epoch + 1}; "
                        "lower the recipe's learning rate and start again"
                    )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), recipe.max_gradient_norm)
                optimizer.step()
                schedule.step()
                loss_sum += loss.item()
                progress.advance(bar)
            epoch += 1
            top1 = float(np.mean(predict(network, test, recipe) == test.labels))
            progress.update(bar, note=f"epoch {epoch}: test top-1 {top1:.2%}")
            checkpoint.save(network, optimizer, schedule, epoch, top1)
            _log(
                directory / "log.jsonl",
                epoch=epoch,
                training_loss=loss_sum / steps_per_epoch,
                test_top1=top1,
                learning_rate=schedule.get_last_lr()[0],
                seconds=time.perf_counter() - started,
                device=str(device),
            )
    return top1


def predict(network: nn.Module, images: Images, recipe: Recipe) -> NDArray[np.int64]:
    """The class of largest logit for each image, (n,)."""
    device = next(network.parameters()).device
    network.eval()
    classes = []
    with torch.inference_mode():
        for start in range(0, len(images.labels), 500):
            pixels = torch.from_numpy(images.pixels[start : start + 500])
            classes.append(network(_normalize(pixels, recipe).to(device)).argmax(1).cpu().numpy())
    return np.concatenate(classes)


def _batches(images: Images, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    pixels = torch.from_numpy(images.pixels)
    labels = torch.from_numpy(images.labels).long()
    order = torch.randperm(len(labels))
    for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        yield _normalize(_augment(pixels[chosen], recipe.crop_padding), recipe), labels[chosen]


def _augment(pixels: Tensor, padding: int) -> Tensor:
    """Random crops of the zero-padded images, half of them mirrored; (n, h, w[, 3]) uint8."""
    count, height, width = pixels.shape[:3]
    color = (0, 0) * (pixels.ndim - 3)  # no padding of the channels
    padded = functional.pad(pixels, (*color, *(padding,) * 4))
    rows = torch.arange(height) + torch.randint(2 * padding + 1, (count, 1))  # (n, h)
    columns = torch.arange(width) + torch.randint(2 * padding + 1, (count, 1))  # (n, w)
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _normalize(pixels: Tensor, recipe: Recipe) -> Tensor:
    """uint8 (n, h, w[, 3]) -> float32 (n, 3, h, w), a gray channel three times, channels last."""
    scaled = (pixels.float() / 255 - recipe.mean) / recipe.std
    gray = scaled.ndim == 3
    images = scaled[:, None].expand(-1, 3, -1, -1) if gray else scaled.permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def _log(path: Path, **record: object) -> None:
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


class _Checkpoint:
    """The state after an epoch, replaced in one move; never anything but tensors and numbers."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = asdict(recipe)

    def load(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[int, float]:
        """Put the saved state back; returns the epochs done and the last test top-1."""
        if not self.path.exists():
            return 0, 0.0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["recipe"] != self.recipe:
            raise TrainingError(
                f"{self.path} was made by another recipe; remove {self.path.parent} to start afresh"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        return state["epoch"], state["top1"]

    def save(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        epoch: int,
        top1: float,
    ) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save(
            {
                "recipe": self.recipe,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch,
                "top1": top1,
            },
            temporary,
        )
        temporary.replace(self.path)
