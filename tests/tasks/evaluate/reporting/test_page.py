from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from models.evaluation import Picture
from models.geometry import Geometry
from models.plan import Drift
from models.report import Alert, Report
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.reporting.compose import Judged, compose
from tasks.evaluate.reporting.metrics import METRICS
from tasks.evaluate.reporting.page import render
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation
from tests.tasks.evaluate.reporting.samples import NOW, SECTIONS, Page, a_segmentation, everything, page_of


def test_the_whole_story_is_on_one_page_that_fetches_nothing() -> None:
    text = render(*compose(a_segmentation()))
    page = Page(text)
    for section, parts in {
        "summary": ("Promoted: this version serves", "Mean Dice", "in 4 cases of 4 test patients", "the challenger is"),
        "data": ("Acme Pulsar", "not told", "non-uniform-spacing", "volume of liver, where there (mL)"),
        "how": ("1 h 2 min", "1,234,567", "patch bounded by memory", "images.modality", "abc123"),
        "good": ("Surface Dice at 2 mm", "missed, invented"),
        "champion": ("Challenger minus champion", "the challenger is better"),
        "fails": ("missed cyst",),
        "decision": ("Better on <the same> patients.", "the defaults"),
        "provenance": ("k0", "sha256:77"),
    }.items():
        for part in parts:
            assert part in page.sections[section], (section, part)
    assert "One case is unusual." in page.text
    assert {t for t in page.targets if t.startswith("#")} == set(page.targets)
    assert {t[1:] for t in page.targets} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in page.images)
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(|<script", text)


def test_sections_are_always_there_and_say_what_is_not_known() -> None:
    full = a_segmentation()
    page = page_of(Judged(full.evaluation, NOW))
    assert list(page.sections) == SECTIONS
    assert list(page_of(full).sections) == SECTIONS
    for section, told in {
        "data": "not at hand",
        "how": "not at hand",
        "champion": "no champion",
        "fails": "No subgroup",
        "drift": "no version of this model has predicted",
        "decision": "Nothing was decided",
    }.items():
        assert told in page.sections[section]


def test_words_from_outside_stay_words() -> None:
    page = render(*compose(a_segmentation("<script>alert(1)</script>")))
    assert "<script>" not in page
    assert "Better on &lt;the same&gt; patients." in page


def test_the_document_survives_json_and_draws_the_same_page() -> None:
    report, pictures = compose(everything())
    again = Report.from_json(report.to_json())
    assert again == report
    assert render(again, pictures) == render(report, pictures)
    assert {p.name for p in pictures} == {p.name for p in report.good.pictures} >= {"learning-curve", "distributions"}


def test_subgroups_bear_their_size_and_small_ones_are_marked() -> None:
    page = page_of(everything())
    fails = " ".join(page.sections["fails"].split())
    assert "Manufacturer Acme 30 31 0.200 (0.180–0.220) below the whole" in fails
    assert "Bolt 3 4 0.900 (0.880–0.920) small: fewer than 10" in fails
    assert "Sex F 20 21 0.950 (0.930–0.970)" in fails
    champion = " ".join(page.sections["champion"].split())
    assert "Acme 30 31 −0.100 (−0.120 to −0.080) worse" in champion
    assert "Bolt 3 4 +0.500 (+0.480 to +0.520) small" in champion
    assert "F 20 21 +0.200 (+0.180 to +0.220) better" in champion


def test_tests_rules_agreement_and_cost_are_told_one_by_one() -> None:
    page = {name: " ".join(text.split()) for name, text in page_of(everything()).sections.items()}
    assert "Dice liver < 0.001 0.002 < 0.001 they differ" in page["champion"]
    assert "Dice cyst – 0.400 0.400 may be chance" in page["champion"]
    assert "Not worse: margin on the paired interval −0.01 0.03 kept" in page["decision"]
    assert "Time for a case (s) 1 1.25 broken the median case took 1.25 s" in page["decision"]
    assert "A person's approval – – not judged nobody was asked" in page["decision"]
    assert "dr-x" in page["decision"]
    assert "number in the audit trail 17" in page["decision"]
    assert "Kept: it does not serve" in page["summary"]
    assert "liver −1.50 (−2.00 to −1.00) −4.00 (−5.00 to −3.00) +1.00 (+0.00 to +2.00) 2" in page["good"].replace(
        "(0.00 to", "(+0.00 to"
    )
    assert "median time 1.25 s" in page["how"]
    assert "7.75 MB" in page["how"]


def test_pictures_stand_where_their_names_belong() -> None:
    names = ("saliency-2", "mystery", "bland-altman-liver", "learning-curve", "overlays-uncertain", "uncertainty")
    given = tuple(Picture(name, f"title of {name}", "seen", b"<svg/>") for name in names)
    text = render(*compose(dataclasses.replace(everything(), pictures=given)))
    page = Page(text)
    assert "title of learning-curve" in page.sections["how"]
    order = [page.sections["good"].index(f"title of {name}") for name in (
        "bland-altman-liver", "overlays-uncertain", "saliency-2", "uncertainty", "mystery"
    )]  # fmt: skip
    assert order == sorted(order)
    assert page.sections["good"].index("Further pictures") < order[-1]
    assert text.count("title of") == len(names)


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_classification_names_what_was_called_and_where_it_fails(classes: tuple[str, ...]) -> None:
    generator = np.random.default_rng(0)
    truth = np.arange(30) % len(classes)
    chances = generator.dirichlet(np.ones(len(classes)), 30)
    names = [f"P{i}" for i in range(30)], [f"c{i}" for i in range(30)]
    found, frame, pictures = evaluate_classification(
        *names, truth, chances, classes, package="k", dataset="d", bootstrap=100
    )
    judged = Judged(found, NOW, cases=frame, pictures=tuple(pictures))
    page, report = page_of(judged), compose(judged)[0]
    assert {"roc", "precision-recall", "calibration", "confusion"} <= {p.name for p in report.good.pictures}
    hardest = int(np.argmin(chances[np.arange(30), truth]))
    first = report.fails.worst[0]
    assert (first.patient, first.case, first.class_name) == (f"P{hardest}", f"c{hardest}", classes[truth[hardest]])
    flattest = int(np.argmin(chances.max(axis=1)))
    if len(classes) == 2:
        assert report.fails.uncertain[0].patient == f"P{flattest}"
        assert 0.9 < report.fails.uncertain[0].figures["uncertainty"] <= 1
    assert ("By class" in page.text) == (len(classes) > 2)
    assert ("is called from a probability of 0.500" in page.text) == (len(classes) == 2)


def test_a_single_patient_has_no_interval() -> None:
    truth = np.ones((1, 8, 8), np.uint8)
    sample = SegmentationSample("P", "c", None, truth, truth, Geometry.from_spacing(truth.shape, (1, 1, 1)))
    found, _, pictures = evaluate_segmentation([sample], ("a",), package="k", dataset="d", bootstrap=100)
    page = page_of(Judged(found, NOW, pictures=tuple(pictures)))
    assert "one patient only" in page.text
    assert "Mean Dice 1.000 in 1 case of 1 test patient." in page.text


def test_numbers_have_real_minus_signs() -> None:
    metric = METRICS["volume_error_ml"]
    assert (metric.format(-1.234), metric.format(0.5, sign=True), metric.format(-0.0001)) == ("−1.23", "+0.50", "0.00")


def test_the_page_says_how_far_the_data_drifted_what_is_watched_and_where_the_weights_came_from() -> None:
    judged = a_segmentation()
    assert judged.package is not None
    moved = Drift(measure="spacing z", how="factor", value=1.6, threshold=1.1, told="median 1 mm then, 1.6 mm now")
    same = Drift(measure="manufacturers", how="psi", value=0.01, threshold=0.25, told="A 100% then, A 100% now")
    plan = judged.package.plan.model_copy(update={"drift": (same, moved)})
    package = judged.package.model_copy(update={"plan": plan, "started_from": "feedface"})
    alert = Alert(
        kind="input", measure="median", how="ks", value=0.0001, threshold=0.001, cases=30, told="brighter than ever",
        package="k0", since=NOW,
    )  # fmt: skip
    page = page_of(dataclasses.replace(judged, package=package, champion=judged.package, alerts=(alert,), watched=9))
    drift = page.sections["drift"]
    assert drift.index("median 1 mm then, 1.6 mm now") < drift.index("A 100% then")
    assert "drifted" in drift
    assert "brighter than ever" in drift
    assert "2026-03-04" in drift
    assert "feedface" in page.sections["provenance"]
    assert "are dashed" in str(page.images)
    quiet = page_of(dataclasses.replace(judged, watched=9))
    assert "are dashed" not in str(quiet.images)
    assert "Drift from what" not in quiet.text
    assert "No alert is open; 9 predictions" in quiet.sections["drift"]
