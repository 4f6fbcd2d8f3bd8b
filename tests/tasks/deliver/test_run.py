"""On their way: exactly one copy arrives, whatever happens between us and the other side."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from models.errors import NotFoundError
from models.hospital import Destination
from models.refs import AnalysisRef, DeliveryRef
from tasks.deliver.commitment import Commitments, failed_in
from tasks.deliver.objects import make
from tasks.deliver.run import MOST_ASKED, Delivered, Dispatcher, due_again, enqueue, resend
from tasks.stores.house import Stores
from tasks.stores.tables import CommitmentRow, DeliveryRow, OutboxRow, now
from tests.components import Orthanc, free_port, until
from tests.tasks.deliver.installation import Installation, stores_at, write_study
from tests.tasks.deliver.pacs import (
    SUCCESS,
    Pacs,
    answering,
    certificates,
    losing_answers,
    no_dimse_answers,
    running,
    server_context,
)

OURS = "NOCTURNE"
PATIENCE = 180.0
"""Seconds for whatever is certain to happen."""


@dataclass(frozen=True)
class Post:
    """An analysed study, and the ways to send its results."""

    stores: Stores
    analysis: AnalysisRef
    original: Dataset
    folder: Path

    def send(self, destination: Destination, **options: Any) -> Delivered:
        """Enqueue, and attempt once."""
        (ref,) = enqueue(self.stores, self.analysis, [destination])
        return self.dispatcher(destination, **options).attempt(ref)

    def dispatcher(self, *destinations: Destination, **options: Any) -> Dispatcher:
        return Dispatcher(self.stores, destinations, ae_title=OURS, **{"wait_seconds": PATIENCE, **options})

    def make_due(self) -> None:
        """As if the time until the next attempt were over."""
        self.stores.catalog.change(OutboxRow, OutboxRow.due_at > now(), due_at=now())

    def reopen(self, delivery: str) -> None:
        """As if nobody had written down that it arrived."""
        with self.stores.catalog.transaction() as session:
            due_again(session, [delivery], "")

    def row(self) -> DeliveryRow:
        (row,) = self.stores.catalog.find(DeliveryRow)
        return row

    def message(self) -> OutboxRow:
        (row,) = self.stores.catalog.find(OutboxRow)
        return row

    @property
    def kinds(self) -> list[str]:
        return [part["kind"] for part in self.row().objects]


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnalysisRef, Dataset]:
    """An installation's folder with one analysed study; each test works on a copy."""
    folder = tmp_path_factory.mktemp("analysed")
    original = write_study(folder / "in")[0]
    installation = Installation(stores_at(folder / "home"))
    analysis = installation.analysed(folder / "in")
    installation.stores.catalog.close()
    return folder / "home", analysis, original


@pytest.fixture
def post(analysed: tuple[Path, AnalysisRef, Dataset], tmp_path: Path) -> Iterator[Post]:
    home, analysis, original = analysed
    subprocess.run(["cp", "-r", str(home), str(tmp_path / "home")], check=True)
    stores = stores_at(tmp_path / "home")
    yield Post(stores, analysis, original, tmp_path)
    stores.catalog.close()


def by_dimse(port: int, **options: Any) -> Destination:
    values = {"name": "archive", "kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": port}
    return Destination.model_validate({**values, "commitment": False, "timeout_seconds": PATIENCE, **options})


def by_stow(url: str, **options: Any) -> Destination:
    return Destination.model_validate(
        {"name": "web", "kind": "dicomweb", "url": url, "timeout_seconds": PATIENCE, **options}
    )


def to_orthanc(orthanc: Orthanc, kind: str, **options: Any) -> Destination:
    if kind == "dicom":
        return by_dimse(orthanc.dicom_port, ae_title=orthanc.ae_title, **options)
    return by_stow(orthanc.dicomweb, user=orthanc.user, password=orthanc.password, **options)


