from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.errors import RecipeError
from models.networks import build
from models.plan import Plan
from tasks.preprocess.budget import Budget
from tasks.preprocess.grids import choose_grid, target_spacing
from tasks.preprocess.plan import make_plan
from tasks.preprocess.topology import (
    REFERENCE_BATCH,
    REFERENCE_ELEMENTS,
    feature_elements,
    first_patch,
    pooled,
    shrunk,
    widths,
)
from tests.tasks.preprocess.cases import fingerprint, recipe

Shape = tuple[int, int, int]


@pytest.mark.parametrize(
    ("spacing", "median", "cases", "classes", "patch", "batch"),
    [
        ((1, 1, 1), (36, 50, 35), 260, 2, (40, 56, 40), 9),  # Task04 hippocampus
        ((1.37, 1.25, 1.25), (115, 320, 232), 20, 1, (80, 192, 160), 2),  # Task02 heart
        ((1, 0.767, 0.767), (482, 512, 512), 131, 2, (128, 128, 128), 2),  # Task03 liver
        ((3.6, 0.625, 0.625), (20, 320, 319), 32, 2, (20, 320, 256), 2),  # Task05 prostate
        ((2.5, 0.803, 0.803), (96, 512, 512), 281, 2, (40, 224, 224), 2),  # Task07 pancreas
        ((1, 1, 1), (138, 170, 138), 484, 3, (128, 128, 128), 2),  # Task01 brain tumour
    ],
)
def test_patches_are_those_that_nnunet_published(
    spacing: tuple[float, float, float], median: Shape, cases: int, classes: int, patch: Shape, batch: int
) -> None:
    got = make_plan(
        recipe("segmentation", "MR", train={"minutes": 1e6}, network={"dimensions": 3}),
        fingerprint("MR", median, spacing, cases),
        tuple(f"c{i}" for i in range(classes)),
        memory_gb=8,
        device="cuda",
    )
    assert got.train.patch_size == patch
    assert got.train.batch_size == batch
    assert got.train.optimiser == "sgd"
    assert got.train.learning_rate == 0.01
    assert got.train.flip_axes == ("z", "y", "x")


def test_pooling_follows_each_axis() -> None:
    prostate = pooled((3.6, 0.625, 0.625), (20, 320, 256), 3)
    assert prostate.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert prostate.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    heart = pooled((1.37, 1.25, 1.25), (80, 192, 160), 3)
    assert heart.strides[1:] == ((2, 2, 2),) * 4 + ((1, 2, 2),)
    flat = pooled((1, 1, 1), (1, 56, 40), 2)
    assert flat.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    assert all(kernel == (1, 3, 3) for kernel in flat.kernels)


sizes = st.tuples(st.integers(1, 300), st.integers(8, 600), st.integers(8, 600))
steps = st.tuples(st.floats(0.3, 8), st.floats(0.2, 3), st.floats(0.2, 3))


@settings(max_examples=80, deadline=None)
@given(median=sizes, spacing=steps)
def test_every_topology_divides_its_patch_and_shrinks_into_memory(
    median: Shape, spacing: tuple[float, float, float]
) -> None:
    topology = pooled(spacing, first_patch(spacing, median, 3), 3)
    before = math.inf
    for _ in range(400):
        assert all(n % m == 0 for n, m in zip(topology.patch, topology.multiple, strict=True))
        assert len(topology.strides) == len(topology.kernels)
        assert math.prod(topology.patch) <= before
        before = math.prod(topology.patch)
        less = shrunk(topology, spacing, median, 3)
        if less is None:
            return
        assert math.prod(less.patch) < before
        topology = less
    pytest.fail("never ends")


def test_spacing_is_the_median_but_for_thick_axes() -> None:
    assert target_spacing(fingerprint("MR", (40, 200, 200), (3.0, 0.9, 0.9), 5)) == (3.0, 0.9, 0.9)
    thick = fingerprint("CT", (20, 512, 512), (8.0, 0.7, 0.7), 10)
    finer = [c.model_copy(update={"spacing": (4.0 + i * 0.8, 0.7, 0.7)}) for i, c in enumerate(thick.cases)]
    got = target_spacing(thick.model_copy(update={"cases": tuple(finer)}))
    assert got[0] == pytest.approx(4.72, abs=0.01)  # the 10th percentile, not the median of 7.6
    assert got[1:] == (0.7, 0.7)


