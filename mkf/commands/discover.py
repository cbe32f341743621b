"""`mkf discover`: keys out of networks' own filters."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mkf.commands.given import refuse_given
from mkf.commands.options import JsonOption
from mkf.commands.progress import progress
from mkf.errors import InputError

# As in `mkf.commands.fit`: what is slow to import waits until the command needs it.
if TYPE_CHECKING:
    from mkf.key_search import Calibration, Settings
    from mkf.networks.sources import Options


class By(StrEnum):
    """Where candidates come from."""

    AUTOENCODER = "autoencoder"
    CLUSTERING = "clustering"


_OF_CALIBRATION = ("images", "shortlist", "input_size", "crop_fraction", "mean", "std")
_OF_AUTOENCODER = ("candidates", "restarts", "steps", "work")
_FIELDS = {"sources", "by", "keys", "cost", "costs", "elbow"}  # of the .json file, among others


def discover(
    context: typer.Context,
    source: Annotated[
        list[str],
        typer.Argument(
            help="One or several networks: demo, onnx:FILE (or a path that ends in .onnx), "
            "timm:NAME, checkpoint:FILE."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The CSV file of keys to write, columns key,row,c0...; beside it goes a .json "
            "file with all figures.",
            metavar="KEYS.csv",
        ),
    ],
    count: Annotated[
        str,
        typer.Option(
            help="How many keys; auto: where the curve of log cost over count bends most "
            "(kneedle). With 8, key n is the one that goes with operator n of the published keys; "
            "other counts are numbered by falling share of filters."
        ),
    ] = "8",
    size: Annotated[
        int | None,
        typer.Option(
            help="Size k of the k x k filters.",
            min=3,
            max=31,
            show_default="the most frequent one from 5 up, else 3",
        ),
    ] = None,
    by: Annotated[
        By,
        typer.Option(
            help="autoencoder: candidates decoded from a one-number code are dropped greedily; "
            "clustering: k-means, blind to signs, for comparison."
        ),
    ] = By.AUTOENCODER,
    candidates: Annotated[
        int, typer.Option(help="How many codes are decoded.", min=2, max=1000)
    ] = 50,
    refine: Annotated[
        bool,
        typer.Option(
            help="In the end make each key the first principal direction of its filters, until "
            "none changes its key (not in the paper, which searches again around the best)."
        ),
    ] = True,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Dataset URI: candidates are dropped by the one source's own top-1 on it, not by "
            "the mean squared reconstruction of its filters.",
            metavar="DATASET",
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(help="With --calibration: the first so many images.", min=1, max=50_000),
    ] = 512,
    shortlist: Annotated[
        int,
        typer.Option(
            help="With --calibration: how many candidates, those whose loss costs reconstruction "
            "least, are tried at each step; the paper tries all.",
            min=1,
        ),
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of all that is random.", min=0)] = 0,
    restarts: Annotated[
        int, typer.Option(help="Autoencoders trained side by side; the best is used.", min=1)
    ] = 4,
    steps: Annotated[int, typer.Option(help="Training steps.", min=10)] = 2000,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the state from which an interrupted call goes on.",
            show_default="a hidden one beside KEYS.csv, removed at the end",
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="timm:NAME untrained, not with its weights.")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(help="timm's name of a checkpoint's network; found by shape if not given."),
    ] = None,
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="With --calibration: height and width in pixels.", min=1),
    ] = None,
    crop_fraction: Annotated[
        float | None,
        typer.Option(
            help="With --calibration: share of the resized edge that is kept.", min=0.01, max=1
        ),
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="With --calibration: of R, G, B scaled to [0, 1]."),
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="With --calibration: of R, G, B scaled to [0, 1]."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find master keys in the depthwise filters of one or several networks.

    Every filter is centered, scaled, and taken up to its sign, for a in a f + b may be negative.
    Constant filters are left out, and other sizes; both are counted. Each found key is named by the
    operator of the published keys that fits it best, its scales free.
    """
    from mkf.discovery import select
    from mkf.key_report import described
    from mkf.key_search import (
        Settings,
        require_enough,
        search_by_autoencoder,
        search_by_clustering,
    )
    from mkf.networks.filter_collection import collect_filters, source_uri
    from mkf.networks.sources import Options

    settings = Settings(
        count=_count(count),
        candidates=candidates,
        shortlist=shortlist,
        seed=seed,
        restarts=restarts,
        steps=steps,
        refine=refine,
    )
    if not calibration:
        refuse_given(context, _OF_CALIBRATION, "goes with --calibration alone")
    if by is By.CLUSTERING:
        refuse_given(context, _OF_AUTOENCODER, "goes with --by autoencoder alone")
    _check(out, settings, by, calibration, source)
    options = Options(
        architecture=architecture,
        random_weights=random_weights,
        seed=seed if random_weights else 0,
        input_size=input_size,
        crop_fraction=crop_fraction,
        mean=mean,
        std=std,
    )
    uris = [source_uri(text) for text in source]
    layers = collect_filters(uris, options)
    filters = select(layers, size)
    require_enough(filters, settings)
    measured = _calibration(uris[0], options, calibration, images) if calibration else None

    folder = work or out.with_name(f".{out.name}.work")
    folder.mkdir(parents=True, exist_ok=True)
    with progress(transient=False) as bars:
        if by is By.CLUSTERING:
            found = search_by_clustering(filters, settings, bars)
        else:
            found = search_by_autoencoder(filters, settings, folder, bars, measured)
    report = described(filters, layers, found)
    report = {"sources": uris, "by": by.value, "seed": seed, "refined": refine, **report}
    _write(out, report)
    if work is None:
        shutil.rmtree(folder)
    if as_json:
        print(json.dumps(report))
    else:
        _show(out, report)


