"""Train the demo network and its idealized sibling by one protocol (`make demo-network`).

The published protocol in small [BKRG; LBK section 5]: the baseline is trained from a fresh start;
its depthwise filters choose their keys; a f + b is put into the same fresh start and frozen; all
the rest is trained with the same recipe, seed and budget.
"""

from __future__ import annotations

import copy
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import onnx
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from scipy.stats import binomtest

from mkf.assignment import Assignment, total_kept
from mkf.demo import DIRECTORY, INPUT_SIZE, MEAN, STD, fashion_mnist
from mkf.demo.architecture import DEPTHS, DIMS, create_network
from mkf.demo.model_card import write_card
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys
from mkf.networks.torch_module import to_onnx
from mkf.networks.zoo import import_timm
from mkf.training.frozen import freeze_idealized
from mkf.training.loop import Images, Recipe, predict, train

RECIPE = Recipe(
    epochs=16,
    batch_size=64,
    peak_learning_rate=2e-3,
    warmup_share=0.15,
    weight_decay=0.05,
    label_smoothing=0.1,
    drop_path_rate=0.0,
    max_gradient_norm=1.0,
    crop_padding=1,
    mean=MEAN,
    std=STD,
    seed=8,
)
METHOD: Final = "B"  # the published network's


def build(
    work: Annotated[
        Path, typer.Option(help="Checkpoints and logs; a second call goes on from them.")
    ] = Path("build/demo"),
    out: Annotated[
        Path, typer.Option(help="Where the weights, graphs, logs and the card are put.")
    ] = DIRECTORY,
    threads: Annotated[int, typer.Option(help="torch's threads; 0: its choice.", min=0)] = 0,
) -> None:
    """Train the demo's two networks on Fashion-MNIST, and export them for serving.

    About half an hour a network on 2 cores. An interrupted call goes on where the last epoch ended.
    """
    if threads:
        torch.set_num_threads(threads)
    training, test = load_images("train"), load_images("test")

    baseline = fresh_start()
    train(baseline, training, test, RECIPE, directory=work / "baseline", title="baseline")
    idealized = fresh_start()
    assignments = freeze_idealized(idealized, trained=baseline, kernels=_kernels)
    train(idealized, training, test, RECIPE, directory=work / "idealized", title="idealized")

    networks = {"baseline": baseline, "idealized": idealized}
    substituted = copy.deepcopy(baseline)
    freeze_idealized(substituted, trained=baseline, kernels=_kernels)
    out.mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir(exist_ok=True)
    for name, network in networks.items():
        network.cpu().eval()
        weights = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(weights, out / f"{name}.safetensors")
        onnx.save(to_onnx(network, (INPUT_SIZE, INPUT_SIZE)), out / f"{name}.onnx")
        shutil.copy(work / name / "log.jsonl", out / "logs" / f"{name}.jsonl")
    figures: dict[str, Any] = {
        "dims": DIMS,
        "depths": DEPTHS,
        "parameters": sum(weight.numel() for weight in baseline.parameters()),
        "recipe": RECIPE,
        "method": METHOD,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": import_timm().__version__,
        },
        "idealization": _summary(assignments),
        "substituted": _accuracy(substituted, test),
    } | {name: _accuracy(network, test) for name, network in networks.items()}
    write_card(figures, out)
    Console().print(
        f"Test top-1: baseline {figures['baseline']['test_top1']:.2%}, "
        f"idealized {figures['idealized']['test_top1']:.2%}; files in {out}"
    )


def load_images(split: Literal["train", "test"]) -> Images:
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


def _kernels(size: int) -> NDArray[np.float64]:
    return idealized_kernels(fit_keys(load_keys(), method=METHOD), size=size)


def _summary(assignments: dict[str, Assignment]) -> dict[str, Any]:
    layers = list(assignments.values())
    return {
        "filters": sum(len(layer.keys) for layer in layers),
        "kept": total_kept(layers),
        "keys": {str(key): sum(layer.counts()[key] for layer in layers) for key in range(1, 9)},
    }


def _accuracy(network: torch.nn.Module, test: Images) -> dict[str, Any]:
    correct = int(np.sum(predict(network, test, RECIPE) == test.labels))
    interval = binomtest(correct, len(test.labels)).proportion_ci(method="wilson")
    return {
        "test_top1": correct / len(test.labels),
        "test_top1_interval": [interval.low, interval.high],
        "test_images": len(test.labels),
    }


if __name__ == "__main__":
    typer.run(build)
