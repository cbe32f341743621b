"""The 8 master keys: the learned filters, the operator each one is, and how they are normalized.

`master_keys.csv` holds the filters that Babaiee, Kiasari, Rus and Grosu extracted from ConvNeXt V2
Tiny ("The Quest for Universal Master Key Filters in DS-CNNs", arXiv 2509.11711), as published with
Lindeberg, Babaiee, Kiasari, J. Math. Imaging and Vision 68:22 (2026), arXiv 2509.12746 [LBK], at
https://github.com/tonylindeberg/masterfiltmodel under CC BY 4.0.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.errors import KeysError
from mkf.spread import coordinates, dc_offset, spread

COUNT = 8
SIZE = 7  # of the published keys
SIZES = range(3, 32, 2)
_SIZES_TEXT = f"from {SIZES[0]}x{SIZES[0]} to {SIZES[-1]}x{SIZES[-1]}"


class Operator(Enum):
    """What is done to the discrete Gaussian T along a key's axis [LBK, section 4]."""

    SMOOTH = "T"
    FORWARD = "d+ T"
    BACKWARD = "d- T"
    CENTRAL = "d0 T"
    SHARPEN = "delta - gamma * Laplacian T"


class ScaleGroup(Enum):
    """The keys that share one scale when scales are shared; key 7 keeps its own."""

    G1 = "G1"
    G2 = "G2"
    OWN = "own"


@dataclass(frozen=True)
class MasterKey:
    """The operator that one key is: along `axis` (None for keys 7 and 8), in its scale group."""

    operator: Operator
    axis: Literal["x", "y"] | None
    group: ScaleGroup


MASTER_KEYS: Mapping[int, MasterKey] = {
    1: MasterKey(Operator.FORWARD, "y", ScaleGroup.G1),
    2: MasterKey(Operator.BACKWARD, "x", ScaleGroup.G1),
    3: MasterKey(Operator.BACKWARD, "y", ScaleGroup.G1),
    4: MasterKey(Operator.FORWARD, "x", ScaleGroup.G1),
    5: MasterKey(Operator.CENTRAL, "x", ScaleGroup.G2),
    6: MasterKey(Operator.CENTRAL, "y", ScaleGroup.G2),
    7: MasterKey(Operator.SHARPEN, None, ScaleGroup.OWN),
    8: MasterKey(Operator.SMOOTH, None, ScaleGroup.G1),
}


def load_keys(path: Path | None = None, *, count: int | None = COUNT) -> NDArray[np.float64]:
    """Read key filters from a CSV file with the columns key, row, c0, ..., c6 (for 7x7).

    Parameters
    ----------
    path : Path, optional
        The file, its rows in any order; by default the published master keys. The keys are squares
        of one odd size from 3 to 31, as many as there are columns c0, c1, ...
    count : int or None
        How many keys the file must hold; None: any number, from key 1 on without a gap.

    Returns
    -------
    ndarray of float64, shape (count, k, k)
        Key 1 first, row 0 on top.

    Raises
    ------
    KeysError
        If the file cannot be read or does not hold `count` complete keys; it names file and line.
    """
    source = Path(__file__).with_name("master_keys.csv") if path is None else Path(path)
    wanted = f"give a CSV file of {count} key filters" if count else "give a CSV file of keys"
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise KeysError(f"{source}: {reason}; {wanted}") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{source} is not text; {wanted}") from error

    lines = text.splitlines()
    found: dict[tuple[int, int], list[float]] = {}  # by key and row
    reader = csv.reader(lines, skipinitialspace=True, strict=True)
    try:
        header = next(reader, [])
        columns = _read_header(source, header)
        size = len(columns) - 2
        for fields in filter(None, reader):
            place = f"{source}, line {reader.line_num}"
            # Where any count goes, no file holds more keys than lines.
            key, row, values = _read_row(place, fields, columns, len(header), count or len(lines))
            if (key, row) in found:
                raise KeysError(f"{place}: key {key}, row {row} appears twice; keep one of them")
            found[key, row] = values
    except csv.Error as error:
        place = f"{source}, line {reader.line_num}"
        raise KeysError(f"{place}: not CSV ({error}); write plain comma-separated rows") from error

    number = count or max((key for key, _ in found), default=1)
    whole = [(key, row) for key in range(1, number + 1) for row in range(size)]
    missing = [place for place in whole if place not in found]
    if missing:
        key, row = missing[0]
        raise KeysError(
            f"{source}, last line: {len(missing)} of {len(whole)} rows are missing, the first "
            f"is key {key}, row {row}; give rows 0-{size - 1} of keys 1-{number}"
        )
    return np.array([found[place] for place in whole]).reshape(number, size, size)


def save_keys(path: Path, keys: ArrayLike) -> None:
    """Write keys (n, k, k), key 1 first, as `load_keys` reads them: exactly, row by row.

    Raises
    ------
    KeysError
        If the keys are not finite squares of one odd size from 3 to 31.
    OSError
        If the file cannot be written.
    """
    values = np.asarray(keys, dtype=np.float64)
    shape = values.shape
    if values.ndim != 3 or not shape[0] or shape[1] != shape[2] or shape[1] not in SIZES:
        raise KeysError(f"keys of shape {shape} have no file: give odd squares, {_SIZES_TEXT}")
    if not np.isfinite(values).all():
        raise KeysError("keys with values that are not finite have no file: give finite numbers")
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_header(shape[1]))
        for key, h in enumerate(values.tolist(), start=1):
            writer.writerows([key, row, *taps] for row, taps in enumerate(h))


