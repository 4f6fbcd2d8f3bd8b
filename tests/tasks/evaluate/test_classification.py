from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from models import schemas
from models.errors import LabelError, NothingToDoError, PackageError, RecipeError
from models.evaluation import Evaluation
from tasks.evaluate.classification import choose_threshold, evaluate_classification
from tasks.evaluate.comparison import compare_classification
from tasks.evaluate.reporting.cases import worst

IDS = {"package": "p", "dataset": "d", "bootstrap": 200}


def _cohort(classes: int, count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    truth = generator.integers(0, classes, count)
    raw = generator.normal(0, 1, (count, classes))
    raw[np.arange(count), truth] += 1.2
    raw = np.exp(raw)
    return truth, raw / raw.sum(1, keepdims=True)


def _names(count: int) -> tuple[list[str], list[str]]:
    return [f"P{i // 2}" for i in range(count)], [f"c{i}" for i in range(count)]


def _calibration_error(truth: np.ndarray, score: np.ndarray) -> float:
    observed, predicted = calibration_curve(truth, score, n_bins=10, strategy="quantile")
    edges = np.percentile(score, np.linspace(0, 100, 11))
    counts = np.bincount(np.searchsorted(edges[1:-1], score), minlength=10)
    return float(np.sum(np.abs(observed - predicted) * counts[counts > 0]) / len(score))


def test_two_classes_equal_scikit_learn() -> None:
    truth, chances = _cohort(2)
    found, frame, pictures = evaluate_classification(*_names(120), truth, chances, ("no", "yes"), **IDS)
    called = (chances[:, 1] >= 0.5).astype(int)
    expected = {
        "auc": metrics.roc_auc_score(truth, chances[:, 1]),
        "average_precision": metrics.average_precision_score(truth, chances[:, 1]),
        "accuracy": metrics.accuracy_score(truth, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
        "sensitivity": metrics.recall_score(truth, called),
        "specificity": metrics.recall_score(truth, called, pos_label=0),
        "precision": metrics.precision_score(truth, called),
        "f1": metrics.f1_score(truth, called),
        "brier": metrics.brier_score_loss(truth, chances[:, 1]),
        "auc_delong": metrics.roc_auc_score(truth, chances[:, 1]),
        "ece": _calibration_error(truth, chances[:, 1]),
    }
    assert {m.metric: m.interval.value for m in found.metrics} == pytest.approx(expected)
    assert all(m.interval.low <= m.interval.value <= m.interval.high for m in found.metrics)
    assert (found.primary, found.n_patients, found.n_cases) == ("auc", 60, 120)
    assert (found.positive, found.threshold) == ("yes", 0.5)
    assert found.confusion.counts == tuple(map(tuple, metrics.confusion_matrix(truth, called).tolist()))
    assert {c.name for c in found.curves} == {"roc", "precision-recall", "calibration"}
    assert [p.name for p in pictures] == ["roc", "precision-recall", "calibration", "confusion"]
    assert len(schemas.check(frame, schemas.CASE_METRICS_CLASSIFICATION, where="test")) == 240
    assert Evaluation.from_json(found.to_json()) == found


def test_more_classes_are_told_one_by_one_and_as_their_mean() -> None:
    truth, chances = _cohort(3)
    found, _, _ = evaluate_classification(*_names(120), truth, chances, ("a", "b", "c"), **IDS)
    called = chances.argmax(1)
    assert found.of("auc").value == pytest.approx(metrics.roc_auc_score(truth, chances, multi_class="ovr"))
    assert found.of("f1").value == pytest.approx(metrics.f1_score(truth, called, average="macro"))
    assert found.of("precision").value == pytest.approx(metrics.precision_score(truth, called, average="macro"))
    assert found.of("sensitivity", "b").value == pytest.approx(
        metrics.recall_score(truth, called, labels=[1], average="macro")
    )
    assert found.of("specificity", "b").value == pytest.approx(
        np.mean(called[truth != 1] != 1),
    )
    assert found.of("brier").value == pytest.approx(((chances - np.eye(3)[truth]) ** 2).sum(1).mean())
    assert found.threshold is None


def test_calibration_and_areas_of_more_classes_are_those_of_each_against_the_rest() -> None:
    truth, chances = _cohort(3)
    found, _, _ = evaluate_classification(*_names(120), truth, chances, ("a", "b", "c"), **IDS)
    each = [_calibration_error(truth == k, chances[:, k]) for k in range(3)]
    assert [found.of("ece", name).value for name in "abc"] == pytest.approx(each)
    assert found.of("ece").value == pytest.approx(np.mean(each))
    for k, name in enumerate("abc"):
        area = found.of("auc_delong", name)
        assert area.value == pytest.approx(metrics.roc_auc_score(truth == k, chances[:, k]))
        drawn = found.of("auc", name)
        assert (area.low, area.high) == pytest.approx((drawn.low, drawn.high), abs=0.03)


def test_a_model_too_sure_of_itself_has_a_larger_calibration_error() -> None:
    generator = np.random.default_rng(7)
    chance = generator.uniform(0.05, 0.95, 400)
    truth = (generator.random(400) < chance).astype(int)
    sure = chance**3 / (chance**3 + (1 - chance) ** 3)
    honest, boaster = (
        evaluate_classification(*_names(400), truth, np.c_[1 - p, p], ("no", "yes"), **IDS)[0].of("ece")
        for p in (chance, sure)
    )
    assert honest.low < 0.02, "resampling adds to what chance had added, and the interval takes that back"
    assert boaster.low > honest.value


def test_threshold_and_positive_class_decide_what_is_called() -> None:
    truth, chances = _cohort(2)
    strict, _, _ = evaluate_classification(*_names(120), truth, chances, ("no", "yes"), 0.8, **IDS)
    assert strict.of("specificity").value > 0.9
    assert strict.threshold == 0.8
    turned, _, _ = evaluate_classification(*_names(120), truth, chances, ("no", "yes"), positive="no", **IDS)
    usual, _, _ = evaluate_classification(*_names(120), truth, chances, ("no", "yes"), **IDS)
    assert turned.of("sensitivity").value == pytest.approx(usual.of("specificity").value)
    assert turned.of("auc").value == pytest.approx(usual.of("auc").value)


def test_youden_finds_the_gap_between_the_classes() -> None:
    truth, score = np.array([0, 0, 0, 1, 1]), np.array([0.05, 0.1, 0.2, 0.3, 0.7])
    assert choose_threshold(truth, score) == pytest.approx(0.25)
    assert choose_threshold(truth, np.c_[1 - score, score]) == pytest.approx(0.25)
    assert choose_threshold(1 - truth, np.c_[score, 1 - score], positive=0) == pytest.approx(0.25)


def test_youden_beats_one_half_when_classes_are_imbalanced() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(400) < 0.1
    score = np.clip(generator.normal(0.15 + 0.2 * truth, 0.08), 0, 1)
    chosen = choose_threshold(truth.astype(int), score)
    assert metrics.balanced_accuracy_score(truth, score >= chosen) > 0.8
    assert metrics.balanced_accuracy_score(truth, score >= 0.5) < 0.6


def test_threshold_stays_at_one_half_where_nothing_can_be_learnt() -> None:
    assert choose_threshold([1, 1], [0.2, 0.9]) == 0.5
    assert choose_threshold([1, 0], [0.3, 0.3]) == 0.5


def test_a_class_that_is_never_called_has_precision_0_and_one_that_never_occurs_no_auc() -> None:
    chances = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2]])
    found, _, _ = evaluate_classification(*_names(3), [0, 1, 0], chances, ("a", "b", "never"), **IDS)
    assert found.of("precision", "b").value == 0
    assert found.of("f1", "b").value == 0
    assert ("auc", "never") not in {(m.metric, m.class_name) for m in found.metrics}


