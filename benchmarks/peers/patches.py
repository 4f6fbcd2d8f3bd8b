"""nnU-Net's loader on the files that its preprocessing would write: for benchmarks/patches.py.

    python patches.py FOLDER --patch Z,Y,X --batch N --batches N --looked N --threads N

FOLDER holds `<case>.npz` with `image` (c, z, y, x) float16 and `mask` (z, y, x). The loader's own transforms are left
out, and its patches are as large as asked for, not enlarged for a rotation.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _served import serve

with contextlib.redirect_stdout(sys.stderr):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager


def write(source: Path, to: Path, patch: tuple[int, ...]) -> None:
    """One case, with the chunks that nnU-Net chooses for the patch."""
    with np.load(source) as file:
        image, mask = file["image"].astype(np.float32), file["mask"].astype(np.int16)[None]
    classes = [int(value) for value in np.unique(mask) if value > 0]
    where = DefaultPreprocessor._sample_foreground_locations(mask, classes)
    shapes = [comp_blosc2_params(array.shape, patch, array.itemsize) for array in (image, mask)]
    (blocks, chunks), (blocks_seg, chunks_seg) = shapes
    nnUNetDatasetBlosc2.save_case(
        image,
        mask,
        {"class_locations": where},
        str(to / source.stem),
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patch", required=True)
    for name in ("batch", "batches", "looked", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    np.random.seed(0)
    size = tuple(int(n) for n in given.patch.split(","))
    patch = size[1:] if size[0] == 1 else size
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(given.folder.glob("*.npz")):
            write(source, Path(folder), patch)
        manager = LabelManager({"background": 0, "body": 1, "organ": 2}, None)
        data = nnUNetDatasetBlosc2(folder)
        loader = nnUNetDataLoader(data, given.batch, patch, patch, manager, oversample_foreground_percent=1 / 3)
        shown = torch.cat([next(loader)["target"].flatten(1).gt(1).any(1) for _ in range(given.looked)])
        serve(lambda: [next(loader) for _ in range(given.batches)], shown=float(shown.float().mean()))


if __name__ == "__main__":
    main()