def assert_one_copy(post: Post, orthanc: Orthanc) -> None:
    """Orthanc holds just our objects, once, in the original study of the original patient."""
    assert orthanc.get("/statistics")["CountInstances"] == len(post.row().objects) == 2
    held = [orthanc.get(f"/instances/{one}/simplified-tags") for one in orthanc.get("/instances")]
    assert sorted(tags["Modality"] for tags in held) == ["SEG", "SR"]
    for tags in held:
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
            assert tags[name] == str(post.original[name].value)
    pseudonyms = {post.stores.pseudonymizer.uid(tags["SOPInstanceUID"]) for tags in held}
    assert pseudonyms == {part["uid"] for part in post.row().objects}


# -- a real PACS --------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("kind", ["dicom", "dicomweb"])


@pytest.mark.fault("deliver/pacs")
@BOTH
def test_sent_twice_is_there_once(post: Post, orthanc: Orthanc, kind: str) -> None:
    orthanc.know(OURS, free_port())
    destination = to_orthanc(orthanc, kind)
    told = post.send(destination)
    assert (told.state, told.objects) == ("sent", 2)
    assert_one_copy(post, orthanc)
    assert post.send(destination) == told, "it is done: nothing is sent again"
    assert post.message().attempts == 1
    post.reopen(told.delivery)
    assert post.send(destination).state == "sent"
    assert_one_copy(post, orthanc)


@pytest.mark.fault("deliver/pacs")
@BOTH
def test_a_pacs_that_is_down_gets_it_later(post: Post, orthanc: Orthanc, kind: str) -> None:
    destination = to_orthanc(orthanc, kind)
    orthanc.stop()
    try:
        told = post.send(destination)
        assert told.state == "waiting"
        assert told.detail.startswith(f"{destination.name}: ")
        assert post.send(destination) == told, "not due yet"
        assert post.message().error == told.detail
    finally:
        orthanc.start()
    orthanc.know(OURS, free_port())
    post.make_due()
    assert post.dispatcher(destination).run_due() == 1
    assert post.row().state == "sent"
    assert_one_copy(post, orthanc)
    assert post.dispatcher(destination).run_due() == 0


@pytest.mark.fault("deliver/pacs")
def test_a_lost_answer_to_c_store(post: Post, orthanc: Orthanc) -> None:
    orthanc.know(OURS, free_port())
    direct = to_orthanc(orthanc, "dicom")
    with losing_answers(orthanc.dicom_port, no_dimse_answers) as port:
        told = post.send(direct.model_copy(update={"port": port}))
    assert told.state == "waiting"
    assert "closed the association" in told.detail
    until(lambda: orthanc.get("/statistics")["CountInstances"] == 1, "the first object has arrived all the same")
    post.make_due()
    assert post.send(direct).state == "sent"
    assert_one_copy(post, orthanc)


@pytest.mark.fault("deliver/pacs")
def test_a_lost_answer_to_stow(post: Post, orthanc: Orthanc) -> None:
    direct = to_orthanc(orthanc, "dicomweb")
    with losing_answers(orthanc.http_port, lambda data: False) as port:
        url = orthanc.dicomweb.replace(str(orthanc.http_port), str(port))
        told = post.send(direct.model_copy(update={"url": url}))
    assert told.state == "waiting"
    until(lambda: orthanc.get("/statistics")["CountInstances"] == 1, "the first object has arrived all the same")
    post.make_due()
    assert post.send(direct).state == "sent"
    assert_one_copy(post, orthanc)


@pytest.mark.fault("deliver/pacs", "stores/killed")
def test_a_process_that_is_killed_between_sending_and_writing_it_down(post: Post, orthanc: Orthanc) -> None:
    orthanc.know(OURS, free_port())
    destination = to_orthanc(orthanc, "dicom")
    (ref,) = enqueue(post.stores, post.analysis, [destination])
    plain = destination.model_dump_json(exclude={"password"})
    command = [sys.executable, "-m", "tests.tasks.deliver.killed", str(post.folder / "home"), plain, ref.key]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert orthanc.get("/statistics")["CountInstances"] == 2
    assert post.row().state == "waiting"
    assert post.send(destination).state == "waiting", "the lease of the one that was killed"
    post.make_due()
    assert post.dispatcher(destination).run_due() == 1
    assert post.row().state == "sent"
    assert_one_copy(post, orthanc)


