"""The `nocturne` command. Nothing heavy is imported before a command needs it: `--help` must be instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.recipe import Recipe
    from models.registration import Night
    from models.settings import Settings
    from tasks.stores.house import Stores

app = typer.Typer(
    help="Turns newly arrived DICOM studies into a better model every night, and runs the best model on new studies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
labels = typer.Typer(help="Labels that do not come as DICOM.", no_args_is_help=True)
clinical = typer.Typer(help="What is known of patients beside their images.", no_args_is_help=True)
dataset = typer.Typer(help="What a recipe learns from.", no_args_is_help=True)
models = typer.Typer(help="Registered models: which version serves, and why.", no_args_is_help=True)
app.add_typer(labels, name="labels")
app.add_typer(clinical, name="clinical")
app.add_typer(dataset, name="dataset")
app.add_typer(models, name="models")
running = typer.Typer(help="One of the processes of `nocturne up`, for a service manager.", no_args_is_help=True)
app.add_typer(running, name="run")

RecipePath = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A recipe (TOML); see recipes/.")]
Paths = Annotated[
    list[Path], typer.Argument(exists=True, help="Folders, DICOM files, zip or tar archives, a DICOMDIR.")
]
Name = Annotated[str, typer.Argument(help="The model: its recipe's name.")]


def main() -> None:
    """Entry point: errors of the project end as one readable block."""
    from flows.console import told_errors

    with told_errors():
        app()


@app.command()
def ingest(
    paths: Paths,
    recipe: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Follow this recipe's rules on colour and burned-in text."),
    ] = None,
) -> None:
    """Take in DICOM: check, de-identify, and store images and their labels. What is bad goes to quarantine."""
    settings = _ready()
    stores = _stores(settings)
    from flows.console import bars, out, pairs
    from flows.ingest import ingest as run

    images = _recipe(recipe).images if recipe else None
    with bars():
        done = run(stores.seal_batch(paths), images)
    pairs("Ingested", done.rows())
    if done.quarantined:
        out.print("[yellow]`nocturne status` lists what is in quarantine, with its reason.[/]")


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
    stores = _stores(_ready())
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
    stores = _stores(_ready())
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
    stores = _stores(_ready())

    from flows.console import table
    from tasks.ingest.build import build_dataset

    built = build_dataset(_recipe(recipe), stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes)
    counts = built.dataset.counts()
    table(f"Dataset {built.ref.key[:12]}", ("split", "patients", "cases"), [(s, *counts[s]) for s in counts])
    if built.reasons:
        table("Left out", ("why", "images"), list(built.reasons.items()))


@dataset.command("show")
def dataset_show() -> None:
    """List the datasets that were built."""
    stores = _stores(_ready())
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
    stores = _stores(_ready())
    from flows.console import out
    from tasks.ingest.splits import import_splits

    out.print(str(import_splits(path, catalog=stores.catalog, pseudonymizer=stores.pseudonymizer)))


@app.command()
def retrain(
    recipe: RecipePath,
    source: Annotated[
        list[Path] | None, typer.Option("--from", exists=True, help="Ingest these places first; repeatable.")
    ] = None,
) -> None:
    """Learn from all that is known, judge on the frozen test patients, and promote what is better."""
    settings = _ready()
    stores = _stores(settings)
    from flows.console import bars
    from flows.retrain import retrain as run

    asked = _recipe(recipe)
    with bars():
        night = run(asked, stores.seal_batch(source) if source else None)
    _tell(settings, night)


@app.command()
def evaluate(
    name: Name,
    version: Annotated[str, typer.Option(help="A version's number, `champion` or `challenger`.")] = "champion",
) -> None:
    """Judge a registered model on its recipe's test patients of today."""
    _ready()
    from flows.artifacts import figures
    from flows.console import bars, table
    from flows.evaluate import evaluate as run

    with bars():
        judged = run(name, version)
    rows = [tuple(row.values()) for row in figures(judged)]
    table(f"{name} {version} on the frozen test split", ("metric", "class", "value", "95 % interval", "patients"), rows)


@models.command("list")
def models_list() -> None:
    """List all models with the version that serves."""
    stores = _stores(_ready())
    from flows.console import table
    from flows.views import models as overview

    table("Models", ("model", "versions", "champion", "challenger"), overview(stores))


@models.command("show")
def models_show(name: Name) -> None:
    """Show a model's versions and the decisions on them."""
    stores = _stores(_ready())
    from flows.console import table
    from flows.views import decisions, versions
    from tasks.register.promotion import history

    found = versions(stores.registry.versions(name))
    table(f"Versions of {name}", ("version", "alias", "package", "figure", "created"), found)
    trail = decisions(history(stores.registry, stores.catalog, name))
    table("Decisions", ("when", "what", "version", "before", "who", "why"), trail)


