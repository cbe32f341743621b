"""`mkf export`: the two served models from a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mkf.commands.options import (
    CALIBRATION_IMAGES,
    ArchitectureOption,
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

DEFAULT_REPOSITORY = Path("model_repository")


def export(
    source: Annotated[
        str,
        typer.Option(help="The network: demo, onnx:FILE, timm:NAME or checkpoint:FILE."),
    ] = "demo",
    repository: Annotated[
        Path, typer.Option(help="The model repository's folder; made if it is not there.")
    ] = DEFAULT_REPOSITORY,
    method: MethodOption = Method.B,
    scales: FreeScalesOption = FreeScales.SEPARATE,
    terms: TermsOption = 1,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    retrained: Annotated[
        str | None,
        typer.Option(
            help="Source of the idealized network, trained around the baseline's idealized "
            "filters; if not given, they are substituted and nothing is trained."
        ),
    ] = None,
    calibrate: CalibrateOption = None,
    images: CalibrationImagesOption = None,
    ladder: Annotated[
        Path | None,
        typer.Option(
            help="What `mkf ladder` wrote of this network, for the reports.",
            metavar="LADDER.json",
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="timm:NAME untrained, not with its weights.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    architecture: ArchitectureOption = None,
    input_size: InputSizeOption = None,
    crop_fraction: CropFractionOption = None,
    interpolation: InterpolationOption = None,
    crop_mode: CropModeOption = None,
    mean: ColorOption = None,
    std: ColorOption = None,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with one label a line, in the classes' order.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="License of the weights, for the manifest.")
    ] = None,
    expected_top1: Annotated[
        float | None,
        typer.Option(help="Published top-1 of the baseline, percent.", min=0, max=100),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="ONNX Runtime's threads an operator; 0: its choice.", min=0)
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Export a network and its idealized version as convnext_baseline and convnext_idealized.

    Both are ONNX graphs of opset 20 that take uint8 images of any batch size, in the layout of an
    NVIDIA Triton model repository; each is checked against its source at batch 1, 2 and 32.
    """
    from mkf.demo import DEMO_LADDER
    from mkf.export import CalibrationImages
    from mkf.export import export as export_models
    from mkf.idealization import Choice
    from mkf.ladder_results import read_ladder
    from mkf.networks.sources import DEMO_SIBLING, Options, load_source

    options = Options(
        architecture=architecture,
        random_weights=random_weights,
        seed=seed,
        license=license_,
        input_size=input_size,
        crop_fraction=crop_fraction,
        interpolation=interpolation and interpolation.value,
        crop_mode=crop_mode and crop_mode.value,
        mean=mean,
        std=std,
        labels=labels,
        expected_top1=expected_top1,
    )
    choice = Choice(
        method=method.value,
        scales=scales.value,
        boundary=boundary.value,
        keys=keys,
        terms=terms,
    )
    # The demo's sibling was trained around the default choice's filters.
    if source == "demo" and retrained is None and calibrate is None and choice == Choice():
        retrained = DEMO_SIBLING
    if source == "demo":
        ladder = ladder or DEMO_LADDER
    if images is not None and calibrate is None:
        raise typer.BadParameter("--images goes with --calibrate")
    calibration = CalibrationImages(calibrate, images or CALIBRATION_IMAGES) if calibrate else None
    baseline = load_source(source, options)
    exported = export_models(
        baseline,
        repository,
        choice=choice,
        retrained=load_source(retrained, options) if retrained else None,
        calibration=calibration,
        ladder=read_ladder(ladder) if ladder else None,
        threads=threads,
    )
    report = {
        "repository": str(repository),
        "source": source,
        "license": baseline.provenance.license,
        "random_weights": baseline.provenance.random_weights,
        "models": [
            {
                "name": model.name,
                "path": str(model.folder),
                "largest_difference": {str(n): value for n, value in model.differences.items()},
                "kept": model.kept,
            }
            for model in exported
        ],
    }
    if as_json:
        print(json.dumps(report))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['source']} in {report['repository']}")
    table.add_column("model", no_wrap=True)
    table.add_column("filters' variance kept", justify="right")
    batches = ", ".join(report["models"][0]["largest_difference"])
    table.add_column(f"largest difference to the source at batch {batches}", justify="right")
    for model in report["models"]:
        kept = "all (learned)" if model["kept"] is None else f"{model['kept']:.1%}"
        differences = [f"{value:.2g}" for value in model["largest_difference"].values()]
        table.add_row(model["name"], kept, ", ".join(differences))
    console = Console()
    console.print(table)
    console.print(f"License of the weights: {report['license']}")
    if report["random_weights"]:
        console.print("The weights are random: every accuracy will be that of chance.")
