"""What Prometheus sees: base units, `_total` for counters, everything prefixed `mkf_`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, start_http_server

from services.errors import UnavailableError

# Else a `_created` series stands beside every other one, and nothing reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From 0.5 ms: the demo network answers within a millisecond, a ConvNeXt on a core within a second.
SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

# Requests to our own gRPC services, counted once they have ended, streams included.
REQUESTS = Counter(
    "mkf_requests_total",
    "Requests that have ended, by gRPC service, method and status code.",
    ["service", "method", "code"],
)
REQUEST_SECONDS = Histogram(
    "mkf_request_duration_seconds",
    "Time from a request's arrival until its answer, or its stream, had ended.",
    ["service", "method"],
    buckets=SECONDS,
)
IN_FLIGHT = Gauge(
    "mkf_requests_in_flight", "Requests that are being worked on.", ["service", "method"]
)

# Work on images. Queue and inference are the engine's, whoever asked it; decode and total are the
# classification service's.
PHASE_SECONDS = Histogram(
    "mkf_phase_duration_seconds",
    "Time by phase: decode, queue, inference, total.",
    ["model", "phase"],
    buckets=SECONDS,
)
BATCH_IMAGES = Histogram(
    "mkf_batch_images", "Images in a batch as it was run.", ["model"], buckets=IMAGES
)
QUEUE_REQUESTS = Gauge("mkf_queue_requests", "Requests that wait for a batch.", ["model"])


@contextmanager
def serve_metrics(*, host: str, port: int) -> Iterator[int]:
    """Answer Prometheus over HTTP while the context lasts; gives the port, also where 0 was asked.

    Raises
    ------
    UnavailableError
        The port cannot be opened.
    """
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot listen on {host}:{port}: {error.strerror}; "
            "choose another MKF_METRICS_PORT or MKF_METRICS_HOST"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
