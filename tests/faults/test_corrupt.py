"""Stored bytes that are damaged: the error names the object, and what can be made anew is."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import IntegrityError, NocturneError
from models.refs import VolumeRef
from tasks.imaging.compose import read_case
from tasks.ingest.again import mend, mend_set_aside
from tasks.ingest.build import build_dataset
from tasks.ingest.run import Ingestor, IngestRules
from tasks.predict.run import predict_each
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.stores.datasets import HEADER, ROWS
from tasks.stores.house import Stores
from tasks.stores.packages import digest
from tasks.stores.tables import QuarantineRow
from tasks.train.loop import TrainEvent
from tests.flows.test_promotion import HARDLY, patients, recipe
from tests.matrix import Figure, Times
from tests.tasks.conftest import house_of_one  # noqa: F401 - a fixture
from tests.tasks.ingest.synthetic import stack, write
from tests.tasks.predict.samples import a_package
from tests.tasks.train.samples import balls, trained

Damage = Callable[[Path], None]


def flipping(share: float) -> Damage:
    """One bit, so far into the file."""

    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(share * (len(content) - 1))] ^= 0x20
        file.write_bytes(content)

    return change


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def lost(file: Path) -> None:
    file.unlink()


DAMAGES = (flipping(0.0), cut, lost, flipping(1.0), emptied, *(flipping(n / 37) for n in range(1, 37)))


def taken(stores: Stores, folder: Path) -> VolumeRef:
    """The one volume of a folder of DICOM files."""
    shared = stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer
    ingestor = Ingestor(*shared, IngestRules(), workers=1)
    (series,) = ingestor.scan([str(folder)]).series
    (volume,) = ingestor.ingest(series).volumes
    return volume


def read(stores: Stores, ref: VolumeRef) -> np.ndarray:
    return read_case(stores.volumes, ref.key, (), "none", stores.transforms).array


def damaged(stores: Stores, ref: VolumeRef, damage: Damage) -> None:
    """The volume's one shard is; and reading says so, naming it."""
    (shard,) = (path for path in (stores.volumes.place.local(ref.key) / "0" / "c").rglob("*") if path.is_file())
    damage(shard)
    for look in (lambda: stores.volumes.verify(ref.key), lambda: read(stores, ref)):
        with pytest.raises(IntegrityError) as caught:
            look()
        assert ref.key in str(caught.value)


@pytest.mark.fault("stores/corrupt")
def test_a_damaged_volume_is_taken_anew_from_its_source(
    house_of_one: Stores,  # noqa: F811
    tmp_path: Path,
    times: Times,
    figure: Figure,
) -> None:
    ref = taken(house_of_one, write(tmp_path / "in", stack(6)))
    whole = read(house_of_one, ref)
    ways = DAMAGES[: times(5, full=len(DAMAGES))]
    for damage in ways:
        damaged(house_of_one, ref, damage)
        assert mend(house_of_one, [ref]) == ()
        np.testing.assert_array_equal(read(house_of_one, ref), whole)
    (house_of_one.volumes.place.local(ref.key) / "zarr.json").write_text("{")
    assert mend(house_of_one, [ref]) == ()
    np.testing.assert_array_equal(read(house_of_one, ref), whole)
    figure(f"a volume's shard damaged in {len(ways)} ways: told by name, taken anew, the same voxels")