def test_dimensions_follow_the_slices() -> None:
    def dims(shape: Shape, spacing: tuple[float, float, float], **parts: object) -> int:
        return choose_grid(recipe(**parts), fingerprint("MR", shape, spacing, 5), "cpu").dimensions

    assert dims((60, 100, 100), (3, 4, 4)) == 3
    assert dims((1, 28, 28), (1, 1, 1)) == 2
    assert dims((8, 256, 256), (6.0, 0.8, 0.8)) == 2
    assert dims((40, 256, 256), (6.0, 0.8, 0.8)) == 3
    assert dims((60, 100, 100), (3, 4, 4), network={"dimensions": 2}) == 2
    with pytest.raises(RecipeError, match="single slices"):
        dims((1, 28, 28), (1, 1, 1), network={"dimensions": 3})


HIPPOCAMPUS = fingerprint("MR", (35, 50, 35), (1, 1, 1), 125)


def hippocampus(**train: object) -> Plan:
    return make_plan(
        recipe("segmentation", "MR", train=train),
        HIPPOCAMPUS,
        ("anterior", "posterior"),
        memory_gb=16,
        device="cpu",
        cores=2,
    )


def test_ten_minutes_on_two_cores_buy_a_small_unet_of_the_whole_hippocampus() -> None:
    got = hippocampus(minutes=10)
    assert got.network.name == "unet"
    assert got.network.features == (16, 32, 64, 128)
    assert got.network.out_channels == 3
    assert got.train.patch_size == (40, 56, 40)
    assert got.train.optimiser == "adamw"
    assert got.prepare.spacing == (1, 1, 1)
    assert got.prepare.crop == "nonzero"
    assert got.prepare.normalisation[0].scheme == "zscore"
    assert set(got.train.flip_axes) <= {"x"}  # anterior and posterior must not change places
    assert got.infer.tile == got.train.patch_size


def test_more_time_buys_more_and_less_time_less() -> None:
    width = [hippocampus(minutes=m).network.features[0] for m in (0.5, 10, 600)]
    assert width == sorted(width)
    assert width[0] < width[-1]
    assert hippocampus(minutes=600).train.batch_size > hippocampus(minutes=10).train.batch_size
    assert hippocampus(minutes=0.5).train.ema < 0.999


def test_each_fold_is_planned_for_its_part_of_the_time() -> None:
    alone, folds = hippocampus(minutes=10), hippocampus(minutes=50, folds=5)
    assert folds.network == alone.network
    assert (folds.train.batch_size, folds.train.ema) == (alone.train.batch_size, alone.train.ema)
    assert folds.train.minutes == 50  # of all folds: how many learn at once is known when they do
    assert any("5 folds" in note for note in folds.notes)


def test_prepared_arrays_do_not_depend_on_the_budget() -> None:
    """Else a longer night would prepare everything anew."""
    assert hippocampus(minutes=1).prepare == hippocampus(minutes=600).prepare == hippocampus(epochs=3).prepare


def test_a_few_new_cases_leave_prepared_arrays_valid() -> None:
    base = fingerprint("CT", (40, 80, 80), (3, 1.5, 1.5), 30)
    moved = base.intensities[0].model_copy(update={"mean": 56.9, "std": 38.6, "p005": -43.1, "p995": 160.2})
    plans = [
        make_plan(recipe(train={"minutes": 5}), f, ("liver",), memory_gb=8, device="cpu", cores=2)
        for f in (base, base.model_copy(update={"intensities": (moved,)}))
    ]
    assert plans[0].prepare.key == plans[1].prepare.key
    ct = plans[0].prepare.normalisation[0]
    assert (ct.scheme, ct.low, ct.high) == ("ct", -45, 160)
    assert ct.mean == pytest.approx(57.3, abs=3)
    assert ct.std == pytest.approx(38.2, abs=3)


def test_small_pictures_keep_their_size_and_see_many_epochs() -> None:
    got = make_plan(
        recipe("classification", "CR", train={"minutes": 5}),
        fingerprint("CR", (1, 28, 28), (1, 0.14, 0.14), 3288),
        ("normal", "pneumonia"),
        memory_gb=16,
        device="cpu",
        cores=2,
    )
    assert got.prepare.size == (1, 28, 28)
    assert got.network.name == "resnet"
    assert got.network.out_channels == 2
    assert got.network.strides[0] == (1, 1, 1)
    assert got.train.batch_size == 64
    assert got.train.steps_per_epoch == math.ceil(3288 / 64)
    assert (got.train.optimiser, got.train.schedule, got.train.loss) == ("adamw", "cosine", "ce")
    assert got.train.flip_axes == ("x",)


