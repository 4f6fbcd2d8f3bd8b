"""The faults and attacks that Nocturne must withstand. A test names the row it speaks for; docs/trust.md shows all
of them, also those for which nothing ran.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What happens, and what is to come of it. `area/name` is what tests say."""

    name: str
    fault: str
    expected: str

    @property
    def area(self) -> str:
        """The part of the house."""
        return self.name.partition("/")[0]


_ROWS = (
    (
        "receive/listener-killed",
        "SIGKILL of the listener at random moments",
        "every acknowledged instance on disk, whole",
    ),
    ("receive/sender-killed", "the sender is killed in the middle of an object", "no partial file; the rest is kept"),
    ("receive/disk-full", "the disk is full, then freed", "0xA700; what was acknowledged is kept; a resend completes"),
    ("receive/watermark", "free space under the watermark", "the association is refused, an alert is raised"),
    ("receive/resend", "an exact resend", "kept once"),
    ("receive/other-pixels", "the same UID with other pixels", "both kept and flagged"),
    ("receive/uid-mismatch", "the UID of the command is not that of the data set", "quarantine"),
    ("receive/interleaved", "four interleaved associations of one study", "one study"),
    ("receive/late-slice", "a slice after completion", "a new version and one more run"),
    ("receive/unknown-caller", "an unknown AE title or address", "refused; others are served meanwhile"),
    ("receive/plain-on-tls", "plain text on the TLS port", "refused; others are served meanwhile"),
    ("receive/certificate", "a rogue or missing certificate", "refused; others are served meanwhile"),
    ("receive/handshake", "a TLS handshake that stalls", "others are served within 1 s; cut off"),
    ("receive/huge-pdu", "a PDU that claims 4 GiB", "memory grows < 10 MB; closed within 10 s; C-ECHO is answered"),
    ("receive/partial-pdu", "a PDU that stops half-way", "closed within 10 s"),
    ("receive/idle", "60 idle sockets", "memory grows < 10 MB; C-ECHO is answered; closed"),
    ("receive/endless", "P-DATA that never ends", "aborted at the cap"),
    ("receive/slow", "a sender of 1 byte a second", "closed; C-ECHO is answered"),
    (
        "files/broken",
        "truncated pixels, empty, random bytes, no DICM, no meta, wrong lengths",
        "quarantine with reason",
    ),
    ("files/charset", "a bad character set", "right values, or quarantine with reason"),
    ("files/odd", "odd files of other vendors and toolkits", "right values, or quarantine with reason"),
    ("files/preamble", "an MZ or ELF preamble (CVE-2019-11687)", "zeroed in anything written"),
    ("files/deflate-bomb", "a deflate bomb, 2 MB → 2 GB", "refused before allocation; peak ≤ 512 MB"),
    ("files/huge", "65535 × 65535; 2³¹ frames; PixelData of 0xFFFFFFF0 bytes", "refused before allocation"),
    ("files/lying-codec", "a JPEG 2000 header that lies", "refused, or the decoder is ended at its memory limit"),
    ("files/nesting", "sequences nested 20, 200, 20,000 deep", "accepted, refused, refused; no crash"),
    ("files/paths", "`../` in UIDs or PatientID", "never a path from data"),
    ("files/uids", "no, several, or 126-character UIDs", "quarantine"),
    ("files/archives", "DICOMDIR and archives that climb out, archive bombs", "refused"),
    ("files/links", "symlinks and FIFOs in a watched folder", "never followed"),
    ("files/half-written", "half-written files in a watched folder", "wait for a stable size"),
    (
        "files/geometry",
        "NaN spacing, a gap, mixed orientation, duplicate slices, a rescale that overflows",
        "a clear geometry error",
    ),
    (
        "stores/killed",
        "SIGKILL at random moments of ingest, preprocess, train, register, deliver",
        "resumed; the same final hashes; nothing finished is repeated; a sweep leaves no garbage",
    ),
    (
        "stores/corrupt",
        "a corrupt Zarr chunk, a truncated checkpoint, a corrupt package",
        "an error that names the object; made anew where possible; the old champion serves",
    ),
    ("stores/locked", "SQLite is locked", "retried; finished; nothing twice"),
    ("stores/postgres", "PostgreSQL restarts in the middle of a flow", "retried; finished; nothing twice"),
    ("stores/prefect", "the Prefect server stops in the middle of a flow", "retried; finished; nothing twice"),
    ("stores/mlflow", "MLflow is down", "retried; finished; nothing twice"),
    ("stores/s3", "the object store answers with errors", "retried; finished; nothing twice"),
    ("stores/two", "two nightly runs at once; two listeners on one home", "one waits or refuses, by a lock"),
    (
        "compute/worker",
        "a Dask worker is killed while it writes; out of memory in a worker",
        "no visible partial; retried elsewhere",
    ),
    ("compute/cuda-memory", "CUDA is out of memory (simulated)", "the batch is halved"),
    ("compute/nan", "the loss is not finite", "the step is skipped; the run stops after ten, with the reason"),
    ("compute/too-large", "a recipe that cannot fit", "refused at planning"),
    ("deliver/pacs", "the PACS is down, refuses, times out, or answers after the time-out", "outbox; exactly one SEG"),
    (
        "soak/studies",
        "2,000 studies from several senders; some broken, sent twice, or with late slices",
        "received = delivered + quarantined + waiting; one result each; memory and open files flat",
    ),
    ("models/pickle", "a checkpoint with a malicious pickle", "refused"),
    ("models/hash", "a package with a wrong hash", "refused; the old champion serves"),
    ("models/shapes", "ONNX or JSON that lies about shapes", "refused; the old champion serves"),
    (
        "access/loopback",
        "Prefect, MLflow and Dask from another host",
        "loopback only by default; refused without the password when one is set",
    ),
    ("access/secrets", "secrets in logs, in `nocturne doctor`, in process arguments", "none"),
    (
        "privacy/markers",
        "a marker in every attribute, private, nested, preamble, file name; a whole run",
        "zero hits in everything written but the spool and the vault",
    ),
    ("privacy/vault", "the vault read without the key", "unreadable"),
    ("privacy/rotation", "the key is rotated", "a new dataset version"),
)
FAULTS = {name: Fault(name, fault, expected) for name, fault, expected in _ROWS}
