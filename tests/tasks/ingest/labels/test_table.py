"""Tables of classes and of masks: identifiers become pseudonyms, errors name the rows, nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import LabelError, NotFoundError, SchemaError
from models.geometry import Geometry
from tasks.ingest.labels.table import ImportReport, import_csv, import_nifti, import_nifti_csv, parse_names
from tasks.stores.tables import LabelRow, QuarantineRow, SeriesRow, StudyRow, VolumeRow
from tests.tasks.ingest.labels.conftest import Home
from tests.tasks.ingest.labels.test_nifti import write

GRID = Geometry.from_spacing((4, 6, 8), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def know(home: Home, patient: str, study: str, series: str, geometry: Geometry = GRID) -> str:
    """Put an image into the catalog by its original identifiers; returns the volume's key."""
    p = home.pseudonymizer
    key = f"{home.catalog.count(VolumeRow):032x}"
    z, y, x = geometry.spacing
    home.catalog.add(
        StudyRow(study=p.uid(study), patient=p.patient(patient)),
        SeriesRow(series=key, series_uid=p.uid(series), study=p.uid(study), patient=p.patient(patient), modality="MR"),
        VolumeRow(
            volume=key,
            series=key,
            series_uid=p.uid(series),
            study=p.uid(study),
            patient=p.patient(patient),
            modality="MR",
            unit="arbitrary",
            frame_of_reference=None,
            shape_z=geometry.shape[0],
            shape_y=geometry.shape[1],
            shape_x=geometry.shape[2],
            spacing_z=z,
            spacing_y=y,
            spacing_x=x,
            geometry=geometry.to_json(),
        ),
    )
    return key


def load(home: Home, tmp_path: Path, text: str, *, encoding: str = "utf-8", **options: Any) -> ImportReport:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding=encoding)
    return import_csv(path, name="pneumonia", catalog=home.catalog, pseudonymizer=home.pseudonymizer, **options)


def counts(report: ImportReport) -> tuple[int, int, int, int, list[str]]:
    return report.new, report.existing, report.changed, report.unknown, [r.reason for r in report.refused]


def test_rows_become_labels_of_series_studies_and_patients(home: Home, tmp_path: Path) -> None:
    know(home, "A", "1.2", "1.2.1")
    text = "PatientID,StudyInstanceUID,SeriesInstanceUID,label\nA,1.2,1.2.1,yes\nA,1.2,,no\nB,,,no\n"
    assert counts(load(home, tmp_path, text)) == (3, 0, 0, 1, [])
    p = home.pseudonymizer
    rows = home.catalog.find(LabelRow, order_by=LabelRow.created_at)
    assert {(r.patient, r.study, r.series_uid, r.value) for r in rows} == {
        (p.patient("A"), None, p.uid("1.2.1"), "yes"),
        (p.patient("A"), p.uid("1.2"), None, "no"),
        (p.patient("B"), None, None, "no"),
    }
    assert {(r.source, r.name) for r in rows} == {("CSV", "pneumonia")}
    assert counts(load(home, tmp_path, text)) == (0, 3, 0, 1, [])
    assert home.catalog.count(LabelRow) == 3


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_excel_and_other_habits(home: Home, tmp_path: Path, delimiter: str) -> None:
    text = "patientid,LABEL\r\n A ,1\r\n\r\nB,0\r\n".replace(",", delimiter)
    assert counts(load(home, tmp_path, text, encoding="utf-8-sig")) == (2, 0, 0, 2, [])


def test_pseudonyms_that_the_catalog_knows_are_taken_as_such(home: Home, tmp_path: Path) -> None:
    know(home, "A", "1.2", "1.2.1")
    p = home.pseudonymizer
    load(home, tmp_path, "PatientID,SeriesInstanceUID,label\nA,1.2.1,yes\n")
    text = f"PatientID,SeriesInstanceUID,label\n{p.patient('A')},{p.uid('1.2.1')},yes\n"
    assert counts(load(home, tmp_path, text)) == (0, 1, 0, 0, [])


