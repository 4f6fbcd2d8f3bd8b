"""The `nocturne` command. Nothing heavy is imported before a command needs it: `--help` must be instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.data import clinical, dataset, labels
from flows.commands.keys import keys
from flows.commands.lineage import lineage
from flows.commands.looking import status
from flows.commands.models import models
from flows.commands.processes import running
from flows.commands.shared import Name, Paths, RecipePath, ready, recipe_at, served, stores_of
from flows.commands.watching import drift, suggest

if TYPE_CHECKING:
    from models.registration import Night
    from models.settings import Settings

app = typer.Typer(
    help="Turns newly arrived DICOM studies into a better model every night, and runs the best model on new studies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(labels, name="labels")
app.add_typer(clinical, name="clinical")
app.add_typer(dataset, name="dataset")
app.add_typer(models, name="models")
app.add_typer(running, name="run")
app.add_typer(keys, name="keys")
app.command()(lineage)


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
    settings = ready()
    stores = stores_of(settings)
    from flows.console import bars, out, pairs
    from flows.embedded import embedded_server

    with embedded_server():
        from flows.ingest import ingest as run

    images = recipe_at(recipe).images if recipe else None
    with bars():
        done = run(stores.seal_batch(paths), images)
    pairs("Ingested", done.rows())
    if done.quarantined:
        out.print("[yellow]`nocturne status` lists what is in quarantine, with its reason.[/]")


@app.command()
def retrain(
    recipe: RecipePath,
    source: Annotated[
        list[Path] | None, typer.Option("--from", exists=True, help="Ingest these places first; repeatable.")
    ] = None,
) -> None:
    """Learn from all that is known, judge on the frozen test patients, and promote what is better."""
    settings = ready()
    stores = stores_of(settings)
    from flows.console import bars
    from flows.embedded import embedded_server

    with embedded_server():
        from flows.retrain import retrain as run

    asked = recipe_at(recipe)
    with bars():
        batch = stores.seal_batch(source) if source else None
        night = run(asked, batch, settings.nightly.approval, settings.nightly.approval_hours)
    _tell(settings, night)


@app.command()
def evaluate(
    name: Name,
    version: Annotated[str, typer.Option(help="A version's number, `champion` or `challenger`.")] = "champion",
) -> None:
    """Judge a registered model on its recipe's test patients of today."""
    ready()
    from flows.console import bars, table
    from flows.embedded import embedded_server

    with embedded_server():
        from flows.artifacts import figures
        from flows.evaluate import evaluate as run

    with bars():
        judged = run(name, version)
    rows = [tuple(row.values()) for row in figures(judged)]
    table(f"{name} {version} on the frozen test split", ("metric", "class", "value", "95 % interval", "patients"), rows)


@app.command()
def predict(
    paths: Paths,
    model: Annotated[str, typer.Option(help="The model: its recipe's name.")],
    version: Annotated[str, typer.Option(help="A version's number, `champion` or `challenger`.")] = "champion",
    out: Annotated[Path | None, typer.Option(help="Write the masks there, as NIfTI.")] = None,
) -> None:
    """Ingest a study and let the model say what it shows."""
    stores = stores_of(ready())
    from flows.console import bars, table
    from flows.console import out as screen
    from flows.embedded import embedded_server

    with embedded_server():
        from flows.predict import predict as run
    from rich.markup import escape

    from flows.drifting import damage
    from flows.views import PREDICTION_COLUMNS, predictions_told
    from tasks.stores.alerts import open_alerts

    with bars():
        found = run(stores.seal_batch(paths), model, version)
    table(f"What {model} says", PREDICTION_COLUMNS, predictions_told(stores, found))
    for told in damage(open_alerts(stores.catalog, model)):
        screen.print(f"[yellow]{escape(told)}[/]")
    if out:
        from tasks.predict.run import export

        for key in found:
            screen.print(f"mask: {export(stores, key, out)}")


app.command()(status)


@app.command()
def up() -> None:
    """Run everything on this host: Prefect, MLflow, the listener, watchers, relay and workers. Ctrl-C stops it all."""
    settings = ready()
    stores_of(settings).catalog.close()  # made and brought up to date once, before many processes open it
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
    pool_type: Annotated[
        Literal["process", "docker", "kubernetes"],
        typer.Option(help="What training runs as: see docs/scale.md."),
    ] = "process",
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for the Prefect server.")] = 300.0,
) -> None:
    """Tell the Prefect server what there is to run: schedules, triggers, limits and automations."""
    settings = served(wait_seconds)
    from deployments.deploy import deploy as tell
    from flows.console import out

    for name in tell(settings, recipes=tuple(recipe or ()), training=pool_type):
        out.print(f"deployed {name}")


@app.command()
def pull(
    peer: Annotated[str, typer.Argument(help="A PACS, by its name under [[peers]] in the settings.")],
    since: Annotated[str, typer.Option(help="How far back: 12h, 1d, 2w.")] = "1d",
    modality: Annotated[str, typer.Option(help="Only studies with this modality, as CT.")] = "",
    study: Annotated[list[str] | None, typer.Option(help="A StudyInstanceUID; repeatable.")] = None,
) -> None:
    """Ask a PACS for studies and take in those that are new."""
    settings = ready()
    stores = stores_of(settings)
    from flows.console import out
    from flows.services import pull as ask

    out.print(str(ask(settings, stores, peer, since=since, modality=modality, studies=tuple(study or ()))))


@app.command()
def resend(
    destination: Annotated[str, typer.Argument(help="Only what this destination refused.")] = "",
) -> None:
    """Send once more what a destination refused, now that what was wrong there is mended."""
    settings = ready()
    stores = stores_of(settings)
    from flows.console import out
    from flows.services import resend as ask

    out.print(ask(settings, stores, destination))


@app.command()
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove leftovers of killed runs and damaged objects.")
    ] = False,
) -> None:
    """Check the installation, settings, device, services and space, and say what to do."""
    settings = ready()
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
    settings = ready()
    stores = stores_of(settings)
    from flows.console import bars, out, table
    from flows.memory import recall_demo
    from flows.views import PREDICTION_COLUMNS, QUARANTINE_COLUMNS, predictions_told, quarantine

    shown = recall_demo(stores, patients)
    if shown is None:
        from flows.embedded import embedded_server

        with embedded_server():
            from flows.demo import demo as run

        with bars():
            shown = run(patients)
    else:
        out.print("Everything was done before: this is what it came to.")
    table("Set aside", QUARANTINE_COLUMNS, quarantine(stores))
    table("A study that arrived afterwards", PREDICTION_COLUMNS, predictions_told(stores, shown.predictions))
    _tell(settings, shown.night)


app.command()(drift)
app.command()(suggest)


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
