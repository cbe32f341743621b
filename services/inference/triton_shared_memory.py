"""Pixels for Triton servers on this machine, in shared memory in place of the request's message.

A region is known to its servers by a name, and to the system by none: the system's name is taken
away as soon as the servers have mapped the region, so that the kernel frees it however this process
ends. Only a process that is killed leaves the servers' side mapped; the next one that opens an
engine on them clears that up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from services.errors import UnavailableError, one_line
from services.inference.repository import INPUT_NAME
from services.inference.triton_servers import CONTROL_SECONDS

NAME = re.compile("mkf-pixels-([0-9]+)-[0-9a-f]+")  # the process, and the region
LOST = "unable to find shared memory region"  # Triton's words when it has started again


class Regions:
    """Regions of one size, one for each request under way; await `close` at the end."""

    def __init__(self, servers: Mapping[str, InferenceServerClient], region_bytes: int) -> None:
        self._servers = servers  # its owner's: servers come and go
        self._bytes = region_bytes
        self._idle: list[SharedMemory] = []

    async def clear_dead(self) -> None:
        """Let the servers forget the regions of processes of this machine that are no more."""
        for server in tuple(self._servers.values()):
            with contextlib.suppress(InferenceServerException):
                status = await server.get_system_shared_memory_status(
                    client_timeout=CONTROL_SECONDS
                )
                for name in status.regions:
                    ours = NAME.fullmatch(name)
                    if ours and not _lives(int(ours[1])):
                        await server.unregister_system_shared_memory(
                            name, client_timeout=CONTROL_SECONDS
                        )

    @asynccontextmanager
    async def lend(self, images: NDArray[np.uint8]) -> AsyncIterator[InferInput]:
        """A request's input that lies in a region until the context ends.

        A server that does not know the region has started again: then it knows none of the others
        either, and all are made anew.

        Parameters
        ----------
        images
            uint8, of at most the regions' size.

        Raises
        ------
        UnavailableError
            No server can map this machine's shared memory.
        InferenceServerException
            No server answers.
        """
        region = self._idle.pop() if self._idle else await self._make()
        np.ndarray(images.shape, np.uint8, region.buf)[:] = images
        tensor = InferInput(INPUT_NAME, list(images.shape), "UINT8")
        tensor.set_shared_memory(region.name, images.nbytes)
        try:
            yield tensor
        except InferenceServerException as error:
            self._idle.append(region)
            if LOST in str(error.message()).lower():
                await self.close()
            raise
        except BaseException:
            # Given up: a server may still read the region, but nobody waits for the answer.
            self._idle.append(region)
            raise
        self._idle.append(region)

    async def close(self) -> None:
        """Free all regions that are not lent, here and on the servers."""
        regions, self._idle = self._idle, []
        await asyncio.gather(*(self._free(region) for region in regions))

    async def _make(self) -> SharedMemory:
        name = f"mkf-pixels-{os.getpid()}-{secrets.token_hex(4)}"
        region = SharedMemory(name, create=True, size=self._bytes)
        errors = []
        try:
            for server in tuple(self._servers.values()):
                try:
                    await server.register_system_shared_memory(
                        region.name, f"/{name}", self._bytes, client_timeout=CONTROL_SECONDS
                    )
                except InferenceServerException as error:
                    errors.append(error)
        except BaseException:
            await self._free(region)
            raise
        finally:
            region.unlink()
        if len(errors) == len(self._servers):
            region.close()
            away = [error for error in errors if error.status() == "StatusCode.UNAVAILABLE"]
            if away:
                raise away[0]  # it may be back soon
            raise UnavailableError(
                f"no Triton server maps this process's shared memory ({one_line(errors[0])}); "
                "set MKF_TRITON_SHARED_MEMORY=false for servers on other machines"
            )
        return region

    async def _free(self, region: SharedMemory) -> None:
        unregistered = (
            server.unregister_system_shared_memory(region.name, client_timeout=CONTROL_SECONDS)
            for server in tuple(self._servers.values())
        )
        # Of a server that does not answer the region is gone with it.
        await asyncio.gather(*unregistered, return_exceptions=True)
        region.close()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
