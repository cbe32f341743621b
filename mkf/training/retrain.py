"""Retrain a network around idealized filters: the published protocol, on timm's parts.

[BKRG; LBK section 5]: one checkpoint's filters choose the keys; a f + b is put into another, the
one to start from, and fixed; all the rest is trained. Or the scales of the filters are trained too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mkf.errors import TrainingError
from mkf.training.data import (
    open_folders,
    own_images,
    seed_epoch,
    training_loader,
    validation_loader,
)
from mkf.training.filters import plain_weights
from mkf.training.learned_scales import scales_of
from mkf.training.optimization import make_average, make_mixup, make_optimizer, make_schedule
from mkf.training.plan import Plan
from mkf.training.processes import Processes, join
from mkf.training.recipe import Recipe
from mkf.training.start import build
from mkf.training.state import LAST, MODEL, SUMMARY, RunFolder
from mkf.training.summary import accuracies, environment, idealization


def retrain(
    plan: Plan,
    *,
    out: Path,
    resume: bool = False,
    device: str = "auto",
    workers: int = 4,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Train, and leave weights, log and summary in `out`.

    Each epoch replaces `out/checkpoint.pt` and `out/log.csv`. A run that goes on with `resume` ends
    bit for bit as an uninterrupted one on the CPU with as many threads and workers. Under torchrun
    every process calls this; the first one writes, and tells with `tell` what it is about to do.

    Returns
    -------
    dict or None
        What `out/summary.json` holds; None for all processes but the first.

    Raises
    ------
    InputError
        A setting, a source or the data cannot be used.
    SourceError
        A network cannot be loaded.
    TrainingError
        `out` holds another run, there are too few images, the two networks do not have the same
        depthwise layers, the loss is not finite, or the run was interrupted.
    """
    plan.check()
    with join(device) as processes:
        return _work(plan, out, processes, tell, resume=resume, workers=workers)


def _work(
    plan: Plan,
    out: Path,
    processes: Processes,
    tell: Callable[[str], None],
    *,
    resume: bool,
    workers: int,
) -> dict[str, Any] | None:
    run = _Run(plan, out, processes, resume=resume, workers=workers)
    if processes.leads:
        run.introduce(tell)
    try:
        run.train()
    except KeyboardInterrupt:
        raise TrainingError(
            f"interrupted; {run.saved} of {plan.recipe.epochs} epochs are saved in {out}, "
            "go on with --resume"
        ) from None
    return run.finish() if processes.leads else None


