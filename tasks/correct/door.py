"""The door of the correct room."""

from __future__ import annotations

from models.refs import CorrectionRef, LabelRef
from tasks.correct import run
from tasks.door import door
from tasks.stores.house import Stores


@door("correct")
def correct(stores: Stores, labels: tuple[LabelRef, ...] | None = None) -> tuple[CorrectionRef, ...]:
    """Predictions beside these labels (None: beside all), scored where a label corrects them; returns what is new."""
    return run.correct(stores, labels)
