from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from models.errors import ArchiveError, HeaderError, NotFoundError
from models.series import Source
from tasks.ingest.sources import FREE_BYTES, archive_kind, members, read_source, resolve_dicomdir, walk
from tests.tasks.ingest.synthetic import stack, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(tmp_path / "tree" / "deep", stack(3))


def pack(tree: Path, target: Path, mode: str) -> Path:
    if mode == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(tree.iterdir()):
                archive.write(path, f"study/{path.name}")
    else:
        with tarfile.open(target, mode) as archive:
            archive.add(tree, "study")
    return target


def tar_of(target: Path, name: str, content: bytes, mode: str = "w", kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(target, mode) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
        archive.addfile(info, io.BytesIO(content))
    return target


def test_walks_regular_files_in_a_stable_order(tree: Path, tmp_path: Path) -> None:
    (tree / "link.dcm").symlink_to(tree / "0000.dcm")
    (tree.parent / "loop").symlink_to(tree.parent)
    os.mkfifo(tree / "pipe")
    shutil.copy(tree / "0000.dcm", tree / ".0003.dcm.part")
    (tmp_path / "spool").symlink_to(tree.parent)
    found = [Path(source.path).name for source in walk([str(tmp_path / "spool")])]
    assert found == ["0000.dcm", "0001.dcm", "0002.dcm"]


def test_a_missing_path_is_told_without_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        list(walk([str(tmp_path / "Gruber^Hannelore")]))
    assert "Gruber" not in str(caught.value)


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz", "w:bz2"])
def test_members_read_as_the_files_they_were(tree: Path, tmp_path: Path, mode: str) -> None:
    archive = pack(tree, tmp_path / "no-extension", mode)
    found = members(str(archive))
    assert [read_source(source) for source in found] == [p.read_bytes() for p in sorted(tree.iterdir())]
    assert sorted(tmp_path.iterdir()) == [archive, tree.parent], "nothing was unpacked beside it"


@pytest.mark.fault("files/archives")
@pytest.mark.parametrize("name", ["../escape.dcm", "/etc/escape.dcm", "a/../../escape", "..\\escape", "C:\\escape"])
@pytest.mark.parametrize("mode", ["zip", "w"])
def test_a_member_that_climbs_out_refuses_the_archive(tmp_path: Path, name: str, mode: str) -> None:
    archive = tmp_path / "archive"
    if mode == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, b"x")
    else:
        tar_of(archive, name, b"x", mode)
    with pytest.raises(ArchiveError) as caught:
        members(str(archive))
    assert caught.value.reason == "archive-climbs-out"
    assert "escape" not in str(caught.value)


@pytest.mark.fault("files/archives")
@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:xz"])
def test_bombs_are_refused(tmp_path: Path, mode: str) -> None:
    archive, zeros = tmp_path / "bomb", bytes(FREE_BYTES + (16 << 20))
    if mode == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("bomb", zeros)
    else:
        tar_of(archive, "bomb", zeros, mode)
    with pytest.raises(ArchiveError) as caught:
        members(str(archive))
    assert caught.value.reason == "archive-bomb"


def test_links_and_devices_in_a_tar_are_no_members(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        archive = tar_of(tmp_path / kind.decode(), "member", b"", kind=kind)
        assert members(str(archive)) == []


def test_an_encrypted_zip_is_refused(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "a.zip", "zip")
    data = bytearray(archive.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        members(str(archive))
    assert caught.value.reason == "archive-encrypted"


def test_a_compressed_file_without_a_tar_holds_nothing(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "image.nii.gz"
    path.write_bytes(gzip.compress(b"no tar" * 100))
    assert archive_kind(str(path)) == "tar"
    assert members(str(path)) == []


@example(mode="zip", where=0.99609375, byte=1)
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(mode=st.sampled_from(["zip", "w", "w:gz", "w:xz"]), where=st.floats(0, 1), byte=st.integers(0, 255))
def test_damage_raises_archive_errors_alone(
    tmp_path_factory: pytest.TempPathFactory, mode: str, where: float, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(pack(write(folder / "tree", stack(1)), folder / "archive", mode).read_bytes())
    place = int(where * (len(data) - 1))
    for broken in (data[:place], data[:place] + bytes([byte]) + data[place + 1 :]):
        path = folder / f"broken{len(broken)}"
        path.write_bytes(broken)
        try:
            for source in members(str(path)) if archive_kind(str(path)) else []:
                read_source(source)
        except ArchiveError:
            pass


def test_a_dicomdir_alone_is_resolved(tmp_path: Path) -> None:
    files = FileSet()
    for ds in stack(3):
        ds.PatientName, ds.StudyID, ds.SeriesNumber = "A^B", "1", 1
        files.add(ds)
    files.write(tmp_path / "media")
    found, missing = resolve_dicomdir(str(tmp_path / "media" / "DICOMDIR"))
    assert len(found) == 3
    assert missing == 0
    Path(found[0].path).unlink()
    assert resolve_dicomdir(str(tmp_path / "media" / "DICOMDIR"))[1] == 1


@pytest.mark.fault("files/archives")
@pytest.mark.parametrize("parts", [["..", "SECRET"], ["/etc", "passwd"], ["A", "..", "..", "B"], ["A/../../B"]])
def test_a_dicomdir_that_climbs_out_is_refused(tmp_path: Path, parts: list[str]) -> None:
    directory, record = Dataset(), Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    record.add_new(0x00041500, "CS", parts)
    directory.DirectoryRecordSequence = [record]
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    with pytest.raises(HeaderError) as caught:
        resolve_dicomdir(str(tmp_path / "DICOMDIR"))
    assert caught.value.reason == "dicomdir-climbs-out"


def test_a_file_that_went_is_told_apart_from_bad_input(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_source(Source(str(tmp_path / "gone")))
