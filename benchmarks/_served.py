"""The far side of `Served`: work in a process of its own. Imports nothing but the standard library, so that a script of
another environment can use it:

    from _served import serve
    serve(lambda: predictor.predict(image))
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(work: Callable[[], object], **about: object) -> None:
    """Say that all is ready (with `about`), then do the work once for each line that comes in."""
    _say(about)
    for _ in sys.stdin:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        begun, worked = time.perf_counter(), time.process_time()
        work()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
        _say({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": _memory("VmHWM") - before})


def _say(what: dict[str, object]) -> None:
    print("turn " + json.dumps(what), flush=True)


def _memory(what: str) -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(what))
    return int(line.split()[1]) / 1024
