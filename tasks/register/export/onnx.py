"""ONNX, for runtimes without PyTorch. Needs the packages of the extra `onnx`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from models.errors import PackageError, SettingsError
from tasks.register.export.network import Exportable, difference
from tasks.register.export.program import captured

ONNX_FILE: Final = "model.onnx"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(model: Exportable, file: Path, tolerance: float) -> float:
    """Write the model, and let ONNX Runtime run it to compare; returns the largest difference.

    Raises SettingsError without the extra's packages, PackageError for a network that cannot be written or differs.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise SettingsError(f"ONNX needs {', '.join(missing)}", where="export", hint="pip install 'nocturne[onnx]'")
    import onnxruntime
    import torch

    program = captured(model)
    try:
        torch.onnx.export(
            program,
            (),
            str(file),
            input_names=list(model.inputs),
            output_names=["probabilities"],
            external_data=False,
            verbose=False,
        )
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise PackageError(
            f"{model.package.plan.network.name} cannot be written as ONNX: {type(error).__name__}",
            where=model.package.recipe.name,
            reason="export-impossible",
        ) from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    given = dict(zip(names, (part.numpy() for part in model.sample), strict=True))
    (found,) = session.run(None, given)
    return difference(model, found, tolerance, "ONNX model")