def test_a_later_import_corrects_and_may_take_it_back(home: Home, tmp_path: Path) -> None:
    def newest() -> str | None:
        return home.catalog.find(LabelRow, order_by=LabelRow.created_at.desc(), limit=1)[0].value

    for value, expected in (("yes", (1, 0, 0)), ("no", (0, 0, 1)), ("yes", (0, 0, 1)), ("yes", (0, 1, 0))):
        report = load(home, tmp_path, f"PatientID,label\nA,{value}\n")
        assert (report.new, report.existing, report.changed) == expected
        assert newest() == value


def test_two_values_for_one_subject_are_refused_by_pseudonym(home: Home, tmp_path: Path) -> None:
    rows = "".join(f"PAT-{n},{value}\n" for n in range(8) for value in "01")
    with pytest.raises(SchemaError) as told:
        load(home, tmp_path, "PatientID,label\n" + rows)
    assert told.value.reason == "conflicting-labels"
    assert str(told.value).count("P-") == 5
    assert "PAT-" not in str(told.value)
    assert home.catalog.count(LabelRow) == 0


def test_rows_that_cannot_be_used_are_counted_by_line_and_reason(home: Home, tmp_path: Path) -> None:
    know(home, "A", "1.2", "1.2.1")
    text = "PatientID,SeriesInstanceUID,label\nA,1.2.1,\n,1.2.1,yes\nA,not a uid,yes\nB,1.2.1,yes\nA,1.2.1,yes\nC,9.9\n"
    report = load(home, tmp_path, text)
    assert counts(report) == (1, 0, 0, 0, ["blank", "no-patient-id", "bad-uid", "patient-mismatch", "blank"])
    assert [r.line for r in report.refused] == [2, 3, 4, 5, 7]
    assert str(report).startswith("1 new, 0 already there, 1 refused (bad-uid), 2 refused (blank)")


@pytest.mark.parametrize(
    "text", ["", "Mueller,1\nSchmidt,2\n", "PatientID,other\nA,1\n", "PatientID,label,label\nA,1,2\n"]
)
def test_a_table_without_its_columns(home: Home, tmp_path: Path, text: str) -> None:
    with pytest.raises(SchemaError) as told:
        load(home, tmp_path, text)
    assert "Mueller" not in str(told.value)


def test_values_that_are_too_long_fail_the_schema(home: Home, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="column 'value'"):
        load(home, tmp_path, f"PatientID,label\nA,{'x' * 65}\n")


def test_a_file_that_is_not_there_or_no_text(home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        import_csv(tmp_path / "no.csv", name="x", catalog=home.catalog, pseudonymizer=home.pseudonymizer)
    (tmp_path / "bad.csv").write_bytes(b"PatientID,label\nM\xfcller,1\n")
    with pytest.raises(SchemaError):
        import_csv(tmp_path / "bad.csv", name="x", catalog=home.catalog, pseudonymizer=home.pseudonymizer)


def test_the_name_of_the_column_can_be_given(home: Home, tmp_path: Path) -> None:
    assert load(home, tmp_path, "PatientID,label,Grade\nA,x,2\n", column="grade").new == 1
    assert home.catalog.find(LabelRow)[0].value == "2"


# -- masks -------------------------------------------------------------------------------------------------------


def masks(home: Home, path: Path, names: dict[int, str] | None = None) -> ImportReport:
    return import_nifti_csv(
        path, catalog=home.catalog, volumes=home.volumes, pseudonymizer=home.pseudonymizer, names=names
    )


def test_a_nifti_mask_of_a_series(home: Home, tmp_path: Path) -> None:
    volume = know(home, "A", "1.2", "1.2.1")
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:3, 2:4, 3:6] = 2
    path = write(tmp_path / "mask.nii.gz", labels, GRID)

    def add(series: str) -> str:
        return import_nifti(
            path,
            series=series,
            catalog=home.catalog,
            volumes=home.volumes,
            pseudonymizer=home.pseudonymizer,
            names={2: "posterior"},
        ).key

    key = add("1.2.1")
    assert add(home.pseudonymizer.uid("1.2.1")) == key
    row = home.catalog.get(LabelRow, key)
    assert row is not None
    assert (row.source, row.volume, row.notes) == ("NIfTI", volume, [])
    assert row.segments == [{"number": 2, "name": "posterior", "code": None, "voxels": 12}]
    np.testing.assert_array_equal(home.volumes.open_mask(key).read().occupancy[0] > 0, labels == 2)
    with pytest.raises(LabelError) as told:
        add("1.2.999")
    assert told.value.reason == "no-image"


