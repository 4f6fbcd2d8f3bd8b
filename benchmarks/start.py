"""How long a command takes to begin: `nocturne --help`, and `nocturne status` with 1,000 studies in the catalog.

    python benchmarks/start.py [--studies 1000]

Whole processes. Beside them an interpreter that imports nothing of ours, and one that imports SQLAlchemy alone: what no
change here could save.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _processes import whole
from _turns import Taken, arguments, turns

TARGETS = {"`nocturne --help`": 0.5, "`nocturne status`": 1.0}


def main() -> None:
    """Take turns; then say which target was reached."""
    parser = arguments(__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _fill(home, given.studies)
        found = turns(
            {
                "`nocturne --help`": lambda: whole(home, "-m", "flows", "--help"),
                "`nocturne status`": lambda: whole(home, "-m", "flows", "status"),
                "an interpreter alone": lambda: whole(home, "-c", ""),
                "SQLAlchemy's import": lambda: whole(home, "-c", "import sqlalchemy.orm"),
            },
            given.repeat,
        )
    print(f"Whole processes; {given.studies:,} studies in the catalog.\n")
    print("| | s, median (least) | CPU s | to reach |\n|---|---|---|---|")
    print("\n".join(_row(name, taken) for name, taken in found.items()))


def _row(name: str, taken: Taken) -> str:
    middle, target = taken.middle(), TARGETS.get(name)
    said = "" if target is None else f"{target:g}: {'reached' if middle <= target else '**not reached**'}"
    shown = f"**{name}**" if target else name
    return f"| {shown} | {middle:.2f} ({taken.least():.2f}) | {taken.middle('cpu_seconds'):.2f} | {said} |"


def _fill(home: Path, studies: int) -> None:
    """A catalog as after a first night: a series, a volume, a label and a split for each study."""
    from tasks.stores.catalog import Catalog
    from tasks.stores.tables import Base, LabelRow, SeriesRow, SplitRow, StudyRow, VolumeRow

    rows: list[Base] = []
    for number in range(studies):
        study, patient, series = f"study-{number}", f"patient-{number}", f"series-{number}"
        common = {"series_uid": series, "study": study, "patient": patient, "modality": "CT"}
        shape = {f"{what}_{axis}": 1 for what in ("shape", "spacing") for axis in "zyx"}
        rows += [
            StudyRow(study=study, patient=patient, study_date="20240229"),
            SeriesRow(series=series, description="", instances=8, **common),
            VolumeRow(
                volume=f"volume-{number}",
                series=series,
                unit="HU",
                frame_of_reference=None,
                geometry={},
                channels=1,
                description="",
                manufacturer="Aster",
                model_name="",
                slice_thickness=2.0,
                notes=[],
                characteristics={},
                **common,
                **shape,
            ),
            LabelRow(label=f"label-{number}", source="CSV", name="growth", patient=patient, value="normal"),
            SplitRow(patient=patient, split="train", stratum="normal", origin="drawn"),
        ]
    catalog = Catalog(f"sqlite:///{home / 'catalog.db'}")
    catalog.add(*rows)
    catalog.close()


if __name__ == "__main__":
    main()
