"""Clinical tables: pseudonyms alone, corrected value by value, and nothing that tells who somebody is."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.clinical import as_number, same_value
from models.errors import RecipeError, SchemaError
from models.pseudonyms import Pseudonymizer
from models.recipe import Clinical
from tasks.ingest.clinical import import_clinical
from tasks.ingest.labels.table import ImportReport
from tasks.stores.catalog import Catalog
from tasks.stores.clinical import clinical_values
from tasks.stores.tables import ClinicalRow, SeriesRow, StudyRow, VolumeRow

SECRET = Pseudonymizer(b"s" * 32)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")


def image(catalog: Catalog, patient: str, study: str, **more: object) -> VolumeRow:
    known = {"study": SECRET.uid(study), "patient": SECRET.patient(patient)}
    sizes = {f"{what}_{axis}": 1 for what in ("shape", "spacing") for axis in "zyx"}
    row = VolumeRow(  # type: ignore[call-arg]
        volume=study,
        series=study,
        series_uid=study,
        modality="CR",
        unit="arbitrary",
        frame_of_reference=None,
        geometry={},
        manufacturer="Acme",
        **known,
        **sizes,
        **more,
    )
    catalog.add(StudyRow(**known), SeriesRow(series=study, series_uid=study, modality="CR", **known), row)
    return row


def table(folder: Path, text: str, catalog: Catalog, **more: object) -> ImportReport:
    path = folder / "table.csv"
    path.write_text(text)
    return import_clinical(path, name="t", catalog=catalog, pseudonymizer=SECRET, **more)  # type: ignore[arg-type]


def values(catalog: Catalog, asked: dict[str, object], *rows: VolumeRow) -> list[tuple[str, ...]]:
    clinical = Clinical.model_validate(asked)
    with catalog.reading() as session:
        found = clinical_values(session, clinical, rows)
    return [found[row.volume] for row in rows]


ASKED = {"name": "t", "variables": [{"name": "Age"}, {"name": "grade", "kind": "category"}]}


def test_a_studys_value_goes_before_the_patients(tmp_path: Path, catalog: Catalog) -> None:
    one, two = image(catalog, "MRN-1", "1.2.1"), image(catalog, "MRN-1", "1.2.2")
    other = image(catalog, "MRN-2", "1.2.3")
    text = "PatientID;StudyInstanceUID;AGE;Grade\nMRN-1;;61;II\nMRN-1;1.2.2;62;\n;1.2.3;40;III\nMRN-9;;1;I\n"
    assert str(table(tmp_path, text, catalog)) == "4 new, 0 already there, 1 not in the catalog yet"
    assert values(catalog, ASKED, one, two, other) == [("61", "II"), ("62", "II"), ("40", "III")]
    assert values(catalog, {"variables": [{"name": "ki67"}]}, one) == [("",)]


def test_a_later_table_corrects_value_by_value(tmp_path: Path, catalog: Catalog) -> None:
    row = image(catalog, "MRN-1", "1.2.1")
    table(tmp_path, "PatientID,age,grade\nMRN-1,61,II\n", catalog)
    assert table(tmp_path, "PatientID,age,grade\nMRN-1,61,\n", catalog).existing == 1
    assert table(tmp_path, "PatientID,grade\nMRN-1,III\n", catalog).changed == 1
    assert values(catalog, ASKED, row) == [("61", "III")]
    with pytest.raises(SchemaError, match="two values of 'age'"):
        table(tmp_path, "PatientID,age\nMRN-1,61\nMRN-1,62\n", catalog)
    assert values(catalog, ASKED, row) == [("61", "III")]


def test_what_tells_an_identity_stays_out(tmp_path: Path, catalog: Catalog) -> None:
    header = "PatientID,age,PatientName,first_name,seen,note,record,sex,AccessionNumber,marker\n"
    lines = [
        f"MRN-{n},{20 + n},Gruber^{n},Anna{n},2024-02-{1 + n % 28:02d},{'w' * 70},{4711000 + n},F,A{n},{n / 7:.3f}\n"
        for n in range(30)
    ]
    report = table(tmp_path, header + "".join(lines), catalog)
    out = {refusal.what.split("'")[1] for refusal in report.refused}
    assert out == {"patientname", "first_name", "seen", "note", "record", "accessionnumber"}
    rows = catalog.find(ClinicalRow)
    assert {tuple(row.content) for row in rows} == {("age", "sex", "marker")}
    assert not any("MRN" in str(value) for row in rows for value in (row.patient, row.content, row.clinical))


def test_columns_may_be_named_but_dates_stay_out_even_so(tmp_path: Path, catalog: Catalog) -> None:
    text = "PatientID,age,tumour_name,seen\nMRN-1,61,liposarcoma,20240229\n"
    report = table(tmp_path, text, catalog, columns=["tumour_name", "seen"])
    assert [refusal.reason for refusal in report.refused] == ["identifying-column"]
    assert [row.content for row in catalog.find(ClinicalRow)] == [{"tumour_name": "liposarcoma"}]
    with pytest.raises(SchemaError, match="needs one column 'weight'"):
        table(tmp_path, text, catalog, columns=["weight"])
    with pytest.raises(SchemaError, match="PatientID or StudyInstanceUID"):
        table(tmp_path, "age\n61\n", catalog)


def test_rows_that_name_nobody_are_refused_alone(tmp_path: Path, catalog: Catalog) -> None:
    image(catalog, "MRN-1", "1.2.1")
    text = "PatientID,StudyInstanceUID,age\n,,3\nMRN-2,1.2.1,4\n,one.two,5\nMRN-1,,6\n"
    report = table(tmp_path, text, catalog)
    assert [(r.line, r.reason) for r in report.refused] == [
        (2, "no-patient-id"),
        (3, "patient-mismatch"),
        (4, "bad-uid"),
    ]
    assert report.new == 1


def test_headers_tell_what_the_catalog_kept_of_them(catalog: Catalog) -> None:
    row = image(catalog, "MRN-1", "1.2.1", characteristics={"PatientAge": "061Y", "PatientSex": "F"})
    names = ("PatientAge", "PatientSex", "PatientWeight", "Manufacturer", "SliceThickness")
    asked = {"source": "DICOM", "variables": [{"name": name} for name in names]}
    assert values(catalog, asked, row) == [("061Y", "F", "", "Acme", "")]


def test_a_table_that_is_not_there_is_told(tmp_path: Path, catalog: Catalog) -> None:
    row = image(catalog, "MRN-1", "1.2.1")
    with pytest.raises(RecipeError, match="none was imported"):
        values(catalog, {"variables": [{"name": "age"}]}, row)
    table(tmp_path, "PatientID,age\nMRN-1,61\n", catalog)
    with pytest.raises(RecipeError, match="no clinical table is called 'other'"):
        values(catalog, {"name": "other", "variables": [{"name": "age"}]}, row)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("061Y", 61),
        ("018M", 1.5),
        (" 7.5 ", 7.5),
        ("-1e2", -100),
        ("", None),
        ("n/a", None),
        ("nan", None),
        ("6Y1", None),
    ],
)
def test_numbers_in_text(text: str, number: float | None) -> None:
    assert as_number(text) == (None if number is None else pytest.approx(number))


def test_categories_are_one_where_they_mean_the_same() -> None:
    assert same_value(" F", "f")
    assert same_value("1", "1.0")
    assert not same_value("II", "III")
