"""A real S3 endpoint for tests: moto's server, on loopback, in a process of its own.

Import the fixtures by name where they are needed: `from tests.objects import bucket, object_store  # noqa: F401`.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest

from tests.components import _ATTEMPTS, _Process, free_port

KEY_ID, SECRET = "AKIAMARKERMARKER", "marker-secret-of-the-object-store"


@dataclass
class ObjectStore:
    """A running server. What it holds is gone when it is stopped."""

    port: int
    process: _Process

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client must find in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
            "NO_PROXY": "127.0.0.1",
        }

    def new_bucket(self) -> str:
        """Its name."""
        name = f"b{uuid.uuid4().hex}"
        httpx.put(f"{self.url}/{name}", timeout=60, trust_env=False).raise_for_status()
        return name

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            return httpx.get(self.url, timeout=10, trust_env=False).is_success
        except httpx.HTTPError:
            return False


@contextmanager
def running_object_store(folder: Path) -> Iterator[ObjectStore]:
    """An empty server."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    for _ in range(_ATTEMPTS):
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        store = ObjectStore(port, _Process(command, folder / "objects.log", lambda: False))
        store.process._ready = store.answers
        if store.process.start():
            break
    else:
        pytest.fail(f"the object store does not start: {(folder / 'objects.log').read_text()[-2000:]}")
    try:
        yield store
    finally:
        store.process.stop()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The session's server; clients in this process find it by their environment."""
    with running_object_store(tmp_path_factory.mktemp("objects")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        # A client of before would go on asking the server that it was made for.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield store


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    """A new one's name."""
    return object_store.new_bucket()


def requests_of(monkeypatch: pytest.MonkeyPatch, place: Any) -> list[str]:
    """The S3 operations that a place asks for from now on."""
    asked: list[str] = []
    call = type(place._fs)._call_s3

    async def told(self: Any, method: str, *arguments: Any, **options: Mapping[str, Any]) -> Any:
        asked.append(method)
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(type(place._fs), "_call_s3", told)
    return asked


def place_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of the kind that a test's parameter names: folder, memory or s3."""
    if request.param == "folder":
        return str(tmp_path / "place")
    if request.param == "memory":
        return f"memory://bucket-{uuid.uuid4().hex}/prefix"
    store: ObjectStore = request.getfixturevalue("object_store")
    return f"s3://{store.new_bucket()}/some/prefix"
