"""Content keys: the same content has the same key, on every machine and every night."""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY_LENGTH = 32


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no blanks: equal values give equal bytes. Refuses NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def content_key(*parts: Any) -> str:
    """32 hexadecimal digits of SHA-256 over the canonical JSON of `parts`."""
    return hashlib.sha256(canonical(parts)).hexdigest()[:KEY_LENGTH]