def test_large_pictures_are_bounded_with_their_proportions() -> None:
    got = make_plan(
        recipe("classification", "DX", train={"minutes": 60}),
        fingerprint("DX", (1, 2500, 2000), (1, 0.14, 0.14), 300),
        ("a", "b"),
        memory_gb=16,
        device="cuda",
    )
    assert got.prepare.size == (1, 256, 204)
    assert got.network.strides[0] == (1, 4, 4)


@pytest.mark.parametrize(
    ("modality", "shape", "spacing", "classes", "minutes", "voxels"),
    [
        ("PT", (60, 100, 100), (3.3, 4.0, 4.0), ("gtv",), 10.0, 30**3),
        ("CT", (30, 72, 72), (4.2, 4.4, 4.4), ("liver", "lesion"), 0.66, 20**3),
        ("CT", (120, 512, 512), (2.5, 0.7, 0.7), ("liver",), 30.0, 48**3),
    ],
)
def test_cpu_plans_are_small_enough_to_see_hundreds_of_patches(
    modality: str,
    shape: Shape,
    spacing: tuple[float, float, float],
    classes: tuple[str, ...],
    minutes: float,
    voxels: int,
) -> None:
    found = fingerprint(modality, shape, spacing, 20)
    got = make_plan(
        recipe(modality=modality, train={"minutes": minutes}), found, classes, memory_gb=16, device="cpu", cores=2
    )
    assert got.network.dimensions == 3
    assert math.prod(got.train.patch_size) >= voxels
    assert any("patches in training" in note for note in got.notes)
    seen = next(note for note in got.notes if "patches in training" in note)
    assert int(seen.split("about ")[1].split(" patches")[0].replace(",", "")) >= 300
    assert "the budget is short" not in " ".join(got.notes)


def test_large_cases_are_coarsened_on_a_cpu_alone() -> None:
    found = fingerprint("CT", (480, 512, 512), (1.0, 0.77, 0.77), 20)
    plans = {
        device: make_plan(recipe(train={"minutes": 30}), found, ("a",), memory_gb=16, device=device, cores=2)
        for device in ("cpu", "cuda")
    }
    assert plans["cuda"].prepare.spacing == (1.0, 0.77, 0.77)
    coarse = plans["cpu"].prepare.spacing
    assert coarse is not None
    assert min(coarse) > 2
    assert any("coarsened" in note for note in plans["cpu"].notes)
    given = recipe(train={"minutes": 30}, preprocess={"spacing": (1.0, 1.0, 1.0)})
    assert make_plan(given, found, ("a",), memory_gb=16, device="cpu").prepare.spacing == (1.0, 1.0, 1.0)


@pytest.mark.fault("compute/too-large")
def test_what_cannot_fit_says_what_would() -> None:
    found = fingerprint("CT", (482, 512, 512), (1, 0.767, 0.767), 90)
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(train={"patch_size": (512, 512, 512)}), found, ("a",), memory_gb=8, device="cpu")
    assert caught.value.where == "train.patch_size"
    assert "fits" in str(caught.value)
    smaller = tuple(int(n) for n in str(caught.value).split("train.patch_size of ")[1].split(" fits")[0].split(" × "))
    make_plan(recipe(train={"patch_size": smaller}), found, ("a",), memory_gb=8, device="cpu")
    with pytest.raises(RecipeError, match="memory"):
        make_plan(recipe(), found, ("a",), memory_gb=0.001, device="cpu")
    with pytest.raises(RecipeError, match="does not fit"):
        make_plan(
            recipe("classification", preprocess={"size": (1, 9000, 9000)}),
            fingerprint("DX", (1, 900, 900), (1, 1, 1), 90),
            ("a", "b"),
            memory_gb=0.5,
            device="cpu",
        )


@pytest.mark.parametrize(
    ("classes", "minutes", "axes"),
    [
        (("left lung", "right lung"), 1e5, ()),
        (("kidney_left",), 1e5, ()),
        (("upper lobe",), 1e5, ("x",)),
        (("leftover",), 1e5, ("z", "y", "x")),
        (("liver",), 1e5, ("z", "y", "x")),
    ],
)
def test_mirroring_respects_what_classes_tell_apart(
    classes: tuple[str, ...], minutes: float, axes: tuple[str, ...]
) -> None:
    got = make_plan(recipe(train={"minutes": minutes}), HIPPOCAMPUS, classes, memory_gb=16, device="cuda")
    assert got.train.flip_axes == axes
    given = recipe(train={"minutes": minutes}, augment={"flip": ["y"]})
    assert make_plan(given, HIPPOCAMPUS, classes, memory_gb=16, device="cuda").train.flip_axes == ("y",)


