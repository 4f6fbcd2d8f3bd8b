"""nnU-Net's own list of transforms, as its trainer builds it, on the batch of a file: for benchmarks/augment.py.

python augment.py BATCH.npz MOMENTS.npz --rounds N --draws N --degrees D --threads N
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _moments import moments
from _served import serve

with contextlib.redirect_stdout(sys.stderr):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def transforms(size: tuple[int, ...], degrees: float):
    """As for a training of one stage, without deep supervision's smaller masks."""
    limit = degrees / 180 * np.pi
    return nnUNetTrainer.get_training_transforms(
        patch_size=size,
        rotation_for_DA=(-limit, limit),
        deep_supervision_scales=None,
        mirror_axes=tuple(range(len(size))),
        do_dummy_2d_data_aug=False,
        use_mask_for_norm=[False],
    )


def augmented(change, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample by sample into a new batch, as its loader does."""
    out, labels = torch.empty_like(images), torch.empty_like(masks)
    for index in range(len(images)):
        # The transforms work in place; its loader hands them a fresh copy.
        done = change(image=images[index].clone(), segmentation=masks[index].clone())
        out[index], labels[index] = done["image"], done["segmentation"]
    return out, labels


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, 1, …) float32 and int16."""
    with np.load(path) as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["masks"].astype(np.int16))[:, None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("batch", type=Path)
    parser.add_argument("moments", type=Path)
    for name in ("rounds", "draws", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--degrees", type=float, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    np.random.seed(0)
    torch.manual_seed(0)

    image, mask = read(given.moments)
    change = transforms(tuple(image.shape[2:]), given.degrees)
    found = []
    for _ in range(given.draws):
        after, labels = augmented(change, image, mask)
        found.append(moments(image[0, 0].numpy(), mask[0, 0].numpy(), after[0, 0].numpy(), labels[0, 0].numpy()))

    images, masks = read(given.batch)
    change = transforms(tuple(images.shape[2:]), given.degrees)
    serve(lambda: [augmented(change, images, masks) for _ in range(given.rounds)], moments=found)


if __name__ == "__main__":
    main()
