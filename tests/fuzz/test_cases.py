"""What fuzzing has found, each mended and kept."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association

from models.errors import GeometryError, HeaderError, LabelError, RecipeError
from models.geometry import Geometry
from tasks.ingest.labels.polygons import fill
from tasks.ingest.labels.rtstruct import _plane_of_slices
from tasks.ingest.stack import _natural
from tasks.ingest.suv import _moment
from tasks.receive.streams import boundary_of
from tests.components import until
from tests.fuzz import dicomweb, geometry, headers, recipes, rtstruct, upper_layer
from tests.fuzz.dicom import Element, element, part10
from tests.tasks.receive.conftest import catalog as catalog
from tests.tasks.receive.conftest import pseudonymizer as pseudonymizer
from tests.tasks.receive.conftest import reception as reception
from tests.tasks.receive.conftest import spool as spool
from tests.tasks.receive.test_listener import Listen
from tests.tasks.receive.test_listener import listen as listen
from tests.tasks.receive.test_transport import connect, echoes, ended

MB = 1 << 20


@contextmanager
def within(megabytes: int) -> Iterator[None]:
    """Nothing inside takes more memory than that at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * MB


# -- headers -----------------------------------------------------------------------------------------------------


def test_a_delimiter_where_no_sequence_is() -> None:
    # pydicom keeps it as an element without a value, and stumbles over it as soon as it is looked at.
    elements = headers.image()
    elements.insert(10, Element(0xFFFEE0DD, "UN", b""))
    headers.target(part10(elements, ImplicitVRLittleEndian))


@pytest.mark.parametrize(
    "keyword", ["BurnedInAnnotation", "PatientName", "OperatorsName", "AccessionNumber", "TimezoneOffsetFromUTC"]
)
@pytest.mark.parametrize(("vr", "value"), [("SQ", b"1"), ("SV", b"1"), ("FD", b"123")])
def test_what_identities_depend_on_cannot_be_read(keyword: str, vr: str, value: bytes) -> None:
    elements = headers.image(replace(element(keyword, value), vr=vr, value=value))
    with pytest.raises(HeaderError) as found:
        headers.target(part10(elements))
    assert found.value.reason == "unreadable-header"


def test_a_class_told_in_numbers() -> None:
    odd = Dataset()
    odd.PatientID, odd.StudyInstanceUID = "1", "1.2"
    odd[0x00080016] = DataElement(0x00080016, "US", [11825, 11826])
    with pytest.raises(HeaderError, match="UID"):
        headers._DEIDENTIFIER.deidentify(odd)


def test_a_uid_that_holds_items() -> None:
    odd = Dataset()
    odd.PatientID, odd.StudyInstanceUID, odd.SOPClassUID = "1", "1.2", CTImageStorage
    odd[0x00200052] = DataElement(0x00200052, "SQ", [Dataset()])
    assert 0x00200052 not in headers._DEIDENTIFIER.deidentify(odd)


def test_several_transfer_syntaxes() -> None:
    odd = Dataset()
    odd.PatientID, odd.StudyInstanceUID, odd.SOPClassUID = "1", "1.2", CTImageStorage
    odd.file_meta = FileMetaDataset()
    odd.file_meta.TransferSyntaxUID = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    with pytest.raises(HeaderError, match="transfer syntax"):
        headers._DEIDENTIFIER.deidentify(odd)


def test_a_mark_in_superscript() -> None:
    assert sorted([("²",), ("10",), ("9",)], key=_natural) == [("9",), ("10",), ("²",)]


@pytest.mark.parametrize("name", [b"Person", b"P\xe9rson"])
def test_a_character_set_with_a_null_in_its_name(name: bytes) -> None:
    elements = [e for e in headers.image() if e.tag not in (0x00080005, 0x00100010, 0x00100020)]
    odd = [
        Element(0x00080005, "CS", b"IS\x1f\0\x08 "),
        Element(0x00100010, "PN", name),
        Element(0x00100020, "LO", name),
    ]
    data = part10(sorted([*elements, *odd], key=lambda e: e.tag), ExplicitVRLittleEndian)
    with pytest.raises(HeaderError):
        headers.target(data)


def test_a_dose_that_is_no_number_of_bytes() -> None:
    broken = [Element(0x00181074, "FD", b"123"), element("RadionuclideHalfLife", b"6586")]
    elements = {one.tag: one for one in headers.scintigram()}
    elements[0x00540016] = element("RadiopharmaceuticalInformationSequence", [broken])
    with pytest.raises(HeaderError, match="PET"):
        headers.target(part10([elements[tag] for tag in sorted(elements)]))


def test_a_fraction_of_a_second_in_superscript() -> None:
    assert _moment("202402291200.²") == datetime(2024, 2, 29, 12)


# -- geometry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e150, 1e103, 1e7])
def test_a_grid_beyond_all_measure(scale: float) -> None:
    # Its determinant was infinite or NaN, neither of which is less than the least that was allowed.
    with pytest.raises(GeometryError):
        Geometry.from_spacing((4, 6, 5), (2 * scale, scale, scale))
    geometry.target(geometry.packed(3, (4, 6, 5), geometry.stack(4, scale=scale)))


@pytest.mark.parametrize("spacing", [(1e-12, 1.0, 1.0), (1e-9, 1e6, 1e6), (5e-324, 1.0, 1.0)])
def test_a_spacing_that_no_way_leads_back_from(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(GeometryError, match="singular"):
        Geometry.from_spacing((4, 6, 5), spacing, (900.0, 900.0, 900.0))


def test_axes_that_nearly_coincide() -> None:
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0] + (0, 1e-7, 0)
    with pytest.raises(GeometryError, match="singular"):
        Geometry((2, 2, 2), tuple(map(tuple, affine)))


