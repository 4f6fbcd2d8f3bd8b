"""No version is pinned that is known to be vulnerable; an audit that could not ask does not look like a clean one."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

SCRIPT = Path(__file__).parents[1] / "docs" / "audit.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = script  # its dataclasses look for their module
    spec.loader.exec_module(script)
    return script


def test_no_pinned_version_has_a_known_fault(audit: ModuleType) -> None:
    pins = audit.pinned()
    for advisory in audit.advisories():
        assert advisory.package in pins, f"{advisory.package} is not pinned any more"
        assert not advisory.concerns(pins), str(advisory)


def test_a_pinned_fault_is_told(audit: ModuleType, tmp_path: Path) -> None:
    old = tmp_path / "constraints.txt"
    old.write_text("# old\nTorch==2.5.1\nidna==3.20\n")
    concerned = [one for one in audit.advisories() if one.concerns(audit.pinned(old))]
    assert {"CVE-2025-32434", "CVE-2026-24747"} == {one.ids[0] for one in concerned}
    told = audit.report(audit.Answer((), 2, 0), concerned, 12)
    assert any("CVE-2025-32434" in line for line in told if line.startswith("FAULT"))


def test_what_is_not_pinned_to_one_version_is_refused(audit: ModuleType, tmp_path: Path) -> None:
    loose = tmp_path / "constraints.txt"
    loose.write_text("torch>=2.6\n")
    with pytest.raises(ValueError, match="does not pin"):
        audit.pinned(loose)


def test_faults_are_told_and_what_went_unasked(audit: ModuleType) -> None:
    fault = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
    packages = [
        {"name": "one", "version": "1.0", "vulns": [fault]},
        {"name": "two", "version": "1.0", "vulns": []},
        {"name": "three", "skip_reason": "not found on PyPI"},
    ]
    answer = audit.asked_of({"dependencies": packages})
    assert (answer.asked, answer.unasked) == (2, 1)
    assert answer.faults == ("one 1.0: PYSEC-1, CVE-1, fixed in 2.0",)
    assert not any("was not reached" in line for line in audit.report(answer, [], 0))


def test_an_audit_that_asked_of_nothing_says_so(audit: ModuleType) -> None:
    answer = audit.asked_of({"dependencies": [{"name": "one", "skip_reason": "not found on PyPI"}]})
    assert any("was not reached" in line for line in audit.report(answer, [], 12))


def test_a_tool_that_fails_is_no_clean_audit(audit: ModuleType, tmp_path: Path) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\necho 'ERROR: no route to pypi.org' >&2\nexit 1\n")
    tool.chmod(0o755)
    (tmp_path / "venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    answer = audit.pip_audit(tool, tmp_path / "venv")
    assert answer.asked == 0
    assert "no route" in " ".join(audit.report(answer, [], 12))


def test_every_dependency_is_pinned(audit: ModuleType) -> None:
    """What `make setup`, `make audit` and `make sbom` install is one version of each."""
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pins = audit.pinned()
    for text in (*named, "pip-audit", "cyclonedx-bom"):
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert isinstance(pin, Version), f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pin), f"{requirement} is not met by {pin}"
