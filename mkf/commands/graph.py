"""`mkf inspect` and `mkf idealize`: the depthwise filters of an ONNX file, listed and idealized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mkf.commands.options import (
    CALIBRATION_IMAGES,
    Boundary,
    BoundaryOption,
    CalibrateOption,
    CalibrationImagesOption,
    ColorOption,
    CropFractionOption,
    CropModeOption,
    FreeScales,
    FreeScalesOption,
    InputSizeOption,
    InterpolationOption,
    JsonOption,
    KeysOption,
    Method,
    MethodOption,
    TermsOption,
)
from mkf.commands.progress import layer_progress

# As in `mkf.commands.fit`: what is slow to import waits until a command needs it.
if TYPE_CHECKING:
    from mkf.networks.onnx_graph import DepthwiseLayer, Idealization

_Model = Annotated[Path, typer.Argument(help="An ONNX file.", metavar="MODEL.onnx")]


def inspect(model: _Model, as_json: JsonOption = False) -> None:
    """List the depthwise convolutions of an ONNX file, and which of them can be idealized."""
    from mkf.networks.onnx_graph import depthwise_convolutions, load

    layers = depthwise_convolutions(load(model), folder=model.parent)
    if as_json:
        print(json.dumps({"layers": [_described(layer) for layer in layers]}))
        return
    table = Table(title=Text(f"{model}: {len(layers)} depthwise convolutions"))
    for header in ("layer", "channels", "filters", "kernel", "stride", "idealizable"):
        table.add_column(header, overflow="fold")
    for layer in layers:
        table.add_row(
            Text(layer.name),
            str(layer.channels),
            str(layer.filters),
            "x".join(map(str, layer.kernel_size)),
            "x".join(map(str, layer.stride)),
            Text(f"no: {layer.unsuitable}" if layer.unsuitable else "yes"),
        )
    Console().print(table)


def idealize(
    model: _Model,
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="OUT.onnx")],
    method: MethodOption = Method.B,
    scales: FreeScalesOption = FreeScales.SEPARATE,
    terms: TermsOption = 1,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    skip_unsuitable: Annotated[
        bool, typer.Option("--skip-unsuitable", help="Leave unsuitable layers as they are.")
    ] = False,
    calibrate: CalibrateOption = None,
    images: CalibrationImagesOption = None,
    input_size: InputSizeOption = None,
    crop_fraction: CropFractionOption = None,
    interpolation: InterpolationOption = None,
    crop_mode: CropModeOption = None,
    mean: ColorOption = None,
    std: ColorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a copy of an ONNX file with every depthwise filter replaced by its keys' a f + b.

    Size, crop, mean and the like say how images become the network's inputs, for --calibrate.
    """
    from mkf.idealization import Choice, idealizer
    from mkf.networks.onnx_file import calibrate_file, idealize_file
    from mkf.networks.sources import Options

    choice = Choice(
        method=method.value,
        scales=scales.value,
        boundary=boundary.value,
        keys=keys,
        terms=terms,
    )
    options = Options(
        input_size=input_size,
        crop_fraction=crop_fraction,
        interpolation=interpolation and interpolation.value,
        crop_mode=crop_mode and crop_mode.value,
        mean=mean,
        std=std,
    )
    missed: dict[str, float] | None = None
    if calibrate is None:
        if options != Options() or images is not None:
            raise typer.BadParameter("options of the images go with --calibrate")
        found = idealize_file(model, out, idealizer(choice), skip_unsuitable=skip_unsuitable)
    elif skip_unsuitable:
        raise typer.BadParameter("--skip-unsuitable does not go with --calibrate")
    else:
        with layer_progress("calibrating") as advance:
            found, missed = calibrate_file(
                model,
                out,
                idealizer(choice),
                dataset=calibrate,
                images=images or CALIBRATION_IMAGES,
                options=options,
                advance=advance,
            )
    settings = {
        "method": method.value,
        "scales": scales.value,
        "boundary": boundary.value,
        "terms": terms,
        "calibration": calibrate and {"dataset": calibrate, "images": images or CALIBRATION_IMAGES},
    }
    if as_json:
        report = {"out": str(out), **settings, **_reported(found)}
        for layer in report["layers"] if missed else ():
            layer["missed"] = missed[layer["name"]] if missed else None
        print(json.dumps(report))
        return
    fit = "" if scales is FreeScales.PER_FILTER else f"method {method.value}, "
    details = [f"{fit}{scales.value} scales", f"{boundary.value} boundary"]
    details += [f"{terms} keys each"] if terms > 1 else []
    details += ["calibrated"] if calibrate else []
    _print_report(found, f"{out}: {found.filters} filters idealized by {', '.join(details)}")
    if missed:
        worst = max(missed, key=lambda name: missed[name])
        Console().print(
            Text(
                f"Of the outputs' variance {missed[worst]:.1%} is missed in {worst}, the worst "
                f"layer, and {sum(missed.values()) / len(missed):.1%} on average."
            )
        )


def _described(layer: DepthwiseLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "weight": layer.weight.name,
        "channels": layer.channels,
        "filters": layer.filters,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "dilation": layer.dilation,
        "idealizable": layer.idealizable,
        "reason": layer.unsuitable or None,
    }


def _reported(found: Idealization) -> dict[str, Any]:
    layers = [
        _described(idealized.layer)
        | {
            "kept": idealized.assignment.total_kept,
            "keys": idealized.assignment.counts(),
            "kept_by_key": idealized.assignment.kept_by_key(),
        }
        for idealized in found.layers
    ]
    return {
        "layers": layers,
        "skipped": [_described(layer) for layer in found.skipped],
        "filters": found.filters,
        "kept": found.kept,
        "keys": found.counts(),
        "kept_by_key": found.kept_by_key(),
    }


def _print_report(found: Idealization, title: str) -> None:
    """A row a layer: its filters, the share of variance kept, how many filters each key got."""
    # Names of nodes and files may look like markup, so they go in as plain Text.
    table = Table(title=Text(title), box=SIMPLE, padding=(0, 1, 0, 0))
    table.caption = "1 to 8: filters of each key; kept: share of the variance"
    table.add_column("layer", overflow="fold")
    for header in ("filters", "kept", *map(str, found.counts())):
        table.add_column(header, justify="right")
    for idealized in found.layers:
        assignment = idealized.assignment
        table.add_row(
            Text(idealized.layer.name),
            str(idealized.layer.filters),
            f"{assignment.total_kept:.1%}",
            *map(str, assignment.counts().values()),
        )
    table.add_section()
    table.add_row("all", str(found.filters), "", *map(str, found.counts().values()))
    shares = ("-" if kept is None else f"{kept:.1%}" for kept in found.kept_by_key().values())
    table.add_row("kept", "", f"{found.kept:.1%}", *shares)
    console = Console()
    console.print(table)
    for layer in found.skipped:
        console.print(Text(f"left as it is: {layer.name}: {layer.unsuitable}"))
