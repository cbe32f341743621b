"""The protocol benchmark: its statistics, its archive reader, its frozen and resumable runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import ttest_1samp, ttest_rel

torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
pytest.importorskip("matplotlib", reason="install the extra report: pip install 'mkf[report]'")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.protocol import data, table, training  # noqa: E402  (these need torch and ROOT)
from benchmarks.protocol.records import ARMS, DatasetName, Record  # noqa: E402
from benchmarks.protocol.report import write_results  # noqa: E402
from mkf.errors import InputError  # noqa: E402
from mkf.training import loop  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def record(arm: str, seed: int, correct: Any, dataset: str = "cifar10") -> Record:
    settings = {
        "images": 64,
        "dims": training.DIMS,
        "depths": training.DEPTHS,
        "recipe": {"epochs": 1},
    }
    kept = None if arm == "learned" else 0.25
    return Record(dataset, arm, seed, settings, 1.0, np.asarray(correct, bool), kept)


def grid(top1: Mapping[str, float], dataset: str = "cifar10") -> list[Record]:
    """Three seeds of every arm at about its top-1, the seeds slightly apart."""
    rng = np.random.default_rng(3)
    return [
        record(arm, seed, np.arange(2000) < 2000 * (top1[arm] + offset), dataset)
        for seed in (1, 2, 3)
        for arm, offset in ((arm, rng.uniform(-0.002, 0.002)) for arm in ARMS)
    ]


# Statistics


def test_a_record_survives_its_file() -> None:
    correct = np.random.default_rng(1).random(37) < 0.6  # no multiple of 8
    written = json.loads(json.dumps(record("B", 2, correct).to_json()))
    read = Record.from_json(written)
    np.testing.assert_array_equal(read.correct, correct)
    assert (read.arm, read.seed, read.kept, read.top1) == ("B", 2, 0.25, correct.mean())
    assert written["top1"] == correct.mean()


def test_the_interval_over_seeds_is_students() -> None:
    values = [1.0, 1.5, -0.25]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = table.over_seeds(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert table.over_seeds([1.0]) is None


def test_the_interval_over_images_counts_an_image_once() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.random((2, 4000)) < [[0.7], [0.6]]
    runs = {arm: [record(arm, seed, flags) for seed in (1, 2, 3)] for arm, flags in
            (("A", one), ("B", other))}  # fmt: skip
    thrice = table.difference(runs["A"], runs["B"])
    once = table.difference(runs["A"][:1], runs["B"][:1])
    assert thrice is not None
    assert once is not None
    assert thrice.images == once.images  # three equal seeds are no more images
    expected = ttest_rel(one.astype(float), other.astype(float)).confidence_interval(0.95)
    # Student's quantile at 3,999 degrees of freedom is the normal one to 3e-4.
    assert once.images.low == pytest.approx(100 * expected.low, rel=1e-3)
    assert once.images.high == pytest.approx(100 * expected.high, rel=1e-3)
    assert once.points == pytest.approx(100 * (one.mean() - other.mean()))
    assert once.seeds is None


def test_a_difference_pairs_the_seeds_both_arms_have() -> None:
    a = [record("A", 1, [1, 1, 0, 0]), record("A", 2, [1, 1, 1, 1])]
    b = [record("B", 2, [0, 1, 1, 0]), record("B", 3, [0, 0, 0, 0])]
    found = table.difference(a, b)
    assert found is not None
    assert found.of_seed == (50.0,)
    assert table.difference(a[:1], b) is None


def test_the_verdict_follows_the_numbers() -> None:
    level = dict.fromkeys(ARMS, 0.6)
    (lost,) = table.compare(grid(level | {"learned": 0.8, "random": 0.3}))
    assert "is better than random;" in lost.verdict
    assert "is worse than learned;" in lost.verdict
    assert "cannot be told apart from A, C1, C2, D1 and D2" in lost.verdict
    (won,) = table.compare(grid(level | {"B": 0.8}, dataset="fashion-mnist"))
    assert "rank 1 of 8" in won.verdict
    assert (lost.b_wins, won.b_wins) == (False, True)
    (single,) = table.compare([run for run in grid(level | {"B": 0.8}) if run.seed == 1])
    assert single.verdict.endswith("one seed tells no arm from another.")
    assert not single.b_wins
    assert table.headline([lost]).endswith("No.")
    assert table.headline([won]).endswith("Yes.")
    assert table.headline([won, lost]).endswith("Only on fashion-mnist.")


def test_table_and_figure_are_made_from_the_runs_alone(tmp_path: Path) -> None:
    runs = grid(dict.fromkeys(ARMS, 0.6))
    text = "".join(json.dumps(run.to_json()) + "\n" for run in runs)
    for lines, complete in ((text, True), (text[: text.rindex("\n", 0, -1) + 1], False)):
        (tmp_path / "runs.jsonl").write_text(lines)
        write_results(tmp_path, console=Console(quiet=True))
        summary = json.loads((tmp_path / "protocol.json").read_text())
        assert summary["complete"] is complete
        assert ("Incomplete" in (tmp_path / "protocol.md").read_text()) is not complete
        (comparison,) = summary["comparisons"]
        assert [row["arm"] for row in comparison["rows"]] == list(ARMS)
        for row in comparison["rows"]:
            of_seed = [100 * run.top1 for run in runs if run.arm == row["arm"]]
            assert list(row["top1_of_seed"].values()) == of_seed[: len(row["top1_of_seed"])]
        with Image.open(tmp_path / "protocol.png") as figure:
            assert figure.width > 500


def test_the_command_without_runs_says_what_to_do(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "benchmarks.protocol", "--table-only", "--out", str(tmp_path)]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ")
    assert "run the benchmark without --table-only" in ended.stderr


# CIFAR-10's archive


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_archive(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def class_folders() -> dict[str, Any]:
    """Two training images and a test image of each of 10 classes, by path."""
    rng = np.random.default_rng(7)
    return {
        f"{split}/{name}/{number}.png": rng.integers(256, size=(32, 32, 3))
        for name in "jihgfedcba"
        for split, count in (("test", 1), ("train", 2))
        for number in range(count)
    }


def test_an_archive_gives_its_pixels_whatever_its_order(tmp_path: Path) -> None:
    pixels = class_folders()
    members = {f"cifar/{path}": png(image) for path, image in pixels.items()}
    members["cifar/README.md"] = b"not an image"
    first = data.read_class_folders(write_archive(tmp_path / "1.tar.gz", members))
    turned = dict(reversed(members.items()))
    second = data.read_class_folders(write_archive(tmp_path / "2.tar.gz", turned))
    for split, count in (("train", 2), ("test", 1)):
        paths = [f"{split}/{name}/{n}.png" for name in "abcdefghij" for n in range(count)]
        expected = [pixels[path] for path in paths]
        np.testing.assert_array_equal(first[split].pixels, expected)
        np.testing.assert_array_equal(first[split].labels, np.repeat(np.arange(10), count))
        np.testing.assert_array_equal(first[split].pixels, second[split].pixels)


def test_a_decoded_archive_is_kept_until_another_comes(tmp_path: Path) -> None:
    folders = class_folders()
    archive = write_archive(tmp_path / "c.tar.gz", {k: png(v) for k, v in folders.items()})
    first = data.load_dataset(DatasetName.CIFAR10, cifar10=archive, cache=tmp_path / "cache")
    again = data.load_dataset(DatasetName.CIFAR10, cifar10=archive, cache=tmp_path / "cache")
    np.testing.assert_array_equal(first.training.pixels, again.training.pixels)
    write_archive(archive, {k: png(255 - v) for k, v in folders.items()})
    other = data.load_dataset(DatasetName.CIFAR10, cifar10=archive, cache=tmp_path / "cache")
    np.testing.assert_array_equal(other.test.pixels, 255 - first.test.pixels)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("train/a/x.png", png(np.zeros((64, 64, 3))), "is 64x64, not 32x32"),
        ("train/a/x.png", b"\0" * 70_000, "too large"),
        ("train/a/x.png", b"no image", "x.png: cannot identify"),
        ("train/k/x.png", png(np.zeros((32, 32, 3))), "has 11 classes"),
    ],
    ids=["size", "bytes", "format", "classes"],
)
def test_another_archive_is_refused(
    tmp_path: Path, path: str, content: bytes, message: str
) -> None:
    members = {k: png(v) for k, v in class_folders().items()} | {path: content}
    with pytest.raises(InputError, match=message):
        data.read_class_folders(write_archive(tmp_path / "bad.tar.gz", members))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.tar.gz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="give CIFAR-10 as"):
        data.read_class_folders(path)
    with pytest.raises(InputError, match="--cifar10"):
        data.load_dataset(DatasetName.CIFAR10, cifar10=None, cache=tmp_path)
    with pytest.raises(InputError, match="No such file"):
        data.load_dataset(DatasetName.CIFAR10, cifar10=tmp_path / "x", cache=tmp_path)


# Training


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=128).astype(np.uint8)
    pixels = rng.integers(60, size=(128, 32, 32, 3)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[3 * label : 3 * label + 3, :, label % 3] += 150
    images = loop.Images(pixels, labels)
    return data.Dataset(images, images, mean=0.3, std=0.35, crop_padding=1)


@pytest.fixture(scope="module")
def run(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One seed's records and the folder that holds its runs."""
    work = tmp_path_factory.mktemp("work")
    return training.run_seed("x", dataset, seed=5, images=128, epochs=1, work=work), work


