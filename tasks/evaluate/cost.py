"""What a prediction costs: its time, and the weights' size."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from models.evaluation import Cost

P = ParamSpec("P")
T = TypeVar("T")


class Stopwatch:
    """`seconds` of each piece of work that it was called with. The first one bears what is made ready only once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns."""
        begun = time.perf_counter()
        result = work(*args, **kwargs)
        self.seconds.append(time.perf_counter() - begun)
        return result


def cost_of(seconds: Sequence[float], weights: Path, device: torch.device) -> Cost | None:
    """From each case's seconds and the weights' file; None without a case."""
    if not seconds:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return Cost(
        seconds_median=round(statistics.median(seconds), 4),
        seconds_longest=round(max(seconds), 4),
        megabytes=round(weights.stat().st_size / 1e6, 3),
        device=f"{device.type} ({name})",
    )
