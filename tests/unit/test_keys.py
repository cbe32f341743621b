from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mkf.errors import KeysError
from mkf.keys import load_keys, master_key, normalize, normalize_keys, offset, save_keys

HEADER = "key,row,c0,c1,c2,c3,c4,c5,c6"


def lines_of(keys: np.ndarray) -> list[str]:
    """As `save_keys` is meant to write them, written in another way."""
    rows = [
        ",".join(map(str, (key + 1, row, *values)))
        for key, h in enumerate(keys)
        for row, values in enumerate(h.tolist())
    ]
    return [HEADER, *rows]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_published_keys() -> None:
    keys = load_keys()
    assert keys.shape == (8, 7, 7)
    assert keys.dtype == np.float64
    assert keys[0, 4, 3] == 0.936427
    assert keys[7, 3, 3] == 0.920885


def test_files_round_trip_in_any_order(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).normal(size=(8, 7, 7))
    header, *rows = lines_of(keys)
    path = write(tmp_path / "keys.csv", [header, *reversed(rows)])
    np.testing.assert_array_equal(load_keys(path), keys)


def test_marks_of_spreadsheets_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "keys.csv"
    path.write_bytes(("\ufeff" + "\r\n".join(lines_of(load_keys())) + "\r\n\r\n").encode())
    np.testing.assert_array_equal(load_keys(path), load_keys())


@pytest.mark.parametrize(("count", "size"), [(8, 7), (8, 3), (1, 31), (23, 5)])
def test_saved_keys_of_other_sizes_and_counts_come_back(
    tmp_path: Path, count: int, size: int
) -> None:
    keys = np.random.default_rng(1).normal(size=(count, size, size)) / 3
    path = tmp_path / "keys.csv"
    save_keys(path, keys)
    np.testing.assert_array_equal(load_keys(path, count=None), keys)
    np.testing.assert_array_equal(load_keys(path, count=count), keys)
    if count == 8:
        np.testing.assert_array_equal(load_keys(path), keys)
    elif count < 8:
        with pytest.raises(KeysError, match="rows are missing, the first is key 2, row 0"):
            load_keys(path)
    else:
        with pytest.raises(KeysError, match="key is '9'; give a number from 1 to 8"):
            load_keys(path)


def test_saved_keys_are_plain_rows(tmp_path: Path) -> None:
    save_keys(tmp_path / "keys.csv", load_keys())
    assert (tmp_path / "keys.csv").read_text().splitlines() == lines_of(load_keys())


def test_any_count_still_means_without_a_gap(tmp_path: Path) -> None:
    header, *rows = lines_of(load_keys())
    path = write(tmp_path / "keys.csv", [header, *rows[:7], *rows[14:21]])
    with pytest.raises(KeysError, match="7 of 21 rows are missing, the first is key 2, row 0"):
        load_keys(path, count=None)
    for key, last in (("0", 8), ("1000000000", 8)):
        path = write(tmp_path / "keys.csv", [header, *rows[:6], f"{key},6,1,1,1,1,1,1,1"])
        with pytest.raises(KeysError, match=f"key is '{key}'; give a number from 1 to {last}"):
            load_keys(path, count=None)
    path = write(tmp_path / "keys.csv", [header])
    with pytest.raises(KeysError, match="7 of 7 rows are missing"):
        load_keys(path, count=None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.zeros((8, 7, 5)), r"shape \(8, 7, 5\)"),
        (np.zeros((8, 4, 4)), "odd squares, from 3x3 to 31x31"),
        (np.zeros((0, 7, 7)), r"shape \(0, 7, 7\)"),
        (np.full((1, 3, 3), np.inf), "not finite"),
    ],
)
def test_keys_that_no_file_could_hold_are_not_saved(
    tmp_path: Path, keys: np.ndarray, message: str
) -> None:
    with pytest.raises(KeysError, match=message):
        save_keys(tmp_path / "keys.csv", keys)
    assert not (tmp_path / "keys.csv").exists()


