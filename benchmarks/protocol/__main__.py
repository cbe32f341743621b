"""`python -m benchmarks.protocol`: run the grid of trainings, then write the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.protocol.records import DatasetName, Record
from mkf.errors import MkfError

RESULTS = Path("benchmarks/results/protocol")  # -m finds the package in the root alone


def main(
    datasets: Annotated[
        list[DatasetName] | None,
        typer.Option(help="fashion-mnist, cifar10; repeat. Default: what is at hand."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 1 to this number.", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs of every training.", min=1)] = 3,
    images: Annotated[
        int, typer.Option(help="Training images, drawn by the seed.", min=64)
    ] = 20_000,
    threads: Annotated[int, typer.Option(help="torch's threads; 0: its choice.", min=0)] = 0,
    work: Annotated[
        Path, typer.Option(help="Checkpoints and finished runs; a second call goes on from them.")
    ] = Path("build/protocol"),
    out: Annotated[Path, typer.Option(help="Where runs, table and figure are put.")] = RESULTS,
    cifar10: Annotated[
        Path | None,
        typer.Option(help="CIFAR-10 as .tar.gz of train/ and test/, a folder of images a class."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="By torch.compile; needs a C++ compiler.")
    ] = False,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Train nothing; table and figure from OUT's runs.")
    ] = False,
) -> None:
    """Train a small ConvNeXt V2 with learned and with frozen filters; say which are the best.

    Eight arms a dataset and seed: learned filters; idealized ones by methods A, B, C (C1, C2) and D
    (D1, D2); 8 random filters. Ctrl-C, then the same call again: it goes on where it ended.
    """
    if not table_only:
        at_hand = [DatasetName.FASHION_MNIST, *([DatasetName.CIFAR10] if cifar10 else [])]
        out.mkdir(parents=True, exist_ok=True)
        lines = ""
        for records in _runs(
            datasets or at_hand, seeds, epochs, images, threads, work, cifar10, compiled
        ):
            lines += "".join(json.dumps(record.to_json()) + "\n" for record in records)
            (out / "runs.jsonl").write_text(lines, encoding="utf-8")
    from benchmarks.protocol.report import write_results

    write_results(out, console=Console())


def _runs(
    names: Sequence[DatasetName],
    seeds: int,
    epochs: int,
    images: int,
    threads: int,
    work: Path,
    cifar10: Path | None,
    compiled: bool,
) -> Iterator[list[Record]]:
    """The arms of one dataset and seed after the other."""
    import torch

    from benchmarks.protocol.data import load_dataset
    from benchmarks.protocol.training import run_seed

    if threads:
        torch.set_num_threads(threads)
    data = {name: load_dataset(name, cifar10=cifar10, cache=work) for name in names}
    # Seeds outside: what an early end leaves is whole seeds of every dataset.
    for seed in range(1, seeds + 1):
        for name in names:
            yield run_seed(
                name,
                data[name],
                seed=seed,
                images=images,
                epochs=epochs,
                work=work,
                compiled=compiled,
            )


if __name__ == "__main__":
    try:
        typer.run(main)
    except MkfError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
