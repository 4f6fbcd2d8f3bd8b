from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import IntegrityError, PackageError
from models.networks import build
from models.package import PACKAGE_FILE, WEIGHTS_FILE, Environment, ModelPackage, TrainingRecord
from tasks.stores.packages import digest, read_description, read_package, write_package, write_weights
from tests.tasks.train.samples import balls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A written package with untrained weights."""
    world = balls()
    sha = write_weights(tmp_path, build(world.plan.network).state_dict())
    record = TrainingRecord(
        steps=1, epochs=1, seconds=1.0, stopped_by="epochs", device="cpu", precision="fp32", batch_size=2,
        parameters=1, best_metric=0.5, best_step=1,
    )  # fmt: skip
    environment = Environment(nocturne="0", code="c", python="3", torch="2", platform="p")
    package = ModelPackage(
        key="k1",
        recipe=world.recipe,
        plan=world.plan,
        dataset="d",
        weights_sha256=sha,
        training=record,
        environment=environment,
        threshold=0.3,
        keep_largest=("ball",),
    )
    write_package(tmp_path, package)
    return tmp_path


def reseal(folder: Path) -> None:
    """Make the description carry the digest of whatever weights now lie there."""
    package = read_description(folder)
    sealed = package.model_copy(update={"weights_sha256": digest(folder / WEIGHTS_FILE)})
    (folder / PACKAGE_FILE).write_text(sealed.model_dump_json())


def test_comes_back_as_written(folder: Path) -> None:
    package, weights = read_package(folder)
    assert (package.key, package.threshold, package.keep_largest) == ("k1", 0.3, ("ball",))
    network = build(package.plan.network)
    network.load_state_dict(weights)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    weights = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    first = write_weights(tmp_path / "1", weights)
    assert first == write_weights(tmp_path / "2", dict(reversed(weights.items())))


@pytest.mark.fault("models/hash")
def test_changed_weights_are_refused(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match="k1"):
        read_package(folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, PACKAGE_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PackageError, match=name):
        read_package(folder)


@pytest.mark.fault("models/pickle")
def test_a_pickle_under_the_weights_name_is_never_loaded(folder: Path) -> None:
    touched = folder / "executed"

    @dataclasses.dataclass
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (touched,)

    torch.save({"a": Bomb()}, folder / WEIGHTS_FILE)
    reseal(folder)
    with pytest.raises(PackageError, match="safetensors"):
        read_package(folder)
    assert not touched.exists()


@pytest.mark.fault("models/shapes")
@pytest.mark.parametrize("change", ["missing", "reshaped", "additional"])
def test_weights_that_do_not_fit_the_network_are_refused(folder: Path, change: str) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    name = sorted(weights)[0]
    if change == "missing":
        del weights[name]
    elif change == "reshaped":
        weights[name] = torch.zeros(7)
    else:
        weights["network.stranger"] = torch.zeros(1)
    save_file(weights, folder / WEIGHTS_FILE)
    reseal(folder)
    with pytest.raises(PackageError, match="do not fit"):
        read_package(folder)


def test_an_unknown_network_is_refused(folder: Path) -> None:
    text = (folder / PACKAGE_FILE).read_text()
    (folder / PACKAGE_FILE).write_text(text.replace('"name": "unet"', '"name": "gone"'))
    with pytest.raises(PackageError, match="gone"):
        read_package(folder)


@pytest.mark.fault("models/shapes")
def test_a_description_of_another_version_is_refused(folder: Path) -> None:
    text = (folder / PACKAGE_FILE).read_text()
    (folder / PACKAGE_FILE).write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(PackageError, match=r"package\.json"):
        read_package(folder)


def test_a_description_is_not_written_beside_other_weights(folder: Path) -> None:
    package = read_description(folder)
    write_weights(folder, {"a": torch.ones(1)})
    with pytest.raises(PackageError):
        write_package(folder, package)


def test_reading_the_description_alone_needs_no_pytorch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from tasks.stores.packages import read_description\n"
        f"assert read_description(Path({str(folder)!r})).key == 'k1'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
