"""The door of the ingest room."""

from __future__ import annotations

from prefect.logging import get_run_logger

from models.recipe import Recipe
from models.refs import BatchRef, DatasetRef, SeriesRef, VolumeRef
from tasks.door import door
from tasks.ingest import again
from tasks.ingest.build import build_dataset
from tasks.ingest.labels.run import LabelIngestor, LabelOutcome
from tasks.ingest.parts import each
from tasks.ingest.run import Ingestor, IngestRules, Outcome, ScanReport
from tasks.progress import counted
from tasks.stores.house import Stores


@door("scan", run_name="scan {batch}")
def scan(stores: Stores, batch: BatchRef, rules: IngestRules) -> ScanReport:
    """Find the series and labels in a batch of places."""
    return _ingestor(stores, rules).scan(stores.open_batch(batch))


@door("ingest series", run_name="ingest series, part {part}", minutes=None)
def ingest_series(stores: Stores, refs: tuple[SeriesRef, ...], rules: IngestRules, part: int) -> tuple[Outcome, ...]:
    """Series to volumes; what fails a check is in quarantine afterwards, and told in the run's log."""
    return each(_ingestor(stores, rules).ingest, counted("ingest", refs), get_run_logger().warning)


@door("ingest labels", run_name="ingest labels, part {part}", minutes=None)
def ingest_labels(stores: Stores, refs: tuple[SeriesRef, ...], part: int) -> tuple[LabelOutcome, ...]:
    """SEG and RTSTRUCT to masks on their images' grids; needs the images first."""
    reader = LabelIngestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
    return each(reader.ingest, counted("labels", refs), get_run_logger().warning)


@door("mend volumes", run_name="mend volumes", minutes=60)
def mend(stores: Stores, volumes: tuple[VolumeRef, ...]) -> None:
    """Volumes that are damaged are taken anew from their source; what cannot be is told, and set aside where it is met.

    Without `volumes`, all that were set aside for that.
    """
    left = again.mend(stores, volumes) if volumes else again.mend_set_aside(stores)
    for _, error in left:
        get_run_logger().warning(str(error))


@door("build dataset", run_name="build dataset for {recipe.name}", minutes=10)
def build(stores: Stores, recipe: Recipe) -> DatasetRef:
    """The recipe's images and labels as an immutable dataset; new patients get their split."""
    return build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes).ref


def _ingestor(stores: Stores, rules: IngestRules) -> Ingestor:
    return Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, rules, workers=stores.workers)
