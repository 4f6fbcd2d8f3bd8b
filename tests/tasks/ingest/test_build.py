"""From a recipe and the catalog to a dataset: who is in it, on which side, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from models.errors import NothingToDoError, RecipeError, SchemaError
from models.pseudonyms import Pseudonymizer
from models.recipe import Recipe
from tasks.ingest.build import DatasetBuild, build_dataset
from tasks.ingest.splits import import_splits
from tasks.stores.catalog import Catalog
from tasks.stores.datasets import DatasetStore
from tasks.stores.tables import DatasetRecord, LabelRow, SeriesRow, SplitRow, StudyRow, VolumeRow

START = datetime(2026, 1, 1, tzinfo=UTC)


class House:
    """A catalog that can be filled case by case."""

    def __init__(self, folder: Path) -> None:
        self.catalog = Catalog(f"sqlite:///{folder / 'catalog.db'}")
        self.store = DatasetStore(str(folder / "datasets"))
        self.pseudonymizer = Pseudonymizer(b"s" * 32)
        self._count = 0

    def image(self, patient: str, **changes: object) -> VolumeRow:
        self._count += 1
        key = f"{self._count:032x}"
        series_uid = str(changes.pop("series_uid", f"2.25.{self._count}"))
        study = str(changes.pop("study", f"2.25.1000{self._count}"))
        usual = {"modality": "CT", "unit": "HU", "frame_of_reference": "2.25.7", "description": "Abdomen"}
        sizes = {"shape_z": 30, "shape_y": 64, "shape_x": 64, "spacing_z": 2.5, "spacing_y": 0.8, "spacing_x": 0.8}
        row = VolumeRow(
            volume=key,
            series=key,
            series_uid=series_uid,
            study=study,
            patient=patient,
            geometry={},
            created_at=START + timedelta(seconds=self._count),
            **{**usual, **sizes, **changes},  # type: ignore[arg-type]
        )
        self.catalog.add(
            StudyRow(study=study, patient=patient),
            SeriesRow(series=key, series_uid=series_uid, study=study, patient=patient, modality=row.modality),
            row,
        )
        return row

    def mask(self, volume: VolumeRow, *names: str, source: str = "SEG", voxels: int = 9, code: str = "") -> str:
        self._count += 1
        segments = [
            {"number": n, "name": name, "code": code or None, "voxels": voxels} for n, name in enumerate(names, start=1)
        ]
        return self._label(
            patient=volume.patient, study=volume.study, volume=volume.volume, source=source, segments=segments
        )

    def value(self, value: str, *, name: str = "set", **subject: str) -> str:
        self._count += 1
        return self._label(source="CSV", value=value, name=name, **subject)

    def _label(self, **values: object) -> str:
        key = f"{self._count:032x}"
        row = LabelRow(label=key, created_at=START + timedelta(seconds=self._count), **values)  # type: ignore[arg-type]
        self.catalog.add(row)
        return key

    def build(self, text: str) -> DatasetBuild:
        return build_dataset(Recipe.parse(text), self.catalog, self.store, self.pseudonymizer)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


SEGMENT = """
name = "liver"
kind = "segmentation"
images.modality = "CT"
labels.source = "SEG"
"""
CLASSIFY = """
name = "chest"
kind = "classification"
images.modality = ["CR", "DX"]
labels.source = "CSV"
"""


def livers(house: House, numbers: Iterable[int]) -> list[VolumeRow]:
    volumes = [house.image(f"P-{n}") for n in numbers]
    for volume in volumes:
        house.mask(volume, "Liver", "Lesion")
    return volumes


def test_a_dataset_of_masks(house: House) -> None:
    livers(house, range(20))
    built = house.build(SEGMENT)
    assert built.dataset.classes == ("Liver", "Lesion")
    assert built.dataset.counts() == {"train": (14, 14), "validation": (2, 2), "test": (4, 4)}
    assert {row.target for row in built.dataset.rows} == {-1}
    assert house.store.read(built.ref.key) == built.dataset
    record = house.catalog.get(DatasetRecord, built.ref.key)
    assert record is not None
    assert (record.name, record.kind, record.counts["test"]) == ("liver", "segmentation", [4, 4])
    assert not built.existed
    assert house.catalog.count(SplitRow, SplitRow.origin == "drawn") == 20


def test_the_same_catalog_gives_the_same_dataset(house: House, tmp_path: Path) -> None:
    livers(house, range(12))
    first, second = house.build(SEGMENT), house.build(SEGMENT)
    assert (second.ref, second.existed) == (first.ref, True)
    (tmp_path / "other").mkdir()
    other = House(tmp_path / "other")
    livers(other, range(12))
    assert other.build(SEGMENT).ref == first.ref


def test_nobody_changes_sides_over_many_nights(house: House) -> None:
    sides: dict[str, str] = {}
    for night in range(12):
        livers(house, range(night * 5, night * 5 + 5))
        # A patient who was seen before comes again.
        house.mask(house.image("P-0"), "Liver", "Lesion")
        rows = house.build(SEGMENT).dataset.rows
        for row in rows:
            assert sides.setdefault(row.patient, row.split) == row.split
        assert len(rows) == (night + 1) * 6
    assert Counter(sides.values()) == {"train": 42, "validation": 6, "test": 12}


def test_another_recipe_meets_patients_where_they_are(house: House) -> None:
    volumes = livers(house, range(20))
    before = {row.patient: row.split for row in house.build(SEGMENT).dataset.rows}
    for volume in volumes:
        house.mask(volume, "GTV", source="RTSTRUCT")
    text = SEGMENT.replace("SEG", "RTSTRUCT") + "split = {train = 0.2, validation = 0.4, test = 0.4}"
    assert {row.patient: row.split for row in house.build(text).dataset.rows} == before


@pytest.mark.parametrize(
    ("change", "rule", "reason"),
    [
        ({"description": "Scout"}, 'images.description = "^abd"', "other-description"),
        ({"shape_z": 3}, "images.min_slices = 10", "too-few-slices"),
        ({"slice_thickness": 5.0}, "images.max_slice_thickness = 3.0", "slices-too-thick"),
        ({"spacing_z": 5.0}, "images.max_slice_thickness = 3.0", "slices-too-thick"),
        ({"channels": 3}, "", "colour"),
    ],
)
def test_the_images_rules(house: House, change: dict[str, object], rule: str, reason: str) -> None:
    livers(house, range(6))
    other = house.image("P-X", **change)
    house.mask(other, "Liver")
    house.mask(house.image("P-Y", modality="MR"), "Liver")
    built = house.build(f"{SEGMENT}{rule}")
    assert built.reasons == {reason: 1}
    assert built.exclusions[0].subject == other.volume
    assert len(built.dataset.rows) == 6


def test_classes_by_name_and_code_whatever_the_case(house: House) -> None:
    livers(house, range(6))
    by_code = house.image("P-C")
    house.mask(by_code, "structure 1", code="SCT:52988006")
    house.image("P-D")
    other = house.image("P-E")
    house.mask(other, "Spleen")
    absent = house.image("P-F")
    house.mask(absent, "Liver", voxels=0)
    text = SEGMENT + 'labels.classes = [{name = "tumour", match = ["les*", "sct:52988006"]}, {name = "liver"}]'
    built = house.build(text)
    assert built.dataset.classes == ("tumour", "liver")
    assert built.reasons == {"no-label": 1, "no-matching-class": 1}
    assert {by_code.volume, absent.volume} <= {row.volume for row in built.dataset.rows}


def test_the_newest_label_counts_unless_structures_are_spread(house: House) -> None:
    first, second = livers(house, range(2))
    corrected = house.mask(first, "liver")
    house.mask(second, "Spleen")
    livers(house, range(10, 16))
    built = house.build(SEGMENT + 'labels.classes = ["liver", "lesion", "spleen"]')
    assert {row.label for row in built.dataset.rows if row.volume == first.volume} == {corrected}
    assert built.reasons == {"label-in-parts": 1}
    assert built.exclusions[0].subject == second.volume


def test_a_series_received_again_replaces_the_first_reception_once_it_has_a_label(house: House) -> None:
    livers(house, range(6))
    old = house.image("P-A", series_uid="2.25.555")
    label = house.mask(old, "Liver")
    new = house.image("P-A", series_uid="2.25.555")
    built = house.build(SEGMENT)
    assert {row.label for row in built.dataset.rows if row.patient == "P-A"} == {label}
    house.mask(new, "Liver")
    built = house.build(SEGMENT)
    assert {row.volume for row in built.dataset.rows if row.patient == "P-A"} == {new.volume}
    assert built.reasons == {"superseded": 1}


def test_spellings_of_one_structure_are_one_class(house: House) -> None:
    for n in range(10):
        house.mask(house.image(f"P-{n}"), "Liver" if n % 2 else "liver")
    assert len(house.build(SEGMENT).dataset.classes) == 1


# -- classification ----------------------------------------------------------------------------------------------


def x_rays(house: House, values: dict[str, str]) -> None:
    for patient, value in values.items():
        house.image(patient, modality="CR", shape_z=1)
        house.value(value, patient=patient)


def test_classes_of_a_table_are_sorted_by_number_and_kept_in_proportion(house: House) -> None:
    x_rays(house, {f"P-{n}": "10" if n % 4 == 0 else "9" for n in range(40)})
    built = house.build(CLASSIFY)
    assert built.dataset.classes == ("9", "10")
    placed = Counter((row.split, row.target) for row in built.dataset.rows)
    assert placed == {
        ("train", 0): 21,
        ("train", 1): 7,
        ("validation", 0): 3,
        ("validation", 1): 1,
        ("test", 0): 6,
        ("test", 1): 2,
    }


def test_the_narrowest_label_wins(house: House) -> None:
    x_rays(house, {f"P-{n}": "no" for n in range(10)})
    first = house.image("P-A", modality="DX", study="2.25.77", series_uid="2.25.771")
    second = house.image("P-A", modality="DX", study="2.25.77", series_uid="2.25.772")
    third = house.image("P-A", modality="DX", study="2.25.78", series_uid="2.25.781")
    series = house.value("yes", patient="P-A", series_uid="2.25.771")
    patient = house.value("no", patient="P-A")
    study = house.value("no", patient="P-A", study="2.25.77")
    rows = {row.volume: row.label for row in house.build(CLASSIFY + 'labels.classes = ["no", "yes"]').dataset.rows}
    assert (rows[first.volume], rows[second.volume], rows[third.volume]) == (series, study, patient)


def test_a_class_that_no_training_patient_has_is_left_out(house: House) -> None:
    x_rays(house, {f"P-{n}": "no" for n in range(30)})
    house.catalog.add(SplitRow(patient="P-R", split="test", stratum="", origin="imported"))
    x_rays(house, {"P-R": "rare"})
    built = house.build(CLASSIFY)
    assert built.dataset.classes == ("no",)
    assert built.reasons == {"class-not-in-training": 1}


def test_several_label_sets_need_a_name(house: House) -> None:
    x_rays(house, {f"P-{n}": "no" for n in range(6)})
    house.value("x", patient="P-1", name="other")
    with pytest.raises(RecipeError, match="other, set"):
        house.build(CLASSIFY)
    assert len(house.build(CLASSIFY + 'labels.name = "set"').dataset.rows) == 6


# -- nothing to do -----------------------------------------------------------------------------------------------


def test_nothing_to_do_says_why_and_places_nobody(house: House) -> None:
    with pytest.raises(NothingToDoError, match="no CT volume"):
        house.build(SEGMENT)
    house.image("P-1")
    house.mask(house.image("P-2"), "Liver")
    with pytest.raises(NothingToDoError, match="1 no-label") as told:
        house.build(SEGMENT + 'labels.classes = ["spleen"]')
    assert "1 no-matching-class" in str(told.value)
    assert house.catalog.count(SplitRow) == house.catalog.count(DatasetRecord) == 0
    with pytest.raises(RecipeError):
        house.build(SEGMENT + 'images.description = "("')


def test_nothing_is_committed_where_the_manifest_cannot_be_published(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    livers(house, range(6))

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(house.store.place, "publish", fail)
    with pytest.raises(OSError, match="no space"):
        house.build(SEGMENT)
    assert house.catalog.count(SplitRow) == house.catalog.count(DatasetRecord) == 0


# -- a given split -----------------------------------------------------------------------------------------------


def give(house: House, tmp_path: Path, text: str) -> str:
    path = tmp_path / "split.csv"
    path.write_text(text)
    report = import_splits(path, catalog=house.catalog, pseudonymizer=house.pseudonymizer)
    return str(report)


def test_a_given_split_is_kept(house: House, tmp_path: Path) -> None:
    p = house.pseudonymizer
    names = [f"A{n}" for n in range(10)]
    for name in names:
        house.mask(house.image(p.patient(name)), "Liver")
    text = "PatientID,split\n" + "".join(f"{name},{'val' if n < 5 else 'Train'}\n" for n, name in enumerate(names))
    assert give(house, tmp_path, text) == "10 new, 0 already there"
    assert give(house, tmp_path, text) == "0 new, 10 already there"
    assert house.build(SEGMENT).dataset.counts() == {"train": (5, 5), "validation": (5, 5), "test": (0, 0)}
    moved = give(house, tmp_path, "PatientID,split\nA0,test\nB0,test\n")
    assert moved == "1 new, 0 already there, 1 not in the catalog yet, 1 refused (already-placed)"
    assert house.catalog.get(SplitRow, p.patient("A0")).split == "validation"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["PatientID,split\nA,tomorrow\n", "PatientID,split\nA,test\nA,train\n"])
def test_a_split_that_is_none(house: House, tmp_path: Path, text: str) -> None:
    with pytest.raises(SchemaError, match="P-"):
        give(house, tmp_path, text)
    assert house.catalog.count(SplitRow) == 0


class TestSeveral:
    TEXT = CLASSIFY + "labels.several = true\n"

    def shown(self, house: House, text: str) -> dict[str, tuple[int, ...]]:
        return {row.patient: row.classes for row in house.build(text).dataset.rows}

    def test_words_are_classes_and_what_is_not_said_is_not_there(self, house: House) -> None:
        values = ["nodule|effusion", "Effusion", "No Finding", " nodule | none "]
        x_rays(house, {f"P-{n}": values[n % 4] for n in range(40)})
        built = house.build(self.TEXT)
        assert built.dataset.classes == ("Effusion", "nodule")
        shown = {row.patient: row.classes for row in built.dataset.rows}
        assert [shown[f"P-{n}"] for n in range(4)] == [(1, 1), (1, 0), (0, 0), (0, 1)]
        assert {row.target for row in built.dataset.rows} == {-1}
        assert built.reasons == {}
        again = house.store.read(built.ref.key)
        assert again.rows == built.dataset.rows

    def test_the_recipes_classes_leave_others_aside(self, house: House) -> None:
        x_rays(house, {f"P-{n}": "hernia|pleural effusion" if n % 2 else "hernia" for n in range(20)})
        shown = self.shown(house, self.TEXT + 'labels.classes = [{name = "effusion", match = "*effusion"}]\n')
        assert (shown["P-1"], shown["P-2"]) == ((1,), (0,))

    def test_words_that_mean_nothing_there_may_be_given(self, house: House) -> None:
        x_rays(house, {f"P-{n}": "nodule" if n % 2 else "clear" for n in range(20)})
        assert house.build(self.TEXT).dataset.classes == ("clear", "nodule")
        assert house.build(self.TEXT + 'labels.none = "clear"\n').dataset.classes == ("nodule",)

    def test_the_rarest_class_keeps_its_proportion(self, house: House) -> None:
        x_rays(house, {f"P-{n}": "mass|effusion" if n % 4 == 0 else "effusion" for n in range(40)})
        rows = house.build(self.TEXT).dataset.rows
        assert sum(row.classes[1] for row in rows if row.split == "test") == 2
