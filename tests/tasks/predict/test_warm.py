from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from models.errors import IntegrityError, NotFoundError, PackageError
from models.package import PACKAGE_FILE, WEIGHTS_FILE, ModelPackage
from models.refs import PackageRef
from tasks.predict import warm
from tasks.predict.warm import Warm, alone_on, predictor_for
from tasks.stores.house import Stores
from tasks.stores.packages import read_package
from tests.tasks.predict.samples import a_package
from tests.tasks.train.samples import balls


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages whose weights were read."""
    read: list[str] = []

    def counted(folder: Path) -> tuple[ModelPackage, dict[str, torch.Tensor]]:
        found = read_package(folder)
        read.append(found[0].key)
        time.sleep(0.05)  # wide enough for a race to show
        return found

    monkeypatch.setattr(warm, "read_package", counted)
    return read


def test_a_model_is_loaded_once(stores: Stores, loads: list[str]) -> None:
    package = a_package(stores, balls())
    first, again = predictor_for(stores, package), predictor_for(stores, package)
    assert first[1] is again[1]
    assert first[0].key == package.key
    assert loads == [package.key]


def test_many_threads_load_a_model_once(stores: Stores, loads: list[str]) -> None:
    package, keep = a_package(stores, balls()), Warm(device="cpu")
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(keep.predictor_for(stores, package)[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert loads == [package.key]


def test_the_least_recently_used_goes_first(stores: Stores, loads: list[str]) -> None:
    one, two, three = (a_package(stores, balls(), name) for name in ("one", "two", "three"))
    keep = Warm(2, device="cpu")
    for package in (one, two, one, three, one):
        keep.predictor_for(stores, package)
    assert loads == [one.key, two.key, three.key]
    keep.predictor_for(stores, two)
    assert loads[-1] == two.key


def test_a_package_that_was_written_anew_is_loaded_anew(stores: Stores, loads: list[str]) -> None:
    package, keep = a_package(stores, balls()), Warm(device="cpu")
    _, before = keep.predictor_for(stores, package)
    file = stores.packages.local(package.key) / PACKAGE_FILE
    described = ModelPackage.parse(file.read_text()).model_copy(update={"keep_largest": ("ball",)})
    file.write_text(described.model_dump_json())
    found, after = keep.predictor_for(stores, package)
    assert after is not before
    assert found.keep_largest == ("ball",)


class TestRefusals:
    def test_damaged_weights(self, stores: Stores) -> None:
        package = a_package(stores, balls())
        file = stores.packages.local(package.key) / WEIGHTS_FILE
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match=package.key):
            predictor_for(stores, package)

    def test_weights_of_another_network(self, stores: Stores) -> None:
        package = a_package(stores, balls(), wrong=True)
        with pytest.raises(PackageError, match="do not fit"):
            predictor_for(stores, package)

    def test_a_package_that_is_not_there(self, stores: Stores) -> None:
        with pytest.raises(NotFoundError):
            predictor_for(stores, PackageRef.to("nothing"))


def test_one_thread_at_a_time_computes_on_a_device() -> None:
    inside, most = [0], [0]

    def work() -> None:
        with alone_on(torch.device("cpu")):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert most == [1]
