"""Packages that are damaged or lie: none of them runs, the champion before them says what the next study shows, and
whoever is on call is told both.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import IntegrityError, NocturneError, NotFoundError, PackageError
from models.package import PACKAGE_FILE, WEIGHTS_FILE
from models.refs import PackageRef, VolumeRef
from tasks.predict.run import analyse
from tasks.predict.warm import WARM
from tasks.receive.relay import EventRelay
from tasks.register import promotion
from tasks.register.run import resolve, serving
from tasks.stores import alerts, proof
from tasks.stores.house import Stores
from tasks.stores.outbox import Outbox
from tasks.stores.packages import read_description
from tasks.stores.tables import AlertRow, AnalysisRow, PackageRow
from tests.matrix import Figure, Times
from tests.tasks.predict.samples import a_package, a_study, a_volume, scene, stores_at
from tests.tasks.train.samples import balls

MODEL = "balls"
Damage = Callable[[Path], None]


@dataclass
class Hospital:
    """An installation with a model of which one version after the other is promoted."""

    stores: Stores
    marker: Path
    versions: list[tuple[str, PackageRef]] = field(default_factory=list)
    studies: int = 0

    def promote(self) -> tuple[str, PackageRef]:
        """One more version, which serves from now on."""
        package = a_package(self.stores, balls(), f"night {len(self.versions)}")
        folder = self.stores.packages.local(package.key)
        proof.seal(self.stores, package)
        version = self.stores.registry.log_package(read_description(folder), folder, metrics={})
        self.stores.catalog.change(PackageRow, PackageRow.package == package.key, version=version.version)
        promotion.promote(
            self.stores.registry, self.stores.catalog, MODEL, version.version, who="ana", reason="it is better"
        )
        self.versions.append((version.version, package))
        return version.version, package

    @property
    def two(self) -> tuple[str, str, PackageRef]:
        """The champion before, and the one that serves with its package."""
        (before, _), (version, package) = self.versions[-2:]
        return before, version, package

    def copies(self, package: PackageRef, version: str) -> tuple[Path, Path]:
        """Where a package lies: in the store and in the registry."""
        run = self.stores.registry.version(MODEL, version).run_id
        (kept,) = (self.stores.locations.home / "mlartifacts").glob(f"*/{run}/artifacts/package")
        return self.stores.packages.local(package.key), kept

    def the_next_study(self) -> AnalysisRow:
        """A study as it arrives: the row says which version spoke."""
        self.studies += 1
        uid = f"2.25.7{self.studies}"
        study = a_study(self.stores, uid)
        volume = a_volume(self.stores, scene(), study=uid, series=f"series {self.studies}")
        (model,) = serving(self.stores, (MODEL,), shadow=False)
        ref = analyse(
            self.stores,
            study,
            model.package,
            (VolumeRef.to(volume.key),),
            name=model.name,
            model_version=model.version,
        )
        row = self.stores.catalog.get(AnalysisRow, ref.key)
        assert row is not None
        assert row.package == dict(self.versions)[row.model_version].key
        return row

    def open_alerts(self) -> tuple[AlertRow, ...]:
        return alerts.open_alerts(self.stores.catalog, MODEL)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    WARM.forget()
    home = tmp_path_factory.mktemp("hospital")
    stores = stores_at(home)
    found = Hospital(stores, home / "executed")
    found.promote()
    found.promote()
    assert found.the_next_study().model_version == found.two[1]
    yield found
    stores.catalog.close()
    WARM.forget()
    torch.set_num_threads(threads)


# -- how packages are damaged, and how they lie --------------------------------------------------------------------


def flipped(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-5] ^= 0x10
    (folder / WEIGHTS_FILE).write_bytes(content)


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])


def lost(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def onnx_beside(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64))


def linked(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder.parent / f"{folder.name}.aside")
    (folder / WEIGHTS_FILE).symlink_to(folder.parent / f"{folder.name}.aside")


def no_text(folder: Path) -> None:
    content = (folder / PACKAGE_FILE).read_bytes()
    (folder / PACKAGE_FILE).write_bytes(content[:40] + b"\xff" + content[41:])


def claiming(*path: str, value: Any) -> Damage:
    """`package.json` with one other value."""

    def change(folder: Path) -> None:
        document = json.loads((folder / PACKAGE_FILE).read_bytes())
        place = document
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        (folder / PACKAGE_FILE).write_text(json.dumps(document))

    return change


def resealed(folder: Path) -> None:
    """As a liar would: the description vouches for whatever lies beside it."""
    claiming("weights_sha256", value=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest())(folder)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def pickled(marker: Path) -> Damage:
    def change(folder: Path) -> None:
        torch.save({"a": Bomb(marker)}, folder / WEIGHTS_FILE)
        resealed(folder)

    return change


def flipped_and_resealed(folder: Path) -> None:
    flipped(folder)
    resealed(folder)


HASHES: dict[str, tuple[Damage, str]] = {
    "a flipped byte": (flipped, "weights.safetensors was changed"),
    "another digest": (claiming("weights_sha256", value="0" * 64), "package.json was changed"),
    "cut": (cut, "weights.safetensors was changed"),
    "no weights": (lost, "weights.safetensors is missing"),
    "no package": (gone, "is not in the store"),
    "other weights that the description vouches for": (flipped_and_resealed, "package.json was changed"),
    "another threshold": (claiming("temperature", value=3.0), "package.json was changed"),
    "no text": (no_text, "package.json was changed"),
}
SHAPES: dict[str, Damage] = {
    "an ONNX model beside it": onnx_beside,
    "an absurd patch": claiming("plan", "train", "patch_size", value=[10**9] * 3),
    "wider": claiming("plan", "network", "features", value=[6, 12, 24]),
    "more classes": claiming("plan", "classes", value=["ball", "core", "shell"]),
    "more outputs": claiming("plan", "network", "out_channels", value=9),
    "an absurd tile": claiming("plan", "infer", "tile", value=[10**9] * 3),
    "absurdly wide": claiming("plan", "network", "features", value=[10**9] * 3),
    "absurdly deep": claiming("plan", "network", "features", value=[4] * 10**5),
    "no levels": claiming("plan", "network", "features", value=[]),
    "another network": claiming("plan", "network", "name", value="segresnet"),
    "no such network": claiming("plan", "network", "name", value="../../etc/passwd"),
}


@contextmanager
def damaged(hospital: Hospital, damage: Damage, *which: tuple[str, PackageRef]) -> Iterator[None]:
    """These versions are damaged wherever they lie; at the end they are restored, and the last is promoted again."""
    folders = [folder for version, package in which for folder in hospital.copies(package, version)]
    backups = [hospital.marker.parent / "backup" / str(n) for n in range(len(folders))]
    for folder, backup in zip(folders, backups, strict=True):
        shutil.copytree(folder, backup)
        damage(folder)
    yield
    for folder, backup in zip(folders, backups, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(backup, folder)
    version = hospital.versions[-1][0]
    promotion.promote(hospital.stores.registry, hospital.stores.catalog, MODEL, version, who="ana", reason="restored")
    assert hospital.the_next_study().model_version == version
    assert hospital.open_alerts() == ()


def refused(hospital: Hospital, damage: Damage, told: str) -> None:
    """The version that serves is damaged: what then serves, and what is told."""
    stores, (before, version, package) = hospital.stores, hospital.two
    with damaged(hospital, damage, (version, package)):
        said = hospital.the_next_study()
        assert (said.model_version, said.outcome) == (before, "predicted")
        (alert,) = hospital.open_alerts()
        assert (alert.kind, alert.measure, alert.package) == (alerts.FILES, f"files of version {version}", package.key)
        assert told in alert.told
        assert f"version {before} serves instead" in alert.told
        last = promotion.history(stores.registry, stores.catalog, MODEL)[-1]
        assert (last.action, last.version, last.before, last.who) == ("rolled-back", before, version, "nocturne")
        assert told in str(last.reasons[0])
        with pytest.raises((IntegrityError, PackageError, NotFoundError)) as caught:
            resolve(stores, MODEL, version)
        assert package.key in str(caught.value)
        assert not hospital.marker.exists()


@pytest.mark.fault("models/hash", "stores/corrupt")
def test_a_damaged_package_does_not_run_and_the_champion_before_it_serves(
    hospital: Hospital, times: Times, figure: Figure
) -> None:
    asked = list(HASHES.values())[: times(3, full=len(HASHES))]
    for damage, told in asked:
        refused(hospital, damage, told)
    figure(f"packages damaged in {len(asked)} ways: each refused, told, and the version before it served")


@pytest.mark.fault("models/shapes")
def test_a_description_that_lies_is_refused_and_the_champion_before_it_serves(
    hospital: Hospital, times: Times, figure: Figure
) -> None:
    asked = list(SHAPES.items())[: times(3, full=len(SHAPES))]
    for name, damage in asked:
        refused(hospital, damage, "model.onnx was added" if "ONNX" in name else "package.json was changed")
    figure(f"{len(asked)} lies about shapes: each refused, told, and the version before it served")


@pytest.mark.fault("models/pickle")
def test_a_pickle_in_place_of_weights_never_runs_and_the_champion_before_it_serves(
    hospital: Hospital, figure: Figure
) -> None:
    refused(hospital, pickled(hospital.marker), "weights.safetensors was changed")
    figure("a pickle as weights: not run, told, and the version before it served")


@pytest.mark.fault("models/shapes", "models/pickle")
def test_lies_are_found_where_no_digest_was_kept(hospital: Hospital, tmp_path: Path) -> None:
    """Of packages that were registered before digests were: the catalog knows the weights alone."""
    package = a_package(hospital.stores, balls(), "of before")
    kept = hospital.stores.packages.local(package.key)
    proof.check(hospital.stores, package, kept)
    lies = {name: damage for name, damage in SHAPES.items() if damage is not onnx_beside}
    lies |= {"a pickle": pickled(hospital.marker), "other weights": flipped_and_resealed, "no text": no_text}
    for name, damage in lies.items():
        folder = tmp_path / name
        shutil.copytree(kept, folder)
        damage(folder)
        with pytest.raises((PackageError, IntegrityError)):
            proof.check(hospital.stores, package, folder)
    assert not hospital.marker.exists()


@pytest.mark.fault("models/hash")
def test_a_package_of_which_the_registry_has_a_whole_copy_is_mended_and_serves(
    hospital: Hospital, figure: Figure
) -> None:
    ways: list[Damage] = [flipped, gone, linked, onnx_beside, claiming("temperature", value=3.0)]
    _, version, package = hospital.two
    for number, damage in enumerate(ways):
        folder = hospital.stores.packages.local(package.key)
        damage(folder)
        assert hospital.the_next_study().model_version == version
        proof.check(hospital.stores, package, folder)
        assert hospital.open_alerts() == ()
        mended = [row for row in hospital.stores.catalog.find(AlertRow) if "mended" in row.told]
        assert len(mended) == number + 1
    figure("damaged where the registry's copy was whole: mended, told, served")


@pytest.mark.fault("models/hash")
def test_an_alert_on_files_leaves_as_an_event_and_stays_open_while_nobody_promotes(hospital: Hospital) -> None:
    outbox = Outbox(hospital.stores.catalog)
    for message in outbox.take("event", lease_seconds=60, limit=100):
        outbox.acknowledged(message.message)
    with damaged(hospital, cut, hospital.versions[-1]):
        hospital.the_next_study()
        (alert,) = hospital.open_alerts()
        (message,) = outbox.take("event", lease_seconds=60)
        relay = EventRelay(hospital.stores.catalog, "http://127.0.0.1:9/api")
        event = relay._event(message)
        relay.close()
        assert (event["event"], event["payload"]["told"]) == ("nocturne.model.damaged", alert.told)
        assert event["resource"]["prefect.resource.id"] == f"nocturne.model.{MODEL}"
        hospital.the_next_study()
        assert len(hospital.open_alerts()) == 1


@pytest.mark.fault("models/hash")
def test_several_damaged_champions_lead_to_the_last_whole_one_and_none_to_an_error(hospital: Hospital) -> None:
    hospital.promote()
    first, *others = hospital.versions
    with damaged(hospital, flipped, *others):
        assert hospital.the_next_study().model_version == first[0]
    with damaged(hospital, flipped, *hospital.versions):
        with pytest.raises(NocturneError, match=hospital.versions[-1][1].key):
            serving(hospital.stores, (), shadow=False)
        assert any("nothing serves" in row.told for row in hospital.open_alerts())
