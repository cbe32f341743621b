"""report.html: one self-contained page that says what results.json says."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from services.evaluation import results as schema
from services.evaluation import wording
from services.evaluation.environment import describe_environment
from services.evaluation.plots import interval_plot
from services.evaluation.report import render_report
from services.evaluation.results import Results
from services.evaluation.tables import print_results
from services.inference.repository import (
    BASELINE,
    IDEALIZED,
    Figure,
    FigureInfo,
    ServedModel,
    load_models,
)

VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


def figure(number: int, section: str) -> Figure:
    info = FigureInfo(
        file=f"figure-{number}.svg",
        section=section,
        title=f"Title <{number}>",
        caption=f"Caption & {number}",
        alt=f'Alt "{number}"',
        width=360,
    )
    return Figure(info, HOSTILE)


@pytest.fixture(scope="module")
def models(repository: Path) -> tuple[ServedModel, ServedModel]:
    served = load_models(repository)
    figures = (figure(1, "Zebras"), figure(2, "Zebras"), figure(3, "Apples"))
    return served[BASELINE], replace(served[IDEALIZED], figures=figures)


def model_result(model: ServedModel, top1: float) -> schema.ModelResult:
    return schema.ModelResult(
        name=model.name,
        source="demo <of> tests",
        license="Apache-2.0",
        random_weights=False,
        graph_sha256="0" * 64,
        expected_top1=None,
        classes=10,
        correct_top1=round(10_000 * top1),
        top1=top1,
        top1_interval=(top1 - 0.005, top1 + 0.005),
        correct_top5=9_990,
        top5=0.999,
        top5_interval=(0.998, 0.9995),
    )


@pytest.fixture(scope="module")
def results(models: tuple[ServedModel, ServedModel]) -> Results:
    latency = schema.ModelLatency(
        p50_ms=1.5,
        p90_ms=2.5,
        p95_ms=3.5,
        p99_ms=123.4,
        p99_9_ms=None,
        mean_ms=1.7,
        min_ms=1,
        max_ms=9,
        mean_queue_ms=0.1,
        mean_inference_ms=1.2,
        requests=1250,
    )
    return Results(
        warnings=["a <b>warning</b>"],
        run=schema.RunInfo(
            id="20260501T120000Z-1a2b3c4d",
            created=datetime(2026, 5, 1, 12, tzinfo=UTC),
            finished=datetime(2026, 5, 1, 12, 1, tzinfo=UTC),
            batch_size=8,
            seed=0,
            resumed=0,
            seconds=60,
        ),
        dataset=schema.DatasetInfo(
            uri="labels:/<script>alert(1)</script>",
            images=10_000,
            available=10_000,
            limited=False,
            fingerprint="1" * 64,
            notes=[],
        ),
        models=schema.Models(
            baseline=model_result(models[0], 0.9153), idealized=model_result(models[1], 0.9121)
        ),
        paired=schema.Paired(
            both=9_000,
            only_baseline=153,
            only_idealized=121,
            neither=726,
            difference_pp=-0.32,
            difference_interval_pp=(-0.645, 0.005),
            mcnemar_p=0.061,
        ),
        latency=schema.Latency(baseline=latency, idealized=latency),
        throughput=schema.Throughput(run=900.4, baseline=2_000, idealized=2_100),
        measurement=schema.Measurement(
            method="closed loop",
            batch_size=8,
            warmup_requests=3,
            percentile_requests={"p50": 11, "p90": 64, "p95": 130, "p99": 662, "p99.9": 6636},
        ),
        environment=describe_environment(
            engine="embedded:x", engine_versions={"engine": "1"}, models=models, decode_threads=2
        ),
    )


class Tags(HTMLParser):
    """Checks that every tag is closed in its turn, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(results: Results, models: tuple[ServedModel, ServedModel]) -> str:
    return render_report(results, models=models)


