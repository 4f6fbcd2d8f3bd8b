"""The device that networks run on: its name, when it has done all that it was told, and how busy it is meanwhile."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

EVERY_MS = 100


def device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device`, of scripts that can use a GPU."""
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, or cuda")


def named(device: torch.device) -> str:
    """Which GPU it is; nothing of a CPU."""
    return f" on one {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""


def settled(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def moment(device: torch.device) -> tuple[float, float]:
    """(seconds, CPU seconds), once the device has settled."""
    settled(device)
    return time.perf_counter(), time.process_time()


@contextmanager
def busy(device: torch.device) -> Iterator[list[float]]:
    """Meanwhile, shares of the time in which the GPU had a kernel at work, as `nvidia-smi` tells it; none of a CPU."""
    shares = list[float]()
    if device.type != "cuda":
        yield shares
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", str(EVERY_MS)]
    with subprocess.Popen([*query, "-i", str(device.index or 0)], stdout=subprocess.PIPE, text=True) as looking:
        try:
            yield shares
        finally:
            looking.terminate()
            told, _ = looking.communicate()
            shares += [int(line) / 100 for line in told.split() if line.isdigit()]


def kernels_told(shares: list[float]) -> str:
    """Their middle, after what there is to say already."""
    return f"; kernels at work {statistics.median(shares):.0%}" if shares else ""
