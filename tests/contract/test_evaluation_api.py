"""The evaluation API over a real socket, on a real engine: states, status codes, pages, files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from tiny_models import write_tiny_repository

from mkf.repository import BASELINE, IDEALIZED
from mkf.v1 import evaluation_pb2 as pb
from mkf.v1 import evaluation_pb2_grpc
from services.errors import UnavailableError
from services.evaluation.files import FILES
from services.evaluation.results import Results
from services.evaluation.service import EvaluationServicer
from services.evaluation.store import Store, new_run_id
from services.inference.engine import Engine
from services.inference.urls import open_engine
from services.runtime.server import Registration, running_server
from services.runtime.settings import Settings

NAME = pb.DESCRIPTOR.services_by_name["EvaluationService"].full_name
CODE = grpc.StatusCode
# Longer than any test lasts: thousands of requests, a few milliseconds each.
LONG = {"dataset_uri": "fashion-mnist", "batch_size": 1}
SHORT = {"dataset_uri": "fashion-mnist", "limit": 50, "batch_size": 8}


@asynccontextmanager
async def serving(repository: Path, results: Path, **options: Any) -> AsyncIterator[Any]:
    """A stub of the service; what the server does when the context ends is `mkf-serve`'s way."""
    engine, models = await open_engine(f"embedded:{repository}")
    settings = Settings(results_directory=results, **options)
    servicer = EvaluationServicer(options.pop("engine_in_between", engine), models, settings)
    registration = Registration(
        NAME,
        lambda server: evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(
            servicer, server
        ),
        on_stop=servicer.close,
    )
    async with AsyncExitStack() as outer:
        outer.push_async_callback(engine.close)
        outer.push_async_callback(servicer.close)
        async with AsyncExitStack() as inner:
            server = await inner.enter_async_context(
                running_server([registration], host="127.0.0.1", port=0, settings=settings)
            )
            # Closed behind the server, so that a test sees how streams end when it stops.
            channel = await outer.enter_async_context(grpc.aio.insecure_channel(server.address))
            yield evaluation_pb2_grpc.EvaluationServiceStub(channel)


@pytest.fixture
async def stub(repository: Path, tmp_path: Path) -> AsyncIterator[Any]:
    async with serving(repository, tmp_path) as stub:
        yield stub


async def finish(stub: Any, **request: Any) -> pb.Evaluation:
    """Run to the end; progress must come first and the result last."""
    events = [event async for event in stub.RunEvaluation(pb.RunEvaluationRequest(**request))]
    assert [event.WhichOneof("event") for event in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1].WhichOneof("event") == "finished"
    last = events[-2].progress
    assert last.images_done == last.images_total == events[-1].finished.images_done
    return events[-1].finished


async def start(stub: Any, **request: Any) -> tuple[Any, str]:
    """Start a run and wait until it has done an image."""
    call = stub.RunEvaluation(pb.RunEvaluationRequest(**request))
    async for event in call:
        if event.progress.images_done:
            return call, event.progress.run_id
    raise AssertionError("the run ended at once")


async def get(stub: Any, run_id: str) -> pb.Evaluation:
    response = await stub.GetEvaluation(pb.GetEvaluationRequest(run_id=run_id))
    return response.evaluation


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a unary call or of a stream."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call succeeded")


async def test_a_run_ends_with_its_results(stub: Any) -> None:
    evaluation = await finish(stub, **SHORT, seed=5)
    assert evaluation.state == pb.EVALUATION_STATE_SUCCEEDED
    assert list(evaluation.models) == [BASELINE, IDEALIZED]
    assert (evaluation.images_done, evaluation.images_total) == (50, 50)
    results = Results.model_validate_json(evaluation.results_json)
    assert (results.dataset.images, results.dataset.available) == (50, 10_000)
    assert (results.run.seed, results.run.batch_size) == (5, 8)
    assert results.run.id == evaluation.run_id
    assert results.latency.baseline.requests == 6  # and one of 2 images
    assert await get(stub, evaluation.run_id) == evaluation


async def test_progress_shows_how_both_models_fare(stub: Any) -> None:
    call = stub.RunEvaluation(pb.RunEvaluationRequest(**SHORT))
    progress = [event.progress async for event in call if event.HasField("progress")]
    assert [accuracy.model for accuracy in progress[-1].accuracies] == [BASELINE, IDEALIZED]
    assert progress[-1].images_per_second > 0
    assert progress[-1].remaining_seconds == 0
    evaluation = await get(stub, progress[-1].run_id)
    models = json.loads(evaluation.results_json)["models"]
    for accuracy, role in zip(progress[-1].accuracies, models, strict=True):
        assert accuracy.correct_top1 == models[role]["correct_top1"]
        assert accuracy.correct_top5 == models[role]["correct_top5"]


