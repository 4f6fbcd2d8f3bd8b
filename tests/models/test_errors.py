"""The error tree is an interface: what is retried, what is said, and that it survives a process border."""

from __future__ import annotations

import builtins
import pickle
import re

import pytest

from models import errors
from models.errors import BadInputError, NocturneError, TransientError, is_transient

KINDS = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_whole_from_another_process(kind: type[NocturneError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", where="P-1", hint="do", reason="code")))  # noqa: S301
    assert type(error) is kind
    assert (error.what, error.where, error.hint, error.reason) == ("what", "P-1", "do", "code")
    assert str(error) == "P-1: what — do"


def test_leaves_can_be_caught_as_the_builtin_that_a_caller_expects() -> None:
    for kind in KINDS:
        if kind.__subclasses__() or issubclass(kind, BadInputError):
            continue
        assert any(
            base.__module__ == builtins.__name__
            for base in kind.__mro__[1:]
            if base not in (Exception, BaseException, object)
        ), kind


def test_only_what_may_heal_is_retried() -> None:
    assert [k.__name__ for k in KINDS if is_transient(k("x"))] == [
        k.__name__ for k in KINDS if issubclass(k, TransientError)
    ]
    assert is_transient(ConnectionResetError())
    assert is_transient(TimeoutError())
    assert not is_transient(ValueError())


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = set(re.findall(r"^[│├└─ ]*(\w+Error)\b", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {k.__name__ for k in KINDS}
