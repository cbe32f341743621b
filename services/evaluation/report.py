"""report.html: the comparison on one page, from results.json and the models' manifests alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
import numpy as np

from services.evaluation import wording
from services.evaluation.plots import HeatMap, Plot, heat_map, interval_plot
from services.evaluation.records import ROLES
from services.evaluation.results import Results
from services.inference.repository import Manifest, ServedModel

OPERATORS = {  # section 4 of Lindeberg, Babaiee & Kiasari 2026; x to the right, y up
    1: "forward difference in y",
    2: "backward difference in x",
    3: "backward difference in y",
    4: "forward difference in x",
    5: "central difference in x",
    6: "central difference in y",
    7: "impulse minus \N{GREEK SMALL LETTER GAMMA} times the Laplacian of the Gaussian",
    8: "Gaussian smoothing",
}


@dataclass(frozen=True)
class KeyPicture:
    """One key of the gallery."""

    key: int
    operator: str
    learned: HeatMap
    idealized: HeatMap
    match: float  # absolute correlation of the two kernels, 0 to 1
    sigma_x: float
    sigma_y: float
    gamma: float | None
    filters: int  # of the model that took this key


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
        gallery=_gallery(manifest),
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


def _gallery(manifest: Manifest) -> list[KeyPicture]:
    """The keys beside their models; empty where the manifest has none."""
    if manifest.kernels is None or manifest.learned_keys is None or manifest.fit is None:
        return []
    scales = {fitted.key: fitted for fitted in manifest.fit.keys}
    pictures = []
    for key, (learned, idealized) in enumerate(
        zip(manifest.learned_keys, manifest.kernels, strict=True), start=1
    ):
        learned_kernel, kernel = np.array(learned), np.array(idealized)
        match = float(np.corrcoef(learned_kernel.ravel(), kernel.ravel())[0, 1])
        # A filter is its model up to a factor, which may be negative.
        learned_kernel = learned_kernel if match >= 0 else -learned_kernel
        pictures.append(
            KeyPicture(
                key=key,
                operator=OPERATORS.get(key, "another operator"),
                learned=heat_map(learned_kernel),
                idealized=heat_map(kernel),
                match=abs(match),
                sigma_x=scales[key].sigma_x,
                sigma_y=scales[key].sigma_y,
                gamma=scales[key].gamma,
                filters=sum(layer.keys.get(str(key), 0) for layer in manifest.layers or []),
            )
        )
    return pictures
