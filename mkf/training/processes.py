"""The processes of one training: this one alone, or those that `torchrun` started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from mkf.errors import InputError

_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE


@dataclass(frozen=True)
class Processes:
    """One of the processes that train together, and the device it works on."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Each value summed over the processes, in float64."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return [float(value) for value in sums]

    def wait(self) -> None:
        """Return when every process is here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun's environment names; alone without it.

    Parameters
    ----------
    device
        cpu, cuda, or auto: cuda where torch finds it. Several processes on cuda take one GPU each,
        by their local rank, and talk by NCCL; on the CPU by Gloo.

    Raises
    ------
    InputError
        cuda was asked for and is not there, or several processes were not started by torchrun.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError("torch finds no CUDA device; give --device cpu, or install a CUDA build")
    cuda = available and device != "cpu"
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set; start several processes "
            "with torchrun, or unset WORLD_SIZE for one"
        )
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} has no GPU of its own; start at most {torch.cuda.device_count()}"
        )
    chosen = torch.device(f"cuda:{local}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if cuda else "gloo")
    yield Processes(distributed.get_rank(), count, chosen)
    # What was trained goes first. Held last by a DistributedDataParallel, the group would be ended
    # under Python's lock, for which one of its own threads may be waiting: a deadlock.
    gc.collect()
    distributed.destroy_process_group()  # not after an error: the others may still be waiting
