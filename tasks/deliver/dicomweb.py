"""To a DICOMweb server: STOW-RS (PS3.18 10.5), with QIDO-RS to see what is there already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass

from models.hospital import Destination
from tasks.deliver.objects import Result
from tasks.deliver.sending import Sent, away

_MAY_HEAL: Final = frozenset({401, 403, 408, 425, 429})
"""Statuses below 500 after which a later attempt may succeed: credentials get mended, servers get room."""
_DUPLICATE: Final = 0x0111
_PROCESSING, _NOT_AUTHORISED, _OUT_OF_RESOURCES = 0x0110, 0x0124, range(0xA700, 0xA800)
_ONE_REQUEST: Final = 1 << 40  # bytes; above it the client sends in chunks, which not every server reads


class DicomwebSender:
    """One STOW-RS request an object: what one server refuses does not hold up the rest."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        try:
            self._client = DICOMwebClient(
                destination.url.rstrip("/"),
                session=_session(destination),
                timeout=destination.timeout_seconds,
                chunk_size=_ONE_REQUEST,
                permissive_uid=True,
            )
        except ValueError:
            raise away(
                destination, "its URL cannot be used", hint="give the root of STOW-RS, http:// or https://"
            ) from None
        self._client.set_http_retry_params(retry=False)  # the outbox does that, and over days

    def send(self, results: Sequence[Result], *, again: bool) -> Sent:
        """Store what is not there. Raises ServiceUnavailableError."""
        accepted: list[str] = []
        refused: list[str] = []
        for result in results:
            if (again and self._there(result)) or not (reason := self._store(result)):
                accepted.append(result.uid)
            else:
                refused.append(f"{result.kind} refused ({reason})")
        return Sent(tuple(accepted), tuple(refused))

    def _store(self, result: Result) -> str:
        """Why the object was refused for good; empty where it is there now."""
        try:
            answer = self._client.store_instances([result.parsed()])
            failed = {int(item.get("FailureReason") or 0) for item in answer.get("FailedSOPSequence") or ()}
        except requests.HTTPError as error:
            return self._status(error.response, result)
        except (requests.RequestException, OSError) as error:
            raise away(self._destination, f"does not answer ({type(error).__name__})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            # Said to be a success, in a form that nobody can read.
            if self._there(result):
                return ""
            raise away(self._destination, "answers in an unknown form") from None
        return self._judged(failed, result)

    def _status(self, response: Any, result: Result) -> str:
        status = response.status_code if response is not None else 0
        if status == 409:
            return self._judged(_reasons(response) or {0}, result)
        if status >= 500 or status in _MAY_HEAL or not status:
            hint = "look at its user and password" if status in (401, 403) else None
            raise away(self._destination, f"answered with HTTP status {status}", hint=hint)
        return f"HTTP status {status}"

    def _judged(self, failed: set[int], result: Result) -> str:
        """Why it was refused, by STOW-RS's failure reasons; empty where there are none, or it is there all the same."""
        if not failed or failed == {_DUPLICATE} or self._there(result):
            return ""
        if any(reason in (_PROCESSING, _NOT_AUTHORISED) or reason in _OUT_OF_RESOURCES for reason in failed):
            raise away(self._destination, f"cannot store just now ({_told(failed)})")
        return _told(failed)

    def _there(self, result: Result) -> bool:
        """Whether the server has the object already. Raises ServiceUnavailableError; without QIDO-RS it has not."""
        try:
            found = self._client.search_for_instances(
                study_instance_uid=str(result.dataset.StudyInstanceUID),
                series_instance_uid=str(result.dataset.SeriesInstanceUID),
                search_filters={"SOPInstanceUID": result.uid},
            )
        except requests.HTTPError:
            return False
        except (requests.RequestException, OSError) as error:
            raise away(self._destination, f"does not answer ({type(error).__name__})") from None
        return any(_uid_of(item) == result.uid for item in found)


def _session(destination: Destination) -> requests.Session:
    password = destination.password.get_secret_value()
    session = create_session_from_user_pass(destination.user, password) if destination.user else create_session()
    if destination.tls is not None:
        session.cert = (str(destination.tls.certificate), str(destination.tls.key))
        session.verify = str(destination.tls.authority)
    return session


def _uid_of(item: dict[str, Any]) -> str:
    return str(next(iter(item.get("00080018", {}).get("Value", [])), ""))


def _reasons(response: requests.Response) -> set[int]:
    """Failure reasons in a 409's body, in DICOM's JSON model; none where it has another form."""
    try:
        body = response.json()
        items = (body[0] if isinstance(body, list) else body)["00081198"]["Value"]
        return {int(item["00081197"]["Value"][0]) for item in items}
    except (ValueError, KeyError, IndexError, TypeError):
        return set()


def _told(reasons: Iterable[int]) -> str:
    return ", ".join(f"0x{reason:04X}" if reason else "HTTP status 409" for reason in sorted(reasons))