@pytest.mark.parametrize(
    ("request_fields", "code", "words"),
    [
        ({"dataset_uri": ""}, CODE.INVALID_ARGUMENT, "it knows fashion-mnist"),
        ({"dataset_uri": "nonsense:x"}, CODE.INVALID_ARGUMENT, "it knows fashion-mnist"),
        ({"dataset_uri": "labels:/none"}, CODE.INVALID_ARGUMENT, "not there"),
        ({"dataset_uri": "imagefolder:/none"}, CODE.INVALID_ARGUMENT, "not there"),
        ({**SHORT, "models": [BASELINE]}, CODE.INVALID_ARGUMENT, "two models"),
        ({**SHORT, "models": [BASELINE] * 2}, CODE.INVALID_ARGUMENT, "with itself"),
        ({**SHORT, "models": [BASELINE, "x"]}, CODE.NOT_FOUND, "no model 'x'"),
        ({**SHORT, "batch_size": 100_000}, CODE.INVALID_ARGUMENT, "batch_size 100000"),
        ({"resume_run_id": "../../etc"}, CODE.INVALID_ARGUMENT, "no run id"),
        ({"resume_run_id": "20260501T120000Z-00000000"}, CODE.NOT_FOUND, "no run"),
    ],
)
async def test_requests_that_cannot_be_met(
    stub: Any, request_fields: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    call = stub.RunEvaluation(pb.RunEvaluationRequest(**request_fields))
    got, details = await refused(call)
    assert (got, words in details) == (code, True), details
    response = await stub.ListEvaluations(pb.ListEvaluationsRequest())
    assert not response.evaluations


async def test_models_that_differ_in_more_than_weights(tmp_path: Path) -> None:
    repository = write_tiny_repository(tmp_path / "repository")
    path = repository / IDEALIZED / "preprocessing.json"
    content = json.loads(path.read_text()) | {"interpolation": "nearest"}
    path.write_text(json.dumps(content))
    async with serving(repository, tmp_path / "results") as stub:
        code, details = await refused(stub.RunEvaluation(pb.RunEvaluationRequest(**SHORT)))
    assert code == CODE.FAILED_PRECONDITION
    assert "differ in their preprocessing" in details


async def test_a_broken_image_fails_the_run_and_is_recorded(stub: Any, tmp_path: Path) -> None:
    (tmp_path / "images" / "3").mkdir(parents=True)
    (tmp_path / "images" / "3" / "broken.jpg").write_bytes(b"no image")
    uri = f"imagefolder:{tmp_path / 'images'}"
    code, details = await refused(stub.RunEvaluation(pb.RunEvaluationRequest(dataset_uri=uri)))
    assert code == CODE.INVALID_ARGUMENT
    assert "3/broken.jpg" in details
    (evaluation,) = (await stub.ListEvaluations(pb.ListEvaluationsRequest())).evaluations
    assert evaluation.state == pb.EVALUATION_STATE_FAILED
    assert "3/broken.jpg" in evaluation.error


class DeadEngine:
    """Answers nothing."""

    async def infer(self, model: str, images: Any, *, timeout_seconds: float) -> Any:
        raise UnavailableError("the engine is down")


async def test_an_engine_that_goes_down_fails_the_run(repository: Path, tmp_path: Path) -> None:
    engine: Engine = DeadEngine()  # type: ignore[assignment]
    async with serving(repository, tmp_path, engine_in_between=engine) as stub:
        code, details = await refused(stub.RunEvaluation(pb.RunEvaluationRequest(**SHORT)))
        assert (code, details) == (CODE.UNAVAILABLE, "the engine is down")
        (evaluation,) = (await stub.ListEvaluations(pb.ListEvaluationsRequest())).evaluations
    assert evaluation.state == pb.EVALUATION_STATE_FAILED
    assert evaluation.error == "the engine is down"
    async with serving(repository, tmp_path) as stub:  # and with a living engine it goes on
        resumed = await finish(stub, resume_run_id=evaluation.run_id)
    assert resumed.state == pb.EVALUATION_STATE_SUCCEEDED
    assert resumed.error == ""


async def test_cancel_keeps_what_was_recorded(stub: Any, tmp_path: Path) -> None:
    call, run_id = await start(stub, **LONG, limit=1_000)
    response = await stub.CancelEvaluation(pb.CancelEvaluationRequest(run_id=run_id))
    cancelled = response.evaluation
    assert cancelled.state == pb.EVALUATION_STATE_CANCELLED
    assert 0 < cancelled.images_done < 1_000
    events = [event async for event in call]  # the stream says so, too
    assert events[-1].finished.state == pb.EVALUATION_STATE_CANCELLED
    again = await stub.CancelEvaluation(pb.CancelEvaluationRequest(run_id=run_id))
    assert again.evaluation == cancelled
    assert not (tmp_path / run_id / "results.json").exists()


async def test_cancel_of_what_does_not_run(stub: Any) -> None:
    evaluation = await finish(stub, **SHORT)
    request = pb.CancelEvaluationRequest(run_id=evaluation.run_id)
    code, details = await refused(stub.CancelEvaluation(request))
    assert code == CODE.FAILED_PRECONDITION
    assert "SUCCEEDED" in details
    request = pb.CancelEvaluationRequest(run_id=new_run_id())
    assert (await refused(stub.CancelEvaluation(request)))[0] == CODE.NOT_FOUND


async def test_a_client_that_goes_away_does_not_stop_a_run(stub: Any) -> None:
    call, run_id = await start(stub, **LONG | {"limit": 200})
    call.cancel()
    while (evaluation := await get(stub, run_id)).state == pb.EVALUATION_STATE_RUNNING:
        await asyncio.sleep(0.05)
    assert evaluation.state == pb.EVALUATION_STATE_SUCCEEDED
    assert evaluation.images_done == 200


async def test_a_second_client_may_watch_a_run(stub: Any) -> None:
    first, run_id = await start(stub, **LONG | {"limit": 200})
    second = await finish(stub, resume_run_id=run_id)
    events = [event async for event in first]
    assert events[-1].finished == second
    assert Results.model_validate_json(second.results_json).run.resumed == 0


async def test_two_runs_at_once_and_no_third(stub: Any) -> None:
    _, first = await start(stub, **LONG)
    second = asyncio.create_task(finish(stub, **SHORT | {"limit": 200}))
    while len(await running(stub)) < 2:
        await asyncio.sleep(0.01)
    code, details = await refused(stub.RunEvaluation(pb.RunEvaluationRequest(**SHORT)))
    assert code == CODE.RESOURCE_EXHAUSTED
    assert "2 evaluations are under way" in details
    evaluation = await second
    assert evaluation.state == pb.EVALUATION_STATE_SUCCEEDED
    assert "another evaluation ran at the same time" in evaluation.results_json
    await stub.CancelEvaluation(pb.CancelEvaluationRequest(run_id=first))
    assert (await finish(stub, **SHORT)).state == pb.EVALUATION_STATE_SUCCEEDED


async def running(stub: Any) -> list[pb.Evaluation]:
    response = await stub.ListEvaluations(pb.ListEvaluationsRequest())
    return [one for one in response.evaluations if one.state == pb.EVALUATION_STATE_RUNNING]


async def test_refused_requests_leave_their_place(repository: Path, tmp_path: Path) -> None:
    async with serving(repository, tmp_path, max_concurrent_evaluations=1) as stub:
        for _ in range(3):
            request = pb.RunEvaluationRequest(dataset_uri="labels:/none")
            assert (await refused(stub.RunEvaluation(request)))[0] == CODE.INVALID_ARGUMENT
        assert (await finish(stub, **SHORT)).state == pb.EVALUATION_STATE_SUCCEEDED


async def test_a_server_that_stops_interrupts_its_runs(repository: Path, tmp_path: Path) -> None:
    async with serving(repository, tmp_path) as stub:
        call, run_id = await start(stub, **LONG, limit=400)
        watching = asyncio.create_task(refused(call))
        await asyncio.sleep(0)
    code, details = await watching
    assert code == CODE.UNAVAILABLE
    assert f"resume the run {run_id}" in details
    store = Store(tmp_path)
    assert store.get(run_id).state == "INTERRUPTED"
    store.close()
    async with serving(repository, tmp_path) as stub:
        assert (await get(stub, run_id)).state == pb.EVALUATION_STATE_INTERRUPTED
        resumed = await finish(stub, resume_run_id=run_id)
        whole = await finish(stub, **LONG, limit=400)
        code, details = await refused(
            stub.RunEvaluation(pb.RunEvaluationRequest(resume_run_id=run_id))
        )
    assert (code, "complete" in details) == (CODE.FAILED_PRECONDITION, True)
    one, other = (json.loads(run.results_json) for run in (resumed, whole))
    assert (one["run"]["resumed"], other["run"]["resumed"]) == (1, 0)
    for part in ("models", "paired", "dataset"):
        assert one[part] == other[part]


@pytest.mark.parametrize("change", ["relabeled", "fewer", "other model"])
async def test_a_run_is_not_resumed_on_something_else(
    repository: Path, tmp_path: Path, change: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"no image")
    labels = images / "labels.txt"
    labels.write_text("a.png 1\na.png 2\n")
    request = pb.RunEvaluationRequest(dataset_uri=f"labels:{labels}")
    async with serving(repository, tmp_path / "results") as stub:
        await refused(stub.RunEvaluation(request))  # it fails, and could be resumed
        (run,) = (await stub.ListEvaluations(pb.ListEvaluationsRequest())).evaluations
    if change == "other model":
        repository = write_tiny_repository(tmp_path / "repository")
        path = repository / BASELINE / "preprocessing.json"
        content = json.dumps(json.loads(path.read_text()) | {"interpolation": "nearest"})
        for name in (BASELINE, IDEALIZED):
            (repository / name / "preprocessing.json").write_text(content)
    else:
        labels.write_text("a.png 1\n" if change == "fewer" else "a.png 1\na.png 3\n")
    async with serving(repository, tmp_path / "results") as stub:
        resume = pb.RunEvaluationRequest(resume_run_id=run.run_id)
        code, details = await refused(stub.RunEvaluation(resume))
    assert code == CODE.FAILED_PRECONDITION
    assert "changed since the run" in details


async def test_pages(stub: Any) -> None:
    ids = sorted([(await finish(stub, **SHORT)).run_id for _ in range(3)], reverse=True)
    first = await stub.ListEvaluations(pb.ListEvaluationsRequest(page_size=2))
    assert [one.run_id for one in first.evaluations] == ids[:2]
    assert all(one.results_json == "" for one in first.evaluations)
    assert first.next_page_token
    second = await stub.ListEvaluations(
        pb.ListEvaluationsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [one.run_id for one in second.evaluations] == ids[2:]
    assert second.next_page_token == ""
    whole = await stub.ListEvaluations(pb.ListEvaluationsRequest())
    assert len(whole.evaluations) == 3
    assert whole.next_page_token == ""
    request = pb.ListEvaluationsRequest(page_token="nonsense")
    assert (await refused(stub.ListEvaluations(request)))[0] == CODE.INVALID_ARGUMENT


async def test_download(stub: Any, tmp_path: Path) -> None:
    evaluation = await finish(stub, **SHORT)
    request = pb.DownloadEvaluationRequest(run_id=evaluation.run_id)
    files: dict[str, bytes] = {}
    async for response in stub.DownloadEvaluation(request):
        assert 0 < len(response.chunk) < 1024 * 1024
        files[response.file_name] = files.get(response.file_name, b"") + response.chunk
    assert tuple(files) == FILES
    for name, content in files.items():
        assert content == (tmp_path / evaluation.run_id / name).read_bytes()
    (tmp_path / evaluation.run_id / "results.json").unlink()
    for call in (
        stub.DownloadEvaluation(request),
        stub.GetEvaluation(pb.GetEvaluationRequest(run_id=evaluation.run_id)),
    ):
        code, details = await refused(call)
        assert (code, "taken away" in details) == (CODE.NOT_FOUND, True)


async def test_download_of_what_is_not_complete(stub: Any) -> None:
    _, run_id = await start(stub, **LONG)
    request = pb.DownloadEvaluationRequest(run_id=run_id)
    assert (await refused(stub.DownloadEvaluation(request)))[0] == CODE.FAILED_PRECONDITION
    for run_id, code in (("../x", CODE.INVALID_ARGUMENT), (new_run_id(), CODE.NOT_FOUND)):
        request = pb.DownloadEvaluationRequest(run_id=run_id)
        assert (await refused(stub.DownloadEvaluation(request)))[0] == code


async def test_metrics(stub: Any) -> None:
    def sample(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"mkf_evaluation_{name}", labels) or 0.0

    before = sample("images_total", model=BASELINE)
    evaluation = await finish(stub, **SHORT)
    results = json.loads(evaluation.results_json)
    paired = results["paired"]
    assert sample("images_total", model=BASELINE) == before + 50
    for role in ("baseline", "idealized"):
        model = results["models"][role]
        assert sample("top1_ratio", model=model["name"]) == pytest.approx(model["top1"])
        alone = sample("discordant_images", only_correct=model["name"])
        assert alone == paired[f"only_{role}"]
    assert sample("top1_difference_ratio") == pytest.approx(paired["difference_pp"] / 100)
    assert sample("runs", state="succeeded") == 1
    assert sample("runs", state="running") == 0
