"""Where a network runs and how precisely; and what running out of memory looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Literal

import torch

from models.errors import MemoryExhaustedError, SettingsError

Precision = Literal["auto", "fp32", "bf16"]


def choose_device(wanted: Literal["auto", "cpu", "cuda"] = "auto") -> torch.device:
    """The device meant; "auto" is a GPU where there is one. Raises SettingsError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise SettingsError("there is no CUDA device", where="device", hint='say device = "auto" or "cpu"')
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


@lru_cache
def has_bf16(device_type: str) -> bool:
    """Whether the device computes in bfloat16 natively, so that it pays."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN also emulates bfloat16 on plain AVX-512, which is slower than float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(native and torch.backends.mkldnn.is_available())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """bfloat16 where asked for or, with "auto", where it pays."""
    wanted = precision == "bf16" or (precision == "auto" and has_bf16(device.type))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine ran out of memory; PyTorch's CPU allocator says so in words only."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


@contextmanager
def memory_told(where: str) -> Iterator[None]:
    """Running out of memory, as MemoryExhaustedError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryExhaustedError) or not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(
            "the image does not fit into memory beside the model",
            where=where,
            hint="predict on the CPU, or fewer at once",
        ) from error
