"""`mkf ladder`: the accuracy of a network over how much structure is imposed on its filters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mkf.commands.options import (
    ArchitectureOption,
    Boundary,
    BoundaryOption,
    ColorOption,
    CropFractionOption,
    CropModeOption,
    InputSizeOption,
    InterpolationOption,
    JsonOption,
    KeysOption,
    Method,
    MethodOption,
    Scales,
    ScalesOption,
)
from mkf.commands.progress import progress

if TYPE_CHECKING:
    from mkf.ladder_results import Ladder


def ladder(
    source: Annotated[
        str,
        typer.Argument(
            help="The network: demo, an ONNX file, timm:NAME or checkpoint:FILE.", metavar="SOURCE"
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(help="The labeled images, as `mkf-eval` takes them.", metavar="URI"),
    ],
    limit: Annotated[
        int, typer.Option(help="Count this many images; 0: all. A subset is marked as one.", min=0)
    ] = 0,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Images for the calibrated rungs, whose labels are not used; the first ones of "
            "the dataset if not given, which then do not count.",
            metavar="URI",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(help="How many images calibrate; 0: no calibrated rungs.", min=0)
    ] = 256,
    method: MethodOption = Method.B,
    scales: ScalesOption = Scales.SEPARATE,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    architecture: ArchitectureOption = None,
    input_size: InputSizeOption = None,
    crop_fraction: CropFractionOption = None,
    interpolation: InterpolationOption = None,
    crop_mode: CropModeOption = None,
    mean: ColorOption = None,
    std: ColorOption = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for ladder.json, ladder.svg and what an interrupted call left."),
    ] = Path("results/ladder"),
    as_json: JsonOption = False,
) -> None:
    """Idealize a network with more and more free numbers a filter, and count what it gets right.

    Rungs: 1, 2, 4 and all 8 keys a filter at the fit's scales; 1, 2 and 4 at scales of each layer;
    1, 2, 3, 4 and 8 at scales of each filter; all of them again, calibrated. Nothing is trained. An
    interrupted call goes on where it stopped.
    """
    if calibrate and not images:
        raise typer.BadParameter("--calibrate takes images: leave it away, or --images 0")
    from mkf.accuracy import open_images_of
    from mkf.errors import InputError
    from mkf.idealization import Choice
    from mkf.ladder import Setting, climb, rungs
    from mkf.networks.sources import Options, load_source

    options = Options(
        architecture=architecture,
        input_size=input_size,
        crop_fraction=crop_fraction,
        interpolation=interpolation and interpolation.value,
        crop_mode=crop_mode and crop_mode.value,
        mean=mean,
        std=std,
    )
    loaded = load_source(source, options)
    opened = {uri: open_images_of(loaded, uri) for uri in {dataset, calibrate or dataset}}
    calibration = opened[calibrate or dataset]
    images = min(images, calibration.count)
    setting = Setting(opened[dataset], limit or None, calibration, images)
    steps = rungs(
        Choice(method=method.value, scales=scales.value, boundary=boundary.value, keys=keys),
        calibrated=images > 0,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error}") from error
    names = {step.key: step.name for step in steps}
    with progress() as bars:
        whole = bars.add_task("rungs", total=len(steps) + 1)
        now = bars.add_task("learned filters", total=setting.stop - setting.start)

        def announce(key: str, count: int) -> None:
            bars.reset(now, total=count, description=names.get(key, "learned filters"))

        found = climb(
            loaded,
            setting,
            steps,
            records=out / "rungs.jsonl",
            announce=announce,
            advance=lambda count: bars.advance(now, count),
            done=lambda: bars.advance(whole),
        )
    text = found.model_dump_json(indent=2) + "\n"
    try:
        part = out / ".ladder.json.part"  # none stands there half written
        part.write_text(text, encoding="utf-8")
        part.replace(out / "ladder.json")
        drawn = _draw(found, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from error
    if as_json:
        print(json.dumps(found.model_dump(mode="json")))
        return
    _print(found)
    Console().print(Text(f"In {out}: ladder.json" + (", ladder.svg" if drawn else "")))
    if not drawn:
        Console().print("No picture was drawn: install matplotlib with pip install 'mkf[report]'.")
    Console().print(f"License of the weights: {loaded.provenance.license}")


def _draw(found: Ladder, out: Path) -> bool:
    """Draw the ladder, where matplotlib is there."""
    from mkf.errors import MissingExtraError

    try:
        from mkf.report.ladder import ladder_figure
    except MissingExtraError:
        return False
    (out / "ladder.svg").write_bytes(ladder_figure(found).svg)
    return True


def _print(found: Ladder) -> None:
    """A row a rung."""
    part = " (a subset)" if found.limited else ""
    table = Table(
        title=Text(f"{found.source} on {found.images:,} images of {found.dataset}{part}"),
        box=SIMPLE,
        padding=0,
    )
    table.add_column("\nrung", no_wrap=True)
    interval = "95 %\ninterval"
    for header in ("\nfree", "kept\n%", "top-1\n%", interval, "diff.\npp", interval, "share\n%"):
        table.add_column(header, justify="right", no_wrap=True)
    learned = found.learned_numbers_per_filter
    table.add_row(
        "learned filters",
        "" if learned is None else f"{learned:.1f}",
        "",
        f"{100 * found.baseline.top1:.2f}",
        _ends(*(100 * end for end in found.baseline.top1_interval)),
    )
    calibrated = False
    for rung in found.rungs:
        if rung.calibrated and not calibrated:
            table.add_section()
            table.add_row("calibrated")
            calibrated = True
        table.add_row(
            rung.name.removesuffix(", calibrated"),
            f"{rung.numbers_per_filter:.1f}",
            f"{100 * rung.kept:.1f}",
            f"{100 * rung.top1:.2f}",
            _ends(*(100 * end for end in rung.top1_interval)),
            f"{rung.difference_pp:+.2f}",
            _ends(*rung.difference_interval_pp),
            f"{100 * rung.share_of_baseline:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        Text(
            "per layer, per filter: the reach of the scales, else the same in the whole network. "
            "free: free numbers a filter, beside the choice of its keys. kept: share of the "
            "filters' variance, which a calibration does not aim at. share: of the learned "
            "network's top-1. Differences are paired, intervals of 95 %."
        )
    )
    if found.calibration is not None:
        console.print(
            Text(
                f"calibrated: refitted on {found.calibration.images} images of "
                f"{found.calibration.dataset}, without labels; where that is the same dataset, "
                "they do not count."
            )
        )


def _ends(low: float, high: float) -> str:
    return f"{low:.1f} to {high:.1f}"
