"""One name for many servers: whether all are asked, and how soon a new one is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.growth.inputs import SIZE, config, pixels
from benchmarks.growth.servers import Names, instant_servers, name_server
from services.inference.repository import BASELINE, INPUT_NAME

SERVERS = 100
CONNECTION_AGE_SECONDS = 30  # as in deploy/kubernetes/base/triton.yaml
PATIENCE_SECONDS = 45


async def aging() -> dict[str, Any]:
    """With connections that end, and without."""
    return {
        "connection_age_seconds": CONNECTION_AGE_SECONDS,
        "patience_seconds": PATIENCE_SECONDS,
        "seconds": await new_server(1000 * CONNECTION_AGE_SECONDS),
        "seconds_without_age": await new_server(0),
    }


async def names() -> dict[str, Any]:
    """One name that stands for many servers: whether each is asked, and what it takes."""
    known = Names([f"127.0.0.{number}" for number in range(1, SERVERS + 1)])
    with instant_servers(config(BASELINE), servers=SERVERS) as port:
        async with name_server(known) as dns:
            began, reached = time.perf_counter(), set()
            async with _by_name(dns, port) as asking:
                while len(reached) < SERVERS and time.perf_counter() - began < PATIENCE_SECONDS:
                    reached.add(await _who(asking))
                seconds = time.perf_counter() - began
    return {
        "servers": SERVERS,
        "reached": len(reached),
        "seconds": seconds,
        "answer_bytes": known.answer_bytes,
        "questions": known.questions,
    }


async def new_server(connection_age_ms: int) -> float | None:
    """Seconds from a second server's appearance in the DNS to its first request; None: never."""
    known = Names(["127.0.0.1"])
    with instant_servers(config(BASELINE), servers=2, connection_age_ms=connection_age_ms) as port:
        async with name_server(known) as dns, _by_name(dns, port) as asking:
            await _who(asking)
            # Not with the connection: servers come at any time of its life.
            await asyncio.sleep(connection_age_ms / 3000)
            known.addresses, began = ["127.0.0.1", "127.0.0.2"], time.perf_counter()
            while time.perf_counter() - began < PATIENCE_SECONDS:
                if await _who(asking) == "127.0.0.2":
                    return time.perf_counter() - began
                await asyncio.sleep(0.02)
    return None


def _by_name(dns: int, port: int) -> InferenceServerClient:
    # Of the engine's own options those that matter here.
    options = [
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ]
    target = f"dns://127.0.0.1:{dns}/triton.mkf.svc.cluster.local:{port}"
    return InferenceServerClient(target, channel_args=options)


async def _who(asking: InferenceServerClient) -> str:
    tensor = InferInput(INPUT_NAME, [1, SIZE, SIZE, 3], "UINT8").set_data_from_numpy(pixels(1))
    answer = await asking.infer(BASELINE, [tensor], client_timeout=10)
    return str(answer.get_response().id)
