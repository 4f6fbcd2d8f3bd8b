"""Dataset manifests: a Parquet file of rows and a JSON file of what they mean, published together under their hash."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models import schemas
from models.dataset import Dataset, DatasetRow
from models.errors import IntegrityError, SchemaError
from models.refs import DatasetRef
from tasks.stores.places import Place, open_place
from tasks.stores.tables import DatasetRecord

_log = logging.getLogger(__name__)
ROWS = "rows.parquet"
HEADER = "dataset.json"
_COLUMNS = [field.name for field in fields(DatasetRow)]


class DatasetStore:
    """Datasets by content hash, in a folder or an object store."""

    def __init__(self, url: str, *, scratch: Path | None = None) -> None:
        self.place: Place = open_place(url, scratch=scratch)

    def write(self, dataset: Dataset) -> DatasetRef:
        """Publish a manifest; one that is there already is kept, if it is whole.

        Raises SchemaError for rows that break the schema.
        """
        key = dataset.key
        if self.place.exists(key) and not self._whole(key):
            _log.warning("the manifest of dataset %s was damaged and is written anew", key)
            self.place.remove(key)
        if not self.place.exists(key):
            frame = _checked(pd.DataFrame([row.plain() for row in dataset.rows], columns=_COLUMNS), key)
            header = {"name": dataset.name, "kind": dataset.kind, "classes": list(dataset.classes)}
            header["variables"] = list(dataset.variables)
            with self.place.staging() as folder:
                frame.to_parquet(folder / ROWS, index=False)
                (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
                self.place.publish(folder, key)
        return DatasetRef.to(key)

    def _whole(self, key: str) -> bool:
        try:
            self.read(key)
        except (IntegrityError, SchemaError):
            return False
        return True

    def members(self, key: str) -> tuple[frozenset[str], frozenset[str]]:
        """The volumes (those beside others too) and the labels in a dataset, and nothing else of it.

        Raises NotFoundError, IntegrityError.
        """
        folder = self.place.local(key)
        try:
            frame = pd.read_parquet(folder / ROWS, columns=["volume", "label", "channels"])
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(key, f"cannot be read ({type(error).__name__})") from error
        beside = (str(volume) for told in frame["channels"] for volume in told if volume)
        return frozenset(map(str, frame["volume"])).union(beside), frozenset(map(str, frame["label"]))

    def read(self, key: str) -> Dataset:
        """The dataset. Raises NotFoundError; IntegrityError where what is stored is not what was published."""
        folder = self.place.local(key)
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            frame = pd.read_parquet(folder / ROWS, columns=_COLUMNS)
            records: list[dict[str, Any]] = frame.to_dict(orient="records")  # type: ignore[assignment]
            rows = tuple(DatasetRow(**{k: _plain(v) for k, v in record.items()}) for record in records)
            variables = tuple(header["variables"])
            dataset = Dataset(header["name"], header["kind"], tuple(header["classes"]), rows, variables)
            whole = dataset.key == key
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(key, f"cannot be read ({type(error).__name__})") from error
        if not whole:
            raise _damaged(key, "does not match its hash")
        _checked(frame, key)
        return dataset


def record_of(dataset: Dataset) -> DatasetRecord:
    """The catalog's row of a manifest."""
    return DatasetRecord(
        dataset=dataset.key,
        name=dataset.name,
        kind=dataset.kind,
        classes=list(dataset.classes),
        counts={split: list(pair) for split, pair in dataset.counts().items()},
    )


def _checked(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    return schemas.check(frame, schemas.DATASET, where=key)


def _plain(value: Any) -> Any:
    """Lists come back from Parquet as arrays."""
    return tuple(value.tolist()) if isinstance(value, np.ndarray) else value


def _damaged(key: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"its manifest {what}", where=key, hint="remove its folder and run `nocturne dataset build` again"
    )
