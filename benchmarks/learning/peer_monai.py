"""A MONAI script as its tutorials write one, for a given amount of CPU time.

    python peer_monai.py segmentation FOLDER CPU_SECONDS THREADS CLASSES
    python peer_monai.py classification FOLDER CPU_SECONDS THREADS CLASSES

Segmentation reads what nnU-Net reads (`raw/Dataset001_Bench`): UNet 16–256 with two residual units, DiceCE, random
crops by label, sliding window. Classification reads `images.npz` (`train`, `train_labels`, `test`): DenseNet-121 on
64 × 64. Both: AdamW, cosine over the CPU time, flips, small rotations and zooms. Writes predictions and prints JSON.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DenseNet121, UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlip,
    RandFlipd,
    RandRotate,
    RandZoom,
    Resize,
    ScaleIntensity,
    SpatialPadd,
)
from torch import Tensor, nn
from torch.nn import functional

BATCH, IMAGES, PATCH, RATE = 2, 64, (48, 48, 48), 1e-3


def learn(
    network: nn.Module, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], loss: nn.Module, seconds: float
) -> tuple[int, float]:
    """Steps until the CPU seconds are spent; how many, and how long they took."""
    optimiser = torch.optim.AdamW(network.parameters(), RATE)
    begun, steps = time.process_time(), 0
    network.train()
    while True:
        for images, targets in batches():
            spent = (time.process_time() - begun) / seconds
            if spent >= 1:
                network.eval()
                return steps, time.process_time() - begun
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * spent))
            optimiser.zero_grad()
            loss(network(images), targets).backward()
            optimiser.step()
            steps += 1


def segmentation(folder: Path, seconds: float, classes: int) -> dict[str, object]:
    raw, training = folder / "raw" / "Dataset001_Bench", json.loads((folder / "splits.json").read_text())["train"]
    channels = len(json.loads((raw / "dataset.json").read_text())["channel_names"])

    def files(part: str, name: str) -> list[str]:
        return [str(raw / part / f"{name}_{channel:04d}.nii.gz") for channel in range(channels)]

    items = [{"image": files("imagesTr", n), "label": str(raw / "labelsTr" / f"{n}.nii.gz")} for n in training]
    both = ("image", "label")
    transforms = Compose(
        [
            LoadImaged(both),
            EnsureChannelFirstd(both),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            SpatialPadd(both, PATCH),
            RandCropByPosNegLabeld(both, "label", PATCH, pos=1, neg=1, num_samples=1),
            *[RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)],
            RandAffined(both, prob=0.5, rotate_range=(0.3,) * 3, scale_range=(0.2,) * 3, mode=("bilinear", "nearest")),
        ]
    )
    loader = DataLoader(CacheDataset(items, transforms, progress=False), batch_size=BATCH, shuffle=True)
    network = UNet(3, channels, classes + 1, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            yield batch["image"].as_tensor(), batch["label"].as_tensor()

    steps, spent = learn(network, batches, DiceCELoss(to_onehot_y=True, softmax=True), seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    names = sorted({p.name.rsplit("_", 1)[0] for p in (raw / "imagesTs").iterdir()})
    reading = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), transforms.transforms[2]])
    out = folder / "predicted"
    out.mkdir(exist_ok=True)
    with torch.inference_mode():
        for name in names:
            image = reading({"image": files("imagesTs", name)})["image"]
            found = sliding_window_inference(image.as_tensor()[None], PATCH, 4, network, overlap=0.5, mode="gaussian")
            labels = found.argmax(1)[0].to(torch.uint8).numpy()
            nib.save(nib.Nifti1Image(labels, np.asarray(image.affine)), out / f"{name}.nii.gz")
    return {"steps": steps, "cpu_seconds": spent, "memory_mb": memory, "about": "UNet 16–256, 48³, batch 2"}


def classification(folder: Path, seconds: float, classes: int) -> dict[str, object]:
    data = np.load(folder / "images.npz")
    plain = [ScaleIntensity(), Resize((64, 64))]
    changed = [RandRotate(0.2, prob=0.5), RandFlip(spatial_axis=1, prob=0.5), RandZoom(prob=0.5)]
    training = Dataset(data["train"][:, None].astype(np.float32), Compose([*plain, *changed]))
    labels = torch.from_numpy(data["train_labels"].astype(np.int64))
    generator = torch.Generator().manual_seed(0)
    network = DenseNet121(2, 1, classes)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(labels), generator=generator).split(IMAGES)[:-1]:
            yield torch.stack([torch.as_tensor(training[int(i)]) for i in chosen]), labels[chosen]

    steps, spent = learn(network, batches, nn.CrossEntropyLoss(), seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    prepare = Compose(plain)
    images = torch.stack([torch.as_tensor(prepare(i)) for i in data["test"][:, None].astype(np.float32)])
    with torch.inference_mode():
        found = torch.cat([functional.softmax(network(part), 1) for part in images.split(IMAGES)])
    np.save(folder / "predicted.npy", found.numpy())
    return {"steps": steps, "cpu_seconds": spent, "memory_mb": memory, "about": "DenseNet-121, 64², batch 64"}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(int(sys.argv[4]))
    task = {"segmentation": segmentation, "classification": classification}[sys.argv[1]]
    print(json.dumps(task(Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[5]))))
