"""The runs of one results directory, in SQLite: a run survives the process that carries it.

One transaction a batch: after a crash a run continues behind the last batch that was recorded in
full, and nothing is counted twice. A process that carries a run holds a lock on a file in the run's
folder. The kernel releases it when the process dies, however it dies, so the next start tells a run
that was interrupted from one that another process still carries.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from services.errors import InvalidInputError, NotFoundError, PreconditionError
from services.evaluation.records import BatchRecord, Plan, Run, State

DATABASE = "runs.sqlite3"
LOCK = ".lock"
RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
SCHEMA_VERSION = 2
REQUESTS = """
CREATE TABLE requests (
    run_id TEXT NOT NULL, batch INTEGER NOT NULL, role TEXT NOT NULL, images INTEGER NOT NULL,
    latency_ms REAL NOT NULL, queue_ms REAL, inference_ms REAL, attempts INTEGER NOT NULL,
    PRIMARY KEY (run_id, batch, role), FOREIGN KEY (run_id, batch) REFERENCES batches
) STRICT, WITHOUT ROWID"""
SCHEMA = f"""
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, state TEXT NOT NULL, plan TEXT NOT NULL, created TEXT NOT NULL,
    images_done INTEGER NOT NULL, batches_done INTEGER NOT NULL, resumed INTEGER NOT NULL,
    error TEXT NOT NULL
) STRICT;
CREATE TABLE batches (
    run_id TEXT NOT NULL REFERENCES runs, batch INTEGER NOT NULL, images INTEGER NOT NULL,
    seconds REAL NOT NULL, PRIMARY KEY (run_id, batch)
) STRICT, WITHOUT ROWID;{REQUESTS};
CREATE TABLE samples (
    run_id TEXT NOT NULL, image INTEGER NOT NULL, role TEXT NOT NULL, batch INTEGER NOT NULL,
    sample_id TEXT NOT NULL, label INTEGER NOT NULL, predicted INTEGER NOT NULL,
    rank INTEGER NOT NULL, probability REAL NOT NULL,
    PRIMARY KEY (run_id, image, role), FOREIGN KEY (run_id, batch) REFERENCES batches
) STRICT, WITHOUT ROWID;
"""
FROM_VERSION_1 = f"""
ALTER TABLE requests RENAME TO old_requests;{REQUESTS};
INSERT INTO requests SELECT *, 1 FROM old_requests;
DROP TABLE old_requests
"""  # noqa: S608
RUN_COLUMNS = "run_id, state, plan, created, images_done, batches_done, resumed, error"


def new_run_id() -> str:
    """A name that sorts by time and is not guessed: 20260501T120000Z-1a2b3c4d."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