def test_orthanc_commits_itself_on_an_association_of_its_own(post: Post, orthanc: Orthanc) -> None:
    commitments = Commitments(post.stores.catalog, post.stores.pseudonymizer)

    def reported(event: evt.Event) -> tuple[int, None]:
        report = event.event_information
        assert commitments.answered(report.TransactionUID, failed_in(report))
        return SUCCESS, None

    listener = AE(ae_title=OURS)
    listener.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = listener.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reported)])
    try:
        orthanc.know(OURS, server.server_address[1])
        told = post.send(to_orthanc(orthanc, "dicom", commitment=True))
    finally:
        server.shutdown()
    assert (told.state, told.detail) == ("committed", "")
    assert post.row().committed_at is not None
    assert_one_copy(post, orthanc)


# -- how an AE may answer -----------------------------------------------------------------------------------------


def test_our_objects_are_known_before_the_first_one_leaves(post: Post) -> None:
    known: list[bool] = []

    def look(ds: Dataset) -> int:
        pseudonym = post.stores.pseudonymizer.uid(ds.SOPInstanceUID)
        known.append(pseudonym in {part["uid"] for part in post.row().objects})
        return SUCCESS

    with running(Pacs(answer=look)) as pacs:
        assert post.send(by_dimse(pacs.port)).state == "sent"
    assert known == [True, True]


@pytest.mark.fault("deliver/pacs")
def test_two_senders_at_once_send_once(post: Post) -> None:
    with running(Pacs()) as pacs:
        destination = by_dimse(pacs.port)
        (ref,) = enqueue(post.stores, post.analysis, [destination])
        told: list[Delivered] = []
        senders = [
            threading.Thread(target=lambda: told.append(post.dispatcher(destination).attempt(ref))) for _ in range(3)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert len(pacs.stored) == 2
        assert len(told) == 3
    assert post.row().state == "sent"


def test_a_flow_waits_for_the_relay_that_was_quicker(post: Post) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(ds: Dataset) -> int:
        begun.set()
        assert go_on.wait(PATIENCE)
        return SUCCESS

    with running(Pacs(answer=slow)) as pacs:
        destination = by_dimse(pacs.port)
        (ref,) = enqueue(post.stores, post.analysis, [destination])
        relay = threading.Thread(target=post.dispatcher(destination).run_due)
        relay.start()
        assert begun.wait(PATIENCE)
        assert post.dispatcher(destination).attempt(ref).state == "waiting", "the relay has the lease"
        threading.Timer(0.5, go_on.set).start()
        assert post.dispatcher(destination).see_through(ref, seconds=PATIENCE).state == "sent"
        relay.join()
        assert len(pacs.stored) == 2


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0xA700, "waiting"),
        (0x0110, "waiting"),
        (0xA900, "refused"),
        (0xC001, "refused"),
        (0x0122, "refused"),
        (0xB000, "sent"),
        (0x0111, "sent"),
    ],
)
def test_what_a_status_means(post: Post, status: int, state: str) -> None:
    with running(Pacs(answer=lambda ds: status)) as pacs:
        told = post.send(by_dimse(pacs.port))
    assert told.state == state
    assert (post.message().done_at is None) == (state == "waiting")
    if state != "sent":
        assert f"0x{status:04X}" in told.detail
        assert told.detail.startswith("archive: ")
        assert post.message().error == told.detail


