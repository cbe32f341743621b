"""What only an engine on servers has: servers that go, come, and serve something else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf import text_format
from numpy.typing import NDArray
from tiny_models import write_tiny_repository
from triton_server import TritonServer, free_ports
from tritonclient.grpc.model_config_pb2 import ModelConfig

from mkf.repository import BASELINE, IDEALIZED
from services.errors import (
    LimitError,
    RepositoryError,
    ServiceError,
    UnavailableError,
)
from services.inference.engine import Inference
from services.inference.repository import load_models
from services.inference.triton import TritonEngine
from services.inference.triton_addresses import parse_addresses

LONG = 60.0  # seconds; far beyond what any of these requests take
PIXELS = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)


@asynccontextmanager
async def connected(
    repository: Path, *servers: TritonServer, **options: object
) -> AsyncIterator[TritonEngine]:
    addresses = ",".join(server.address for server in servers)
    engine = await TritonEngine.open(addresses, load_models(repository), **options)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        await engine.close()


def answered(server: TritonServer, model: str = BASELINE) -> int:
    """Requests that a server has answered for a model."""
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        (stats,) = client.get_inference_statistics(model).model_stats
        return int(stats.inference_stats.success.count)


def configure(repository: Path, model: str, change: Callable[[ModelConfig], None]) -> None:
    path = repository / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), ModelConfig())
    change(config)
    path.write_text(text_format.MessageToString(config))


def swap(repository: Path) -> None:
    """The idealized graph under the baseline's name."""
    shutil.rmtree(repository / BASELINE)
    shutil.copytree(repository / IDEALIZED, repository / BASELINE)
    configure(repository, BASELINE, lambda config: setattr(config, "name", BASELINE))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model repository of this test alone."""
    return write_tiny_repository(tmp_path / "models")


@pytest.fixture(scope="module")
def three(repository: Path) -> Iterator[list[TritonServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(TritonServer(repository)) for _ in range(3)]


async def ask(
    engine: TritonEngine, pixels: NDArray[np.uint8] = PIXELS, model: str = BASELINE
) -> Inference:
    return await engine.infer(model, pixels, timeout_seconds=LONG)


# Which servers.


async def test_where_no_server_is_the_error_says_how_to_start_one(repository: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port}.*make triton"):
        await TritonEngine.open(f"127.0.0.1:{port}", load_models(repository))


async def test_a_server_that_is_away_at_the_start_is_used_once_it_is_there(
    repository: Path, three: list[TritonServer]
) -> None:
    late = TritonServer(repository)
    try:
        async with connected(repository, three[0], late) as engine:
            assert (await ask(engine)).attempts == 1
            late.start()
            await until(lambda: answered(late) > 0, engine)
    finally:
        late.__exit__()


async def test_requests_go_to_all_servers_in_turn(
    repository: Path, three: list[TritonServer]
) -> None:
    before = [answered(server) for server in three]
    async with connected(repository, *three) as engine:
        await until(
            lambda: all(answered(s) > n for s, n in zip(three, before, strict=True)), engine
        )
        before = [answered(server) for server in three]
        await asyncio.gather(*(ask(engine) for _ in range(30)))
    assert [answered(s) - n for s, n in zip(three, before, strict=True)] == [10, 10, 10]


async def test_the_servers_times_are_sums_over_all(
    repository: Path, three: list[TritonServer]
) -> None:
    async with connected(repository, *three) as engine:
        before = await engine.server_times()
        for _ in range(6):
            await ask(engine)
        times = await engine.server_times()
        assert times[BASELINE].requests == before[BASELINE].requests + 6
        assert times[BASELINE].inference_seconds > before[BASELINE].inference_seconds
        assert times[IDEALIZED] == before[IDEALIZED]
        assert engine.versions["tritonserver"].startswith("2.")


async def test_a_name_that_stands_for_another_server_is_looked_up_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TritonServer(repository) as one, TritonServer(repository) as two:
        async with connected(repository, one) as engine:
            assert (await engine.server_times())[BASELINE].requests == answered(one)
            one.kill()
            monkeypatch.setattr(engine._servers, "_addresses", parse_addresses(two.address))
            assert await engine.server_times() == {}
            assert (await engine.server_times())[BASELINE].requests == answered(two)


async def test_a_server_that_hangs_is_left_for_another(repository: Path) -> None:
    with TritonServer(repository) as one, TritonServer(repository) as two:
        async with connected(repository, one, two) as engine:
            await until(lambda: answered(one) > 66 and answered(two) > 66, engine)  # after warm-up
            os.kill(two.pid, signal.SIGSTOP)
            answers = await asyncio.gather(*(ask(engine) for _ in range(4)))
            assert max(answer.attempts for answer in answers) > 1


# What they serve.


async def test_a_server_of_another_graph_is_refused(
    repository: Path, own: Path, three: list[TritonServer]
) -> None:
    swap(own)
    with TritonServer(own) as server:
        with pytest.raises(RepositoryError, match=f"{server.address} serves {BASELINE} with anoth"):
            await TritonEngine.open(server.address, load_models(repository))
        # One that serves the right graph beside it changes nothing.
        with pytest.raises(RepositoryError, match="another graph"):
            await TritonEngine.open(f"{three[0].address},{server.address}", load_models(repository))


@pytest.mark.parametrize("away", ["at the start", "later"])
async def test_a_server_that_comes_with_another_graph_is_found_out(
    repository: Path, own: Path, away: str
) -> None:
    with TritonServer(repository) as one, ExitStack() as stack:
        two = TritonServer(own)
        stack.callback(two.__exit__)
        if away == "later":
            two.start()
        async with connected(repository, one, two) as engine:
            if away == "later":
                two.kill()
                assert await engine.server_times() == {}
            swap(own)
            await asyncio.to_thread(two.start)
            with pytest.raises(RepositoryError, match=f"{two.address} serves {BASELINE} with ano"):
                await keep_asking(engine)
            assert not await engine.is_ready(BASELINE)


async def test_a_server_without_the_model_is_refused(repository: Path, own: Path) -> None:
    shutil.rmtree(own / IDEALIZED)
    with (
        TritonServer(own) as server,
        pytest.raises(RepositoryError, match=rf"{IDEALIZED}.*MKF_MODEL_REPOSITORY"),
    ):
        await TritonEngine.open(server.address, load_models(repository))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: setattr(config, "max_batch_size", 64), "up to 64 images, not 32"),
        (lambda config: setattr(config.response_cache, "enable", True), "response cache"),
        (lambda config: config.parameters.pop("graph_sha256"), "export the models again"),
    ],
    ids=["batch", "cache", "unnamed"],
)
async def test_a_server_that_is_configured_otherwise_is_refused(
    repository: Path, own: Path, change: Callable[[ModelConfig], None], message: str
) -> None:
    configure(own, BASELINE, change)
    with TritonServer(own) as server, pytest.raises(RepositoryError, match=message):
        await TritonEngine.open(server.address, load_models(repository))


async def test_messages_are_as_large_as_the_largest_batch(tmp_path: Path) -> None:
    repository = write_tiny_repository(tmp_path, size=(256, 256))
    pixels = np.zeros((32, 256, 256, 3), dtype=np.uint8)  # 6 MiB; gRPC's default limit is 4
    with TritonServer(repository) as server:
        async with connected(repository, server) as engine:
            assert (await ask(engine, pixels)).logits.shape == (32, 10)
        async with connected(repository, server, shared_memory=True) as engine:
            assert (await ask(engine, pixels)).logits.shape == (32, 10)


# Servers that go and come.


@pytest.mark.parametrize("shared_memory", [False, True])
async def test_a_request_waits_for_a_server_that_starts_again(
    repository: Path, shared_memory: bool
) -> None:
    with TritonServer(repository) as server:
        async with connected(repository, server) as engine:
            expected = await ask(engine)
        async with connected(repository, server, shared_memory=shared_memory) as engine:
            server.kill()
            assert not await engine.is_ready(BASELINE)
            assert await engine.server_times() == {}
            waiting = asyncio.create_task(ask(engine))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            await asyncio.to_thread(server.start)
            answer = await waiting
            assert answer.attempts > 1
            np.testing.assert_array_equal(answer.logits, expected.logits)
            assert await engine.is_ready(BASELINE)


@pytest.mark.parametrize("retry_seconds", [0.2, 0])
async def test_patience_ends(repository: Path, retry_seconds: float) -> None:
    with TritonServer(repository) as server:
        async with connected(repository, server, retry_seconds=retry_seconds) as engine:
            server.kill()
            with pytest.raises(UnavailableError, match=f"no Triton server answers for {BASELINE}"):
                await ask(engine)


@pytest.mark.parametrize("end", ["kill", "terminate"])
async def test_nothing_is_lost_when_one_of_two_servers_goes(repository: Path, end: str) -> None:
    with TritonServer(repository) as one, TritonServer(repository) as two:
        async with connected(repository, one, two) as engine:
            expected = await ask(engine)
            ending = asyncio.get_running_loop().run_in_executor(None, getattr(two, end))
            answers = []
            while not ending.done() or len(answers) < 200:
                answers += await asyncio.gather(*(ask(engine) for _ in range(20)))
            await ending
            for answer in answers:
                np.testing.assert_array_equal(answer.logits, expected.logits)
            assert await engine.is_ready(BASELINE)
            await asyncio.to_thread(two.start)
            await until(lambda: answered(two) > 0, engine)


async def test_what_a_server_refuses_is_sent_once(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = load_models(own)
    with TritonServer(own) as server:
        async with connected(own, server) as engine:
            await ask(engine)
            # The server's model takes other sizes than the engine has been told.
            shutil.rmtree(own / BASELINE)
            write_tiny_repository(own, size=(16, 16))
            server.terminate()
            await asyncio.to_thread(server.start)
            await until_ready(engine)
            sent = []
            send = engine._send

            async def count(model: str, pixels: NDArray[np.uint8], deadline: float) -> object:
                sent.append(model)
                return await send(model, pixels, deadline)

            monkeypatch.setattr(engine, "_send", count)
            with pytest.raises(ServiceError, match="failed on these images") as caught:
                await ask(engine)
            assert not isinstance(caught.value, UnavailableError)
            assert sent == [BASELINE]
            assert models[BASELINE].preprocessing.input_size == (32, 32)


async def test_waiting_for_a_place_is_queueing(repository: Path, three: list[TritonServer]) -> None:
    async with connected(repository, three[0], concurrent_requests=1) as engine:
        answers = await asyncio.gather(*(ask(engine) for _ in range(20)))
    assert answers[0].queue_seconds < 0.01
    assert answers[-1].queue_seconds > 10 * min(one.inference_seconds for one in answers)


async def test_two_may_ask_for_the_servers_times_while_one_is_away(repository: Path) -> None:
    with TritonServer(repository) as one, TritonServer(repository) as two:
        async with connected(repository, one, two) as engine:
            os.kill(two.pid, signal.SIGSTOP)  # asked, it does not answer
            first = asyncio.create_task(engine.server_times())
            await asyncio.sleep(0.5)
            assert await asyncio.gather(first, engine.server_times()) == [{}, {}]


async def test_no_more_requests_are_under_way_than_allowed(own: Path) -> None:
    def small_queue(config: ModelConfig) -> None:
        config.dynamic_batching.default_queue_policy.max_queue_size = 2
        # A request waits for another one of these to make a batch.
        config.dynamic_batching.preferred_batch_size.append(32)
        config.dynamic_batching.max_queue_delay_microseconds = 100_000

    configure(own, BASELINE, small_queue)
    with TritonServer(own) as server:
        async with connected(own, server, concurrent_requests=2) as engine:
            await asyncio.gather(*(ask(engine) for _ in range(6)))
        async with connected(own, server) as engine:
            answers = await asyncio.gather(
                *(ask(engine) for _ in range(20)), return_exceptions=True
            )
    assert any(isinstance(answer, LimitError) for answer in answers)


# Shared memory.


def regions(server: TritonServer) -> list[str]:
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        return sorted(client.get_system_shared_memory_status().regions)


def system_names() -> list[Path]:
    return list(Path("/dev/shm").glob("mkf-pixels-*"))


async def test_shared_memory_is_freed_at_the_end(repository: Path) -> None:
    with TritonServer(repository) as server:
        async with connected(repository, server, shared_memory=True) as engine:
            await asyncio.gather(*(ask(engine) for _ in range(5)))
            assert 1 <= len(regions(server)) <= 5
            assert system_names() == []
            count = len(regions(server))
            await asyncio.gather(*(ask(engine) for _ in range(count)))
            assert len(regions(server)) == count
        assert regions(server) == []


async def test_shared_memory_outlives_a_server(repository: Path) -> None:
    with TritonServer(repository) as one, TritonServer(repository) as two:
        async with connected(repository, one, two, shared_memory=True) as engine:
            expected = await ask(engine)
            one.kill()
            await asyncio.gather(*(ask(engine) for _ in range(10)))
            await asyncio.to_thread(one.start)
            await until(lambda: answered(one) > 0, engine)
            np.testing.assert_array_equal((await ask(engine)).logits, expected.logits)
        assert regions(one) == regions(two) == []


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import numpy as np
from services.inference.repository import load_models
from services.inference.triton import TritonEngine

async def main():
    models = load_models(Path(sys.argv[2]))
    engine = await TritonEngine.open(sys.argv[1], models, shared_memory=True)
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    await engine.infer("convnext_baseline", pixels, timeout_seconds=60)
    os.killpg(0, signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_killed_process_leaves_no_shared_memory(repository: Path) -> None:
    with TritonServer(repository) as server:
        command = [sys.executable, "-c", KILLED, server.address, str(repository)]
        killed = subprocess.run(command, check=False, start_new_session=True, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert system_names() == []
        assert len(regions(server)) == 1  # the server's side, until the next one comes
        async with connected(repository, server, shared_memory=True):
            assert regions(server) == []


async def keep_asking(engine: TritonEngine) -> None:
    """As an evaluation does, which asks for the times before it records."""
    async with asyncio.timeout(15):
        while True:
            await ask(engine)
            await engine.server_times()


async def until_ready(engine: TritonEngine) -> None:
    async with asyncio.timeout(15):
        while not await engine.is_ready(BASELINE):
            await asyncio.sleep(0.05)


async def until(
    condition: Callable[[], bool], engine: TritonEngine, *, seconds: float = 15.0
) -> None:
    """Send requests until it holds."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await ask(engine)
            await asyncio.sleep(0.05)
