"""report.html: the comparison on one page, from results.json and the model repository alone."""

from __future__ import annotations

import base64
from functools import cache
from itertools import groupby
from pathlib import Path

import jinja2

from services.evaluation import wording
from services.evaluation.plots import Plot, interval_plot
from services.evaluation.records import ROLES
from services.evaluation.results import Results
from services.inference.repository import Figure, ServedModel


def render_report(results: Results, *, models: tuple[ServedModel, ServedModel]) -> str:
    """The text of report.html: one file, nothing to load, no script.

    Parameters
    ----------
    results
        As results.json holds them.
    models
        The baseline and the idealized model that they are of.
    """
    manifest = models[1].manifest
    return _template().render(
        results=results,
        roles=[(role, getattr(results.models, role)) for role in ROLES],
        plots=_plots(results),
        sections=_sections(models[1].figures),
        data_url=_data_url,
        fit=manifest.fit,
        layers=manifest.layers or [],
        wording=wording,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _plots(results: Results) -> list[Plot]:
    plots = []
    for what in ("top1", "top5"):
        rows = []
        for role in ROLES:
            model = getattr(results.models, role)
            share, interval = getattr(model, what), getattr(model, f"{what}_interval")
            text = f"{wording.percent(share)}, {wording.percent_interval(interval)}"
            rows.append(
                (role, text, role, 100 * share, (100 * interval[0], 100 * interval[1])),
            )
        title = f"Top-{what[-1]} accuracy in percent"
        plots.append(interval_plot(title, rows, bounds=(0, 100)))
    paired = results.paired
    interval = paired.difference_interval_pp
    text = f"{wording.points(paired.difference_pp)}, {wording.points_interval(interval)}"
    row = ("idealized minus baseline", text, "difference", paired.difference_pp, interval)
    title = "Top-1 difference in percentage points"
    plots.append(interval_plot(title, [row], with_zero=True, bounds=(-100, 100)))
    return plots


def _sections(figures: tuple[Figure, ...]) -> list[tuple[str, list[Figure]]]:
    """The model's figures under their headings, in the order of the manifest."""
    return [
        (heading, list(members))
        for heading, members in groupby(figures, key=lambda figure: figure.info.section)
    ]


def _data_url(figure: Figure) -> str:
    """An image element runs no script and loads nothing, whoever drew the figure."""
    return f"data:image/svg+xml;base64,{base64.b64encode(figure.svg).decode('ascii')}"
