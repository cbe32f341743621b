"""The page of `mkf report`: one HTML file with its figures inside, no script, nothing to load."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from mkf.errors import MissingExtraError
from mkf.json_files import read_json
from mkf.ladder_results import Ladder
from mkf.report import figures as science
from mkf.report import numbers, wording
from mkf.report.discovered import SECTION as DISCOVERED_SECTION
from mkf.report.discovered import Discovered, discovered_figures
from mkf.report.ladder import SECTION as LADDER_SECTION
from mkf.report.ladder import ladder_figure
from mkf.report.network import Network
from mkf.report.study import Study
from mkf.repository import Figure

if TYPE_CHECKING:
    import jinja2

Share = Annotated[float, Field(ge=0, le=1)]


class ModelAccuracy(BaseModel):
    """One model of an evaluation."""

    name: str
    source: str
    top1: Share
    top1_interval: tuple[Share, Share]


class EvaluatedModels(BaseModel):
    """Both models of an evaluation."""

    baseline: ModelAccuracy
    idealized: ModelAccuracy


class PairedDifference(BaseModel):
    """Idealized minus baseline, in percentage points."""

    difference_pp: float
    difference_interval_pp: tuple[float, float]


class EvaluatedImages(BaseModel):
    """What an evaluation was made on."""

    uri: str
    images: int
    limited: bool


class Evaluation(BaseModel):
    """What the page shows of an evaluation's results.json; the rest is ignored."""

    warnings: list[str]
    dataset: EvaluatedImages
    models: EvaluatedModels
    paired: PairedDifference


@dataclass(frozen=True)
class Report:
    """The page, and the figures on it."""

    html: str
    figures: Sequence[Figure]


def read_evaluation(path: Path) -> Evaluation:
    """The accuracies in an evaluation's results.json.

    Raises
    ------
    InputError
        The file cannot be read or holds no results.
    """
    return read_json(path, Evaluation, wanted="the results.json of an evaluation")


def render(
    network: Network,
    study: Study,
    *,
    keys_file: Path | None = None,
    ladder: Ladder | None = None,
    discovered: Discovered | None = None,
    evaluation: Evaluation | None = None,
) -> Report:
    """The page.

    Parameters
    ----------
    keys_file : Path, optional
        Where the learned keys are from, if not the published ones.
    ladder, discovered, evaluation
        What other commands found; their sections are left out without them.

    Raises
    ------
    MissingExtraError
        Jinja2 is not installed.
    """
    figures = science.science_figures(study)
    found = [] if discovered is None else discovered_figures(discovered)
    rungs = [] if ladder is None else [ladder_figure(ladder)]
    everything = [*figures, *rungs, *found]

    def of_section(section: str) -> list[Figure]:
        return [figure for figure in everything if figure.section == section]

    html = _template().render(
        network=network,
        study=study,
        keys_file=keys_file,
        ladder=ladder,
        discovered=discovered,
        evaluation=evaluation,
        figures={figure.name: figure for figure in everything},
        of_section=of_section,
        science=science,
        ladder_section=LADDER_SECTION,
        discovered_section=DISCOVERED_SECTION,
        wording=wording,
        numbers=numbers,
        worst=study.worst(science.WORST_SHOWN),
        versions=_versions(),
        base64=lambda data: base64.b64encode(data).decode("ascii"),
    )
    return Report(html, everything)


@cache
def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            f"the report needs Jinja2 ({error}); install it with: pip install 'mkf[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _versions() -> str:
    packages = ("mkf", "numpy", "scipy", "matplotlib")
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in packages)]
    )
