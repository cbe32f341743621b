"""The store: what a run's records survive, and who may carry it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from services.errors import InvalidInputError, NotFoundError, PreconditionError
from services.evaluation.records import ROLES, BatchRecord, Plan, Prediction, Request, State
from services.evaluation.store import DATABASE, RUN_ID, Store, new_run_id

PLAN = Plan(
    dataset_uri="fashion-mnist",
    models=("convnext_baseline", "convnext_idealized"),
    graph_sha256=("a", "b"),
    preprocessing="{}",
    batch_size=2,
    seed=2**64 - 1,
    images_total=4,
    images_available=10,
    fingerprint="f",
)


def batch(number: int) -> BatchRecord:
    request = Request(
        latency_ms=3,
        queue_ms=1,
        inference_ms=2,
        attempts=1,
        predictions=[Prediction(predicted=1, rank=rank, probability=0.5) for rank in (0, 3)],
    )
    return BatchRecord(
        number=number,
        seconds=0.1,
        ids=[f"{number}/0", f"{number}/1"],
        labels=[1, 2],
        requests=dict.fromkeys(ROLES, request),
    )


def count(store: Store, table: str) -> int:
    ((number,),) = store.select(f"SELECT COUNT(*) FROM {table}")
    return int(number)


def test_a_run_comes_back_as_it_was_recorded(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    run = store.create(PLAN)
    assert (run.state, run.plan) == (State.RUNNING, PLAN)
    store.record(run.run_id, batch(0))
    store.record(run.run_id, batch(1))
    found = store.get(run.run_id)
    assert (found.images_done, found.batches_done, found.plan) == (4, 2, PLAN)
    assert found.created == run.created
    assert (count(store, "batches"), count(store, "requests"), count(store, "samples")) == (2, 4, 8)
    store.finish(run.run_id, State.SUCCEEDED)
    assert (count(store, "batches"), count(store, "requests"), count(store, "samples")) == (0, 0, 0)
    assert store.get(run.run_id).state == State.SUCCEEDED
    with pytest.raises(PreconditionError, match="complete"):
        store.resume(run.run_id)
    store.close()


def test_a_batch_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = store.create(PLAN)
    broken = batch(0)
    broken.requests["idealized"].predictions[1] = None  # type: ignore[call-overload]
    with pytest.raises(AttributeError):
        store.record(run.run_id, broken)
    assert store.get(run.run_id).images_done == 0
    assert (count(store, "batches"), count(store, "requests"), count(store, "samples")) == (0, 0, 0)
    store.record(run.run_id, batch(0))
    with pytest.raises(ValueError, match="batch 1 of"):
        store.record(run.run_id, batch(0))
    assert store.get(run.run_id).images_done == 2
    store.close()


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED, State.INTERRUPTED])
def test_a_run_that_stands_still_can_be_resumed(tmp_path: Path, state: State) -> None:
    store = Store(tmp_path)
    run = store.create(PLAN)
    store.record(run.run_id, batch(0))
    store.finish(run.run_id, state, error="because")
    assert store.get(run.run_id).error == "because"
    again = store.resume(run.run_id)
    assert (again.state, again.error) == (State.RUNNING, "")
    assert (again.resumed, again.images_done, again.batches_done) == (1, 2, 1)
    store.close()


def test_only_one_process_carries_a_run(tmp_path: Path) -> None:
    first = Store(tmp_path)
    run = first.create(PLAN)
    second = Store(tmp_path)
    assert second.get(run.run_id).state == State.RUNNING  # not marked: the first still carries it
    with pytest.raises(PreconditionError, match="under way"):
        second.resume(run.run_id)
    first.close()
    assert second.resume(run.run_id).state == State.RUNNING
    second.close()


def test_a_killed_process_leaves_an_interrupted_run(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_store import PLAN, Store, batch\n"
        "store = Store(Path(sys.argv[1])); run = store.create(PLAN)\n"
        "store.record(run.run_id, batch(0)); print(run.run_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    store = Store(tmp_path)
    run = store.get(killed.stdout.strip())
    assert (run.state, run.images_done) == (State.INTERRUPTED, 2)
    assert store.counts()[State.INTERRUPTED] == 1
    store.close()


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = sorted((store.create(PLAN).run_id for _ in range(5)), reverse=True)
    assert [run.run_id for run in store.runs(limit=10)] == ids
    assert [run.run_id for run in store.runs(before=ids[1], limit=2)] == ids[2:4]
    assert store.runs(before=ids[-1], limit=2) == []
    store.close()


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../x", "/etc", "20260501T120000Z-1a2b3c4d/..", "a" * 10_000, "\0"]
)
def test_run_ids_that_are_none(tmp_path: Path, run_id: str) -> None:
    store = Store(tmp_path)
    for call in (store.folder, store.get, store.resume):
        with pytest.raises(InvalidInputError, match="no run id"):
            call(run_id)
    store.close()


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = new_run_id()
    for call in (store.get, store.resume):
        with pytest.raises(NotFoundError, match=run_id):
            call(run_id)
    assert not store.folder(run_id).exists()
    store.close()


def test_run_ids_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(10)]
    assert all(RUN_ID.fullmatch(run_id) for run_id in ids)
    assert len(set(ids)) == 10
    times = [run_id.split("-")[0] for run_id in ids]
    assert times == sorted(times)


def test_a_run_of_the_first_version_is_taken_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = store.create(PLAN)
    store.record(run.run_id, batch(0))
    store.close()
    with sqlite3.connect(tmp_path / DATABASE) as database:  # as the first version had it
        database.execute("ALTER TABLE requests DROP COLUMN attempts")
        database.execute("PRAGMA user_version = 1")
    database.close()
    store = Store(tmp_path)
    assert store.resume(run.run_id).batches_done == 1
    store.record(run.run_id, batch(1))
    rows = list(store.select("SELECT batch, latency_ms, attempts FROM requests ORDER BY batch"))
    assert rows == [(0, 3, 1), (0, 3, 1), (1, 3, 1), (1, 3, 1)]
    store.close()


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    database = sqlite3.connect(tmp_path / DATABASE)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(PreconditionError, match="schema 99"):
        Store(tmp_path)
