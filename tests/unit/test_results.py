"""results.json and samples.parquet of one run: every accuracy follows from the samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from services.evaluation import statistics
from services.evaluation.environment import describe_environment
from services.evaluation.files import FILES, write_files
from services.evaluation.records import ROLES, BatchRecord, Plan, Prediction, Request, Run
from services.evaluation.results import Results, json_schema
from services.evaluation.runner import judge, turns
from services.evaluation.samples import write_samples
from services.evaluation.store import Store
from services.evaluation.summary import recorded_progress, summarize
from services.inference.repository import BASELINE, IDEALIZED, ServedModel, load_models

IMAGES, BATCH = 1_003, 4
SCHEMA = Path(__file__).parents[2] / "docs" / "results.schema.json"


@pytest.fixture(scope="module")
def models(repository: Path) -> tuple[ServedModel, ServedModel]:
    served = load_models(repository)
    return served[BASELINE], served[IDEALIZED]


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, models: tuple[ServedModel, ServedModel]
) -> Iterator[tuple[Store, Run]]:
    """A run of which all is recorded: random ranks, and latencies of 1 ms, 2 ms, ..."""
    store = Store(tmp_path_factory.mktemp("results"))
    run = store.create(
        Plan(
            dataset_uri="fashion-mnist",
            models=(BASELINE, IDEALIZED),
            graph_sha256=(models[0].manifest.graph_sha256, models[1].manifest.graph_sha256),
            preprocessing=models[0].preprocessing.model_dump_json(),
            batch_size=BATCH,
            seed=3,
            images_total=IMAGES,
            images_available=10_000,
            fingerprint="f" * 64,
        )
    )
    rng = np.random.default_rng(5)
    for number, start in enumerate(range(0, IMAGES, BATCH)):
        size = min(BATCH, IMAGES - start)
        requests = {
            role: Request(
                latency_ms=number + 1.0,
                queue_ms=0.25,
                inference_ms=0.5,
                attempts=1,
                predictions=[
                    Prediction(
                        predicted=int(rng.integers(10)),
                        rank=int(rng.choice(10, p=[0.55] + [0.05] * 9)),
                        probability=float(rng.random()),
                    )
                    for _ in range(size)
                ],
            )
            for role in ROLES
        }
        ids = [f"image {start + offset}" for offset in range(size)]
        labels = [int(label) for label in rng.integers(10, size=size)]
        batch = BatchRecord(number=number, seconds=0.5, ids=ids, labels=labels, requests=requests)
        store.record(run.run_id, batch)
    yield store, store.get(run.run_id)
    store.close()


@pytest.fixture(scope="module")
def results(recorded: tuple[Store, Run], models: tuple[ServedModel, ServedModel]) -> Results:
    store, run = recorded
    environment = describe_environment(
        engine="embedded:x", engine_versions={"engine": "1"}, models=models, decode_threads=2
    )
    return summarize(store, run, models=models, notes=("a note",), environment=environment)


def test_every_accuracy_follows_from_the_samples(
    recorded: tuple[Store, Run], results: Results, tmp_path: Path
) -> None:
    store, run = recorded
    write_samples(store, run, tmp_path / "samples.parquet")
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table.num_rows == 2 * IMAGES
    flags = {}
    for role in ROLES:
        rows = table.filter(pc.equal(table["role"].cast("string"), role))
        assert rows["index"].to_pylist() == list(range(IMAGES))
        model = getattr(results.models, role)
        assert set(rows["model"].to_pylist()) == {model.name}
        for what in ("top1", "top5"):
            correct = rows[f"correct_{what}"].to_numpy(zero_copy_only=False)
            assert getattr(model, f"correct_{what}") == correct.sum()
            assert getattr(model, what) == correct.mean()
            interval = statistics.wilson_interval(int(correct.sum()), IMAGES)
            assert getattr(model, f"{what}_interval") == interval
            flags[role, what] = correct
        ranks = rows["rank"].to_numpy()
        assert ((ranks == 0) == flags[role, "top1"]).all()
        assert ((ranks < 5) == flags[role, "top5"]).all()
    pairs = statistics.paired_table(flags["baseline", "top1"], flags["idealized", "top1"])
    paired = results.paired
    assert (paired.both, paired.only_baseline, paired.only_idealized, paired.neither) == (
        pairs.both,
        pairs.only_baseline,
        pairs.only_idealized,
        pairs.neither,
    )
    difference = statistics.paired_difference(pairs)
    assert paired.difference_pp == difference.points
    assert paired.difference_interval_pp == (difference.low, difference.high)
    assert paired.mcnemar_p == statistics.mcnemar_exact(pairs)
    assert paired.difference_pp == pytest.approx(
        100 * (results.models.idealized.top1 - results.models.baseline.top1)
    )


def test_latency_is_of_full_batches_and_carried_percentiles(results: Results) -> None:
    latency = results.latency.baseline  # 250 requests of 4 images; the last has 3
    assert (latency.requests, latency.min_ms, latency.max_ms) == (250, 1, 250)
    assert (latency.p50_ms, latency.p90_ms, latency.p95_ms) == (125, 225, 238)
    assert (latency.p99_ms, latency.p99_9_ms) == (None, None)
    assert (latency.mean_ms, latency.mean_queue_ms, latency.mean_inference_ms) == (125.5, 0.25, 0.5)
    assert results.throughput.run == pytest.approx(IMAGES / (251 * 0.5))
    assert results.throughput.idealized == pytest.approx(IMAGES / (251 * 252 / 2) * 1000)


def test_results_say_what_a_reader_must_know(results: Results) -> None:
    assert "subset: 1,003 of 10,000 images" in results.warnings
    assert results.warnings[-1] == "a note"
    assert results.dataset.limited
    assert results.run.resumed == 0
    assert results.environment.engine_threads == {BASELINE: "1", IDEALIZED: "1"}
    assert results.measurement.percentile_requests["p99.9"] == 6636


def test_warnings_of_weights_chance_and_roles(
    recorded: tuple[Store, Run], models: tuple[ServedModel, ServedModel], results: Results
) -> None:
    store, run = recorded
    random = dataclasses.replace(
        models[0], manifest=models[0].manifest.model_copy(update={"random_weights": True})
    )
    one_class = dataclasses.replace(models[0], labels=("a", "b"))
    again = dataclasses.replace(run, resumed=2)
    summary = summarize(
        store, again, models=(random, one_class), notes=(), environment=results.environment
    )
    text = "\n".join(summary.warnings)
    assert f"the weights of {BASELINE} are random" in text
    assert "top-1 near chance" not in text  # 55 % of 2 classes lies above chance, if barely
    assert "its manifest calls it baseline" in text
    assert "resumed (2 x)" in text
    assert summary.models.baseline.random_weights


def test_the_files_are_written_whole(
    recorded: tuple[Store, Run], models: tuple[ServedModel, ServedModel], results: Results
) -> None:
    store, run = recorded
    write_files(store, run, models=models, notes=(), environment=results.environment)
    folder = store.folder(run.run_id)
    assert {path.name for path in folder.iterdir()} == {*FILES, ".lock"}
    text = (folder / "results.json").read_text()
    content = json.loads(text)
    assert content["schema_version"] == 1
    assert Results.model_validate_json(text).to_json() == text
    assert content["latency"]["baseline"]["p99_ms"] is None


def test_progress_is_taken_up_where_it_was(recorded: tuple[Store, Run], results: Results) -> None:
    progress = recorded_progress(*recorded)
    assert progress.images_done == progress.images_total == IMAGES
    for role in ROLES:
        assert progress.correct_top1[role] == getattr(results.models, role).correct_top1
        assert progress.correct_top5[role] == getattr(results.models, role).correct_top5
        assert progress.only_correct[role] == getattr(results.paired, f"only_{role}")


def test_the_published_schema_is_that_of_the_code() -> None:
    assert SCHEMA.read_text() == json_schema(), (
        "run: python -m services.evaluation.results > docs/results.schema.json"
    )


def test_judge() -> None:
    logits = np.array([0.0, 3.0, 1.0, 3.0], np.float32)
    assert judge(logits, 1).rank == 0  # of equals, the lower class is the prediction
    assert [judge(logits, label).rank for label in (3, 2, 0)] == [1, 2, 3]
    answer = judge(logits, 0)
    assert answer.predicted == 1
    assert answer.probability == pytest.approx(np.e**3 / (1 + 2 * np.e**3 + np.e))
    assert judge(np.array([1e4, -1e4], np.float32), 1).probability == 1


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_turns_are_balanced_and_drawn(seed: int) -> None:
    first = [turns(seed, batch)[0] for batch in range(200)]
    assert all(sorted(first[pair : pair + 2]) == [0, 1] for pair in range(0, 200, 2))
    assert 0 < sum(first[::2]) < 100
    assert first == [turns(seed, batch)[0] for batch in range(200)]
