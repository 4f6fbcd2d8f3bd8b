"""The classes of our own results, which a PACS shows us again: they are not fetched back."""

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
