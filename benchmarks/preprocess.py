"""Preparing one CT with its label, 120 × 512 × 512 at 2.5 × 0.7 × 0.7 mm → 1.5 mm, beside what a user would pick.

    python benchmarks/preprocess.py [--peers PYTHON] [--threads N] [--repeat N] [--slices N] [--cases N]

In turns: crop → normalise → resample, image and label, by our chain, nnU-Net, MONAI and SimpleITK, each as its own
documentation would have it, all cropping first; then the image's resampling alone, uncropped, with its error against
cubic splines in double precision; then many cases through the stores, one after the other and on the local cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from _turns import ROOT, Contestant, Goal, Served, arguments, table, turns
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, ScaleIntensityRanged, Spacing, Spacingd
from numpy.typing import NDArray
from scipy import ndimage
from threadpoolctl import threadpool_limits

from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.recipe import LabelClass
from models.volume import Mask, Segment, Volume
from tasks.imaging.prepare import PreparedImage, prepare_image, prepare_mask
from tasks.imaging.resample import resample
from tasks.preprocess.cluster import compute_client
from tasks.preprocess.run import Case, Reading, prepare_dataset
from tasks.stores.prepared import class_locations
from tasks.stores.volumes import VolumeStore

Array = NDArray[Any]
Chain = Callable[["One"], object]

SPACING, TARGET = (2.5, 0.7, 0.7), (1.5, 1.5, 1.5)
LOW, HIGH, MEAN, STD = -160.0, 240.0, 60.0, 80.0
MOST_ERROR = 0.01
PLAN = PreparePlan(
    dimensions=3,
    spacing=TARGET,
    crop="nonzero",
    normalisation=(Normalisation(scheme="ct", low=LOW, high=HIGH, mean=MEAN, std=STD),),
)


@dataclass(frozen=True)
class One:
    """A case in memory: image (z, y, x) int16 in HU, label (z, y, x) uint8."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]

    @property
    def geometry(self) -> Geometry:
        return Geometry.from_spacing(self.image.shape, SPACING)


def body(slices: int, seed: int = 0) -> One:
    """A body of smooth and noisy HU in a field of padding (0), and a label of two organs."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[-1 : 1 : slices * 1j, -1:1:512j, -1:1:512j]
    inside = (x / 0.72) ** 2 + (y / 0.55) ** 2 + 0.1 * z**2 < 1
    coarse = ndimage.zoom(rng.normal(0, 120, (slices // 8 + 2, 32, 32)), (8, 16, 16), order=1)[:slices]
    image = np.where(inside, coarse + rng.normal(40, 15, inside.shape), 0).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[((x - 0.3) / 0.25) ** 2 + (y / 0.3) ** 2 + (z / 0.6) ** 2 < 1] = 1
    label[((x + 0.3) / 0.1) ** 2 + (y / 0.1) ** 2 + (z / 0.2) ** 2 < 1] = 2
    return One(image, label)


# -- the chains -------------------------------------------------------------------------------------------------


def ours(one: One) -> tuple[PreparedImage, NDArray[np.uint8]]:
    """With the voxels of each class that patches are drawn from, as nnU-Net's preprocessor finds them too."""
    prepared = prepare_image(one.image, one.geometry, PLAN)
    mask = prepare_mask(one.label, one.geometry, PLAN, prepared)
    class_locations(mask, "case")
    return prepared, mask


def simple_itk(kind: int) -> Chain:
    def run(one: One) -> Array:
        picture, truth = as_itk(one.image), as_itk(one.label)
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.ComputePerimeterOff()
        shape.Execute(sitk.NotEqual(picture, 0))
        box = shape.GetBoundingBox(1)
        picture, truth = (sitk.RegionOfInterest(i, box[3:], box[:3]) for i in (picture, truth))
        values = sitk.Clamp(picture, sitk.sitkFloat32, LOW, HIGH)
        values = sitk.ShiftScale(values, -MEAN, 1 / STD)
        itk_resample(truth, sitk.sitkNearestNeighbor, sitk.sitkUInt8)
        return sitk.GetArrayFromImage(itk_resample(values, kind, sitk.sitkFloat32))

    return run


