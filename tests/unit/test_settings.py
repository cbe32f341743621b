"""Settings: defaults, where values come from, and errors that name the variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.errors import InvalidInputError
from services.runtime.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("MKF_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_services_listen_on_loopback_by_default() -> None:
    settings = load_settings()
    assert (settings.host, settings.metrics_host) == ("127.0.0.1", "127.0.0.1")
    assert (settings.classification_port, settings.evaluation_port) == (50051, 50052)
    assert settings.metrics_port == 9464
    assert settings.engine == "embedded:model_repository"
    assert settings.tls_cert_file is None
    assert settings.image_limits.max_image_bytes == 32 * 1024 * 1024


def test_the_committed_env_file_states_every_default(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line.startswith("MKF_")]
    stated = {line.partition("=")[0].removeprefix("MKF_").lower() for line in lines}
    assert stated >= set(Settings.model_fields)
    defaults = load_settings()
    monkeypatch.chdir(ROOT)
    assert load_settings() == defaults


def test_an_override_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("MKF_HOST=::1\nMKF_CLASSIFICATION_PORT=1\nMKF_EVALUATION_PORT=2\n")
    monkeypatch.setenv("MKF_CLASSIFICATION_PORT", "3")
    monkeypatch.setenv("MKF_EVALUATION_PORT", "")  # set to nothing counts as not set
    settings = load_settings(host=None, classification_port=4)
    assert (settings.host, settings.classification_port, settings.evaluation_port) == ("::1", 4, 2)
    assert load_settings().classification_port == 3


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MKF_CLASSIFICATION_PORT", "70000"),
        ("MKF_METRICS_PORT", "http"),
        ("MKF_MAX_IMAGE_BYTES", "0"),
        ("MKF_MAX_IMAGE_PIXELS", "1000000000"),
        ("MKF_REQUEST_TIMEOUT_SECONDS", "-1"),
        ("MKF_REQUEST_TIMEOUT_SECONDS", "inf"),
        ("MKF_SHUTDOWN_GRACE_SECONDS", "nan"),
        ("MKF_LOG_LEVEL", "LOUD"),
        ("MKF_TLS_CERT_FILE", "cert.pem"),
        ("MKF_MAX_MESSAGE_BYTES", "1000"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError, match=variable) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_the_log_level_may_be_written_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKF_LOG_LEVEL", "warning")
    assert load_settings().log_level == "WARNING"


def test_an_env_file_that_is_no_text_is_an_error() -> None:
    Path(".env").write_bytes(b"MKF_HOST=\xff\xfe\n")
    with pytest.raises(InvalidInputError, match=r"\.env"):
        load_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().host = "0.0.0.0"  # type: ignore[misc]
