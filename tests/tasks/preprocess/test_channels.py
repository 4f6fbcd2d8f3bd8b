"""Several series as one case: looked at channel by channel, prepared, and planned by each one's modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.dataset import Dataset, DatasetRow
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import IntensityStats, clinical_numbers
from models.recipe import Variable
from models.volume import Mask, Segment, Volume
from tasks.preprocess.plan import make_plan
from tasks.preprocess.run import Case, Reading, case_key, fingerprint_dataset, prepare_dataset
from tasks.preprocess.variables import plan_variables
from tasks.stores.prepared import PreparedStore, prepared_keys
from tasks.stores.volumes import VolumeStore
from tests.tasks.preprocess.cases import READING, fingerprint, recipe

TWO = [{"name": "PET", "modality": "PT"}, {"name": "CT", "modality": "CT"}]


def a_case(url: Path, number: int, *, ct: bool = True) -> Case:
    """A hot organ in PET; in CT, twice as fine, it is soft tissue in air."""
    store = VolumeStore(str(url))
    pet = Geometry.from_spacing((10, 16, 14), (4.0, 4.0, 4.0), (0, 0, number), "1.2.3")
    fine = Geometry.from_spacing((20, 32, 28), (2.0, 2.0, 2.0), (-1, -1, number - 1), "1.2.3")
    organ = np.zeros(pet.shape, bool)
    organ[3:7, 4:11, 4:10] = True
    rng = np.random.default_rng(number)
    hot = (organ * 9 + rng.random(pet.shape)).astype(np.float32)
    tissue = np.where(np.kron(organ, np.ones((2, 2, 2), bool)), 50, -1000) + rng.normal(0, 5, fine.shape)
    keys = [content_key(what, number) for what in ("pet", "ct", "mask")]
    store.write(keys[0], Volume(hot, pet, "PT", unit="SUVbw"))
    store.write(keys[1], Volume(tissue.astype(np.int16), fine, "CT", unit="HU"))
    store.write_mask(keys[2], Mask(organ[None].astype(np.uint8) * 255, (Segment(1, "Organ"),), pet, "SEG"))
    return Case(str(url), keys[0], keys[2], channels=(keys[1] if ct else "",))


def test_two_series_from_the_store_to_the_networks_input(tmp_path: Path) -> None:
    cases = [a_case(tmp_path / "volumes", n, ct=n != 2) for n in range(4)]
    asked = recipe(images={"channels": TWO, "missing": "learn"}, train={"epochs": 1})
    seen = fingerprint_dataset(
        None, cases, READING, tmp_path, dataset="d", modality="PT", modalities=("PT", "CT")
    ).fingerprint
    assert [stats.median for stats in seen.intensities] == [pytest.approx(9.5, abs=0.2), pytest.approx(0, abs=90)]
    assert [len(case.levels) for case in seen.cases] == [2] * 4
    plan = make_plan(asked, seen, ("organ",), memory_gb=4, device="cpu", cores=1)
    assert plan.channels == ("PET", "CT")
    assert (plan.prepare.channels, plan.network.in_channels) == (2, 2)
    assert [way.scheme for way in plan.prepare.normalisation] == ["zscore", "ct"]
    assert plan.train.channel_dropout == 0.2
    assert any("normalisation of CT ct: clipped" in note for note in plan.notes)
    done = prepare_dataset(None, cases, READING, plan.prepare, tmp_path)
    assert (done.computed, done.failures) == (4, ())
    store = PreparedStore(tmp_path)
    for case in cases:
        opened = store.open(done.done[case])
        assert opened.mask is not None
        for channel in np.asarray(opened.image, np.float32)[: 1 + bool(case.channels[0])]:
            assert channel[opened.mask == 1].mean() > channel[opened.mask == 0].mean() + 1
        if not case.channels[0]:
            assert not opened.image[1].any()
    assert prepare_dataset(None, cases, READING, plan.prepare, tmp_path).computed == 0


def test_prepared_cases_are_keyed_by_all_their_series() -> None:
    plan = make_plan(recipe(), fingerprint("MR", (20, 30, 30), (1, 1, 1), 4), ("a",), memory_gb=4, device="cpu").prepare
    case = Case("url", "v", "l")
    several = [
        case,
        replace(case, channels=("w",)),
        replace(case, channels=("x",)),
        replace(case, channels=("",)),
        replace(case, channels=("w",), registration="rigid"),
    ]
    assert len({case_key(c, READING, plan) for c in several}) == 5
    row = DatasetRow("p", "s", "s", "v", "l", "train", -1, "MR", "", "", *[9] * 6, channels=("w",))
    asked = recipe(labels={"source": "SEG", "classes": ["organ"]})
    keys = prepared_keys(Dataset("r", "segmentation", ("organ",), (row,)), asked, plan)
    assert keys["v", "l"] == case_key(several[1], Reading(asked.labels.classes), plan)


def test_each_channel_has_its_own_normalisation() -> None:
    own = [TWO[0] | {"normalise": "ct"}, TWO[1] | {"normalise": "minmax"}, {"name": "MR", "modality": "MR"}]
    seen = fingerprint("PT", (30, 60, 60), (3, 3, 3), 6, channels=3)
    stats = IntensityStats(mean=3, std=2, minimum=0, maximum=20, median=3, p005=0, p995=12)
    seen = seen.model_copy(update={"modalities": ("PT", "CT", "MR"), "intensities": (stats, *seen.intensities[1:])})
    plan = make_plan(recipe(images={"channels": own}), seen, ("a",), memory_gb=4, device="cpu").prepare
    assert [way.scheme for way in plan.normalisation] == ["ct", "minmax", "zscore"]
    assert plan.normalisation[0].high == 12
    assert plan.crop == "none"  # zero is water in CT


def rows(*clinical: tuple[str, ...]) -> list[DatasetRow]:
    return [
        DatasetRow(f"p{n}", "s", "s", f"v{n}", "l", "train", 0, "MR", "", "", *[9] * 6, clinical=values)
        for n, values in enumerate(clinical)
    ]


def test_variables_become_numbers_by_the_training_split() -> None:
    asked = (Variable(name="age"), Variable(name="sex", kind="category"), Variable(name="ki67"))
    age, sex, ki67 = plan_variables(asked, rows(("060Y", "F", ""), ("40", "m", ""), ("", "M ", ""), ("50", "", "")))
    assert (age.mean, age.std) == (50, pytest.approx(8.165, abs=1e-3))
    assert (sex.values, sex.width, ki67.width) == (("F", "M"), 3, 2)
    told = clinical_numbers((age, sex, ki67), ("050Y", "f", "12"))
    assert told == (0, 0, 1, 0, 0, 5, 0)  # a value that training never saw is bounded
    assert clinical_numbers((age, sex, ki67), ("?", "X", "")) == (0, 1, 0, 0, 1, 0, 1)
    assert clinical_numbers((age, sex, ki67), ()) == (0, 1, 0, 0, 1, 0, 1)
    given = Variable(name="stage", kind="category", values=("I", "II", "III"))
    assert plan_variables((given,), rows(("II",)))[0].values == ("I", "II", "III")
