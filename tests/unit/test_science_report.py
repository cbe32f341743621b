"""`mkf report`: what the figures show, what the page says, and the figures of contract 1."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tiny_models import tiny_graph

from mkf.errors import InputError
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys
from mkf.repository import (
    BASELINE,
    IDEALIZED,
    Figure,
    Idealization,
    Model,
    Preprocessing,
    Provenance,
)
from mkf.repository import write_models as write
from services.errors import RepositoryError
from services.inference.repository import FIGURES_BYTES, load_models

pytest.importorskip("matplotlib", reason="install mkf[report]")

import matplotlib as mpl

from mkf.ladder_results import read_ladder
from mkf.report import figures as drawn
from mkf.report import wording
from mkf.report.discovered import cost_figure, discovered_figures, read_discovered
from mkf.report.drawing import DIVERGING, SERIES
from mkf.report.exported import export_figures
from mkf.report.ladder import ladder_figure
from mkf.report.network import Network, load_network, study_network
from mkf.report.numbers import percent, points
from mkf.report.page import read_evaluation, render
from mkf.report.study import Study, layer_filters

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network("demo")


@pytest.fixture(scope="module")
def study(network: Network) -> Study:
    return study_network(network, load_keys(), method="B", scales="separate", boundary="symmetric")


@pytest.fixture(scope="module")
def figures(study: Study) -> list[Figure]:
    return drawn.science_figures(study)


def rung(name: str, **changes: Any) -> dict[str, Any]:
    top1 = changes.get("top1", 0.5)
    return {
        "name": name,
        "terms": 1,
        "scales": "fixed",
        "calibrated": False,
        "numbers_per_filter": 2.0,
        "kept": 0.3,
        "top1": top1,
        "top1_interval": [top1 - 0.01, top1 + 0.01],
        "difference_pp": 100 * (top1 - 0.9),
        "difference_interval_pp": [100 * (top1 - 0.91), 100 * (top1 - 0.89)],
        "share_of_baseline": top1 / 0.9,
    } | changes


LADDER = {
    "schema_version": 1,
    "source": "demo",
    "dataset": "fashion-mnist",
    "images": 1000,
    "limited": True,
    "calibration": {"dataset": "fashion-mnist", "images": 64},
    "filters": 504,
    "baseline": {"top1": 0.9, "top1_interval": [0.88, 0.92]},
    "rungs": [
        rung("1 key"),
        rung("3 keys", terms=3, numbers_per_filter=4, top1=0.6),
        rung("1 key, own scales", scales="per-filter", numbers_per_filter=4, top1=0.7),
        rung("1 key, layer's scales", scales="per-layer", numbers_per_filter=2.1, top1=0.55),
        rung("3 keys", terms=3, calibrated=True, numbers_per_filter=4, top1=0.895),
        rung("8 keys", terms=8, calibrated=True, numbers_per_filter=9, top1=0.9),
    ],
}
DISCOVERED = {
    "sources": ["demo"],
    "filters": 504,
    "cost": "reconstruction",
    "costs": [{"count": n, "cost": 0.3 + 1 / n} for n in range(1, 12)],
    "elbow": 2,
    "keys": [
        {
            "key": key,
            "kernel": np.outer([1, 0, -key], [1, 2, 1]).tolist(),
            "operator_key": 6,
            "cosine": 0.97,
            "well": key == 1,
            "share": 0.4 + 0.1 * key,
        }
        for key in (1, 2)
    ],
}
RESULTS = {
    "warnings": ["subset: <b>1</b>"],
    "dataset": {"uri": "labels:<i>", "images": 1234, "limited": True},
    "models": {
        role: {"name": f"net-{role}", "source": "demo", "top1": top1, "top1_interval": [0.8, 1]}
        for role, top1 in (("baseline", 0.9), ("idealized", 0.8765))
    },
    "paired": {"difference_pp": -2.35, "difference_interval_pp": [-3, -1.7]},
}


def saved(folder: Path, content: object) -> Path:
    path = folder / "content.json"
    path.write_text(json.dumps(content))
    return path


class Page(HTMLParser):
    """Checks that every tag is closed in its turn; collects attributes, headings and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.levels: list[int] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