def test_the_page_is_self_contained(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert "<script" not in page
    names = {name for name, _ in tags.attributes}
    assert not names & {"href", "srcset"}
    sources = [value or "" for name, value in tags.attributes if name == "src"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    assert "http:" not in page
    assert "https:" not in page


def test_the_page_says_what_the_results_say(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    text = " ".join("".join(tags.text).split())
    for words in (
        "the idealized model has 91.21 % top-1 and the baseline 91.53 %",
        "\N{MINUS SIGN}0.32 percentage points (95 % interval \N{MINUS SIGN}0.65 to +0.01 pp, "
        "exact McNemar p = 0.061)",
        "do not tell the two models apart",
        "a <b>warning</b>",
        "all 10,000 images of labels:/<script>alert(1)</script>",
        "It takes p99.9 6,636; there were 1,250 of 8 images",
        "demo <of> tests",
        "90.0 %",  # of the layer's variance
    ):
        assert words in text


def test_every_picture_has_a_title_and_a_description(page: str) -> None:
    pictures = [
        ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    ]
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.get("role") == "img"
        assert picture.findtext("title")
        assert picture.findtext("desc")


def test_the_figures_of_the_repository_are_images_under_their_headings(page: str) -> None:
    images = re.findall(r"<img[^>]*>", page)
    assert [re.findall(r'alt="(.*?)"', image) for image in images] == [
        [f"Alt &#34;{number}&#34;"] for number in (1, 2, 3)
    ]
    for image in images:
        encoded = re.findall(r'src="data:image/svg\+xml;base64,(.*?)"', image)
        assert [base64.b64decode(data) for data in encoded] == [HOSTILE]
        assert 'width="360"' in image
    order = [page.index(f"<h2>{heading}</h2>") for heading in ("Zebras", "Apples")]
    assert order == sorted(order)
    assert page.count("<h2>Zebras</h2>") == 1
    for number in (1, 2, 3):
        assert f"Title &lt;{number}&gt;" in page
        assert f"Caption &amp; {number}" in page


def test_a_repository_without_figures_has_a_report_without_them(
    results: Results, models: tuple[ServedModel, ServedModel], repository: Path
) -> None:
    bare = load_models(repository)
    page = render_report(results, models=(bare[BASELINE], bare[IDEALIZED]))
    assert "<img" not in page
    assert "What the layers kept" in page


def test_the_terminal_table(results: Results, tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_results(console, results, Path("results/x"))
    console.file.close()
    text = console.export_text()
    for words in (
        "! a <b>warning</b>",
        "\N{MINUS SIGN}0.65 to +0.01 pp",
        "McNemar p = 0.061",
        "latency p99, ms",
        "latency mean, ms",
        "of it in the queue",
        "of it computed",
        "results/x/: results.json, samples.parquet, report.html",
    ):
        assert words in text
    assert "subset" not in text


@pytest.mark.parametrize(
    ("low", "high"), [(91.2, 91.9), (0.0, 0.4), (99.7, 100.0), (0, 100), (50.0, 50.0)]
)
def test_an_axis_holds_its_intervals_and_stays_in_bounds(low: float, high: float) -> None:
    row = ("a", "words", "baseline", (low + high) / 2, (low, high))
    plot = interval_plot("title", [row], bounds=(0, 100))
    places = [place for place, _ in plot.ticks]
    assert places == sorted(places)
    assert 3 <= len(plot.ticks) <= 9
    labels = [float(label) for _, label in plot.ticks]
    assert labels[0] >= 0
    assert labels[-1] <= 100
    assert places[0] <= plot.rows[0].x_low <= plot.rows[0].x <= plot.rows[0].x_high <= places[-1]
    assert len({label for _, label in plot.ticks}) == len(plot.ticks)


def test_a_difference_has_zero_on_its_axis() -> None:
    row = ("a", "words", "difference", -0.3, (-0.5, -0.1))
    plot = interval_plot("title", [row], with_zero=True, bounds=(-100, 100))
    assert plot.zero is not None
    assert plot.rows[0].x_high < plot.zero <= plot.ticks[-1][0]
    assert plot.ticks[0][1].startswith("\N{MINUS SIGN}")


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (wording.percent, 0.91529, "91.53 %"),
        (wording.points, -0.321, "\N{MINUS SIGN}0.32"),
        (wording.points, -0.001, "0.00"),
        (wording.points, 2.5, "+2.50"),
        (wording.p_value, 1.0, "= 1.00"),
        (wording.p_value, 0.061, "= 0.061"),
        (wording.p_value, 1e-9, "< 0.0001"),
        (wording.milliseconds, None, wording.DASH),
        (wording.milliseconds, 123.4, "123"),
    ],
)
def test_wording(write: object, value: object, text: str) -> None:
    assert write(value) == text  # type: ignore[operator]
