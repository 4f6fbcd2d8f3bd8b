"""The matrix of faults: tests that say which fault they inject and what is expected, and the table of what they showed.

    @pytest.mark.fault("receive/listener-killed")
    def test_…(times: Times, figure: Figure) -> None:
        kills = times(5, full=50)       # 50 under `make test-faults`
        …
        figure(f"{kills} kills, {acknowledged} acknowledged, 0 lost")

tests/faults/rows.py names the rows. Several tests may speak for one; it stands when all of them pass. `--full` runs
every row at its full length, `--trust FILE` writes the table between the markers of FILE, where rows that the run did
not touch stay as they were. The functions here are hooks; tests/conftest.py names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.rows import FAULTS

BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
_FAULT, _FIGURE = "fault", "figure"

Times = Callable[..., int]
Figure = Callable[[str], None]


@dataclass
class Outcome:
    """What the tests of one row came to."""

    tests: int = 0
    failed: int = 0
    skipped: int = 0
    figures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.failed:
            return f"**{self.failed} of {self.tests} failed**"
        if self.skipped == self.tests:
            return "**not run**"
        return "as expected"


_outcomes: dict[str, Outcome] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`, `--trust FILE`."""
    parser.addoption("--full", action="store_true", help="every row of the matrix of faults at its full length")
    parser.addoption("--trust", metavar="FILE", help="write the matrix of faults into FILE")


def pytest_configure(config: pytest.Config) -> None:
    """The marker, and an empty table."""
    config.addinivalue_line("markers", "fault(*rows): rows of the matrix of faults (tests/faults/rows.py)")
    config.addinivalue_line("markers", "long: a part of the matrix of faults that only --full runs")
    _outcomes.clear()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests belong to the full matrix."""
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What the test stands for travels with its report, from whichever process runs it."""
    for mark in item.iter_markers(_FAULT):
        if unknown := set(mark.args) - set(FAULTS):
            raise pytest.UsageError(f"{item.nodeid}: tests/faults/rows.py has no {', '.join(sorted(unknown))}")
        item.user_properties += [(_FAULT, name) for name in mark.args]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count it."""
    if report.when != "call" and report.outcome == "passed":
        return
    figures = [str(said) for what, said in report.user_properties if what == _FIGURE]
    for name in [said for what, said in report.user_properties if what == _FAULT]:
        outcome = _outcomes.setdefault(str(name), Outcome())
        outcome.tests += 1
        outcome.failed += report.outcome == "failed"
        outcome.skipped += report.outcome == "skipped"
        outcome.figures += figures


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, from the one process that has heard of all tests."""
    target = session.config.getoption("--trust")
    if target and not hasattr(session.config, "workerinput"):
        page = Path(target)
        before, rest = page.read_text().split(BEGIN)
        stood, after = rest.split(END)
        page.write_text(f"{before}{BEGIN}\n{_table(stood.splitlines())}\n{END}{after}")


def _table(stood: Sequence[str]) -> str:
    lines = ["| area | fault | expected | outcome | seen |", "|---|---|---|---|---|"]
    for name, row in FAULTS.items():
        said = f"| {row.area} | {row.fault} | {row.expected} |"
        if name in _outcomes:
            outcome = _outcomes[name]
            lines.append(f"{said} {outcome} | {'; '.join(dict.fromkeys(outcome.figures))} |")
        else:
            lines.append(next((line for line in stood if line.startswith(said)), f"{said} **not run** |  |"))
    return "\n".join(lines)


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Times:
    """`times(few, full=many)`: how often to inject the fault."""
    return lambda few, *, full: full if request.config.getoption("--full") else few


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """`figure("50 kills, 0 lost")`: what was seen, for the table."""
    return lambda said: request.node.user_properties.append((_FIGURE, said))
