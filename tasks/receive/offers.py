"""What we offer to take in a C-GET: an association has room for 128 presentation contexts (PS3.8 9.3.2).

Each encoding of a storage class is offered by itself, so that the archive can send an instance as it has it: of several
in one context it would choose one for all. More classes than fit are fetched over several associations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydicom import uid
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext

from tasks.receive.asking import Order

MOST_CONTEXTS: Final = 128
PLAIN: Final[list[str | UID]] = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]
COMPRESSED: Final[list[str | UID]] = [
    *(uid.JPEGLosslessSV1, uid.JPEGLossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless),
    *(uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000),
    *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K, uid.DeflatedExplicitVRLittleEndian),
]
EVERY_CLASS: Final = tuple(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
_SINGLY: Final = [[encoding] for encoding in COMPRESSED]
_PLAIN_SINGLY: Final = [[encoding] for encoding in PLAIN]  # not all archives turn one into another
_ANY: Final = (uid.SecondaryCaptureImageStorage,)
_LIKELY: Final[Mapping[str, tuple[str, ...]]] = {
    "CT": (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage),
    "MR": (uid.MRImageStorage, uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage),
    "PT": (uid.PositronEmissionTomographyImageStorage, uid.EnhancedPETImageStorage),
    "NM": (uid.NuclearMedicineImageStorage,),
    "US": (uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage),
    "CR": (uid.ComputedRadiographyImageStorage, uid.DigitalXRayImageStorageForPresentation),
    "DX": (uid.DigitalXRayImageStorageForPresentation, uid.DigitalXRayImageStorageForProcessing),
    "MG": (
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.BreastTomosynthesisImageStorage,
    ),
    "XA": (uid.XRayAngiographicImageStorage, uid.EnhancedXAImageStorage, uid.XRay3DAngiographicImageStorage),
    "RF": (uid.XRayRadiofluoroscopicImageStorage, uid.EnhancedXRFImageStorage),
    "SEG": (uid.SegmentationStorage,),
    "SR": (
        uid.ComprehensiveSRStorage,
        uid.Comprehensive3DSRStorage,
        uid.EnhancedSRStorage,
        uid.BasicTextSRStorage,
        uid.XRayRadiationDoseSRStorage,
    ),
    "RTSTRUCT": (uid.RTStructureSetStorage,),
    "RTDOSE": (uid.RTDoseStorage,),
    "RTPLAN": (uid.RTPlanStorage,),
}
"""By a series' modality: for archives that do not tell the classes of its instances."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The contexts of one association, and the orders for which they may be enough."""

    contexts: tuple[PresentationContext, ...]
    orders: tuple[Order, ...]


def likely_offers(orders: Sequence[Order]) -> Iterator[Offer]:
    """By the classes that the archive tells, or else by those that the series' modalities make likely."""
    return _offers(orders, _classes(orders), [*_PLAIN_SINGLY, *_SINGLY])


def compressed_offers(orders: Sequence[Order]) -> Iterator[Offer]:
    """The same without the plain encodings: some archives send all by one context, and cannot decode for it."""
    return _offers(orders, _classes(orders), _SINGLY)


def every_offer(orders: Sequence[Order]) -> Iterator[Offer]:
    """Every storage class there is, for what has not come by a likely one."""
    return _offers(orders, EVERY_CLASS, [*_PLAIN_SINGLY[:2], COMPRESSED])


STAGES: Final = (likely_offers, compressed_offers, every_offer)
"""Each for what has not come by the one before."""


def _offers(orders: Sequence[Order], classes: Sequence[str], encodings: Sequence[list[str | UID]]) -> Iterator[Offer]:
    at_once = (MOST_CONTEXTS - 1) // len(encodings)
    for start in range(0, len(classes), at_once):
        share = classes[start : start + at_once]
        if some := tuple(part for order in orders if (part := _part(order, share)) is not None):
            yield Offer(tuple(build_context(UID(each), list(e)) for each in share for e in encodings), some)


def _classes(orders: Sequence[Order]) -> list[str]:
    return sorted({each for order in orders for each in _classes_of(order)})


def _classes_of(order: Order) -> set[str]:
    told = {one.sop_class for one in order.instances} or {""}
    guessed = {*_LIKELY.get(order.modality, ()), *_ANY}
    return (told - {""}) | (guessed if "" in told else set())


def _part(order: Order, classes: Sequence[str]) -> Order | None:
    """What of an order these classes may bring."""
    if not order.instances:
        return order
    instances = tuple(one for one in order.instances if not one.sop_class or one.sop_class in classes)
    if not instances:
        return None
    return replace(order, instances=instances, whole=order.whole and len(instances) == len(order.instances))
