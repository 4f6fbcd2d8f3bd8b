"""The door of the cohort room."""

from __future__ import annotations

from tasks.cohort.write import Cohort, write_cohort
from tasks.door import door
from tasks.progress import stage
from tasks.stores.house import Stores


@door("write cohort", minutes=10, persist=False)
def write(stores: Stores, patients: int, broken: int) -> Cohort:
    """The phantom cohort, as DICOM under the home folder."""
    with stage("cohort", patients + broken + 1, "studies") as running:
        return write_cohort(
            stores.locations.home / "demo",
            patients=patients,
            broken=broken,
            on_case=lambda done, of: running.advance(),
        )
