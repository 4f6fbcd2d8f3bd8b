"""A study is analysed when it is whole: its channels may come one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.errors import BadInputError, NothingToDoError
from models.hashing import content_key
from models.plan import Normalisation
from models.recipe import Recipe
from models.refs import CaseRef, PackageRef, StudyVersionRef
from tasks.imaging import registration
from tasks.predict.run import analyse, checks, choose_volumes, findings, predict_each, predict_volumes
from tasks.predict.warm import predictor_for
from tasks.stores.house import Stores
from tasks.stores.tables import AnalysisRow, QuarantineRow, StudyVersionRow, VolumeRow
from tests.tasks.predict.samples import Levels, a_package, a_study, a_volume, scene
from tests.tasks.train.samples import World, balls


class Second(Levels):
    """Reads the class off the second channel, where there is one: zeros are background."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, 1:])


def two_channels(**images: object) -> World:
    world = balls()
    plan = world.plan.model_copy(
        update={
            "channels": ("T1", "T2"),
            "network": world.plan.network.model_copy(update={"in_channels": 2}),
            "prepare": world.plan.prepare.model_copy(
                update={"channels": 2, "normalisation": (Normalisation(scheme="none"),) * 2}
            ),
        }
    )
    channels = [{"name": name, "modality": "MR", "description": name.lower()} for name in ("T1", "T2")]
    recipe = world.recipe.model_dump(mode="json") | {"images": {"channels": channels, **images}}
    return World(plan, Recipe.model_validate(recipe), world.dataset, world.store)


def reading(stores: Stores, **images: object) -> PackageRef:
    package = a_package(stores, two_channels(**images))
    predictor_for(stores, package)[1].network = Second()
    return package


def a_version(stores: Stores, number: int) -> StudyVersionRef:
    key = content_key("version", number)
    stores.catalog.add(StudyVersionRow(version=key, study="2.25.1", number=number, instances=[number], why="quiet"))
    return StudyVersionRef.to(key)


def said(stores: Stores, ref: object) -> AnalysisRow:
    row = stores.catalog.get(AnalysisRow, str(ref))
    assert row is not None
    return row


def frame(stores: Stores, *refs: object) -> None:
    """The volumes lie in one frame of reference."""
    for ref in refs:
        stores.catalog.change(VolumeRow, VolumeRow.volume == str(ref), frame_of_reference="2.25.5")


def test_the_late_series_completes_the_case_and_decides_it(stores: Stores) -> None:
    package, first = reading(stores), a_study(stores)
    t1 = a_volume(stores, np.ones_like(scene()), series="t1")
    frame(stores, t1)
    early = said(stores, analyse(stores, first, package, [t1], name="b", model_version="1"))
    assert (early.outcome, early.predictions) == ("nothing-fits", [])
    assert "missing-channel-T2" in early.detail
    t2 = a_volume(stores, scene(), series="t2")
    frame(stores, t2)
    late = analyse(stores, a_version(stores, 2), package, [t1, t2], name="b", model_version="1")
    (key,) = said(stores, late).predictions
    found = findings(stores, key)
    assert found[1].voxels == int((scene() == 2).sum())
    # By the late series alone, and by both, it is the same case.
    assert choose_volumes(stores, package, [t2]) == choose_volumes(stores, package, [t1, t2])
    assert choose_volumes(stores, package, [t2]) == (CaseRef(key=t1.key, channels=(t2.key,)),)
    assert predict_volumes(stores, package, choose_volumes(stores, package, [t2])) == (key,)
    assert checks(stores, key) == ()


def test_without_its_second_series_a_study_is_predicted_where_that_was_learnt(stores: Stores) -> None:
    package = reading(stores, missing="learn")
    t1 = a_volume(stores, np.ones_like(scene()), series="t1")
    (alone,) = choose_volumes(stores, package, [t1])
    assert alone == CaseRef(key=t1.key, channels=("",))
    (key,) = predict_volumes(stores, package, [alone])
    assert [finding.voxels for finding in findings(stores, key)] == [0, 0]


def test_series_in_other_frames_are_no_case_unless_registered(stores: Stores) -> None:
    package = reading(stores)
    t1, t2 = (a_volume(stores, scene(), series=name) for name in ("t1", "t2"))
    with pytest.raises(NothingToDoError, match="other-frame-of-reference-T2"):
        choose_volumes(stores, package, [t1, t2])


def test_a_refused_registration_sets_the_case_aside_with_its_reason(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BadInputError("too far", reason="registration-implausible")

    monkeypatch.setattr(registration, "register", refuse)
    package = reading(stores, registration="rigid")
    t1, t2 = (a_volume(stores, scene(), series=name) for name in ("t1", "t2"))
    predicted = predict_each(stores, package, choose_volumes(stores, package, [t1, t2]))
    assert not predicted.keys
    ((ref, error),) = predicted.refused
    assert (ref.key, error.reason) == (t1.key, "registration-implausible")
    assert [row.reason for row in stores.catalog.find(QuarantineRow)] == ["registration-implausible"]
