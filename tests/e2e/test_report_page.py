"""Both reports in a browser: nothing cut off, nothing loaded, no complaints, and fit for paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mkf.cli import app

pytest.importorskip("matplotlib", reason="install mkf[report]")
browser_api = pytest.importorskip("playwright.sync_api", reason="install mkf[dev]")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("install Chromium (Debian: apt-get install chromium)", allow_module_level=True)
FLAGS = [
    "--no-sandbox",  # the pages are our own, and containers have no user namespaces
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
WIDTHS = (1280, 400)
SCREEN_LETTERS, PAPER_LETTERS = 10.5, 9.3  # the least size of letters, CSS pixels (7 points)
PATIENCE_MS = 120_000  # nothing is timed
PAPER_WIDTH = 703  # CSS pixels between the margins of an A4 page

# What is wrong with the page as it is laid out, in words; empty if nothing is.
FAULTS = """(least) => {
  const faults = [], page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) faults.push(`the page is ${page.scrollWidth} wide`);
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    const name = `${element.tagName} "${(element.alt || element.textContent).trim().slice(0, 40)}"`;
    if (box.width === 0) continue;  // not shown at this width
    if (box.right > page.clientWidth + 0.5 || box.left < 0) faults.push(`${name} is cut off`);
    if (element instanceof HTMLElement && style.display !== "inline"
        && element.scrollWidth > element.clientWidth + 1) faults.push(`${name} overflows`);
    if (element.children.length === 0 && element.textContent.trim()
        && element instanceof HTMLElement && parseFloat(style.fontSize) < least)
      faults.push(`${name} has letters of ${style.fontSize}`);
    if (element.tagName === "IMG") {
      const place = element.parentElement.getBoundingClientRect();
      if (!element.complete || element.naturalWidth === 0) faults.push(`${name} is not drawn`);
      if (box.left < place.left || box.right > place.right || box.bottom > place.bottom)
        faults.push(`${name} leaves its card`);
      if (box.width < 0.9 * Math.min(element.naturalWidth, 340))
        faults.push(`${name} is shrunk to ${box.width} pixels`);
    }
  }
  return faults;
}"""


def rung(name: str, numbers: float, top1: float, scales: str, calibrated: bool) -> dict[str, Any]:
    return {
        "name": name,
        "terms": 3,
        "scales": scales,
        "calibrated": calibrated,
        "numbers_per_filter": numbers,
        "kept": top1 / 2,
        "top1": top1,
        "top1_interval": [top1 - 0.0123, top1 + 0.0123],
        "difference_pp": 100 * (top1 - 0.9229),
        "difference_interval_pp": [100 * (top1 - 0.9329), 100 * (top1 - 0.9129)],
        "share_of_baseline": top1 / 0.9229,
    }


LADDER = {
    "schema_version": 1,
    "source": "demo",
    "dataset": "fashion-mnist",
    "images": 10000,
    "limited": False,
    "calibration": {"dataset": "fashion-mnist", "images": 512},
    "filters": 504,
    "baseline": {"top1": 0.9229, "top1_interval": [0.9175, 0.928]},
    "rungs": [
        rung(f"{terms} keys, {scales} scales", 2 * terms, 0.2 + 0.08 * terms, scales, calibrated)
        for terms in (1, 3, 8)
        for scales in ("fixed", "per-layer", "per-filter")
        for calibrated in (False, True)
    ],
}
DISCOVERED = {
    "sources": ["demo"],
    "filters": 504,
    "cost": "reconstruction",
    "costs": [{"count": n, "cost": 0.7 + 0.2 / n} for n in range(1, 51)],
    "elbow": 11,
    "keys": [
        {
            "key": key,
            "kernel": np.outer(np.hanning(7), np.linspace(-1, 1, 7) * key).tolist(),
            "operator_key": key,
            "cosine": 0.97,
            "well": key != 7,
            "share": 0.125,
        }
        for key in range(1, 9)
    ],
}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of the demo's networks, as a user gets it."""
    folder = tmp_path_factory.mktemp("evaluation")
    commands = Path(sys.executable)
    for command in (
        [commands.with_name("mkf"), "export", "--repository", folder / "models"],
        [
            *(commands.with_name("mkf-eval"), "--engine", f"embedded:{folder / 'models'}"),
            *("--out", folder / "results", "--limit", "100"),
        ],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (run,) = (path for path in (folder / "results").iterdir() if path.is_dir())
    return run


@pytest.fixture(scope="module")
def pages(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, content in (("ladder", LADDER), ("discovered", DISCOVERED)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    arguments = [
        *(
            "report",
            "demo",
            "--out",
            folder / "report.html",
            "--results",
            evaluation / "results.json",
        ),
        *("--ladder", folder / "ladder.json", "--discovered", folder / "discovered.json"),
        "--json",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["filters"] == 504
    assert len(summary["figures"]) == 23 + 1 + 9
    return {"science": folder / "report.html", "evaluation": evaluation / "report.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS
        )
        yield running
        running.close()


@pytest.fixture(params=["science", "evaluation"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_the_browser_has_no_complaints(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    try:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url.partition(":")[0]))
        page.goto(pages[name].as_uri())
        assert page.evaluate(FAULTS, SCREEN_LETTERS) == []
        assert complaints == []
        assert requests.count("file") == 1  # the page itself; all else lies in it
        assert set(requests) <= {"file", "data"}
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", dark)[:3])) < 64) == (scheme == "dark")
    finally:
        context.close()


def test_it_prints(browser: Any, pages: dict[str, Path], name: str) -> None:
    context = browser.new_context(
        viewport={"width": PAPER_WIDTH, "height": 1000}, color_scheme="dark", offline=True
    )
    try:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(pages[name].as_uri())
        page.emulate_media(media="print")
        assert page.evaluate(FAULTS, PAPER_LETTERS) == []
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert color == "rgb(255, 255, 255)"  # no ink for a dark page
        pdf = page.pdf(format="A4")
        assert pdf.startswith(b"%PDF")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 14
    finally:
        context.close()