@pytest.fixture(scope="module")
def full(network: Network, study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return render(
        network,
        study,
        ladder=read_ladder(saved(folder, LADDER)),
        discovered=read_discovered(saved(folder, DISCOVERED)),
        evaluation=read_evaluation(saved(folder, RESULTS)),
    ).html


def test_pairs_are_of_unit_norm_and_their_difference_is_what_the_cosine_says(study: Study) -> None:
    for pair in study.pairs:
        assert np.linalg.norm(pair.learned) == pytest.approx(1)
        assert np.linalg.norm(pair.idealized) == pytest.approx(1)
        assert pair.missed**2 == pytest.approx(2 - 2 * pair.cosine)
        assert 0.8 < pair.cosine < 1


def test_what_is_kept_and_lost_adds_up(study: Study) -> None:
    worst = study.worst(study.filters)
    assert sum(one.share_of_loss for one in worst) == pytest.approx(1)
    shares = [one.share_of_loss for one in worst]
    assert shares == sorted(shares, reverse=True)
    lost = sum(layer.lost.sum() for layer in study.layers)
    assert 1 - study.kept == pytest.approx(
        lost / sum(layer.variance.sum() for layer in study.layers)
    )
    assert sum(study.counts().values()) == study.filters == 504


def test_the_worst_filter_is_the_one_that_was_made_the_worst() -> None:
    fits = fit_keys(load_keys(), method="B")
    kernels = idealized_kernels(fits)
    rng = np.random.default_rng(1)
    learned = 3 * kernels + 0.01 * rng.normal(size=kernels.shape)
    learned[4] += np.linspace(-1, 1, 49).reshape(7, 7)
    layer = layer_filters("conv", learned, 3 * kernels, kernels=kernels)
    study = Study("B", "separate", "symmetric", load_keys(), fits, [layer])
    one, *_ = study.worst(3)
    assert (one.channel, one.key) == (4, 5)
    assert one.share_of_loss > 0.9
    assert layer.keys.tolist() == list(range(1, 9))
    whole = layer_filters("conv", kernels, kernels, kernels=kernels)
    kept = Study("B", "separate", "symmetric", load_keys(), fits, [whole])
    assert kept.worst(3) == []
    assert kept.kept == 1
    assert wording.worst([]) == "Every filter is kept whole."


def test_figures_are_svg_without_anything_to_run_or_load(figures: list[Figure]) -> None:
    assert len({figure.name for figure in figures}) == len(figures) == 1 + 8 + 2 + 12
    for figure in figures:
        root = ElementTree.fromstring(figure.svg)
        width, _ = (float(root.get(name, "0pt")[:-2]) for name in ("width", "height"))
        assert width * 96 / 72 == pytest.approx(figure.width)
        tags = {element.tag for element in root.iter()}
        assert not tags & {f"{SVG}script", f"{SVG}foreignObject", f"{SVG}a"}
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))
        for words in (figure.section, figure.title, figure.caption, figure.alt):
            assert words.strip()
    assert sum(len(figure.svg) for figure in figures) < 700_000


def test_figures_are_the_same_on_every_run(study: Study, figures: list[Figure]) -> None:
    assert drawn.key_figures(study) == figures[:9]
    assert drawn.layers_figure(study) in figures
    assert b"<dc:date>" not in figures[0].svg


def test_all_keys_share_one_scale_of_color_that_holds_every_value(study: Study) -> None:
    limit = drawn.color_limit(study.pairs)
    panels = [panel for pair in study.pairs for _, panel in drawn.key_panels(pair)]
    assert all(np.abs(panel).max() <= limit for panel in panels)
    assert max(np.abs(panel).max() for panel in panels) > limit - 0.1


# Linear RGB as those see it who lack one kind of cone: Machado, Oliveira, Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1.
BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "none": np.eye(3).tolist(),
}


