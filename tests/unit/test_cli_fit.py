from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from mkf.commands.fit import fit, kernels, spread
from mkf.errors import KeysError
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys

app = typer.Typer()
for command in (fit, spread, kernels):
    app.command()(command)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def answer(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_fit_as_json() -> None:
    found = answer("fit", "--method", "C", "--scales", "shared", "--boundary", "exact")
    expected = fit_keys(load_keys(), method="C", scales="shared", boundary="exact")
    assert list(found) == ["method", "scales", "boundary", "keys"]
    assert (found["method"], found["scales"], found["boundary"]) == ("C", "shared", "exact")
    for entry, one in zip(found["keys"], expected, strict=True):
        assert entry == {
            "key": one.key,
            "sigma_x": one.sigma_x,
            "sigma_y": one.sigma_y,
            "gamma": one.gamma,
            "l1": one.l1,
            "l2": one.l2,
        }
    assert found["keys"][0]["gamma"] is None
    assert found["keys"][6]["gamma"] > 0


def test_defaults() -> None:
    found = answer("fit", "--method", "B")
    assert (found["scales"], found["boundary"]) == ("separate", "symmetric")


def test_spread_as_json() -> None:
    found = answer("spread")["keys"]
    assert [entry["key"] for entry in found] == list(range(1, 9))
    assert [entry["dc"] is None for entry in found] == [True] * 6 + [False] * 2
    assert found[6]["dc"] == pytest.approx(-0.011775, abs=1e-6)
    h = np.abs(load_keys()[0])
    x = np.arange(-3, 4)
    assert found[0]["mean"][0] == pytest.approx(h.sum(axis=0) @ x / h.sum())
    assert found[0]["mean"][1] == pytest.approx(h.sum(axis=1) @ x[::-1] / h.sum())
    (xx, xy), (yx, yy) = found[0]["covariance"]
    assert xy == yx
    assert min(xx, yy) > 0


def test_kernels_as_json() -> None:
    found = answer("kernels", "--method", "D", "--scales", "isotropic")["keys"]
    expected = idealized_kernels(fit_keys(load_keys(), method="D", scales="isotropic"))
    assert [entry["key"] for entry in found] == list(range(1, 9))
    np.testing.assert_array_equal([entry["kernel"] for entry in found], expected)


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.csv"
    lines = ["key,row,c0,c1,c2,c3,c4,c5,c6"]
    for key, h in enumerate(load_keys()[[3, 1, 2, 0, 4, 5, 6, 7]].tolist(), start=1):
        lines += [",".join(map(str, (key, row, *values))) for row, values in enumerate(h)]
    path.write_text("\n".join(lines))
    published = answer("spread")["keys"]
    swapped = answer("spread", "--keys", str(path))["keys"]
    assert swapped[0]["mean"] == published[3]["mean"]
    assert answer("fit", "--method", "A", "--keys", str(path)) != answer("fit", "--method", "A")


def test_a_constant_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "keys.csv"
    lines = ["key,row,c0,c1,c2,c3,c4,c5,c6"]
    lines += [f"{key},{row},1,1,1,1,1,1,1" for key in range(1, 9) for row in range(7)]
    path.write_text("\n".join(lines))
    result = run("spread", "--keys", str(path))
    assert isinstance(result.exception, KeysError)
    assert "key 7" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [("fit", "--method", "B"), ("fit", "--method", "C"), ("spread",), ("kernels", "--method", "B")],
)
def test_tables_for_people(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "key" in result.stdout.lower()
    assert "…" not in result.stdout


def test_the_table_of_c_speaks_of_key_7() -> None:
    assert "0.522" in run("fit", "--method", "C").stdout
    assert "0.522" not in run("fit", "--method", "D").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit",),
        ("fit", "--method", "E"),
        ("fit", "--method", "B", "--scales", "all"),
        ("kernels", "--method", "B", "--boundary", "none"),
        ("spread", "--method", "B"),
    ],
)
def test_wrong_use_has_status_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_errors_name_the_file(tmp_path: Path) -> None:
    result = run("fit", "--method", "B", "--keys", str(tmp_path / "none.csv"))
    assert isinstance(result.exception, KeysError)
    assert "none.csv" in str(result.exception)


@pytest.mark.parametrize("command", ["fit", "spread", "kernels"])
def test_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--keys" in result.stdout


def test_the_commands_are_registered_before_numpy_is_loaded() -> None:
    code = "import sys, mkf.commands.fit; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