def test_an_ae_that_never_answers_is_given_up_for_now(post: Post) -> None:
    over, names = threading.Event(), (f"archive{n}" for n in itertools.count())

    def silent(ds: Dataset) -> int:
        over.wait()
        return SUCCESS

    def given_up(port: int) -> bool:
        """The association itself may be too slow for a second: then another delivery is tried."""
        told = post.send(by_dimse(port, name=next(names), timeout_seconds=1.0))
        assert told.state == "waiting"
        return "did not answer in time" in told.detail

    with running(Pacs(answer=silent)) as pacs:
        try:
            until(lambda: given_up(pacs.port), "an answer that is not waited for any longer")
        finally:
            over.set()


def test_what_has_arrived_is_not_sent_again(post: Post) -> None:
    """Where the other side can be asked."""
    with running(Pacs(finds=True, answer=lambda ds: SUCCESS if ds.Modality == "SEG" else 0xA700)) as pacs:
        destination = by_dimse(pacs.port)
        assert post.send(destination).state == "waiting"
        pacs.answer = lambda ds: SUCCESS
        post.make_due()
        assert post.send(destination).state == "sent"
        assert [ds.Modality for ds in pacs.stored] == ["SEG", "SR"]


def test_mutual_tls(post: Post) -> None:
    """Each side shows a certificate; without ours the other side does not talk, and that may be mended."""
    tls = certificates(post.folder)
    with running(Pacs(), tls=server_context(tls)) as pacs:
        assert post.send(by_dimse(pacs.port, name="plain", timeout_seconds=2.0)).state == "waiting"
        absent = tls.model_copy(update={"key": post.folder / "absent.pem"})
        told = post.send(by_dimse(pacs.port, name="absent", tls=absent))
        assert told.state == "waiting"
        assert told.detail.startswith("absent: the certificates for it cannot be used (FileNotFoundError)")
        assert post.send(by_dimse(pacs.port, tls=tls)).state == "sent"
        assert len(pacs.stored) == 2


def test_a_class_that_is_not_taken_does_not_hold_up_the_rest(post: Post) -> None:
    with running(Pacs(classes=(SegmentationStorage,))) as pacs:
        told = post.send(by_dimse(pacs.port))
        assert [ds.SOPClassUID for ds in pacs.stored] == [SegmentationStorage]
    assert told.state == "refused"
    assert told.detail == "archive: sr refused (0x0122, it does not take objects of this class); arrived: seg"
    assert post.dispatcher(by_dimse(pacs.port)).run_due() == 0, "it is not tried for ever"


def test_what_was_refused_is_sent_once_more_when_somebody_says_so(post: Post) -> None:
    """Of a delivery that arrived in part, the rest alone."""
    with running(Pacs(finds=True, answer=lambda ds: SUCCESS if ds.Modality == "SEG" else 0xA900)) as pacs:
        destination = by_dimse(pacs.port)
        assert post.send(destination).state == "refused"
        pacs.answer = lambda ds: SUCCESS
        assert resend(post.stores.catalog, "another") == 0
        assert post.dispatcher(destination).run_due() == 0
        assert resend(post.stores.catalog) == 1
        assert post.dispatcher(destination).run_due() == 1
        assert [ds.Modality for ds in pacs.stored] == ["SEG", "SR"]
    assert post.row().state == "sent"
    assert resend(post.stores.catalog) == 0


