"""`nocturne pull` against a real Orthanc, by DICOMweb and by DIMSE: the same promises either way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.dataset import Dataset

from models.errors import ServiceUnavailableError, SettingsError
from models.hospital import Completion, Peer, Tls
from models.pseudonyms import Pseudonymizer
from tasks.receive.completion import Completer
from tasks.receive.pull import Pulled, pull
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool
from tasks.stores.tables import (
    AnalysisRow,
    ArrivalRow,
    DatasetRecord,
    DeliveryRow,
    InstanceRow,
    PackageRow,
    StudyVersionRow,
)
from tests.components import (
    Orthanc,
    _orthanc,  # noqa: F401
    free_port,
    orthanc,  # noqa: F401
    part10,
    phantom_study,
    running_orthanc,
    segmentation_of,
)
from tests.tasks.receive.samples import instance

OURS = "NOCTURNE"


class Ward:
    """An installation that pulls from one Orthanc."""

    def __init__(self, pacs: Orthanc, way: str, catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer) -> None:
        self.orthanc, self.catalog, self.pseudonymizer = pacs, catalog, pseudonymizer
        self.reception = Reception(catalog, spool, pseudonymizer, source="pacs")
        values: dict[str, Any] = {"name": "pacs"}
        if way == "dicomweb":
            values |= {"url": pacs.dicomweb, "user": pacs.user, "password": pacs.password}
        else:
            pacs.know(OURS, free_port())
            values |= {"host": "127.0.0.1", "port": pacs.dicom_port, "ae_title": pacs.ae_title}
        self.peer = Peer(**values)

    def pull(self, **asked: Any) -> Pulled:
        return pull(self.peer, self.reception, self.catalog, self.pseudonymizer, ae_title=OURS, **asked)

    def uids(self) -> set[str]:
        self.reception.flush()
        return {row.sop_uid for row in self.catalog.find(InstanceRow)}

    def pseudonyms(self, *datasets: Dataset) -> set[str]:
        return {self.pseudonymizer.uid(ds.SOPInstanceUID) for ds in datasets}


@pytest.fixture(params=["dicomweb", "c-get"])
def ward(
    request: pytest.FixtureRequest,
    orthanc: Orthanc,  # noqa: F811
    catalog: Catalog,
    spool: Spool,
    pseudonymizer: Pseudonymizer,
) -> Iterator[Ward]:
    opened = Ward(orthanc, request.param, catalog, spool, pseudonymizer)
    yield opened
    opened.reception.close()


def ago(**time: float) -> datetime:
    return (datetime.now() - timedelta(**time)).replace(microsecond=0)


def test_a_day_of_ct_comes_once_and_is_whole(ward: Ward) -> None:
    recent, earlier = phantom_study(1, examined=ago(hours=2)), phantom_study(2, examined=ago(hours=10))
    old, other = phantom_study(3, examined=ago(days=9)), instance(StudyDate=f"{ago(hours=1):%Y%m%d}", Modality="MR")
    ward.orthanc.upload_all(map(part10, (*recent, *earlier, *old, other)))

    assert ward.pull(since=timedelta(hours=4), modality="ct") == Pulled(studies=1, instances=4, new=4)
    assert ward.uids() == ward.pseudonyms(*recent)
    assert ward.pull(since=timedelta(days=1), modality="CT") == Pulled(studies=2, instances=4, new=4)
    assert ward.uids() == ward.pseudonyms(*recent, *earlier)
    assert ward.pull(since=timedelta(days=1), modality="CT") == Pulled(studies=2, instances=0, new=0)

    row = ward.catalog.get(ArrivalRow, ward.pseudonymizer.uid(recent[0].StudyInstanceUID))
    assert row
    assert row.told_at
    never = Completion(quiet_seconds=3600, cap_seconds=7200)
    assert Completer(ward.catalog, {}, never).look() == 2, "both studies are whole, as the archive said"


def test_only_what_is_missing_is_fetched(ward: Ward) -> None:
    study = phantom_study(1, slices=5)
    ward.orthanc.upload_all(map(part10, study[:3]))
    uid = study[0].StudyInstanceUID
    assert ward.pull(study_uids=[uid]) == Pulled(studies=1, instances=3, new=3)
    ward.orthanc.upload_all(map(part10, study[3:]))
    assert ward.pull(study_uids=[uid]) == Pulled(studies=1, instances=2, new=2)
    assert ward.uids() == ward.pseudonyms(*study)


def test_our_own_results_are_not_fetched_back(ward: Ward) -> None:
    study = phantom_study(1)
    ours = segmentation_of(study)
    ward.orthanc.upload_all(map(part10, (*study, ours)))
    key = ward.pseudonymizer.uid(study[0].StudyInstanceUID)
    objects = [{"kind": "seg", "uid": ward.pseudonymizer.uid(ours.SOPInstanceUID)}]
    ward.catalog.add(
        DatasetRecord(dataset="d", name="d", kind="segmentation", classes=[], counts={}),
        PackageRow(package="p", name="m", dataset="d", weights_sha256=""),
        StudyVersionRow(version="v", study=key, number=1, instances=[], why="told"),
        AnalysisRow(analysis="a", version="v", study=key, package="p", name="m"),
        DeliveryRow(delivery="x", analysis="a", study=key, destination="pacs", objects=objects),
    )
    assert ward.pull(study_uids=[study[0].StudyInstanceUID]) == Pulled(studies=1, instances=4, new=4)
    assert ward.uids() == ward.pseudonyms(*study)


def test_what_has_no_proper_name_is_told_and_the_rest_comes(
    ward: Ward, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    good = instance()
    ward.orthanc.upload_all([part10(good), part10(instance(good.StudyInstanceUID, SeriesInstanceUID="1.2.3.bad"))])
    caplog.clear()
    recwarn.clear()
    pulled = ward.pull(study_uids=[good.StudyInstanceUID])
    assert ward.uids() == ward.pseudonyms(good)
    assert pulled.instances == 1
    assert [(one.study, one.reason) for one in pulled.failed] == [
        (ward.pseudonymizer.uid(good.StudyInstanceUID), "bad-uid")
    ]
    row = ward.catalog.get(ArrivalRow, pulled.failed[0].study)
    assert row
    assert row.told_at is None
    for told in (str(pulled), caplog.text, *(str(warning.message) for warning in recwarn)):
        assert good.StudyInstanceUID not in told
        assert "1.2.3.bad" not in told


def test_an_interrupted_pull_goes_on(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    study = phantom_study(1, slices=6)
    ward.orthanc.upload_all(map(part10, study))
    taking, calls = ward.reception.take, iter(range(100))

    def fails(*arguments: Any, **named: Any) -> Any:
        if next(calls) >= 2:
            raise ServiceUnavailableError("the spool cannot be written", where="spool", reason="disk-full")
        return taking(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ward.reception, "take", fails)
        with pytest.raises(ServiceUnavailableError, match="spool"):
            ward.pull(study_uids=[study[0].StudyInstanceUID])
    assert len(ward.uids()) == 2
    row = ward.catalog.get(ArrivalRow, ward.pseudonymizer.uid(study[0].StudyInstanceUID))
    assert row
    assert row.told_at is None
    assert ward.pull(study_uids=[study[0].StudyInstanceUID]) == Pulled(studies=1, instances=4, new=4)
    assert ward.uids() == ward.pseudonyms(*study)


def test_a_pull_says_what_it_lacks(ward: Ward) -> None:
    with pytest.raises(SettingsError, match="--since"):
        ward.pull(modality="CT")
    with pytest.raises(SettingsError, match="no UID"):
        ward.pull(study_uids=["Doe^John"])


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pulled(1, 1, 1).new = 2  # type: ignore[misc]


# -- TLS ----------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> Any:
    """A key and its certificate as PEM files, signed by `issuer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / f"{name}.key").write_bytes(pem)
    return built, key


def test_mutual_tls_by_dimse(
    tmp_path: Path, catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer, reception: Reception
) -> None:
    authority = certificate(tmp_path, "authority", None)
    for name in ("pacs", "ours"):
        certificate(tmp_path, name, authority)
    certificate(tmp_path, "strangers", None)
    tls = {
        name: Tls(certificate=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key", authority=tmp_path / f"{by}.pem")
        for name, by in (("ours", "authority"), ("strangers", "strangers"))
    }
    options = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(tmp_path / "pacs.pem"),
        "DicomTlsPrivateKey": str(tmp_path / "pacs.key"),
        "DicomTlsTrustedCertificates": str(tmp_path / "authority.pem"),
    }
    (tmp_path / "orthanc").mkdir()
    with running_orthanc(tmp_path / "orthanc", options=options) as pacs:
        pacs.know(OURS, free_port())
        study = phantom_study(1)
        pacs.upload_all(map(part10, study))
        peer = Peer(name="pacs", host="127.0.0.1", port=pacs.dicom_port, ae_title=pacs.ae_title, tls=tls["ours"])
        asked: dict[str, Any] = {"ae_title": OURS, "study_uids": [study[0].StudyInstanceUID]}
        assert pull(peer, reception, catalog, pseudonymizer, **asked) == Pulled(studies=1, instances=4, new=4)
        for wrong in (tls["strangers"], None):
            with pytest.raises(ServiceUnavailableError, match="pacs: does not answer"):
                pull(peer.model_copy(update={"tls": wrong}), reception, catalog, pseudonymizer, **asked)
        lost = peer.model_copy(update={"tls": tls["ours"].model_copy(update={"key": tmp_path / "none.key"})})
        with pytest.raises(SettingsError, match="certificates"):
            pull(lost, reception, catalog, pseudonymizer, **asked)
