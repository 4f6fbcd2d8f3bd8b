"""Studies full of markers, and the search for them in everything that an installation has written."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

from pydicom.dataset import Dataset

from tasks.ingest.confidentiality import dictionary_vr, keyword, table
from tests.components import part10
from tests.tasks.ingest.test_deidentify import Planter

MARK = "XQ"
"""Begins every planted text."""
END = "KJ"
_TEXT = {"LO", "SH", "ST", "LT", "UT", "PN", "UC", "AE"}


def planted(slices: list[Dataset], folder: Path) -> dict[str, str]:
    """Write a study with a marker in every attribute of text, private, nested, in the preamble and in the file names.

    Returns each marker with where it was put. What holds the study together stays as it is.
    """
    planter, filled = Planter(), Dataset()
    for tag in table():
        vr = dictionary_vr(tag)
        if vr in _TEXT and tag >> 16 >= 8 and keyword(tag) != "PatientID":
            filled.add(planter.element(tag, vr, "top"))
    nested, block = Dataset(), filled.private_block(0x0029, "XQPRIVKJ", create=True)
    for offset, vr in enumerate(("LO", "UN", "OB", "PN", "SQ")):
        filled.add(planter.element(block.get_tag(offset), vr, "private"))
    nested.PatientComments = nested.ImageComments = "XQNESTEDKJ"
    filled.RequestAttributesSequence = [nested]
    for index, ds in enumerate(slices):
        ds.update(deepcopy(filled))
        ds.PatientID = "XQPATIENTKJ"
        ds.preamble = b"XQPREAMBLEKJ".ljust(128, b"X")
        (folder / f"XQFILE{index:04}KJ.dcm").write_bytes(part10(ds))
    others = ("XQPRIVKJ", "XQNESTEDKJ", "XQPATIENTKJ", "XQPREAMBLEKJ", "XQFILE")
    return planter.markers | dict.fromkeys(others, "elsewhere")


def hits(home: Path, markers: dict[str, str], *, but: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Files below `home`, by path and marker, that hold one in their bytes or their name; not below the parts `but`."""
    wanted = [(marker, marker.encode()) for marker in markers]
    for path in home.rglob("*"):
        place = path.relative_to(home)
        if place.parts[0] in but:
            continue
        data = _content(path)
        yield from ((str(place), marker) for marker, raw in wanted if marker in str(place) or raw in data)


def _content(file: Path) -> bytes:
    """What lies there; nothing where it went away meanwhile, or is no file."""
    try:
        return file.read_bytes() if file.is_file() and not file.is_symlink() else b""
    except FileNotFoundError:
        return b""