def weights(work: Path, arm: str) -> dict[str, Any]:
    path = work / "x" / "seed5" / arm / "checkpoint.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True)["network"]
    return state


def test_every_arm_freezes_multiples_of_its_own_kernels(run: Any) -> None:
    records, work = run
    assert [found.arm for found in records] == list(ARMS)
    learned = weights(work, "learned")
    torch.manual_seed(5)
    start = training.create_network().state_dict()
    for found in records[1:]:
        kernels = training.kernels_of(found.arm, 5).reshape(8, -1)
        kernels = kernels - kernels.mean(1, keepdims=True)
        kernels /= np.linalg.norm(kernels, axis=1, keepdims=True)
        filters = 0
        for name, weight in weights(work, found.arm).items():
            if not name.endswith("conv_dw.weight"):
                assert not torch.equal(weight, start[name]), name  # all else was trained
                continue
            values = weight.numpy().reshape(len(weight), -1).astype(float)
            filters += len(values)
            mean = learned[name].numpy().reshape(len(weight), -1).mean(1)
            np.testing.assert_allclose(values.mean(1), mean, atol=1e-6)  # b of a f + b
            shapes = values - values.mean(1, keepdims=True)
            cosines = np.abs(shapes @ kernels.T).max(1) / np.linalg.norm(shapes, axis=1)
            np.testing.assert_allclose(cosines, 1, atol=1e-5)
        assert filters == sum(found.keys.values())
        assert 0 < found.kept < 1


