"""A series' instances as a table, held against its schema.

Ordinary values are told by plain Python, for pandas and Pandera take longer over 120 rows than the rest of the headers
does, and half a second to import: only what may fail goes through the schema, which says how it fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from models.errors import HeaderError, SchemaError
from models.series import InstanceHeader, Source

Columns = Mapping[str, Sequence[Any]]

_INSTANCE: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_PHOTOMETRIC: Final = re.compile(r"[A-Z0-9_ ]+")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST_UID: Final = 64
_MOST: Final = 65535


def check_instances(
    headers: Sequence[InstanceHeader], pseudonyms: Mapping[str, str], digests: Mapping[Source, str], *, where: str
) -> None:
    """Raise HeaderError where the instances (their UIDs by pseudonym, their bytes by digest) are not as they should."""
    columns: dict[str, list[Any]] = {
        "instance": [pseudonyms[h.sop_uid] for h in headers],
        "rows": [h.rows for h in headers],
        "columns": [h.columns for h in headers],
        "frames": [h.frames for h in headers],
        "bits_allocated": [h.bits_allocated for h in headers],
        "samples_per_pixel": [h.samples_per_pixel for h in headers],
        "photometric": [h.photometric for h in headers],
        "slope": [h.planes[0].slope for h in headers],
        "intercept": [h.planes[0].intercept for h in headers],
        "digest": [digests[h.source] for h in headers],
    }
    if ordinary(columns):
        return
    import pandas as pd

    from models import schemas

    try:
        schemas.check(pd.DataFrame(columns), schemas.INSTANCES, where=where, subject="instance")
    except SchemaError as error:
        raise HeaderError(error.what, reason=error.reason, hint=error.hint) from None


def ordinary(columns: Columns) -> bool:
    """Whether the table is sure to pass `models.schemas.INSTANCES`; False where only the schema can tell."""
    sizes = {*columns["rows"], *columns["columns"], *columns["frames"]}
    scales = {*columns["slope"], *columns["intercept"]}
    digests = columns["digest"]
    return (
        all(1 <= size <= _MOST for size in sizes)
        and {8, 16, 32}.issuperset(columns["bits_allocated"])
        and {1, 3}.issuperset(columns["samples_per_pixel"])
        and all(map(_PHOTOMETRIC.fullmatch, set(columns["photometric"])))
        and all(map(math.isfinite, scales))
        and 0 not in columns["slope"]
        and len(set(digests)) == len(digests)
        and all(map(_DIGEST.fullmatch, digests))
        and all(len(uid) <= _LONGEST_UID and _INSTANCE.fullmatch(uid) for uid in columns["instance"])
    )