@pytest.mark.fault("stores/corrupt")
def test_without_its_source_a_damaged_volume_is_set_aside_and_the_others_go_on(
    house_of_one: Stores,  # noqa: F811
    tmp_path: Path,
) -> None:
    package = a_package(house_of_one, balls())
    first = taken(house_of_one, write(tmp_path / "first", stack(6, modality="MR")))
    other = taken(house_of_one, write(tmp_path / "other", stack(6, modality="MR", series="9")))
    damaged(house_of_one, first, flipping(0.4))
    (tmp_path / "first").rename(tmp_path / "away")

    ((left, why),) = mend(house_of_one, [first, other])
    assert left == first
    assert isinstance(why, NocturneError)
    assert first.key in str(why)
    assert "send its study again" in str(why)
    done = predict_each(house_of_one, package, [first, other])
    assert len(done.keys) == 1
    ((left, why),) = done.refused
    assert (left, why.reason) == (first, "corrupt")
    (row,) = house_of_one.catalog.find(QuarantineRow, QuarantineRow.resolved_at.is_(None))
    assert (row.subject, row.reason) == (first.key, "corrupt")

    (tmp_path / "away").rename(tmp_path / "first")  # the night finds it there again
    assert mend_set_aside(house_of_one) == ()
    assert len(predict_each(house_of_one, package, [first, other]).keys) == 2
    assert house_of_one.catalog.count(QuarantineRow, QuarantineRow.resolved_at.is_(None)) == 0


@pytest.mark.fault("stores/corrupt")
def test_prepared_cases_and_manifests_that_are_damaged_are_made_anew(
    house_of_one: Stores,  # noqa: F811
    figure: Figure,
) -> None:
    patients(house_of_one)
    asked = recipe(HARDLY)

    def dataset_of() -> tuple[str, ...]:
        built = build_dataset(asked, house_of_one.catalog, house_of_one.datasets, house_of_one.pseudonymizer)
        return tuple(row.volume for row in house_of_one.datasets.read(built.ref.key).rows)

    ref = build_dataset(asked, house_of_one.catalog, house_of_one.datasets, house_of_one.pseudonymizer).ref
    volumes, manifest = dataset_of(), house_of_one.datasets.place.local(ref.key)
    for file in (ROWS, HEADER):
        for damage in (flipping(0.5), cut, lost):
            damage(manifest / file)
            with pytest.raises(IntegrityError, match=ref.key):
                house_of_one.datasets.read(ref.key)
            assert dataset_of() == volumes

    plan = plan_training(house_of_one, asked, ref)
    prepare_planned(house_of_one, asked, plan)
    chunks = sorted((house_of_one.prepared.root).glob("*/*/image/c/**/0"))
    chunks = [chunk for chunk in chunks if chunk.is_file()]
    before = [digest(chunk) for chunk in chunks]
    for chunk, damage in zip(chunks, (flipping(0.0), flipping(0.5), cut, lost, emptied), strict=False):
        damage(chunk)
        key = chunk.relative_to(house_of_one.prepared.root).parts[1]
        with pytest.raises(IntegrityError, match=key):
            house_of_one.prepared.verify(key)
    prepare_planned(house_of_one, asked, plan)
    assert [digest(chunk) for chunk in chunks] == before
    figure("two files of a dataset and five prepared cases damaged: made anew, the same bytes")


@pytest.mark.fault("stores/corrupt")
@pytest.mark.usefixtures("one_thread")
def test_a_damaged_checkpoint_is_passed_over_and_the_weights_are_the_same(tmp_path: Path, figure: Figure) -> None:
    world = balls(epochs=3, steps_per_epoch=4, checkpoint_minutes=1e-9)
    undisturbed = trained(world, tmp_path / "whole")
    cancel = threading.Event()

    def stop(event: TrainEvent) -> None:
        if event.step >= 8:
            cancel.set()

    with pytest.raises(SystemExit):
        trained(world, tmp_path / "begun", on_event=stop, cancel=cancel)
    ways: dict[str, tuple[Damage, int]] = {
        "the newest is cut": (cut, 1),
        "the newest has a flipped bit": (flipping(0.5), 1),
        "the newest is empty": (emptied, 1),
        "both are": (flipping(0.7), 2),
    }
    for name, (damage, count) in ways.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "begun", folder)
        for file in sorted(folder.rglob("step-*.safetensors"), reverse=True)[:count]:
            damage(file)
        package = trained(world, folder)
        assert package.weights_sha256 == undisturbed.weights_sha256, name
        notes = " ".join(package.training.notes)
        assert f"{count} damaged checkpoint" in notes, name
        assert ("resumed at step" in notes) == (count == 1), name
    figure(f"checkpoints damaged in {len(ways)} ways: told, and the same weights as without")
