"""One package on the volumes of a study: masks or classes, measured, kept with the package that said so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from models.errors import NocturneError, NotFoundError, NothingToDoError, RecipeError
from models.hashing import content_key
from models.package import ModelPackage
from models.refs import AnalysisRef, PackageRef, StudyVersionRef, VolumeRef
from tasks.imaging.facts import image_facts
from tasks.imaging.predictor import Predictor
from tasks.predict.applied import APPLIED
from tasks.predict.beside import beside, clinical_of, fitting_cases, read_image
from tasks.predict.familiarity import Check, check_image
from tasks.predict.findings import Finding, threshold_used
from tasks.predict.patients import BAD, Found, PatientCase, SetAside, patient_cases, say
from tasks.predict.warm import alone_on, predictor_for
from tasks.progress import stage
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import AnalysisRow, PredictionRow, QuarantineRow, StudyVersionRow, VolumeRow, now

STAGE = "predict"


@dataclass(frozen=True, slots=True)
class Predicted:
    """The keys of what was predicted, and the images that could not be, with the reason."""

    keys: tuple[str, ...]
    refused: tuple[tuple[VolumeRef, NocturneError], ...] = ()


def prediction_key(package: str, volume: str, *others: str) -> str:
    """By package and volume, and what else is of the same case: predicting again finds it done."""
    return content_key("prediction", package, volume, *others)


def analysis_key(version: str, package: str) -> str:
    """By study version and package: nothing is analysed twice for the same set of instances."""
    return content_key("analysis", version, package)


def choose_volumes(stores: Stores, package: PackageRef, candidates: Sequence[VolumeRef]) -> tuple[VolumeRef, ...]:
    """Those of `candidates` that the package's own recipe would learn from. Raises NothingToDoError without one.

    Where a case is made of several series, the others may have come before: the study is looked at as it is by now.
    """
    described = read_description(stores.packages.local(package.key))
    if described.plan.kind == "synthesis":
        raise RecipeError(
            "this model makes images: it says nothing of one",
            where=described.recipe.name,
            hint="name a model of another kind; [synthetic] in its recipe makes use of this one",
        )
    images = described.recipe.images
    rows = [row for ref in candidates if (row := stores.catalog.get(VolumeRow, ref.key)) is not None]
    fitting, lacking = fitting_cases(stores, images, rows)
    if not fitting:
        seen = ", ".join(sorted({row.modality for row in rows})) or "none"
        seen += f" ({', '.join(lacking)})" if lacking else ""
        raise NothingToDoError(
            f"no series fits the model: it wants {'/'.join(images.modalities)}, these are {seen}",
            where=described.recipe.name,
            hint="see `images` in the model's recipe, and `nocturne status` for what is in quarantine",
        )
    return fitting


def predict_volumes(stores: Stores, package: PackageRef, volumes: Sequence[VolumeRef]) -> tuple[str, ...]:
    """Apply `package` to each volume, unless that was done; returns the predictions' keys.

    Raises the first error of an image (BadInputError, IntegrityError, NotFoundError) after all the others are done.
    """
    predicted = predict_each(stores, package, volumes)
    for _, error in predicted.refused:
        raise error
    return predicted.keys


def predict_each(stores: Stores, package: PackageRef, volumes: Sequence[VolumeRef]) -> Predicted:
    """Apply `package` to each volume, unless that was done; an image that cannot be is set aside and the rest go on.

    Where patients are the cases, each study is one: it goes by its first volume, with all of the patient's series.
    """
    described = read_description(stores.packages.local(package.key))
    if described.plan.of == "patient":
        return _predict_patients(stores, package, patient_cases(stores, described.recipe.images, volumes))
    clinical = clinical_of(stores, described, volumes)
    keys = {ref: prediction_key(package.key, ref.key, *beside(ref, clinical.get(ref.key, ()))) for ref in volumes}
    waiting = [ref for ref, key in keys.items() if not stores.catalog.get(PredictionRow, key)]
    refused: list[tuple[VolumeRef, NocturneError]] = []
    if waiting:
        described, predictor = predictor_for(stores, package)
        with stage("predict", len(waiting), "volumes") as running:
            for ref in waiting:
                try:
                    _predict(stores, described, predictor, ref, keys[ref], clinical.get(ref.key, ()))
                except BAD as error:
                    refused.append((ref, error))
                    _set_aside(stores, package, ref, error)
                running.advance()
    bad = {ref for ref, _ in refused}
    return Predicted(tuple(key for ref, key in keys.items() if ref not in bad), tuple(refused))


def analyse(
    stores: Stores,
    version: StudyVersionRef,
    package: PackageRef,
    candidates: Sequence[VolumeRef],
    *,
    name: str,
    model_version: str,
    role: str = "champion",
) -> AnalysisRef:
    """What `package` says of a study version, unless that was done. Raises NotFoundError for an unknown version.

    A challenger's analysis becomes the champion's where its package has been promoted since.
    """
    ref = AnalysisRef.to(analysis_key(version.key, package.key))
    if stores.catalog.get(AnalysisRow, ref.key) is None:
        study = stores.catalog.get(StudyVersionRow, version.key)
        if study is None:
            raise NotFoundError("no such study version", where=version.key)
        begun = time.monotonic()
        keys, outcome, detail = _analysed(stores, package, candidates)
        stores.catalog.add(
            AnalysisRow(
                analysis=ref.key,
                version=version.key,
                study=study.study,
                package=package.key,
                name=name,
                model_version=model_version,
                role=role,
                predictions=list(keys),
                outcome=outcome,
                detail=detail,
                seconds=time.monotonic() - begun,
            )
        )
    if role == "champion":
        stores.catalog.change(
            AnalysisRow,
            AnalysisRow.analysis == ref.key,
            AnalysisRow.role != role,
            role=role,
            name=name,
            model_version=model_version,
        )
    return ref


def findings(stores: Stores, prediction: str) -> tuple[Finding, ...]:
    """What a stored prediction says. Raises NotFoundError."""
    return tuple(Finding.from_json(finding) for finding in _result(stores, prediction)["findings"])


def checks(stores: Stores, prediction: str) -> tuple[Check, ...]:
    """How a predicted image compares with what the model was trained on. Raises NotFoundError."""
    return tuple(Check.from_json(check) for check in _result(stores, prediction).get("checks", ()))


def export(stores: Stores, prediction: str, folder: Path) -> Path:
    """Write the prediction's mask beside others as NIfTI (uint8; 0 background, i + 1 the i-th class).

    Regions, which may overlap, lie one behind the other along a fourth axis: 0 and 1 each.
    """
    mask = stores.volumes.open_mask(prediction).read()
    if _result(stores, prediction).get("regions"):
        drawn = (mask.occupancy > 127).astype(np.uint8).transpose(3, 2, 1, 0)
    else:
        labels = np.zeros(mask.geometry.shape, np.uint8)
        for segment, plane in zip(mask.segments, mask.occupancy, strict=True):
            labels[plane > 127] = segment.number
        drawn = labels.transpose(2, 1, 0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prediction}.nii.gz"
    nib.save(nib.Nifti1Image(drawn, mask.geometry.to_nifti()), path)
    return path


def _result(stores: Stores, prediction: str) -> dict[str, Any]:
    row = stores.catalog.get(PredictionRow, prediction)
    if row is None:
        raise NotFoundError("no such prediction", where=prediction)
    return row.result


def _analysed(stores: Stores, package: PackageRef, candidates: Sequence[VolumeRef]) -> tuple[tuple[str, ...], str, str]:
    """The predictions' keys, the outcome, and what there is to say of those that are lacking."""
    try:
        chosen = choose_volumes(stores, package, candidates)
    except NothingToDoError as error:
        return (), "nothing-fits", error.what
    predicted = predict_each(stores, package, chosen)
    told = "; ".join(sorted({error.what for _, error in predicted.refused}))
    detail = f"{len(predicted.refused)} of {len(chosen)} series set aside: {told}" if told else ""
    outcome = "predicted" if predicted.keys else "set-aside" if detail else "nothing-fits"
    return predicted.keys, outcome, detail


