"""Weights from a file that somebody else made: safetensors, or a torch checkpoint that needs no code to be read."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.errors import IntegrityError, RecipeError
from tasks.stores.packages import digest

_WHERE = "start.weights"
_HINT = "save the weights alone: safetensors.torch.save_file(network.state_dict(), …)"


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, out of whatever a checkpoint wraps them in. Nothing in the file is ever run.

    Raises RecipeError (no such file, no weights in it, or a file that only code could read: a pickled network, say)
    and IntegrityError (other bytes than the recipe's `start.sha256`).
    """
    if not path.is_file():
        raise RecipeError("there is no such file", where=_WHERE, hint="give the path as this machine sees it")
    found = digest(path)
    if found != sha256:
        raise IntegrityError(
            f"the file's SHA-256 is {found[:12]}…, not the recipe's {sha256[:12]}…",
            where=_WHERE,
            hint="take the file that the recipe means, or write its digest into start.sha256",
        )
    tensors = dict(_tensors(_content(path)))
    if not tensors:
        raise RecipeError("the file holds no weights", where=_WHERE, hint=_HINT)
    return tensors


def _content(path: Path) -> Any:
    if _is_safetensors(path):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RecipeError(f"the file is not whole: {error}", where=_WHERE, hint=_HINT) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        # What torch says names paths, and recommends to run the code in the file.
        raise RecipeError(
            "the file is neither safetensors nor a torch checkpoint of plain tensors; reading it would run code in it",
            where=_WHERE,
            hint=_HINT,
        ) from None


def _is_safetensors(path: Path) -> bool:
    """By its beginning: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The largest group of named tensors: what `state_dict`, `model`, `network_weights`, … wrap."""
    groups = list(_groups(content))
    if not groups:
        return
    best = max(groups, key=lambda group: sum(tensor.numel() for tensor in group.values()))
    yield from best.items()


def _groups(content: Any) -> Iterator[dict[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    own = {name: value.detach() for name, value in content.items() if isinstance(name, str) and _is_weights(value)}
    if own:
        yield own
    for value in content.values():
        yield from _groups(value)


def _is_weights(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_sparse and not value.is_quantized and not value.is_complex()
