"""Whole processes as contestants: what one and its children took, with a home of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from _turns import ROOT, Turn


def whole(home: Path, *arguments: object) -> Turn:
    """This Python with these arguments, from start to end. Raises CalledProcessError where it fails."""
    mine = {"NOCTURNE_HOME": str(home), "NOCTURNE_SECRET": "5a" * 32, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    line = [sys.executable, *map(str, arguments)]
    worked, begun = _children(), time.perf_counter()
    subprocess.run(line, env={**os.environ, **mine}, cwd=ROOT, capture_output=True, check=True)
    return Turn(time.perf_counter() - begun, _children() - worked)


def _children() -> float:
    """CPU seconds of all processes that have ended below this one."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
