"""Run the benchmarks and keep their tables.

    python benchmarks [STAGE …] [--peers PYTHON] [--write]

Without names: all of them, one after the other. Each is a script of its own, which prints Markdown; `--write` puts that
into docs/benchmarks.md, between its markers. PYTHON is an environment with nnunetv2 (`make bench` makes one).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


def stages() -> list[str]:
    """Every script beside this one, but for what they share."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def told(stage: str, peers: Path | None) -> str:
    """What the script prints. Its failure ends the run."""
    script = HERE / f"{stage}.py"
    wants_peers = peers is not None and "--peers" in subprocess.check_output([sys.executable, script, "-h"], text=True)
    more = ["--peers", str(peers)] if wants_peers else []
    done = subprocess.run([sys.executable, str(script), *more], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def kept(page: str, stage: str, text: str) -> str:
    """The page with the stage's table in its place. Raises KeyError where the page has none."""
    begin, end = f"<!-- bench:{stage} -->", f"<!-- /bench:{stage} -->"
    place = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not place.search(page):
        raise KeyError(f"docs/benchmarks.md has no {begin} … {end}")
    return place.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def main() -> None:
    """Run, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=stages(), metavar="STAGE")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    for stage in given.stages:
        print(f"\n== {stage}", flush=True)
        text = told(stage, given.peers)
        print(text, flush=True)
        if given.write:
            PAGE.write_text(kept(PAGE.read_text(), stage, text))


if __name__ == "__main__":
    main()
