"""A MONAI bundle of a model that segments: its program, how images are prepared for it, and what it is for.

Layout and fields after https://docs.monai.io/en/stable/mb_specification.html. The way in and out is written with
MONAI's own transforms: the network is the package's, resampling and the places of the tiles are MONAI's.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from models.card import ModelCard
from models.errors import PackageError
from models.plan import Normalisation, Plan
from tasks.register.card.markdown import front_matter, markdown
from tasks.register.export.network import Exportable
from tasks.register.export.program import PROGRAM_FILE, write_program

SCHEMA: Final = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json"
)
Config = dict[str, Any]


def write_bundle(model: Exportable, card: ModelCard | None, folder: Path, version: str, tolerance: float) -> float:
    """Write the bundle; returns the largest difference of its program from the package.

    Raises PackageError for a model that does not segment, for preparation that MONAI has no transform for, and where
    the program differs.
    """
    plan = model.package.plan
    if not plan.segments:
        raise PackageError(
            "only models that segment become bundles",
            where=model.package.recipe.name,
            hint="export a classification with --to torch or --to onnx",
        )
    inference = _inference(model)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    largest = write_program(model, folder / "models" / PROGRAM_FILE, tolerance)
    _write(folder / "configs" / "metadata.json", _metadata(model, card, version))
    _write(folder / "configs" / "inference.json", inference)
    told = front_matter(card) + markdown(card) if card else f"# {model.package.recipe.name}\n"
    (folder / "docs" / "README.md").write_text(told, encoding="utf-8")
    licence = card.licence if card else "No licence is granted with these weights."
    (folder / "LICENSE").write_text(licence + "\n", encoding="utf-8")
    return largest


def _write(file: Path, config: Config) -> None:
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _metadata(model: Exportable, card: ModelCard | None, version: str) -> Config:
    package, plan = model.package, model.package.plan
    outputs = {str(i): name for i, name in enumerate(_outputs(model))}
    shape = list(plan.infer.tile[-plan.network.dimensions :])
    patch = {"format": "magnitude", "num_channels": plan.network.in_channels, "spatial_shape": shape}
    return {
        "schema": SCHEMA,
        "version": f"{version}.0.0",
        "changelog": {f"{version}.0.0": f"version {version} of {package.recipe.name}, package {package.key}"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": package.environment.torch.partition("+")[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {"nibabel": importlib.metadata.version("nibabel")},
        "name": package.recipe.name,
        "task": f"{plan.kind} of {', '.join(plan.classes)}",
        "description": card.use.primary if card else f"{plan.kind} by Nocturne",
        "authors": "the institution that trained it, with Nocturne",
        "copyright": "no licence is granted with these weights",
        "intended_use": " ".join(card.use.out_of_scope) if card else "",
        "data_type": "nifti",
        "eval_metrics": {m.metric: m.interval.value for m in card.performance.metrics if not m.class_name}
        if card
        else {},
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "modality": "/".join(package.recipe.images.modalities),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(i): f"image {i + 1}" for i in range(plan.network.in_channels)},
                    **patch,
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "segmentation",
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": outputs,
                    "num_channels": len(outputs),
                    "spatial_shape": shape,
                }
            },
        },
    }


def _outputs(model: Exportable) -> list[str]:
    return [*(["background"] if model.package.recipe.background else []), *model.package.plan.classes]


def _inference(model: Exportable) -> Config:
    """`python -m monai.bundle run --config_file configs/inference.json --dataset_dir … --output_dir …`"""
    plan, softmax = model.package.plan, model.package.plan.activation == "softmax"
    discrete = {"argmax": True} if softmax else {"threshold": 0.5}
    return {
        "imports": ["$import pathlib", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "masks",
        "images": "$sorted(str(file) for file in pathlib.Path(@dataset_dir).glob('*.nii.gz'))",
        "network": f"$torch.export.load(@bundle_root + '/models/{PROGRAM_FILE}').module()",
        "preprocessing": {"_target_": "Compose", "transforms": list(_steps(plan))},
        "inferer": _inferer(plan),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", **discrete},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"},
            ],
        },
        "said": "$lambda data: {**data, 'pred': @inferer(data['image'][None], @network)[0]}",
        "run": ["$[@postprocessing(@said(@preprocessing({'image': file}))) for file in @images]"],
    }


def _inferer(plan: Plan) -> Config:
    common = {"sw_batch_size": 1, "overlap": plan.infer.overlap, "mode": "gaussian", "padding_mode": "constant"}
    if plan.network.dimensions == 2:
        return {"_target_": "SliceInferer", "spatial_dim": 0, "roi_size": list(plan.infer.tile[1:]), **common}
    return {"_target_": "SlidingWindowInferer", "roi_size": list(plan.infer.tile), **common}


def _steps(plan: Plan) -> Iterator[Config]:
    """The plan's preparation. NIfTI lies (x, y, z); the network wants (z, y, x), as DICOM stacks its slices."""
    prepare = plan.prepare
    if prepare.steps or prepare.size is not None:
        raise PackageError("filters and fixed sizes have no counterpart in a bundle", where="preprocess")
    yield {"_target_": "LoadImaged", "keys": "image", "image_only": True, "ensure_channel_first": True}
    yield {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS"}
    if prepare.crop == "nonzero":
        body = "$lambda values: values != 0"
        yield {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": body}
    if len(set(prepare.normalisation)) != 1:
        raise PackageError("channels with intensities of different kinds have no counterpart", where="preprocess")
    yield from _normalised(prepare.normalisation[0])
    if prepare.spacing is not None:
        z, y, x = prepare.spacing
        pixdim = [x, y, z if prepare.dimensions == 3 else -1]
        yield {"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "mode": "bilinear"}
    yield {"_target_": "Transposed", "keys": "image", "indices": [0, 3, 2, 1]}
    yield {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"}


def _normalised(how: Normalisation) -> Iterator[Config]:
    unit = {"keys": "image", "b_min": 0.0, "b_max": 1.0, "clip": True}
    match how.scheme:
        case "ct":
            ends = {"b_min": (how.low - how.mean) / how.std, "b_max": (how.high - how.mean) / how.std}
            yield {"_target_": "ScaleIntensityRanged", **unit, "a_min": how.low, "a_max": how.high, **ends}
        case "window":
            yield {"_target_": "ScaleIntensityRanged", **unit, "a_min": how.low, "a_max": how.high}
        case "zscore":
            channels = {"nonzero": how.masked, "channel_wise": True}
            yield {"_target_": "NormalizeIntensityd", "keys": "image", **channels}
        case "percentile":
            ends = {"lower": how.low, "upper": how.high, "channel_wise": True}
            yield {"_target_": "ScaleIntensityRangePercentilesd", **unit, **ends}
        case "minmax":
            yield {"_target_": "ScaleIntensityd", "keys": "image", "channel_wise": True}
        case "none":
            return
