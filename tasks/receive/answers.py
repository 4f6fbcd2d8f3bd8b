"""What an HTTP server's refusals mean to us. Addresses of resources hold identities: no message quotes one."""

from __future__ import annotations

from typing import Final

from models.errors import NocturneError, NotFoundError, ServiceUnavailableError, SettingsError

AS_IT_IS: Final = {"Accept-Encoding": "identity"}
"""Asked of a server in the same house: to deflate pixels costs both sides more time than it saves on the wire."""


def refusal(status: int, where: str) -> NocturneError:
    """The error that stands for an HTTP status of 400 or more."""
    if status in (401, 403):
        return SettingsError(
            f"refuses us with HTTP {status}", where=where, hint="check user and password in the settings"
        )
    if status in (404, 410):
        return NotFoundError("no such resource", where=where, hint="check the URL in the settings")
    if status == 429 or status >= 500:
        return ServiceUnavailableError(f"answers with HTTP {status}", where=where, hint="see the server's own log")
    return SettingsError(
        f"does not take the request (HTTP {status})", where=where, hint="check the URL in the settings"
    )


def unreachable(error: Exception, where: str) -> ServiceUnavailableError:
    """The error for a server that does not answer, or stops answering; `error` is told by its class alone."""
    return ServiceUnavailableError(
        f"does not answer ({type(error).__name__})",
        where=where,
        hint="is it running, and is the address right?",
        reason="unreachable",
    )
