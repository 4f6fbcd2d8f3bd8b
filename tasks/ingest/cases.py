"""Which volumes a recipe means, and the label of each: pure rules over catalog rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from models.assembly import Assembled, assemble
from models.recipe import Images, LabelClass, Labels
from models.volume import Segment
from tasks.imaging.masks import belongs, classes_from_segments
from tasks.imaging.words import class_of, says, words
from tasks.stores.tables import LabelRow, VolumeRow


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A volume (by key) that is no case though the recipe means its modality, or a label that a correction replaced."""

    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """A volume, its label, and what the label shows: classes of the recipe, or names where it has none.

    `channels` are the volumes beside it, "" where one is missing.
    """

    volume: VolumeRow
    label: LabelRow
    shows: frozenset[str]
    channels: tuple[str, ...] = ()


def select(images: Images, volumes: Iterable[VolumeRow]) -> tuple[list[Assembled[VolumeRow]], list[Exclusion]]:
    """What the recipe's rules make a case of, its label apart; and the volumes that are left out."""
    kept, left = assemble(images, volumes)
    return kept, [Exclusion(one.volume, one.reason) for one in left]


def join(
    labels: Labels,
    assembled: Sequence[Assembled[VolumeRow]],
    rows: Sequence[LabelRow],
    corrected: Mapping[str, datetime],
) -> tuple[list[Case], list[Exclusion]]:
    """Each case with its label, which is its reference's. `corrected` says when labels became corrections."""
    beside = {one.reference.volume: one.channels for one in assembled}
    cases, excluded = _labelled(labels, [one.reference for one in assembled], rows, corrected)
    return [replace(case, channels=beside[case.volume.volume]) for case in cases], excluded


def _labelled(
    labels: Labels, volumes: Sequence[VolumeRow], rows: Sequence[LabelRow], corrected: Mapping[str, datetime]
) -> tuple[list[Case], list[Exclusion]]:
    """Each volume with its label: of masks the last correction of a model's, else the newest; of a table's classes the
    narrowest (series, study, patient)."""
    find = _classes_by_subject(rows) if labels.source == "CSV" else _masks_by_volume(rows, corrected)
    cases, excluded = [], []
    for volume in volumes:
        found = [Case(volume, row, shown) for row in find(volume) if (shown := _shown(labels, row)) is not None]
        if found and labels.source != "CSV" and found[0].label.label in corrected:
            # Whoever corrected saw all of it: what was said before does not count any more.
            excluded += [Exclusion(case.label.label, "label-corrected") for case in found[1:]]
            cases.append(found[0])
        elif found and not _torn(found):
            cases.append(found[0])
        else:
            excluded.append(Exclusion(volume.volume, _why(found, bool(find(volume)))))
    current, superseded = _current(cases)
    return current, excluded + superseded


def _why(found: Sequence[Case], labelled: bool) -> str:
    if found:
        return "label-in-parts"
    return "no-matching-class" if labelled else "no-label"


def _torn(found: Sequence[Case]) -> bool:
    """Whether structures are spread over several labels: the newest alone would call the others' background."""
    return any(case.shows and found[0].shows and not case.shows & found[0].shows for case in found[1:])


def _shown(labels: Labels, row: LabelRow) -> frozenset[str] | None:
    """What a label shows, or None where the recipe means nothing in it. Empty: looked for, and not there."""
    if labels.several:
        meant = labels.classes or classes_named(labels, [row])
        return frozenset(wanted.name for wanted in meant if says(row.value, wanted))
    told = structures(row)
    if not labels.classes:
        return frozenset(segment.name for segment, there in told if there) if told else None
    if row.source == "CSV":
        place = class_of(told[0][0], labels.classes)
        return None if place is None else frozenset({labels.classes[place].name})
    found = [(wanted.name, there) for segment, there in told for wanted in labels.classes if belongs(segment, wanted)]
    return frozenset(name for name, there in found if there) if found else None


