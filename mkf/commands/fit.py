"""`mkf fit`, `mkf spread` and `mkf kernels`: the fits, and what they start from and lead to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

# numpy and scipy take longer to import than most commands to run: each command imports what it
# needs, so that `mkf --help` and wrong options answer at once.
if TYPE_CHECKING:
    from mkf.fitting import KeyFit


def fit(
    method: MethodOption,
    scales: ScalesOption = Scales.SEPARATE,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit scales to the 8 keys, and print how near the models come to the normalized keys."""
    fits = _fit(method, scales, boundary, keys)
    if as_json:
        fields = ("key", "sigma_x", "sigma_y", "gamma", "l1", "l2")
        _print_json(
            {
                "method": method.value,
                "scales": scales.value,
                "boundary": boundary.value,
                "keys": [{field: getattr(one, field) for field in fields} for one in fits],
            }
        )
        return
    from mkf.keys import MASTER_KEYS

    rows = []
    for one in fits:
        numbers = [one.sigma_x, one.sigma_y, one.gamma, one.l1, one.l2]
        rows.append([str(one.key), _formula(MASTER_KEYS[one.key]), *map(_number, numbers)])
    caption = None
    if method is Method.C and keys is None:
        caption = "The paper prints gamma 0.522 for key 7, which is not of least l1 distance."
    _print_table(
        f"Method {method.value}, {scales.value} scales, {boundary.value} boundary",
        ["key", "model", "sx", "sy", "gamma", "l1", "l2"],
        rows,
        caption,
    )


def spread(keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """Print mean, covariance and DC offset of the 8 keys as given, before any normalization."""
    from mkf.errors import InputError, KeysError
    from mkf.keys import load_keys, offset
    from mkf.spread import spread as spread_of

    found: list[dict[str, Any]] = []
    for key, h in enumerate(load_keys(keys), start=1):
        try:
            one = spread_of(h)
            dc = offset(key, h) if key in (7, 8) else None
        except InputError as error:
            raise KeysError(f"key {key}: {error}") from error
        found.append(
            {"key": key, "mean": list(one.mean), "covariance": one.covariance.tolist(), "dc": dc}
        )
    if as_json:
        _print_json({"keys": found})
        return
    rows = []
    for entry in found:
        (xx, xy), (_, yy) = entry["covariance"]
        numbers = [*entry["mean"], xx, xy, yy]
        offset_text = "" if entry["dc"] is None else f"{entry['dc']:.6f}"
        rows.append([str(entry["key"]), *map(_number, numbers), offset_text])
    _print_table(
        "Spread of the keys (pixels; x to the right, y up)",
        ["key", "mean x", "mean y", "var x", "cov xy", "var y", "DC offset"],
        rows,
    )


def kernels(
    method: MethodOption,
    scales: ScalesOption = Scales.SEPARATE,
    boundary: BoundaryOption = Boundary.SYMMETRIC,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the 8 idealized 7x7 kernels, each of unit l2 norm, row 0 on top."""
    from mkf.fitting import idealized_kernels

    fits = _fit(method, scales, boundary, keys)
    made = idealized_kernels(fits, boundary=boundary.value)  # (8, 7, 7)
    if as_json:
        _print_json(
            {
                "keys": [
                    {"key": one.key, "kernel": kernel.tolist()}
                    for one, kernel in zip(fits, made, strict=True)
                ]
            }
        )
        return
    for one, kernel in zip(fits, made, strict=True):
        rows = [[str(3 - row), *map(_number, values)] for row, values in enumerate(kernel)]
        _print_table(f"Key {one.key}", ["y \\ x", *map(str, range(-3, 4))], rows)


def _fit(method: Method, scales: Scales, boundary: Boundary, keys: Path | None) -> list[KeyFit]:
    from mkf.fitting import fit_keys
    from mkf.keys import load_keys

    return fit_keys(
        load_keys(keys), method=method.value, scales=scales.value, boundary=boundary.value
    )


def _formula(key: Any) -> str:
    if key.axis is None:
        return str(key.operator.value)
    return f"{key.operator.value} in {key.axis}"


def _number(value: float | None) -> str:
    # Adding 0 turns a rounded -0.0 into 0.
    return "" if value is None else f"{round(value, 3) + 0:.3f}"


def _print_json(value: Mapping[str, object]) -> None:
    typer.echo(json.dumps(value, allow_nan=False))


def _print_table(
    title: str, columns: list[str], rows: list[list[str]], caption: str | None = None
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
