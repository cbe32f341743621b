"""What Triton servers count of a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tritonclient.grpc.aio import InferenceServerClient

from services.inference.triton_addresses import parse_addresses, resolve

CONTROL_SECONDS = 5.0
PAUSE_SECONDS = 0.1
SETTLING_PAUSES = 20  # at most; with other clients' requests the counts never rest


@dataclass(frozen=True)
class Counts:
    """One model's, summed over the servers since they started."""

    inferences: int  # images
    executions: int  # batches
    cache_hits: int
    cache_misses: int


@asynccontextmanager
async def control_clients(addresses: str) -> AsyncIterator[list[InferenceServerClient]]:
    """A client of each of the servers HOST:PORT[,HOST:PORT...]."""
    target = await resolve(parse_addresses(addresses))
    clients = [InferenceServerClient(server) for server in target.servers]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


async def count(model: str, clients: Sequence[InferenceServerClient]) -> Counts:
    """Ask all servers until their counts rest: one counts a request after it has answered it."""
    counts = await _count(model, clients)
    for _ in range(SETTLING_PAUSES):
        await asyncio.sleep(PAUSE_SECONDS)
        before, counts = counts, await _count(model, clients)
        if counts == before:
            break
    return counts


async def _count(model: str, clients: Sequence[InferenceServerClient]) -> Counts:
    answers = [
        await client.get_inference_statistics(model, client_timeout=CONTROL_SECONDS)
        for client in clients
    ]
    stats = [one for answer in answers for one in answer.model_stats]
    return Counts(
        inferences=sum(one.inference_count for one in stats),
        executions=sum(one.execution_count for one in stats),
        cache_hits=sum(one.inference_stats.cache_hit.count for one in stats),
        cache_misses=sum(one.inference_stats.cache_miss.count for one in stats),
    )
