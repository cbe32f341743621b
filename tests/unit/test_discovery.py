"""Keys out of filters: dropping, the elbow, refinement, names, and both kinds of search."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.progress import Progress

from mkf.demo import DEMO_BASELINE
from mkf.discovery import (
    drop,
    elbow,
    filters_by_key,
    likeness,
    reconstruction_cost,
    refine,
    select,
    unit_lines,
)
from mkf.errors import InputError, TrainingError
from mkf.idealized import idealized_kernel
from mkf.key_search import Settings, search_by_clustering
from mkf.keys import load_keys
from mkf.naming import best, name_key, one_to_one
from mkf.networks.filter_collection import FilterLayer, collect_filters, source_uri
from mkf.networks.sources import Options, load_source

UNEVEN = (0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03)
PUBLISHED = unit_lines(load_keys())  # (8, 49)


def noisy_filters(seed: int, *, noise: float, shares: Any = None) -> NDArray[np.float64]:
    """3,000 filters a f + b of the published keys, a of either sign, with noise of f's norm."""
    rng = np.random.default_rng(seed)
    shapes = PUBLISHED[rng.choice(8, size=3000, p=shares)]
    shapes = shapes + rng.normal(size=shapes.shape) * noise / 7
    a = rng.lognormal(size=3000) * rng.choice([-1, 1], size=3000)
    return (a[:, None] * shapes + rng.normal(size=(3000, 1))).reshape(-1, 7, 7)


def nearest(keys: NDArray[np.float64]) -> NDArray[np.float64]:
    """|cosine| of each published key with the found one nearest to it."""
    return np.asarray(np.sqrt(likeness(PUBLISHED, keys)).max(axis=1))


def layer(filters: NDArray[np.float64], left_out: str = "") -> FilterLayer:
    return FilterLayer("here", "a layer", filters, left_out)


def test_filters_are_selected_centered_and_scaled() -> None:
    rng = np.random.default_rng(0)
    fives, sevens, threes = (rng.normal(3, 1, size=(n, k, k)) for n, k in ((4, 5), (6, 7), (9, 3)))
    fives[0] = 0.1  # constant
    fives[1] *= 1e-6  # dead, as against its layer
    lost = layer(np.empty((5, 0, 0)), "its kernel is 4x4")
    layers = [layer(sevens[:1]), lost, layer(threes), layer(fives), layer(sevens[1:])]
    found = select(layers)
    assert (found.size, found.dead, found.other_sizes) == (7, 0, {3: 9, 5: 4})
    np.testing.assert_allclose(found.lines.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.lines, axis=1), 1)
    cosines = [np.corrcoef(a, b.ravel())[0, 1] for a, b in zip(found.lines, sevens, strict=True)]
    np.testing.assert_allclose(cosines, 1)

    five = select(layers, 5)
    assert (len(five.lines), five.dead, five.other_sizes) == (2, 2, {3: 9, 7: 6})
    assert select([layer(threes)]).size == 3
    with pytest.raises(InputError, match="no filter is 9x9; there are 9 of 3x3, 4 of 5x5"):
        select(layers, 9)
    with pytest.raises(InputError, match="all 2 filters of 5x5 are constant"):
        select([layer(np.ones((2, 5, 5)))])
    with pytest.raises(InputError, match="a layer: its kernel is 4x4"):
        select([lost])


def test_what_is_dropped_is_what_costs_least() -> None:
    rng = np.random.default_rng(1)
    lines = unit_lines(rng.normal(size=(60, 3, 3)))
    candidates = unit_lines(rng.normal(size=(7, 3, 3)))
    found = drop(lines, candidates)
    assert sorted(found.order) == list(range(7))
    for count in range(1, 8):
        kept = found.survivors(count)
        cost = reconstruction_cost(lines, candidates[kept])
        assert found.costs[count - 1] == pytest.approx(cost, abs=1e-12)
        if count < 7:
            before = found.survivors(count + 1)
            others = combinations(before, count)
            assert cost == pytest.approx(
                min(reconstruction_cost(lines, candidates[list(one)]) for one in others)
            )


