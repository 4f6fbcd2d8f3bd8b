"""What one CT series of 120 × 512 × 512 costs once it is taken in: objects, bytes, rows, CPU seconds.

    python benchmarks/units.py

One series of a body of smooth tissue with a scanner's noise (without noise it would pack far better) is taken in by the
real code, into folders and SQLite. docs/scale.md counts with what this prints.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import func, select

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tasks.ingest.run import Ingestor, IngestRules  # noqa: E402
from tasks.stores.house import Locations, Stores  # noqa: E402
from tasks.stores.tables import VaultRow  # noqa: E402
from tests.components import part10, phantom_study  # noqa: E402

SLICES, SIDE = 120, 512


def main() -> None:
    """Take one series in, and count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {part: str(folder / part) for part in ("volumes", "prepared", "datasets", "evaluations", "packages")}
        stores = Stores(
            Locations(
                home=folder,
                database=f"sqlite:///{folder / 'catalog.db'}",
                spool=folder / "spool",
                tracking="",
                secret=b"s" * 32,
                vault_key=b"v" * 32,
                **places,
            )
        )
        incoming = folder / "incoming"
        incoming.mkdir()
        for number, ds in enumerate(series()):
            (incoming / f"{number:04}.dcm").write_bytes(part10(ds))
        room = Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, IngestRules(), workers=2)
        begun = time.process_time()
        (ref,) = room.scan([str(incoming)]).series
        room.ingest(ref)
        took = time.process_time() - begun
        print(table(stores, incoming, took))


def table(stores: Stores, incoming: Path, took: float) -> str:
    """Markdown."""
    original = [path.stat().st_size for path in incoming.iterdir()]
    objects = [path.stat().st_size for path in Path(stores.locations.volumes).rglob("*") if path.is_file()]
    with stores.catalog.reading() as session:
        query = select(VaultRow.kind, func.length(VaultRow.sealed))
        sealed = {kind: size for kind, size in session.execute(query)}  # noqa: C416
    lines = [
        f"| one series of {SLICES} × {SIDE} × {SIDE} | objects or rows | bytes |",
        "|---|---|---|",
        f"| originals, as received | {len(original)} | {sum(original):,} |",
        f"| volume (Zarr) | {len(objects)} | {sum(objects):,} |",
        f"| vault: {', '.join(f'{kind} {size:,}' for kind, size in sorted(sealed.items()))} | {len(sealed)} "
        f"| {sum(sealed.values()):,} |",
        f"\n{took:.2f} CPU s to scan and take in.",
    ]
    return "\n".join(lines)


def series() -> Iterator[Dataset]:
    """One patient's slices."""
    first, pixels = phantom_study(1, slices=1)[0], body()
    place = [float(value) for value in first.ImagePositionPatient]
    for number in range(SLICES):
        ds = deepcopy(first)
        ds.Rows = ds.Columns = SIDE
        ds.PixelSpacing = [0.8, 0.8]
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.PixelData = pixels[number].tobytes()
        ds.ImagePositionPatient = [*place[:2], place[2] + number * float(first.SliceThickness)]
        ds.InstanceNumber = number + 1
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        yield ds


def body() -> NDArray[np.int16]:
    """Stored values (z, y, x)."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    inside = (y / 0.75) ** 2 + (x / 0.9) ** 2 < 1
    noise = 15 * np.random.default_rng(0).standard_normal((SLICES, SIDE, SIDE), dtype=np.float32)
    return np.where(inside, 1064 + 30 * np.sin(6 * x) * np.cos(5 * y) + noise, 24).astype(np.int16)


if __name__ == "__main__":
    main()
