"""Pictures of an evaluation: SVG that follows the reader's light or dark scheme on a panel of its own.

Names are stable, and a report places pictures by how they begin; what follows a dash is a class's name or a number:

overlays-best, overlays-median, overlays-worst      truth and prediction as contours: segmentation, and lesions
overlays-uncertain                                  the same of the case that the model is least sure of
uncertainty                                         that case voxel by voxel: entropy, and disagreement of the voices
saliency-right-1, saliency-wrong-1, saliency-unsure-1, …   what a classifier looked at
bland-altman-CLASS                                  predicted beside true volumes
distributions                                       every metric's values over the cases
roc, precision-recall, calibration, confusion, froc
learning-curve

matplotlib is imported when the first picture is drawn.
"""

from tasks.evaluate.pictures.agreement import bland_altman
from tasks.evaluate.pictures.contours import lesion_overlays, overlays
from tasks.evaluate.pictures.crops import Crop, crop_of, flat_crop, lesions_crop
from tasks.evaluate.pictures.curves import calibration, froc, precision_recall, roc
from tasks.evaluate.pictures.heat import Explanation, saliency, uncertainty
from tasks.evaluate.pictures.matrix import confusion
from tasks.evaluate.pictures.spread import distributions, probabilities
from tasks.evaluate.pictures.training import learning_curve

__all__ = [
    "Crop",
    "Explanation",
    "bland_altman",
    "calibration",
    "confusion",
    "crop_of",
    "distributions",
    "flat_crop",
    "froc",
    "learning_curve",
    "lesion_overlays",
    "lesions_crop",
    "overlays",
    "precision_recall",
    "probabilities",
    "roc",
    "saliency",
    "uncertainty",
]
