"""A table's class that is imported after a prediction corrects it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.correct.run import correct
from tasks.ingest.labels.table import import_csv
from tasks.stores.tables import CorrectionRow, VolumeRow
from tests.tasks.deliver.installation import Installation, stores_at, write_study

CLASSES = 'classes = [{ name = "normal", match = "0" }, { name = "nodule", match = "1" }]'


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(stores_at(tmp_path / "home"))
    yield made
    made.stores.catalog.close()


def said(installation: Installation, folder: Path, recipe: str = CLASSES, *, several: bool = False) -> VolumeRow:
    """An image of which the model says that it shows a nodule."""
    ((volume),) = installation.ingest(folder)
    key = installation.package(recipe=recipe, classes=("normal", "nodule"), kind="classification", several=several)
    installation.classify(key, volume, {"normal": 0.2, "nodule": 0.8})
    return volume


def labelled(installation: Installation, folder: Path, value: str, *, name: str = "chest", **more: str) -> None:
    """A CSV with one value for the study's patient, or more narrowly."""
    given = {"PatientID": str(_header(folder).PatientID), "label": value, **more}
    table = folder / f"{value}-{len(more)}.csv"
    table.write_text(",".join(given) + "\n" + ",".join(given.values()) + "\n", encoding="utf-8")
    stores = installation.stores
    import_csv(table, name=name, catalog=stores.catalog, pseudonymizer=stores.pseudonymizer)


def _header(folder: Path):  # type: ignore[no-untyped-def]
    import pydicom

    return pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)


def values(installation: Installation) -> list[float | None]:
    return [row.value for row in installation.stores.catalog.find(CorrectionRow, order_by=CorrectionRow.created_at)]


@pytest.mark.parametrize(("value", "right", "brier"), [("1", 1.0, 0.04), ("0", 0.0, 0.64), ("nodule", 1.0, 0.04)])
def test_right_or_wrong_and_by_how_much(
    installation: Installation, tmp_path: Path, value: str, right: float, brier: float
) -> None:
    write_study(tmp_path / "study")
    said(installation, tmp_path / "study")
    labelled(installation, tmp_path / "study", value)
    assert len(correct(installation.stores)) == 1
    (row,) = installation.stores.catalog.find(CorrectionRow)
    assert (row.how, row.value) == ("same-image", right)
    normal, nodule = row.scores
    assert [one["class_name"] for one in row.scores] == ["normal", "nodule"]
    assert nodule["brier"] == pytest.approx(brier)
    assert (nodule["truth"], nodule["predicted"], normal["predicted"]) == (right == 1, True, False)
    assert correct(installation.stores) == ()


def test_another_set_or_another_word_corrects_nothing(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    said(installation, tmp_path / "study")
    labelled(installation, tmp_path / "study", "1", name="elsewhere")
    labelled(installation, tmp_path / "study", "fracture")
    assert correct(installation.stores) == ()


def test_of_one_set_the_narrowest_counts(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    said(installation, tmp_path / "study")
    study = str(_header(tmp_path / "study").StudyInstanceUID)
    labelled(installation, tmp_path / "study", "0")
    labelled(installation, tmp_path / "study", "1", StudyInstanceUID=study)
    correct(installation.stores)
    assert values(installation) == [1.0]


def test_a_changed_mind_is_scored_again(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    said(installation, tmp_path / "study")
    for value in ("1", "0"):
        labelled(installation, tmp_path / "study", value)
        correct(installation.stores)
    assert values(installation) == [1.0, 0.0]


def test_an_image_that_shows_several(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    said(installation, tmp_path / "study", 'several = true\nclasses = ["normal", "nodule"]', several=True)
    labelled(installation, tmp_path / "study", "normal|nodule")
    correct(installation.stores)
    assert values(installation) == [0.0]
    (row,) = installation.stores.catalog.find(CorrectionRow)
    assert [one["truth"] for one in row.scores] == [True, True]