# -- structure sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", ["1e308", "-1e155", "1e15", "1e7"])
def test_contours_that_leave_this_world(far: str) -> None:
    points = rf"0\0\3\{far}\-{far.lstrip('-')}\3\4\4\3".encode()
    with pytest.raises(LabelError, match="finite"):
        rtstruct.target(rtstruct.written([points]))


def test_a_number_as_long_as_a_file() -> None:
    # As an array of texts each of the others took as much room: 2 GB here.
    points = b"\\".join([b"1" * 200_000, *[b"1"] * 10_000, b"1"])
    with within(50), pytest.raises(LabelError):
        rtstruct.target(rtstruct.written([points]))


def test_a_zigzag_across_all_rows() -> None:
    # 4,000 edges over 4,096 rows: 16 million crossings, of which six arrays were held at once.
    polygon = rtstruct.zigzag(4000, 4096)
    with within(200):
        filled = fill([polygon], (4096, 12))
    assert 0.2 < filled[:, :9].mean() < 0.8


def test_more_planes_than_slices() -> None:
    with within(10):
        _plane_of_slices(np.linspace(0, 400, 20_000), 400, 1.0)


def test_slices_find_the_plane_that_they_found_before() -> None:
    chance = np.random.default_rng(5)
    for _ in range(200):
        planes, slices = int(chance.integers(1, 12)), int(chance.integers(1, 12))
        heights = np.sort(np.round(chance.uniform(-2, slices + 2, planes) * 4) / 4)
        heights = heights[np.concatenate([[True], np.diff(heights) > 0.05])]
        found = _plane_of_slices(heights, slices, 1.0)
        np.testing.assert_array_equal(found, _looking_at_all(heights, slices))


def _looking_at_all(heights: np.ndarray, slices: int) -> np.ndarray:
    gap = float(np.diff(heights).min()) if len(heights) > 1 else 1.0
    half = max(1.0, gap if gap <= 10 else 1.0) / 2
    distance = np.round(np.arange(slices)[:, None] - heights[None], 4)
    reached = (distance > -half + 0.02) & (distance <= half + 0.02)
    cost = np.where(reached, np.abs(distance) - 1e-6 * (distance > 0), np.inf)
    return np.where(reached.any(axis=1), cost.argmin(axis=1), -1)


# -- recipes -----------------------------------------------------------------------------------------------------

SHORT = 'name = "a"\nkind = "segmentation"\nlabels = {source = "SEG"}\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = " + "[" * 5000, "brackets"),
        ("a = " + "1" * 5000, "digits"),
        (SHORT + 'images = {modality = "CT", description = "a{99999999999}"}', "images.description"),
        (SHORT + f'images = {{modality = "CT", description = "{"(" * 3000}"}}', "images.description"),
        (SHORT + 'images = {modality = "CT"}\ntrain = {minutes = inf}', "train.minutes"),
        (SHORT + 'images = {modality = "CT"}\npreprocess = {spacing = [1, nan, 1]}', "preprocess.spacing"),
        (SHORT + 'images = {modality = "CT"}\npromote = {floor = -inf}', "promote.floor"),
        (SHORT + 'images = {modality = "CT"}\nseed = -1', "seed"),
        (SHORT + f'images = {{modality = "CT"}}\nseed = {2**63}', "seed"),
    ],
)
def test_recipes_that_cannot_be(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        recipes.target(text.encode())


def test_a_recipe_in_another_encoding() -> None:
    text = SHORT + 'images = {modality = "CT", description = "Schädel"}'
    recipes.target(text.encode("utf-8-sig"))
    with pytest.raises(RecipeError, match="utf-8"):
        recipes.target(text.encode("latin-1"))


# -- what comes over the network ---------------------------------------------------------------------------------


def test_a_boundary_in_parts_that_are_numbered_beyond_all_numbers() -> None:
    kind = f"multipart/related; boundary*{'9' * 5000}=b"
    assert boundary_of(kind) is None
    dicomweb.target(kind.encode() + b"\n--b--")


@pytest.mark.parametrize(
    "element",
    [b'"00201208": {"vr": "IS", "Value": [-Infinity]}', b'"00280010": {"vr": "OW", "InlineBinary": []}'],
    ids=["infinite", "empty"],
)
def test_an_answer_with_a_value_that_none_can_be(element: bytes) -> None:
    dicomweb.target(b'application/dicom+json\n[{"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, ' + element + b"}]")


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" + b'{"00081140":{"vr":"SQ","Value":[' * 3000])
def test_an_answer_nested_without_end(body: bytes) -> None:
    dicomweb.target(b"application/dicom+json\n" + body)


def test_a_request_for_no_service(listen: Listen, caplog: pytest.LogCaptureFixture) -> None:
    # An application context's item in place of the abstract syntax: pynetdicom's negotiation ended its thread.
    listener, wanted = listen(), upper_layer.request()
    with connect(listener.port) as peer:
        peer.sendall(wanted.replace(b"\x30\0\0\x11", b"\x10\0\0\x11", 1))
        ended(peer)
    until(lambda: "an association is ended (TypeError)" in caplog.text, "the listener to say why")
    assert echoes(listener.port)


def test_what_a_service_trips_over_is_told_without_what_was_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def trip(_: Association) -> None:
        raise UnicodeError("Doe^Jane")

    monkeypatch.setattr(Association, "run_reactor", trip)
    with upper_layer.driven() as association:
        association.run_reactor()
    assert "UnicodeError" in caplog.text
    assert "Doe" not in caplog.text
