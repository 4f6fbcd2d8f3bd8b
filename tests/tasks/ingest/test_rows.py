"""What ingest keeps of where and how an image was made."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from models.pseudonyms import Pseudonymizer
from tasks.ingest.rows import circumstances
from tasks.stores.tables import VolumeRow
from tests.tasks.ingest.synthetic import Room, stack, write

KEYS = Pseudonymizer(bytes(range(32)))


def header(**elements: object) -> Dataset:
    dataset = Dataset()
    for name, value in {"Modality": "CT", **elements}.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"ContrastBolusAgent": "Iomeron 350"}, "with"),
        ({"ContrastBolusAgent": "APPLIED"}, "with"),
        ({"ContrastBolusAgentSequence": [Dataset()]}, "with"),
        ({"ContrastBolusAgent": " none "}, "without"),
        ({"ContrastBolusAgent": ""}, "without"),
        ({"ContrastBolusAgent": None, "ContrastBolusAgentSequence": []}, "without"),
        ({}, "without"),
        ({"Modality": "MR", "ContrastBolusAgent": "Gadovist"}, "with"),
        ({"Modality": "DX", "ContrastBolusAgent": "Gadovist"}, None),
        ({"Modality": "PT"}, None),
    ],
)
def test_contrast_is_told_of_images_that_would_say_so(elements: dict[str, object], told: str | None) -> None:
    assert circumstances(header(**elements), KEYS).get("contrast") == told


def test_a_site_is_a_pseudonym_whatever_the_spelling() -> None:
    site = circumstances(header(InstitutionName="St. Hildegard Hospital"), KEYS)["site"]
    assert site == KEYS.site("ST. HILDEGARD  HOSPITAL ")
    assert site.startswith("site-")
    assert len(site) == 11
    assert site != KEYS.site("St. Hildegard Clinic")
    assert site != Pseudonymizer(bytes(32)).site("St. Hildegard Hospital")
    assert "site" not in circumstances(header(InstitutionName=" "), KEYS)


def test_what_cannot_be_read_is_not_recorded() -> None:
    dataset = header()
    for name in ("InstitutionName", "ContrastBolusAgentSequence"):
        tag = Tag(name)
        dataset._dict[tag] = RawDataElement(tag, "SQ", 4, b"\xff\xfe\x00\xe0", 0, False, True)
    assert circumstances(dataset, KEYS) == {"contrast": "without"}


def test_the_catalog_has_them_and_not_the_hospitals_name(tmp_path: Path) -> None:
    room, name = Room.at(tmp_path / "home"), "Klinikum Xylotypia"
    slices = stack(InstitutionName=name, InstitutionAddress=name, ContrastBolusAgent=name)
    room.ingest(write(tmp_path / "in", slices))
    (row,) = room.catalog.find(VolumeRow)
    kept = row.characteristics
    assert kept is not None
    assert kept["contrast"] == "with"
    assert kept["site"].startswith("site-")
    room.catalog.close()
    files = [path for path in room.home.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert b"Xylotypia" not in path.read_bytes(), path.name