@models.command("promote")
def models_promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version's number.")],
    reason: Annotated[str, typer.Option(prompt="Why", help="Kept in the audit trail.")],
) -> None:
    """Let a version serve because you say so."""
    stores = _stores(_ready())
    from flows.console import table
    from flows.views import decisions
    from tasks.register.promotion import promote

    row = promote(stores.registry, stores.catalog, name, version, who=_who(), reason=reason)
    table(f"Decision on {name}", ("when", "what", "version", "before", "who", "why"), decisions([row]))


@models.command("rollback")
def models_rollback(
    name: Name, reason: Annotated[str, typer.Option(prompt="Why", help="Kept in the audit trail.")]
) -> None:
    """Let the champion before this one serve again."""
    stores = _stores(_ready())
    from flows.console import table
    from flows.views import decisions
    from tasks.register.promotion import rollback

    row = rollback(stores.registry, stores.catalog, name, who=_who(), reason=reason)
    table(f"Decision on {name}", ("when", "what", "version", "before", "who", "why"), decisions([row]))


@app.command()
def predict(
    paths: Paths,
    model: Annotated[str, typer.Option(help="The model: its recipe's name.")],
    version: Annotated[str, typer.Option(help="A version's number, `champion` or `challenger`.")] = "champion",
    out: Annotated[Path | None, typer.Option(help="Write the masks there, as NIfTI.")] = None,
) -> None:
    """Ingest a study and let the model say what it shows."""
    stores = _stores(_ready())
    from flows.console import bars, table
    from flows.console import out as screen
    from flows.predict import predict as run
    from flows.views import PREDICTION_COLUMNS, predictions_told

    with bars():
        found = run(stores.seal_batch(paths), model, version)
    table(f"What {model} says", PREDICTION_COLUMNS, predictions_told(stores, found))
    if out:
        from tasks.predict.run import export

        for key in found:
            screen.print(f"mask: {export(stores, key, out)}")


@app.command()
def status() -> None:
    """Tell what runs and what is there: received, waiting, in quarantine and why, delivered, learnt, serving."""
    settings = _ready()
    stores = _stores(settings)
    from flows.console import pairs, table
    from flows.views import HEALTH_COLUMNS, QUARANTINE_COLUMNS, STUCK_COLUMNS, overview, quarantine, stuck

    if (settings.home / "run").is_dir():
        from flows.health import health

        table("Processes", HEALTH_COLUMNS, [(one.name, one.state, one.told) for one in health(settings)])
    pairs("Nocturne", overview(stores))
    if waiting := stuck(stores):
        table("Stuck", STUCK_COLUMNS, waiting)
    if kept := quarantine(stores):
        table("In quarantine", QUARANTINE_COLUMNS, kept)


@app.command()
def up() -> None:
    """Run everything on this host: Prefect, MLflow, the listener, watchers, relay and workers. Ctrl-C stops it all."""
    settings = _ready()
    _stores(settings).catalog.close()  # made and brought up to date once, before many processes open it
    from flows.console import table
    from flows.up import supervise
    from flows.views import HEALTH_COLUMNS

    supervise(
        settings,
        lambda found: table("Processes", HEALTH_COLUMNS, [(one.name, one.state, one.told) for one in found]),
    )


@app.command()
def deploy(
    recipe: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Learn this nightly too; repeatable.")
    ] = None,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for the Prefect server.")] = 300.0,
) -> None:
    """Tell the Prefect server what there is to run: schedules, triggers, limits and automations."""
    settings = _served(wait_seconds)
    from deployments.deploy import deploy as tell
    from flows.console import out

    for name in tell(settings, recipes=tuple(recipe or ())):
        out.print(f"deployed {name}")


@running.command("prefect")
def run_prefect() -> None:
    """Start Prefect's server with this installation's settings."""
    settings = _ready()
    from deployments.environment import server_environment
    from flows.servers import run_prefect as become

    become(settings, server_environment(settings))


@running.command("mlflow")
def run_mlflow() -> None:
    """Start MLflow's server on this installation's registry."""
    settings = _ready()
    from flows.servers import run_mlflow as become

    become(settings)


@running.command("listener")
def run_listener() -> None:
    """Take in what is sent by C-STORE."""
    settings = _ready()
    from flows.services import run_listener as work

    work(settings)


@running.command("watch")
def run_watch() -> None:
    """Take in what appears in watched folders and in Orthanc."""
    settings = _ready()
    from flows.services import run_watch as work

    work(settings)


@running.command("relay")
def run_relay() -> None:
    """Complete studies, start their runs, send results that wait, and look after lost runs."""
    settings = _served()
    from deployments.watchdog import watch
    from flows.services import run_relay as work

    work(settings, lambda: watch(settings))


@running.command("worker")
def run_worker() -> None:
    """Run what the Prefect server schedules, but for arrivals."""
    settings = _served()
    from deployments.warm_worker import run_worker as work
    from flows.services import with_heartbeat

    with_heartbeat(settings, "worker", lambda: work(settings))


