"""Every knob of the services: environment variables `MKF_...`, or `.env` where they start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.errors import InvalidInputError
from services.preprocessing import PILLOW_MAX_PIXELS, ImageLimits

PREFIX = "MKF_"

Port = Annotated[int, Field(ge=0, le=65535)]  # 0: any free port
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The services' settings; an environment variable wins over `.env`, a flag over both.

    `MKF_CLASSIFICATION_PORT=0`, say, sets `classification_port`. A variable that is set to nothing
    counts as not set.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    # Where the services listen. Metrics have a host of their own: what may call the services need
    # not see the metrics.
    host: str = "127.0.0.1"
    classification_port: Port = 50051
    evaluation_port: Port = 50052
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    tls_cert_file: Path | None = None  # PEM; both or none
    tls_key_file: Path | None = None

    engine: str = "embedded:model_repository"
    model_repository: Path = Path("model_repository")  # what triton: servers serve
    triton_concurrent_requests: Count = 64  # of this process, to all servers together
    triton_retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    triton_shared_memory: bool = False  # with servers that share this machine's /dev/shm
    results_directory: Path = Path("results")

    # What one request may cost.
    max_image_bytes: Count = 32 * 1024 * 1024
    max_image_pixels: Annotated[int, Field(ge=1, le=PILLOW_MAX_PIXELS)] = 100_000_000
    max_batch_images: Count = 64
    max_message_bytes: Count = 64 * 1024 * 1024
    request_timeout_seconds: Seconds = 30.0

    # What all requests together may cost.
    max_concurrent_requests: Count = 64
    decode_threads: Annotated[int, Field(ge=0)] = 0  # 0: one for each processor
    max_concurrent_evaluations: Count = 2
    evaluation_batch_images: Count = 8

    shutdown_grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    health_interval_seconds: Seconds = 1.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("MKF_TLS_CERT_FILE and MKF_TLS_KEY_FILE go together: set both or none")
        # Else gRPC would refuse an image that the limit allows.
        if self.max_message_bytes < self.max_image_bytes + 64 * 1024:
            raise ValueError("MKF_MAX_MESSAGE_BYTES must exceed MKF_MAX_IMAGE_BYTES by 65536")
        return self

    @property
    def image_limits(self) -> ImageLimits:
        """The limits for one image, as `decode` takes them."""
        return ImageLimits(
            max_image_bytes=self.max_image_bytes, max_image_pixels=self.max_image_pixels
        )


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`; an override that is not None wins.

    Raises
    ------
    InvalidInputError
        A value that cannot be used; the message names its variable.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise InvalidInputError(
            "; ".join(_describe(problem) for problem in error.errors())
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f".env cannot be read: {error}") from error


def _describe(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    name = f"{PREFIX}{str(problem['loc'][0]).removeprefix(PREFIX.lower()).upper()}"
    return f"{name}={problem['input']!r}: {message}"
