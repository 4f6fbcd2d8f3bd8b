"""A label that comes after a prediction corrects it: once, whoever sent it, and whatever it names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest

from models.refs import CorrectionRef
from tasks.correct import pairs, run
from tasks.correct.pairs import Pair
from tasks.correct.run import correct
from tasks.stores.house import Stores
from tasks.stores.tables import CorrectionRow, LabelRow, QuarantineRow
from tests.tasks.correct.conftest import Reader


def rows(reader: Reader) -> list[CorrectionRow]:
    return list(reader.installation.stores.catalog.find(CorrectionRow, order_by=CorrectionRow.created_at))


def test_our_own_result_is_neither_label_nor_correction(reader: Reader) -> None:
    (outcome,) = reader.send(reader.ours)
    assert (outcome.labels, outcome.quarantined) == ((), ())
    assert reader.installation.stores.catalog.count(LabelRow) == 0
    assert correct(reader.installation.stores) == ()


def test_what_was_left_as_it_was_is_perfect(reader: Reader) -> None:
    done = reader.corrections(reader.send(reader.correct(reader.drawn())))
    (row,) = rows(reader)
    assert [ref.key for ref in done] == [row.correction]
    assert (row.how, row.value, row.prediction) == ("referenced", 1.0, reader.prediction.prediction)
    assert [(s["class_name"], s["dice"], s["hd95_mm"]) for s in row.scores] == [("liver", 1, 0), ("lesion", 1, 0)]


def test_scores_are_those_of_an_evaluation(reader: Reader) -> None:
    pixels = reader.drawn()
    kept = pixels[..., 0].copy()
    kept[: kept.shape[0] // 2] = 0
    pixels[..., 0] = kept
    pixels[..., 1] = 0  # there is no lesion
    reader.corrections(reader.send(reader.correct(pixels)))
    (row,) = rows(reader)
    liver, lesion = row.scores
    said, real = int(reader.drawn()[..., 0].sum()), int(kept.sum())
    assert liver["dice"] == pytest.approx(2 * real / (said + real))
    assert (lesion["outcome"], lesion["dice"], lesion["volume_error_relative"]) == ("invented", 0.0, None)
    assert row.value == pytest.approx(liver["dice"] / 2)


def test_doing_it_again_finds_it_done(reader: Reader) -> None:
    outcomes = reader.send(reader.correct(reader.drawn()))
    assert len(reader.corrections(outcomes)) == 1
    assert reader.corrections(outcomes) == ()
    assert correct(reader.installation.stores) == ()
    assert len(rows(reader)) == 1


def test_the_night_finds_what_an_arrival_left(reader: Reader) -> None:
    reader.send(reader.correct(reader.drawn()))
    assert len(correct(reader.installation.stores)) == 1


@pytest.mark.parametrize("keyword", ["SourceImageSequence", "ReferencedInstanceSequence", "DerivationImageSequence"])
def test_wherever_it_names_our_object(reader: Reader, keyword: str) -> None:
    drawn = reader.correct(reader.drawn())
    item = drawn.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    del drawn.PredecessorDocumentsSequence
    frame = drawn.PerFrameFunctionalGroupsSequence[-1]
    match keyword:
        case "SourceImageSequence":
            drawn.SourceImageSequence = [item]
        case "ReferencedInstanceSequence":
            drawn.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(item)
        case _:
            frame.DerivationImageSequence[0].SourceImageSequence.append(item)
    reader.corrections(reader.send(drawn))
    assert [row.how for row in rows(reader)] == ["referenced"]


def test_a_later_drawing_of_the_same_image_corrects_too(reader: Reader) -> None:
    reader.corrections(reader.send(reader.draw(reader.drawn())))
    assert [(row.how, row.value) for row in rows(reader)] == [("same-image", 1.0)]


def test_a_drawing_of_something_else_corrects_nothing(reader: Reader) -> None:
    spleen = reader.draw(reader.drawn()[..., :1], names=["Spleen"])
    # Only a part of what the model found, and nothing says that it began from that.
    part = reader.draw(reader.drawn()[..., :1], names=["Liver"])
    assert len(reader.corrections(reader.send(spleen, part))) == 0
    assert reader.installation.stores.catalog.count(LabelRow) == 2
    assert reader.installation.stores.catalog.count(QuarantineRow) == 0


def test_what_is_gone_from_our_result_was_taken_away(reader: Reader) -> None:
    drawn = reader.correct(reader.drawn())
    alone = reader.draw(reader.drawn()[..., :1], names=["Liver"])
    alone.PredecessorDocumentsSequence = drawn.PredecessorDocumentsSequence
    reader.corrections(reader.send(alone))
    (row,) = rows(reader)
    assert [(s["class_name"], s["outcome"]) for s in row.scores] == [("liver", "found"), ("lesion", "invented")]


def test_a_label_from_before_the_prediction_corrects_nothing(reader: Reader) -> None:
    outcomes = reader.send(reader.draw(reader.drawn()))
    stores = reader.installation.stores
    stores.catalog.change(LabelRow, created_at=reader.prediction.created_at)
    assert reader.corrections(outcomes) == ()


def test_every_model_that_spoke_of_the_image_is_scored(reader: Reader) -> None:
    """The shadow's prediction too, though nobody saw it."""
    installation = reader.installation
    shadow = installation.package(recipe="[split]\ntrain = 0.5\nvalidation = 0.1\ntest = 0.4")
    drawn = {name: (lambda shape: np.ones(shape, np.bool_)) for name in ("liver", "lesion")}
    key = installation.segment(shadow, reader.volume, drawn)
    said = installation.row(reader.analysis).predictions[0]
    mask = installation.stores.volumes.open_mask(said).read()
    reader.corrections(reader.send(reader.correct(np.moveaxis(mask.occupancy > 127, 0, -1).astype(np.uint8))))
    found = {row.prediction: row.how for row in rows(reader)}
    assert found.pop(key) == "same-image"
    assert list(found.values()) == ["referenced"]


