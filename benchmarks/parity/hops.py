"""The stations of an image's road: each takes the same images, in batches of several sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.parity.comparison import TORCH_TOLERANCE, Answers, Hop
from benchmarks.parity.images import Images
from benchmarks.parity.torch_networks import Network
from mkf.v1 import classification_pb2 as pb
from mkf.v1 import classification_pb2_grpc
from services.classification.service import NAME, ClassificationServicer
from services.errors import ServiceError
from services.inference.engine import Engine
from services.inference.repository import INPUT_NAME, OUTPUT_NAME, ServedModel
from services.runtime.server import Registration, running_server
from services.runtime.settings import Settings

TORCH, ONNX_RUNTIME = "torch", "onnxruntime"
TIMEOUT_SECONDS = 300.0
OVERHEAD_BYTES = 64 * 1024  # of a request beside its images

Tick = Callable[[str, str, int], None]  # hop, model, images done


@dataclass(frozen=True)
class Plan:
    """What every hop is asked."""

    images: Images
    models: Mapping[str, ServedModel]
    sizes: Sequence[int]  # of the batches
    tolerance: float  # of engines
    tick: Tick  # told of every batch


def torch_hop(networks: Mapping[str, Network], plan: Plan) -> Hop:
    """The source's own networks."""
    return _local_hop(TORCH, None, networks, plan)


def onnx_runtime_hop(plan: Plan) -> Hop:
    """The served graphs, in ONNX Runtime itself."""
    return _local_hop(
        ONNX_RUNTIME,
        TORCH,
        {name: _graph(model) for name, model in plan.models.items()},
        plan,
    )


async def engine_hop(name: str, engine: Engine, plan: Plan, *, before: str) -> Hop:
    """An engine, one request after the other."""
    answers = {}
    for model in plan.models:
        for size in plan.sizes:
            logits = []
            for part in plan.images.batches(size):
                answer = await engine.infer(
                    model, plan.images.pixels[part], timeout_seconds=TIMEOUT_SECONDS
                )
                logits.append(answer.logits)
                plan.tick(name, model, len(answer.logits))
            answers[model, size] = Answers.of_logits(np.concatenate(logits))
    return Hop(name, before, plan.tolerance, answers)


async def crowded_hop(name: str, engine: Engine, plan: Plan, *, before: str) -> Hop:
    """An engine, all requests at once, for it to batch: each must get its own answer."""
    answers = {}
    for model in plan.models:
        for size in plan.sizes[:-1]:  # the largest leaves nothing to batch
            found = await asyncio.gather(
                *(
                    engine.infer(model, plan.images.pixels[part], timeout_seconds=TIMEOUT_SECONDS)
                    for part in plan.images.batches(size)
                )
            )
            logits = np.concatenate([answer.logits for answer in found])
            answers[model, size] = Answers.of_logits(logits)
            plan.tick(name, model, len(logits))
    return Hop(name, before, plan.tolerance, answers)


async def classification_hop(engine: Engine, plan: Plan, *, before: str) -> Hop:
    """The classification service on that engine, over gRPC, with image files."""
    largest = max(plan.sizes)
    request_bytes = OVERHEAD_BYTES + max(
        sum(map(len, plan.images.files[part])) for part in plan.images.batches(largest)
    )
    defaults = Settings(_env_file=None)
    settings = defaults.model_copy(
        update={
            "max_batch_images": max(largest, defaults.max_batch_images),
            "max_message_bytes": max(request_bytes, defaults.max_message_bytes),
            "request_timeout_seconds": TIMEOUT_SECONDS,
            "tls_cert_file": None,
            "tls_key_file": None,
        }
    )
    servicer = ClassificationServicer(engine, dict(plan.models), settings)

    def register(server: object) -> None:
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)

    options = [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
    ]
    try:
        async with (
            running_server(
                [Registration(NAME, register)], host="127.0.0.1", port=0, settings=settings
            ) as server,
            grpc.aio.insecure_channel(server.address, options=options) as channel,
        ):
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            answers = {
                (name, size): await _classified(stub, model, size, plan)
                for name, model in plan.models.items()
                for size in plan.sizes
            }
    finally:
        await servicer.close()
    return Hop("classification", before, plan.tolerance, answers, probabilities=True)


async def _classified(
    stub: classification_pb2_grpc.ClassificationServiceStub,
    model: ServedModel,
    size: int,
    plan: Plan,
) -> Answers:
    """Probabilities of all classes; single images through Classify, batches through the other."""
    classes = len(model.labels)
    probabilities = np.empty((len(plan.images.names), classes), np.float32)
    top1 = np.empty(len(probabilities), np.intp)
    for part in plan.images.batches(size):
        files = plan.images.files[part]
        if size == 1:
            request = pb.ClassifyRequest(image=files[0], model=model.name, top_k=classes)
            found = [(await stub.Classify(request, timeout=TIMEOUT_SECONDS)).predictions]
        else:
            requests = pb.ClassifyBatchRequest(images=files, model=model.name, top_k=classes)
            answer = await stub.ClassifyBatch(requests, timeout=TIMEOUT_SECONDS)
            found = [result.predictions for result in answer.results]
        for row, predictions in zip(range(part.start, part.stop), found, strict=True):
            order = [prediction.class_index for prediction in predictions]
            if sorted(order) != list(range(classes)):
                raise ServiceError(f"{model.name} named {len(order)} classes of an image, not all")
            probabilities[row, order] = [prediction.probability for prediction in predictions]
            top1[row] = order[0]
        plan.tick("classification", model.name, len(files))
    return Answers(probabilities, top1)


def _local_hop(name: str, before: str | None, networks: Mapping[str, Network], plan: Plan) -> Hop:
    answers = {}
    for model, network in networks.items():
        for size in plan.sizes:
            logits = []
            for part in plan.images.batches(size):
                logits.append(network(plan.images.pixels[part]))
                plan.tick(name, model, len(logits[-1]))
            answers[model, size] = Answers.of_logits(np.concatenate(logits))
    return Hop(name, before, TORCH_TOLERANCE, answers)


def _graph(model: ServedModel) -> Network:
    session = ort.InferenceSession(model.graph, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: pixels})[0]
        return logits

    return run