def _predict(
    stores: Stores,
    package: ModelPackage,
    predictor: Predictor,
    ref: VolumeRef,
    key: str,
    clinical: tuple[str, ...],
) -> None:
    volume = read_image(stores, package, ref)
    facts = image_facts(ref.key, volume.array, volume.geometry)
    compared = check_image(package, volume, facts)
    with alone_on(predictor.device):
        if stores.catalog.get(PredictionRow, key):
            return  # another thread was first
        begun = time.monotonic()
        said = APPLIED[package.plan.kind](stores, predictor, volume, key, clinical)
        _keep(stores, package, Found(ref, said, compared, facts), key, time.monotonic() - begun, clinical)


def _predict_patients(stores: Stores, package: PackageRef, cases: Sequence[PatientCase]) -> Predicted:
    """As `predict_each`, a patient at a time."""
    described = read_description(stores.packages.local(package.key))
    refused: dict[VolumeRef, NocturneError] = {}

    def set_aside(ref: VolumeRef, error: NocturneError) -> None:
        refused[ref] = error
        _set_aside(stores, package, ref, error)

    keys = []
    for case in cases:
        clinical = clinical_of(stores, described, [case.anchor]).get(case.anchor.key, ())
        key = prediction_key(package.key, *(ref.key for ref in case.series), *beside(case.anchor, clinical))
        if not stores.catalog.get(PredictionRow, key):
            try:
                _predict_patient(stores, package, case, key, set_aside, clinical)
            except BAD as error:
                set_aside(case.anchor, error)
                continue
        keys.append(key)
    # Those of other studies are told in the quarantine alone.
    own = [ref for case in cases for ref in case.own if ref in refused]
    return Predicted(tuple(keys), tuple((ref, refused[ref]) for ref in own))


