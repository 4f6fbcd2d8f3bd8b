"""Whatever a DICOMweb server answers: multipart, a bare file, JSON, or nothing of the kind."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from functools import cache
from itertools import zip_longest
from typing import Any, Final

import requests
from hypothesis import strategies as st
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from models.errors import NocturneError
from models.hospital import Peer
from tasks.receive.asking import FoundInstance, LostError, Order, Wanted
from tasks.receive.dicomweb import DicomwebArchive
from tasks.receive.streams import boundary_of, split_multipart
from tests.fuzz.dicom import bytes_of, part10
from tests.fuzz.headers import image
from tests.fuzz.trees import spoilt

_PART: Final = b'multipart/related; type="application/dicom"; boundary=b'


def target(data: bytes) -> None:
    """A content type, a new line and a body, to each of our questions. Raises NocturneError alone."""
    kind, _, body = data.partition(b"\n")
    archive, answer = _archive()
    answer.kind, answer.body = kind.decode("latin-1").strip(), body
    order = Order("1.2.3.1", (FoundInstance("1.2.3.4"),), whole=True)
    for ask in (
        lambda: archive.fetch("1.2.3", [order], _Reception()),  # type: ignore[arg-type]
        lambda: list(archive.studies(Wanted(modality="CT"))),
        lambda: archive.series("1.2.3"),
    ):
        with suppress(NocturneError):
            ask()
    _same_in_pieces(kind.decode("latin-1").strip(), body)


def _same_in_pieces(kind: str, body: bytes) -> None:
    """Where the network cuts an answer must not matter."""
    boundary = boundary_of(kind)
    if boundary is None:
        return
    size = 1 + len(body) % 7
    pieces = [body[n : n + size] for n in range(0, len(body), size)]
    for whole, cut in zip_longest(_parts([body], boundary), _parts(pieces, boundary)):
        assert whole == cut


def _parts(chunks: list[bytes], boundary: bytes) -> list[bytes | str]:
    found: list[bytes | str] = []
    try:
        found.extend(b"".join(part) for part in split_multipart(chunks, boundary))
    except LostError as error:
        found.append(error.what)
    return found


class _Reception:
    """Takes everything and keeps nothing."""

    def take(self, parts: Any, **_: str) -> Any:
        b"".join(parts)
        return _Stored()


class _Stored:
    new = True


class _Answer(BaseAdapter):
    """The server: one answer to whatever is asked."""

    kind, body = "", b""

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = 200, str(request.url), request
        answer.headers["Content-Type"] = self.kind
        answer.raw = HTTPResponse(io.BytesIO(self.body), status=200, preload_content=False)
        return answer

    def close(self) -> None:
        """Nothing is open."""


@cache
def _archive() -> tuple[DicomwebArchive, _Answer]:
    archive, answer = DicomwebArchive(Peer(name="pacs", url="http://pacs.invalid/dicom-web")), _Answer()
    archive._session.mount("http://", answer)
    return archive, answer


# -- what a server can say ---------------------------------------------------------------------------------------


def multipart(*parts: bytes, head: bytes = b"Content-Type: application/dicom\r\n", end: bytes = b"--\r\n") -> bytes:
    """An answer of several parts."""
    written = b"".join(b"\r\n--b\r\n" + head + b"\r\n" + part for part in parts)
    return _PART + b"\n" + written + b"\r\n--b" + end


def found(*trees: Any) -> bytes:
    """An answer of JSON."""
    return b"application/dicom+json\n" + json.dumps(trees).encode()


_STUDY: Final = {
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "00080020": {"vr": "DA", "Value": ["20240229"]},
    "00080030": {"vr": "TM", "Value": ["120000.5"]},
    "00080061": {"vr": "CS", "Value": ["CT", "PT"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
    "00201208": {"vr": "IS", "Value": [12]},
    "00080060": {"vr": "CS", "Value": ["CT"]},
    "0020000E": {"vr": "UI", "Value": ["1.2.3.1"]},
    "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
    "00080018": {"vr": "UI", "Value": ["1.2.3.4"]},
    "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]},
    "7FE00010": {"vr": "OW", "InlineBinary": "AAAA"},
    "00420011": {"vr": "OB", "BulkDataURI": "http://pacs.invalid/bulk"},
}


def seeds() -> list[bytes]:
    """Answers that are right."""
    file = part10(image())
    return [multipart(file, file), b"application/dicom\n" + file, found(_STUDY), found(), multipart()]


_HEADS = st.sampled_from(
    (
        *(_PART, b'multipart/related; boundary="b"', b"multipart/related", b"multipart/related; boundary=", b"", b"/"),
        *(b"application/dicom", b"multipart/x; boundary*0=b; boundary*1=b", b"multipart/x; boundary*=utf-8''%62"),
        *(b"multipart/x; boundary*=nonsense'x'%ff", b"multipart/x; boundary*" + b"9" * 5000 + b"=b", b"=?utf-8?q?b?="),
        *(b"multipart/x; boundary*=''", b"multipart/x;" + b";" * 900, b"multipart/x; boundary=\xe9", b"text/html"),
        b"application/dicom+json",
    )
)
_BODIES = st.one_of(
    bytes_of(image()).map(lambda file: multipart(file).partition(b"\n")[2]),
    st.lists(
        st.sampled_from((b"\r\n--b", b"--b", b"\r\n", b"\r\n\r\n", b"--", b"\r", b"\n", b"--b--", part10(image())))
        | st.binary(max_size=8),
        max_size=12,
    ).map(b"".join),
    spoilt(_STUDY).map(lambda tree: json.dumps([tree]).encode()),
    spoilt(_STUDY).map(lambda tree: json.dumps([tree, _STUDY, 1, None]).encode()),
    st.sampled_from((b"[" * 50_000, b"null", b"{}", b"[[]]", b"[1]", b'"x"', b"NaN", b"1" * 5000, b"\xff\xfe[]", b"")),
)
shaped = st.builds(lambda head, body: head + b"\n" + body, _HEADS, _BODIES)
"""Answers that are odd in their type, their parts, or in what is found."""
