"""Which studies a label would teach most about: what is odd, what is doubtful, and no more than one of a patient."""

from __future__ import annotations

import numpy as np
import pytest

from models.hashing import content_key
from models.plan import CaseFacts
from models.refs import PackageRef
from models.watching import Suggestion
from tasks.stores.house import Stores
from tasks.stores.tables import Base, LabelRow, PredictionRow, SeriesRow, SplitRow, StudyRow, VolumeRow
from tasks.watch.suggest import suggest
from tests.tasks.watch.installation import WORLD, trained_on
from tests.tasks.watch.samples import cases

NAME = WORLD.recipe.name


@pytest.fixture
def package(stores: Stores) -> PackageRef:
    """It learnt from images like those of `cases`, and labels them itself."""
    facts = [case.facts.model_copy(update={"volume": content_key("t", n)}) for n, case in enumerate(cases(40, 1))]
    return trained_on(stores, facts, "serving").package


def study(
    stores: Stores,
    package: PackageRef | None,
    name: str,
    *,
    seed: int = 0,
    patient: str = "",
    unsure: float = 0.2,
    spacing: float = 1.0,
    modality: str = "CR",
) -> str:
    """A study with one image, shown to the model unless there is no `package`; returns its UID."""
    patient, uid, key = patient or f"P-{name}", f"2.25.{int(content_key(name)[:8], 16)}", content_key("volume", name)
    made = cases(1, 500 + seed, spacing=spacing)[0].facts.model_copy(update={"volume": key})
    shape, step = ("shape_z", "shape_y", "shape_x"), ("spacing_z", "spacing_y", "spacing_x")
    rows: list[Base] = [
        StudyRow(study=uid, patient=patient),
        SeriesRow(series=key, series_uid=uid, study=uid, patient=patient, modality=modality),
        VolumeRow(
            volume=key,
            series=key,
            series_uid=uid,
            study=uid,
            patient=patient,
            modality=modality,
            unit="arbitrary",
            frame_of_reference=None,
            geometry={},
            **dict(zip(shape, made.shape, strict=True)),
            **dict(zip(step, made.spacing, strict=True)),
        ),
    ]
    if package is not None:
        rows.append(_shown(package, key, made, unsure))
    stores.catalog.add(*rows)
    return uid


def _shown(package: PackageRef, key: str, facts: CaseFacts, unsure: float) -> PredictionRow:
    told = facts.model_dump(mode="json")
    return PredictionRow(
        prediction=key, package=package.key, volume=key, result={"findings": []}, facts=told, uncertainty=unsure
    )


def asked(stores: Stores, package: PackageRef, count: int = 10) -> list[Suggestion]:
    return list(suggest(stores, NAME, package, count))


def test_the_doubtful_and_the_odd_come_first_and_say_why(stores: Stores, package: PackageRef) -> None:
    usual = [study(stores, package, f"usual {n}", seed=n) for n in range(6)]
    doubtful = study(stores, package, "doubtful", seed=7, unsure=0.95)
    odd = study(stores, package, "odd", seed=8, spacing=3.0)
    found = asked(stores, package)
    assert {found[0].study, found[1].study} == {doubtful, odd}
    assert {one.study for one in found} == {*usual, doubtful, odd}
    why = {one.study: one.why for one in found}
    assert "unsure (0.95)" in why[doubtful]
    assert "spacing" in why[odd]
    assert "usually" in why[odd]
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= value <= 1 for one in found for value in (one.score, one.uncertainty, one.novelty))
    assert len(asked(stores, package, count=2)) == 2


def test_what_has_a_label_is_left_out_and_another_tables_is_none(stores: Stores, package: PackageRef) -> None:
    by_study, by_patient, other = (study(stores, package, name) for name in ("by study", "by patient", "other"))
    stores.catalog.add(
        LabelRow(label="1", patient="P-by study", source="CSV", study=by_study, value="plain"),
        LabelRow(label="2", patient="P-by patient", source="CSV", value="plain"),
        LabelRow(label="3", patient="P-other", source="SEG", study=other),
    )
    assert [one.study for one in asked(stores, package)] == [other]
    assert by_patient != other


def test_patients_kept_for_judging_and_other_kinds_of_images_are_left_out(stores: Stores, package: PackageRef) -> None:
    for name, split in (("judge", "test"), ("choose", "validation"), ("learn", "train")):
        study(stores, package, name)
        stores.catalog.add(SplitRow(patient=f"P-{name}", split=split, stratum="", origin="drawn"))
    study(stores, package, "another kind", modality="CT")
    (only,) = asked(stores, package)
    assert only.volume == content_key("volume", "learn")


def test_of_one_patient_there_is_one_and_the_alike_come_last(stores: Stores, package: PackageRef) -> None:
    for n in range(10):
        study(stores, package, f"same patient {n}", seed=n, patient="P-1", unsure=0.9)
    for n in range(5):
        study(stores, package, f"copy {n}", seed=77, unsure=0.8)
    varied = {study(stores, package, f"varied {n}", seed=200 + n, unsure=0.3) for n in range(4)}
    found = {one.study for one in asked(stores, package, count=6)}
    assert len(found) == 6
    assert varied <= found, "five copies of one image teach as much as one"


def test_what_the_model_has_not_seen_is_judged_by_what_the_catalog_tells(stores: Stores, package: PackageRef) -> None:
    seen = study(stores, package, "seen")
    unseen = study(stores, None, "unseen", seed=3, spacing=4.0)
    first, second = asked(stores, package)
    assert (first.study, second.study) == (unseen, seen)
    assert "has not seen it" in first.why
    assert np.isclose(first.uncertainty, 0.5)