def _predict_patient(
    stores: Stores,
    ref: PackageRef,
    case: PatientCase,
    key: str,
    set_aside: SetAside,
    clinical: tuple[str, ...],
) -> None:
    package, predictor = predictor_for(stores, ref)
    with stage("predict", len(case.series), "series") as running, alone_on(predictor.device):
        if not stores.catalog.get(PredictionRow, key):
            begun = time.monotonic()
            found = say(stores, predictor, case, set_aside, clinical)
            _keep(stores, package, found, key, time.monotonic() - begun, clinical)
        running.advance(len(case.series))


def _keep(
    stores: Stores,
    package: ModelPackage,
    found: Found,
    key: str,
    seconds: float,
    clinical: tuple[str, ...],
) -> None:
    result: dict[str, Any] = {
        "kind": package.plan.kind,
        "findings": [finding.to_json() for finding in found.said.findings],
        "threshold": threshold_used(package),
        "thresholds": list(package.thresholds),
        "regions": package.plan.regions,
        "compared": bool(found.checks),  # with what training saw; False: the package does not tell
        "checks": [check.to_json() for check in found.checks],
        "familiar": all(check.passed for check in found.checks),
        "clinical": dict(zip((v.name for v in package.plan.variables), clinical, strict=False)),
    }
    stores.catalog.add(
        PredictionRow(
            prediction=key,
            package=package.key,
            volume=found.volume.key,
            result=result,
            seconds=seconds,
            facts=found.facts.model_dump(mode="json"),
            uncertainty=found.said.uncertainty,
        )
    )
    mine = (
        QuarantineRow.stage == STAGE,
        QuarantineRow.subject == found.volume.key,
        QuarantineRow.resolved_at.is_(None),
    )
    stores.catalog.change(QuarantineRow, *mine, resolved_at=now())


def _set_aside(stores: Stores, package: PackageRef, ref: VolumeRef, error: NocturneError) -> None:
    row = stores.catalog.get(VolumeRow, ref.key)
    stores.catalog.add(
        QuarantineRow(
            entry=content_key("quarantine", STAGE, ref.key, package.key, error.reason),
            stage=STAGE,
            subject=ref.key,
            reason=error.reason,
            what=error.what,
            hint=error.hint or "",
            patient=row.patient if row else None,
            study=row.study if row else None,
            modality=row.modality if row else "",
        )
    )
