from __future__ import annotations

import json

import numpy as np
import pytest

from models.errors import PackageError
from models.geometry import Geometry
from models.package import ModelPackage
from models.plan import Fingerprint, Normalisation
from models.volume import Volume
from tasks.imaging.facts import channel_levels, image_facts, orientation, slice_plane
from tasks.predict.familiarity import Check, check_image
from tasks.preprocess.fingerprint import look_at_case, summarise
from tests.tasks.imaging.test_predictor import described
from tests.tasks.train.samples import balls

Image = tuple[np.ndarray, Geometry]


def a_body(
    seed: int, spacing: tuple[float, float, float] | None = None, shape: tuple[int, int, int] | None = None
) -> Image:
    """An organ of 300 in tissue of 100, on grids of 0.9 to 1.2 mm."""
    rng = np.random.default_rng(seed)
    step = float(rng.uniform(0.9, 1.2))
    size = shape or (30 + int(rng.integers(0, 6)), 40, 44)
    image = rng.normal(100, 10, size)
    image[size[0] // 4 : 2 * size[0] // 3, 10:30, 10:30] += 200 + rng.normal(0, 10)
    image[:, :4] = 0
    return image.astype(np.int16), Geometry.from_spacing(size, spacing or (step, step, step))


def trained_on(*images: Image, modality: str = "MR") -> Fingerprint:
    """As preprocessing writes it."""
    samples = [look_at_case(f"v{n}", array, geometry) for n, (array, geometry) in enumerate(images)]
    return summarise("d", modality, samples, classes=0)


def compared(package: ModelPackage, volume: Volume) -> tuple[Check, ...]:
    return check_image(package, volume, image_facts("v", volume.array, volume.geometry))


def checked(
    image: Image, fingerprint: Fingerprint, modality: str = "MR", unit: str = "arbitrary", **plan: object
) -> dict[str, Check]:
    package = described(balls(), fingerprint=fingerprint.model_dump(mode="json"))
    if plan:
        prepare = package.plan.prepare.model_copy(update=plan)
        package = package.model_copy(update={"plan": package.plan.model_copy(update={"prepare": prepare})})
    found = compared(package, Volume(*image, modality, unit=unit))  # type: ignore[arg-type]
    return {check.name: check for check in found}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


@pytest.fixture(scope="module")
def known() -> Fingerprint:
    return trained_on(*[a_body(seed) for seed in range(12)])


def test_another_image_of_the_kind_is_familiar(known: Fingerprint) -> None:
    for seed in range(100, 120):
        checks = checked(a_body(seed), known)
        assert not failed(checks), [check.told for check in checks.values() if not check.passed]
        assert {"modality", "orientation", "spacing z", "size x", "median of intensities"} <= set(checks)


def test_even_the_only_training_image_is_familiar() -> None:
    assert not failed(checked(a_body(3), trained_on(a_body(3))))


def test_another_spacing_is_told_in_words(known: Fingerprint) -> None:
    checks = checked(a_body(100, spacing=(5.0, 1.0, 1.0), shape=(8, 40, 44)), known)
    assert failed(checks) == {"spacing z"}
    low, high = checks["spacing z"].low, checks["spacing z"].high
    assert low is not None
    assert high is not None
    assert 0.9 <= low < high <= 1.2
    assert checks["spacing z"].told == f"spacing z 5 mm, trained on {low:.3g}–{high:.3g} mm"
    doubled = tuple(2 * s for s in a_body(100)[1].spacing)
    assert {"spacing z", "spacing y", "spacing x"} <= failed(checked(a_body(100, spacing=doubled), known))  # type: ignore[arg-type]


def test_scaled_or_shifted_intensities_are_flagged(known: Fingerprint) -> None:
    image, geometry = a_body(100)
    for other in (image * 2, image // 4, image.astype(np.int32) + 1000):
        assert any("intensities" in name for name in failed(checked((other, geometry), known)))


def test_a_scan_of_something_far_smaller_is_flagged(known: Fingerprint) -> None:
    assert "size z" in failed(checked(a_body(100, shape=(26, 40, 44), spacing=(0.5, 1.0, 1.0)), known))
    assert "size z" not in failed(checked(a_body(100, shape=(22, 40, 44), spacing=(0.9, 1.0, 1.0)), known))


def test_another_orientation_and_modality_are_flagged(known: Fingerprint) -> None:
    image, geometry = a_body(100)
    sagittal = geometry.matrix[:, [2, 0, 1, 3]]
    turned = Geometry(geometry.shape, tuple(map(tuple, sagittal)))
    checks = checked((image, turned), known, modality="CT")
    assert failed(checks) == {"orientation", "modality"}
    assert checks["orientation"].told == "orientation sagittal (LHP), trained on axial (HPL)"
    assert checks["modality"].told == "modality CT, trained on MR"


def test_what_the_network_clips_does_not_count() -> None:
    how = (Normalisation(scheme="ct", low=50, high=350, mean=150, std=60),)
    known, (image, geometry) = trained_on(*[a_body(seed) for seed in range(5)]), a_body(100)
    padded = image.copy()
    padded[:, :12] = -2000
    assert failed(checked((padded, geometry), known)) == {"5th percentile of intensities"}
    assert not failed(checked((padded, geometry), known, normalisation=how))
    assert checked((image * 3, geometry), known, unit="HU", normalisation=how)["median of intensities"].unit == "HU"


def test_a_single_slice_has_no_slice_spacing() -> None:
    flat = [
        (np.full((1, 20, 20), 5 + n, np.int16), Geometry.from_spacing((1, 20, 20), (1.0, 0.2, 0.2))) for n in (0, 1)
    ]
    checks = checked(
        (flat[0][0], Geometry.from_spacing((1, 20, 20), (9.0, 0.2, 0.2))), trained_on(*flat, modality="MR")
    )
    assert not failed(checks)
    assert "spacing z" not in checks
    assert "size z" not in checks


def test_a_package_that_knows_less_is_asked_less(known: Fingerprint) -> None:
    assert compared(described(balls()), Volume(*a_body(1), "MR")) == ()
    plain = known.model_dump(mode="json")
    for case in plain["cases"]:
        del case["orientation"], case["levels"]
    names = set(checked(a_body(1), Fingerprint.model_validate(plain)))
    assert names == {"modality", "spacing z", "spacing y", "spacing x", "size z", "size y", "size x"}


def test_a_fingerprint_that_cannot_be_read_is_a_bad_package() -> None:
    with pytest.raises(PackageError, match="fingerprint"):
        compared(described(balls(), fingerprint={"cases": 3}), Volume(*a_body(1), "MR"))


def test_checks_survive_json(known: Fingerprint) -> None:
    for check in checked(a_body(1), known).values():
        assert Check.from_json(json.loads(json.dumps(check.to_json()))) == check


class TestFacts:
    def test_levels_leave_out_what_is_zero(self) -> None:
        image, _ = a_body(0)
        (levels,) = channel_levels(image)
        assert levels.median == pytest.approx(100, abs=8)
        assert levels.p95 == pytest.approx(300, abs=25)
        assert channel_levels(np.zeros((2, 3, 3, 3)))[1].p95 == 0

    def test_every_axis_has_its_letter(self) -> None:
        grid = Geometry.from_spacing((2, 3, 4), (1, 1, 1))
        assert (orientation(grid), slice_plane(orientation(grid))) == ("HPL", "axial")
        turned = Geometry((2, 3, 4), ((0, 0, 0.9, 0), (-1, 0, 0.1, 0), (0, -2, 0, 0), (0, 0, 0, 1)))
        assert (orientation(turned), slice_plane(orientation(turned))) == ("AFL", "coronal")
