"""Files of weights that others made: what is read, and what is refused without being run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import IntegrityError, RecipeError
from tasks.stores.packages import digest
from tasks.train.transfer.reading import read_weights

TENSORS = {"conv.weight": torch.arange(8.0).reshape(2, 1, 2, 2), "conv.bias": torch.ones(2)}


def read(path: Path) -> dict[str, Tensor]:
    return read_weights(path, digest(path))


class Trap:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "wrapped",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3},
        {"model": TENSORS, "optimizer": {"state": {0: {"momentum": torch.zeros(1)}}}},
        {"network_weights": TENSORS, "best": 0.5},
    ],
)
def test_a_checkpoint_is_unwrapped(tmp_path: Path, wrapped: dict[str, object]) -> None:
    torch.save(wrapped, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    assert found.keys() == TENSORS.keys()
    assert torch.equal(found["conv.weight"], TENSORS["conv.weight"])


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "net.bin")
    assert torch.equal(read(tmp_path / "net.bin")["conv.bias"], torch.ones(2))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": TENSORS, "hook": Trap(mark)}, tmp_path / "trap.pt")
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap(mark)))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    for name in ("trap.pt", "trap.pkl", "module.pt", "script.pt"):
        with pytest.raises(RecipeError, match=r"start\.weights.*would run code.*safetensors") as told:
            read(tmp_path / name)
        assert str(tmp_path) not in str(told.value)
    assert not mark.exists()


def test_other_bytes_than_the_recipe_means_are_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "net.safetensors")
    with pytest.raises(IntegrityError, match="SHA-256"):
        read_weights(tmp_path / "net.safetensors", "ab" * 32)


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{broken", b"no weights at all"])
def test_what_is_no_file_of_weights_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net").write_bytes(content)
    with pytest.raises(RecipeError, match=r"start\.weights"):
        read(tmp_path / "net")


def test_a_file_without_weights_and_no_file_are_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(RecipeError, match="holds no weights"):
        read(tmp_path / "empty.pt")
    with pytest.raises(RecipeError, match="no such file"):
        read_weights(tmp_path / "nowhere.pt", "ab" * 32)
