"""Every error that Nocturne raises, as one tree.

NocturneError
├── TransientError                    may heal: retried with backoff and jitter
│   ├── StoreBusyError                (TimeoutError) a lock or a full connection pool
│   ├── ServiceUnavailableError       (ConnectionError) a server, a share or a network that is away
│   ├── WorkerLostError               (ConnectionError) a Dask worker or a decoder process that died
│   └── MemoryExhaustedError          (MemoryError) too little RAM or GPU memory just now
└── PermanentError                    never retried: somebody has to change something
    ├── BadInputError                 (ValueError) what came in is wrong; the subject goes to quarantine
    │   ├── HeaderError               a DICOM header that is missing, contradictory or not allowed
    │   ├── PixelError                pixel data that is truncated, undecodable or unsupported
    │   ├── GeometryError             slices or grids that do not form one image
    │   ├── PrivacyError              an image that may show an identity in its pixels
    │   ├── LabelError                a label that does not fit its image
    │   └── ArchiveError              an archive that is broken, too large or climbs out
    ├── SchemaError                   (ValueError) a table that breaks its schema
    ├── RecipeError                   (ValueError) a recipe that cannot be read or carried out
    ├── SettingsError                 (ValueError) an installation that is set up wrongly
    ├── NotFoundError                 (LookupError) no such volume, dataset, package, …
    ├── NothingToDoError              (LookupError) a stage without a single usable case
    ├── IntegrityError                (OSError) stored bytes that do not match their digest
    ├── PackageError                  (ValueError) a model package that cannot be trusted or run
    └── TrainingError                 (RuntimeError) a training that cannot go on (loss not finite, …)

A message says what was wrong, where, and what to do. It names pseudonyms only: no patient's name, no original
identifier and no path that came in from outside.
"""

from __future__ import annotations

from typing import ClassVar, Final

__all__ = [
    "ArchiveError",
    "BadInputError",
    "GeometryError",
    "HeaderError",
    "IntegrityError",
    "LabelError",
    "MemoryExhaustedError",
    "NocturneError",
    "NotFoundError",
    "NothingToDoError",
    "PackageError",
    "PermanentError",
    "PixelError",
    "PrivacyError",
    "RecipeError",
    "SchemaError",
    "ServiceUnavailableError",
    "SettingsError",
    "StoreBusyError",
    "TrainingError",
    "TransientError",
    "WorkerLostError",
    "is_away",
    "is_transient",
]


class NocturneError(Exception):
    """Base of the tree.

    `what` says what was wrong, `where` names the subject by pseudonym or key, `hint` says what to do, and `reason`
    is the machine-readable code under which quarantine and `nocturne status` count it.
    """

    default_reason: ClassVar[str] = "error"

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, reason: str | None = None
    ) -> None:
        self.what: Final = what
        self.where: Final = where
        self.hint: Final = hint
        self.reason: Final = reason or self.default_reason
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" — {self.hint}" if self.hint else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Dask, Prefect results) and must arrive with all their parts.
        return _rebuild, (type(self), self.what, self.where, self.hint, self.reason)

    def at(self, where: str) -> NocturneError:
        """The same error, placed: for a caller that knows the subject when the raiser did not."""
        return _rebuild(type(self), self.what, self.where or where, self.hint, self.reason)


def _rebuild(
    kind: type[NocturneError], what: str, where: str | None, hint: str | None, reason: str | None
) -> NocturneError:
    return kind(what, where=where, hint=hint, reason=reason)


class TransientError(NocturneError):
    """May heal by itself: the task is tried again."""

    default_reason = "transient"


class StoreBusyError(TransientError, TimeoutError):
    default_reason = "store-busy"


class ServiceUnavailableError(TransientError, ConnectionError):
    default_reason = "service-unavailable"


class WorkerLostError(TransientError, ConnectionError):
    default_reason = "worker-lost"


class MemoryExhaustedError(TransientError, MemoryError):
    default_reason = "memory-exhausted"


class PermanentError(NocturneError):
    """Trying again would fail again."""

    default_reason = "permanent"


class BadInputError(PermanentError, ValueError):
    """What came in is wrong. The subject is quarantined with `reason`; the rest of the run goes on."""

    default_reason = "bad-input"


class HeaderError(BadInputError):
    default_reason = "bad-header"


class PixelError(BadInputError):
    default_reason = "bad-pixels"


class GeometryError(BadInputError):
    default_reason = "bad-geometry"


class PrivacyError(BadInputError):
    default_reason = "burned-in-annotation"


class LabelError(BadInputError):
    default_reason = "bad-label"


class ArchiveError(BadInputError):
    default_reason = "bad-archive"


class SchemaError(PermanentError, ValueError):
    default_reason = "bad-table"


class RecipeError(PermanentError, ValueError):
    default_reason = "bad-recipe"


class SettingsError(PermanentError, ValueError):
    default_reason = "bad-settings"


class NotFoundError(PermanentError, LookupError):
    default_reason = "not-found"


class NothingToDoError(PermanentError, LookupError):
    default_reason = "nothing-to-do"


class IntegrityError(PermanentError, OSError):
    default_reason = "corrupt"


class PackageError(PermanentError, ValueError):
    default_reason = "bad-package"


class TrainingError(PermanentError, RuntimeError):
    default_reason = "training-failed"


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help. Foreign errors count only where their class already says so."""
    if isinstance(error, NocturneError):
        return isinstance(error, TransientError)
    return isinstance(error, ConnectionError | TimeoutError)


def is_away(error: BaseException) -> bool:
    """Whether what is needed is away, or in other hands: it is for nothing in this input, and may take hours."""
    if isinstance(error, NocturneError):
        return isinstance(error, StoreBusyError | ServiceUnavailableError)
    return isinstance(error, ConnectionError | TimeoutError)