def lab(color: Any, kind: str) -> np.ndarray:
    """CIE Lab (D65) of a color as seen with that kind of color blindness."""
    rgb = np.array(mpl.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1)
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = (np.array(matrix) @ seen) / [0.95047, 1, 1.08883]
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colors_stay_apart_for_color_blind_people(kind: str) -> None:
    scale = mpl.colormaps[DIVERGING]
    for share in (0.3, 0.6, 1.0):
        negative, positive = (lab(scale(0.5 + sign * share / 2), kind) for sign in (-1, 1))
        assert np.linalg.norm(negative - positive) > 15, share
    colors = [lab(color, kind) for color, _ in SERIES]
    for i, one in enumerate(colors):
        for other in colors[:i]:
            assert np.linalg.norm(one - other) > 10
    assert len({marker for _, marker in SERIES}) == len(SERIES)


def test_the_page_is_self_contained(full: str) -> None:
    page = Page(full)
    assert "<script" not in full
    names = {name for _, name, _ in page.attributes}
    assert not names & {"href", "srcset"}
    assert not [name for name in names if name.startswith("on")]
    sources = [value for _, name, value in page.attributes if name == "src"]
    assert len(sources) == 23 + 1 + 3
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        ElementTree.fromstring(base64.b64decode(data))
    for word in ("url(", "@import", "http:", "https:"):
        assert word not in full
    assert len(full) < 1_500_000
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(page.levels))
    assert [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert not [v for tag, name, v in page.attributes if tag == "img" and name == "alt" and not v]


def test_the_page_says_what_was_computed(full: str, study: Study) -> None:
    text = Page(full).text.replace("\N{NO-BREAK SPACE}", " ")
    far = min(study.pairs, key=lambda pair: pair.cosine)
    layer = min(study.layers, key=lambda one: one.kept)
    for words in (
        f"Key {far.fit.key} ({far.operator}) is missed most",
        f"keeps {100 * study.kept:.1f} % of the variance of its 504 filters",
        f"{layer.name} keeps least ({100 * layer.kept:.0f} %)",
        "Apache-2.0",
        "net-idealized has 87.65 % top-1 and net-baseline 90.00 %: \N{MINUS SIGN}2.35 percentage",
        "1,234 images of labels:<i> (a part of them)",
        "subset: <b>1</b>",
        "keeps 99 % of the learned network's top-1 is “3 keys, calibrated”: 4 free numbers a "
        "filter, 89.50 % top-1, 99.4 % of the learned network's",
        "On 1,000 images of fashion-mnist (a part of them)",
        "refitted on 64 images",
        "2 keys were found in 504 filters of demo; an operator fits 1 of them well. Key 2 (no "
        "operator fits) is taken most often, by 60 % of the filters.",
    ):
        assert words in text
    for pair in study.pairs:
        assert f"{pair.fit.sigma_x:.3f}" in text


def test_a_bare_report_and_what_readers_must_know_first(network: Network, study: Study) -> None:
    kernels = np.array([pair.idealized for pair in study.pairs])
    layer = layer_filters("<b>conv</b>", kernels[:2] ** 2, kernels[:2], kernels=kernels)
    odd = replace(study, layers=[layer], skipped=["odd <layer>"])
    report = render(replace(network, random_weights=True), odd, keys_file=Path("my <keys>.csv"))
    text = Page(report.html).text
    assert "cannot be idealized, and are not counted here: odd <layer>." in text
    assert "The weights are random" in text
    assert "<b>conv</b>, channel 1" in text
    assert "my <keys>.csv" in text
    assert "ladder" not in text
    assert "keys found" not in text
    assert len(report.figures) == 1 + 8 + 2 + 2


def test_the_ladder_names_the_cheapest_rung_that_is_enough(tmp_path: Path) -> None:
    ladder = read_ladder(saved(tmp_path, LADDER))
    enough = ladder.enough(0.99)
    assert enough is not None
    assert (enough.name, enough.calibrated) == ("3 keys", True)
    assert ladder.enough(1.01) is None
    poor = read_ladder(saved(tmp_path, LADDER | {"rungs": [rung("1 key")]}))
    assert wording.ladder(poor).startswith("No rung keeps 99")
    wide = LADDER | {"rungs": [rung("1 key"), rung("all", numbers_per_filter=49, top1=0.9)]}
    for content in (LADDER, wide):
        figure = ladder_figure(read_ladder(saved(tmp_path, content)))
        assert ElementTree.fromstring(figure.svg).tag == f"{SVG}svg"
        assert "the learned network has 90.0" in figure.alt


def test_found_keys_have_a_curve_and_a_picture_each(tmp_path: Path) -> None:
    found = read_discovered(saved(tmp_path, DISCOVERED))
    curve, *pictures = discovered_figures(found)
    assert curve == cost_figure(found)
    assert "from 1.3 with 1 keys to 0.391 with 11" in curve.alt
    assert [one.title for one in pictures] == ["1: central difference in y", "2: no operator fits"]
    assert len(discovered_figures(found.model_copy(update={"costs": []}))) == 2


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ([], "is no square"),
        ([[1.0, 2.0], [3.0]], "is no square"),
        ([[1.0, 2.0]], "is no square"),
        ([[1.0, float("nan")], [0.0, 0.0]], "not finite"),
    ],
)
def test_a_found_key_is_a_finite_square(tmp_path: Path, kernel: Any, what: str) -> None:
    first, second = DISCOVERED["keys"]
    content = DISCOVERED | {"keys": [first, second | {"kernel": kernel}]}
    with pytest.raises(InputError, match=rf"keys\.1\.kernel: .*{what}; give"):
        read_discovered(saved(tmp_path, content))


