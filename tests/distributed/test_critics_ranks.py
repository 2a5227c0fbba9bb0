"""Fresh critics measure on two processes what they measure on one."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medprism.evaluation.critics import fresh_critic_mi


def measured() -> tuple[list[float], int]:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(301, 2))  # an odd number: the shares of the processes differ
    blocks = {"a": a, "b": 0.8 * a + 0.6 * generator.normal(size=(301, 2))}
    return fresh_critic_mi(blocks, [("a", "b")], np.arange(301), steps=40)


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(measured(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path)), nprocs=2)
    (alone,), n = measured()
    assert alone > 0.3
    for rank in range(2):
        (value,), seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert value == pytest.approx(alone, abs=1e-3) and seen == n
