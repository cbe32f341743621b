"""Contract 1: what `mkf` writes is what the services read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import CLASSES, SIZE

from services.errors import NotFoundError, RepositoryError
from services.inference.repository import BASELINE, IDEALIZED, find_model, load_models


def test_the_services_read_what_was_written(repository: Path) -> None:
    models = load_models(repository)
    assert list(models) == [BASELINE, IDEALIZED]
    for name, model in models.items():
        assert model.config.max_batch_size == 32
        assert [warmup.batch_size for warmup in model.config.model_warmup] == [1, 32]
        assert model.config.dynamic_batching.max_queue_delay_microseconds > 0
        # A bounded queue makes requests to Triton wait for half a second now and then.
        assert not model.config.dynamic_batching.HasField("default_queue_policy")
        assert model.config.parameters["intra_op_thread_count"].string_value == "1"
        assert model.preprocessing.input_size == SIZE
        assert len(model.labels) == CLASSES
        assert model.manifest.name == name
    assert models[BASELINE].manifest.kernels is None
    assert models[IDEALIZED].manifest.fit is not None
    assert len(models[IDEALIZED].manifest.kernels or []) == 8


def test_an_unknown_model_is_not_found(repository: Path) -> None:
    with pytest.raises(NotFoundError, match="served are convnext_baseline, convnext_idealized"):
        find_model(load_models(repository), "resnet")


def append(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes() + b"\nnonsense {")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append("1/model.onnx"), "not the graph that its manifest describes"),
        (append("1/manifest.json"), "export the model again"),
        (append("preprocessing.json"), "export the model again"),
        (append("config.pbtxt"), "export the model again"),
        (append("labels.txt"), "12 labels do not go with the outputs"),
        (lambda folder: (folder / "labels.txt").unlink(), "No such file"),
        (lambda folder: folder.rename(folder.with_name("other")), "describes 'convnext_baseline'"),
        (lambda folder: shutil.rmtree(folder / "1"), "No such file"),
    ],
)
def test_a_broken_repository_is_refused(
    repository: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    change(copy / BASELINE)
    with pytest.raises(RepositoryError, match=message):
        load_models(copy)


def test_a_missing_or_empty_repository_says_how_to_fill_it(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RepositoryError, match="mkf export --source demo --repository"):
            load_models(place)


def test_leftovers_of_a_killed_export_are_not_served(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    (copy / ".convnext_baseline.1a2b3c4d" / "1").mkdir(parents=True)
    assert list(load_models(copy)) == [BASELINE, IDEALIZED]
