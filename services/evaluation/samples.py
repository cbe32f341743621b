"""samples.parquet: one row an image and model, from which every accuracy can be computed again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from services.evaluation.records import ROLES, Run
from services.evaluation.store import Store

ROWS = 10_000  # held in memory at once
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),  # place in the run, from 0
        ("sample_id", pa.string()),
        ("label", pa.int32()),
        ("role", pa.dictionary(pa.int8(), pa.string())),
        ("model", pa.dictionary(pa.int8(), pa.string())),
        ("predicted", pa.int32()),
        ("rank", pa.int32()),  # of the label; 0 where it is the prediction
        ("correct_top1", pa.bool_()),
        ("correct_top5", pa.bool_()),
        ("probability", pa.float64()),  # of the predicted class
        ("latency_ms", pa.float64()),  # of the request that the image was part of
        ("batch", pa.int32()),
    ]
)
QUERY = """
SELECT image, sample_id, label, role, role, predicted, rank, rank = 0, rank < 5, probability,
       latency_ms, batch
FROM samples JOIN requests USING (run_id, batch, role)
WHERE run_id = ? ORDER BY image, role
"""


def write_samples(store: Store, run: Run, path: Path) -> None:
    """Write the recorded samples of a run, in the order of the images."""
    names = dict(zip(ROLES, run.plan.models, strict=True))
    rows = []
    with pq.ParquetWriter(path, SCHEMA.with_metadata({"run_id": run.run_id})) as writer:
        for row in store.select(QUERY, (run.run_id,)):
            rows.append(row)
            if len(rows) == ROWS:
                writer.write_table(_table(rows, names))
                rows = []
        if rows:
            writer.write_table(_table(rows, names))


def _table(rows: list[tuple[object, ...]], names: dict[str, str]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[SCHEMA.get_field_index("model")] = [
        names[str(role)] for role in columns[SCHEMA.get_field_index("role")]
    ]
    for flag in ("correct_top1", "correct_top5"):
        place = SCHEMA.get_field_index(flag)
        columns[place] = [bool(value) for value in columns[place]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