def monai(mode: int | str) -> Chain:
    keys = ("image", "label")
    chain = Compose(
        [
            CropForegroundd(keys, source_key="image", select_fn=lambda i: i != 0, allow_smaller=True),
            ScaleIntensityRanged("image", LOW, HIGH, LOW, HIGH, clip=True),
            NormalizeIntensityd("image", subtrahend=MEAN, divisor=STD),
            Spacingd(keys, TARGET, mode=(mode, "nearest"), padding_mode="border"),
        ]
    )
    return lambda one: chain({"image": as_monai(one.image), "label": as_monai(one.label)})


def nnunet(python: Path, folder: Path, one: One) -> Served:
    """A process that prepares the same case; what it makes of it lies in `folder`."""
    about = {"spacing": SPACING, "target": TARGET, "low": LOW, "high": HIGH, "mean": MEAN, "std": STD}
    (folder / "case.json").write_text(json.dumps(about))
    np.save(folder / "image.npy", one.image)
    np.save(folder / "label.npy", one.label)
    return Served(python, ROOT / "benchmarks" / "peers" / "preprocess.py", folder)


def as_itk(array: Array) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    return image


def itk_resample(image: sitk.Image, kind: int, pixel: int) -> sitk.Image:
    """On the same outer borders, as all the others do."""
    size, spacing = image.GetSize(), image.GetSpacing()
    shape = [round(n * old / new) for n, old, new in zip(size, spacing, TARGET[::-1], strict=True)]
    step = [n * old / m for n, old, m in zip(size, spacing, shape, strict=True)]
    origin = [o + (new - old) / 2 for o, old, new in zip(image.GetOrigin(), spacing, step, strict=True)]
    still = sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(image, shape, still, kind, origin, step, image.GetDirection(), 0, pixel)


def as_monai(array: Array) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array[None]).float(), affine=torch.diag(torch.tensor([*SPACING, 1.0])))


# -- side by side -----------------------------------------------------------------------------------------------


