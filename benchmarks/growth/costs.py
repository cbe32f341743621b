"""Time and bytes of each station that an image passes on its way to a server and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median

import grpc
from tritonclient.grpc import service_pb2

from benchmarks.growth.inputs import (
    CLASSES,
    PREPROCESSING,
    photo,
    pixels,
)
from mkf.v1 import classification_pb2, classification_pb2_grpc
from services.evaluation.datasets import Survey, open_dataset, survey
from services.evaluation.environment import usable_cpus
from services.evaluation.progress import Progress
from services.evaluation.records import BatchRecord, Plan
from services.evaluation.runner import run_batches
from services.evaluation.store import Store
from services.inference.repository import BASELINE, IDEALIZED, INPUT_NAME, OUTPUT_NAME, ServedModel
from services.inference.triton import TritonEngine
from services.preprocessing import ImageLimits, decode, preprocess

BATCHES = (1, 8, 32)
PHOTOS = 16
SECONDS = 3.0  # of each measurement
IN_FLIGHT = 4
SERVICE_IN_FLIGHT = 16


def wire() -> dict[int, dict[str, float]]:
    """Bytes of a request and of its answer as messages; HTTP/2 adds 9 bytes to each 16 KiB."""
    sizes = {}
    for batch in BATCHES:
        images = pixels(batch)
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name=INPUT_NAME, datatype="UINT8", shape=images.shape
        )
        request = service_pb2.ModelInferRequest(
            model_name=IDEALIZED,
            inputs=[tensor],
            outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT_NAME)],
            raw_input_contents=[images.tobytes()],
        )
        answer = service_pb2.ModelInferResponse(
            model_name=IDEALIZED,
            model_version="1",
            outputs=[
                service_pb2.ModelInferResponse.InferOutputTensor(
                    name=OUTPUT_NAME, datatype="FP32", shape=[batch, CLASSES]
                )
            ],
            raw_output_contents=[bytes(4 * batch * CLASSES)],
        )
        sizes[batch] = {
            "pixel_bytes": images.nbytes,
            "request_bytes": request.ByteSize(),
            "answer_bytes": answer.ByteSize(),
        }
    return sizes


def decoding() -> dict[str, float]:
    """Processor time of one photo from JPEG to a model's pixels."""
    files = [photo(seed) for seed in range(PHOTOS)]
    limits = ImageLimits()
    times = []
    for _ in range(5):
        began = time.process_time()
        for file in files:
            preprocess(decode(file, limits=limits), PREPROCESSING)
        times.append((time.process_time() - began) / len(files))
    return {"jpeg_bytes": median(map(len, files)), "cpu_ms": 1000 * median(times)}


async def client(address: str, batch: int, models: dict[str, ServedModel]) -> dict[str, float]:
    """Processor time to ask, by the engine, a server that answers at once."""
    engine = await TritonEngine.open(address, models)
    images = pixels(batch)

    async def ask() -> None:
        await engine.infer(BASELINE, images, timeout_seconds=30)

    try:
        requests, seconds, cpu = await _load(ask, IN_FLIGHT, time.process_time)
    finally:
        await engine.close()
    return {
        "cpu_ms_a_request": 1000 * cpu / requests,
        "cpu_ms_an_image": 1000 * cpu / requests / batch,
        "images_per_second": requests * batch / seconds,
    }


async def service(address: str, repository: Path) -> dict[str, float]:
    """The classification service, one process, a photo a request, on a server as above."""
    with _classification(address, repository) as (place, process):
        async with grpc.aio.insecure_channel(place) as channel:
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            request = classification_pb2.ClassifyRequest(image=photo(0), model=BASELINE)

            async def ask() -> None:
                await stub.Classify(request, wait_for_ready=True, timeout=30)

            requests, seconds, cpu = await _load(
                ask, SERVICE_IN_FLIGHT, lambda: _processor_seconds(process.pid)
            )
    return {"cpu_ms_an_image": 1000 * cpu / requests, "images_per_second": requests / seconds}


async def _load(
    ask: Callable[[], Awaitable[None]], in_flight: int, processor_seconds: Callable[[], float]
) -> tuple[int, float, float]:
    """Requests, seconds, and processor seconds, with so many requests under way at any time."""
    done = 0

    async def repeat(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await ask()
            done += 1

    await asyncio.gather(*(repeat(time.perf_counter() + 0.5) for _ in range(in_flight)))
    done, began, cpu = 0, time.perf_counter(), processor_seconds()
    await asyncio.gather(*(repeat(began + SECONDS) for _ in range(in_flight)))
    return done, time.perf_counter() - began, processor_seconds() - cpu


@contextlib.contextmanager
def _classification(address: str, repository: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`mkf-serve classification` on free ports; its address and its process."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("mkf-serve")), "classification"],
        env=os.environ
        | {
            "MKF_ENGINE": f"triton:{address}",
            "MKF_MODEL_REPOSITORY": str(repository),
            "MKF_CLASSIFICATION_PORT": "0",
            "MKF_METRICS_PORT": "0",
            "MKF_LOG_LEVEL": "ERROR",
        },
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        name, place = process.stdout.readline().split()
        assert name == "classification"
        yield place, process
    finally:
        process.terminate()
        process.wait()


def _processor_seconds(process: int) -> float:
    """Of all threads of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _TimedStore(Store):
    """Knows how long its records took."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.seconds: list[float] = []

    def record(self, run_id: str, batch: BatchRecord) -> None:
        began = time.perf_counter()
        super().record(run_id, batch)
        self.seconds.append(time.perf_counter() - began)


async def evaluation(address: str, batch: int, models: dict[str, ServedModel]) -> dict[str, float]:
    """One run over photos, both models answering at once: how fast it can be at most."""
    engine = await TritonEngine.open(address, models)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(PHOTOS):
            (folder / f"{seed}.jpg").write_bytes(photo(seed))
        lines = [f"{number % PHOTOS}.jpg {number % CLASSES}\n" for number in range(40 * batch)]
        (folder / "labels.txt").write_text("".join(lines))
        dataset = open_dataset(f"labels:{folder / 'labels.txt'}", classes=CLASSES)
        store = _TimedStore(folder / "results")
        try:
            run = store.create(_plan(survey(dataset), batch))
            progress = Progress(images_total=run.plan.images_total)
            cpu = time.process_time()
            await run_batches(
                run,
                dataset,
                engine=engine,
                models=(models[BASELINE], models[IDEALIZED]),
                store=store,
                progress=progress,
                threads=usable_cpus(),
                timeout_seconds=30,
            )
            cpu = time.process_time() - cpu
        finally:
            store.close()
            await engine.close()
    return {
        "images_per_second": progress.images_per_second,
        "cpu_ms_an_image": 1000 * cpu / progress.images_done,
        "record_ms_a_batch": 1000 * median(store.seconds),
    }


def _plan(images: Survey, batch: int) -> Plan:
    return Plan(
        dataset_uri="labels:",
        models=(BASELINE, IDEALIZED),
        graph_sha256=("0" * 64, "0" * 64),
        preprocessing="{}",
        batch_size=batch,
        seed=0,
        images_total=images.images,
        images_available=images.images,
        fingerprint=images.fingerprint,
    )