def normalize(key: int, h: ArrayLike) -> NDArray[np.float64]:
    """Bring a learned key to the scale of its idealized model [LBK, section 4].

    Keys 1-6 are divided by their response, as a convolution at the center, to the first-order
    monomial along their own axis shifted to the filter's mean. From keys 7 and 8 their offset
    (`offset`) is subtracted; then they are divided by their sum.

    Parameters
    ----------
    key : int
        The key's number, 1-8.
    h : array_like, shape (k, k)
        The learned filter, k odd, row 0 on top.

    Returns
    -------
    ndarray of float64, shape (k, k)
        The same for every multiple of `h`, negative ones included.

    Raises
    ------
    KeysError
        If the filter is constant or has nothing to be divided by.
    """
    operator = master_key(key)
    values = np.asarray(h, dtype=np.float64)
    greatest = np.abs(values).max()
    if np.ptp(values / (greatest or 1)) <= _NEGLIGIBLE:
        raise KeysError(f"key {key} is constant, so no method can fit it; give its learned values")
    values = values / greatest
    if operator.axis is None:
        values = values - offset(key, values)
        response = values.sum()
        what = "its values sum to 0 once its offset is removed"
    else:
        along_x = operator.axis == "x"
        mean = spread(values).mean[0 if along_x else 1]
        profile = values.sum(axis=0) if along_x else values.sum(axis=1)[::-1]
        # A convolution reads the monomial backward: m(-x) = -x - mean, not m(x) = x - mean.
        response = profile @ (-coordinates(len(profile)) - mean)
        what = f"it does not respond to a ramp along {operator.axis}"
    if abs(response) <= _NEGLIGIBLE * np.abs(values).sum():
        raise KeysError(
            f"key {key} cannot be normalized, so no method can fit it: {what}; "
            f"give a filter of the kind {operator.operator.value}"
        )
    return np.asarray(values / response)


def offset(key: int, h: ArrayLike) -> float:
    """The DC offset of key 7 or 8: the one that makes it narrowest [LBK, section 4].

    [LBK] read its offsets off sampled curves, 8e-6 and 15e-6 from the minima, which are at kinks.
    Little as that is, gamma of key 7 follows it 120-fold. So that the published tables are met, the
    published offset is taken, in proportion to the filter, wherever it is as good as the best one
    to 2e-5 (relative); for other filters than the published ones it hardly ever is.

    Parameters
    ----------
    key : int
        7 or 8.
    h : array_like, shape (k, k)
        The learned filter, k odd, not constant.

    Returns
    -------
    float
        In the units of `h`.
    """
    if key not in _PUBLISHED_OFFSET:
        raise KeysError(f"key {key} has no DC offset: ask for key 7 or 8")
    values = np.asarray(h, dtype=np.float64)
    published, greatest = _PUBLISHED_OFFSET[key]
    extreme = values.flat[np.argmax(np.abs(values))]
    return dc_offset(values, preferred=float(published / greatest * extreme))


def normalize_keys(keys: ArrayLike) -> NDArray[np.float64]:
    """Normalize all 8 keys: shape (8, k, k) in and out, else as `normalize`."""
    values = np.asarray(keys, dtype=np.float64)
    return np.stack([normalize(key, h) for key, h in enumerate(values, start=1)])


def master_key(key: int) -> MasterKey:
    """The operator of key 1-8; KeysError for any other number."""
    if key not in MASTER_KEYS:
        raise KeysError(f"there is no key {key!r}: give a number from 1 to {COUNT}")
    return MASTER_KEYS[key]


# Offset and greatest value of the published keys 7 and 8.
_PUBLISHED_OFFSET = {7: (-0.011775, 0.982706), 8: (-0.038633, 0.920885)}

# Sums of 49 rounded values of order 1 that should cancel are off by about 1e-15.
_NEGLIGIBLE = 1e-12


def _header(size: int) -> list[str]:
    return ["key", "row", *(f"c{column}" for column in range(size))]


def _read_header(source: Path, fields: list[str]) -> dict[str, int]:
    """Where key, row and each tap stand; other columns are ignored."""
    names = [field.strip().lower() for field in fields]
    place = f"{source}, line 1"
    taps = [int(name[1:]) for name in names if re.fullmatch(r"c[0-9]{1,9}", name)]
    size = max(taps, default=SIZE - 1) + 1  # one tap that is left out does not change the size
    if size not in SIZES:
        raise KeysError(
            f"{place}: the columns go up to c{size - 1}; keys are odd squares, {_SIZES_TEXT}"
        )
    header = _header(size)
    missing = [name for name in header if name not in names]
    if missing:
        raise KeysError(
            f"{place}: columns {', '.join(missing)} are missing; "
            f"start the file with the header {','.join(header)}"
        )
    twice = [name for name in header if names.count(name) > 1]
    if twice:
        raise KeysError(f"{place}: column {twice[0]} appears twice; keep one of them")
    return {name: names.index(name) for name in header}


def _read_row(
    place: str, fields: list[str], columns: Mapping[str, int], width: int, last_key: int
) -> tuple[int, int, list[float]]:
    """Key, row and values of one line."""
    if len(fields) != width:
        raise KeysError(f"{place}: {len(fields)} fields under a header of {width}; give {width}")
    _, _, *taps = columns
    key = _whole_number(place, "key", fields[columns["key"]], 1, last_key)
    row = _whole_number(place, "row", fields[columns["row"]], 0, len(taps) - 1)
    values = []
    for name in taps:
        field = fields[columns[name]]
        try:
            value = float(field)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise KeysError(f"{place}: {name} is {field!r}; give a finite number")
        values.append(value)
    return key, row, values


def _whole_number(place: str, name: str, field: str, least: int, greatest: int) -> int:
    try:
        number = int(field)
    except ValueError:
        number = least - 1
    if not least <= number <= greatest:
        raise KeysError(f"{place}: {name} is {field!r}; give a number from {least} to {greatest}")
    return number
