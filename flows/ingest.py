"""What arrives becomes volumes and masks; what fails a check is set aside with its reason."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict

from flows.artifacts import show_pairs
from flows.environment import open_stores
from flows.heartbeats import flow
from flows.parts import THREADS, in_parts
from models.recipe import Images
from models.refs import BatchRef, CorrectionRef, LabelRef, VolumeRef
from models.settings import Settings
from tasks.correct import door as correcting
from tasks.ingest import door
from tasks.progress import stage


class Ingested(BaseModel):
    """What one ingest did."""

    model_config = ConfigDict(frozen=True)
    series: int
    volumes: tuple[VolumeRef, ...]
    labels: tuple[LabelRef, ...]
    corrections: tuple[CorrectionRef, ...] = ()
    already_there: int
    quarantined: dict[str, int]
    not_dicom: int
    not_images: int

    def rows(self) -> list[tuple[str, int]]:
        """For a table."""
        return [
            ("series and labels looked at", self.series),
            ("volumes", len(self.volumes)),
            ("labels", len(self.labels)),
            *([("predictions that labels corrected", len(self.corrections))] if self.corrections else []),
            ("of these known before", self.already_there),
            ("files that are not DICOM", self.not_dicom),
            ("instances that are not images", self.not_images),
            *((f"quarantined: {reason}", n) for reason, n in sorted(self.quarantined.items())),
        ]


@flow(name="ingest", flow_run_name="ingest {batch}", task_runner=THREADS)
def ingest(batch: BatchRef, images: Images | tuple[Images, ...] | None = None) -> Ingested:
    """Ingest a batch of places; `images` are recipes', whose rules on colour and burned-in text are followed."""
    stores, rules = open_stores(), _rules((images,) if isinstance(images, Images) else images or ())
    found = door.scan(stores, batch, rules)
    with stage("ingest", len(found.series), "series"):
        images_in = in_parts(door.ingest_series, found.series, stores=stores, rules=rules)
    with stage("labels", len(found.labels), "labels"):
        labels_in = in_parts(door.ingest_labels, found.labels, stores=stores)
    labels = tuple(label for outcome in labels_in for label in outcome.labels)

    done = Ingested(
        series=len(found.series) + len(found.labels),
        volumes=tuple(volume for outcome in images_in for volume in outcome.volumes),
        labels=labels,
        corrections=correcting.correct(stores, labels) if labels else (),
        already_there=sum(o.existed for o in images_in) + sum(o.existed for o in labels_in),
        quarantined=Counter(reason for o in images_in for reason in o.quarantined)
        + Counter(reason for o in labels_in for reason in o.quarantined)
        + Counter({"found while scanning": found.quarantined}),
        not_dicom=found.not_dicom,
        not_images=found.not_images,
    )
    show_pairs("ingest", "What was ingested", done.rows())
    return done


def _rules(images: tuple[Images, ...]) -> door.IngestRules:
    """What is accepted: by the installation's rule, and by those of the recipes that the images are for."""
    asked = [m for meant in images for part in (meant, *meant.channels) for m in part.allow_without_burned_in]
    return door.IngestRules(
        allow_without_burned_in=frozenset((*Settings.load().allow_without_burned_in, *asked)),
        colour=any(meant.colour for meant in images),
    )
