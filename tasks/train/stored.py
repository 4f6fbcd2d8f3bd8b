"""Training from the stores: once per dataset and recipe, taken up again where it was interrupted."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.dataset import Dataset
from models.errors import NotFoundError, StoreBusyError
from models.hashing import content_key
from models.plan import Fingerprint, Plan, PreparePlan
from models.recipe import Recipe
from models.refs import PackageRef, PlanRef
from tasks.stores.house import Stores
from tasks.stores.locks import held
from tasks.stores.packages import read_description
from tasks.stores.prepared import prepared_keys
from tasks.stores.tables import PackageRow, PlanRow
from tasks.stores.unlabelled import unlabelled_keys
from tasks.train.learning import PreparedKeys
from tasks.train.run import discard_checkpoints, train
from tasks.train.transfer.origins import nothing_new, origin_of, start_key

_log = logging.getLogger(__name__)


def package_key(dataset: str, recipe: Recipe, start: Sequence[str] = ()) -> str:
    """By dataset, by what of the recipe shapes the weights (its seed among it), and by what they start from."""
    return content_key("package", dataset, recipe.learning_key, *start)


def train_package(stores: Stores, recipe: Recipe, ref: PlanRef, champion: PackageRef | None = None) -> PackageRef:
    """The package of a plan, unless it is there. Raises StoreBusyError while another process trains the same.

    Where the recipe goes on from the `champion` and no training case is new to it, there is nothing to learn: the
    champion's own package is returned.
    """
    row = stores.catalog.get(PlanRow, ref.key)
    if row is None:
        raise NotFoundError("no such plan", where=ref.key, hint="run `nocturne retrain` again")
    plan = Plan.model_validate(row.document)
    key = package_key(row.dataset, recipe, start_key(recipe, plan, champion))
    workspace = stores.workspace / "train" / key
    if stores.catalog.get(PackageRow, key):
        discard_checkpoints(workspace)  # whoever wrote the row may have been killed before it came to that
        return PackageRef.to(key)
    dataset = stores.datasets.read(row.dataset)
    if recipe.start.source == "champion" and champion and nothing_new(stores, recipe, dataset, champion):
        _log.info("no training case is new to the champion %s: it stays as it is", champion)
        return champion
    with _alone(workspace):
        if not stores.packages.exists(key):
            ready = _ready(stores, dataset, recipe, plan.prepare)
            with stores.packages.staging() as staged:
                train(
                    plan,
                    recipe,
                    dataset,
                    stores.prepared,
                    ready,
                    workspace,
                    staged=staged,
                    key=key,
                    code=code_version(),
                    fingerprint=Fingerprint.model_validate(row.fingerprint),
                    origin=origin_of(stores, recipe, champion),
                    more_keys={way.key: _ready(stores, dataset, recipe, way) for way in plan.grids},
                    unlabelled=[name for name in unlabelled_keys(recipe, plan) if stores.prepared.exists(name)],
                    processes=stores.locations.training_processes,
                )
                stores.packages.publish(staged, key)
        commit_package(stores, recipe, row.dataset, key)
        discard_checkpoints(workspace)
    return PackageRef.to(key)


def _ready(stores: Stores, dataset: Dataset, recipe: Recipe, way: PreparePlan) -> PreparedKeys:
    """What could not be prepared is in quarantine; the rest goes on."""
    keys = prepared_keys(dataset, recipe, way)
    return {case: name for case, name in keys.items() if stores.prepared.exists(name)}


def code_version() -> str:
    """The git commit of a checkout, with `+` where it was changed; else "unknown"."""
    place = Path(__file__).parent
    try:
        command = ["git", "-C", str(place), "describe", "--always", "--dirty=+", "--abbrev=12"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.strip() or "unknown"


def commit_package(stores: Stores, recipe: Recipe, dataset: str, key: str) -> None:
    """The row by which a published package exists."""
    described = read_description(stores.packages.local(key))
    stores.catalog.add(
        PackageRow(package=key, name=recipe.name, dataset=dataset, weights_sha256=described.weights_sha256)
    )


@contextmanager
def _alone(workspace: Path) -> Iterator[None]:
    busy = StoreBusyError(
        "another process is training this very package", where=workspace.name, hint="wait for it to end"
    )
    with held(workspace / "lock", busy):
        yield
