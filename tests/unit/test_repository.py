"""The writer of Contract 1: whole models or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest
from tiny_models import tiny_graph

from mkf import repository as writer
from mkf.errors import ExportError
from mkf.repository import BASELINE, Model, Preprocessing, Provenance, write_models

PREPROCESSING = Preprocessing(input_size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
PROVENANCE = Provenance(
    source="onnx:net.onnx", license="MIT", labels=[str(n) for n in range(10)], expected_top1=80.5
)


def model(seed: int = 1, name: str = BASELINE) -> Model:
    return Model(
        name=name, graph=tiny_graph(seed), preprocessing=PREPROCESSING, provenance=PROVENANCE
    )


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def test_a_model_has_all_files_of_the_contract(tmp_path: Path) -> None:
    write_models(tmp_path / "new" / "repository", [model()], threads=2)
    folder = tmp_path / "new" / "repository" / BASELINE
    assert files(folder) == {
        "config.pbtxt",
        "labels.txt",
        "preprocessing.json",
        "1/model.onnx",
        "1/manifest.json",
    }
    manifest = json.loads((folder / "1" / "manifest.json").read_text())
    graph = (folder / "1" / "model.onnx").read_bytes()
    assert manifest["graph_sha256"] == hashlib.sha256(graph).hexdigest()
    assert manifest["expected_top1"] == 80.5
    assert onnx.load_from_string(graph) == tiny_graph(1)


def test_an_older_model_is_replaced(tmp_path: Path) -> None:
    write_models(tmp_path, [model(1)])
    write_models(tmp_path, [model(2)])
    assert onnx.load(tmp_path / BASELINE / "1" / "model.onnx") == tiny_graph(2)
    assert [p.name for p in tmp_path.iterdir()] == [BASELINE]


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    for name in (f".{BASELINE}.ab12cd34", f".{BASELINE}.ab12cd34.old"):
        write_models(tmp_path / name, [model(2)])
    write_models(tmp_path, [model(1)])
    assert [p.name for p in tmp_path.iterdir()] == [BASELINE]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left on device")])
def test_an_interrupted_export_leaves_the_old_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_models(tmp_path, [model(1), model(1, "other")])
    before = {path: (tmp_path / path).read_bytes() for path in files(tmp_path)}
    write, calls = writer._write_files, []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        write(*arguments)
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(writer, "_write_files", interrupted)
    with pytest.raises((KeyboardInterrupt, ExportError)):
        write_models(tmp_path, [model(2), model(2, "other")])
    assert {path: (tmp_path / path).read_bytes() for path in files(tmp_path)} == before


@pytest.mark.parametrize(
    ("before", "moves"),
    [(True, 1), (True, 2), (True, 3), (True, 4), (False, 1), (False, 2)],
)
def test_a_pair_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, moves: int
) -> None:
    if before:
        write_models(tmp_path, [model(1), model(1, "other")])
    contents = {path: (tmp_path / path).read_bytes() for path in files(tmp_path)}
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        calls.append(target)
        if len(calls) == moves:
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_models(tmp_path, [model(2), model(2, "other")])
    assert {path: (tmp_path / path).read_bytes() for path in files(tmp_path)} == contents


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    with pytest.raises(ExportError, match=r"cannot be written to .*file"):
        write_models(place, [model()])