@running.command("arrivals")
def run_arrivals() -> None:
    """Run what arrived, with models that stay in memory."""
    settings = _served()
    from deployments.warm_worker import run_arrivals as work
    from flows.services import with_heartbeat

    with_heartbeat(settings, "arrivals", lambda: work(settings))


@app.command()
def pull(
    peer: Annotated[str, typer.Argument(help="A PACS, by its name under [[peers]] in the settings.")],
    since: Annotated[str, typer.Option(help="How far back: 12h, 1d, 2w.")] = "1d",
    modality: Annotated[str, typer.Option(help="Only studies with this modality, as CT.")] = "",
    study: Annotated[list[str] | None, typer.Option(help="A StudyInstanceUID; repeatable.")] = None,
) -> None:
    """Ask a PACS for studies and take in those that are new."""
    settings = _ready()
    stores = _stores(settings)
    from flows.console import out
    from flows.services import pull as ask

    out.print(str(ask(settings, stores, peer, since=since, modality=modality, studies=tuple(study or ()))))


@app.command()
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove leftovers of killed runs and damaged objects.")
    ] = False,
) -> None:
    """Check the installation, settings, device, services and space, and say what to do."""
    settings = _ready()
    from flows.console import err, table
    from flows.doctor import examine

    checks = examine(settings, repair=repair)
    table("Checks", ("", "check", "found", "what to do"), [(c.mark, c.name, c.found, c.advice) for c in checks])
    if any(c.failed for c in checks):
        err.print("[red]Something needs you: see above.[/]")
        raise typer.Exit(1)


@app.command()
def demo(
    patients: Annotated[int, typer.Option(min=8, help="Phantom patients to write.")] = 24,
) -> None:
    """Run the main job end to end on a phantom cohort: embedded, no network, about two minutes."""
    settings = _ready()
    stores = _stores(settings)
    from flows.console import bars, out, table
    from flows.memory import recall_demo
    from flows.views import PREDICTION_COLUMNS, QUARANTINE_COLUMNS, predictions_told, quarantine

    shown = recall_demo(stores, patients)
    if shown is None:
        from flows.demo import demo as run

        with bars():
            shown = run(patients)
    else:
        out.print("Everything was done before: this is what it came to.")
    table("Set aside", QUARANTINE_COLUMNS, quarantine(stores))
    table("A study that arrived afterwards", PREDICTION_COLUMNS, predictions_told(stores, shown.predictions))
    _tell(settings, shown.night)


def _ready() -> Settings:
    """Settings, and an environment in which the heavy packages may be imported."""
    from flows.environment import prepare_environment
    from models.settings import Settings

    settings = Settings.load()
    prepare_environment(settings)
    return settings


def _served(wait_seconds: float = 300.0) -> Settings:
    """As `_ready`, with the Prefect server of the settings, once it answers."""
    settings = _ready()
    from deployments.environment import client_environment
    from flows.health import await_server

    os.environ.update(client_environment(settings))
    await_server(settings, wait_seconds)
    return settings


def _stores(settings: Settings) -> Stores:
    from flows.environment import open_stores

    return open_stores(settings)


def _recipe(path: Path) -> Recipe:
    from models.recipe import Recipe

    return Recipe.parse(path.read_text(encoding="utf-8"), where=path.name)


def _who() -> str:
    import getpass

    return getpass.getuser()


def _tell(settings: Settings, night: Night) -> None:
    """The result of a retraining, and where it can be looked at."""
    from flows.console import pairs
    from flows.environment import open_stores, prefect_home

    evaluation = open_stores(settings).evaluations.read(night.evaluation.key)
    figure, done = evaluation.primary_interval, night.registered
    interval = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    named = {"dice": "test Dice", "auc": "test AUC"}.get(evaluation.primary, evaluation.primary)
    # With a server of one's own the page is there already; the embedded server's has to be started.
    own = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    server = "your server" if own else f"PREFECT_HOME={prefect_home(settings)} prefect server start"
    address = own or "http://127.0.0.1:4200"
    rows = [
        (named, f"{figure.value:.3f}{interval}, {figure.n} patients"),
        ("model", f"{done.name} version {done.version}: {done.action}"),
        *(("why", reason) for reason in done.reasons),
        ("report", night.report),
        ("MLflow page", f"mlflow ui --backend-store-uri {_shown(settings)} → http://127.0.0.1:5000/{done.page}"),
        ("Prefect page", f"{server} → {address}/runs/flow-run/{night.run}"),
    ]
    pairs("Result", rows)


def _shown(settings: Settings) -> str:
    """The tracking URI, without a password."""
    uri = settings.tracking()
    return uri if "@" not in uri else "$NOCTURNE_TRACKING_URL"
