"""What an installation is connected to: who may send, what is watched and asked, and where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

AeTitle = Annotated[str, StringConstraints(pattern=r"^[ -\[\]-~]{1,16}$", strip_whitespace=True)]
Port = Annotated[int, Field(ge=0, le=65535)]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Part):
    """Mutual TLS (PS3.15 B.12): both sides show a certificate that `authority` has signed."""

    certificate: Path = Field(description="PEM, ours")
    key: Path = Field(description="PEM, ours, mode 0600")
    authority: Path = Field(description="PEM of whoever signs the peers' certificates")


class Completion(_Part):
    """When a study is whole: after a quiet time, at once when the sender says so, and never later than a cap."""

    quiet_seconds: float = Field(60.0, ge=0)
    cap_seconds: float = Field(5400.0, gt=0)


class Caller(_Part):
    """Who may open an association."""

    ae_title: AeTitle
    addresses: tuple[str, ...] = Field((), description="addresses or networks (CIDR); empty: any")


class Listener(_Part):
    """The C-STORE SCP. Without callers and without TLS it takes whoever reaches it: keep it on loopback then."""

    host: str = "127.0.0.1"
    port: Port = 11112
    ae_title: AeTitle = "NOCTURNE"
    callers: tuple[Caller, ...] = Field((), description="empty: any calling AE title")
    tls: Tls | None = None
    associations: int = Field(32, ge=1, description="at once, over all peers")
    associations_per_peer: int = Field(8, ge=1, description="at once, per address")
    max_pdu_bytes: int = Field(128 << 10, ge=4096, le=16 << 20)
    max_instance_bytes: int = Field(4 << 30, ge=1 << 20)
    network_seconds: float = Field(10.0, gt=0, description="longest wait for the next byte of something begun")
    idle_seconds: float = Field(60.0, gt=0, description="longest silence within an association")
    free_bytes: int = Field(2 << 30, ge=0, description="with less free space associations are refused")
    completion: Completion = Completion()


class WatchedFolder(_Part):
    """A folder into which something else writes studies. Files are copied; `remove` deletes them afterwards."""

    name: Word
    path: Path
    stable_seconds: float = Field(5.0, ge=0, description="a file is whole when its size and time rest this long")
    every_seconds: float = Field(2.0, gt=0)
    remove: bool = False
    completion: Completion = Completion()


class OrthancFeed(_Part):
    """Orthanc's changes feed, by its REST interface; StableStudy tells that a study is whole."""

    name: Word
    url: str
    user: str = ""
    password: SecretStr = SecretStr("")
    every_seconds: float = Field(2.0, gt=0)
    from_start: bool = Field(False, description="also what was there before the first look")
    completion: Completion = Completion()


class Peer(_Part):
    """A PACS that can be asked: by DICOMweb where `url` is given, else by C-FIND with C-GET or C-MOVE."""

    name: Word
    url: str = Field("", description="DICOMweb root (QIDO-RS and WADO-RS)")
    user: str = ""
    password: SecretStr = SecretStr("")
    ae_title: AeTitle = "PACS"
    host: str = ""
    port: Port = 104
    retrieve: Literal["c-get", "c-move"] = "c-get"
    tls: Tls | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if not self.url and not self.host:
            raise ValueError("give url (DICOMweb) or host (DIMSE)")
        return self


class Destination(_Part):
    """Where results go: an AE (C-STORE with storage commitment), a DICOMweb server (STOW-RS), or a folder."""

    name: Word
    kind: Literal["dicom", "dicomweb", "folder"]
    ae_title: AeTitle = "PACS"
    host: str = ""
    port: Port = 104
    commitment: bool = Field(True, description="dicom: ask for storage commitment after sending")
    tls: Tls | None = None
    url: str = Field("", description="dicomweb: the root of STOW-RS")
    user: str = ""
    password: SecretStr = SecretStr("")
    path: Path | None = Field(None, description="folder")
    overview: bool = Field(False, description="also a secondary-capture picture")
    timeout_seconds: float = Field(30.0, gt=0)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        lacking = {
            "dicom": not self.host and "host",
            "dicomweb": not self.url and "url",
            "folder": not self.path and "path",
        }
        if lacking[self.kind]:
            raise ValueError(f"a {self.kind} destination needs {lacking[self.kind]}")
        return self


class Arrivals(_Part):
    """What is done with an arrived study."""

    models: tuple[str, ...] = Field((), description="by name; empty: every model with a champion")
    shadow: bool = Field(False, description="run the challenger too; it is recorded, never delivered")
    at_once: int = Field(
        1, ge=1, description="studies analysed at the same time, each by a process with its own copy of the models"
    )


class Nightly(_Part):
    """When what is learnt again."""

    recipes: tuple[Path, ...] = ()
    cron: str = "30 2 * * *"
    timezone: str = "UTC"
    approval: bool = Field(False, description="a person confirms each promotion in the Prefect UI")
    approval_hours: float = Field(12.0, gt=0)
    watch: str = Field("17 * * * *", description="cron: when what serves is looked at; empty: at a night's end alone")


class Notify(_Part):
    """Who is told when a run fails or a model's data have moved. Each that is given is used."""

    webhook: SecretStr = SecretStr("")
    slack: SecretStr = SecretStr("")
    email: tuple[str, ...] = ()
    smtp: SecretStr = Field(SecretStr(""), description="mailto:// URL of the mail server, as Apprise writes it")


class Services(_Part):
    """Where the servers of `nocturne up` listen."""

    host: str = "127.0.0.1"
    prefect_port: Port = 4200
    mlflow_port: Port = 5000
