"""What moves the weights: timm's optimizer, schedule, average and mixup, set by a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mkf.networks.zoo import import_timm
from mkf.training.recipe import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe, peak: float) -> torch.optim.Optimizer:
    """AdamW with decaying rates over the layers, on all that requires a gradient.

    What has one dimension is spared weight decay: norms, biases, GRN, the scales of filters.
    """
    import_timm()
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(
        network,
        opt="adamw",
        lr=peak,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Any:
    """Linear from 0 to the peak, then half a cosine over what is left; moved on at each update.

    Parameters
    ----------
    updates
        Of an epoch.
    """
    import_timm()
    from timm.scheduler.cosine_lr import CosineLRScheduler

    return CosineLRScheduler(
        optimizer,
        t_initial=(recipe.epochs - recipe.warmup_epochs) * updates,
        lr_min=recipe.least_learning_rate,
        warmup_t=recipe.warmup_epochs * updates,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def make_average(network: nn.Module, recipe: Recipe) -> Any:
    """The moving average of the weights (timm's ModelEmaV3), or None."""
    import_timm()
    from timm.utils import ModelEmaV3

    if not recipe.ema_decay:
        return None
    return ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)


def make_mixup(recipe: Recipe, classes: int) -> Any:
    """Mixup and cutmix of a batch, which smooths the labels too, or None."""
    import_timm()
    from timm.data import Mixup

    if not recipe.mixes:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.smoothing,
        num_classes=classes,
    )
