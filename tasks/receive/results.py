"""Our own results, which a PACS shows us again: they are not fetched back."""

from __future__ import annotations

from typing import Final

from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from sqlalchemy import select

from tasks.stores.catalog import Catalog
from tasks.stores.tables import DeliveryRow

RESULT_CLASSES: Final = frozenset(
    {
        BasicTextSRStorage,
        Comprehensive3DSRStorage,
        ComprehensiveSRStorage,
        EnhancedSRStorage,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
        SecondaryCaptureImageStorage,
        SegmentationStorage,
    }
)
"""Storage classes that a result of ours can have: others need not be looked up."""


def delivered(catalog: Catalog, study: str) -> frozenset[str]:
    """Pseudonymous SOP Instance UIDs of all that we have sent, or are to send, for a pseudonymous study."""
    with catalog.reading() as session:
        objects = session.scalars(select(DeliveryRow.objects).where(DeliveryRow.study == study)).all()
    return frozenset(str(item["uid"]) for row in objects for item in row)