def test_a_table_of_masks_beside_it(home: Home, tmp_path: Path) -> None:
    know(home, "A", "1.1", "1.1.1")
    know(home, "B", "2.1", "2.1.1")
    know(home, "B", "2.1", "2.1.2", GRID.resized((8, 12, 16)))
    (tmp_path / "masks").mkdir()
    labels = np.ones(GRID.shape, np.uint8)
    write(tmp_path / "masks" / "a.nii.gz", labels, GRID)
    far = Geometry.from_spacing(GRID.shape, GRID.spacing, (500.0, 0.0, 0.0))
    write(tmp_path / "masks" / "far.nii.gz", labels, far)
    table = tmp_path / "masks.csv"
    table.write_text(
        "PatientID,SeriesInstanceUID,mask\n"
        "A,,masks/a.nii.gz\n"  # the patient's only image
        "B,,masks/a.nii.gz\n"  # which of two?
        "B,2.1.2,masks/a.nii.gz\n"  # another grid
        "B,2.1.1,masks/far.nii.gz\n"
        "B,2.1.1,masks/gone.nii.gz\n"
        "C,,masks/a.nii.gz\n"
    )
    report = masks(home, table, {1: "liver"})
    assert counts(report) == (2, 0, 0, 1, ["ambiguous-image", "no-overlap", "source-gone", "no-image"])
    rows = {row.series_uid: row for row in home.catalog.find(LabelRow)}
    assert "another grid" in rows[home.pseudonymizer.uid("2.1.2")].notes[0]
    assert [row.reason for row in home.catalog.find(QuarantineRow)] == ["no-overlap"]
    report = masks(home, table, {1: "liver"})
    assert (report.new, report.existing) == (0, 2)


def test_names_of_values() -> None:
    assert parse_names("1=anterior, 2=posterior part") == {1: "anterior", 2: "posterior part"}
    for text in ("anterior", "0=background", "x=1", "1="):
        with pytest.raises(SchemaError):
            parse_names(text)


def test_several_rows_are_shown_together_where_that_is_said(home: Home, tmp_path: Path) -> None:
    text = "PatientID,label\nA,nodule\nA,effusion\nB,none\nC,mass|effusion\n"
    assert counts(load(home, tmp_path, text, several=True))[:3] == (3, 0, 0)
    p = home.pseudonymizer
    rows = {row.patient: row.value for row in home.catalog.find(LabelRow)}
    assert rows == {p.patient("A"): "effusion|nodule", p.patient("B"): "none", p.patient("C"): "effusion|mass"}
    turned = "PatientID,label\nA,effusion\nA,nodule\nC,effusion|mass\nB,none\n"
    assert counts(load(home, tmp_path, turned, several=True))[:3] == (0, 3, 0)


def test_each_of_several_words_may_be_as_long_as_one(home: Home, tmp_path: Path) -> None:
    words = "|".join(f"{'w' * 60}{n}" for n in range(5))
    assert counts(load(home, tmp_path, f"PatientID,label\nA,{words}\n"))[0] == 1
    with pytest.raises(SchemaError):
        load(home, tmp_path, f"PatientID,label\nA,short|{'w' * 65}\n")