def test_the_other_side_commits_on_the_same_association(post: Post) -> None:
    with running(Pacs(commits=True)) as pacs:
        told = post.send(by_dimse(pacs.port, commitment=True))
        (asked,) = pacs.asked
    assert (told.state, told.detail) == ("committed", "")
    stored = {(ds.SOPClassUID, ds.SOPInstanceUID) for ds in pacs.stored}
    assert {(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in asked.ReferencedSOPSequence} == stored


def test_without_storage_commitment_it_is_sent(post: Post) -> None:
    with running(Pacs(commits=False)) as pacs:
        told = post.send(by_dimse(pacs.port, commitment=True))
    assert (told.state, told.detail) == ("sent", "it does not offer storage commitment")
    assert post.dispatcher(by_dimse(pacs.port)).run_due() == 0


def test_what_is_not_kept_is_sent_again(post: Post) -> None:
    with running(Pacs(commits=True)) as pacs:
        destination = by_dimse(pacs.port, commitment=True)
        lost = [r.uid for r in make(post.stores, Installation(post.stores).row(post.analysis), pictures=False)][:1]
        pacs.failing.update(lost)
        told = post.send(destination)
        assert (told.state, told.detail) == ("sent", "it does not keep what it was sent")
        (row,) = post.stores.catalog.find(CommitmentRow)
        assert row.failed == [post.stores.pseudonymizer.uid(uid) for uid in lost]
        pacs.failing.clear()
        post.dispatcher(destination).run_due()
        assert len(pacs.stored) == 4
    assert post.row().state == "committed"


def test_what_is_never_kept_is_given_up(post: Post) -> None:
    with running(Pacs(commits=True)) as pacs:
        destination = by_dimse(pacs.port, commitment=True)
        pacs.failing.update(
            r.uid for r in make(post.stores, Installation(post.stores).row(post.analysis), pictures=False)
        )
        post.send(destination)
        for _ in range(MOST_ASKED):
            post.dispatcher(destination).run_due()
        assert len(pacs.stored) == 2 * MOST_ASKED
        assert post.row().state == "refused"
        assert post.message().done_at is not None
        pacs.failing.clear()
        assert resend(post.stores.catalog) == 1
        post.dispatcher(destination).run_due()
    assert post.row().state == "committed"


def test_an_answer_that_never_comes_is_asked_for_again(post: Post) -> None:
    with running(Pacs(commits=True, answers=False)) as pacs:
        destination = by_dimse(pacs.port, commitment=True)
        told = post.send(destination, wait_seconds=0)
        assert (told.state, told.detail) == ("sent", "storage commitment asked for")
        assert post.dispatcher(destination).run_due() == 0, "not so soon"
        post.stores.catalog.change(
            CommitmentRow, CommitmentRow.answered_at.is_(None), asked_at=now() - timedelta(hours=1)
        )
        pacs.answers = True
        assert post.dispatcher(destination).run_due() == 1
        assert len({request.TransactionUID for request in pacs.asked}) == len(pacs.asked) == 2
        assert len(pacs.stored) == 2, "what is there is not sent again"
    assert post.row().state == "committed"


def test_a_late_answer_is_seen(post: Post) -> None:
    """Written down by whoever it came to; the relay looks."""
    with running(Pacs(commits=True, answers=False)) as pacs:
        destination = by_dimse(pacs.port, commitment=True)
        post.send(destination, wait_seconds=0)
        (asked,) = pacs.asked
    Commitments(post.stores.catalog, post.stores.pseudonymizer).answered(asked.TransactionUID, [])
    assert post.dispatcher(destination).run_due() == 1
    assert post.row().state == "committed"


def test_an_ae_that_does_not_want_us(post: Post) -> None:
    ae = AE(ae_title="OTHER")
    ae.add_supported_context(SegmentationStorage)
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        told = post.send(by_dimse(server.server_address[1]))
    finally:
        server.shutdown()
    assert told.state == "waiting"
    assert told.detail == "archive: refuses our association (Called AE title not recognised)"


# -- how a DICOMweb server may answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (400, "refused"),
        (401, "waiting"),
        (429, "waiting"),
        (503, "waiting"),
        (409, "refused"),
    ],
)
def test_what_an_http_status_means(post: Post, status: int, state: str) -> None:
    with answering(status) as (url, _):
        told = post.send(by_stow(url))
    assert (told.state, told.objects) == (state, 2)
    assert f"HTTP status {status}" in told.detail
    assert told.detail.startswith("web: ")
    assert (post.message().done_at is None) == (state == "waiting")


