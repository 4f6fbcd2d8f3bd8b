"""Reports of real evaluations, opened in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.report import Report
from tasks.evaluate.reporting.metrics import metric_of, span
from tasks.preprocess import stored
from tasks.stores.evaluations import report_files
from tasks.stores.house import Stores
from tasks.stores.tables import AlertRow
from tests.pages import nights
from tests.pages.chromium import Tab, a_tab
from tests.pages.nights import Told, night, recipe_of
from tests.tasks.evaluate.reporting.samples import SECTIONS
from tests.tasks.predict.samples import stores_at

SETS = ["hippocampus", "pneumonia", "sarcoma"]
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, for text of any size
# Every element with words of its own: its colour on what lies behind it.
CONTRASTS = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length == 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const speaks = e => !e.closest('svg') && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  return [...document.body.querySelectorAll('*')].filter(speaks).map(e => {
    const both = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    return [(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), e.textContent.trim().slice(0, 40)];
  });
})()
"""
TOO_WIDE = """
[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => e.getAttribute('aria-label'))
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = stores_at(tmp_path_factory.mktemp("reports"))
    with pytest.MonkeyPatch.context() as patch:
        # So few images need no cluster.
        patch.setattr(stored, "compute_client", lambda *_: nullcontext())
        yield made
    made.catalog.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def told(stores: Stores, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """Three first nights, and a second one of the hippocampus."""
    nights.hippocampus(stores, shared_data)
    nights.pneumonia(stores, shared_data, tmp_path_factory.mktemp("chest"))
    nights.sarcoma(stores, shared_data)
    patch, small = "patch_size = [24, 40, 24]\n", "patch_size = [16, 16, 16]\n"
    first = night(stores, recipe_of("hippocampus", patch=patch, extra="[promote]\nfloor = 0\n"))
    stores.catalog.add(an_alert(stores, first))
    again = recipe_of("hippocampus", epochs=4, patch=patch, extra="[promote]\nfloor = 0\n")
    return {
        "hippocampus": night(stores, again, first.evaluation),
        "pneumonia": night(stores, recipe_of("pneumonia", batch=16)),
        "sarcoma": night(stores, recipe_of("sarcoma", patch=small)),
    }


def an_alert(stores: Stores, of: Told) -> AlertRow:
    """What watching the first version has found."""
    return AlertRow(
        alert="a",
        name="hippocampus",
        package=stores.evaluations.read(of.evaluation.key).package,
        kind="input",
        measure="spacing z",
        how="ks",
        value=1e-5,
        threshold=1e-3,
        cases=50,
        told="the slices lie twice as far apart",
    )


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with a_tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize("name", SETS)
def test_every_section_is_there_and_nothing_is_fetched(told: dict[str, Told], tab: Tab, name: str) -> None:
    tab.requested.clear()
    tab.complaints.clear()
    tab.show("light")
    tab.widen(1200)
    tab.visit(told[name].page)
    found = tab.run("[...document.querySelectorAll('main > section')].map(s => [s.id, s.innerText.length])")
    assert [section for section, _ in found] == SECTIONS
    assert all(length > 40 for _, length in found)
    links = tab.run("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert links == [f"#{section}" for section in SECTIONS]
    tab.run("document.querySelector('nav a[href=\"#drift\"]').click()")
    assert tab.run("location.hash") == "#drift"
    assert {address.partition(":")[0] for address in tab.requested} <= {"file", "data"}
    assert {address for address in tab.requested if address.startswith("file:")} == {
        told[name].page.absolute().as_uri()
    }
    assert tab.complaints == []
    assert tab.run("document.scripts.length") == 0


@pytest.mark.parametrize("name", SETS)
def test_it_is_readable_in_light_and_dark(told: dict[str, Told], tab: Tab, name: str) -> None:
    tab.widen(1200)
    tab.visit(told[name].page)
    brightness = {}
    for scheme in ("light", "dark"):
        tab.show(scheme)
        pale = [(round(ratio, 2), words) for ratio, words in tab.run(CONTRASTS) if ratio < LEAST_CONTRAST]
        assert pale == [], scheme
        brightness[scheme] = np.median(np.asarray(tab.picture("#how figure img").convert("L")))
    assert brightness["light"] > 200 > 60 > brightness["dark"]


@pytest.mark.parametrize("name", SETS)
def test_it_prints_and_fits_small_windows(told: dict[str, Told], tab: Tab, name: str) -> None:
    tab.show("light")
    tab.widen(390)
    tab.visit(told[name].page)
    assert tab.run("document.documentElement.scrollWidth") <= 390
    tab.show("dark", media="print")
    tab.widen(688)  # A4 within its margins, at 96 pixels an inch
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run("document.documentElement.scrollWidth") <= 688
    assert tab.run(TOO_WIDE) == []
    paper = tab.printed()
    assert paper.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 40


@pytest.mark.parametrize("name", SETS)
def test_page_document_and_table_agree(stores: Stores, told: dict[str, Told], tab: Tab, name: str) -> None:
    tab.show("light")
    tab.widen(1200)
    tab.visit(told[name].page)
    report, evaluation = told[name].report, stores.evaluations.read(told[name].evaluation.key)
    assert Report.from_json(report.to_json()) == report
    assert report.good.evaluation == evaluation
    shown = {
        row[0]: row[1:3]
        for row in tab.run(
            "[...document.querySelector('#good table').tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText))"
        )
    }
    for summary in evaluation.metrics:
        if summary.class_name is None:
            metric = metric_of(summary.metric)
            (row,) = [row for heading, row in shown.items() if heading.partition(" at 2 mm")[0] == metric.heading]
            assert row == [metric.format(summary.interval.value), span(summary.interval, metric)]
    pd.testing.assert_frame_equal(
        pd.read_parquet(told[name].page.parent / "cases.parquet"), stores.evaluations.cases(told[name].evaluation.key)
    )


def test_the_second_night_is_told_beside_the_first(told: dict[str, Told]) -> None:
    report = told["hippocampus"].report
    assert report.champion is not None
    assert report.champion.n_patients == report.good.evaluation.n_patients
    assert report.decision is not None
    assert report.decision.number is not None
    assert {"better", "margin"} <= {check.rule for check in report.decision.checks}
    assert report.data is not None
    scanners = [t.value for t in report.data.tallies if t.attribute == "scanner"]
    assert sorted(scanners) == ["GE One", "Philips One", "Siemens One"]
    sizes = [m for m in report.data.measures if m.unit == "mL"]
    assert [set(m.splits) for m in sizes] == [{"train", "test"}] * 2
    assert all(0.3 < spread.median < 5 for m in sizes for spread in m.splits.values())
    assert [(e.subject, e.reason, e.count) for e in report.data.exclusions] == [("images", "no-usable-label", 1)]
    assert [alert.told for alert in report.drift.alerts] == ["the slices lie twice as far apart"]
    assert told["pneumonia"].report.drift.alerts == ()


def test_it_is_kept_in_mlflow_with_what_lies_beside_it(stores: Stores, told: dict[str, Told]) -> None:
    kept = told["pneumonia"]
    stores.registry.attach_report(kept.run_id, *report_files(kept.page))
    files = {artifact.path for artifact in stores.registry._client.list_artifacts(kept.run_id, "report")}
    assert files == {f"report/{name}" for name in ("report.html", "report.json", "cases.parquet")}
