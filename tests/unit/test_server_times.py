"""What of a server's sums becomes a request's own times."""

from __future__ import annotations

import pytest

from services.evaluation.records import Request
from services.evaluation.runner import _timed_by_server
from services.inference.engine import ServerTimes

REQUEST = Request(latency_ms=9, queue_ms=0, inference_ms=8, attempts=1, predictions=[])
BEFORE = ServerTimes(requests=10, queue_seconds=1.0, inference_seconds=2.0)


def test_the_difference_of_the_sums_is_the_request() -> None:
    after = ServerTimes(requests=11, queue_seconds=1.001, inference_seconds=2.004)
    timed = _timed_by_server(REQUEST, BEFORE, after)
    assert (timed.queue_ms, timed.inference_ms) == pytest.approx((1, 4))
    assert timed.latency_ms == 9


def test_others_requests_make_it_a_mean() -> None:
    after = ServerTimes(requests=14, queue_seconds=1.008, inference_seconds=2.004)
    timed = _timed_by_server(REQUEST, BEFORE, after)
    assert (timed.queue_ms, timed.inference_ms) == pytest.approx((2, 1))


@pytest.mark.parametrize(
    "after",
    [
        BEFORE,  # the request was answered by a server that is away now
        ServerTimes(requests=3, queue_seconds=0.1, inference_seconds=0.2),  # started again
        ServerTimes(requests=12, queue_seconds=0.9, inference_seconds=2.1),
    ],
)
def test_sums_that_do_not_go_on_say_nothing(after: ServerTimes) -> None:
    timed = _timed_by_server(REQUEST, BEFORE, after)
    assert (timed.queue_ms, timed.inference_ms) == (None, None)
    assert _timed_by_server(REQUEST, None, after).queue_ms is None
