"""One process that tries bytes on one target for some time, and keeps what should not have happened.

    python -m tests.fuzz.engine TARGET raw|shaped SECONDS FOLDER

`raw` changes the bytes of what is right, `shaped` the choices that hypothesis draws odd things by; both follow what
they reach, as atheris tells them. A finding does not end the search: each place is kept once, with the bytes that
led there. What ends the process itself is found in `current` by whoever started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from time import monotonic, process_time
from types import FrameType
from typing import Any, Final

import atheris
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS

INSTRUMENTED: Final = ["models", "tasks", "pydicom", "pynetdicom", "tomllib", "email"]
HANG_SECONDS: Final = 20
MEMORY_BYTES: Final = 2 << 30
"""What one input may take more than the process had when it began."""
LONGEST: Final = 1 << 16


class Hang(BaseException):
    """An input that takes too long; not an Exception, which a target might take for its own."""


class Search:
    """Runs, counted; and findings, each once."""

    def __init__(self, target: Callable[[bytes], None], folder: Path, seconds: float) -> None:
        self._target, self._folder, self._until = target, folder, monotonic() + seconds
        self._began = process_time()
        self._known = {path.stem for path in folder.glob("*.bin")}
        self.runs = self.refused = 0
        place = folder / "current"
        place.write_bytes(bytes(LONGEST + 8))
        with place.open("r+b") as file:
            self._current = mmap(file.fileno(), LONGEST + 8)

    def one(self, data: bytes) -> None:
        """One input."""
        self.runs += 1
        self._current[:8] = min(len(data), LONGEST).to_bytes(8, "little")
        self._current[8 : 8 + min(len(data), LONGEST)] = data[:LONGEST]
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            self._target(data)
        except _ours():
            self.refused += 1
        except (Exception, Hang) as error:  # noqa: BLE001 - whatever it is, it is what we look for
            self._keep(data, error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def keep_time(self) -> None:
        """End the process when its time is over: libFuzzer's own loop never returns."""
        if monotonic() < self._until:
            return
        told = {"runs": self.runs, "refused": self.refused, "seconds": round(process_time() - self._began)}
        (self._folder / "current").unlink()
        (self._folder / f"told-{os.getpid()}.json").write_text(json.dumps(told))
        sys.stdout.flush()
        os._exit(0)

    def _keep(self, data: bytes, error: BaseException) -> None:
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][1:]
        name = f"{type(error).__name__}-{hashlib.sha256(' '.join(frames[-3:]).encode()).hexdigest()[:10]}"
        if name not in self._known:
            self._known.add(name)
            (self._folder / f"{name}.bin").write_bytes(data)
            (self._folder / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
            print(f"found {name}: {type(error).__name__} at {frames[-1] if frames else '?'}", flush=True)


def _ours() -> type[Exception]:
    from models.errors import NocturneError

    return NocturneError


def _too_long(_: int, __: FrameType | None) -> None:
    raise Hang


def _bound_memory() -> None:
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.RLIM_INFINITY))


def _shaped(module: Any, search: Search) -> Callable[[bytes], Any]:
    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(module.shaped)
    def odd(data: bytes) -> None:
        search.one(data)

    return odd.hypothesis.fuzz_one_input  # type: ignore[attr-defined, no-any-return]


def _begun(corpus: Path, module: Any, *, shaped: bool) -> Path:
    """The folder that the search goes on from: what is right, or choices at random."""
    corpus.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for seed in [chance.randbytes(2048) for _ in range(30)] if shaped else module.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    return corpus


def main(name: str, how: str, seconds: str, folder: str) -> None:
    """See above."""
    assert name in TARGETS
    with atheris.instrument_imports(include=INSTRUMENTED):
        module = importlib.import_module(f"tests.fuzz.{name}")
    corpus = _begun(Path(folder, "choices" if how == "shaped" else "corpus"), module, shaped=how == "shaped")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _too_long)
    for seed in module.seeds():  # whatever is imported late is imported now
        with contextlib.suppress(_ours()):
            module.target(seed)
    _bound_memory()
    search = Search(module.target, Path(folder), float(seconds))
    tried = _shaped(module, search) if how == "shaped" else search.one

    def once(data: bytes) -> None:
        search.keep_time()
        tried(data)

    # Time and memory are bounded here, so that a finding does not end the search.
    options = ["-timeout=0", "-rss_limit_mb=0", f"-max_len={LONGEST // 4}", "-verbosity=0"]
    atheris.Setup([name, str(corpus), *options], once, internal_libfuzzer=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
