"""Preparing one CT with its label, 120 × 512 × 512 at 2.5 × 0.7 × 0.7 mm → 1.5 mm, beside what a user would pick.

    python benchmarks/preprocess.py [--threads N] [--repeat N] [--slices N] [--cases N]

In one run: crop → normalise → resample, image and label, by our chain, SimpleITK and MONAI, each as its own
documentation would have it, all cropping first; then the image's resampling alone, uncropped, with its error against
cubic splines in double precision; then many cases through the stores, one after the other and on the local cluster.
Prints medians as Markdown tables; read the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, ScaleIntensityRanged, Spacing, Spacingd
from scipy import ndimage
from threadpoolctl import threadpool_limits

from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.recipe import LabelClass
from models.volume import Mask, Segment, Volume
from tasks.imaging.prepare import prepare_image, prepare_mask
from tasks.imaging.resample import resample
from tasks.preprocess.cluster import compute_client
from tasks.preprocess.run import Case, Reading, prepare_dataset
from tasks.stores.volumes import VolumeStore

SPACING, TARGET = (2.5, 0.7, 0.7), (1.5, 1.5, 1.5)
LOW, HIGH, MEAN, STD = -160.0, 240.0, 60.0, 80.0
PLAN = PreparePlan(
    dimensions=3,
    spacing=TARGET,
    crop="nonzero",
    normalisation=(Normalisation(scheme="ct", low=LOW, high=HIGH, mean=MEAN, std=STD),),
)


def body(slices: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A body of smooth and noisy HU in a field of padding (0), and a label of two organs."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[-1 : 1 : slices * 1j, -1:1:512j, -1:1:512j]
    inside = (x / 0.72) ** 2 + (y / 0.55) ** 2 + 0.1 * z**2 < 1
    coarse = ndimage.zoom(rng.normal(0, 120, (slices // 8 + 2, 32, 32)), (8, 16, 16), order=1)[:slices]
    image = np.where(inside, coarse + rng.normal(40, 15, inside.shape), 0).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[((x - 0.3) / 0.25) ** 2 + (y / 0.3) ** 2 + (z / 0.6) ** 2 < 1] = 1
    label[((x + 0.3) / 0.1) ** 2 + (y / 0.1) ** 2 + (z / 0.2) ** 2 < 1] = 2
    return image, label


# -- the chains -------------------------------------------------------------------------------------------------


def ours(image: np.ndarray, label: np.ndarray, geometry: Geometry) -> np.ndarray:
    prepared = prepare_image(image, geometry, PLAN)
    prepare_mask(label, geometry, PLAN, prepared)
    return prepared.array


def simple_itk(kind: int) -> Callable[[np.ndarray, np.ndarray, Geometry], np.ndarray]:
    def run(image: np.ndarray, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        picture, truth = as_itk(image, geometry), as_itk(label, geometry)
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


def monai(mode: int | str) -> Callable[[np.ndarray, np.ndarray, Geometry], np.ndarray]:
    keys = ("image", "label")
    chain = Compose(
        [
            CropForegroundd(keys, source_key="image", select_fn=lambda i: i != 0, allow_smaller=True),
            ScaleIntensityRanged("image", LOW, HIGH, LOW, HIGH, clip=True),
            NormalizeIntensityd("image", subtrahend=MEAN, divisor=STD),
            Spacingd(keys, TARGET, mode=(mode, "nearest"), padding_mode="border"),
        ]
    )

    def run(image: np.ndarray, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        case = {"image": as_monai(image), "label": as_monai(label)}
        return np.asarray(chain(case)["image"])

    return run


def as_itk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    return image


def itk_resample(image: sitk.Image, kind: int, pixel: int) -> sitk.Image:
    """On the same outer borders, as all the others do."""
    size, spacing = image.GetSize(), image.GetSpacing()
    shape = [round(n * old / new) for n, old, new in zip(size, spacing, TARGET[::-1], strict=True)]
    step = [n * old / m for n, old, m in zip(size, spacing, shape, strict=True)]
    origin = [o + (new - old) / 2 for o, old, new in zip(image.GetOrigin(), spacing, step, strict=True)]
    still = sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(image, shape, still, kind, origin, step, image.GetDirection(), 0, pixel)


def as_monai(array: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array[None]).float(), affine=torch.diag(torch.tensor([*SPACING, 1.0])))


# -- timing -----------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], repeat: int) -> float:
    work()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def table(title: str, header: str, rows: list[tuple[str, float, str]]) -> None:
    first = rows[0][1]
    print(f"\n**{title}**\n\n| | ms | relative | {header} |\n|---|---|---|---|")
    for name, taken, remark in rows:
        print(f"| {name} | {taken * 1000:,.0f} | {taken / first:.2f} | {remark} |")


def chains(image: np.ndarray, label: np.ndarray, geometry: Geometry, repeat: int) -> None:
    options = {
        "**ours, cubic**": ours,
        "SimpleITK linear": simple_itk(sitk.sitkLinear),
        "SimpleITK B-spline": simple_itk(sitk.sitkBSpline),
        "MONAI bilinear": monai("bilinear"),
        "MONAI cubic": monai(3),
    }
    rows = []
    for name, run in options.items():
        shape = run(image, label, geometry).shape[-3:]
        rows.append((name, seconds(lambda r=run: r(image, label, geometry), repeat), " × ".join(map(str, shape))))
    table("Whole chain with label", "result", rows)


def resampling(image: np.ndarray, geometry: Geometry, repeat: int) -> None:
    target = geometry.respaced(TARGET).shape
    zoom = [m / n for m, n in zip(target, image.shape, strict=True)]
    start = time.perf_counter()
    truth = ndimage.zoom(image.astype(np.float64), zoom, order=3, mode="nearest", grid_mode=True)
    reference = time.perf_counter() - start
    tensor, itk = as_monai(image), as_itk(image, geometry)
    spacing = geometry.resized(target).spacing
    options: dict[str, Callable[[], np.ndarray | MetaTensor]] = {
        "**ours, cubic**": lambda: resample(image, target),
        "ours, linear": lambda: resample(image, target, order=1),
        "SimpleITK linear": lambda: sitk.GetArrayFromImage(itk_resample(itk, sitk.sitkLinear, sitk.sitkFloat32)),
        "MONAI bilinear": lambda: Spacing(spacing, mode="bilinear", padding_mode="border")(tensor)[0],
        "MONAI cubic": lambda: Spacing(spacing, mode=3, padding_mode="nearest")(tensor)[0],
    }
    rows = []
    for name, run in options.items():
        got = run()
        wanted = on_grid_of(got, image) if isinstance(got, MetaTensor) else truth
        error = np.abs(np.asarray(got) - wanted)[4:-4, 4:-4, 4:-4].mean()
        rows.append((name, seconds(run, repeat), f"{error:.4f}"))
    rows.append(("scipy zoom, order 3", reference, "0"))
    table("Image resampling alone, uncropped", "mean error against float64 cubic, HU", rows)


def on_grid_of(got: MetaTensor, image: np.ndarray) -> np.ndarray:
    """The truth where MONAI put its voxels: it keeps the first voxel's centre, not the border."""
    relation = np.diag([*(1 / np.array(SPACING)), 1.0]) @ np.asarray(got.affine)
    return ndimage.affine_transform(
        image.astype(np.float64), np.diag(relation)[:3], relation[:3, 3], tuple(got.shape), order=3, mode="nearest"
    )


