"""nnU-Net's DefaultPreprocessor on one case, as its own planner would have set it up. In an environment with nnunetv2:

    python benchmarks/peers/preprocess.py FOLDER

FOLDER holds `case.json` (spacings in mm, intensities in HU), `image.npy` and `label.npy` (z, y, x); what comes out is
written there once as `nnunet-image.npy` and `nnunet-label.npy`. Then it waits to be asked (`_served.serve`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _served import serve

LABELS = {"background": 0, "large": 1, "small": 2}


def plans(case: dict) -> PlansManager:
    """The parts of nnUNetPlans.json that preparing reads; resampling as `ExperimentPlanner` gives it."""
    resampling = "resample_data_or_seg_to_shape"
    how = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": case["target"],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **how},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **how},
        "architecture": {},
    }
    intensities = {
        "mean": case["mean"],
        "std": case["std"],
        "percentile_00_5": case["low"],
        "percentile_99_5": case["high"],
    }
    return PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "configurations": {"3d_fullres": configuration},
        }
    )


def main() -> None:
    """One piece of work: image and label, in memory, to what training reads."""
    folder = Path(sys.argv[1])
    case = json.loads((folder / "case.json").read_text())
    # Both float32, as its readers give them.
    image, label = (np.load(folder / f"{name}.npy")[None].astype(np.float32) for name in ("image", "label"))
    manager = plans(case)
    configuration = manager.get_configuration("3d_fullres")
    preprocessor = DefaultPreprocessor(verbose=False)

    def work() -> tuple[np.ndarray, np.ndarray]:
        told = {"spacing": case["spacing"]}
        done, seg, _ = preprocessor.run_case_npy(image, label, told, manager, configuration, {"labels": LABELS})
        return done, seg

    for name, array in zip(("image", "label"), work(), strict=True):
        np.save(folder / f"nnunet-{name}.npy", array[0])
    serve(work)


if __name__ == "__main__":
    main()