Change = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "line 1: columns key, row, c0"),
        (lambda lines: [HEADER], "56 of 56 rows are missing"),
        (lambda lines: [lines[0].replace("c3", "d3"), *lines[1:]], "line 1: columns c3"),
        (
            lambda lines: [lines[0] + ",c7", *(x + ",0" for x in lines[1:])],
            "up to c7; keys are odd squares",
        ),
        (lambda lines: [lines[0] + ",c99", *(x + ",0" for x in lines[1:])], "up to c99"),
        (lambda lines: ["key,row,c0", *lines[1:]], "up to c0; keys are odd squares"),
        (lambda lines: [lines[0] + ",c6", *(x + ",0" for x in lines[1:])], "c6 appears twice"),
        (lambda lines: lines[:-1], "last line: 1 of 56 rows are missing.*key 8, row 6"),
        (lambda lines: lines[:50], "7 of 56 rows are missing.*key 8, row 0"),
        (lambda lines: [*lines, lines[9]], "line 58: key 2, row 1 appears twice"),
        (lambda lines: [*lines, "9,0,1,1,1,1,1,1,1"], "line 58: key is '9'"),
        (lambda lines: [*lines, "1,7,1,1,1,1,1,1,1"], "line 58: row is '7'"),
        (lambda lines: [*lines[:-1], "8,6,1,1,1,nan,1,1,1"], "line 57: c3 is 'nan'"),
        (lambda lines: [*lines[:-1], "8,6,1,1,1,inf,1,1,1"], "line 57: c3 is 'inf'"),
        (lambda lines: [*lines[:-1], "8,6,1,1,1,,1,1,1"], "line 57: c3 is ''"),
        (lambda lines: [*lines[:-1], "8,6,1,1,1"], "line 57: 5 fields under a header of 9"),
        (lambda lines: [*lines[:-1], "8,6,1,1,1,1,1,1,1,1"], "line 57: 10 fields"),
        (lambda lines: [*lines[:-1], '8,6,"1,1'], "not CSV"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path: Path, change: Change, message: str) -> None:
    path = write(tmp_path / "keys.csv", change(lines_of(load_keys())))
    with pytest.raises(KeysError, match=message) as caught:
        load_keys(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="No such file"):
        load_keys(tmp_path / "none.csv")
    with pytest.raises(KeysError, match="directory"):
        load_keys(tmp_path)
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(KeysError, match="not text"):
        load_keys(tmp_path / "image.csv")


def test_normalized_keys_respond_with_one_to_their_monomial() -> None:
    x = np.arange(-3, 4)
    for key, h in enumerate(normalize_keys(load_keys())[:6], start=1):
        along_x = master_key(key).axis == "x"
        profile = h.sum(axis=0) if along_x else h.sum(axis=1)[::-1]
        weights = np.abs(h).sum(axis=0) if along_x else np.abs(h).sum(axis=1)[::-1]
        mean = weights @ x / weights.sum()
        # The convolution at the center, sample by sample: sum of h(x) m(-x).
        response = sum(
            value * (-position - mean) for position, value in zip(x, profile, strict=True)
        )
        assert response == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("key", [7, 8])
def test_normalized_smoothing_keys_sum_to_one(key: int) -> None:
    assert normalize(key, load_keys()[key - 1]).sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("factor", [-1, 3.5, 1e300, -1e-300])
def test_multiples_of_a_key_are_normalized_alike(factor: float) -> None:
    keys = load_keys()
    np.testing.assert_allclose(normalize_keys(factor * keys), normalize_keys(keys), rtol=1e-9)


def test_published_offsets() -> None:
    keys = load_keys()
    assert offset(7, keys[6]) == pytest.approx(-0.011775, abs=1e-9)
    assert offset(8, keys[7]) == pytest.approx(-0.038633, abs=1e-9)
    assert offset(7, -2 * keys[6]) == pytest.approx(2 * 0.011775, abs=1e-9)
    with pytest.raises(KeysError, match="no DC offset"):
        offset(1, keys[0])


def test_keys_with_nothing_to_divide_by_are_refused() -> None:
    keys = load_keys()
    with pytest.raises(KeysError, match="key 5 is constant"):
        normalize(5, np.full((7, 7), 0.3))
    with pytest.raises(KeysError, match="key 8 is constant"):
        normalize(8, np.zeros((7, 7)))
    with pytest.raises(KeysError, match=r"key 2 .* ramp along x"):
        normalize(2, np.outer(np.arange(-3, 4), [0, 0, 0, 1, 0, 0, 0]))
    zero_sum = np.zeros((7, 7))
    zero_sum[3, 2:5] = 1, 0, -1
    with pytest.raises(KeysError, match=r"key 7 .* sum to 0"):
        normalize(7, zero_sum)
    with pytest.raises(KeysError, match="no key 9"):
        normalize(9, keys[0])
