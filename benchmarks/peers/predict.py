"""nnU-Net's sliding window, without mirroring, down to labels. Runs where nnunetv2 is installed.

    PYTHON benchmarks/peers/predict.py NETWORK IMAGE TILE OVERLAP CLASSES LABELS [--threads N] [--device cpu|cuda]

NETWORK is a traced module, IMAGE a prepared one (z, y, x) float32. Served; the last labels are kept as LABELS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _served import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("network", "image", "tile", "overlap", "classes", "labels"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    predictor = nnUNetPredictor(
        tile_step_size=1 - float(given.overlap),
        use_mirroring=False,
        perform_everything_on_device=given.device.type == "cuda",
        device=given.device,
        allow_tqdm=False,
    )
    named = {"background": 0, **{f"class {value}": value for value in range(1, int(given.classes))}}
    predictor.network = torch.jit.load(given.network, map_location=given.device)
    predictor.configuration_manager = SimpleNamespace(patch_size=[int(part) for part in given.tile.split(",")])
    predictor.label_manager = LabelManager(named, None)
    image = torch.from_numpy(np.load(given.image))[None]
    found: list[np.ndarray] = []

    def work() -> None:
        logits = predictor.predict_sliding_window_return_logits(image)
        found[:] = [np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits.cpu())).astype(np.uint8)]

    serve(work)
    np.save(given.labels, found[0])


if __name__ == "__main__":
    main()
