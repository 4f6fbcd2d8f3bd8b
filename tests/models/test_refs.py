"""References are keys and nothing else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.hashing import content_key
from models.refs import VolumeRef


@pytest.mark.parametrize("key", ["../../etc/passwd", "", ".hidden", "a/b", "DOE^JOHN", "x" * 200])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        VolumeRef.to(key)


def test_keys_depend_on_content_alone() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key("ab", "c") != content_key("a", "bc")
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key(float("nan"))