@pytest.mark.parametrize("read", [read_ladder, read_discovered, read_evaluation])
@pytest.mark.parametrize("content", ["nonsense", "[]", "{}", b"\xff"])
def test_another_file_is_refused_by_name(tmp_path: Path, read: Any, content: str | bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"other\.json(:| is not JSON) .*; give"):
        read(path)
    with pytest.raises(InputError, match=r"nowhere: .*; give"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["stages.0.blocks.1.conv_dw", "stages.1.blocks.0.conv_dw"], ["0.1", "1.0"]),
        (["a.b", "a.b.c"], ["a.b", "a.b.c"]),
        (["conv"], ["conv"]),
        (["x" * 30 + "1", "x" * 30 + "2"], [f"\N{HORIZONTAL ELLIPSIS}{'x' * 12}{n}" for n in "12"]),
        (["1" + "x" * 30, "2" + "x" * 30], ["1", "2"]),
    ],
)
def test_short_names_tell_layers_apart(names: list[str], short: list[str]) -> None:
    assert drawn.short_names(names) == short


def test_numbers() -> None:
    assert percent(0.1234, 1) == "12.3\N{NO-BREAK SPACE}%"
    assert points(-0.001) == "0.00"
    assert points(-1) == "\N{MINUS SIGN}1.00"


# Contract 1


def figure(name: str = "key-1", svg: bytes = b"<svg/>") -> Figure:
    return Figure(
        name=name, section="Keys", title="Key 1", caption="c", alt="a", width=360, svg=svg
    )


