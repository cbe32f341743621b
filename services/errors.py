"""The one exception tree of the services; each class knows the gRPC status it is answered with.

    ServiceError                  INTERNAL
    ├── InvalidInputError         INVALID_ARGUMENT     a request that can never succeed as it is
    │   ├── ImageError                                 bytes that are no usable image
    │   └── DatasetError                               a dataset that cannot be read
    ├── LimitError                RESOURCE_EXHAUSTED   too large, or too busy
    ├── NotFoundError             NOT_FOUND            no such model, no such run
    ├── PreconditionError         FAILED_PRECONDITION  models that cannot be compared, a wrong state
    │   └── RepositoryError                            a model repository that breaks Contract 1
    ├── UnavailableError          UNAVAILABLE          the engine or a service is down
    └── DeadlineError             DEADLINE_EXCEEDED    no answer in the time given

Every message says what was wrong, where, and what to do next. The services import nothing of `mkf`
but its generated API, so this root stands beside `mkf.errors.MkfError`.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class ServiceError(Exception):
    """Root of every error that the services raise on purpose."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidInputError(ServiceError):
    """A request that can never succeed as it is."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class ImageError(InvalidInputError):
    """Bytes that are no usable image."""


class DatasetError(InvalidInputError):
    """A dataset that cannot be read."""


class LimitError(ServiceError):
    """Too large, or the service is too busy."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class NotFoundError(ServiceError):
    """No such model, no such run."""

    status = grpc.StatusCode.NOT_FOUND


class PreconditionError(ServiceError):
    """Models that cannot be compared, or a run in the wrong state."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class RepositoryError(PreconditionError):
    """A model repository that breaks Contract 1."""


class UnavailableError(ServiceError):
    """The engine or a service is down."""

    status = grpc.StatusCode.UNAVAILABLE


class DeadlineError(ServiceError):
    """No answer in the time given."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


def one_line(error: Exception, *, limit: int = 300) -> str:
    """What another library's error says, on one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
