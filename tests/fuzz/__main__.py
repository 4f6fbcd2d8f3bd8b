"""Fuzz for as long as one likes: `python -m tests.fuzz [TARGET …] --minutes 10 --into FOLDER`, or `make fuzz`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

PATIENCE_SECONDS = 600
"""How much longer than asked for a process may take, to begin on a busy machine, before it counts as hanging outside
Python."""


def main() -> int:
    """Each target, half of the time by bytes and half by shape. Returns how many findings there are."""
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz")
    asked.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    asked.add_argument("--minutes", type=float, default=10, help="for each target")
    asked.add_argument("--into", type=Path, default=Path("fuzz-findings"), help="the folder that findings are kept in")
    options = asked.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        asked.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    found = 0
    for name in options.targets or TARGETS:
        found += _search(name, options.minutes * 60, options.into / name)
    return min(found, 100)


def _search(name: str, seconds: float, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("told-*.json"):
        old.unlink()
    for how in ("raw", "shaped"):
        command = [sys.executable, "-m", "tests.fuzz.engine", name, how, str(seconds / 2), str(folder)]
        with (folder / f"{how}.log").open("w") as log:
            try:
                ended = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds / 2 + PATIENCE_SECONDS, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                ended = -1
        if ended:
            _keep_current(folder, how, ended)
    told = [json.loads(path.read_text()) for path in folder.glob("told-*.json")]
    runs, refused, used = (sum(one[key] for one in told) for key in ("runs", "refused", "seconds"))
    findings = sorted(folder.glob("*.bin"))
    print(
        f"{name}: {runs} runs in {seconds / 60:g} min ({used / 60:.1f} of a processor), "
        f"{refused} refused in our words, {len(findings)} findings"
    )
    for path in findings:
        print(
            f"  {path}: see {path.with_suffix('.txt').name}; once mended, keep it as a case in tests/fuzz/test_cases.py"
        )
    return len(findings)


def _keep_current(folder: Path, how: str, ended: int) -> None:
    """The input during which the process itself ended: by a signal, or by never coming back."""
    current = folder / "current"
    if current.is_file():
        data = current.read_bytes()
        (folder / f"ended-{how}.bin").write_bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tail = (folder / f"{how}.log").read_text(errors="replace")[-4000:]
        (folder / f"ended-{how}.txt").write_text(f"the process ended with {ended}\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