def test_a_judge_decides_among_the_cheapest() -> None:
    rng = np.random.default_rng(2)
    lines = unit_lines(rng.normal(size=(60, 3, 3)))
    candidates = unit_lines(rng.normal(size=(6, 3, 3)))
    asked: list[int] = []

    def loves_two(sets: Any) -> list[float]:
        asked.append(len(sets))
        return [0.5 if 2 in one else 0.9 for one in sets]

    plain = drop(lines, candidates)
    judged = drop(lines, candidates, judge=loves_two, shortlist=3)
    assert asked == [1, 3, 3, 3, 3, 2]
    assert judged.order[-1] == 2
    assert judged.costs == (0.5,) * 6
    indifferent = drop(lines, candidates, judge=lambda sets: [0.0] * len(sets), shortlist=3)
    assert indifferent.order == plain.order


def test_the_elbow_is_where_the_logarithm_bends() -> None:
    steps = [0.8 * 0.6 ** min(n, 7) - 1e-4 * n for n in range(50)]
    assert elbow(steps) == 8
    assert elbow([0.5, 0.25, 0.1, 0.0, 0.0, 0.0]) in (3, 4)
    assert elbow([0.5]) == 1
    assert elbow([0.3, 0.3, 0.3]) == 1


def test_refinement_lowers_the_cost_and_is_blind_to_signs() -> None:
    rng = np.random.default_rng(3)
    lines = unit_lines(noisy_filters(0, noise=0.3))
    start = unit_lines((PUBLISHED + rng.normal(size=PUBLISHED.shape) * 0.5 / 7).reshape(-1, 7, 7))
    refined = refine(lines, start)
    assert reconstruction_cost(lines, refined) < reconstruction_cost(lines, start)
    assert nearest(start).min() < 0.95
    assert nearest(refined).min() > 0.99
    np.testing.assert_allclose(refined.sum(axis=1), 0, atol=1e-12)
    turned = lines * rng.choice([-1, 1], size=(len(lines), 1))
    np.testing.assert_allclose(refine(turned, start), refined, atol=1e-9)

    counts, kept = filters_by_key(lines, np.concatenate([refined, refined[:1]]))
    assert sum(counts) == len(lines)
    assert (counts[8], kept[8]) == (0, None)
    total = sum(n * share for n, share in zip(counts, kept, strict=True) if share is not None)
    assert total / len(lines) == pytest.approx(1 - reconstruction_cost(lines, refined))


@pytest.mark.parametrize("key", range(1, 9))
def test_a_key_is_named_by_its_operator(key: int) -> None:
    scales = (0.7, 0.7) if key == 7 else (0.6, 0.9)
    kernel = idealized_kernel(key, *scales, 0.5 if key == 7 else None)
    found = best(name_key(0.2 - 3 * kernel))
    assert (found.key, found.sign, found.well) == (key, -1, True)
    assert found.cosine == pytest.approx(1, abs=1e-9)
    assert (found.sigma_x, found.sigma_y) == pytest.approx(scales, abs=1e-3)
    assert found.gamma == (pytest.approx(0.5, abs=1e-3) if key == 7 else None)


def test_noise_has_no_name() -> None:
    names = name_key(np.random.default_rng(5).normal(size=(7, 7)))
    assert [name.key for name in names] == list(range(1, 9))
    assert not any(name.well for name in names)


def test_the_published_keys_are_numbered_as_published() -> None:
    order = np.random.default_rng(6).permutation(8)
    names = [name_key(kernel) for kernel in load_keys()[order]]
    assert [int(order[i]) for i in one_to_one(names)] == list(range(8))
    assert all(name[order[i]].well for i, name in enumerate(names))


def test_filters_are_collected_from_files_and_sources() -> None:
    layers = collect_filters(["demo"], Options())
    assert sum(len(one.filters) for one in layers) == 504
    assert {one.filters.shape[1:] for one in layers} == {(7, 7)}
    uri = source_uri(str(DEMO_BASELINE))
    assert uri == f"onnx:{DEMO_BASELINE}"
    again = collect_filters([uri, "demo-idealized"], Options())
    assert [one.source for one in again] == [uri] * 6 + ["demo-idealized"] * 6
    for one, other in zip(layers, again, strict=False):
        np.testing.assert_array_equal(one.filters, other.filters)


