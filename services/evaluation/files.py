"""The files of a finished run: results.json, samples.parquet, report.html."""

from __future__ import annotations

from services.evaluation.records import Run
from services.evaluation.report import render_report
from services.evaluation.results import Environment
from services.evaluation.samples import write_samples
from services.evaluation.store import Store
from services.evaluation.summary import summarize
from services.inference.repository import ServedModel

FILES = ("results.json", "samples.parquet", "report.html")


def write_files(
    store: Store,
    run: Run,
    *,
    models: tuple[ServedModel, ServedModel],
    notes: tuple[str, ...],
    environment: Environment,
) -> None:
    """Write all files into the run's folder; none stands there half written.

    Parameters
    ----------
    notes
        Of the dataset.
    """
    folder = store.folder(run.run_id)
    results = summarize(store, run, models=models, notes=notes, environment=environment)
    parts = {name: folder / f".{name}.part" for name in FILES}
    parts["results.json"].write_text(results.to_json(), encoding="utf-8")
    write_samples(store, run, parts["samples.parquet"])
    report = render_report(results, models=models)
    parts["report.html"].write_text(report, encoding="utf-8")
    for name, part in parts.items():
        part.replace(folder / name)
