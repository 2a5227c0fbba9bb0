"""Two processes of torch.distributed, for the tests of everything that couples samples."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(compute: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `compute(rank)`, a function of a module, gives on each of two ranks: tensors and plain values."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_work, (port, str(folder), compute), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _work(rank: int, port: int, folder: str, compute: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(compute(rank), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
