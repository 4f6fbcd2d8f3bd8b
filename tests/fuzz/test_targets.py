"""Whatever comes in is read or refused: nothing but our own errors gets out. `make fuzz` looks for longer."""

from __future__ import annotations

import importlib
from contextlib import suppress
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import NocturneError
from tests.fuzz.targets import TARGETS

EXAMPLES = {"packages": 40, "headers": 150}
OTHERWISE = 120


def named(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.{name}")


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_right_is_taken(name: str) -> None:
    module = named(name)
    module.target(module.seeds()[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_odd_is_read_or_refused(name: str) -> None:
    module = named(name)
    for seed in module.seeds():
        attempt(module, seed)

    @settings(max_examples=EXAMPLES.get(name, OTHERWISE), suppress_health_check=list(HealthCheck))
    @given(module.shaped | st.binary(max_size=60))
    def odd(data: bytes) -> None:
        attempt(module, data)

    odd()


def attempt(module: ModuleType, data: bytes) -> None:
    with suppress(NocturneError):
        module.target(data)
