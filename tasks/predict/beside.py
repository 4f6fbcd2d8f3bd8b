"""What belongs to an image beside it: the other series of its study, and what is known of its patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from models.assembly import Assembled, assemble, current
from models.package import ModelPackage
from models.recipe import Images
from models.refs import CaseRef, VolumeRef
from models.volume import Volume
from tasks.imaging.compose import read_case
from tasks.stores.clinical import clinical_values
from tasks.stores.house import Stores
from tasks.stores.tables import VolumeRow


def fitting_cases(
    stores: Stores, images: Images, rows: Sequence[VolumeRow]
) -> tuple[tuple[VolumeRef, ...], tuple[str, ...]]:
    """The cases that these volumes are, or are part of; and what other cases lack.

    The other channels of a case are looked for in its study, as the catalog has it by now.
    """
    keys = {row.volume for row in rows}
    known = rows
    if images.channels:
        studies = sorted({row.study for row in rows})
        found = [row for study in studies for row in stores.catalog.find(VolumeRow, VolumeRow.study == study)]
        # Of a series that was received again, the reception that is asked about.
        known = sorted(current(found, keys), key=lambda row: (row.created_at, row.volume))
    cases, left = assemble(images, known)
    asked = [case for case in cases if keys & {case.reference.volume, *case.channels}]
    why = Counter(one.reason for one in left if one.volume in keys and one.reason != "other-modality")
    return tuple(map(_ref, asked)), tuple(sorted(why)) if images.channels else ()


def _ref(case: Assembled[VolumeRow]) -> VolumeRef:
    key = case.reference.volume
    return CaseRef(key=key, channels=case.channels) if case.partners else VolumeRef.to(key)


def read_image(stores: Stores, package: ModelPackage, ref: VolumeRef) -> Volume:
    """The volume with all its channels. Raises as `tasks.imaging.compose.read_case`."""
    channels = ref.channels if isinstance(ref, CaseRef) else ()
    return read_case(stores.volumes, ref.key, channels, package.recipe.images.registration, stores.transforms)


def clinical_of(stores: Stores, package: ModelPackage, refs: Sequence[VolumeRef]) -> dict[str, tuple[str, ...]]:
    """By volume, the values of the plan's variables; all of them missing where their table was not imported here."""
    if not package.plan.variables:
        return {}
    rows = [row for ref in refs if (row := stores.catalog.get(VolumeRow, ref.key)) is not None]
    with stores.catalog.transaction() as session:
        bound = [session.merge(row, load=True) for row in rows]
        return clinical_values(session, package.recipe.clinical, bound, stores.volumes, required=False)


def beside(ref: VolumeRef, clinical: Sequence[str]) -> tuple[str, ...]:
    """What a prediction's key holds of a case besides its volume."""
    channels = ("channels", *ref.channels) if isinstance(ref, CaseRef) else ()
    return (*channels, *(("clinical", *clinical) if clinical else ()))
