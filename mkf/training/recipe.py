"""How a network is retrained: every setting by name, and the published command as a preset.

Nothing here needs torch: a command can list the presets without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mkf.errors import InputError

REFERENCE_BATCH = 256  # images; the base learning rate is that of an update of this many


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a retraining but its network and its data.

    Attributes
    ----------
    epochs : int
        Passes over the training images.
    batch_size : int
        Images a process and step.
    accumulate : int
        Steps whose gradients make one update.
    base_learning_rate : float
        Peak learning rate of an update by 256 images; the peak grows in proportion to the images an
        update sees.
    learning_rate : float or None
        The peak itself, instead.
    least_learning_rate : float
        Where the cosine ends.
    warmup_epochs : int
        Linear from 0 to the peak.
    weight_decay : float
        AdamW, on weights of two dimensions and more.
    layer_decay : float
        Each layer learns at this share of the rate of the layer after it; 1 for the same rate.
    clip_gradient : float
        Largest norm of the gradient; 0 for none.
    drop_path : float
        Rate of the last block; it grows linearly from 0 at the first.
    mixup, cutmix : float
        The alphas; 0 for none. With both, each batch gets one of them, evenly.
    smoothing : float
        Of the labels.
    random_erasing : float
        Probability, by noise a pixel.
    auto_augment : str
        timm's description of a policy; empty for none.
    least_crop : float
        Least share of an image's area in a training crop.
    ema_decay : float
        Of the moving average of the weights, an update; 0 for no average.
    ema_warmup : bool
        Let the decay grow to `ema_decay`, so that a short run forgets its start.
    amp : bool
        bfloat16 on a GPU, by autocast; depthwise convolutions stay in float32.
    seed : int
        Of everything that is drawn.
    """

    epochs: int
    batch_size: int
    accumulate: int
    base_learning_rate: float
    learning_rate: float | None
    least_learning_rate: float
    warmup_epochs: int
    weight_decay: float
    layer_decay: float
    clip_gradient: float
    drop_path: float
    mixup: float
    cutmix: float
    smoothing: float
    random_erasing: float
    auto_augment: str
    least_crop: float
    ema_decay: float
    ema_warmup: bool
    amp: bool
    seed: int

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def effective_batch(self, processes: int) -> int:
        """Images an update sees."""
        return self.batch_size * self.accumulate * processes

    def peak_learning_rate(self, processes: int) -> float:
        """The learning rate at the end of the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.base_learning_rate * self.effective_batch(processes) / REFERENCE_BATCH

    def check(self) -> None:
        """Raise InputError unless the settings can be used."""
        for limit, names, holds in _LIMITS:
            for name in names:
                if not holds(getattr(self, name)):
                    raise InputError(f"{name} is {getattr(self, name)}; give {limit}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise InputError(
                f"a warm-up of {self.warmup_epochs} epochs does not fit into {self.epochs}; "
                "give fewer with --warmup-epochs"
            )
        if self.mixes and self.batch_size % 2:
            raise InputError(
                f"mixup and cutmix mix pairs, and {self.batch_size} images are odd; give an even "
                "--batch-size, or --mixup 0 --cutmix 0"
            )


_LIMITS: list[tuple[str, tuple[str, ...], Callable[[float], bool]]] = [
    ("at least 1", ("epochs", "batch_size", "accumulate"), lambda value: value >= 1),
    ("a whole number from 0 up", ("seed",), lambda value: value >= 0),
    (
        "a finite number of at least 0",
        (
            "base_learning_rate",
            "least_learning_rate",
            "weight_decay",
            "clip_gradient",
            "mixup",
            "cutmix",
        ),
        lambda value: 0 <= value < math.inf,
    ),
    (
        "a finite number of at least 0",
        ("learning_rate",),
        lambda value: value is None or 0 <= value < math.inf,
    ),
    ("at least 0, less than 1", ("drop_path", "smoothing", "ema_decay"), lambda v: 0 <= v < 1),
    ("a number from 0 to 1", ("random_erasing",), lambda value: 0 <= value <= 1),
    ("more than 0, at most 1", ("least_crop", "layer_decay"), lambda value: 0 < value <= 1),
]

# The command published with [LBK] (tonylindeberg/masterfiltmodel, experiments/README.md), the same
# for frozen filters and for learned scales, for ConvNeXt V2 Tiny on ImageNet-1k:
#   torchrun --nproc_per_node=8, --batch_size 256 --update_freq 4: 8,192 images an update, where
#   ConvNeXt V2's own command for Tiny (facebookresearch/ConvNeXt-V2, TRAINING.md) has 1,024;
#   --blr 8e-4: a *base* rate, for 256 images (main_finetune.py: lr = blr * batch / 256). The peak
#   is 0.0256 at 8,192 images (3.2e-3 at ConvNeXt V2's 1,024);
#   --epochs 300 --warmup_epochs 40 --layer_decay_type single --layer_decay 0.9 --weight_decay 0.05
#   --drop_path 0.2 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --smoothing 0.1 --model_ema True
#   --use_amp True --seed 0. (Its AMP is float16 with a scaler; here it is bfloat16.)
# What it leaves to main_finetune.py's defaults: AdamW, least rate 1e-6, no clipping, RandAugment
# rand-m9-mstd0.5-inc1, average's decay 0.9999 from the first update, and timm's crops, from 8 %.
# timm's layer decay is "single" but for the stem, which is a layer of its own there.
_PUBLISHED = Recipe(
    epochs=300,
    batch_size=256,
    accumulate=4,
    base_learning_rate=8e-4,
    learning_rate=None,
    least_learning_rate=1e-6,
    warmup_epochs=40,
    weight_decay=0.05,
    layer_decay=0.9,
    clip_gradient=0.0,
    drop_path=0.2,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    random_erasing=0.25,
    auto_augment="rand-m9-mstd0.5-inc1",
    least_crop=0.08,
    ema_decay=0.9999,
    ema_warmup=False,
    amp=True,
    seed=0,
)

PRESETS = {
    "published": _PUBLISHED,
    # No one's published settings: the same, shortened to what one machine can pay.
    "small": replace(
        _PUBLISHED,
        epochs=30,
        batch_size=64,
        accumulate=1,
        warmup_epochs=3,
        clip_gradient=1.0,
        drop_path=0.1,
        ema_decay=0.999,
        ema_warmup=True,
    ),
}
