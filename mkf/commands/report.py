"""`mkf report`: the keys, the fits and a network's filters on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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


def report(
    source: Annotated[
        str,
        typer.Argument(
            help="The network: demo, an ONNX file, timm:NAME or checkpoint:FILE.", metavar="SOURCE"
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE.html")] = Path(
        "report.html"
    ),
    method: MethodOption = Method.B,
    scales: ScalesOption = Scales.SEPARATE,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    ladder: Annotated[
        Path | None, typer.Option(help="What `mkf ladder` wrote, for its figure and table.")
    ] = None,
    discovered: Annotated[
        Path | None,
        typer.Option(
            help="The .json file that `mkf discover` wrote beside its keys: found keys, cost curve."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="An evaluation's results.json, for the accuracies.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the keys beside their models, their scales, the layers' keys, the costliest filters.

    The page is one HTML file with its figures inside, for screens of any width and for paper.
    """
    from mkf.errors import InputError
    from mkf.keys import load_keys
    from mkf.ladder_results import read_ladder
    from mkf.report.discovered import read_discovered
    from mkf.report.network import load_network, study_network
    from mkf.report.page import read_evaluation, render

    # What can be refused at once is read before a network is loaded.
    rungs = read_ladder(ladder) if ladder else None
    found = read_discovered(discovered) if discovered else None
    evaluation = read_evaluation(results) if results else None
    learned = load_keys(keys)
    network = load_network(source)
    study = study_network(
        network, learned, method=method.value, scales=scales.value, boundary=boundary.value
    )
    made = render(
        network, study, keys_file=keys, ladder=rungs, discovered=found, evaluation=evaluation
    )
    try:
        out.write_text(made.html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}; name a place that can be written") from error
    if as_json:
        summary = {
            "out": str(out),
            "source": network.source,
            "license": network.license,
            "random_weights": network.random_weights,
            "method": method.value,
            "scales": scales.value,
            "boundary": boundary.value,
            "filters": study.filters,
            "kept": study.kept,
            "keys": [
                {"key": pair.fit.key, "cosine": pair.cosine, "missed": pair.missed}
                for pair in study.pairs
            ],
            "figures": [figure.name for figure in made.figures],
        }
        print(json.dumps(summary))
    else:
        print(f"{out}: {len(made.figures)} figures of {network.source}, {len(made.html) >> 10} KiB")
        print(f"License of the weights: {network.license}")
