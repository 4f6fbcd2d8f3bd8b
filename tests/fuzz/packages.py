"""Whatever lies in a package's folder: read it, prove it, and build its network."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from models.networks import build
from models.package import PACKAGE_FILE, WEIGHTS_FILE, Environment, Member, ModelPackage, TrainingRecord
from models.plan import Plan
from tasks.stores.packages import read_package
from tests.fuzz.trees import spoilt
from tests.tasks.train.samples import balls

_DIGEST: Final = "0" * 64
"""Stands in a description for the digest of the weights beside it: else nobody would come past it."""
_HEADS: Final = (
    *(b"", b"{", b"[]", b"null", b"{}", b'{"a":{}}', b'{"__metadata__":{"a":1}}', b"[" * 3000),
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}',
    b'{"a":{"dtype":"U16","shape":[1],"data_offsets":[0,2]}}',
    b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
    b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
    b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
)


def target(data: bytes) -> None:
    """A description, two zeros, and weights (none: the right ones). Raises PackageError or IntegrityError alone."""
    text, _, weights = data.partition(b"\0\0")
    weights = weights or _weights()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / WEIGHTS_FILE).write_bytes(weights)
        (folder / PACKAGE_FILE).write_bytes(
            text.replace(_DIGEST.encode(), hashlib.sha256(weights).hexdigest().encode())
        )
        package, tensors = read_package(folder)
    for prefix, plan in package.plans.items():
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        build(plan.network).load_state_dict(own)
    json.dumps(package.model_dump(mode="json"), allow_nan=False)


@cache
def _plan() -> Plan:
    world = balls()
    network = world.plan.network.model_copy(update={"features": (4, 4), "deep_supervision": False})
    return world.plan.model_copy(update={"network": network})


@cache
def _weights() -> bytes:
    return save(build(_plan().network).state_dict())


@cache
def _description() -> dict[str, Any]:
    record = TrainingRecord(
        steps=1, epochs=1, seconds=1.0, stopped_by="epochs", device="cpu", precision="fp32", batch_size=2,
        parameters=1, best_metric=0.5, best_step=1,
    )  # fmt: skip
    package = ModelPackage(
        key="k1",
        recipe=balls().recipe,
        plan=_plan(),
        dataset="d",
        weights_sha256=_DIGEST,
        training=record,
        environment=Environment(nocturne="0", code="c", python="3", torch="2", platform="p"),
        threshold=0.3,
    )
    return package.model_dump(mode="json")


def _of_members() -> dict[str, Any]:
    members = [Member(name="a"), Member(name="b", plan=_plan(), weight=0.5)]
    return _description() | {"members": [member.model_dump(mode="json") for member in members]}


def _shared_out() -> bytes:
    state = build(_plan().network).state_dict()
    return save({f"{name}.{key}": tensor.clone() for name in "ab" for key, tensor in state.items()})


def _headed(head: bytes, body: bytes, claimed: int | None = None) -> bytes:
    """Weights with a header of their own."""
    return struct.pack("<Q", len(head) if claimed is None else claimed) + head + body


def seeds() -> list[bytes]:
    """Packages that are right: one network, and two together."""
    return [
        json.dumps(_description()).encode(),
        json.dumps(_description()).encode() + b"\0\0" + _weights(),
        json.dumps(_of_members()).encode() + b"\0\0" + _shared_out(),
        json.dumps(_description()).encode() + b"\0\0" + save({"a": torch.zeros(1)}),
    ]


def _networks() -> dict[str, Any]:
    """The part of a description that builds."""
    return _description()["plan"]["network"]


@st.composite
def _spoilt(draw: st.DrawFn) -> bytes:
    whole = _description()
    kind = draw(st.sampled_from(("description", "network", "weights", "header", "members")))
    if kind == "network":
        plan = whole["plan"] | {"network": draw(spoilt(_networks(), most=2))}
        return _text(whole | {"plan": plan})
    if kind == "members":
        return _text(draw(spoilt(_of_members(), most=2))) + b"\0\0" + _shared_out()
    if kind == "header":
        head, body = draw(st.sampled_from(_HEADS)), draw(st.binary(max_size=16))
        claimed = draw(st.none() | st.sampled_from((0, 1, 2**31, 2**62, 2**64 - 1)))
        return _text(whole) + b"\0\0" + _headed(head, body, claimed)
    if kind == "weights":
        weights = bytearray(_weights())
        for place, byte in draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4)):
            weights[place % len(weights)] = byte
        return _text(whole) + b"\0\0" + bytes(weights[: draw(st.integers(1, len(weights)))])
    return _text(draw(spoilt(whole)))


def _text(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree).encode()


shaped = _spoilt()
"""Packages whose description, network or weights are odd."""