def structures(row: LabelRow) -> list[tuple[Segment, bool]]:
    """What a label speaks of, and whether it is there: a mask's segments, or a table's value as one."""
    if row.source == "CSV":
        return [(Segment(0, row.value or ""), True)]
    return [(Segment(s["number"], s["name"], s["code"]), s["voxels"] > 0) for s in row.segments]


def classes_named(labels: Labels, rows: Iterable[LabelRow]) -> tuple[LabelClass, ...]:
    """Every word of these values as a class, but for those that say that there is none."""
    none = LabelClass(name="none", match=labels.none)
    named = (word for row in rows for word in words(row.value) if not belongs(word, none))
    return _by_spelling(named, by_number=True)


def _masks_by_volume(
    rows: Sequence[LabelRow], corrected: Mapping[str, datetime]
) -> Callable[[VolumeRow], Sequence[LabelRow]]:
    """Corrections first, the last one leading; then the others, the newest leading."""
    found: dict[str, list[LabelRow]] = defaultdict(list)
    corrections = sorted(
        (row for row in rows if row.label in corrected), key=lambda r: (corrected[r.label], r.label), reverse=True
    )
    for row in (*corrections, *_newest_first([row for row in rows if row.label not in corrected])):
        found[row.volume or ""].append(row)
    return lambda volume: found.get(volume.volume, ())


def _classes_by_subject(rows: Sequence[LabelRow]) -> Callable[[VolumeRow], Sequence[LabelRow]]:
    newest: dict[tuple[str | None, str | None, str | None], LabelRow] = {}
    for row in _newest_first(rows):
        subject = (None, None, row.series_uid) if row.series_uid else (None, row.study, None)
        newest.setdefault(subject if any(subject) else (row.patient, None, None), row)

    def find(volume: VolumeRow) -> Sequence[LabelRow]:
        subjects = ((None, None, volume.series_uid), (None, volume.study, None), (volume.patient, None, None))
        return [newest[subject] for subject in subjects if subject in newest][:1]

    return find


def _newest_first(rows: Sequence[LabelRow]) -> list[LabelRow]:
    return sorted(rows, key=lambda row: (row.created_at, row.label), reverse=True)


def _current(cases: Sequence[Case]) -> tuple[list[Case], list[Exclusion]]:
    """Of a series that was received more than once, the last reception that has a label."""
    last: dict[str, tuple[object, str]] = {}
    for case in cases:
        stamp = (case.volume.created_at, case.volume.series)
        last[case.volume.series_uid] = max(last.get(case.volume.series_uid, stamp), stamp)
    kept, gone = [], []
    for case in cases:
        if case.volume.series == last[case.volume.series_uid][1]:
            kept.append(case)
        else:
            gone.append(Exclusion(case.volume.volume, "superseded"))
    return kept, gone


def seen_classes(labels: Labels, cases: Sequence[Case]) -> tuple[LabelClass, ...]:
    """The recipe's classes, or what these cases show: by the structures' numbers or the values, then by name."""
    if labels.classes:
        return labels.classes
    if labels.several:
        return classes_named(labels, (case.label for case in cases))
    seen = (segment for case in cases for segment, there in structures(case.label) if there)
    return _by_spelling(seen, by_number=labels.source == "CSV")


def _by_spelling(segments: Iterable[Segment], *, by_number: bool) -> tuple[LabelClass, ...]:
    """A class for each name. Spellings that differ in case alone are one, as they are for patterns."""
    seen = list(segments)
    spelling: dict[str, str] = {}
    for name in sorted({segment.name for segment in seen}):
        spelling.setdefault(name.casefold(), name)
    seen = [Segment(segment.number, spelling[segment.name.casefold()]) for segment in seen]
    if by_number:
        ranked = sorted(spelling.values(), key=_by_number)
        seen = [Segment(rank, value) for rank, value in enumerate(ranked)]
    return classes_from_segments([seen])


def _by_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def known_to(classes: Sequence[LabelClass], case: Case) -> bool:
    """Whether any of the classes means something in the case's label."""
    return any(class_of(segment, classes) is not None for segment, _ in structures(case.label))