@pytest.mark.parametrize("at_once", [1, 2, 500])
def test_a_first_look_finds_all_however_many_it_takes_at_a_time(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(pairs, "_AT_ONCE", at_once)
    drawn = reader.drawn()
    for depth in range(3):
        changed = drawn.copy()
        changed[depth] = 0
        reader.send(reader.correct(changed))
    stores = reader.installation.stores
    assert len(correct(stores)) == stores.catalog.count(LabelRow) == 3
    assert correct(stores) == ()


def test_a_lost_mask_is_set_aside_and_the_rest_goes_on(reader: Reader) -> None:
    outcomes = reader.send(reader.correct(reader.drawn()))
    stores = reader.installation.stores
    shutil.rmtree(stores.volumes.place.local(reader.prediction.prediction))
    assert reader.corrections(outcomes) == ()
    (aside,) = stores.catalog.find(QuarantineRow)
    assert (aside.stage, aside.reason) == ("correct", "not-found")
    assert str(reader.slices[0].PatientID) not in str(aside)


def test_a_later_night_looks_at_later_labels_alone(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_OVERLAP", timedelta(0))
    stores = reader.installation.stores
    assert correct(stores) == ()
    left = reader.send(reader.draw(reader.drawn(), names=("spleen", "kidney")))
    looked = counted_pairs(monkeypatch)
    assert correct(stores) == ()
    assert looked == [1]
    assert correct(stores) == ()
    assert looked == [1, 0]
    assert reader.corrections(left) == ()
    reader.send(reader.correct(reader.drawn()))
    assert len(correct(stores)) == 1
    assert looked[-1] == 1


def test_what_could_not_be_scored_is_tried_every_night(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_OVERLAP", timedelta(0))
    stores = reader.installation.stores
    reader.send(reader.correct(reader.drawn()))
    lost = stores.volumes.place.local(reader.prediction.prediction)
    lost.rename(lost.with_name("elsewhere"))
    assert correct(stores) == ()
    assert correct(stores) == ()
    lost.with_name("elsewhere").rename(lost)
    assert len(correct(stores)) == 1
    (aside,) = stores.catalog.find(QuarantineRow)
    assert aside.resolved_at is not None


def counted_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each later call takes up."""
    looked: list[int] = []
    scored = run._scored

    def counting(stores: Stores, pairs: Sequence[Pair]) -> tuple[CorrectionRef, ...]:
        looked.append(len(pairs))
        return scored(stores, pairs)

    monkeypatch.setattr(run, "_scored", counting)
    return looked