def many(slices: int, cases: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, listed = VolumeStore(f"{folder}/volumes"), []
        for number in range(cases):
            image, label = body(slices, number)
            geometry = Geometry.from_spacing(image.shape, SPACING)
            occupancy = np.stack([label == 1, label == 2]).astype(np.uint8) * 255
            segments = (Segment(1, "a"), Segment(2, "b"))
            store.write(f"v{number}", Volume(image, geometry, "CT", "HU"))
            store.write_mask(f"m{number}", Mask(occupancy, segments, geometry, "SEG"))
            listed.append(Case(store.place.url, f"v{number}", f"m{number}"))
        reading = Reading((LabelClass(name="a"), LabelClass(name="b")))
        rows = []
        with compute_client("", 0) as client:
            client.submit(sum, [1]).result()
            for name, runner in (("**local cluster**", client), ("one after the other", None)):
                start = time.perf_counter()
                prepare_dataset(runner, listed, reading, PLAN, Path(folder, name.strip("*").replace(" ", "-")))
                rows.append((name, time.perf_counter() - start, f"{os.cpu_count()} cores"))
        table(f"{cases} cases: read, prepare, write and sync", "machine", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of every library")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--cases", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(given.threads)
    image, label = body(given.slices)
    geometry = Geometry.from_spacing(image.shape, SPACING)
    print(f"{given.slices} × 512 × 512 int16, {given.threads} thread(s) for every library, median of {given.repeat}")
    with threadpool_limits(given.threads):
        chains(image, label, geometry, given.repeat)
        resampling(image, geometry, given.repeat)
    many(given.slices, given.cases)


if __name__ == "__main__":
    main()
