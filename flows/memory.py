"""What the demo came to, kept so that a second call need not start Prefect, PyTorch and MLflow to find it done."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from models.hashing import content_key
from models.recipe import Recipe
from models.registration import Shown
from tasks.stores.house import Stores
from tasks.stores.places import write_synced
from tasks.stores.tables import EvaluationRow, PredictionRow

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo.toml"


def demo_recipe() -> Recipe:
    """The recipe that is shipped for the demo."""
    return Recipe.parse(RECIPE.read_text(encoding="utf-8"), where=RECIPE.name)


def remember_demo(stores: Stores, patients: int, shown: Shown) -> None:
    """Keep the outcome under what it follows from."""
    write_synced(_file(stores, patients), shown.model_dump_json(indent=1).encode())


def recall_demo(stores: Stores, patients: int) -> Shown | None:
    """The outcome of the same demo, if all that it names is still there."""
    try:
        shown = Shown.model_validate_json(_file(stores, patients).read_bytes())
    except (OSError, ValidationError):
        return None
    predicted = stores.catalog.count(PredictionRow, PredictionRow.prediction.in_(shown.predictions))
    there = (
        predicted == len(shown.predictions)
        and stores.catalog.get(EvaluationRow, shown.night.evaluation.key) is not None
        and shown.night.report.is_file()
    )
    return shown if there else None


def _file(stores: Stores, patients: int) -> Path:
    return stores.workspace / "demo" / f"{content_key('demo', demo_recipe().key, patients)}.json"