class Store:
    """Open it once a process and close it at the end; safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._locks: dict[str, IO[bytes]] = {}
        self._mutex = threading.RLock()
        self._database = sqlite3.connect(
            directory / DATABASE, timeout=30, isolation_level=None, check_same_thread=False
        )
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._create()
            self._mark_interrupted()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Let go of the database and of every run."""
        with self._mutex:
            for run_id in list(self._locks):
                self.release(run_id)
            self._database.close()

    def folder(self, run_id: str) -> Path:
        """Where the files of a run are.

        Raises
        ------
        InvalidInputError
            The text is no run id; so no path leads out of the directory.
        """
        if not RUN_ID.fullmatch(run_id):
            raise InvalidInputError(
                f"{run_id[:100]!r} is no run id; one looks like 20260501T120000Z-1a2b3c4d"
            )
        return self.directory / run_id

    def create(self, plan: Plan) -> Run:
        """Record a new run, RUNNING and held by this process."""
        run = Run(
            run_id=new_run_id(),
            state=State.RUNNING,
            plan=plan,
            created=datetime.now(UTC),
            images_done=0,
            batches_done=0,
            resumed=0,
            error="",
        )
        self._acquire(run.run_id)
        with self._transaction() as database:
            database.execute(
                f"INSERT INTO runs ({RUN_COLUMNS}) VALUES (?, ?, ?, ?, 0, 0, 0, '')",  # noqa: S608
                (
                    run.run_id,
                    run.state,
                    json.dumps(dataclasses.asdict(plan)),
                    run.created.isoformat(),
                ),
            )
        return run

    def resume(self, run_id: str) -> Run:
        """Take up a run that stands still: RUNNING again and held by this process.

        Raises
        ------
        NotFoundError
            No such run.
        PreconditionError
            The run is complete, or another process carries it.
        """
        self.get(run_id)
        self._acquire(run_id)
        if self.get(run_id).state == State.SUCCEEDED:
            self.release(run_id)
            raise PreconditionError(f"the run {run_id} is complete; there is nothing to resume")
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = ?, error = '', resumed = resumed + 1 WHERE run_id = ?",
                (State.RUNNING, run_id),
            )
        return self.get(run_id)

    def finish(self, run_id: str, state: State, *, error: str = "") -> None:
        """Record how a run ended and let it go.

        The records of a run that succeeded are dropped: its files hold them.
        """
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = ?, error = ? WHERE run_id = ?", (state, error, run_id)
            )
            if state == State.SUCCEEDED:
                for table in ("samples", "requests", "batches"):
                    database.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))  # noqa: S608
        self.release(run_id)

    def record(self, run_id: str, batch: BatchRecord) -> None:
        """Add a batch: all of it or, after a crash, nothing."""
        images = len(batch.ids)
        with self._transaction() as database:
            first, number = database.execute(
                "SELECT images_done, batches_done FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
            if number != batch.number:
                raise ValueError(f"batch {number} of {run_id} was to come, not {batch.number}")
            database.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?)", (run_id, number, images, batch.seconds)
            )
            for role, request in batch.requests.items():
                database.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(run_id, number, role, images, request.latency_ms),
                        *(request.queue_ms, request.inference_ms, request.attempts),
                    ),
                )
                database.executemany(
                    "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        (
                            *(run_id, first + offset, role, number, sample_id, label),
                            *(answer.predicted, answer.rank, answer.probability),
                        )
                        for offset, (sample_id, label, answer) in enumerate(
                            zip(batch.ids, batch.labels, request.predictions, strict=True)
                        )
                    ),
                )
            database.execute(
                "UPDATE runs SET images_done = images_done + ?, batches_done = batches_done + 1 "
                "WHERE run_id = ?",
                (images, run_id),
            )

    def get(self, run_id: str) -> Run:
        """A run as it stands.

        Raises
        ------
        InvalidInputError
            The text is no run id.
        NotFoundError
            No such run.
        """
        self.folder(run_id)  # checks the id
        query = f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = ?"  # noqa: S608
        rows = list(self.select(query, (run_id,)))
        if not rows:
            raise NotFoundError(f"there is no run {run_id} in {self.directory}")
        return _run(rows[0])

    def runs(self, *, before: str = "", limit: int) -> list[Run]:
        """Runs, newest first, from the one before `before` on."""
        rows = self.select(
            f"SELECT {RUN_COLUMNS} FROM runs WHERE ? = '' OR run_id < ? "  # noqa: S608
            "ORDER BY run_id DESC LIMIT ?",
            (before, before, limit),
        )
        return [_run(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """How many runs are in each state."""
        counts = dict(self.select("SELECT state, COUNT(*) FROM runs GROUP BY state"))
        return {state: counts.get(state, 0) for state in State}

    def select(self, query: str, parameters: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, few at a time in memory.

        Over a connection of its own: a long query holds up neither the recording of another run nor
        the event loop.
        """
        with closing(sqlite3.connect(self.directory / DATABASE, timeout=30)) as database:
            yield from database.execute(query, parameters)

    def release(self, run_id: str) -> None:
        """Let go of a run, whatever its state."""
        with self._mutex:
            if lock := self._locks.pop(run_id, None):
                lock.close()

    def _acquire(self, run_id: str) -> None:
        folder = self.folder(run_id)
        folder.mkdir(exist_ok=True)
        lock = (folder / LOCK).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise PreconditionError(
                f"the run {run_id} is under way in a service; wait for it or cancel it"
            ) from None
        with self._mutex:
            self._locks[run_id] = lock

    def _mark_interrupted(self) -> None:
        """Runs that no living process carries were cut off."""
        running = self.select("SELECT run_id FROM runs WHERE state = ?", (State.RUNNING,))
        for (run_id,) in list(running):
            try:
                self._acquire(run_id)
            except PreconditionError:
                continue
            if self.get(run_id).state == State.RUNNING:  # still, now that nobody else carries it
                self.finish(run_id, State.INTERRUPTED)
            self.release(run_id)

    def _create(self) -> None:
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version < SCHEMA_VERSION:
                for statement in (FROM_VERSION_1 if version else SCHEMA).split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise PreconditionError(
                    f"{self.directory / DATABASE} was written by another version of mkf "
                    f"(schema {version}, not {SCHEMA_VERSION}); choose another results directory"
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _run(row: tuple[Any, ...]) -> Run:
    run_id, state, plan, created, images_done, batches_done, resumed, error = row
    fields = json.loads(plan)
    for name in ("models", "graph_sha256"):
        fields[name] = tuple(fields[name])
    return Run(
        run_id=run_id,
        state=State(state),
        plan=Plan(**fields),
        created=datetime.fromisoformat(created),
        images_done=images_done,
        batches_done=batches_done,
        resumed=resumed,
        error=error,
    )
