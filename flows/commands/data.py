"""What is learnt from: labels, clinical tables, datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.shared import RecipePath, ready, recipe_at, stores_of

if TYPE_CHECKING:
    from tasks.stores.house import Stores

labels = typer.Typer(help="Labels that do not come as DICOM.", no_args_is_help=True)
clinical = typer.Typer(help="What is known of patients beside their images.", no_args_is_help=True)
dataset = typer.Typer(help="What a recipe learns from.", no_args_is_help=True)


@labels.command("import")
def labels_import(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV, or one NIfTI label map.")],
    name: Annotated[str, typer.Option(help="CSV of classes: the label set, as the recipe's labels.name says.")] = "",
    column: Annotated[str, typer.Option(help="CSV: the column with the class, or with the file of a mask.")] = "label",
    masks: Annotated[bool, typer.Option("--masks", help="CSV: the column names NIfTI label maps.")] = False,
    several: Annotated[
        bool, typer.Option("--several", help="CSV: an image shows all classes of its rows (or writes them a|b).")
    ] = False,
    series: Annotated[str, typer.Option(help="NIfTI: the SeriesInstanceUID of its image.")] = "",
    names: Annotated[str, typer.Option(help="NIfTI: what the values mean, as 1=anterior,2=posterior.")] = "",
) -> None:
    """Import classes from a CSV, or masks from NIfTI.

    A CSV has PatientID and, where a patient has several, StudyInstanceUID or SeriesInstanceUID, as in the DICOM files;
    they are pseudonyms before anything is stored.
    """
    stores = stores_of(ready())
    from flows.console import out, table
    from tasks.ingest.labels.table import import_csv, import_nifti, import_nifti_csv, parse_names

    catalog, volumes, pseudonyms = stores.catalog, stores.volumes, stores.pseudonymizer
    values = parse_names(names)
    if path.suffix.lower() != ".csv":
        if not series:
            raise typer.BadParameter("a NIfTI label map needs --series, the SeriesInstanceUID of its image")
        ref = import_nifti(
            path, series=series, catalog=catalog, volumes=volumes, pseudonymizer=pseudonyms, names=values
        )
        out.print(f"label {ref}")
        _tell_corrections(stores)
        return
    if masks:
        report = import_nifti_csv(
            path, catalog=catalog, volumes=volumes, pseudonymizer=pseudonyms, names=values, column=column
        )
    else:
        report = import_csv(
            path,
            name=name or path.stem,
            catalog=catalog,
            pseudonymizer=pseudonyms,
            column=column,
            several=several,
        )
    out.print(str(report))
    if report.refused:
        table("Refused", ("line", "reason", "what"), [(r.line, r.reason, r.what) for r in report.refused])
    _tell_corrections(stores)


def _tell_corrections(stores: Stores) -> None:
    """Score the predictions that the new labels correct."""
    from flows.console import out
    from tasks.correct.run import correct

    if found := correct(stores):
        out.print(f"{len(found)} predictions were corrected by labels that came after them")


@clinical.command("import")
def clinical_import(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV.")],
    name: Annotated[
        str, typer.Option(help="The table, as the recipe's clinical.name says (default: the file's).")
    ] = "",
    columns: Annotated[
        str, typer.Option(help="Take in these alone, as age,grade (default: all that tell nobody's identity).")
    ] = "",
) -> None:
    """Import clinical variables from a CSV with PatientID or StudyInstanceUID; a later import corrects an earlier one.

    Identifiers are pseudonyms before anything is stored. Columns with names, dates, record numbers or prose stay out.
    """
    stores = stores_of(ready())
    from flows.console import out, table
    from tasks.ingest.clinical import import_clinical

    report = import_clinical(
        path,
        name=name or path.stem,
        catalog=stores.catalog,
        pseudonymizer=stores.pseudonymizer,
        columns=[column.strip() for column in columns.split(",") if column.strip()],
    )
    out.print(str(report))
    if report.refused:
        table("Refused", ("line", "reason", "what"), [(r.line, r.reason, r.what) for r in report.refused])


@dataset.command("build")
def dataset_build(recipe: RecipePath) -> None:
    """Join images and labels for a recipe; new patients get their split, for good."""
    stores = stores_of(ready())

    from flows.console import table
    from tasks.ingest.build import build_dataset

    built = build_dataset(recipe_at(recipe), stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes)
    counts = built.dataset.counts()
    table(f"Dataset {built.ref.key[:12]}", ("split", "patients", "cases"), [(s, *counts[s]) for s in counts])
    if built.reasons:
        table("Left out", ("why", "images"), list(built.reasons.items()))


@dataset.command("show")
def dataset_show() -> None:
    """List the datasets that were built."""
    stores = stores_of(ready())
    from flows.console import table
    from flows.views import datasets

    table(
        "Datasets", ("dataset", "recipe", "kind", "classes", "train", "validation", "test", "built"), datasets(stores)
    )


@dataset.command("split")
def dataset_split(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV with PatientID and split.")],
) -> None:
    """Import a given split before a first dataset is built; patients already placed must agree with it."""
    stores = stores_of(ready())
    from flows.console import out
    from tasks.ingest.splits import import_splits

    out.print(str(import_splits(path, catalog=stores.catalog, pseudonymizer=stores.pseudonymizer)))
