"""What all tests share: a model repository of two tiny, real models, and when they may skip.

Tests skip where a package or a program is not installed, and say what to install. With
MKF_TEST_REQUIRE_ALL set they fail instead; only tests on real ImageNet photos may then skip.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from tiny_models import write_tiny_repository

# Whoever starts the tests in the background makes them ignore Ctrl-C, and with them the programs
# that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = str(report.longrepr)
    if report.skipped and os.environ.get("MKF_TEST_REQUIRE_ALL") and "photos" not in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped although MKF_TEST_REQUIRE_ALL is set: {reason}"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of two tiny models; read it, never write to it."""
    return write_tiny_repository(tmp_path_factory.mktemp("model_repository"))
