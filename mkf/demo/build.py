"""Train the demo network and its idealized sibling by one protocol (`make demo-network`).

The published protocol in small [BKRG; LBK section 5]: the baseline is trained from a fresh start;
its depthwise filters choose their keys; a f + b is put into the same fresh start and frozen; all the
rest is trained with the same recipe, seed and budget.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mkf.demo import fashion_mnist
from mkf.demo.architecture import INPUT_SIZE, MEAN, STD, create_network
from mkf.networks.zoo import import_timm
from mkf.training.loop import Images, Recipe, train

RECIPE = Recipe(
    epochs=18,
    batch_size=64,
    peak_learning_rate=2e-3,
    warmup_share=0.15,
    weight_decay=0.05,
    label_smoothing=0.1,
    drop_path_rate=0.05,
    max_gradient_norm=1.0,
    crop_padding=2,
    mean=MEAN,
    std=STD,
    seed=8,
)


def load_images(split: str) -> Images:
    """One split of Fashion-MNIST, resized to 32x32 as timm's evaluation transform does."""
    pixels, labels = fashion_mnist.load(split)
    import_timm()
    from timm.data import create_transform

    transform = create_transform(INPUT_SIZE, crop_pct=1.0, interpolation="bicubic")
    resize = transform.transforms[0]
    resized = np.stack([np.asarray(resize(Image.fromarray(image))) for image in pixels])
    return Images(resized, labels)


def fresh_start() -> torch.nn.Module:
    """The network before training, the same for the baseline and its sibling."""
    torch.manual_seed(RECIPE.seed)
    return create_network(drop_path_rate=RECIPE.drop_path_rate)


if __name__ == "__main__":
    torch.set_num_threads(2)
    top1 = train(
        fresh_start(),
        load_images("train"),
        load_images("test"),
        RECIPE,
        directory=Path("build/demo/baseline"),
        title="baseline",
    )
    print(top1)