def test_what_does_not_fit_is_refused() -> None:
    truth, chances = _cohort(2, 4)
    with pytest.raises(NothingToDoError):
        evaluate_classification([], [], [], np.zeros((0, 2)), ("a", "b"), **IDS)
    with pytest.raises(NothingToDoError, match="one class"):
        evaluate_classification(*_names(4), [1, 1, 1, 1], chances, ("a", "b"), **IDS)
    with pytest.raises(PackageError):
        evaluate_classification(*_names(4), truth, chances * np.nan, ("a", "b"), **IDS)
    with pytest.raises(PackageError):
        evaluate_classification(*_names(4), truth, chances[:, :1], ("a", "b"), **IDS)
    with pytest.raises(LabelError):
        evaluate_classification(*_names(4), [0, 1, 2, 0], chances, ("a", "b"), **IDS)
    with pytest.raises(RecipeError):
        evaluate_classification(*_names(4), truth, chances, ("a", "b"), positive="c", **IDS)
    with pytest.raises(RecipeError):
        evaluate_classification(*_names(120), *_cohort(3), ("a", "b", "c"), 0.5, **IDS)


class TestSeveralAtOnce:
    NAMES = ("effusion", "nodule", "mass")
    THRESHOLDS = (0.4, 0.5, 0.6)

    @staticmethod
    def cohort(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(5)
        truth = (generator.random((count, 3)) < (0.5, 0.3, 0.2)).astype(int)
        return truth, 1 / (1 + np.exp(-generator.normal(0, 1, (count, 3)) - 1.5 * truth + 0.7))

    def test_figures_equal_scikit_learn(self) -> None:
        truth, chances = self.cohort()
        found, frame, pictures = evaluate_classification(
            *_names(120), truth, chances, self.NAMES, thresholds=self.THRESHOLDS, **IDS
        )
        called = (chances >= self.THRESHOLDS).astype(int)
        macro = {
            "auc": metrics.roc_auc_score(truth, chances, average="macro"),
            "average_precision": metrics.average_precision_score(truth, chances, average="macro"),
            "sensitivity": metrics.recall_score(truth, called, average="macro"),
            "precision": metrics.precision_score(truth, called, average="macro"),
            "f1": metrics.f1_score(truth, called, average="macro"),
            "accuracy": metrics.accuracy_score(truth, called),
            "balanced_accuracy": np.mean(
                [metrics.balanced_accuracy_score(truth[:, k], called[:, k]) for k in range(3)]
            ),
            "brier": np.mean([metrics.brier_score_loss(truth[:, k], chances[:, k]) for k in range(3)]),
        }
        assert {name: found.of(name).value for name in macro} == pytest.approx(macro)
        assert found.of("auc", "nodule").value == pytest.approx(metrics.roc_auc_score(truth[:, 1], chances[:, 1]))
        assert found.of("specificity", "mass").value == pytest.approx(
            metrics.recall_score(truth[:, 2], called[:, 2], pos_label=0)
        )
        assert (found.thresholds, found.threshold, found.positive) == (self.THRESHOLDS, None, None)
        assert found.confusion is None
        assert [p.name for p in pictures] == ["roc", "precision-recall", "calibration"]
        checked = schemas.check(frame, schemas.CASE_METRICS_CLASSIFICATION, where="test")
        assert np.array_equal(checked["predicted"].to_numpy().reshape(-1, 3), called > 0)
        assert Evaluation.from_json(found.to_json()) == found

    def test_champion_and_challenger_are_compared_class_by_class(self) -> None:
        truth, chances = self.cohort()
        old, new = (
            evaluate_classification(*_names(120), truth, p, self.NAMES, thresholds=self.THRESHOLDS, **IDS)
            for p in (np.full_like(chances, 0.5), chances)
        )
        found = compare_classification(
            old[1], new[1], dataset="d", champion_key="a", challenger_key="b", several=True, bootstrap=200
        )
        values = {d.metric: d.interval.value for d in found.differences if d.class_name is None}
        assert values["auc"] == pytest.approx(new[0].of("auc").value - 0.5)
        assert values["accuracy"] == pytest.approx(new[0].of("accuracy").value - old[0].of("accuracy").value)
        assert values["brier"] == pytest.approx(new[0].of("brier").value - 0.25)

    def test_a_single_class_may_be_there_or_not(self) -> None:
        truth, chances = (part[:, :1] for part in self.cohort())
        found, _, _ = evaluate_classification(*_names(120), truth, chances, ("effusion",), **IDS)
        assert found.of("auc").value == pytest.approx(metrics.roc_auc_score(truth, chances))
        assert found.thresholds == (0.5,)

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"truth": np.full((120, 3), 2)}, LabelError),
            ({"truth": np.ones((120, 2), int)}, LabelError),
            ({"thresholds": (0.5,)}, PackageError),
            ({"probabilities": np.full((120, 3), 1.5)}, PackageError),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change: dict[str, object], error: type[Exception]) -> None:
        truth, chances = self.cohort()
        values = {"truth": truth, "probabilities": chances, "thresholds": (), **change}
        with pytest.raises(error):
            evaluate_classification(*_names(120), class_names=self.NAMES, **values, **IDS)  # type: ignore[arg-type]

    def test_worst_cases_name_all_that_was_called(self) -> None:
        truth = np.array([[1, 1], [0, 1], [1, 0]])
        chances = np.array([[0.9, 0.8], [0.1, 0.2], [0.7, 0.6]])
        frame = evaluate_classification(*_names(3), truth, chances, ("a", "b"), **IDS)[1]
        told = {(note.case, note.class_name): note.told for note in worst(frame, "classification")}
        both = "called a, b"
        assert told == {("c1", "b"): "called none", ("c2", "a"): both, ("c0", "b"): both, ("c0", "a"): both}
