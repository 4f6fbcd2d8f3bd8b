"""What Prefect's server does not write into its log: passwords in addresses, and the paths of web hooks.

The address of a hook is its secret, and the server logs it with every hook that fails. So of an address, the log
keeps scheme and host.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

from prefect.logging.formatters import PrefectFormatter

ENVIRONMENT: Final[Mapping[str, str]] = {"PREFECT_LOGGING_FORMATTERS_STANDARD_": "flows.reticence.ReticentFormatter"}
"""Overrides `formatters.standard.()` of Prefect's logging.yml, the format of all that its server logs."""

_ADDRESS: Final = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#@'\"<>]*@)?(?P<host>[^\s/?#@'\"<>]*)(?P<rest>[/?#][^\s'\"<>]*)?",
    re.IGNORECASE,
)


class ReticentFormatter(PrefectFormatter):
    """Prefect's format, tracebacks included, with addresses cut after their host."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, to be written."""
        return curtailed(super().format(record))


def curtailed(text: str) -> str:
    """`text` whose addresses end after the host, where something followed or a user came before it."""
    return _ADDRESS.sub(_cut, text)


def _cut(found: re.Match[str]) -> str:
    rest = found["rest"] or ""
    return found["scheme"] + found["host"] + (rest if len(rest) < 2 else "/…")
