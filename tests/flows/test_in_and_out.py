"""In and out of the hospital, with nothing but real components: a study is sent, and its result is in the PACS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tasks.cohort.write import draw_case, write_cohort
from tasks.stores.datasets import DatasetStore
from tests.components import needs, part10, phantom_study, running_orthanc, until
from tests.faults.night import Home
from tests.faults.planting import MARK, hits, planted
from tests.flows.hospital import PATIENCE, Hospital, at_work, files_of, read
from tests.matrix import Figure

SEED = 77


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """An installation that has learnt one night, and now runs."""
    needs("Orthanc", "storescu", "dciodvfy")
    folder = tmp_path_factory.mktemp("hospital")
    home = Home(folder / "home", write_cohort(folder / "cohort", patients=10, broken=0).incoming)
    home.finish()
    pacs_folder = folder / "pacs"
    pacs_folder.mkdir()
    with running_orthanc(pacs_folder, stable_seconds=2) as pacs:
        hospital = Hospital(home, pacs, folder / "inbox", recipes=(home.folder / "small.toml",))
        try:
            with at_work(hospital):
                yield hospital
        except BaseException:
            print(hospital.logs())
            raise


def study(folder: Path, number: int) -> Path:
    """A study of a patient whom the champion has not seen, as a folder of files."""
    slices = draw_case(SEED, number).phantom.geometry.shape[0]
    place = folder / f"study-{number}"
    place.mkdir()
    for index, instance in enumerate(phantom_study(number, seed=SEED, slices=slices)):
        (place / f"{index:04}.dcm").write_bytes(part10(instance))
    return place


def arrived(hospital: Hospital, sent: Path) -> None:
    """The study's SEG reaches the PACS, once, and is what it should be."""
    segmentation = until(lambda: hospital.segmentation(sent), f"a SEG of {sent.name} in the PACS", PATIENCE)
    originals = [read(file) for file in files_of(sent)]
    assert segmentation.PatientID == originals[0].PatientID
    assert segmentation.PatientName == originals[0].PatientName
    assert segmentation.StudyInstanceUID == originals[0].StudyInstanceUID
    referenced = {
        item.ReferencedSOPInstanceUID
        for series in segmentation.ReferencedSeriesSequence
        for item in series.ReferencedInstanceSequence
    }
    assert referenced
    assert referenced <= {original.SOPInstanceUID for original in originals}
    assert segmentation.SegmentSequence[0].SegmentAlgorithmName == "small"
    checked = subprocess.run(["dciodvfy", segmentation.filename], capture_output=True, text=True, timeout=PATIENCE)
    assert [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")] == []


def outcome(hospital: Hospital, sent: Path, number: int = 1) -> list[dict[str, object]]:
    """A study's versions, once `number` of them came to an end."""

    def ended() -> list[dict[str, object]]:
        rows = [row for row in hospital.versions(sent) if row["finished_at"]]
        return rows if len(rows) >= number else []

    found: list[dict[str, object]] = until(ended, f"{number} versions of {sent.name} brought to an end", PATIENCE)
    return found


def test_a_study_gets_in_by_every_way_and_its_result_gets_out(hospital: Hospital, tmp_path: Path) -> None:
    sent, dropped, stored = (study(tmp_path, number) for number in (1, 2, 3))
    hospital.send(sent)
    arrived(hospital, sent)

    shutil.copytree(dropped, hospital.inbox / "from-a-modality.part")
    (hospital.inbox / "from-a-modality.part").rename(hospital.inbox / "from-a-modality")
    arrived(hospital, dropped)

    hospital.pacs.upload_all(file.read_bytes() for file in files_of(stored))
    arrived(hospital, stored)

    came = [outcome(hospital, one)[0] for one in (sent, dropped, stored)]
    assert [(row["source"], row["why"]) for row in came] == [
        ("listener", "told"),  # by storage commitment
        ("inbox", "quiet"),
        ("feed", "told"),  # Orthanc holds it to be stable
    ]
    told = [hospital.command("status"), *logged(hospital, sent, dropped, stored)]
    for identity in {str(read(file).PatientID) for one in (sent, dropped, stored) for file in files_of(one)}:
        assert not any(identity in text for text in told)


def logged(hospital: Hospital, *studies: Path) -> list[str]:
    """What the pages of the studies' runs show as their logs."""
    lines: list[str] = []
    for one in studies:
        for run in hospital.runs(one):
            asked = {"flow_run_id": {"any_": [run["id"]]}}
            found = until(lambda a=asked: hospital.ask("/logs/filter", logs=a), "the run's log", PATIENCE)  # type: ignore[misc]
            lines += [line["message"] for line in found]
    return lines


def test_a_late_slice_makes_a_new_version_and_one_more_run(hospital: Hospital, tmp_path: Path) -> None:
    whole = study(tmp_path, 4)
    late = files_of(whole)[-1]
    kept = late.read_bytes()
    late.unlink()
    hospital.send(whole)
    outcome(hospital, whole)
    late.write_bytes(kept)
    hospital.send(whole)
    assert [row["number"] for row in outcome(hospital, whole, 2)] == [1, 2]
    assert len(hospital.runs(whole)) == 2
    # Sent once more, whole: nothing is new, nothing is analysed again.
    received = hospital.rows("instances", whole)
    hospital.send(whole)
    assert hospital.rows("instances", whole) == received
    assert len(hospital.runs(whole)) == 2


@pytest.mark.fault("stores/prefect")
def test_a_prefect_server_that_was_away_starts_every_run_once(hospital: Hospital, tmp_path: Path) -> None:
    hospital.stop("prefect")
    studies = [study(tmp_path, number) for number in (5, 6, 7)]
    for one in studies:
        hospital.send(one)
    until(lambda: all(map(hospital.versions, studies)), "three studies held to be whole", PATIENCE)
    assert "not yet told to Prefect" in until(_told_stuck(hospital), "status says what is stuck", PATIENCE)
    hospital.start("prefect")
    until(hospital.prefect_answers, "the Prefect server is back", PATIENCE)
    for one in studies:
        arrived(hospital, one)
        outcome(hospital, one)
    assert [len(hospital.runs(one)) for one in studies] == [1, 1, 1]
    assert [len([r for r in hospital.results(one) if r.Modality == "SEG"]) for one in studies] == [1, 1, 1]


@pytest.mark.fault("deliver/pacs")
def test_a_pacs_that_was_down_gets_exactly_one_copy(hospital: Hospital, tmp_path: Path) -> None:
    hospital.pacs.stop()
    one = study(tmp_path, 8)
    hospital.send(one)
    outcome(hospital, one)
    assert {row["state"] for row in hospital.rows("deliveries", one)} == {"waiting"}
    hospital.pacs.start()
    arrived(hospital, one)
    until(
        lambda: {row["state"] for row in hospital.rows("deliveries", one)} == {"committed"},
        "the PACS has committed itself to everything",
        3 * PATIENCE,  # an answer that was lost is asked for again
    )
    assert len([r for r in hospital.results(one) if r.Modality == "SEG"]) == 1
    assert len(hospital.runs(one)) == 1


@pytest.mark.fault("privacy/markers")
def test_nothing_of_a_patient_is_written_but_in_spool_and_vault(
    hospital: Hospital, tmp_path: Path, figure: Figure
) -> None:
    slices = draw_case(SEED, 9).phantom.geometry.shape[0]
    place = tmp_path / "XQFOLDERKJ"
    place.mkdir()
    markers = planted(phantom_study(9, seed=SEED, slices=slices), place)
    shutil.copytree(place, hospital.inbox / "XQFOLDERKJ.part")
    (hospital.inbox / "XQFOLDERKJ.part").rename(hospital.inbox / "XQFOLDERKJ")
    segmentation = until(lambda: hospital.segmentation(place), "the SEG in the PACS", PATIENCE)
    assert segmentation.PatientID == "XQPATIENTKJ"
    outcome(hospital, place)
    home = hospital.home.folder
    header = read(files_of(place)[0])
    uids = {str(uid): "a UID" for uid in (header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID)}
    searched = [path for path in home.rglob("*") if path.is_file() and path.relative_to(home).parts[0] != "spool"]
    assert len(markers) > 250
    assert list(hits(home, markers | uids | {"XQFOLDERKJ": "a folder"}, but=("spool",))) == []
    assert MARK + "PATIENT" not in hospital.logs()
    figure(f"{len(markers)} markers, {len(searched)} files searched, none found")


def test_a_pacs_that_asks_for_commitment_and_hangs_up_is_called(hospital: Hospital) -> None:
    (one, *_) = hospital.pacs.get("/instances")
    with hospital.pacs.client() as client:
        sent = client.post("/modalities/nocturne/store", json={"Resources": [one], "StorageCommitment": True})
    asked = sent.raise_for_status().json()["StorageCommitmentTransactionUID"]

    def answered() -> str:
        status: str = hospital.pacs.get(f"/storage-commitment/{asked}")["Status"]
        return "" if status == "Pending" else status

    assert until(answered, "the answer to a storage commitment", PATIENCE) == "Success"


def test_a_corrected_result_is_scored_and_learnt_from_the_next_night(hospital: Hospital, tmp_path: Path) -> None:
    sent = study(tmp_path, 10)
    hospital.send(sent)
    arrived(hospital, sent)
    ours = hospital.segmentation(sent)
    assert ours is not None
    back = tmp_path / "from-a-viewer"
    back.mkdir()
    shutil.copy(ours.filename, back / "ours.dcm")  # the PACS sends the whole of what it holds
    drawn = corrected(Path(ours.filename), back / "corrected.dcm")
    hospital.send(back)

    _, came = outcome(hospital, sent, 2)
    assert (came["outcome"], came["detail"]) == ("ingested", "predictions that its labels correct: 1")
    (label,) = hospital.rows("labels", sent)
    (correction,) = [row for row in hospital.home.rows("corrections") if row["label"] == label["label"]]
    assert correction["how"] == "referenced"
    assert 0 < float(str(correction["value"])) < 1
    assert len(hospital.rows("analyses", sent)) == 2
    assert len([r for r in hospital.results(sent) if r.Modality == "SEG"]) == 1, "it was not told again"

    hospital.command("retrain", str(hospital.home.folder / "small.toml"), timeout=2 * PATIENCE)
    learnt = max(hospital.home.rows("datasets"), key=lambda row: str(row["created_at"]))["dataset"]
    dataset = DatasetStore(str(hospital.home.folder / "datasets")).read(str(learnt))
    assert label["label"] in {row.label for row in dataset.rows}
    assert str(learnt) in {row["dataset"] for row in hospital.home.rows("packages")}
    told = json.loads(hospital.command("lineage", drawn, "--json", "--all"))
    kinds = {(node["kind"], node["key"]) for node in told["nodes"]}
    assert {("label", label["label"]), ("dataset", learnt), ("correction", correction["correction"])} <= kinds
    assert f"label {label['label']}" in hospital.command("lineage", str(label["label"])[:10])
    assert "came from" in hospital.command("lineage", "small")  # the version that serves


def corrected(ours: Path, place: Path) -> str:
    """Our result as a viewer stores it once somebody has wiped some of it away; returns its SOP Instance UID."""
    ds = pydicom.dcmread(ours)
    begun = Dataset()
    begun.ReferencedSOPClassUID, begun.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = ds.SeriesInstanceUID, [begun]
    document = Dataset()
    document.StudyInstanceUID, document.ReferencedSeriesSequence = ds.StudyInstanceUID, [series]
    ds.PredecessorDocumentsSequence = [document]
    ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Manufacturer, ds.SeriesDescription = "Viewer", "Corrected"
    pixels = bytearray(ds.PixelData)
    pixels[: len(pixels) // 3] = bytes(len(pixels) // 3)
    ds.PixelData = bytes(pixels)
    ds.save_as(place, enforce_file_format=True)
    return str(ds.SOPInstanceUID)


def _told_stuck(hospital: Hospital):  # type: ignore[no-untyped-def]
    def told() -> str:
        shown = hospital.command("status")
        return shown if "Stuck" in shown else ""

    return told


def test_up_starts_everything_and_ctrl_c_stops_it(hospital: Hospital) -> None:
    hospital.close()
    log = hospital.home.folder / "logs" / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [sys.executable, "-m", "flows", "up"],
            env=hospital.environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        processes = {"listener", "watch", "relay", "worker", "arrivals"}
        until(lambda: processes <= hospital.signs(), "every process gives a sign of life", PATIENCE)
        until(hospital.prefect_answers, "the Prefect server answers", PATIENCE)
        page = f"http://127.0.0.1:{hospital.mlflow_port}/health"
        until(lambda: _answers(page), "the MLflow server answers", PATIENCE)
        until(lambda: "away" not in hospital.command("status"), "all is well", PATIENCE)
        os.kill(up.pid, signal.SIGINT)
        assert up.wait(timeout=PATIENCE) == 0, log.read_text()
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
    assert hospital.signs() == set()
    assert not hospital.prefect_answers()
    assert not _answers(page)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