def chains(one: One, repeat: int, peers: Path | None) -> None:
    contestants: dict[str, Contestant] = {
        name: lambda run=run: run(one)  # type: ignore[misc]
        for name, run in {
            "Nocturne, cubic": ours,
            "SimpleITK, linear": simple_itk(sitk.sitkLinear),
            "SimpleITK, B-spline": simple_itk(sitk.sitkBSpline),
            "MONAI, linear": monai("bilinear"),
            "MONAI, cubic": monai(3),
        }.items()
    }
    goals = [Goal("SimpleITK, linear", 1.5), Goal("MONAI, cubic", 20), Goal("nnU-Net's DefaultPreprocessor", 40)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if peers:
            contestants["nnU-Net's DefaultPreprocessor"] = stack.enter_context(nnunet(peers, folder, one))
        print("### The whole chain: crop, normalise, resample, image and label\n")
        print(table(turns(contestants, repeat), goals, unit="ms", scale=1000))
        if peers:
            print(f"\n{agreement(one, folder)}")


def agreement(one: One, folder: Path) -> str:
    """Ours beside nnU-Net's of the same case: thick slices, so that both take z by nearest neighbour."""
    (prepared, mask), theirs = ours(one), np.load(folder / "nnunet-image.npy")
    # scikit-image ends a slice's overshoot at the slice's own lowest and highest value.
    low, high = (np.broadcast_to(f(theirs, axis=(1, 2), keepdims=True), theirs.shape) for f in (np.min, np.max))
    apart = np.abs(np.clip(prepared.array[0], low, high) - theirs) * STD
    label = np.maximum(np.load(folder / "nnunet-label.npy"), 0)
    dice = [2 * np.sum((mask == k) & (label == k)) / (np.sum(mask == k) + np.sum(label == k)) for k in (1, 2)]
    same = f"{apart.max():.4f} HU apart at most" if prepared.array[0].shape == theirs.shape else "another grid"
    return f"Nocturne and nnU-Net: {same}; Dice of their labels {dice[0]:.4f} and {dice[1]:.4f}."


def resampling(one: One, repeat: int) -> None:
    image = one.image
    target = one.geometry.respaced(TARGET).shape
    zoom = [m / n for n, m in zip(image.shape, target, strict=True)]
    tensor, itk = as_monai(image), as_itk(image)
    spacing = one.geometry.resized(target).spacing

    def exact(kind: type[np.floating]) -> Array:
        return ndimage.zoom(image.astype(kind), zoom, order=3, mode="nearest", grid_mode=True)

    contestants: dict[str, Callable[[], Array | torch.Tensor]] = {
        "Nocturne, cubic": lambda: resample(image, target),
        "Nocturne, linear": lambda: resample(image, target, order=1),
        "SimpleITK, linear": lambda: sitk.GetArrayFromImage(itk_resample(itk, sitk.sitkLinear, sitk.sitkFloat32)),
        "MONAI, linear": lambda: Spacing(spacing, mode="bilinear", padding_mode="border")(tensor)[0],
        "MONAI, cubic": lambda: Spacing(spacing, mode=3, padding_mode="nearest")(tensor)[0],
        "scipy zoom, cubic": lambda: exact(np.float32),
    }
    truth, remarks = exact(np.float64), {}
    for name, run in contestants.items():
        got = run()
        wanted = on_grid_of(got, image) if isinstance(got, MetaTensor) else truth
        error = np.abs(np.asarray(got) - wanted)[4:-4, 4:-4, 4:-4]
        remarks[name] = f"{error.mean():.4f} ({error.max():.4f})"
        if name == "Nocturne, cubic":
            remarks[name] += f"; to reach {MOST_ERROR}: " + ("reached" if error.max() <= MOST_ERROR else "not reached")
    print("\n### The image's resampling alone, uncropped\n")
    found = turns(contestants, repeat)
    remark = "error against float64 cubic, HU, mean (largest)"
    print(table(found, [Goal("SimpleITK, linear", 1.5)], unit="ms", scale=1000, remarks=remarks, remark=remark))


def on_grid_of(got: MetaTensor, image: Array) -> Array:
    """The truth where MONAI put its voxels: it keeps the first voxel's centre, not the border."""
    relation = np.diag([*(1 / np.array(SPACING)), 1.0]) @ np.asarray(got.affine)
    return ndimage.affine_transform(
        image.astype(np.float64), np.diag(relation)[:3], relation[:3, 3], tuple(got.shape), order=3, mode="nearest"
    )


def many(slices: int, cases: int, repeat: int) -> None:
    reading = Reading((LabelClass(name="a"), LabelClass(name="b")))
    with tempfile.TemporaryDirectory() as folder, compute_client("", 0) as client:
        listed, fresh = list(stored(Path(folder), slices, cases)), count()

        def prepare(runner: object) -> Contestant:
            return lambda: prepare_dataset(runner, listed, reading, PLAN, Path(folder, f"prepared-{next(fresh)}"))  # type: ignore[arg-type]

        print(f"\n### {cases} such cases: read, prepare, write and sync\n")
        found = turns(
            {"Nocturne, local cluster": prepare(client), "Nocturne, one after the other": prepare(None)}, repeat
        )
        print(table(found))


def stored(folder: Path, slices: int, cases: int) -> Iterator[Case]:
    """Cases in a volume store."""
    store = VolumeStore(f"{folder}/volumes")
    for number in range(cases):
        one = body(slices, number)
        occupancy = np.stack([one.label == 1, one.label == 2]).astype(np.uint8) * 255
        store.write(f"v{number}", Volume(one.image, one.geometry, "CT", "HU"))
        store.write_mask(f"m{number}", Mask(occupancy, (Segment(1, "a"), Segment(2, "b")), one.geometry, "SEG"))
        yield Case(store.place.url, f"v{number}", f"m{number}")


def main() -> None:
    """Three tables."""
    parser = arguments(__doc__)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--cases", type=int, default=8)
    given = parser.parse_args()
    limit_threads(given)
    one = body(given.slices)
    print(
        f"{given.slices} × 512 × 512 int16 at {SPACING} mm → {TARGET[0]} mm; {given.threads} thread(s) for every"
        f" library; {os.cpu_count()} cores\n"
    )
    with threadpool_limits(given.threads):
        chains(one, given.repeat, given.peers)
        resampling(one, min(3, given.repeat))
        many(given.slices, given.cases, min(3, given.repeat))


def limit_threads(given: argparse.Namespace) -> None:
    """Here, and in processes that start from here."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(given.threads)))
    torch.set_num_threads(given.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(given.threads)


if __name__ == "__main__":
    main()