def write_pair(directory: Path, *figures: Figure) -> Path:
    shared: dict[str, Any] = {
        "graph": tiny_graph(1),
        "preprocessing": Preprocessing(
            input_size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        "provenance": Provenance(source="tests", license="MIT", labels=[str(n) for n in range(10)]),
    }
    models = [Model(name=BASELINE, **shared), Model(name=IDEALIZED, figures=figures, **shared)]
    write(directory, models)
    return directory / IDEALIZED / "1"


def test_the_services_read_the_figures_that_were_written(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, figure("b"), figure("a", b"<svg>2</svg>"))
    models = load_models(tmp_path)
    assert [(one.info.file, one.svg) for one in models[IDEALIZED].figures] == [
        ("b.svg", b"<svg/>"),
        ("a.svg", b"<svg>2</svg>"),
    ]
    assert models[BASELINE].figures == ()
    assert models[IDEALIZED].figures[0].info.title == "Key 1"

    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["figures"]  # as written before there were any
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_models(tmp_path)[IDEALIZED].figures == ()


@pytest.mark.parametrize(
    "name", ["../secret.svg", "a/b.svg", "/etc/passwd", "A.svg", ".svg", "a.png", "a.svg\n", ""]
)
def test_a_figure_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_pair(tmp_path, figure())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["figures"][0]["file"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match="figures"):
        load_models(tmp_path)


def test_figures_that_are_too_large_missing_or_elsewhere_are_refused(tmp_path: Path) -> None:
    half = b" " * (FIGURES_BYTES // 2 + 1)
    write_pair(tmp_path / "large", figure("a", half), figure("b", half))
    with pytest.raises(RepositoryError, match="more than 4 MiB"):
        load_models(tmp_path / "large")

    missing = write_pair(tmp_path / "missing", figure())
    (missing / "figures" / "key-1.svg").unlink()
    with pytest.raises(RepositoryError, match="No such file"):
        load_models(tmp_path / "missing")

    (tmp_path / "secret").write_text("secret")
    linked = write_pair(tmp_path / "linked", figure())
    (linked / "figures" / "key-1.svg").unlink()
    (linked / "figures" / "key-1.svg").symlink_to(tmp_path / "secret")
    with pytest.raises(RepositoryError, match="lies elsewhere"):
        load_models(tmp_path / "linked")
    shutil.rmtree(linked / "figures")
    (linked / "figures").symlink_to(tmp_path)
    (tmp_path / "key-1.svg").write_text("secret")
    with pytest.raises(RepositoryError, match="lies elsewhere"):
        load_models(tmp_path / "linked")


def test_an_export_carries_its_figures(tmp_path: Path, figures: list[Figure]) -> None:
    from mkf.export import export
    from mkf.idealization import Choice
    from mkf.networks.sources import Options, load_source

    demo = [load_source(name, Options()) for name in ("demo", "demo-idealized")]
    export(demo[0], tmp_path, choice=Choice(), retrained=demo[1])
    served = load_models(tmp_path)[IDEALIZED].figures
    # The served sibling's filters went through float32 once.
    assert [one.info.file for one in served] == [f"{one.name}.svg" for one in figures]
    assert [one.info.caption for one in served] == [one.caption for one in figures]
    assert [one.svg for one in served[:9]] == [one.svg for one in figures[:9]]


def test_an_export_of_several_keys_with_scales_of_their_own_has_figures(study: Study) -> None:
    layer = study.layers[0]
    record = Idealization(
        fit={
            "method": "B",
            "scales": "per-filter",
            "boundary": "symmetric",
            "terms": 2,
            "keys": [
                {name: getattr(fit, name) for name in ("key", "sigma_x", "sigma_y", "gamma")}
                for fit in study.fits
            ],
        },
        kernels=[],
        learned_keys=study.learned_keys.tolist(),
        layers=[{"name": "conv", "channels": 24, "kept": 0.5, "keys": {"1": 24, "7": 24}}],
        trained=False,
    )
    made = export_figures(record, [layer.learned[:, None]], [0.9 * layer.learned[:, None]])
    (layers,) = (one for one in made if one.name == "layers")
    assert "conv: most filters of key 1 (100" in layers.alt
    assert "Filters have several keys" in layers.caption
    assert "nearest to key" in made[-1].caption


def test_an_export_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mkf.export import export
    from mkf.idealization import Choice
    from mkf.networks.sources import Options, load_source

    for name in [name for name in sys.modules if name.startswith("mkf.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        export(load_source("demo", Options()), tmp_path, choice=Choice())
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("mkf: exported without figures: ")
    assert "pip install 'mkf[report]'" in message
    assert "\n" not in message
    assert load_models(tmp_path)[IDEALIZED].figures == ()
