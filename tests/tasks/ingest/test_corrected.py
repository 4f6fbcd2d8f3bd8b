"""Datasets of images that somebody corrected: the last correction is what is learnt."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tasks.stores.tables import CorrectionRow, DatasetRecord, PackageRow, PredictionRow, VolumeRow
from tests.tasks.ingest.test_build import SEGMENT, START, House, livers


class Corrected(House):
    """A catalog with a model that has said something of its images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.catalog.add(
            DatasetRecord(dataset="d", name="liver", kind="segmentation", classes=["Liver", "Lesion"], counts={}),
            PackageRow(package="p", name="liver", dataset="d", weights_sha256=""),
        )

    def correct(self, volume: VolumeRow, *names: str, source: str = "SEG", package: str = "p") -> str:
        """A label that corrects what the model said of the image."""
        label = self.mask(volume, *names, source=source)
        self.told(volume, label, package)
        return label

    def told(self, volume: VolumeRow, label: str, package: str = "p") -> None:
        """That a label is a correction."""
        self._count += 1
        key = f"{package}-{volume.volume}"
        moment = START + timedelta(seconds=self._count)
        self.catalog.add(
            PredictionRow(prediction=key, package=package, volume=volume.volume, result={}),
            CorrectionRow(
                correction=f"{key}-{label}",
                prediction=key,
                label=label,
                package=package,
                how="referenced",
                created_at=moment,
            ),
        )


@pytest.fixture
def house(tmp_path: Path) -> Corrected:
    return Corrected(tmp_path)


def chosen(house: Corrected, volume: VolumeRow, text: str = SEGMENT) -> str:
    return next(row.label for row in house.build(text).dataset.rows if row.volume == volume.volume)


def test_the_correction_replaces_the_first_truth(house: Corrected) -> None:
    volume, *_ = livers(house, range(10))
    label = house.correct(volume, "Liver", "Lesion")
    assert chosen(house, volume) == label
    assert house.build(SEGMENT).reasons == {"label-corrected": 1}


def test_the_last_of_two_corrections_wins_whichever_came_first(house: Corrected) -> None:
    volume, *_ = livers(house, range(10))
    second, first = house.mask(volume, "Liver"), house.mask(volume, "Liver", "Lesion")
    house.told(volume, first)
    house.told(volume, second)
    assert chosen(house, volume) == second
    assert house.build(SEGMENT).reasons == {"label-corrected": 2}


def test_a_later_label_that_corrects_nothing_does_not_replace_it(house: Corrected) -> None:
    volume, *_ = livers(house, range(10))
    label = house.correct(volume, "Liver", "Lesion")
    house.mask(volume, "Lesion")
    assert chosen(house, volume) == label


def test_a_correction_that_shows_other_structures_is_no_part_of_two(house: Corrected) -> None:
    volume = livers(house, range(10))[0]
    other = house.image("P-new")
    house.mask(other, "Liver")
    label = house.correct(other, "Lesion")
    assert chosen(house, other) == label
    assert chosen(house, volume) != label


def test_a_patient_without_a_label_before_gets_a_side_for_good(house: Corrected) -> None:
    livers(house, range(10))
    before = {row.patient: row.split for row in house.build(SEGMENT).dataset.rows}
    new = house.image("P-new")
    house.correct(new, "Liver", "Lesion")
    sides = {row.patient: row.split for row in house.build(SEGMENT).dataset.rows}
    assert sides.keys() - before.keys() == {"P-new"}
    assert {patient: sides[patient] for patient in before} == before


def test_a_correction_of_another_kind_of_object_is_learnt_from(house: Corrected) -> None:
    """The truth was imported as NIfTI, and the correction came from a viewer."""
    text = SEGMENT.replace("SEG", "NIfTI")
    volumes = [house.image(f"P-{n}") for n in range(10)]
    for volume in volumes:
        house.mask(volume, "Liver", "Lesion", source="NIfTI")
    label = house.correct(volumes[0], "Liver", "Lesion")
    assert chosen(house, volumes[0], text) == label
    # Another SEG there, which corrects nothing, is not what the recipe asks for.
    house.mask(volumes[1], "Liver", "Lesion")
    assert house.build(text).reasons == {"label-corrected": 1}


def test_a_correction_of_another_model_is_a_label_like_any_other(house: Corrected) -> None:
    house.catalog.add(PackageRow(package="q", name="spleen", dataset="d", weights_sha256=""))
    volume, *_ = livers(house, range(10))
    house.correct(volume, "Liver", "Lesion", package="q")
    newest = house.mask(volume, "Liver", "Lesion")
    assert chosen(house, volume) == newest


def test_a_viewers_numbers_and_notes_make_no_classes(house: Corrected) -> None:
    volumes = livers(house, range(10))
    house.build(SEGMENT)  # everybody has a side
    for volume in volumes:
        house.correct(volume, "Note", "Lesion", "Liver")
    assert house.build(SEGMENT).dataset.classes == ("Liver", "Lesion")


def test_a_class_is_known_by_its_own_name_too(house: Corrected) -> None:
    """A recipe whose classes have patterns sends its own names out, and gets them back."""
    text = SEGMENT + 'labels.classes = [{ name = "organ", match = "Liver" }, { name = "tumour", match = "Lesion" }]'
    volume, *_ = livers(house, range(10))
    label = house.correct(volume, "organ", "tumour")
    assert chosen(house, volume, text) == label
