"""An archive by DICOMweb (PS3.18): QIDO-RS to ask, WADO-RS to fetch.

The instances are passed on as the server sends them, in its own encoding: dicomweb-client would decode each in memory
and encode it anew, so that only its session is used for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from models.errors import HeaderError, NocturneError, NotFoundError, ServiceUnavailableError, SettingsError
from models.hospital import Peer
from tasks.receive.answers import AS_IT_IS, refusal, unreachable
from tasks.receive.asking import (
    INCOMPLETE,
    Fetched,
    FoundInstance,
    FoundSeries,
    FoundStudy,
    LostError,
    Order,
    Wanted,
    when,
)
from tasks.receive.reception import Reception
from tasks.receive.streams import CHUNK, boundary_of, open_file, split_multipart
from tasks.stores.peek import is_uid

PAGE: Final = 200
_TIMEOUT: Final = (10.0, 120.0)  # to connect, and for the next bytes
_PARTS: Final = 'multipart/related; type="application/dicom"'
_AS_STORED: Final = f"{_PARTS}; transfer-syntax=*"
_NOT_ACCEPTABLE: Final = 406

Json = Mapping[str, Any]

logging.getLogger("dicomweb_client").setLevel(logging.WARNING)  # it tells the UIDs that it asks for


class DicomwebArchive:
    """One DICOMweb server."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._session = requests.Session()
        self._session.headers.update(AS_IT_IS)
        if peer.user:
            self._session.auth = (peer.user, peer.password.get_secret_value())
        if peer.tls:
            self._session.verify = str(peer.tls.authority)
            self._session.cert = (str(peer.tls.certificate), str(peer.tls.key))
        try:
            self._client = DICOMwebClient(
                peer.url.rstrip("/"), session=self._session, timeout=_TIMEOUT, permissive_uid=True
            )
        except ValueError:
            raise SettingsError(
                "has no usable URL", where=peer.name, hint="give http(s)://host:port/path in the settings"
            ) from None
        self._client.set_http_retry_params(retry=False)  # whoever calls us tries again

    def studies(self, wanted: Wanted) -> Iterator[FoundStudy]:
        """Page by page: what is fetched from one page keeps the next one waiting."""
        filters: list[dict[str, str]] = [{"StudyInstanceUID": uid} for uid in wanted.study_uids]
        plain = {"StudyDate": wanted.dates, "ModalitiesInStudy": wanted.modality or ""}
        for filter_ in filters or [{name: value for name, value in plain.items() if value}]:
            for found in self._pages(self._client.search_for_studies, "StudyInstanceUID", search_filters=filter_):
                modalities = tuple(map(str, _values(found, "ModalitiesInStudy")))
                begun = when(_value(found, "StudyDate"), _value(found, "StudyTime"))
                yield FoundStudy(_value(found, "StudyInstanceUID"), begun, modalities)

    def series(self, study: str) -> list[FoundSeries]:
        """All series, each with its instances."""
        series = self._pages(self._client.search_for_series, "SeriesInstanceUID", study_instance_uid=study)
        named = [(_value(found, "SeriesInstanceUID"), _value(found, "Modality")) for found in series]
        return [FoundSeries(uid, modality, self._instances(study, uid)) for uid, modality in named]

    def fetch(self, study: str, orders: Sequence[Order], reception: Reception) -> Fetched:
        """Series by series, or instance by instance where only some are wanted."""
        fetched = Fetched()
        for order in orders:
            before = fetched.instances
            path = f"studies/{study}/series/{order.series}"
            paths = [path] if order.whole else [f"{path}/instances/{one.uid}" for one in order.instances]
            told = ""
            for path in paths:
                try:
                    self._fetch(path, reception, fetched)
                except (LostError, NotFoundError) as error:
                    told = error.what
                except ServiceUnavailableError as error:
                    if error.where != self._peer.name or error.reason == "unreachable":
                        raise  # the spool's, or nobody answers any more
                    told = error.what
            missing = max(0, len(order.instances) - (fetched.instances - before))
            if missing or told:
                what = f"{missing} of {len(order.instances)} instances of a series did not come"
                fetched.failure(INCOMPLETE, f"{what}: {told}" if told else what, missing)
        return fetched

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    # -- asking -------------------------------------------------------------------------------------------------

    def _instances(self, study: str, series: str) -> tuple[FoundInstance, ...]:
        if not is_uid(series):
            return ()
        pages = self._pages(
            self._client.search_for_instances,
            "SOPInstanceUID",
            study_instance_uid=study,
            series_instance_uid=series,
        )
        return tuple(FoundInstance(_value(one, "SOPInstanceUID"), _value(one, "SOPClassUID")) for one in pages)

    def _pages(self, search: Callable[..., Sequence[Json]], key: str, **asked: Any) -> Iterator[Dataset]:
        """Everything, in pages. A server may give fewer than asked for at once, or the same ones for ever."""
        seen: set[str] = set()
        while True:
            page = self._page(search, limit=PAGE, offset=len(seen), **asked)
            fresh = [one for one in page if _value(one, key) and _value(one, key) not in seen]
            if not fresh:
                return
            yield from fresh
            seen.update(_value(one, key) for one in fresh)

    def _page(self, search: Callable[..., Sequence[Json]], **asked: Any) -> list[Dataset]:
        try:
            with self._asking():
                return [Dataset.from_json(dict(one)) for one in search(**asked)]
        except NocturneError:
            raise  # some are ValueErrors too
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):  # pydicom's
            raise SettingsError(
                "does not answer as DICOMweb does", where=self._peer.name, hint="check its url in the settings"
            ) from None

    # -- fetching -----------------------------------------------------------------------------------------------

    def _fetch(self, path: str, reception: Reception, fetched: Fetched) -> None:
        with self._asking(), self._get(path) as response:
            chunks = response.iter_content(CHUNK)
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            # Some servers send a single instance as it is.
            parts = split_multipart(chunks, boundary) if boundary else iter([chunks])
            try:
                for part in parts:
                    self._take(part, reception, fetched)
            except (requests.exceptions.ChunkedEncodingError, requests.ConnectionError, requests.Timeout) as error:
                raise LostError(f"the answer broke off ({type(error).__name__})", where=self._peer.name) from None

    def _take(self, part: Iterator[bytes], reception: Reception, fetched: Fetched) -> None:
        try:
            stored = open_file(part).into(reception)
        except HeaderError as error:
            fetched.failure(error.reason, error.what, 1)
            return
        fetched.instances += 1
        fetched.new += stored.new

    def _get(self, path: str) -> requests.Response:
        address = f"{self._peer.url.rstrip('/')}/{path}"
        response = self._session.get(address, headers={"Accept": _AS_STORED}, stream=True, timeout=_TIMEOUT)
        if response.status_code == _NOT_ACCEPTABLE:  # it cannot leave the choice to itself
            response.close()
            response = self._session.get(address, headers={"Accept": _PARTS}, stream=True, timeout=_TIMEOUT)
        if not response.ok:
            response.close()
            raise refusal(response.status_code, self._peer.name)
        return response

    @contextmanager
    def _asking(self) -> Iterator[None]:
        # No error of requests is passed on: they quote the address with its UIDs.
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            raise refusal(status, self._peer.name) from None
        except (requests.exceptions.MissingSchema, requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
            raise SettingsError("has no usable URL", where=self._peer.name, hint="check it in the settings") from None
        except requests.exceptions.SSLError:
            raise SettingsError(
                "shows a certificate that is not trusted", where=self._peer.name, hint="check tls in the settings"
            ) from None
        except requests.JSONDecodeError:
            raise ValueError("no JSON") from None
        except requests.RequestException as error:
            raise unreachable(error, self._peer.name) from None


def _values(found: Dataset, keyword: str) -> list[Any]:
    value = found.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else list(value)


def _value(found: Dataset, keyword: str) -> str:
    return next((str(value) for value in _values(found, keyword)), "")
