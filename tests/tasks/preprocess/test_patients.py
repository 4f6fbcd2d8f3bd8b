"""Planning where a case is a patient, or where a network sees a volume as a set of slices."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.errors import RecipeError
from models.networks import NETWORKS, build
from models.plan import Plan
from tasks.preprocess.plan import make_plan
from tests.tasks.preprocess.cases import fingerprint, recipe

SETS = [name for name, entry in NETWORKS.items() if entry.sets]


def plan(series: Sequence[int] = (3,) * 40, *, depth: int = 1, memory_gb: float = 8, **sections: object) -> Plan:
    asked = recipe("classification", "MR", **{"labels": {"source": "CSV", "of": "patient"}, **sections})
    known = fingerprint("MR", (depth, 64, 64), (6.0 if depth > 1 else 1.0, 1.0, 1.0), sum(series) or 40)
    return make_plan(asked, known, ("no", "yes"), memory_gb=memory_gb, device="cpu", cores=2, series=series)


def test_auto_takes_a_network_of_sets() -> None:
    assert plan().network.name == "patient_attention"
    assert plan().of == "patient"


@pytest.mark.parametrize("name", SETS)
def test_it_may_be_named(name: str) -> None:
    planned = plan(network={"name": name})
    assert planned.network.name == name
    assert not planned.train.compile
    assert build(planned.network)


def test_one_that_sees_a_single_image_is_refused_with_those_that_can() -> None:
    with pytest.raises(RecipeError, match="patient_attention, patient_graph") as refused:
        plan(network={"name": "resnet"})
    assert refused.value.where == "network.name"


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_images_of_a_set_are_not_blended(name: str) -> None:
    with pytest.raises(ValueError, match=r"blend single images, not a patient's series"):
        plan(train={name: 0.2, "epochs": 2})


def test_an_epoch_is_every_patient_once() -> None:
    planned = plan(train={"epochs": 5, "batch_size": 8})
    assert planned.train.steps_per_epoch == 5


def test_memory_holds_the_patient_with_the_most_series() -> None:
    crowd, alone = (1,) * 39 + (16,), (1,) * 40
    few, many = (plan(s, memory_gb=0.3, network={"features": [16, 32]}).train.batch_size for s in (crowd, alone))
    assert 1 <= few < many


def test_a_patient_that_memory_does_not_hold_is_told() -> None:
    with pytest.raises(RecipeError, match="16 series"):
        plan((16,) * 40, memory_gb=0.02)


def test_time_is_shared_by_a_patients_series() -> None:
    few, many = (plan(series, train={"minutes": 2}).network.features for series in ((1,) * 400, (8,) * 400))
    assert many[0] < few[0]


@pytest.mark.parametrize("name", ["mil", "cnn_gru", "cnn_lstm"])
def test_networks_over_slices_get_volumes_of_few_slices_whole(name: str) -> None:
    series = {"labels": {"source": "CSV"}}
    assert plan((), depth=8, **series).network.dimensions == 2
    planned = plan((), depth=8, network={"name": name}, **series)
    assert planned.network.dimensions == 3
    assert planned.prepare.size is not None
    assert planned.prepare.size[0] == 8
