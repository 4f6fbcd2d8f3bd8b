"""From a recipe and the catalog to a dataset: an immutable list of (volume, label, split)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select as sql_select
from sqlalchemy.orm import Session

from models.dataset import Dataset, DatasetRow, SplitName
from models.errors import NothingToDoError, RecipeError
from models.pseudonyms import Pseudonymizer
from models.recipe import LabelClass, Labels, Recipe
from models.refs import DatasetRef
from models.volume import Segment
from tasks.imaging.words import class_of, says
from tasks.ingest.cases import Case, Exclusion, join, known_to, select
from tasks.ingest.corrected import Corrections
from tasks.ingest.patients import whole_patients
from tasks.ingest.splits import place, strata
from tasks.stores.catalog import Catalog, distinct, in_parts
from tasks.stores.clinical import clinical_values
from tasks.stores.datasets import DatasetStore, record_of
from tasks.stores.meant import OTHERWISE, described_otherwise, meant_volumes
from tasks.stores.tables import DatasetRecord, LabelRow
from tasks.stores.volumes import VolumeStore

__all__ = ["DatasetBuild", "Exclusion", "build_dataset"]


@dataclass(frozen=True, slots=True)
class DatasetBuild:
    """A dataset, whether it was there before, and what was left out of it with the reason."""

    ref: DatasetRef
    dataset: Dataset
    exclusions: tuple[Exclusion, ...]
    existed: bool

    @property
    def reasons(self) -> dict[str, int]:
        """How many volumes were left out, by reason; under "label-corrected", labels that a correction replaced."""
        return dict(sorted(Counter(exclusion.reason for exclusion in self.exclusions).items()))


def build_dataset(
    recipe: Recipe,
    catalog: Catalog,
    store: DatasetStore,
    pseudonymizer: Pseudonymizer,
    volumes: VolumeStore | None = None,
) -> DatasetBuild:
    """The recipe's images and labels as a dataset. Patients seen for the first time get their split, for good.

    The same catalog gives the same dataset. All or nothing: splits, manifest and row are committed together.
    `volumes` is asked for headers that the catalog has not kept.
    Raises NothingToDoError where no case is usable, RecipeError where the recipe does not say which labels or
    clinical table.
    """
    with catalog.transaction() as session:
        corrections = Corrections.of(session, recipe)
        cases, exclusions = _cases(session, recipe, corrections)
        patients = strata(cases, recipe.labels.source, classification=not recipe.learns_masks)
        sides = place(catalog, session, patients, recipe.split, pseudonymizer)
        classes = corrections.seen_classes(recipe.labels, [c for c in cases if sides[c.volume.patient] == "train"])
        if not recipe.labels.several:
            cases, unseen = _within(cases, classes)
            exclusions += unseen
        clinical = clinical_values(session, recipe.clinical, [case.volume for case in cases], volumes)
        rows = tuple(_row(case, sides[case.volume.patient], classes, recipe) for case in cases)
        rows = tuple(replace(row, clinical=clinical.get(row.volume, ())) for row in rows)
        variables = tuple(variable.name for variable in recipe.clinical.variables)
        dataset = Dataset(recipe.name, recipe.kind, tuple(c.name for c in classes), rows, variables)
        if not dataset.split("train"):
            raise _nothing(exclusions, "no case in the training split", recipe.name)
        _check_channels(recipe, dataset)
        existed = session.get(DatasetRecord, dataset.key) is not None
        ref = store.write(dataset)
        if not existed:
            catalog.insert(session, record_of(dataset))
    return DatasetBuild(ref, dataset, tuple(sorted(exclusions, key=lambda e: (e.reason, e.subject))), existed)


def _cases(session: Session, recipe: Recipe, corrections: Corrections) -> tuple[list[Case], list[Exclusion]]:
    headers = bool(recipe.clinical.variables) and recipe.clinical.source == "DICOM"
    assembled, exclusions = select(recipe.images, meant_volumes(session, recipe.images, headers=headers))
    exclusions += [Exclusion(volume, OTHERWISE) for volume in described_otherwise(session, recipe.images)]
    if not assembled and not exclusions:
        raise NothingToDoError(
            f"the catalog holds no {' or '.join(recipe.images.modalities)} volume",
            where=recipe.name,
            hint="`nocturne status` says what is there and what was set aside",
        )
    labels = [*_labels(session, recipe.labels), *corrections.of_other_kinds(session, recipe.labels)]
    cases, unlabelled = join(recipe.labels, assembled, labels, corrections.moments)
    exclusions += unlabelled
    if recipe.labels.of == "patient":
        cases, exclusions = whole_patients(cases, exclusions, assembled)
    if not cases:
        raise _nothing(exclusions, "no usable case", recipe.name)
    return cases, exclusions


def _labels(session: Session, labels: Labels) -> Sequence[LabelRow]:
    asked = sql_select(LabelRow).where(LabelRow.source == labels.source)
    if labels.source == "CSV":
        asked = asked.where(LabelRow.name == (labels.name or _only_set(session)))
    return list(in_parts(session, asked))


def _only_set(session: Session) -> str:
    """The label set where there is one. Raises RecipeError where there are several."""
    names = list(distinct(session, LabelRow.name, LabelRow.source == "CSV"))
    if len(names) > 1:
        raise RecipeError(
            f"labels.name is not given, and there are several label sets: {', '.join(names)}", where="recipe"
        )
    return names[0] if names else ""


def _nothing(exclusions: Sequence[Exclusion], what: str, where: str) -> NothingToDoError:
    counts = Counter(exclusion.reason for exclusion in exclusions)
    told = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return NothingToDoError(
        f"{what} among {len(exclusions)} volumes ({told})",
        where=where,
        hint="`nocturne status` says which labels are there and what was set aside",
    )


def _within(cases: Sequence[Case], classes: Sequence[LabelClass]) -> tuple[list[Case], list[Exclusion]]:
    """Without cases that show only what no training case does: a model cannot know it."""
    kept = [case for case in cases if known_to(classes, case)]
    gone = [case.volume.volume for case in cases if not known_to(classes, case)]
    return kept, [Exclusion(volume, "class-not-in-training") for volume in gone]


def _row(case: Case, split: SplitName, classes: Sequence[LabelClass], recipe: Recipe) -> DatasetRow:
    volume = case.volume
    target, several = -1, recipe.labels.several
    if not recipe.learns_masks and not several:
        found = class_of(Segment(0, case.label.value or ""), classes)
        target = -1 if found is None else found
    return DatasetRow(
        patient=volume.patient,
        study=volume.study,
        series=volume.series,
        volume=volume.volume,
        label=case.label.label,
        split=split,
        target=target,
        channels=case.channels,
        classes=tuple(int(says(case.label.value, wanted)) for wanted in classes) if several else (),
        modality=volume.modality,
        manufacturer=volume.manufacturer,
        model_name=volume.model_name,
        shape_z=volume.shape_z,
        shape_y=volume.shape_y,
        shape_x=volume.shape_x,
        spacing_z=volume.spacing_z,
        spacing_y=volume.spacing_y,
        spacing_x=volume.spacing_x,
    )


def _check_channels(recipe: Recipe, dataset: Dataset) -> None:
    """A channel that no training case has cannot be learnt. Raises NothingToDoError."""
    for index, channel in enumerate(recipe.images.channels[1:]):
        if not any(row.channels[index] for row in dataset.split("train")):
            raise NothingToDoError(
                f"no training case has the channel {channel.name!r}",
                where=recipe.name,
                hint="see the rules of this channel in `images.channels`, or leave it out",
            )
