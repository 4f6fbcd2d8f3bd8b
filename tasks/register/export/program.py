"""A `torch.export` program: the network without its Python, in one `.pt2` file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import PackageError
from tasks.register.export.network import Exportable, difference

PROGRAM_FILE: Final = "model.pt2"


def captured(model: Exportable) -> torch.export.ExportedProgram:
    """The network as a graph for any number of patches at once. Raises PackageError for one that cannot be captured."""
    any_number = tuple({0: torch.export.Dim.AUTO} for _ in model.sample)
    try:
        with torch.no_grad():
            return torch.export.export(model.network, model.sample, dynamic_shapes=any_number, strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PackageError(
            f"{model.package.plan.network.name} cannot be captured: {first}",
            where=model.package.recipe.name,
            reason="export-impossible",
        ) from error


def write_program(model: Exportable, file: Path, tolerance: float) -> float:
    """Write the program, and read it again to compare; returns the largest difference. Raises PackageError."""
    torch.export.save(captured(model), file)
    loaded = torch.export.load(file).module()
    with torch.inference_mode():
        whole = loaded(*model.sample).numpy()
        single = loaded(*(part[:1] for part in model.sample)).numpy()
    alone: NDArray[np.float32] = np.concatenate([single, whole[1:]])
    return max(difference(model, found, tolerance, "program") for found in (whole, alone))
