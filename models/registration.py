"""What a night came to: a registered version, and the gate's word on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.refs import DatasetRef, EvaluationRef, PackageRef


class Registered(BaseModel):
    """A registered version, and the gate's word on it. `page` and `run_page` are paths in MLflow's UI."""

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    package: PackageRef
    action: Literal["promoted", "kept"]
    reasons: tuple[str, ...]
    page: str
    run_page: str
    run_id: str


class Serving(BaseModel):
    """A registered version that is run on what arrives; a shadow's results are recorded, never delivered."""

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    package: PackageRef
    role: Literal["champion", "shadow"] = "champion"


class Night(BaseModel):
    """What one retraining came to. `run` is Prefect's flow run."""

    model_config = ConfigDict(frozen=True)
    dataset: DatasetRef
    evaluation: EvaluationRef
    registered: Registered
    report: Path
    run: str


class Shown(BaseModel):
    """What the demo came to: its night, and the predictions on the study that arrived afterwards."""

    model_config = ConfigDict(frozen=True)
    night: Night
    predictions: tuple[str, ...]