def test_a_conflict_with_itself_counts_as_there(post: Post) -> None:
    uids = [r.uid for r in make(post.stores, Installation(post.stores).row(post.analysis), pictures=False)]
    listed = ",".join(f'{{"00080018": {{"vr": "UI", "Value": ["{uid}"]}}}}' for uid in uids)
    with answering(409, found=f"[{listed}]".encode()) as (url, asked):
        assert post.send(by_stow(url)).state == "sent"
    assert asked == ["stow", "qido"] * 2


def test_after_a_failure_it_is_looked_for_first(post: Post) -> None:
    uids = [r.uid for r in make(post.stores, Installation(post.stores).row(post.analysis), pictures=False)]
    listed = ",".join(f'{{"00080018": {{"vr": "UI", "Value": ["{uid}"]}}}}' for uid in uids)
    with answering(503, found=f"[{listed}]".encode()) as (url, asked):
        assert post.send(by_stow(url)).state == "waiting"
        post.make_due()
        assert post.send(by_stow(url)).state == "sent"
    assert asked == ["stow", "qido", "qido"]


@pytest.mark.parametrize(("reason", "state"), [(0xA700, "waiting"), (0xC000, "refused"), (0x0111, "sent")])
def test_what_a_failure_reason_means(post: Post, reason: int, state: str) -> None:
    body = f'{{"00081198": {{"vr": "SQ", "Value": [{{"00081197": {{"vr": "US", "Value": [{reason}]}}}}]}}}}'
    for status in (202, 409):
        with answering(status, body=body.encode()) as (url, _):
            told = post.send(by_stow(url, name=f"web{status}"))
        assert told.state == state
        assert state == "sent" or f"0x{reason:04X}" in told.detail


# -- a folder -----------------------------------------------------------------------------------------------------


def test_a_folder_gets_whole_files_under_names_of_ours(post: Post) -> None:
    folder = post.folder / "out"
    destination = Destination(name="share", kind="folder", path=folder, overview=True)
    told = post.send(destination)
    assert (told.state, post.kinds) == ("sent", ["seg", "sr", "sc"])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == sorted(f"{pydicom.dcmread(path).SOPInstanceUID}.dcm" for path in folder.iterdir())
    assert {pydicom.dcmread(path).PatientID for path in folder.iterdir()} == {post.original.PatientID}
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    post.reopen(told.delivery)
    assert post.send(destination).state == "sent"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_share_that_is_not_mounted_is_waited_for(post: Post) -> None:
    destination = Destination(name="share", kind="folder", path=post.folder / "mount" / "out")
    told = post.send(destination)
    assert told.state == "waiting"
    assert told.detail.startswith("share: the folder cannot be written")
    assert not (post.folder / "mount").exists()
    (post.folder / "mount").mkdir()
    post.make_due()
    assert post.dispatcher(destination).run_due() == 1
    assert post.row().state == "sent"


# -- the outbox ---------------------------------------------------------------------------------------------------


def test_enqueueing_again_changes_nothing(post: Post) -> None:
    destinations = [Destination(name=name, kind="folder", path=post.folder / name) for name in ("one", "two")]
    refs = enqueue(post.stores, post.analysis, destinations)
    assert enqueue(post.stores, post.analysis, destinations) == refs
    assert len(set(refs)) == post.stores.catalog.count(DeliveryRow) == post.stores.catalog.count(OutboxRow) == 2
    assert {row.message for row in post.stores.catalog.find(OutboxRow)} == {ref.key for ref in refs}


def test_a_shadow_is_never_delivered(post: Post) -> None:
    row = Installation(post.stores).row(post.analysis)
    shadow = Installation(post.stores).analysis(row.package, row.predictions, row.study, role="shadow", version="2")
    destination = Destination(name="share", kind="folder", path=post.folder / "out")
    assert enqueue(post.stores, shadow, [destination]) == ()
    nothing = Installation(post.stores).analysis(row.package, [], row.study, version="3")
    assert enqueue(post.stores, nothing, [destination]) == ()
    assert post.stores.catalog.count(OutboxRow) == 0