@pytest.mark.parametrize(
    ("uris", "options", "message"),
    [
        (["demo", "demo"], Options(), "demo is named twice"),
        (["nothing"], Options(), "unknown source 'nothing'"),
        (["onnx:"], Options(), "unknown source 'onnx:'"),
        (["demo"], Options(random_weights=True), "--random-weights goes with timm:NAME"),
        (["demo"], Options(architecture="a"), "--architecture goes with checkpoint:FILE"),
    ],
)
def test_sources_that_cannot_be_used(uris: list[str], options: Options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect_filters(uris, options)


def test_the_error_of_a_set_is_measured_once(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="install the extra serve: pip install 'mkf[serve]'")
    from mkf.images import open_images
    from mkf.top1_cost import Top1Cost

    source = load_source("demo", Options())
    images = open_images("fashion-mnist", preprocessing=source.preprocessing, classes=10)
    measured: list[int] = []
    record = tmp_path / "top1.jsonl"

    def cost(candidates: NDArray[np.float64]) -> Top1Cost:
        return Top1Cost(source, candidates, images, 64, record=record, advance=measured.append)

    first = cost(load_keys())
    (learned,) = first.measure([None])
    assert learned <= 0.2  # the card's network errs on 8 % of all test images
    errors = first([[0, 1, 2, 3, 4, 5, 6, 7], [6]])
    assert learned <= errors[0] < errors[1]  # the demo's filters are no multiples of one key
    lines = record.read_text()
    record.write_text(lines + '{"candidates": "5", "err')  # cut off while it was written
    measured.clear()
    assert cost(load_keys())([[6], [7, 6, 5, 4, 3, 2, 1, 0]]) == errors[::-1]
    assert measured == []
    assert record.read_text() == lines
    with pytest.raises(TrainingError, match="other networks, images or options; remove"):
        cost(load_keys()[:4])
    weights = load_source("demo", Options())
    weights.model.graph.initializer[0].raw_data = bytes(
        reversed(weights.model.graph.initializer[0].raw_data)
    )
    size = replace(source, preprocessing=replace(source.preprocessing, input_size=(30, 30)))
    for other in (weights, size):
        with pytest.raises(TrainingError, match="other networks, images or options; remove"):
            Top1Cost(other, load_keys(), images, 64, record=record)
    with pytest.raises(TrainingError, match="other networks, images or options; remove"):
        Top1Cost(source, load_keys(), replace(images, fingerprint="another"), 64, record=record)

    for cut in ("", lines[:20]):
        record.write_text(cut)
        assert cost(load_keys()).known == {}
        assert record.read_text() == lines.splitlines(keepends=True)[0]
    assert list(tmp_path.iterdir()) == [record]


def test_errors_are_recorded_a_few_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="install the extra serve: pip install 'mkf[serve]'")
    from mkf.images import open_images
    from mkf.top1_cost import Top1Cost

    source = load_source("demo", Options())
    images = open_images("fashion-mnist", preprocessing=source.preprocessing, classes=10)
    record = tmp_path / "top1.jsonl"
    passes: list[int] = []

    def interrupt(count: int) -> None:
        passes.append(count)
        if len(passes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Top1Cost(source, load_keys(), images, 4, record=record, advance=interrupt)(
            [[key] for key in range(8)]
        )
    assert [json.loads(line)["candidates"] for line in record.read_text().splitlines()[1:]] == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
    from mkf.training import autoencoder as module

    return module


@pytest.mark.parametrize(
    ("seed", "noise", "shares"), [(0, 0.3, None), (1, 0.2, UNEVEN), (2, 0.3, UNEVEN[::-1])]
)
def test_the_published_keys_come_back(
    autoencoder: Any, tmp_path: Path, seed: int, noise: float, shares: Any
) -> None:
    lines = unit_lines(noisy_filters(seed, noise=noise, shares=shares))
    recipe = autoencoder.AutoencoderRecipe(seed=seed, restarts=2, steps=600)
    decoded = autoencoder.candidates(lines, 50, recipe, checkpoint=tmp_path / "state.pt")
    assert decoded.shape == (50, 49)
    dropping = drop(lines, decoded)
    assert nearest(decoded[dropping.survivors(8)]).min() > 0.9  # before anything is refined
    keys = refine(lines, decoded[dropping.survivors(8)])
    assert nearest(keys).min() >= 0.99
    if shares is None:  # of two keys as like as 7 and 8 (cosine 0.90) a rare one is no bend
        assert elbow(dropping.costs) == 8


def test_the_code_is_blind_to_signs(autoencoder: Any) -> None:
    import torch

    recipe = autoencoder.AutoencoderRecipe(restarts=2)
    network = autoencoder.LineAutoencoders(49, recipe, torch.Generator().manual_seed(0))
    lines = torch.from_numpy(PUBLISHED).float().expand(2, -1, -1)
    codes = network.encode(lines)
    assert codes.shape == (2, 8, 1)
    assert codes.min() >= 0
    assert codes.max() <= 1
    assert torch.equal(codes, network.encode(-lines))
    torch.testing.assert_close(network.loss(lines), network.loss(-lines))
    decoded = network.decode(codes)
    torch.testing.assert_close(decoded.norm(dim=-1), torch.ones(2, 8))
    torch.testing.assert_close(decoded.sum(-1), torch.zeros(2, 8), atol=1e-5, rtol=0)


def test_an_interrupted_training_ends_alike(autoencoder: Any, tmp_path: Path) -> None:
    lines = unit_lines(noisy_filters(0, noise=0.3))[:400]
    recipe = autoencoder.AutoencoderRecipe(restarts=2, steps=250, hidden=16)
    whole = autoencoder.candidates(lines, 5, recipe, checkpoint=tmp_path / "whole.pt")

    done: list[int] = []

    def advance(steps: int) -> None:
        done.append(steps)
        if sum(done) == 200:
            raise KeyboardInterrupt

    path = tmp_path / "cut.pt"
    with pytest.raises(KeyboardInterrupt):
        autoencoder.candidates(lines, 5, recipe, checkpoint=path, advance=advance)
    done.clear()
    resumed = autoencoder.candidates(lines, 5, recipe, checkpoint=path, advance=done.append)
    assert done == [200, 50]
    np.testing.assert_array_equal(resumed, whole)
    with pytest.raises(TrainingError, match=r"cut\.pt was made by a call with other networks"):
        autoencoder.candidates(lines[1:], 5, recipe, checkpoint=path)


def test_clusters_of_lines_are_the_keys_too() -> None:
    pytest.importorskip("sklearn", reason="install the extra train: pip install 'mkf[train]'")
    from mkf.training.clustering import LineClusters

    lines = unit_lines(noisy_filters(4, noise=0.3))
    keys = LineClusters(lines, seed=0).keys(8)
    assert nearest(keys).min() >= 0.99
    signs = np.random.default_rng(0).choice([-1, 1], size=(len(lines), 1))
    np.testing.assert_allclose(LineClusters(lines * signs, seed=0).keys(8), keys, atol=1e-6)


def test_clusters_of_few_distinct_filters() -> None:
    pytest.importorskip("sklearn", reason="install the extra train: pip install 'mkf[train]'")
    signs = np.random.default_rng(0).choice([-1, 1], size=(20, 1))
    filters = select([layer((PUBLISHED[:5].repeat(4, axis=0) * signs).reshape(-1, 7, 7))])
    with Progress(disable=True) as progress:
        found = search_by_clustering(filters, Settings(count=5), progress)
        assert nearest(found.lines)[:5] == pytest.approx(1)
        assert len(found.costs) == 5
        assert found.costs[4] == pytest.approx(0, abs=1e-12)
        with pytest.raises(InputError, match=r"there are 5 filters of 7x7 that differ.* 6 keys"):
            search_by_clustering(filters, Settings(count=6), progress)
