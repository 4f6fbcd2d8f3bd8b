"""Checkpoints: tensors as safetensors, the rest as JSON that carries the tensors' digest. No pickle.

The JSON is the commit. The two newest are kept: where the newest is damaged, the one before serves.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.hashing import canonical, content_key
from tasks.stores.places import sweep_parts, write_synced

_FORMAT = 1
_KEPT = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that resuming needs: named tensors, and plain JSON values."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training, below `folder`. `identity` (content keys) keeps others' apart."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / content_key("checkpoints", identity)
        self.saved_at = time.monotonic()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it, whole or not at all, and drop the ones that are two older."""
        content = packed(checkpoint)
        name = f"step-{checkpoint.step:09d}"
        body = {
            "format": _FORMAT,
            "step": checkpoint.step,
            "tensors": hashlib.sha256(content).hexdigest(),
            "values": checkpoint.values,
        }
        write_synced(self._folder / f"{name}.safetensors", content)
        sealed = {"body": body, "sha256": hashlib.sha256(canonical(body)).hexdigest()}
        write_synced(self._folder / f"{name}.json", json.dumps(sealed).encode())
        for old in sorted(self._folder.glob("step-*.json"), reverse=True)[_KEPT:]:
            _remove(old)
        self.saved_at = time.monotonic()

    def newest(self) -> tuple[Checkpoint | None, int]:
        """The newest whole checkpoint of this training, and how many newer ones were damaged; those are removed.

        So is what a killed writer left: each time a network's size, for as long as the training lasts.
        """
        self._tidy()
        damaged = 0
        for path in sorted(self._folder.glob("step-*.json"), reverse=True):
            found = self._read(path)
            if found is not None:
                return found, damaged
            _remove(path)
            damaged += 1
        return None, damaged

    def _tidy(self) -> None:
        for left in self._folder.glob("*.safetensors"):
            if not left.with_suffix(".json").exists():
                left.unlink()
        sweep_parts(self._folder, older_than_seconds=-1)

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            sealed = json.loads(path.read_bytes())
            body = sealed["body"]
            content = path.with_suffix(".safetensors").read_bytes()
            whole = (
                sealed["sha256"] == hashlib.sha256(canonical(body)).hexdigest()
                and body["tensors"] == hashlib.sha256(content).hexdigest()
                and body["format"] == _FORMAT
            )
            return Checkpoint(body["step"], load(content), body["values"]) if whole else None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None


def packed(checkpoint: Checkpoint) -> bytes:
    """Its tensors, as safetensors."""
    return save(_distinct(checkpoint.tensors))


def _remove(path: Path) -> None:
    """A checkpoint, its commit first."""
    path.unlink()
    path.with_suffix(".safetensors").unlink(missing_ok=True)


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory, and wants them contiguous.
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        result[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return result


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state as `{parameter's number}/{name}`; learning rates are set anew at each step and not part of it."""
    return dict(_optimiser_tensors(optimiser))


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for number, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                yield f"{number}/{name}", value


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `flatten_optimiser`, in place."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        number, name = path.split("/")
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every global random generator: (PyTorch's as tensors, Python's and NumPy's as JSON values)."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    legacy = [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
    return tensors, {"python": [version, list(internal), gauss], "numpy": legacy}


def restore_random_states(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """The inverse of `random_states`; a GPU's state is restored where there is a GPU."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