def test_the_arms_have_kernels_of_their_own() -> None:
    kernels = {arm: training.kernels_of(arm, 1) for arm in ARMS if arm != "learned"}
    for arm, found in kernels.items():
        assert found.shape == (8, 7, 7)
        assert sum(np.allclose(found, other) for other in kernels.values()) == 1, arm
    assert not np.allclose(kernels["random"], training.kernels_of("random", 2))
    np.testing.assert_array_equal(kernels["random"], training.kernels_of("random", 1))


def test_a_second_call_trains_what_is_missing_and_ends_the_same(
    run: Any, dataset: data.Dataset
) -> None:
    records, work = run
    folder = work / "x" / "seed5"
    (folder / "B.json").unlink()
    (folder / "B" / "checkpoint.pt").unlink()
    untouched = (folder / "A.json").stat().st_mtime_ns
    again = training.run_seed("x", dataset, seed=5, images=128, epochs=1, work=work)
    for first, second in zip(records, again, strict=True):
        np.testing.assert_array_equal(first.correct, second.correct)
        assert first.keys == second.keys
    assert (folder / "A.json").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("other", [{"images": 80}, {"epochs": 2}])
def test_runs_of_another_budget_are_not_mixed(
    run: Any, dataset: data.Dataset, other: dict[str, int]
) -> None:
    _, work = run
    budget = {"images": 128, "epochs": 1} | other
    with pytest.raises(InputError, match="runs of other settings"):
        training.run_seed("x", dataset, seed=5, work=work, **budget)


def test_equal_channels_train_as_a_gray_image_does(dataset: data.Dataset) -> None:
    gray = torch.from_numpy(dataset.test.pixels[:6, :, :, 0].copy())
    color = gray[..., None].repeat(1, 1, 1, 3)
    recipe = replace(training.recipe_of(dataset, epochs=1, seed=1), crop_padding=3)
    seen = []
    for pixels in (gray, color):
        torch.manual_seed(2)
        seen.append(loop._normalize(loop._augment(pixels, recipe.crop_padding), recipe))
    assert seen[0].shape == (6, 3, 32, 32)
    assert torch.equal(seen[0], seen[1])


def test_colors_keep_their_channel(dataset: data.Dataset) -> None:
    recipe = training.recipe_of(dataset, epochs=1, seed=1)
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    pixels[..., 1] = 255
    seen = loop._normalize(pixels, recipe)
    assert (seen[:, 1] > seen[:, 0]).all()
    assert torch.equal(seen[:, 0], seen[:, 2])