class _Run:
    """One process's part of a run: everything built, then trained, then written."""

    def __init__(
        self, plan: Plan, out: Path, processes: Processes, *, resume: bool, workers: int
    ) -> None:
        self.plan, self.recipe, self.processes = plan, plan.recipe, processes
        self.epoch = self.saved = 0
        self.rows: list[dict[str, Any]] = []

        self.folders = open_folders(plan.data)
        self.origin = plan.start()
        loading: Any = (self.folders, self.recipe, self.origin.preprocessing, processes)
        self.training = training_loader(*loading, workers=workers)
        self.validation = validation_loader(*loading, workers=workers)
        # An epoch's; batches that make no whole update are left out.
        self.updates = len(self.training) // self.recipe.accumulate
        if not self.updates:
            raise TrainingError(
                f"the {len(self.folders.training)} training images make no update of "
                f"{_batch(self.recipe, processes.count)}; lower --batch-size or --accumulate"
            )

        self.folder = RunFolder(out, plan.settings(self.folders, processes))
        self.folder.check(resume=resume)
        processes.wait()  # until all have looked, before one writes
        if processes.leads:
            self.folder.open()

        self._build()
        self._restore()

    def _build(self) -> None:
        """The network with its filters, its average, the optimizer and its schedule."""
        plan, recipe, device = self.plan, self.recipe, self.processes.device
        network, self.head_kept = build(
            self.origin,
            classes=len(self.folders.classes),
            drop_path=recipe.drop_path,
            seed=recipe.seed,
        )
        assigning = plan.assigning()
        self.assignments = plan.place_filters(network, assigning)
        self.licenses = {
            "start_from": self.origin.license,
            "assigned_by": assigning and assigning.license,
        }
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = False  # float32 filters are to be float32
            network.to(device)
        else:  # torch's stubs do not know this form
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.average = make_average(network, recipe)
        self.model: nn.Module = network
        if self.processes.count > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(network, device_ids=ids)

        self.peak = recipe.peak_learning_rate(self.processes.count)
        self.optimizer = make_optimizer(network, recipe, self.peak)
        self.schedule = make_schedule(self.optimizer, recipe, self.updates)
        self.mixup = make_mixup(recipe, len(self.folders.classes))

    def _restore(self) -> None:
        """Go on behind the last epoch that ended, if there is one."""
        state = self.folder.load()
        self.processes.wait()  # until all have read, before one writes
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])  # its learning rates too
        self.epoch = self.saved = state["epoch"]
        self.rows = state["rows"]

    def _save(self) -> None:
        self.folder.save(
            {
                "network": self.network.state_dict(),
                "average": self.average.module.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
            },
            self.rows,
        )

    def introduce(self, tell: Callable[[str], None]) -> None:
        """What will be trained, and how."""
        recipe, count, classes = self.recipe, self.processes.count, len(self.folders.classes)
        tell(
            f"{self.origin.architecture}, {self.plan.filters} filters, {classes} classes; "
            f"updates of {_batch(recipe, count)}, peak learning rate {self.peak:.4g}"
        )
        if not self.head_kept:
            tell(f"{self.plan.start_from} has no classifier of {classes} classes: drawn afresh")
        if self.epoch:
            tell(f"{self.folder.path}: going on behind epoch {self.epoch} of {recipe.epochs}")

    def train(self) -> None:
        """All epochs that are left."""
        recipe = self.recipe
        with _progress(shown=self.processes.leads) as progress:
            bar = progress.add_task("retrain", total=recipe.epochs * self.updates, note="")
            progress.advance(bar, self.epoch * self.updates)
            while self.epoch < recipe.epochs:
                started = time.perf_counter()
                seed_epoch(self.training, recipe, self.processes, self.epoch)
                self.network.train()
                batches = iter(self.training)
                loss_sum = 0.0
                for update in range(self.updates):
                    loss_sum += self._update(islice(batches, recipe.accumulate), update)
                    progress.advance(bar)
                self.epoch += 1
                top1 = self.top1(self.network)
                average_top1 = self.top1(self.average.module) if self.average else None
                self.rows.append(
                    {
                        "epoch": self.epoch,
                        "train_loss": loss_sum / self.updates,
                        "val_top1": top1,
                        "ema_top1": average_top1,
                        "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
                        "seconds": round(time.perf_counter() - started, 3),
                    }
                )
                if self.processes.leads:
                    self._save()
                self.saved = self.epoch
                shown = top1 if average_top1 is None else average_top1
                progress.update(bar, note=f"epoch {self.epoch}: val top-1 {shown:.2%}")

    def _update(self, batches: Iterator[tuple[Tensor, Tensor]], update: int) -> float:
        """One update from the next batches; the mean loss over all processes."""
        recipe, device = self.recipe, self.processes.device
        losses = torch.zeros((), device=device)
        self.optimizer.zero_grad()
        for step, (images, labels) in enumerate(batches, start=1):
            targets = labels
            if self.mixup:
                images, targets = self.mixup(images, labels)
            if device.type == "cpu":
                images = images.contiguous(memory_format=torch.channels_last)
            # Gradients travel between the processes once an update.
            waits = self.processes.count > 1 and step < recipe.accumulate
            with self.model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed_precision):
                    logits = self.model(images)
                loss = functional.cross_entropy(
                    logits.float(), targets, label_smoothing=0.0 if self.mixup else recipe.smoothing
                )
                (loss / recipe.accumulate).backward()
            losses += loss.detach()
        count = self.processes.count
        mean = self.processes.total(losses.item())[0] / (recipe.accumulate * count)
        if not abs(mean) < float("inf"):
            raise TrainingError(
                f"the loss is {mean} in epoch {self.epoch + 1}, update {update + 1} of "
                f"{self.updates}; lower --base-lr, or give --clip-grad, and start again"
            )
        if recipe.clip_gradient:
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_gradient)
        self.optimizer.step()
        done = self.epoch * self.updates + update + 1
        self.schedule.step_update(done)
        if self.average:
            self.average.update(self.network, step=done if recipe.ema_warmup else None)
        return mean

    @property
    def mixed_precision(self) -> bool:
        """Whether bfloat16 is used: never on a CPU, which it slows down."""
        return self.recipe.amp and self.processes.device.type == "cuda"

    @torch.inference_mode()
    def top1(self, network: nn.Module) -> float:
        """Share of all validation images that are classified right, in float32."""
        network.eval()
        left = own_images(self.validation, self.processes)
        right = 0
        for images, labels in self.validation:
            hits = (network(images).argmax(1) == labels)[:left]
            right += int(hits.sum())
            left -= len(hits)
        return self.processes.total(right)[0] / len(self.folders.validation)

    def finish(self) -> dict[str, Any]:
        """Write weights, scales and summary; returns the summary."""
        result = self.average.module if self.average else self.network
        metadata = {"architecture": self.origin.architecture, "license": self.origin.license}
        self.folder.write_weights(MODEL, plain_weights(result), metadata)
        self.folder.write_weights(LAST, plain_weights(self.network), metadata)
        if scales := scales_of(result):
            self.folder.write_scales(scales)
        self.folder.write_log(self.rows)
        recipe, count = self.recipe, self.processes.count
        summary = {
            "out": str(self.folder.path),
            "architecture": self.origin.architecture,
            "classifier": "kept" if self.head_kept else "drawn from the seed",
            **accuracies(self.rows[-1], len(self.folders.validation)),
            "updates": recipe.epochs * self.updates,
            "effective_batch": recipe.effective_batch(count),
            "peak_learning_rate": self.peak,
            "precision": "bfloat16, filters float32" if self.mixed_precision else "float32",
            "seconds": round(sum(row["seconds"] for row in self.rows), 3),
            **idealization(self.assignments),
            "licenses": self.licenses,
            "settings": self.folder.settings,
            "environment": environment(self.processes.device),
        }
        self.folder.write_json(SUMMARY, summary)
        return summary


def _batch(recipe: Recipe, processes: int) -> str:
    return (
        f"{recipe.effective_batch(processes):,} images (batch {recipe.batch_size} x steps "
        f"{recipe.accumulate} x processes {processes})"
    )


def _progress(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not shown,
    )
