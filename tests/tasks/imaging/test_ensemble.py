"""Members applied together are the mean that one would work out by hand, whatever grids they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.errors import PackageError
from models.geometry import Geometry
from models.networks import build
from models.package import Member, ModelPackage
from models.plan import Activation, Plan
from tasks.imaging.crop import whole_box
from tasks.imaging.ensemble import Together
from tasks.imaging.predictor import Predictor
from tasks.imaging.prepare import prepare_image
from tasks.imaging.resample import resample_to_grid
from tasks.imaging.restore import restored, slab_ranges
from tasks.imaging.sliding import class_probabilities, sliding_window
from tests.tasks.imaging.test_predictor import described
from tests.tasks.train.samples import balls, pictures

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (14, 22, 18)
GRID = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.5), (3.0, 2.0, -1.0))


class Fixed(nn.Module):
    """Logits that are some multiple of the image."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.factors.view(1, -1, *[1] * (x.ndim - 2))


def weights_of(plans: dict[str, Plan], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {prefix + n: t for prefix, plan in plans.items() for n, t in build(plan.network).state_dict().items()}


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def changed(plan: Plan, **parts: dict[str, object]) -> Plan:
    return plan.model_copy(update={name: getattr(plan, name).model_copy(update=new) for name, new in parts.items()})


def alone(package: ModelPackage, weights: dict[str, Tensor], member: Member) -> Predictor:
    """The member by itself."""
    single = package.model_copy(
        update={"members": (), "plan": member.plan or package.plan, "temperature": 1.0, "keep_largest": ()}
    )
    prefix = f"{member.name}."
    own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    return Predictor(single, own, "cpu", precision="fp32")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.5, 3)), min_size=1, max_size=4),
    st.sampled_from(("softmax", "sigmoid")),
    st.sampled_from(((), ("x",), ("y", "x"))),
)
def test_together_is_the_weighted_mean(
    parts: list[tuple[float, float]], activation: Activation, axes: Sequence[str]
) -> None:
    networks = [Fixed(1.0, -float(i), i / 2) for i in range(len(parts))]
    weights, temperatures = [w for w, _ in parts], [t for _, t in parts]
    x = torch.from_numpy(image(1, (2, 1, 6, 5, 4)))
    found = class_probabilities(
        Together(networks, weights, temperatures, activation), x, axes, "fp32", activation=activation
    )
    made = (lambda y: y.sigmoid()) if activation == "sigmoid" else (lambda y: y.softmax(1))
    by_hand = sum(w * made(n(x) / t) for n, w, t in zip(networks, weights, temperatures, strict=True)) / sum(weights)
    assert torch.allclose(found, by_hand, atol=2e-6)


def test_members_that_are_certain_leave_no_gaps() -> None:
    for activation in ("softmax", "sigmoid"):
        both = Together([Fixed(500.0, -500.0), Fixed(-500.0, 500.0)], [1, 3], [1, 1], activation)
        found = class_probabilities(both, torch.ones(1, 1, 3, 3, 3), (), "fp32", activation=activation)
        assert torch.allclose(found[0, :, 0, 0, 0], torch.tensor([0.25, 0.75]))


def test_folds_share_one_pass_over_the_image() -> None:
    world = balls()
    members = tuple(Member(name=str(i)) for i in range(3))
    package = described(world, members=members)
    weights = weights_of(package.plans)
    predictor = Predictor(package, weights, "cpu", precision="fp32")
    assert len(predictor.parts) == 1
    prepared = prepare_image(image(), GRID, world.plan.prepare)
    seen = torch.from_numpy(prepared.array)
    infer = world.plan.infer
    by_hand = sum(
        sliding_window(alone(package, weights, m).network, seen, infer.tile, infer.overlap, precision="fp32")
        for m in members
    ) / len(members)
    together = sliding_window(predictor.network, seen, infer.tile, infer.overlap, precision="fp32")
    assert torch.allclose(together, by_hand, atol=2e-6)
    found = predictor.segment(image(), GRID)
    assert found.labels.shape == SHAPE


