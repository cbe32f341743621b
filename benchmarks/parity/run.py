"""The whole run: every hop that can be had, and the checks on the road between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.parity import hops as stations
from benchmarks.parity.bytes_sent import BytesSent, bytes_sent
from benchmarks.parity.cache import CacheCheck, check_cache
from benchmarks.parity.comparison import Comparison, Hop, compare_all
from benchmarks.parity.counts import control_clients, count
from benchmarks.parity.hops import ONNX_RUNTIME, TORCH, Plan
from benchmarks.parity.recorder import Recorder, running_recorder
from benchmarks.parity.same_model import SameModel, run_same_model
from benchmarks.parity.torch_networks import torch_networks
from benchmarks.processes import PREFIX, triton
from services.inference.embedded import EmbeddedEngine
from services.inference.triton import TritonEngine
from services.inference.triton_addresses import parse_addresses

EMBEDDED, TRITON = "embedded", "triton"
AT_ONCE, SHARED = ", at once", ", /dev/shm"  # requests; pixels in shared memory


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is to be run."""

    repository: Path
    torch: bool
    source: str | None  # of the torch networks; None: what the manifests name
    triton: bool
    servers: str | None  # HOST:PORT[,HOST:PORT...]; None: one of the run's own
    dataset: str
    same_model_images: int  # 0: no such run


@dataclass(frozen=True)
class Batched:
    """What Triton's batcher made of one model's requests that came at once."""

    images: int
    executions: int


@dataclass
class Outcome:
    """What was found."""

    comparisons: list[Comparison] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # what, and why
    bytes_sent: list[BytesSent] = field(default_factory=list)
    batched: dict[str, Batched] = field(default_factory=dict)  # by model
    caches: list[CacheCheck] = field(default_factory=list)
    same_model: SameModel | None = None
    engine_versions: dict[str, str] = field(default_factory=dict)

    def breaches(self) -> list[str]:
        """A line for each thing that is past its tolerance."""
        checks: list[Comparison | BytesSent | CacheCheck | SameModel] = [
            *self.comparisons,
            *self.bytes_sent,
            *self.caches,
            *([self.same_model] if self.same_model else []),
        ]
        return [line for check in checks for line in check.breaches()]


def run(plan: Plan, choice: Choice, say: Callable[[str], None]) -> Outcome:
    """Take the images along every hop and compare.

    Parameters
    ----------
    say
        Is told what begins.

    Raises
    ------
    MkfError
        The torch networks cannot be had of the source that was named.
    ServiceError
        An engine cannot be had, or fails on an image.
    """
    outcome = Outcome()
    found: list[Hop] = []
    if choice.torch:
        say("torch")
        networks, reasons = torch_networks(plan.models, choice.source)
        outcome.not_run |= {f"{TORCH}, {model}": why for model, why in reasons.items()}
        found.append(stations.torch_hop(networks, plan))
    else:
        outcome.not_run[TORCH] = "left out"
    say("ONNX Runtime")
    found.append(stations.onnx_runtime_hop(plan))
    say("the embedded engine")
    found += asyncio.run(_embedded_hops(plan, outcome, classify=not choice.triton))
    if choice.triton:
        say("Triton")
        with _servers(choice) as servers:
            found += asyncio.run(_triton_hops(servers, plan, outcome))
            if choice.servers is None:  # on this machine for certain
                found.append(asyncio.run(_shared_memory_hop(servers, plan)))
    else:
        outcome.not_run[TRITON] = "left out, and with it the look at its cache and its bytes"
    outcome.comparisons = compare_all(found, reference=ONNX_RUNTIME, images=plan.images.names)
    outcome.same_model = _same_model(plan, choice, outcome, say)
    return outcome


async def _embedded_hops(plan: Plan, outcome: Outcome, *, classify: bool) -> list[Hop]:
    engine = await EmbeddedEngine.open(dict(plan.models))
    outcome.engine_versions |= engine.versions
    try:
        found = [
            await stations.engine_hop(EMBEDDED, engine, plan, before=ONNX_RUNTIME),
            await stations.crowded_hop(EMBEDDED + AT_ONCE, engine, plan, before=EMBEDDED),
        ]
        if classify:
            found.append(await stations.classification_hop(engine, plan, before=EMBEDDED))
        return found
    finally:
        await engine.close()


async def _triton_hops(servers: str, plan: Plan, outcome: Outcome) -> list[Hop]:
    """Triton's engine and the classification service on it, all through the recorder."""
    async with control_clients(servers) as clients, running_recorder(servers) as recorder:
        engine = await TritonEngine.open(recorder.address, plan.models)
        outcome.engine_versions |= engine.versions
        try:
            alone = await stations.engine_hop(TRITON, engine, plan, before=ONNX_RUNTIME)
            _keep_bytes(alone, recorder, plan, outcome)
            crowded = await _crowded(engine, clients, plan, outcome)
            _keep_bytes(crowded, recorder, plan, outcome, in_order=False)
            classified = await stations.classification_hop(engine, plan, before=TRITON)
            _keep_bytes(classified, recorder, plan, outcome)
            outcome.caches = [
                await check_cache(model, clients, engine, plan.images.pixels[:1])
                for model in plan.models
            ]
        finally:
            await engine.close()
    return [alone, crowded, classified]


async def _shared_memory_hop(servers: str, plan: Plan) -> Hop:
    engine = await TritonEngine.open(servers, plan.models, shared_memory=True)
    try:
        return await stations.engine_hop(TRITON + SHARED, engine, plan, before=TRITON)
    finally:
        await engine.close()


async def _crowded(
    engine: TritonEngine, clients: Sequence[InferenceServerClient], plan: Plan, outcome: Outcome
) -> Hop:
    before = {model: await count(model, clients) for model in plan.models}
    hop = await stations.crowded_hop(TRITON + AT_ONCE, engine, plan, before=TRITON)
    for model, counts in before.items():
        after = await count(model, clients)
        outcome.batched[model] = Batched(
            images=after.inferences - counts.inferences,
            executions=after.executions - counts.executions,
        )
    return hop


def _keep_bytes(
    hop: Hop, recorder: Recorder, plan: Plan, outcome: Outcome, *, in_order: bool = True
) -> None:
    sizes = list(dict.fromkeys(size for _, size in hop.answers))
    outcome.bytes_sent.append(
        bytes_sent(hop.name, recorder.take(), plan.models, plan.images, sizes, in_order=in_order)
    )


def _servers(choice: Choice) -> AbstractContextManager[str]:
    if choice.servers is None:
        return triton(choice.repository)
    parse_addresses(choice.servers)
    return nullcontext(choice.servers)


def _same_model(
    plan: Plan, choice: Choice, outcome: Outcome, say: Callable[[str], None]
) -> SameModel | None:
    what = "one model beside itself"
    if not choice.same_model_images:
        outcome.not_run[what] = "left out"
        return None
    if choice.servers is not None and not PREFIX.is_dir():
        outcome.not_run[what] = f"it needs a Triton of this run's own, in {PREFIX.name}"
        return None
    model = next(iter(plan.models.values()))
    say(f"{model.name} beside itself")
    return run_same_model(
        model,
        _serve_with_triton if choice.triton else _serve_embedded,
        dataset=choice.dataset,
        images=choice.same_model_images,
    )


@contextmanager
def _serve_with_triton(repository: Path) -> Iterator[str]:
    with triton(repository) as address:
        yield f"triton:{address}"


@contextmanager
def _serve_embedded(repository: Path) -> Iterator[str]:
    yield f"embedded:{repository}"