def test_what_the_recipe_gives_is_taken() -> None:
    given = recipe(
        train={
            "epochs": 7,
            "patch_size": (30, 40, 40),
            "batch_size": 3,
            "learning_rate": 0.5,
            "optimiser": "sgd",
            "steps_per_epoch": 11,
        },
        network={"features": (12, 24, 48), "name": "dynunet"},
        preprocess={
            "spacing": (2, 2, 2),
            "normalise": "window",
            "steps": [{"step": "window", "center": 40, "width": 400}],
        },
    )
    got = make_plan(given, fingerprint("CT", (60, 90, 90), (2, 1, 1), 20), ("a",), memory_gb=16, device="cpu")
    assert got.train.patch_size == (32, 40, 40)  # what three levels divide
    assert got.network.features == (12, 24, 48)
    assert (got.train.batch_size, got.train.epochs, got.train.minutes) == (3, 7, None)
    assert (got.train.learning_rate, got.train.optimiser, got.train.steps_per_epoch) == (0.5, "sgd", 11)
    assert (got.prepare.normalisation[0].low, got.prepare.normalisation[0].high) == (-160, 240)
    for bad in (
        {"network": {"name": "unett"}},
        {"network": {"name": "resnet"}},
        {"preprocess": {"normalise": "window"}},
    ):
        with pytest.raises(RecipeError):
            make_plan(recipe(**bad), HIPPOCAMPUS, ("a",), memory_gb=16, device="cpu")
    with pytest.raises(RecipeError, match="two classes"):
        make_plan(recipe("classification"), HIPPOCAMPUS, ("a",), memory_gb=16, device="cpu")


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 200), st.integers(16, 600), st.integers(16, 600)),
    spacing=steps,
    minutes=st.floats(0.3, 600),
    cases=st.integers(1, 2000),
    device=st.sampled_from(["cpu", "cuda:0"]),
    memory=st.floats(4, 80),
    kind=st.sampled_from(["segmentation", "classification"]),
)
def test_every_plan_fits_its_memory_and_says_why(
    shape: Shape, spacing: tuple[float, float, float], minutes: float, cases: int, device: str, memory: float, kind: str
) -> None:
    try:
        got = make_plan(
            recipe(kind, "MR", train={"minutes": minutes}),  # type: ignore[arg-type]
            fingerprint("MR", shape, spacing, min(cases, 30)),
            ("a", "b"),
            memory_gb=memory,
            device=device,
            cores=2,
        )
    except RecipeError:
        assume(False)
    assert got.notes
    assert got.key == Plan.model_validate_json(got.model_dump_json()).key
    levels = len(got.network.features)
    assert len(got.network.strides) == len(got.network.kernels) == levels
    assert got.train.batch_size >= 1
    assert 0 <= got.train.ema < 1
    if kind == "segmentation":
        multiple = [math.prod(a) for a in zip(*got.network.strides, strict=True)]
        assert all(n % m == 0 for n, m in zip(got.train.patch_size, multiple, strict=True))
        topology = pooled(got.prepare.spacing or spacing, got.train.patch_size, got.network.dimensions)
        used = feature_elements(topology, got.network.features, 3) * got.train.batch_size
        budget = Budget("cuda" if device != "cpu" else "cpu", memory, None, 2)
        assert used <= budget.elements(got.network.dimensions) * 1.01 or got.train.batch_size == 1


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
@pytest.mark.parametrize(("shape", "spacing"), [((35, 50, 35), (1, 1, 1)), ((1, 60, 44), (1, 1, 1))])
def test_planned_networks_can_be_built_and_run(kind: str, shape: Shape, spacing: tuple[float, float, float]) -> None:
    import torch

    got = make_plan(
        recipe(kind, "MR", train={"minutes": 0.5}),  # type: ignore[arg-type]
        fingerprint("MR", shape, spacing, 20),
        ("a", "b"),
        memory_gb=8,
        device="cpu",
        cores=2,
    )
    size = got.train.patch_size[3 - got.network.dimensions :]
    with torch.no_grad():
        logits = build(got.network).eval()(torch.zeros(1, 1, *size))
    assert logits.shape == ((1, 3, *size) if kind == "segmentation" else (1, 2))


def test_reference_memory_is_nnunets() -> None:
    for dims in (2, 3):
        assert Budget("cuda", 8, None, 1).elements(dims) == REFERENCE_ELEMENTS[dims] * REFERENCE_BATCH[dims]
    assert widths(32, 7, 3) == (32, 64, 128, 256, 320, 320, 320)
    assert widths(32, 6, 2) == (32, 64, 128, 256, 512, 512)
