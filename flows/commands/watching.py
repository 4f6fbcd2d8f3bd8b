"""What has moved since a model began to serve, and what to label next."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.shared import ready, stores_of

if TYPE_CHECKING:
    from models.registration import Serving
    from models.settings import Settings
    from models.watching import Suggestion
    from tasks.stores.house import Stores

_Model = Annotated[str | None, typer.Argument(help="A model, by its recipe's name (default: all that serve).")]


def drift(model: _Model = None) -> None:
    """Show the last predictions of what serves beside what it was made and judged on, and what has moved."""
    settings = ready()
    stores = stores_of(settings)
    from flows.console import out, table
    from flows.drifting import ALERT_COLUMNS, DRIFT_COLUMNS, alerts, drift
    from tasks.watch.run import look, opened

    serving = _serving(settings, stores, model)
    if not serving:
        out.print("No model serves yet.")
        return
    table("What has moved", DRIFT_COLUMNS, drift([look(stores, one) for one in serving]))
    if open_now := opened(stores, model):
        table("Open alerts", ALERT_COLUMNS, alerts(open_now))


def suggest(
    model: _Model = None,
    count: Annotated[int, typer.Option(min=1, help="How many studies.")] = 10,
    file: Annotated[Path | None, typer.Option("--csv", dir_okay=False, help="Write them there, too.")] = None,
) -> None:
    """Name the studies that a label would teach a model most about: those it was unsure of, and those that are new."""
    settings = ready()
    stores = stores_of(settings)
    from flows.console import out, table
    from flows.drifting import SUGGESTION_COLUMNS, suggestions
    from tasks.watch.suggest import suggest as ask

    found = {one.name: ask(stores, one.name, one.package, count) for one in _serving(settings, stores, model)}
    for name, studies in found.items():
        if studies:
            table(f"To label next for {name}", SUGGESTION_COLUMNS, suggestions(studies))
        else:
            out.print(f"{name}: every study that it could learn from has a label.")
    if not found:
        out.print("No model serves yet.")
    if file:
        _write(file, found)


def _serving(settings: Settings, stores: Stores, model: str | None) -> Sequence[Serving]:
    from tasks.register.run import serving

    return serving(stores, (model,) if model else settings.arrivals.models, shadow=False)


def _write(file: Path, found: dict[str, tuple[Suggestion, ...]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("model", "study", "volume", "score", "uncertainty", "novelty", "why"))
        for name, studies in found.items():
            for one in studies:
                figures = (f"{value:.4f}" for value in (one.score, one.uncertainty, one.novelty))
                writer.writerow((name, one.study, one.volume, *figures, one.why))
