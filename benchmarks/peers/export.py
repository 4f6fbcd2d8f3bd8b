"""nnU-Net's way from logits to labels on the image's grid. Runs where nnunetv2 is installed.

    PYTHON benchmarks/peers/export.py LOGITS SLICES SHAPE SPACING TARGET LABELS [--threads N]

LOGITS is an array (classes, z, y, x), of which the first SLICES are taken; their spacing is TARGET. The image has SHAPE
and SPACING ("z,y,x"). Served; the last labels are kept as LABELS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _served import serve


def plans(target: list[float]) -> PlansManager:
    """What the planner writes for CT, as far as it is read here."""
    ways = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": target,
        "patch_size": [96, 96, 96],
        "architecture": {},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": ways,
    }
    return PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres": configuration},
        }
    )


def triple(text: str, of: type) -> list:
    return [of(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("logits", "slices", "shape", "spacing", "target", "labels"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape, manager = triple(given.shape, int), plans(triple(given.target, float))
    classes = np.load(given.logits, mmap_mode="r").shape[0]
    labels = {"background": 0, **{f"class {value}": value for value in range(1, classes)}}
    properties = {
        "spacing": triple(given.spacing, float),
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    found: list[np.ndarray] = []

    def work() -> None:
        logits = np.load(given.logits, mmap_mode="r")[:, : int(given.slices)]
        found[:] = [
            convert_predicted_logits_to_segmentation_with_correct_shape(
                logits,
                manager,
                manager.get_configuration("3d_fullres"),
                manager.get_label_manager({"labels": labels}),
                properties,
                num_threads_torch=given.threads,
            )
        ]

    serve(work)
    np.save(given.labels, found[0])


if __name__ == "__main__":
    main()
