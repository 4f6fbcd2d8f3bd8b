"""How metrics are told: their names, units and digits, and intervals in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from models.evaluation import Evaluation, Interval
from models.recipe import Kind

MINUS, DASH = "\u2212", "\u2013"


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is told. `better`: which way is good, if either. `share`: lies in [0, 1]."""

    label: str
    unit: str = ""
    digits: int = 3
    better: Literal["higher", "lower", ""] = "higher"
    share: bool = True

    def format(self, value: float, *, sign: bool = False) -> str:
        """`value`, rounded, with a real minus; with a plus as well if `sign`."""
        scale = 100 if self.unit == "%" else 1
        text = f"{value * scale:{'+' if sign else ''}.{self.digits}f}"
        # −0.000 is 0.000.
        return text.lstrip("-+") if float(text) == 0 else text.replace("-", MINUS)

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS: Final[dict[str, Metric]] = {
    "dice": Metric("Dice"),
    "iou": Metric("IoU"),
    "surface_dice": Metric("Surface Dice"),
    "pixel_accuracy": Metric("Pixel accuracy"),
    "hd95_mm": Metric("HD95", "mm", 1, "lower", False),
    "assd_mm": Metric("Surface distance, mean", "mm", 2, "lower", False),
    "volume_absolute_error_ml": Metric("Volume error, absolute", "mL", 2, "lower", False),
    "volume_error_ml": Metric("Volume error, signed", "mL", 2, "", False),
    "volume_error_relative": Metric("Volume error, relative", "%", 1, "", False),
    "volume_truth_ml": Metric("Volume, truth", "mL", 2, "", False),
    "volume_prediction_ml": Metric("Volume, prediction", "mL", 2, "", False),
    "auc": Metric("AUC"),
    "auc_delong": Metric("AUC, DeLong's interval"),
    "froc": Metric("FROC"),
    "average_precision": Metric("Average precision"),
    "balanced_accuracy": Metric("Balanced accuracy"),
    "accuracy": Metric("Accuracy"),
    "sensitivity": Metric("Sensitivity"),
    "specificity": Metric("Specificity"),
    "precision": Metric("Precision"),
    "false_positives": Metric("False positives an image", "", 2, "lower", False),
    "sensitivity_small": Metric("Sensitivity, small lesions"),
    "sensitivity_medium": Metric("Sensitivity, medium lesions"),
    "sensitivity_large": Metric("Sensitivity, large lesions"),
    **{
        f"sensitivity_at_{rate:g}": Metric(f"Sensitivity at {rate:g} false positives an image")
        for rate in (0.125, 0.25, 0.5, 1, 2, 4, 8)
    },
    "fidelity": Metric("Fidelity"),
    "distance": Metric("Fréchet distance", better="lower", share=False),
    "copied": Metric("Copies of training images", "%", 1, "lower"),
    "f1": Metric("F1"),
    "brier": Metric("Brier score", better="lower", share=False),
    "ece": Metric("Calibration error (ECE)", better="lower", share=False),
    "uncertainty": Metric("Uncertainty", better="", share=True),
    "probability": Metric("Probability of truth"),
    "lesions": Metric("Lesions", "", 0, "", False),
    "found": Metric("Found", "", 0, "", False),
    "missed": Metric("Missed", "", 0, "", False),
    "invented": Metric("False positives", "", 0, "", False),
    "nearest_training": Metric("To the nearest training image", "", 4, "", False),
}
BY_CLASS: Final[dict[Kind, tuple[str, ...]]] = {
    "segmentation": ("dice", "surface_dice", "hd95_mm", "volume_absolute_error_ml"),
    "classification": ("auc", "average_precision", "sensitivity", "specificity", "precision", "f1"),
    "detection": ("froc", "average_precision", "sensitivity", "precision", "false_positives"),
    "synthesis": ("fidelity", "distance", "copied"),
}
HEADLINES: Final[dict[Kind, tuple[str, ...]]] = {
    "segmentation": ("surface_dice", "hd95_mm", "volume_absolute_error_ml"),
    "classification": ("sensitivity", "specificity", "brier"),
    "detection": ("average_precision", "sensitivity", "false_positives"),
    "synthesis": ("distance", "copied"),
}


def metric_of(name: str) -> Metric:
    """How to tell `name`; a metric unknown here goes by its own name."""
    return METRICS.get(name) or Metric(name.replace("_", " ").capitalize(), better="", share=False)


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics as they are told: those known here first, in their order."""
    found = dict.fromkeys(names)
    return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]


def span(interval: Interval, metric: Metric, *, sign: bool = False) -> str:
    """The interval's ends in words."""
    if interval.low is None or interval.high is None:
        return "one patient only"
    joint = " to " if sign or interval.low < 0 else DASH
    return joint.join(metric.format(end, sign=sign) for end in (interval.low, interval.high))


def told(interval: Interval, metric: Metric, *, sign: bool = False) -> str:
    """The value, with its interval in brackets."""
    return f"{metric.format(interval.value, sign=sign)} ({span(interval, metric, sign=sign)})"


def whole(evaluation: Evaluation) -> dict[str, Interval]:
    """The metrics over all classes (or of the positive class)."""
    return {m.metric: m.interval for m in evaluation.metrics if m.class_name is None}