def _count(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--count is {text!r}: give a number from 1, or auto")
    return int(text)


def _check(
    out: Path, settings: Settings, by: By, calibration: str | None, sources: list[str]
) -> None:
    """Options that exclude each other are wrong use; so is a file that could not be written."""
    if by is By.CLUSTERING and calibration:
        raise typer.BadParameter("--calibration drops candidates; --by clustering has none")
    if calibration and len(sources) > 1:
        raise typer.BadParameter("--calibration measures one network: name one source")
    if by is By.AUTOENCODER and (settings.count or 1) > settings.candidates:
        raise typer.BadParameter(
            f"--count {settings.count} is more than the {settings.candidates} --candidates"
        )
    if out.suffix == ".json":
        raise typer.BadParameter("--out is the CSV file; the .json file beside it comes by itself")
    if out.is_dir() or not out.parent.is_dir():
        raise typer.BadParameter(f"--out {out}: name a file in a folder that exists")
    _check_json(out.with_suffix(".json"))


def _check_json(path: Path) -> None:
    """Raise InputError if the file is there and not of this command."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not content.keys() >= _FIELDS:
        raise InputError(
            f"{path} is there, and not a file that `mkf discover` wrote; it would be replaced: "
            "remove it, or choose another --out"
        )


def _write(out: Path, report: dict[str, Any]) -> None:
    """Write the keys and the figures, each in one move, so that no file is ever half a file."""
    from mkf.keys import save_keys

    figures = out.with_suffix(".json")
    keys_written, figures_written = (p.with_name(f".{p.name}.tmp") for p in (out, figures))
    save_keys(keys_written, [key["kernel"] for key in report["keys"]])
    figures_written.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    keys_written.replace(out)
    figures_written.replace(figures)


def _calibration(uri: str, options: Options, dataset: str, images: int) -> Calibration:
    from mkf.accuracy import open_images_of
    from mkf.key_search import Calibration
    from mkf.networks.sources import load_source

    source = load_source(uri, options)
    return Calibration(source, open_images_of(source, dataset), images)


def _show(out: Path, report: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    size = report["size"]
    numbered = report["keys"][0]["own_cosine"] is not None
    own = "own: with the operator of its number; " if numbered else ""
    # Names of files may look like markup, so they go in as plain Text.
    table = Table(
        title=Text(f"{out}: {report['count']} keys of {report['filters']:,} {size}x{size} filters"),
        title_justify="left",
        caption=f"cosine: with the operator that fits best, its scales free; {own}share: of the "
        "filters; kept: of their variance, on average",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("key", justify="right")
    table.add_column("operator", overflow="fold")
    for header in ("cosine", "sx", "sy", "gamma", *(["own"] if numbered else []), "share", "kept"):
        table.add_column(header, justify="right", no_wrap=True)
    for key in report["keys"]:
        fits = f"{key['operator_key']}: {key['operator']}" if key["well"] else "none fits well"
        scales = [key["sigma_x"], key["sigma_y"], key["gamma"]] if key["well"] else [None] * 3
        cells = [str(key["key"]), fits, f"{key['cosine']:.3f}"]
        cells += ["" if value is None else f"{value:.3f}" for value in scales]
        cells += [f"{key['own_cosine']:.3f}"] if numbered else []
        kept = "" if key["kept"] is None else f"{key['kept']:.1%}"
        table.add_row(*cells, f"{key['share']:.1%}", kept)
    console = Console()
    console.print(table)
    for line in _notes(report, numbered):
        console.print(Text(line))


def _notes(report: dict[str, Any], numbered: bool) -> list[str]:
    """What the table does not say."""
    costs = [entry["cost"] for entry in report["costs"]]
    unit = "top-1 error" if report["cost"] == "top1_error" else "cost"
    around = ", ".join(
        f"{n}: {costs[n - 1]:.1%}" for n in (1, 2, 4, 8, 16, 32, len(costs)) if n <= len(costs)
    )
    lines = [
        f"The keys keep {report['kept']:.1%} of the filters' variance.",
        f"Curve of {unit} by count, as dropped: {around}. It bends most at {report['elbow']}.",
    ]
    if report["by"] == By.CLUSTERING.value:
        lines[1] = lines[1].replace("as dropped", "by k-means")
    if report["top1"]:
        top1 = report["top1"]
        lines.append(
            f"Top-1 on {top1['images']:,} images of {top1['dataset']}: {top1['learned']:.2%} as "
            f"learned, {top1['keys']:.2%} with these keys."
        )
    poor = [key["key"] for key in report["keys"] if numbered and not key["own_well"]]
    if poor:
        lines.append(
            f"The operator of its number does not fit key {', '.join(map(str, poor))} well: "
            "fits of this file are of little worth there, and may fail."
        )
    if not numbered:
        lines.append("Other commands take 8 keys as operators 1 to 8; these are numbered by share.")
    left = report["left_out"]
    if left["constant"]:
        lines.append(f"Left out: {left['constant']} filters that are constant or next to it.")
    if left["sizes"]:
        sizes = ", ".join(f"{number:,} of {k}x{k}" for k, number in left["sizes"].items())
        lines.append(f"Left out: {sizes}.")
    lines += [
        f"Left out: {layer['source']}, {layer['name']}: {layer['reason']}."
        for layer in left["layers"]
    ]
    return lines
