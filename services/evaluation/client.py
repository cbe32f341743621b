"""The command's side of the evaluation API: watch a run, fetch its files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from mkf.v1 import evaluation_pb2 as pb
from mkf.v1 import evaluation_pb2_grpc
from services.errors import DeadlineError, ServiceError, UnavailableError
from services.evaluation.files import FILES
from services.evaluation.store import RUN_ID
from services.runtime.channel import trusted_certificate
from services.runtime.settings import Settings

# Of the stream a run lasts as long as it lasts, but every message has a deadline: progress comes
# several times a second, and only the first may wait for a large dataset to be looked through.
MESSAGE_SECONDS = 300.0
CALL_SECONDS = 30.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # results.json comes whole


class EvaluationClient:
    """One evaluation service; `connect` makes it."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._stub = evaluation_pb2_grpc.EvaluationServiceStub(channel)
        self._address = address

    async def run(
        self, request: pb.RunEvaluationRequest
    ) -> AsyncGenerator[pb.EvaluationProgress | pb.Evaluation]:
        """The progress of a run and, last, how it ended.

        Raises
        ------
        UnavailableError
            Nothing answers at the address.
        DeadlineError
            The service fell silent.
        ServiceError
            The service refused the run, or the run failed.
        """
        call = self._stub.RunEvaluation(request)
        try:
            while True:
                response = await asyncio.wait_for(call.read(), MESSAGE_SECONDS)
                if response is grpc.aio.EOF:
                    return
                yield response.progress if response.HasField("progress") else response.finished
        except TimeoutError:
            raise DeadlineError(
                f"{self._address} was silent for {MESSAGE_SECONDS:.0f} s; the run may go on there"
            ) from None
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()

    async def download(self, run_id: str, out: Path) -> Path:
        """Fetch the files of a finished run into `<out>/<run id>` and return that folder.

        Raises
        ------
        ServiceError
            The run has no files, or the service sent what it should not.
        """
        if not RUN_ID.fullmatch(run_id):
            raise ServiceError(f"{self._address} named a run in an unknown way")
        folder = out / run_id
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: folder / f".{name}.part" for name in FILES}
        for part in parts.values():
            part.write_bytes(b"")
        call = self._stub.DownloadEvaluation(pb.DownloadEvaluationRequest(run_id=run_id))
        try:
            while True:
                response = await asyncio.wait_for(call.read(), CALL_SECONDS)
                if response is grpc.aio.EOF:
                    break
                if response.file_name not in parts:
                    raise ServiceError(f"{self._address} sent a file of an unknown name")
                with parts[response.file_name].open("ab") as file:
                    file.write(response.chunk)
        except TimeoutError:
            raise DeadlineError(f"{self._address} stopped sending the run's files") from None
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()
        for name, part in parts.items():
            part.replace(folder / name)
        return folder

    def _error(self, error: grpc.aio.AioRpcError) -> ServiceError:
        details = " ".join((error.details() or error.code().name).split())
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(f"the evaluation service at {self._address}: {details}")
        return ServiceError(details)


@asynccontextmanager
async def connect(address: str, settings: Settings) -> AsyncIterator[EvaluationClient]:
    """A client of the service at `host:port`; with TLS where the settings name a certificate."""
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    if (credentials := trusted_certificate(settings)) is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        yield EvaluationClient(channel, address)
