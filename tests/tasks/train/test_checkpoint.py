from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.train.checkpoint import (
    Checkpoint,
    Checkpoints,
    flatten_optimiser,
    random_states,
    restore_optimiser,
    restore_random_states,
)


def made(step: int) -> Checkpoint:
    tensors = {"network:w": torch.full((3,), float(step)), "scalar": torch.tensor(0.5), "random": torch.get_rng_state()}
    return Checkpoint(step, tensors, {"loss": 1 / 3 + step, "notes": ["a"]})


def newest(folder: Path, identity: str = "mine") -> tuple[Checkpoint | None, int]:
    return Checkpoints(folder, identity).newest()


class TestFiles:
    def test_the_newest_comes_back_exactly(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path, "mine")
        for step in (1, 20, 3_000_000_000):
            store.save(made(step))
        found, damaged = newest(tmp_path)
        assert found is not None
        assert damaged == 0
        assert (found.step, found.values) == (3_000_000_000, made(3_000_000_000).values)
        assert all(torch.equal(found.tensors[name], t) for name, t in made(3_000_000_000).tensors.items())

    def test_two_are_kept(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path, "mine")
        for step in range(5):
            store.save(made(step))
        assert sorted(p.stem for p in tmp_path.rglob("step-*")) == ["step-000000003"] * 2 + ["step-000000004"] * 2

    @pytest.mark.fault("stores/killed")
    def test_what_killed_writers_left_goes(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path, "mine").save(made(1))
        (folder,) = tmp_path.iterdir()
        left = [folder / "step-000000002.safetensors", folder / f".step-000000003.safetensors.{'0f' * 16}"]
        for path in left:
            path.write_bytes(b"half")
        found, damaged = newest(tmp_path)
        assert (found and found.step, damaged) == (1, 0)
        assert not any(path.exists() for path in left)

    @pytest.mark.parametrize("suffix", [".json", ".safetensors"])
    @settings(max_examples=15)
    @given(data=st.data())
    def test_any_damage_to_the_newest_is_seen_and_the_one_before_serves(
        self, suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("checkpoints")
        store = Checkpoints(folder, "mine")
        store.save(made(1))
        store.save(made(2))
        (path,) = folder.rglob(f"step-000000002{suffix}")
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[place:]
        path.write_bytes(content)
        found, damaged = newest(folder)
        assert found is not None
        # A flipped bit in a blank or in the letter case of a digit may leave the JSON's meaning as it was.
        assert (found.step, damaged) in {(1, 1), (2, 0)}
        if suffix == ".safetensors" or len(content) <= place:
            assert found.step == 1

    def test_tensors_without_their_json_are_no_checkpoint(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path, "mine").save(made(1))
        next(tmp_path.rglob("*.json")).unlink()
        assert newest(tmp_path) == (None, 0)

    def test_another_trainings_checkpoint_is_not_taken_up(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path, "theirs").save(made(1))
        Checkpoints(tmp_path, "mine").save(made(0))
        found, damaged = newest(tmp_path)
        assert found is not None
        assert (found.step, damaged) == (0, 0)

    def test_values_are_json_and_refuse_what_is_not_finite(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="JSON"):
            Checkpoints(tmp_path, "mine").save(Checkpoint(1, {"a": torch.zeros(1)}, {"loss": math.nan}))
        Checkpoints(tmp_path, "mine").save(made(1))
        assert json.loads(next(tmp_path.rglob("step-000000001.json")).read_text())["body"]["step"] == 1

    def test_a_damaged_one_does_not_outlive_its_discovery(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path, "mine")
        for step in (1, 9):
            store.save(made(step))
        next(tmp_path.rglob("step-000000009.safetensors")).write_bytes(b"")
        assert newest(tmp_path)[1] == 1
        for step in (2, 3):
            store.save(made(step))
        found, damaged = newest(tmp_path)
        assert found is not None
        assert (found.step, damaged) == (3, 0)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimiser_goes_on_exactly(kind: str) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        if kind == "sgd":
            return network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        return network, torch.optim.AdamW(network.parameters(), lr=0.1)

    def step(network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        network(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()

    first = make()
    step(*first)
    second = make()
    second[0].load_state_dict(first[0].state_dict())
    restore_optimiser(second[1], {name: t.clone() for name, t in flatten_optimiser(first[1]).items()})
    for pair in (first, second):
        step(*pair)
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


def test_random_generators_go_on_exactly() -> None:
    before = random_states()
    drawn = (torch.rand(3), random.random(), np.random.normal(size=3))
    values = json.loads(json.dumps(before[1]))
    restore_random_states(before[0], values)
    again = (torch.rand(3), random.random(), np.random.normal(size=3))
    assert torch.equal(drawn[0], again[0])
    assert drawn[1] == again[1]
    assert np.array_equal(drawn[2], again[2])
