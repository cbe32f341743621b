"""Our road beside Triton's own load generator, on one server and with the same payload.

Three ways take turns, so that all see the same machine: perf_analyzer; the engine, in this process;
and the classification service in a process of its own, which takes image files, decodes them and
ranks the classes, and so does more. Each keeps the same number of requests in flight.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import processes
from benchmarks.serving import perf_analyzer
from benchmarks.serving.measure import Rate, closed_loop
from mkf.v1 import classification_pb2 as pb
from mkf.v1 import classification_pb2_grpc
from services.evaluation.datasets.fashion_mnist import FashionMnist
from services.inference.repository import BASELINE, ServedModel
from services.inference.urls import open_engine
from services.preprocessing import ImageLimits, decode, preprocess
from services.runtime.settings import Settings

PERF_ANALYZER, ENGINE, SERVICE = "perf_analyzer", "engine", "service"
WAYS = (PERF_ANALYZER, ENGINE, SERVICE)
TIMEOUT_SECONDS = 60.0
SEED = 1


@dataclass(frozen=True)
class Case:
    """One payload: images a request, requests in flight."""

    batch: int
    concurrency: int


async def compare(
    repository: Path,
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float,
    advance: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure each case by each way in each round, on a server of this function's own.

    Parameters
    ----------
    repository
        Served as it is: with its own numbers of threads and instances.
    seconds
        A round of a way.
    advance
        Told after each measurement what comes next.

    Returns
    -------
    list[dict[str, Any]]
        For each case its rounds: a `Rate` for each way.
    """
    measured: list[dict[str, Any]] = [
        {"batch": case.batch, "concurrency": case.concurrency, "rounds": []} for case in cases
    ]
    with processes.triton(repository) as address:
        async with _ways(address, repository) as ways:
            for way in ways.values():
                await way(cases[0], 0.5)  # connections, first batches
            for number in range(rounds):
                for case, result in zip(cases, measured, strict=True):
                    rates = {}
                    for name, way in ways.items():
                        advance(f"{name}, {case.concurrency} x {case.batch}, round {number + 1}")
                        rates[name] = (await way(case, seconds)).to_json()
                    result["rounds"].append(rates)
    return measured


def demo_images(count: int, size: tuple[int, int]) -> list[bytes]:
    """PNG files of the demo's first test images; those for larger networks are enlarged."""
    files = []
    for sample, _ in zip(FashionMnist(classes=10).samples(), range(count), strict=False):
        image = sample.load()
        if max(size) > 2 * max(image.size):
            image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


def as_pixels(file: bytes, model: ServedModel) -> NDArray[np.uint8]:
    """(H, W, 3), as the classification service makes it of the file."""
    return preprocess(decode(file, limits=ImageLimits()), model.preprocessing)


@asynccontextmanager
async def open_service(address: str) -> AsyncIterator[Any]:
    """A stub of the classification service."""
    largest = [("grpc.max_send_message_length", 64 << 20)]
    async with grpc.aio.insecure_channel(address, options=largest) as channel:
        yield classification_pb2_grpc.ClassificationServiceStub(channel)


@asynccontextmanager
async def _ways(
    address: str, repository: Path
) -> AsyncIterator[dict[str, Callable[[Case, float], Awaitable[Rate]]]]:
    """How each way measures a case for some seconds."""
    url = f"triton:{address}"
    engine, models = await open_engine(url, Settings(_env_file=None, model_repository=repository))
    model = models[BASELINE]
    file = demo_images(1, model.preprocessing.input_size)[0]
    pixels = as_pixels(file, model)

    async def by_perf_analyzer(case: Case, seconds: float) -> Rate:
        return await asyncio.to_thread(
            perf_analyzer.run,
            processes.PREFIX,
            address,
            model,
            pixels.tobytes(),
            batch=case.batch,
            concurrency=case.concurrency,
            seconds=seconds,
        )

    async def by_engine(case: Case, seconds: float) -> Rate:
        images = np.stack([pixels] * case.batch)  # (n, H, W, 3)
        return await closed_loop(
            lambda: engine.infer(model.name, images, timeout_seconds=TIMEOUT_SECONDS),
            batch=case.batch,
            concurrency=case.concurrency,
            seconds=seconds,
        )

    try:
        with processes.classification(url, repository) as service:
            async with open_service(service) as stub:

                async def by_service(case: Case, seconds: float) -> Rate:
                    return await closed_loop(
                        lambda: classify(stub, [file] * case.batch, model.name),
                        batch=case.batch,
                        concurrency=case.concurrency,
                        seconds=seconds,
                    )

                yield {PERF_ANALYZER: by_perf_analyzer, ENGINE: by_engine, SERVICE: by_service}
    finally:
        await engine.close()


async def classify(stub: Any, files: Sequence[bytes], model: str) -> int:
    """How many of the images the service named a class for."""
    if len(files) == 1:
        request = pb.ClassifyRequest(image=files[0], model=model, top_k=1)
        answer = await stub.Classify(request, timeout=TIMEOUT_SECONDS)
        return len(answer.predictions)
    batch = pb.ClassifyBatchRequest(images=files, model=model, top_k=1)
    answers = await stub.ClassifyBatch(batch, timeout=TIMEOUT_SECONDS)
    return sum(len(result.predictions) for result in answers.results)
