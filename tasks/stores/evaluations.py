"""Evaluations by content key: the figures (JSON), the per-case table (Parquet), the pictures, and reports on them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import IntegrityError
from models.evaluation import Evaluation, Picture
from tasks.stores.places import Place, open_place

if TYPE_CHECKING:
    import pandas as pd

    from models.report import Report

REPORT_FILE, DOCUMENT_FILE, CASES_FILE = "report.html", "report.json", "cases.parquet"
_EVALUATION, _PICTURES = "evaluation.json", "pictures.json"


class EvaluationStore:
    """A folder per evaluation and one per report, in a folder or an object store."""

    def __init__(self, url: str, *, scratch: Path | None = None) -> None:
        self.place: Place = open_place(url, scratch=scratch)

    def write(self, key: str, evaluation: Evaluation, cases: pd.DataFrame, pictures: Sequence[Picture]) -> None:
        """Publish one evaluation; one that is there already is kept."""
        with self.place.staging() as folder:
            (folder / _EVALUATION).write_text(evaluation.to_json(), encoding="utf-8")
            (folder / _PICTURES).write_text(json.dumps([_packed(p) for p in pictures]), encoding="utf-8")
            cases.to_parquet(folder / CASES_FILE, index=False)
            self.place.publish(folder, key)

    def read(self, key: str) -> Evaluation:
        """The figures. Raises NotFoundError, IntegrityError."""
        folder = self.place.local(key)
        try:
            return Evaluation.from_json((folder / _EVALUATION).read_bytes())
        except (OSError, ValueError) as error:
            raise _damaged(key) from error

    def cases(self, key: str) -> pd.DataFrame:
        """The per-case table. Raises NotFoundError, IntegrityError."""
        import pandas as pd

        folder = self.place.local(key)
        try:
            return pd.read_parquet(folder / CASES_FILE)
        except (OSError, ValueError) as error:
            raise _damaged(key) from error

    def pictures(self, key: str) -> tuple[Picture, ...]:
        """The pictures. Raises NotFoundError, IntegrityError."""
        folder = self.place.local(key)
        try:
            packed = json.loads((folder / _PICTURES).read_text(encoding="utf-8"))
            return tuple(Picture(**{**p, "data": base64.b64decode(p["data"])}) for p in packed)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(key) from error

    def write_report(self, key: str, html: str, report: Report, cases: pd.DataFrame) -> Path:
        """Publish a report (page, document, cases) and return the page's file; one that is there already is kept."""
        with self.place.staging() as folder:
            (folder / REPORT_FILE).write_text(html, encoding="utf-8")
            (folder / DOCUMENT_FILE).write_text(report.to_json(), encoding="utf-8")
            cases.to_parquet(folder / CASES_FILE, index=False)
            self.place.publish(folder, key)
        return self.place.local(key) / REPORT_FILE

    def read_report(self, page: Path) -> Report:
        """The document beside a report's page. Raises IntegrityError."""
        from models.report import Report

        try:
            return Report.from_json((page.parent / DOCUMENT_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise _damaged(page.parent.name) from error


def report_files(page: Path) -> tuple[Path, ...]:
    """A report's page and what lies beside it: the document and the cases."""
    beside = (page.parent / name for name in (DOCUMENT_FILE, CASES_FILE))
    return (page, *(file for file in beside if file.is_file()))


def _packed(picture: Picture) -> dict[str, str]:
    data = base64.b64encode(picture.data).decode()
    return {
        "name": picture.name,
        "title": picture.title,
        "alt": picture.alt,
        "media_type": picture.media_type,
        "data": data,
    }


def _damaged(key: str) -> IntegrityError:
    return IntegrityError("the stored evaluation is damaged", where=key, hint="remove its folder and evaluate again")
