"""Packages of small untrained networks in other forms, which say what the package says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from models.card import CARD_DOCUMENT
from models.errors import PackageError, SettingsError
from models.geometry import Geometry
from models.package import CARD_FILE, Member
from models.plan import Normalisation
from tasks.imaging.predictor import Predictor
from tasks.register.card import gather, markdown
from tasks.register.export import export_package, onnx
from tasks.register.export.network import Exportable, difference, exportable
from tasks.stores.house import Stores
from tasks.stores.packages import read_package, write_package, write_weights
from tests.tasks.predict.samples import a_package, scene, stores_at
from tests.tasks.register.samples import a_dataset, an_evaluation
from tests.tasks.train.samples import World, balls, pictures

WORLDS = {"volumes": balls, "slices": lambda: balls(dimensions=2), "pictures": pictures}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    made = stores_at(tmp_path_factory.mktemp("export"))
    yield made
    made.catalog.close()


def folder_of(stores: Stores, name: str, world: World, **changes: object) -> Path:
    """A package as it lies in the registry: with its card."""
    folder = stores.packages.local(a_package(stores, world, name, **changes).key)
    package, _ = read_package(folder)
    card = gather(package, an_evaluation(package), a_dataset())
    (folder / CARD_FILE).write_text(markdown(card))
    (folder / CARD_DOCUMENT).write_text(card.to_json())
    return folder


@pytest.mark.parametrize("kind", WORLDS)
def test_a_program_says_what_the_package_says_for_any_number_of_patches(
    stores: Stores, tmp_path: Path, kind: str, one_thread: None
) -> None:
    folder = folder_of(stores, f"program {kind}", WORLDS[kind](), temperature=1.7)
    done = export_package(folder, "torch", tmp_path / "out", version="3")
    assert done.difference <= 1e-5
    files = sorted(file.name for file in done.folder.iterdir())
    assert files == ["card.json", "card.md", "export.json", "model.pt2"]
    about = json.loads((done.folder / "export.json").read_text())
    assert (about["version"], about["largest_difference"]) == ("3", done.difference)

    program = torch.export.load(done.folder / "model.pt2").module()
    (given,) = about["inputs"]
    image = torch.randn(3, *given["shape"][1:], generator=torch.Generator().manual_seed(5))
    said = program(image)
    assert said.shape == (3, *about["output"]["shape"][1:])
    assert torch.allclose(said.sum(1), torch.ones_like(said.sum(1)), atol=1e-5)
    assert about["output"]["classes"][-1] == read_package(folder)[0].plan.classes[-1]


def test_a_bundle_is_what_monai_reads_and_segments_as_the_package_does(
    stores: Stores, tmp_path: Path, one_thread: None
) -> None:
    from monai.bundle import ConfigParser

    world = balls()
    prepare = world.plan.prepare.model_copy(update={"normalisation": (Normalisation(scheme="minmax"),)})
    # Tiles side by side: how two programs weigh those that overlap is a matter of taste.
    infer = world.plan.infer.model_copy(update={"overlap": 0.0})
    plan = world.plan.model_copy(update={"prepare": prepare, "infer": infer})
    folder = folder_of(stores, "bundle", world, plan=plan)
    done = export_package(folder, "monai", tmp_path / "out", version="2")
    names = {str(file.relative_to(done.folder)) for file in done.folder.rglob("*") if file.is_file()}
    assert names == {
        "LICENSE",
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/model.pt2",
    }
    metadata = json.loads((done.folder / "configs" / "metadata.json").read_text())
    assert metadata["version"] == "2.0.0"
    form = metadata["network_data_format"]
    assert form["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "ball", "2": "core"}
    assert form["inputs"]["image"]["spatial_shape"] == [8, 16, 16]
    assert (done.folder / "docs" / "README.md").read_text().startswith("---\nlibrary_name: ")

    image = scene(1)[:16, :16, :16]
    (tmp_path / "images").mkdir()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI points to the right and to the front, DICOM does not
    nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), affine), tmp_path / "images" / "one.nii.gz")
    parser = ConfigParser()
    parser.read_config(str(done.folder / "configs" / "inference.json"))
    parser.update(
        {
            "bundle_root": str(done.folder),
            "dataset_dir": str(tmp_path / "images"),
            "output_dir": str(tmp_path / "masks"),
        }
    )
    parser.parse()
    with torch.no_grad():
        parser.get_parsed_content("run")
    (file,) = (tmp_path / "masks").rglob("*.nii.gz")
    mask = np.asarray(nib.load(file).dataobj).squeeze().transpose(2, 1, 0)
    ours = Predictor(*read_package(folder), "cpu", precision="fp32").segment(
        image, Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
    )
    assert mask.shape == ours.labels.shape
    assert len(np.unique(ours.labels)) > 1
    assert np.mean(mask == ours.labels) > 0.998


def test_what_differs_is_not_written(stores: Stores, tmp_path: Path, one_thread: None) -> None:
    folder = folder_of(stores, "strict", balls())
    with pytest.raises(PackageError, match="differs from the package") as caught:
        export_package(folder, "torch", tmp_path / "out", tolerance=-1.0)
    assert caught.value.reason == "export-differs"
    assert list(tmp_path.iterdir()) == []
    model = exportable(folder)
    assert difference(model, model.expected + np.float32(5e-5), 1e-4, "program") == pytest.approx(5e-5, rel=0.01)
    for wrong in (model.expected * np.float32(np.nan), model.expected[:1]):
        with pytest.raises(PackageError):
            difference(model, wrong, 1e-4, "program")


def test_what_is_there_already_is_left_alone(stores: Stores, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PackageError, match="something already"):
        export_package(folder_of(stores, "there", balls()), "torch", tmp_path / "out")


def test_what_is_no_single_network_is_refused_with_the_way_on(stores: Stores) -> None:
    world = balls()
    other = world.plan.model_copy(update={"prepare": world.plan.prepare.model_copy(update={"spacing": (2, 1, 1)})})
    members = (Member(name="a"), Member(name="b", plan=other))
    package, weights = read_package(folder_of(stores, "whole", world))
    doubled = {f"{member.name}.{name}": tensor.clone() for member in members for name, tensor in weights.items()}
    with stores.packages.staging() as staged:
        digest = write_weights(staged, doubled)
        write_package(staged, package.model_copy(update={"members": members, "weights_sha256": digest}))
        with pytest.raises(PackageError, match="no single network"):
            exportable(staged)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("pictures", {}, "only models that segment"),
        ("volumes", {"size": (8, 16, 16)}, "no counterpart"),
        ("volumes", {"normalisation": (Normalisation(scheme="none"), Normalisation(scheme="minmax"))}, "different"),
    ],
)
def test_what_monai_cannot_express_is_refused(
    stores: Stores, tmp_path: Path, kind: str, changes: dict[str, object], told: str
) -> None:
    world = WORLDS[kind]()
    plan = world.plan.model_copy(update={"prepare": world.plan.prepare.model_copy(update=changes)})
    folder = folder_of(stores, f"refused {told}", world, plan=plan)
    with pytest.raises(PackageError, match=told):
        export_package(folder, "monai", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_onnx_says_what_the_package_says(stores: Stores, tmp_path: Path, one_thread: None) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    done = export_package(folder_of(stores, "as onnx", balls(), temperature=1.7), "onnx", tmp_path / "out")
    assert done.difference <= 1e-4
    assert (done.folder / "model.onnx").is_file()


def test_without_its_packages_onnx_names_the_extra(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "_NEEDED", ("a_package_that_is_not_there",))
    with pytest.raises(SettingsError, match=r"nocturne\[onnx\]"):
        export_package(folder_of(stores, "without", balls()), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_sample_is_judged_by_what_serves(stores: Stores) -> None:
    model: Exportable = exportable(folder_of(stores, "served", balls()))
    assert model.inputs == ("image",)
    assert model.expected.shape == (2, 3, 8, 16, 16)
    assert np.allclose(model.expected.sum(1), 1, atol=1e-5)
