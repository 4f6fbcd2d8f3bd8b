"""Are versions pinned or installed that are known to be vulnerable? `make audit`; exits with 1 where there are.

pip-audit asks PyPI's advisory database of each installed package. It also says "no known vulnerabilities" where it
could ask of none, so what went unasked is counted here, and what is pinned is held against docs/advisories.toml.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Advisory:
    """One fault of one package, and the first version without it."""

    package: str
    ids: tuple[str, ...]
    fixed: Version
    what: str

    def concerns(self, pins: Mapping[str, Version]) -> bool:
        """Whether the version that is pinned has the fault."""
        pinned = pins.get(self.package)
        return pinned is not None and pinned < self.fixed

    def __str__(self) -> str:
        return f"{self.package} before {self.fixed}: {self.what} ({', '.join(self.ids)})"


@dataclass(frozen=True)
class Answer:
    """What pip-audit told: faults as sentences, and how many packages it could ask of."""

    faults: tuple[str, ...]
    asked: int
    unasked: int
    trouble: str = ""


def advisories(file: Path = ROOT / "docs" / "advisories.toml") -> list[Advisory]:
    """The table of this repository."""
    told = tomllib.loads(file.read_text(encoding="utf-8"))["advisory"]
    return [
        Advisory(canonicalize_name(one["package"]), tuple(one["ids"]), Version(one["fixed"]), one["what"])
        for one in told
    ]


def pinned(file: Path = ROOT / "constraints.txt") -> dict[str, Version]:
    """Each package of the constraints with its one version. Raises ValueError for what is not pinned to one."""
    pins = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        versions = [one.version for one in requirement.specifier if one.operator == "=="]
        if len(versions) != 1 or len(requirement.specifier) != 1:
            raise ValueError(f"{file.name} does not pin one version: {line}")
        pins[canonicalize_name(requirement.name)] = Version(versions[0])
    return pins


def asked_of(document: Mapping[str, Any]) -> Answer:
    """pip-audit's JSON, read."""
    packages = document["dependencies"]
    faults = [
        f"{one['name']} {one['version']}: {', '.join([fault['id'], *fault.get('aliases', ())])}, "
        f"fixed in {' or '.join(fault['fix_versions']) or 'no version yet'}"
        for one in packages
        for fault in one.get("vulns", ())
    ]
    unasked = sum("skip_reason" in one for one in packages)
    return Answer(tuple(faults), len(packages) - unasked, unasked)


def pip_audit(tool: Path, environment: Path) -> Answer:
    """Ask of all that is installed in `environment`, a virtual environment."""
    (packages,) = environment.glob("lib/python*/site-packages")
    command = [str(tool), "--path", str(packages), "--skip-editable", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return asked_of(json.loads(done.stdout))
    except (json.JSONDecodeError, KeyError):
        return Answer((), 0, 0, (done.stderr.strip().splitlines() or ["no answer"])[-1])


def report(answer: Answer, concerned: Sequence[Advisory], known: int) -> list[str]:
    """What to tell, faults first."""
    lines = [f"FAULT  installed: {fault}" for fault in answer.faults]
    lines += [f"FAULT  pinned: {one}" for one in concerned]
    lines.append(f"pip-audit asked of {answer.asked} packages: {len(answer.faults)} faults")
    if answer.unasked or answer.trouble:
        why = answer.trouble or f"{answer.unasked} packages are not in the index that was asked"
        lines.append(f"NOT ASKED  {why}")
    if not answer.asked:
        lines.append("its database was not reached: only the advisories of docs/advisories.toml speak here")
    lines.append(f"{known} advisories of docs/advisories.toml: {len(concerned)} concern what constraints.txt pins")
    return lines


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", type=Path, required=True, help="pip-audit")
    parser.add_argument("--environment", type=Path, required=True, help="the virtual environment to look at")
    asked = parser.parse_args()
    known, pins = advisories(), pinned()
    concerned = [one for one in known if one.concerns(pins)]
    answer = pip_audit(asked.tool, asked.environment)
    sys.stdout.write("\n".join(report(answer, concerned, len(known))) + "\n")
    return 1 if answer.faults or concerned else 0


if __name__ == "__main__":
    sys.exit(main())
