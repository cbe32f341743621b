"""The protocol's table on the screen, as Markdown and JSON, and its figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.protocol.figure import draw
from benchmarks.protocol.table import (
    Comparison,
    Difference,
    Interval,
    Row,
    compare,
    headline,
    read_runs,
    to_json,
)

ABOUT = {
    "learned": "learned",
    "A": "A",
    "B": "B",
    "C1": "C1 (method C, separate scales)",
    "C2": "C2 (method C, isotropic)",
    "D1": "D1 (method D, separate scales)",
    "D2": "D2 (method D, isotropic)",
    "random": "random",
}
HEADER = (
    "filters | kept, % | top-1, % | each seed | minus learned, pp | over seeds | over images "
    "| minus B, pp | over seeds | over images"
)
NONE = "-"


def write_results(out: Path, *, console: Console) -> None:
    """`protocol.json`, `protocol.md` and `protocol.png` from the folder's `runs.jsonl`.

    Raises
    ------
    InputError
        There are no runs.
    """
    records = read_runs(out / "runs.jsonl")
    comparisons = compare(records)
    summary = to_json(comparisons, records)
    (out / "protocol.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (out / "protocol.md").write_text(markdown(comparisons, summary), encoding="utf-8")
    draw(comparisons, out / "protocol.png")
    for comparison in comparisons:
        console.print(_screen(comparison))
        console.print(comparison.verdict)
    console.print(headline(comparisons), style="bold")
    console.print(f"Table, figures and runs: {out}")


def markdown(comparisons: Sequence[Comparison], summary: dict[str, Any]) -> str:
    """The page of results."""
    parts = ["# Frozen filters against learned ones", ""]
    if not summary["complete"]:
        parts += ["**Incomplete: some runs are missing.**", ""]
    parts += [f"**{headline(comparisons)}**", ""]
    parts += [f"- {comparison.verdict}" for comparison in comparisons]
    parts += ["", _how(comparisons, summary), ""]
    for comparison in comparisons:
        cells = [cell.strip() for cell in HEADER.split("|")]
        parts += [
            f"## {comparison.dataset}",
            "",
            "| " + " | ".join(cells) + " |",
            "|---|" + "---:|" * (len(cells) - 1),
            *(f"| {' | '.join(_cells(row))} |" for row in comparison.rows),
            "",
        ]
    return "\n".join([*parts, "![Dots: mean difference to the learned network](protocol.png)", ""])


def _how(comparisons: Sequence[Comparison], summary: dict[str, Any]) -> str:
    settings = summary["settings"][comparisons[0].dataset]
    recipe = settings["recipe"]
    stages = zip(settings["dims"], settings["depths"], strict=True)
    filters = [channels * blocks for channels, blocks in stages]
    seeds = max(len(comparison.seeds) for comparison in comparisons)
    freedom = (
        f"Student's t with {seeds - 1} degrees of freedom" if seeds > 1 else "none of one seed"
    )
    return (
        f"A ConvNeXt V2 in small (channels {settings['dims']}, blocks {settings['depths']}, stem "
        f"of 2, {sum(filters)} depthwise filters of 7x7) is trained from a seeded start on "
        f"{settings['images']:,} training images drawn by the seed, {recipe['epochs']} epochs. "
        "Its filters choose their keys; the idealized ones go into the same start and stay frozen "
        "while all the rest is trained with the same recipe, images and seed. `random`: the same "
        f"with 8 random 7x7 filters, drawn by the seed. Seeds: {seeds}; all "
        f"{comparisons[0].test_images:,} test images.\n\n"
        "How to read it:\n\n"
        "- All intervals are of 95 %, paired, and not adjusted for the number of comparisons: of "
        "20 true ties, one looks like a difference.\n"
        f"- *Over seeds*: {freedom}: mostly wide, by luck narrow where seeds agree. It answers "
        "whether another training would show the same. *Over images*: each test image's mean over "
        "the seeds; it answers for these trained networks alone, and is no evidence for a method. "
        "The sentences above go by the seeds.\n"
        "- *Kept*: the share of the learned filters' variance that the frozen ones have. `random` "
        "shows what choosing the best of 8 arbitrary filters keeps; as far as the others are near "
        "it, the learned filters are hardly keys.\n"
        "- The budget is small, and the networks are far from converged. The published comparison "
        "is of full ImageNet trainings of ConvNeXt V2 Tiny. The learning rate is the better of two "
        "(0.004, 0.008) for the learned network on CIFAR-10's training images.\n"
        f"- At 2x2 pixels, in the last stage, a 7x7 filter reaches 9 of its taps: "
        f"{filters[-1]} of the {sum(filters)} filters are 3x3 ones in effect.\n\n"
        "`runs.jsonl` holds a line a run with its settings and, packed, which test images it got "
        "right; `python -m benchmarks.protocol --table-only` makes this page from it."
    )


def _screen(comparison: Comparison) -> Table:
    table = Table(
        title=f"{comparison.dataset}: top-1 in %, differences in pp \\[over seeds] (over images)"
    )
    for name in ("filters", "kept", "top-1", "each seed", "minus learned", "minus B"):
        table.add_column(name, justify="left" if name == "filters" else "right")
    for row in comparison.rows:
        _, kept, top1, each, *_ = _cells(row)
        table.add_row(row.arm, kept, top1, each, _lines(row.minus_learned), _lines(row.minus_b))
    return table


def _cells(row: Row) -> list[str]:
    return [
        ABOUT[row.arm],
        NONE if row.kept is None else f"{100 * row.kept:.1f}",
        f"{row.top1:.2f}",
        " ".join(f"{top1:.2f}" for top1 in row.top1_of_seed.values()),
        *_difference_cells(row.minus_learned),
        *_difference_cells(row.minus_b),
    ]


def _difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return [NONE] * 3
    return [
        f"{difference.points:+.2f}",
        NONE if difference.seeds is None else _range(difference.seeds),
        _range(difference.images),
    ]


def _lines(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    points, seeds, images = _difference_cells(difference)
    return f"{points}\n\\[{seeds}]\n({images})"


def _range(interval: Interval) -> str:
    return f"{interval.low:+.2f} to {interval.high:+.2f}"