def test_what_was_told_of_an_earlier_version_is_not_told_again(post: Post) -> None:
    """A correction makes a new version of its study: whoever drew it does not want the uncorrected one once more."""
    there = Destination(name="there", kind="folder", path=post.folder / "out")
    new = Destination(name="new", kind="folder", path=post.folder / "new")
    row = Installation(post.stores).row(post.analysis)
    enqueue(post.stores, post.analysis, [there])
    later = Installation(post.stores).analysis(row.package, row.predictions, row.study, version="2")
    assert enqueue(post.stores, later, [there]) == ()
    assert len(enqueue(post.stores, later, [there, new])) == 1, "a destination that was never told"
    assert len(enqueue(post.stores, post.analysis, [there])) == 1, "the first one is still on its way"
    # Of what was refused, and of what is new, it is told.
    post.stores.catalog.change(DeliveryRow, DeliveryRow.destination == "there", state="refused")
    assert len(enqueue(post.stores, later, [there])) == 1


def test_one_destination_that_is_away_does_not_hold_up_another(post: Post) -> None:
    away = Destination(name="away", kind="folder", path=post.folder / "mount" / "out")
    there = Destination(name="there", kind="folder", path=post.folder / "out")
    enqueue(post.stores, post.analysis, [away, there])
    assert post.dispatcher(away, there).run_due() == 2
    states = {row.destination: row.state for row in post.stores.catalog.find(DeliveryRow)}
    assert states == {"away": "waiting", "there": "sent"}


def test_a_destination_that_is_no_longer_set_up_is_waited_for(post: Post) -> None:
    (ref,) = enqueue(post.stores, post.analysis, [Destination(name="gone", kind="folder", path=post.folder / "out")])
    told = post.dispatcher().attempt(ref)
    assert told.state == "waiting"
    assert "no destination of this name" in told.detail


def test_what_cannot_be_made_is_refused_with_its_reason(post: Post) -> None:
    for path in (post.folder / "home" / "volumes").rglob("*"):
        if path.is_file():
            path.unlink()
    told = post.send(Destination(name="share", kind="folder", path=post.folder / "out"))
    assert told.state == "refused"
    assert post.message().error == told.detail
    with pytest.raises(NotFoundError):
        post.dispatcher().attempt(DeliveryRef.to("0" * 32))


def test_no_identity_leaves_the_objects(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """Not into the catalog, not into messages, not into logs."""
    caplog.set_level(logging.DEBUG)
    with running(Pacs(commits=True, answer=lambda ds: 0xA700)) as pacs:
        told = [post.send(by_dimse(pacs.port, commitment=True))]
        pacs.answer = lambda ds: SUCCESS
        post.make_due()
        told.append(post.send(by_dimse(pacs.port, commitment=True)))
    with answering(400) as (url, _):
        told.append(post.send(by_stow(url)))
    assert [one.state for one in told] == ["waiting", "committed", "refused"]
    rows = [
        str(vars(row))
        for kind in (DeliveryRow, OutboxRow, CommitmentRow)
        for row in post.stores.catalog.find(kind)  # type: ignore[type-var]
    ]
    secrets = [str(post.original[n].value) for n in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber")]
    secrets += [ds.SOPInstanceUID for ds in pacs.stored]
    for secret in secrets:
        assert secret not in "".join(map(str, told))
        assert secret not in "".join(rows)
        assert secret not in caplog.text


def test_the_door_sends_at_once_and_does_not_fail(post: Post) -> None:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from tasks.deliver.door import deliver

    away = Destination(name="away", kind="folder", path=post.folder / "mount" / "out")
    there = Destination(name="there", kind="folder", path=post.folder / "out")
    told = deliver.fn(post.stores, post.analysis, (away, there), OURS)
    assert [(one.destination, one.state, one.objects) for one in told] == [("away", "waiting", 2), ("there", "sent", 2)]
