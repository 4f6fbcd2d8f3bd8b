"""A package written in another form, beside what one has to know to use it; or nothing, where it says otherwise."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from models.card import CARD_DOCUMENT, ModelCard
from models.errors import PackageError
from models.package import CARD_FILE
from tasks.register.export.network import TOLERANCE, Exportable, exportable
from tasks.register.export.onnx import ONNX_FILE, write_onnx
from tasks.register.export.program import PROGRAM_FILE, write_program

Target = Literal["torch", "onnx", "monai"]
TARGETS: Final[tuple[str, ...]] = get_args(Target)
ABOUT_FILE: Final = "export.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and by how much it differs from the package at most."""

    folder: Path
    difference: float
    tolerance: float


def export_package(
    package: Path, target: Target, out: Path, *, version: str = "1", tolerance: float = TOLERANCE
) -> Exported:
    """Write the package in folder `package` into the new folder `out`.

    `version` is the registered version's number. Raises PackageError where `out` is there already, where the package
    is none that can be exported, and where what was written differs from it by more than `tolerance`; SettingsError
    where packages that are needed are not installed. Nothing is left then.
    """
    if out.exists():
        raise PackageError("there is something already", where=out.name, hint="name a folder that is not there yet")
    model = exportable(package)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        largest = _written(model, package, target, folder, version, tolerance)
        folder.rename(out)
    return Exported(out, largest, tolerance)


def _written(model: Exportable, package: Path, target: Target, folder: Path, version: str, tolerance: float) -> float:
    if target == "monai":
        # Here, so that the other forms do without MONAI.
        from tasks.register.export.bundle import write_bundle

        return write_bundle(model, _card(package), folder, version, tolerance)
    if target == "torch":
        largest = write_program(model, folder / PROGRAM_FILE, tolerance)
    else:
        largest = write_onnx(model, folder / ONNX_FILE, tolerance)
    about = _about(model, target) | {"version": version, "largest_difference": largest, "tolerance": tolerance}
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for name in (CARD_FILE, CARD_DOCUMENT):
        if (package / name).is_file():
            (folder / name).write_bytes((package / name).read_bytes())
    return largest


def _card(package: Path) -> ModelCard | None:
    """Versions that were registered before there was a document have none."""
    file = package / CARD_DOCUMENT
    return ModelCard.parse(file.read_bytes()) if file.is_file() else None


def _about(model: Exportable, target: Target) -> dict[str, Any]:
    """What goes in and comes out, and how an image is prepared for it."""
    package, plan = model.package, model.package.plan
    axes = ["z", "y", "x"][-plan.network.dimensions :]
    return {
        "format": 1,
        "target": target,
        "name": package.recipe.name,
        "package": package.key,
        "weights_sha256": package.weights_sha256,
        "inputs": [
            {"name": name, "shape": ["batch", *part.shape[1:]], "dtype": "float32"}
            for name, part in zip(model.inputs, model.sample, strict=True)
        ],
        "output": {
            "name": "probabilities",
            "shape": ["batch", *model.expected.shape[1:]],
            "classes": [*(["background"] if package.recipe.background else []), *plan.classes],
            "activation": plan.activation,
        },
        "axes": axes,
        "prepare": plan.prepare.model_dump(mode="json"),
        "infer": plan.infer.model_dump(mode="json"),
        "variables": [variable.model_dump(mode="json") for variable in plan.variables],
    }
