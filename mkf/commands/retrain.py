"""`mkf retrain`: train a network around idealized filters, or their scales too."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mkf.commands.given import refuse_given
from mkf.commands.options import (
    Boundary,
    BoundaryOption,
    JsonOption,
    KeysOption,
    Method,
    MethodOption,
    Scales,
    ScalesOption,
)
from mkf.training.recipe import PRESETS


class Filters(StrEnum):
    """What becomes of the depthwise filters."""

    FROZEN = "frozen"
    LEARNED_SCALES = "learned-scales"
    LEARNED = "learned"


class Preset(StrEnum):
    """The named recipes."""

    PUBLISHED = "published"
    SMALL = "small"


class Device(StrEnum):
    """Where to train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


_PANEL = "Recipe (what is not given is the preset's)"


def _setting(text: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=_PANEL, **options)


def retrain(
    context: typer.Context,
    start_from: Annotated[
        str,
        typer.Option(
            help="The network to train: timm:NAME, checkpoint:FILE or demo. It may lack a "
            "classifier, as ConvNeXt V2's FCMAE checkpoints do."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(help="Folder with train/ and val/, each with a folder of images a class."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for weights, checkpoint, log and summary.")],
    assigned_by: Annotated[
        str | None,
        typer.Option(help="The trained network whose filters choose their keys; a source too."),
    ] = None,
    filters: Annotated[
        Filters,
        typer.Option(
            help="frozen: a f + b, fixed, as published; learned-scales: each channel's key kept, "
            "sigma_x, sigma_y, gamma, a and b trained; learned: the network's own filters, "
            "trained, to compare with."
        ),
    ] = Filters.FROZEN,
    method: MethodOption = Method.B,
    scales: ScalesOption = Scales.SEPARATE,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="published: the papers' command for ConvNeXt V2 Tiny on ImageNet-1k, 300 epochs, "
            "made for 8 processes (256 images x 4 steps x 8 an update); small: the same in 30 "
            "epochs, for one machine."
        ),
    ] = Preset.PUBLISHED,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or start one there.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto: cuda where there is one.")] = Device.AUTO,
    workers: Annotated[
        int, typer.Option(help="Processes that load images, for each that trains.", min=0)
    ] = 4,
    architecture: Annotated[
        str | None,
        typer.Option(help="timm's name of a checkpoint's network; found by shape if not given."),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Start from timm:NAME untrained, drawn from --seed."),
    ] = False,
    input_size: Annotated[
        int | None,
        typer.Option(help="Height and width in pixels.", show_default="the start network's", min=1),
    ] = None,
    epochs: Annotated[int | None, _setting("Passes over the images.", min=1)] = None,
    batch_size: Annotated[int | None, _setting("Images a process and step.", min=1)] = None,
    accumulate: Annotated[int | None, _setting("Steps an update.", min=1)] = None,
    base_learning_rate: Annotated[
        float | None,
        _setting("Peak rate for 256 images an update; grows with them.", "--base-lr", min=0),
    ] = None,
    learning_rate: Annotated[
        float | None, _setting("The peak rate itself, instead.", "--lr", min=0)
    ] = None,
    least_learning_rate: Annotated[
        float | None, _setting("Rate at the end.", "--min-lr", min=0)
    ] = None,
    warmup_epochs: Annotated[int | None, _setting("Linear from 0.", min=0)] = None,
    weight_decay: Annotated[float | None, _setting("AdamW's.", min=0)] = None,
    layer_decay: Annotated[
        float | None, _setting("A layer's rate as a share of the next one's.", min=0, max=1)
    ] = None,
    clip_gradient: Annotated[
        float | None, _setting("Largest norm of the gradient; 0: any.", "--clip-grad", min=0)
    ] = None,
    drop_path: Annotated[float | None, _setting("Rate of the last block.", min=0, max=1)] = None,
    mixup: Annotated[float | None, _setting("Alpha; 0: none.", min=0)] = None,
    cutmix: Annotated[float | None, _setting("Alpha; 0: none.", min=0)] = None,
    smoothing: Annotated[float | None, _setting("Of the labels.", min=0, max=1)] = None,
    random_erasing: Annotated[float | None, _setting("Probability.", min=0, max=1)] = None,
    auto_augment: Annotated[
        str | None, _setting("timm's description of a policy; '': none.")
    ] = None,
    least_crop: Annotated[
        float | None, _setting("Least share of the area in a crop.", min=0, max=1)
    ] = None,
    ema_decay: Annotated[
        float | None, _setting("Of the weights' average, an update; 0: none.", min=0, max=1)
    ] = None,
    ema_warmup: Annotated[
        bool | None,
        _setting("Let the average forget its start.", "--ema-warmup/--no-ema-warmup"),
    ] = None,
    amp: Annotated[
        bool | None,
        _setting("bfloat16 on a GPU; depthwise filters stay in float32.", "--amp/--no-amp"),
    ] = None,
    seed: Annotated[int | None, _setting("Of all that is drawn.", min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network around idealized depthwise filters: the papers' protocol.

    The filters of one network choose their keys; a f + b is put into the
    same layers of the other, and all the rest is trained, with timm's
    augmentation, optimizer and average of the weights. For several GPUs:

    torchrun --nproc-per-node 8 --no-python mkf retrain ...

    The folder gets model.safetensors (the average; without one, the last
    weights), last.safetensors, log.csv with a row an epoch, summary.json,
    scales.csv where scales are learned, and checkpoint.pt, from which --resume
    goes on. No epoch is chosen by its validation accuracy. Networks with
    frozen filters are served beside the one that assigned the keys, by

    mkf export --source ASSIGNED_BY --retrained checkpoint:OUT/model.safetensors
    """
    if filters is Filters.LEARNED:
        reason = "shapes idealized filters; --filters learned has none"
        refuse_given(context, ("method", "scales", "boundary", "keys"), reason)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "base_learning_rate": base_learning_rate,
        "learning_rate": learning_rate,
        "least_learning_rate": least_learning_rate,
        "warmup_epochs": warmup_epochs,
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "clip_gradient": clip_gradient,
        "drop_path": drop_path,
        "mixup": mixup,
        "cutmix": cutmix,
        "smoothing": smoothing,
        "random_erasing": random_erasing,
        "auto_augment": auto_augment,
        "least_crop": least_crop,
        "ema_decay": ema_decay,
        "ema_warmup": ema_warmup,
        "amp": amp,
        "seed": seed,
    }
    recipe = replace(
        PRESETS[preset.value], **{name: value for name, value in given.items() if value is not None}
    )
    recipe.check()

    from mkf.networks.zoo import import_timm

    import_timm()  # says what to install, where it is not
    from mkf.training.plan import Plan
    from mkf.training.retrain import retrain as train

    plan = Plan(
        assigned_by=assigned_by,
        start_from=start_from,
        data=data,
        filters=filters.value,
        method=method.value,
        scales=scales.value,
        boundary=boundary.value,
        keys=keys,
        architecture=architecture,
        random_weights=random_weights,
        input_size=input_size,
        recipe=recipe,
    )
    messages = Console(stderr=True)
    summary = train(
        plan,
        out=out,
        resume=resume,
        device=device.value,
        workers=workers,
        tell=lambda text: messages.print(text, highlight=False, markup=False),
    )
    if summary is None:  # another process tells
        return
    if as_json:
        print(json.dumps(summary))
    else:
        _show(summary)


def _show(summary: dict[str, Any]) -> None:
    images = summary["validation_images"]
    table = Table(title=f"Top-1 of all {images:,} validation images", title_justify="left")
    for column in ("weights", "top-1", "95 % interval", "file"):
        table.add_column(column, justify="left" if column in ("weights", "file") else "right")
    kinds = [("ema", "average", "model.safetensors"), ("last", "last", "last.safetensors")]
    for name, title, file in kinds:
        if (found := summary[name]) is not None:
            low, high = found["top1_interval"]
            interval = f"{100 * low:.2f} to {100 * high:.2f} %"
            table.add_row(title, f"{100 * found['top1']:.2f} %", interval, file)
    console = Console()
    console.print(table)
    if summary["kept"] is not None:
        console.print(f"Keys kept {summary['kept']:.1%} of the assigning filters' variance.")
    licenses = summary["licenses"]
    console.print(f"License of the starting weights: {licenses['start_from']}", highlight=False)
    if licenses["assigned_by"] not in (None, licenses["start_from"]):
        console.print(f"Of the assigning weights: {licenses['assigned_by']}", highlight=False)
    console.print(f"In {summary['out']}", highlight=False)
