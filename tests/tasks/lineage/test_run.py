"""From any end to all others, both ways, whoever it is called by."""

from __future__ import annotations

from itertools import product

import pytest
from sqlalchemy import event

from models.errors import NotFoundError
from models.lineage import KINDS, Lineage, NodeName
from tasks.lineage.run import NEAREST, lineage
from tasks.stores.tables import LabelRow, SeriesRow, StudyRow, VolumeRow
from tests.tasks.lineage.conftest import Round

UP_OF_CORRECTION = {"patient", "study", "series", "volume", "label", "prediction", "package"}


def kinds(found: Lineage, way: str) -> set[str]:
    return {name.kind for name in found.reach(way)}  # type: ignore[arg-type]


def test_upstream_of_one_is_downstream_of_the_other(whole: Round) -> None:
    seen = {name: lineage(whole.stores, name.key, complete=True) for name in names(whole)}
    every = {node for found in seen.values() for node in found.by_name}
    assert {name.kind for name in every} == set(KINDS)
    for one, other in product(seen, seen):
        assert (other in seen[one].reach("up")) == (one in seen[other].reach("down")), (one, other)
    for name, found in seen.items():
        assert name not in found.reach("up") | found.reach("down"), "nothing comes of itself"
        for node in found.nodes:
            assert all(node.name in found.by_name[near].down for near in node.up)


def names(whole: Round) -> list[NodeName]:
    return [NodeName(kind=kind, key=key) for kind, key in whole.keys.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_end_by_its_key_and_by_the_beginning_of_it(whole: Round, kind: str) -> None:
    key = whole.keys[kind]
    for complete in (False, True):
        found = lineage(whole.stores, key, complete=complete)
        assert found.root == NodeName(kind=kind, key=key)  # type: ignore[arg-type]
        assert found.by_name[found.root].title
    if len(key) == 32:
        assert lineage(whole.stores, key[:12]).root == found.root


def test_what_a_delivered_object_came_from(whole: Round) -> None:
    found = lineage(whole.stores, str(whole.ours.SOPInstanceUID))  # as in the PACS
    assert found.root == NodeName(kind="object", key=whole.keys["object"])
    assert kinds(found, "up") == {
        *("delivery", "analysis", "version", "study", "patient", "prediction", "volume", "series", "package", "dataset")
    }
    assert str(whole.ours.SOPInstanceUID) not in found.model_dump_json()


def test_what_came_of_a_correction(whole: Round) -> None:
    """By the UID of the object that somebody stored: its label, and the model that learnt from it."""
    found = lineage(whole.stores, str(whole.corrected.SOPInstanceUID))
    assert found.root == NodeName(kind="label", key=whole.keys["label"])
    assert kinds(found, "down") == {"correction", "dataset", "plan", "package", "evaluation", "decision", "alert"}
    assert NodeName(kind="prediction", key=whole.keys["prediction"]) in found.reach("up")


def test_images_by_their_original_names(whole: Round) -> None:
    for kind, uid in (("study", whole.ours.StudyInstanceUID), ("series", _image_series(whole))):
        assert lineage(whole.stores, str(uid)).root == NodeName(kind=kind, key=whole.keys[kind])  # type: ignore[arg-type]
    assert lineage(whole.stores, str(whole.ours.PatientID)).root.kind == "patient"


def _image_series(whole: Round) -> str:
    return str(whole.ours.ReferencedSeriesSequence[0].SeriesInstanceUID)


def test_models_by_name_and_version(whole: Round) -> None:
    new = NodeName(kind="package", key=whole.keys["package"])
    assert lineage(whole.stores, "liver/8").root == new
    old = lineage(whole.stores, "liver/7").root
    assert old in lineage(whole.stores, "liver/8").reach("up")
    with pytest.raises(NotFoundError, match="no version '9'") as raised:
        lineage(whole.stores, "liver/9")
    assert "7, 8" in str(raised.value.hint)


def test_what_is_unknown_is_told_with_what_to_do(whole: Round) -> None:
    for what in ("nothing-like-it", "1.2.840.99999.1.2.3", "feedfacefeedface"):
        with pytest.raises(NotFoundError) as raised:
            lineage(whole.stores, what)
        assert raised.value.hint


def test_the_beginning_of_several_keys_lists_them(own: Round) -> None:
    for n in range(2):
        own.stores.catalog.add(LabelRow(label=f"abcd{n}", patient=own.keys["patient"], source="CSV"))
    with pytest.raises(NotFoundError, match="label abcd0, label abcd1") as several:
        lineage(own.stores, "abcd")
    assert several.value.reason == "ambiguous"


def crowd(whole: Round, count: int) -> None:
    """Further series of the study, each with an image."""
    known = whole.stores.catalog.get(VolumeRow, whole.keys["volume"])
    assert known is not None
    same = {c.name: getattr(known, c.name) for c in VolumeRow.__table__.columns}
    for n in range(count):
        uid = f"2.25.9{n:05}"
        whole.stores.catalog.add(
            SeriesRow(series=f"s{n}", series_uid=uid, study=known.study, patient=known.patient, modality="CT"),
            VolumeRow(**{**same, "volume": f"v{n}", "series": f"s{n}", "series_uid": uid}),
        )


def test_many_are_counted_and_all_of_them_are_there_if_asked(own: Round) -> None:
    crowd(own, 40)
    found = lineage(own.stores, own.keys["study"])
    study = found.by_name[found.root]
    assert len([name for name in study.down if name.kind == "series"]) == NEAREST
    assert study.more_down["series"] == 41 - NEAREST
    every = lineage(own.stores, own.keys["study"], complete=True)
    assert len([name for name in every.by_name[every.root].down if name.kind == "series"]) == 41
    assert not any(node.more_up or node.more_down for node in every.nodes)


def test_more_images_are_not_more_questions(own: Round) -> None:
    def asked() -> int:
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        engine = own.stores.catalog.engine
        event.listen(engine, "before_cursor_execute", counted)
        try:
            lineage(own.stores, own.keys["study"], complete=True)
        finally:
            event.remove(engine, "before_cursor_execute", counted)
        return count

    before = asked()
    crowd(own, 60)
    assert asked() == before


def test_a_study_that_never_became_an_image_has_a_lineage(own: Round) -> None:
    own.stores.catalog.add(StudyRow(study="2.25.777", patient="P-AAAA"))
    found = lineage(own.stores, "2.25.777")
    assert kinds(found, "up") == {"patient"}
    assert kinds(found, "down") == set()