def other_plans(plan: Plan) -> tuple[Plan, ...]:
    """Another spacing; another tile; slice by slice."""
    flat = balls(dimensions=2).plan
    return (
        changed(plan, prepare={"spacing": (1.0, 1.5, 1.0)}),
        changed(plan, infer={"tile": (8, 8, 8), "overlap": 0.25}),
        changed(flat, prepare={"spacing": (1.0, 1.3, 1.3), "crop": "nonzero"}),
    )


def on_the_images_grid(predictor: Predictor, array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(k, z, y, x) by hand: whole image, whole probabilities."""
    plan = predictor.parts[0].plan
    prepared = prepare_image(array, geometry, plan.prepare)
    said = sliding_window(
        predictor.network, torch.from_numpy(prepared.array), plan.infer.tile, plan.infer.overlap, precision="fp32"
    ).numpy()
    inside = tuple(slice(*pair) for pair in prepared.crop)
    whole = np.zeros((len(said), *geometry.shape), np.float32)
    whole[0] = 1
    target = geometry.cropped(inside)  # type: ignore[arg-type]
    for out, channel in zip(whole, said, strict=True):
        out[inside] = resample_to_grid(channel, prepared.geometry, target, order=1)
    return whole


def test_members_with_other_plans_meet_on_the_images_grid() -> None:
    world = balls()
    others = other_plans(world.plan)
    members = (
        Member(name="0", weight=0.5),
        Member(name="1", weight=0.5),
        *(Member(name=f"other-{i}", plan=plan, temperature=1.0 + i) for i, plan in enumerate(others)),
    )
    package = described(world, members=members)
    weights = weights_of(package.plans)
    predictor = Predictor(package, weights, "cpu", precision="fp32")
    assert len(predictor.parts) == 4
    assert sum(part.share for part in predictor.parts) == pytest.approx(1)
    array = image(2)
    array[:3] = 0  # what the cropping member does not see
    by_hand = np.zeros((3, *SHAPE))
    for member in members:
        single = alone(package, weights, member)
        single.network = Together([single.network], [1], [member.temperature])
        by_hand += member.weight / 4 * on_the_images_grid(single, array, GRID)
    found = predictor.segment(array, GRID)
    best = np.sort(by_hand, 0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.95
    assert np.array_equal(found.labels[clear], by_hand.argmax(0)[clear])
    for value, confidence in enumerate(found.confidence, 1):
        given = found.labels == value
        if given.any():
            assert confidence == pytest.approx(by_hand[value][given].mean(), abs=1e-3)


def test_what_is_restored_in_parts_is_what_is_restored_at_once() -> None:
    rng = np.random.default_rng(0)
    crop = ((2, 12), (0, 22), (3, 18))
    inner = GRID.cropped(tuple(slice(*pair) for pair in crop))  # type: ignore[arg-type]
    for prepared in (inner, inner.respaced((1.3, 1.1, 1.5))):
        said = rng.random((2, *prepared.shape), dtype=np.float32)
        outside = np.array([1, 0], np.float32)

        def bands(said: np.ndarray = said, step: int = 3):  # type: ignore[no-untyped-def]
            return ((z, said[:, z : z + step]) for z in range(0, said.shape[1], step))

        whole = next(restored(bands(), prepared, crop, GRID, [(0, SHAPE[0])], outside))
        ranges = slab_ranges(SHAPE, 2, 3 * 5 * 4 * SHAPE[1] * SHAPE[2])
        assert len(ranges) > 3
        parts = list(restored(bands(), prepared, crop, GRID, ranges, outside))
        assert np.allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
        assert (whole[0, :2] == 1).all()
        assert (whole[1, :, :, :3] == 0).all()


def test_what_is_held_does_not_grow_with_the_scan() -> None:
    """Of a scan ten times as long, no more bands are asked for ahead of the slices that need them."""
    for length in (40, 400):
        original = Geometry.from_spacing((length, 6, 5), (1.0, 1.0, 1.0))
        prepared = original.respaced((2.0, 1.0, 1.0))
        asked: list[int] = []

        def bands(prepared: Geometry = prepared, asked: list[int] = asked):  # type: ignore[no-untyped-def]
            for z in range(0, prepared.shape[0], 2):
                asked.append(z)
                yield z, np.zeros((2, min(2, prepared.shape[0] - z), 6, 5), np.float32)

        ranges = [(low, low + 4) for low in range(0, length, 4)]
        ahead = []
        for (_, high), _ in zip(
            ranges, restored(bands(), prepared, whole_box(original.shape), original, ranges, np.zeros(2, np.float32)),
            strict=True,
        ):  # fmt: skip
            ahead.append(asked[-1] - high / 2)
        assert max(ahead) <= 4


def test_classes_are_averaged_over_other_sizes_too() -> None:
    world = pictures()
    larger = changed(world.plan, prepare={"size": (1, 24, 24)}, infer={"mirror_axes": ("x",)})
    members = (Member(name="0"), Member(name="1"), Member(name="b", plan=larger, weight=2.0, temperature=2.0))
    package = described(world, members=members, temperature=1.5)
    weights = weights_of(package.plans)
    predictor = Predictor(package, weights, "cpu", precision="fp32")
    assert [part.share for part in predictor.parts] == [0.5, 0.5]
    picture, grid = image(4, (1, 40, 30)), Geometry.from_spacing((1, 40, 30), (1.0, 0.2, 0.2))
    by_hand = np.zeros(2)
    for member in members:
        single = alone(package, weights, member)
        single.network = Together([single.network], [1], [member.temperature])
        by_hand += member.weight / 4 * single.classify(picture, grid)
    raised = by_hand ** (1 / 1.5)
    assert predictor.classify(picture, grid) == pytest.approx(raised / raised.sum(), abs=1e-5)


def test_a_temperature_changes_confidence_and_no_label() -> None:
    world = balls()
    plain, hot = described(world), described(world, temperature=2.5)
    weights = weights_of({"": world.plan})
    before = Predictor(plain, weights, "cpu", precision="fp32").segment(image(), GRID)
    after = Predictor(hot, weights, "cpu", precision="fp32").segment(image(), GRID)
    assert np.array_equal(before.labels, after.labels)
    given = [(a, b) for a, b in zip(after.confidence, before.confidence, strict=True) if b]
    assert given
    assert all(a < b for a, b in given)


def test_a_temperature_tells_the_same_of_one_voxel_as_of_all() -> None:
    from tasks.imaging.restore import EachAlone, Likeliest

    rng = np.random.default_rng(0)
    said = rng.dirichlet([0.4] * 4, 3000).T.reshape(4, 10, 20, 15).astype(np.float32)
    decision = Likeliest(1.7)
    labels = decision.take(iter(said))
    raised = said ** (1 / 1.7)
    sure = (raised / raised.sum(0)).max(0)
    assert decision.confidence(3) == pytest.approx([sure[labels == v].mean() for v in (1, 2, 3)], abs=1e-4)
    assert Likeliest(1.7).take(iter(np.ones((1, 2, 2, 2), np.float32))).max() == 0
    alone = EachAlone(temperature=1.7)
    assert np.array_equal(alone.take(iter(said[1:])), EachAlone().take(iter(said[1:])))
    assert all(0.5 <= c < 1 for c in alone.confidence(3))


def test_weights_of_a_missing_member_are_refused() -> None:
    world = balls()
    package = described(world, members=(Member(name="0"), Member(name="1")))
    weights = weights_of({"0.": world.plan})
    with pytest.raises(PackageError, match="do not fit"):
        Predictor(package, weights, "cpu")
