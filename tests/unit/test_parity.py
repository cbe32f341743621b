"""Parity's judgments: what is past a tolerance is found, and what float32 cannot carry is not."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from tiny_models import SIZE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.parity.bytes_sent import bytes_sent  # noqa: E402  (needs ROOT)
from benchmarks.parity.cache import CacheCheck  # noqa: E402
from benchmarks.parity.comparison import (  # noqa: E402
    Answers,
    Comparison,
    Hop,
    compare,
    compare_all,
)
from benchmarks.parity.counts import Counts  # noqa: E402
from benchmarks.parity.hops import Plan, onnx_runtime_hop, torch_hop  # noqa: E402
from benchmarks.parity.images import Images, load_images  # noqa: E402
from benchmarks.parity.recorder import Sent  # noqa: E402
from benchmarks.parity.same_model import SameModel  # noqa: E402
from benchmarks.parity.torch_networks import torch_networks  # noqa: E402
from mkf.demo import demo_preprocessing, demo_provenance  # noqa: E402
from mkf.idealization import Choice, idealizer  # noqa: E402
from mkf.keys import load_keys  # noqa: E402
from mkf.networks import onnx_graph  # noqa: E402
from mkf.networks.serving_graph import network_graph, serving_graph  # noqa: E402
from mkf.networks.sources import Options, load_source  # noqa: E402
from mkf.repository import (  # noqa: E402
    BASELINE,
    IDEALIZED,
    Idealization,
    Model,
    write_models,
)
from services.errors import DatasetError  # noqa: E402
from services.inference.repository import load_models  # noqa: E402
from services.preprocessing import ImageLimits, decode  # noqa: E402

Floats = NDArray[np.float32]
TOLERANCE = 1e-3
LOGITS = np.array([[10, 2, -3], [1, 4, 3.9995], [0, -5, 8]], np.float32)
NAMES = ["a", "b", "c"]


def hop(name: str, logits: Floats, *, before: str | None = "onnxruntime") -> Hop:
    return Hop(name, before, TOLERANCE, {("model", 8): Answers.of_logits(logits)})


def service(probabilities: Floats, *, tolerance: float = TOLERANCE) -> Hop:
    answers = Answers(probabilities, probabilities.argmax(axis=1))
    return Hop("classification", "triton", tolerance, {("model", 8): answers}, probabilities=True)


def judged(ours: Hop, theirs: Floats = LOGITS, names: list[str] | None = None) -> Comparison:
    against = hop("onnxruntime", theirs)
    names = names or [str(number) for number in range(len(theirs))]
    return compare(ours, against, model="model", batch_size=8, images=names)


def changed(row: int, column: int, by: float) -> Floats:
    logits = LOGITS.copy()
    logits[row, column] += np.float32(by)
    return logits


def test_equal_logits_are_bit_equal_and_breach_nothing() -> None:
    found = judged(hop("triton", LOGITS.copy()))
    assert found.bit_equal
    assert found.largest_difference == 0
    assert found.agreeing == 3
    assert found.breaches() == []


def test_the_limit_grows_with_the_largest_logit() -> None:
    inside, outside = judged(hop("triton", changed(2, 0, 0.009))), changed(2, 0, 0.011)
    assert inside.limit == pytest.approx(10 * TOLERANCE)
    assert inside.largest_difference == pytest.approx(0.009, rel=1e-4)
    assert not inside.bit_equal
    assert inside.breaches() == []
    [line] = judged(hop("triton", outside), names=NAMES).breaches()
    assert line.startswith("model: triton against onnxruntime at batch 8: a logit differs by 0.011")
    assert line.endswith("(image c)")


def test_small_logits_have_a_limit_of_1_times_the_tolerance() -> None:
    assert judged(hop("triton", LOGITS / 1000), LOGITS / 1000).limit == pytest.approx(TOLERANCE)


def test_another_top_1_within_the_limit_is_a_tie() -> None:
    found = judged(hop("triton", changed(1, 2, 0.001)))
    assert (found.agreeing, found.ties, found.disagreeing_image) == (2, 1, None)
    assert found.breaches() == []


def test_another_top_1_beyond_the_limit_is_a_breach_of_its_own() -> None:
    lines = judged(hop("triton", changed(0, 1, 9)), names=NAMES).breaches()
    assert len(lines) == 2
    assert lines[1].endswith("another top-1 for 1 of 3 images (first a)")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_numbers_that_are_not_finite_are_a_breach(value: float, side: str) -> None:
    logits = LOGITS.copy()
    logits[1, 0] = value
    found = (
        judged(hop("triton", logits)) if side == "ours" else judged(hop("triton", LOGITS), logits)
    )
    assert found.largest_difference is None
    assert np.isfinite(found.limit)
    assert "no finite numbers (image 1)" in found.breaches()[0]


def test_images_that_are_missing_are_no_answer() -> None:
    with pytest.raises(ValueError, match="3 images"):
        judged(hop("triton", LOGITS[:2]))


def rounded(logits: Floats) -> Floats:
    """As the classification service answers."""
    probabilities: Floats = softmax(logits.astype(np.float64), axis=1).astype(np.float32)
    return probabilities


logit_rows = st.lists(
    st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=1, max_size=5
)


@given(logit_rows)
def test_rounding_to_float32_stays_within_its_bound(rows: list[list[float]]) -> None:
    logits = np.array(rows, np.float32)
    found = judged(service(rounded(logits), tolerance=0.0), logits)
    assert found.breaches() == []


@given(logit_rows, st.integers(0, 2**32 - 1))
def test_logits_within_their_limit_make_probabilities_within_theirs(
    rows: list[list[float]], seed: int
) -> None:
    logits = np.array(rows, np.float64)
    limit = TOLERANCE * max(1.0, np.abs(logits).max())
    off = np.random.default_rng(seed).uniform(-limit, limit, logits.shape)
    found = judged(service(rounded(logits + off)), logits.astype(np.float32))
    assert found.largest_difference is not None
    assert found.largest_difference <= found.limit


@pytest.mark.parametrize("by", [0.05, -0.05])
def test_a_logit_that_is_off_shows_in_the_probabilities(by: float) -> None:
    assert judged(service(rounded(changed(0, 1, by)))).breaches() != []


def test_probabilities_too_small_for_float32_are_not_compared() -> None:
    logits = np.array([[0, -80, -95, -200]], np.float32)
    found = judged(service(rounded(logits), tolerance=0.0), logits)
    assert found.compared == 0.5
    assert found.breaches() == []
    lost = rounded(logits)
    lost[0, 1] = 0.0  # carried by float32, and gone
    assert judged(service(lost), logits).breaches() != []
    made_up = rounded(logits)
    made_up[0, 3] = 1e-20  # not carried, and there
    assert judged(service(made_up), logits).breaches() != []


def test_every_hop_stands_beside_the_one_before_and_the_reference() -> None:
    hops = [
        hop("torch", LOGITS, before=None),
        hop("onnxruntime", LOGITS, before="torch"),
        hop("triton", LOGITS, before="onnxruntime"),
        replace(service(rounded(LOGITS)), before="triton"),
    ]
    pairs = [
        (found.hop, found.against)
        for found in compare_all(hops, reference="onnxruntime", images=NAMES)
    ]
    assert pairs == [
        ("onnxruntime", "torch"),
        ("triton", "onnxruntime"),
        ("classification", "triton"),
        ("classification", "onnxruntime"),
    ]
    without_torch = compare_all(hops[1:], reference="onnxruntime", images=NAMES)
    assert [found.hop for found in without_torch] == ["triton"] + ["classification"] * 2


def some_images() -> Images:
    pixels = np.random.default_rng(3).integers(256, size=(5, 4, 4, 3), dtype=np.uint8)
    return Images("tests", 5, list("abcde"), [b""] * 5, pixels)


def requests(images: Images, model: str, sizes: list[int]) -> list[Sent]:
    return [
        Sent(model, images.pixels[part].shape, hashlib.sha256(images.pixels[part]).hexdigest())
        for size in sizes
        for part in images.batches(size)
    ]


MODELS: Mapping[str, object] = {"one": None, "other": None}


def test_bytes_of_all_batches_are_those_of_the_images() -> None:
    images, sizes = some_images(), [1, 2]
    sent = [each for model in MODELS for each in requests(images, model, sizes)]
    found = bytes_sent("triton", sent, MODELS, images, sizes)
    assert found.requests == {"one": 8, "other": 8}
    assert found.breaches() == []
    turned = [*sent[:-2], sent[-1], sent[-2]]
    assert bytes_sent("triton", turned, MODELS, images, sizes).breaches() != []
    assert bytes_sent("triton", turned, MODELS, images, sizes, in_order=False).breaches() == []


def test_one_other_byte_is_found() -> None:
    images = some_images()
    other = replace(images, pixels=images.pixels.copy())
    other.pixels[4, 3, 3, 2] ^= 1
    sent = requests(images, "one", [2]) + requests(other, "other", [2])
    lines = bytes_sent("triton", sent, MODELS, images, [2]).breaches()
    assert lines == [
        "other: at triton, the bytes that Triton was sent are not the images' pixels",
        "triton: the models were not sent the same bytes",
    ]


def test_a_request_too_few_or_too_many_is_found() -> None:
    images = some_images()
    both = requests(images, "one", [1]) + requests(images, "other", [1])
    for sent in (both[1:], [*both, both[0]]):
        assert len(bytes_sent("triton", sent, MODELS, images, [1]).breaches()) == 2


COUNTS = Counts(inferences=7, executions=5, cache_hits=0, cache_misses=0)
COMPUTED = replace(COUNTS, inferences=9, executions=7)


def test_two_equal_requests_that_were_computed_twice_are_no_cache() -> None:
    assert CacheCheck("model", False, COUNTS, COMPUTED, 2).breaches() == []


@pytest.mark.parametrize(
    ("enabled", "after", "words"),
    [
        (True, COMPUTED, "response cache is on"),
        (False, replace(COMPUTED, cache_hits=1), "1 hits"),
        (False, replace(COMPUTED, cache_misses=2), "2 misses"),
        (False, replace(COMPUTED, executions=6), "made 1 executions"),
        (False, replace(COMPUTED, inferences=8), "made 1 inferences"),
    ],
)
def test_a_cache_is_found(enabled: bool, after: Counts, words: str) -> None:
    [line] = CacheCheck("model", enabled, COUNTS, after, 2).breaches()
    assert words in line


ITSELF = SameModel(
    model="model",
    engine="triton",
    images=100,
    difference_pp=0.0,
    discordant=0,
    mcnemar_p=1.0,
    other_predictions=0,
    largest_probability_difference=0.0,
    p50_ms=(2.0, 2.2),
    mean_ms=(None, 3.0),
    requests=(13, 13),
)


def test_a_model_that_equals_itself() -> None:
    assert ITSELF.breaches() == []
    assert ITSELF.latency_ratio() == {"p50": pytest.approx(1.1), "mean": None}


@pytest.mark.parametrize(
    "change",
    [
        {"difference_pp": 1.0},
        {"discordant": 2},  # one each: the difference alone would not show it
        {"mcnemar_p": 0.5},
        {"other_predictions": 1},  # wrong under both names, in different ways
    ],
)
def test_a_model_that_differs_from_itself_is_found(change: dict[str, float]) -> None:
    assert len(replace(ITSELF, **change).breaches()) == 1


def test_images_start_as_files_that_hold_their_pixels(repository: Path) -> None:
    model = load_models(repository)[BASELINE]
    images = load_images("fashion-mnist", model, limit=3, noise=2)
    assert images.pixels.shape == (5, *SIZE, 3)
    assert images.names == [*(f"t10k/0000{n}" for n in range(3)), "noise/000", "noise/001"]
    assert decode(images.files[0], limits=ImageLimits()).size == (28, 28)
    noise = np.array(decode(images.files[4], limits=ImageLimits()))
    np.testing.assert_array_equal(noise, images.pixels[4])  # of the models' own size
    assert [part.indices(5)[:2] for part in images.batches(2)] == [(0, 2), (2, 4), (4, 5)]
    with pytest.raises(DatasetError, match="holds no images"):
        load_images("fashion-mnist", model, limit=0, noise=0)


def test_torch_says_why_it_does_not_run(repository: Path) -> None:
    networks, reasons = torch_networks(load_models(repository), None)
    assert networks == {}
    assert set(reasons) == {BASELINE, IDEALIZED}
    assert "its source, tests, is none that torch can run" in reasons[BASELINE]


def write_demo(directory: Path, *, trained: bool) -> Path:
    """The demo's networks without their figures; the idealized one trained, or substituted."""
    learned = load_source("demo", Options()).model
    keys = load_keys()
    if trained:
        idealized = load_source("demo-idealized", Options()).model
    else:
        idealized = type(learned)()
        idealized.CopyFrom(learned)
        onnx_graph.idealize(idealized, idealizer(Choice(terms=2)))
    detail = Idealization(
        fit={"method": "B", "scales": "separate", "boundary": "symmetric", "terms": 2, "keys": []},
        kernels=keys.tolist(),
        learned_keys=keys.tolist(),
        layers=[],
        trained=trained,
    )
    preprocessing = demo_preprocessing()
    models = [
        Model(
            name=name,
            graph=serving_graph(network_graph(network, (32, 32)), preprocessing),
            preprocessing=preprocessing,
            provenance=demo_provenance(),
            idealization=idealization,
        )
        for name, network, idealization in (
            (BASELINE, learned, None),
            (IDEALIZED, idealized, detail),
        )
    ]
    write_models(directory, models, threads=1)
    return directory


@pytest.mark.parametrize("trained", [True, False])
def test_torch_gives_the_served_graphs_answers(tmp_path: Path, trained: bool) -> None:
    torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")
    models = load_models(write_demo(tmp_path, trained=trained))
    images = load_images("fashion-mnist", models[BASELINE], limit=6, noise=2)
    plan = Plan(images, models, [1, 8], 0.0, lambda hop, model, done: None)
    networks, reasons = torch_networks(models, None)
    assert reasons == {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        hops = [torch_hop(networks, plan), onnx_runtime_hop(plan)]
    finally:
        torch.set_num_threads(threads)
    found = compare_all(hops, reference="onnxruntime", images=images.names)
    assert [(one.model, one.batch_size) for one in found] == [
        (model, size) for model in (BASELINE, IDEALIZED) for size in (1, 8)
    ]
    assert [line for one in found for line in one.breaches()] == []
    assert all(one.agreeing == 8 for one in found)
    # The other model's network stands for a wrong weight.
    swapped = torch_hop({BASELINE: networks[IDEALIZED]}, plan)
    assert all(
        one.breaches()
        for one in compare_all([swapped, hops[1]], reference="onnxruntime", images=images.names)
    )
