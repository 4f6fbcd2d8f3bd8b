"""A package in other forms: a `torch.export` program, ONNX, a MONAI bundle. Each is checked against the package."""

from __future__ import annotations

from tasks.register.export.run import TARGETS, Exported, Target, export_package

__all__ = ["TARGETS", "Exported", "Target", "export_package"]
