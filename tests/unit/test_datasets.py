"""Datasets: which samples, which labels, which errors, and that pixels come in bounded order."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.errors import DatasetError
from services.evaluation.datasets import Dataset, Sample, open_dataset, survey
from services.evaluation.pixels import batches
from services.inference.repository import BASELINE, Preprocessing, ServedModel, load_models

PREPROCESSING = Preprocessing(
    input_size=(8, 8),
    crop_fraction=1,
    interpolation="bilinear",
    crop_mode="center",
    color_mode="RGB",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@pytest.fixture
def model(repository: Path) -> ServedModel:
    return load_models(repository)[BASELINE]  # 10 classes, no class ids


def with_class_ids(model: ServedModel, class_ids: list[str]) -> ServedModel:
    manifest = model.manifest.model_copy(update={"class_ids": class_ids})
    return dataclasses.replace(model, manifest=manifest)


def open_for(uri: str, model: ServedModel) -> Dataset:
    return open_dataset(uri, classes=len(model.labels), class_ids=model.manifest.class_ids)


def write_image(path: Path, color: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), color).save(path)
    return path


def labeled(dataset: Dataset) -> list[tuple[str, int]]:
    return [(sample.id, sample.label) for sample in dataset.samples()]


async def all_pixels(dataset: Dataset) -> list[np.ndarray]:
    stream = batches(dataset.samples(), preprocessing=PREPROCESSING, batch_size=2, threads=1)
    return [batch.pixels async for batch in stream]


def test_fashion_mnist_is_the_whole_test_set(model: ServedModel) -> None:
    dataset = open_for("fashion-mnist", model)
    whole = survey(dataset)
    assert (whole.images, whole.available, whole.limited) == (10_000, 10_000, False)
    first = next(iter(dataset.samples()))
    assert (first.id, first.label) == ("t10k/00000", 9)  # an ankle boot
    image = first.load()
    assert (image.mode, image.size) == ("RGB", (28, 28))
    part = survey(dataset, limit=7)
    assert (part.images, part.available, part.limited) == (7, 10_000, True)
    assert part.fingerprint != whole.fingerprint


def test_fashion_mnist_takes_models_of_ten_classes(model: ServedModel) -> None:
    other = dataclasses.replace(model, labels=("a", "b"))
    with pytest.raises(DatasetError, match="has 10 classes and the models have 2"):
        open_for("fashion-mnist", other)


@pytest.mark.parametrize(
    "uri", ["", "mnist", "fashion-mnist:x", "imagefolder:", "labels", "ilsvrc:/data", "s3://x"]
)
def test_unknown_uris_list_what_is_known(model: ServedModel, uri: str) -> None:
    with pytest.raises(DatasetError, match="fashion-mnist, imagefolder:DIR, labels:FILE"):
        open_for(uri, model)


def test_labels(model: ServedModel, tmp_path: Path) -> None:
    names = ["a.png", "b, c.png", "with two  blanks.png", "sub/7 3.png"]
    for name in names:
        write_image(tmp_path / name)
    file = tmp_path / "labels.txt"
    file.write_text(
        "\ufeff# a comment\n\na.png 0\nb, c.png,1\n"
        f"with two  blanks.png\t 2\r\nsub/7 3.png , 3\n{tmp_path / 'a.png'} 9",
        encoding="utf-8",
    )
    dataset = open_for(f"labels:{file}", model)
    assert labeled(dataset) == [
        *zip(names, range(4), strict=True),
        (str(tmp_path / "a.png"), 9),
    ]
    assert labeled(dataset) == labeled(dataset)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 10", "line 2: the class index is not in 0 to 9"),
        ("a.png -1", "line 2: write a path"),
        ("a.png 99999999999999999999999", "line 2: the class index is not in 0 to 9"),
        ("a.png", "line 2: write a path"),
        ("7", "line 2: write a path"),
        (", 7", "line 2: write a path"),
        ("missing.png 1", "line 2: the image is not there"),
    ],
)
def test_labels_errors_name_file_and_line(
    model: ServedModel, tmp_path: Path, line: str, message: str
) -> None:
    write_image(tmp_path / "a.png")
    file = tmp_path / "labels.txt"
    file.write_text(f"a.png 1\n{line}\n")
    with pytest.raises(DatasetError, match=message) as caught:
        survey(open_for(f"labels:{file}", model))
    assert str(file) in str(caught.value)


def test_labels_that_are_missing_empty_or_no_text(model: ServedModel, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not there"):
        open_for(f"labels:{tmp_path / 'none.txt'}", model)
    file = tmp_path / "labels.txt"
    file.write_text("# nothing\n")
    with pytest.raises(DatasetError, match="no images"):
        survey(open_for(f"labels:{file}", model))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="UTF-8"):
        survey(open_for(f"labels:{file}", model))


def test_imagefolder_by_class_ids(model: ServedModel, tmp_path: Path) -> None:
    ids = [f"n{number:08d}" for number in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    write_image(tmp_path / "n00000003" / "x.png")
    write_image(tmp_path / "n00000009" / "deep" / "y.jpg")
    write_image(tmp_path / "n00000009" / ".hidden.jpg")
    (tmp_path / "n00000009" / "readme.txt").write_text("no image")
    dataset = open_for(f"imagefolder:{tmp_path}", with_class_ids(model, ids))
    assert labeled(dataset) == [("n00000003/x.png", 6), ("n00000009/deep/y.jpg", 0)]
    assert dataset.notes == ("1 files whose names do not end as an image's were left out",)


def test_imagefolder_by_class_index(model: ServedModel, tmp_path: Path) -> None:
    for name in ("007/a.png", "007/b.png", "2/a.png", "2/b.png", "2/c.png"):
        write_image(tmp_path / name)
    dataset = open_for(f"imagefolder:{tmp_path}", model)
    assert labeled(dataset) == [  # a class at a time in turn, so that a limit takes of each
        ("007/a.png", 7),
        ("2/a.png", 2),
        ("007/b.png", 7),
        ("2/b.png", 2),
        ("2/c.png", 2),
    ]
    assert dataset.notes == ()
    write_image(tmp_path / "10" / "a.png")
    with pytest.raises(DatasetError, match="folder 10 is not in 0 to 9"):
        open_for(f"imagefolder:{tmp_path}", model)


def test_imagefolder_by_order(model: ServedModel, tmp_path: Path) -> None:
    for name in "abcdefghij":
        write_image(tmp_path / name / "1.png")
    dataset = open_for(f"imagefolder:{tmp_path}", model)
    assert [label for _, label in labeled(dataset)] == list(range(10))
    assert "sorted order" in dataset.notes[0]
    (tmp_path / "k").mkdir()
    with pytest.raises(DatasetError, match="cannot be told"):
        open_for(f"imagefolder:{tmp_path}", model)


def test_imagefolder_that_is_missing_or_empty(model: ServedModel, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not there"):
        open_for(f"imagefolder:{tmp_path / 'none'}", model)
    with pytest.raises(DatasetError, match="no folders"):
        open_for(f"imagefolder:{tmp_path}", model)
    (tmp_path / "1").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        survey(open_for(f"imagefolder:{tmp_path}", model))


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
async def test_an_image_that_cannot_be_decoded_fails_by_name(
    model: ServedModel, tmp_path: Path, content: bytes
) -> None:
    write_image(tmp_path / "1" / "a.png")
    (tmp_path / "1" / "b.png").write_bytes(content)
    dataset = open_for(f"imagefolder:{tmp_path}", model)
    with pytest.raises(DatasetError, match=r"1/b\.png cannot be used"):
        await all_pixels(dataset)


async def test_an_image_that_vanished_fails_by_name(model: ServedModel, tmp_path: Path) -> None:
    gone = write_image(tmp_path / "1" / "a.png")
    dataset = open_for(f"imagefolder:{tmp_path}", model)
    gone.unlink()
    with pytest.raises(DatasetError, match=r"1/a\.png cannot be used"):
        await all_pixels(dataset)


def test_the_fingerprint_knows_ids_labels_and_order(model: ServedModel, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    file = tmp_path / "labels.txt"
    fingerprints = set()
    for text in ("a.png 1\nb.png 2\n", "b.png 2\na.png 1\n", "a.png 1\nb.png 3\n", "a.png 1\n"):
        file.write_text(text)
        fingerprints.add(survey(open_for(f"labels:{file}", model)).fingerprint)
    assert len(fingerprints) == 4


class Counting:
    """Samples whose pixels are their number, and how many of them were decoded."""

    def __init__(self) -> None:
        self.loaded = 0
        self._lock = threading.Lock()

    def samples(self, number: int) -> Iterator[Sample]:
        for index in range(number):
            yield Sample(str(index), 0, lambda index=index: self._image(index))  # type: ignore[misc]

    def _image(self, index: int) -> Image.Image:
        with self._lock:
            self.loaded += 1
        return Image.new("RGB", (8, 8), (index % 256, index // 256, 0))


async def test_batches_come_in_order_and_few_are_decoded_ahead() -> None:
    counting = Counting()
    seen = []
    stream = batches(counting.samples(403), preprocessing=PREPROCESSING, batch_size=4, threads=3)
    async for batch in stream:
        await asyncio.sleep(0)
        seen += [int(pixel[0, 0, 0]) + 256 * int(pixel[0, 0, 1]) for pixel in batch.pixels]
        assert counting.loaded - len(seen) <= 4 * 4  # three batches and the one being begun
    assert seen == list(range(403))
    assert len(batch.samples) == 3


async def test_batches_may_be_left_early() -> None:
    counting = Counting()
    stream = batches(counting.samples(10_000), preprocessing=PREPROCESSING, batch_size=4, threads=2)
    async with aclosing(stream):
        async for _ in stream:
            break
    assert counting.loaded <= 4 * 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
