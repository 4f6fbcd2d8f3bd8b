from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_rescale
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)

from tests.tasks.ingest.synthetic import Room, image, stack, write

RNG = np.random.default_rng(3)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room.at(tmp_path, allow={"CR", "US"})


def stored(shape: tuple[int, ...] = (16, 12), low: int = 0, high: int = 4096, kind: str = "u2") -> np.ndarray:
    return RNG.integers(low, high, shape).astype(kind)


def ingested(room: Room, *datasets: Dataset) -> Any:
    return room.only(write(room.home / "in", datasets))


def refused(room: Room, *datasets: Dataset) -> tuple[str, ...]:
    return room.refused(write(room.home / "in", datasets))


# -- how pixels are stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 10))
def test_every_encoding_of_one_image_gives_the_same_tiles(shared_data: Path, room: Room, number: int) -> None:
    import SimpleITK as sitk  # noqa: N813

    path = shared_data / "series" / "transfer_syntaxes" / f"{number}.dcm"
    volume = room.only(path)
    whole = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    assert volume.array.shape == (35, 64, 64)
    for n, tile in enumerate(volume.array):
        row, column = divmod(n, 6)
        np.testing.assert_array_equal(tile, whole[64 * row : 64 * row + 64, 64 * column : 64 * column + 64])


@pytest.mark.parametrize("kind", ["u1", "i2", "u2"])
def test_integers_stay_int16(room: Room, kind: str) -> None:
    pixels = stored(low=-4000 if kind == "i2" else 0, high=250 if kind == "u1" else 4000, kind=kind)
    volume = ingested(room, image(pixels))
    assert volume.array.dtype == np.int16
    assert volume.unit == "HU"
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) - 1024)


def test_values_beyond_int16_become_float32(room: Room) -> None:
    pixels = stored(high=65536)
    pixels[0, 0] = 65535
    volume = ingested(room, image(pixels, RescaleIntercept=0))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], pixels)


def test_the_whole_range_of_16_bits_survives_a_shift(room: Room) -> None:
    pixels = np.array([[0, 1], [65534, 65535]], np.uint16)
    volume = ingested(room, image(pixels, RescaleIntercept=-32768))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) - 32768)


def test_fractions_are_applied_slice_by_slice(room: Room) -> None:
    slices = stack(3)
    for n, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = 0.25 * (n + 1), -3.5
    volume = ingested(room, *slices)
    for n, ds in enumerate(slices):
        np.testing.assert_allclose(volume.array[n], ds.pixel_array * (0.25 * (n + 1)) - 3.5, rtol=1e-6)


def test_big_endian(room: Room) -> None:
    pixels = stored()
    volume = ingested(room, image(pixels.astype(">u2"), syntax=ExplicitVRBigEndian))
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) - 1024)


def test_overlay_bits_above_the_stored_ones_are_cleared(room: Room) -> None:
    pixels = stored()
    volume = ingested(room, image(pixels | np.uint16(0xF000), BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) - 1024)


def test_the_sign_of_twelve_bits_is_extended(room: Room) -> None:
    pixels = stored(low=-2048, high=2048, kind="i2")
    cut = (pixels & 0x0FFF).astype(np.int16)
    volume = ingested(room, image(cut, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) - 1024)


def test_bits_that_sit_high_come_down(room: Room) -> None:
    pixels = stored()
    volume = ingested(room, image(pixels << 4 | np.uint16(5), BitsStored=12, HighBit=15))
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) - 1024)


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_over_the_stored_range(room: Room, signed: bool) -> None:
    pixels = stored(low=-512 if signed else 0, high=512, kind="i2" if signed else "u2")
    more = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 10, "HighBit": 9, "Modality": "CR"}
    volume = ingested(room, image(pixels, RescaleSlope=2, RescaleIntercept=5, **more))
    ends = (-512, 511) if signed else (0, 1023)
    rescaled = [2 * end + 5 for end in ends]
    np.testing.assert_array_equal(volume.array[0], sum(rescaled) - (2 * pixels.astype(int) + 5))


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True)),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEGLosslessSV1, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16)),
    ],
)
def test_signed_pixels_survive_codecs_that_know_no_sign(room: Room, syntax: str, encode: Any) -> None:
    pixels = stored(low=-30000, high=30000, kind="i2")
    stream = bytes(encode(pixels.view(np.uint16)))
    volume = ingested(room, image(pixels, syntax=syntax, encoded=stream, RescaleIntercept=0))
    np.testing.assert_array_equal(volume.array[0], pixels)


def test_real_jpeg_2000_of_14_signed_bits(shared_data: Path, room: Room) -> None:
    path = shared_data / "odd" / "693_J2KR.dcm"
    ds = pydicom.dcmread(path)
    np.testing.assert_array_equal(room.only(path).array[0], apply_rescale(ds.pixel_array, ds))


def test_real_modality_lut(shared_data: Path, room: Room) -> None:
    path = shared_data / "odd" / "CR-ModalitySequenceLUT.dcm"
    ds = pydicom.dcmread(path)
    mapped = apply_modality_lut(ds.pixel_array, ds).astype(int)
    table = np.frombuffer(ds.ModalityLUTSequence[0].LUTData, "<u2").astype(int)
    volume = room.only(path)
    np.testing.assert_array_equal(volume.array[0], table.max() + table.min() - mapped)
    assert volume.geometry.spacing[1:] == (0.15, 0.15)


def test_lossy_jpeg_of_8_bits(room: Room) -> None:
    pixels = np.add.outer(np.arange(32), np.arange(24)).astype(np.uint8) * 4
    stream = imagecodecs.jpeg8_encode(pixels, level=95)
    volume = ingested(room, image(pixels, syntax=JPEGBaseline8Bit, encoded=stream, RescaleIntercept=0))
    assert np.abs(volume.array[0].astype(int) - pixels).max() <= 6


SMOOTH = np.add.outer(np.arange(32), np.arange(24)).astype(np.uint16) * 60


@pytest.mark.parametrize(
    ("syntax", "encode", "error"),
    [
        (JPEGExtended12Bit, lambda a: imagecodecs.jpeg8_encode(a, level=98, bitspersample=12), 8),
        (JPEGLossless, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12), 0),
        (JPEGLSNearLossless, lambda a: imagecodecs.jpegls_encode(a, level=2), 2),
        (JPEG2000, lambda a: imagecodecs.jpeg2k_encode(a, level=60, codecformat="j2k", bitspersample=12), 20),
        (HTJ2KLossless, lambda a: imagecodecs.htj2k_encode(a, reversible=True), 0),
    ],
)
def test_rarer_codecs(room: Room, syntax: str, encode: Any, error: int) -> None:
    more = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": 0}
    volume = ingested(room, image(SMOOTH, syntax=syntax, encoded=bytes(encode(SMOOTH)), **more))
    assert np.abs(volume.array[0].astype(int) - SMOOTH).max() <= error


# -- frames -------------------------------------------------------------------------------------------------------


def enhanced(frames: np.ndarray, **more: Any) -> Dataset:
    ds = image(frames, position=None, NumberOfFrames=len(frames), RescaleSlope=None, RescaleIntercept=None, **more)
    groups = []
    for n in range(len(frames)):
        group, place, orientation = Dataset(), Dataset(), Dataset()
        # From the head down, and every other frame first: storage order is no order.
        place.ImagePositionPatient = [0, 0, -2.0 * n]
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        group.PlanePositionSequence, group.PlaneOrientationSequence = Sequence([place]), Sequence([orientation])
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept = 1, n
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return ds


def test_frames_go_to_their_places(room: Room) -> None:
    frames = stored((5, 16, 12))
    volume = ingested(room, enhanced(frames))
    expected = (frames.astype(int) + np.arange(5)[:, None, None])[::-1]
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.geometry.origin == (0, 0, -8)
    assert len(volume.instances) == 1


@pytest.mark.parametrize("pieces", [1, 2])
def test_compressed_frames_of_one_or_more_fragments(room: Room, pieces: int) -> None:
    frames = stored((3, 16, 12))
    streams = [bytes(imagecodecs.jpegls_encode(f)) for f in frames]
    ds = enhanced(frames, syntax=JPEGLSLossless, encoded=streams)
    if pieces > 1:
        cut = [part for s in streams for part in (s[: len(s) // 4 * 2], s[len(s) // 4 * 2 :])]
        ds.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0" + b"".join(
            b"\xfe\xff\x00\xe0" + len(p + b"\0" * (len(p) % 2)).to_bytes(4, "little") + p + b"\0" * (len(p) % 2)
            for p in cut
        )
        ds.PixelData += b"\xfe\xff\xdd\xe0\0\0\0\0"
        ds["PixelData"].is_undefined_length = True
    volume = ingested(room, ds)
    np.testing.assert_array_equal(volume.array[::-1] - np.arange(3)[:, None, None], frames)


# -- what is refused ----------------------------------------------------------------------------------------------


def j2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True))


def test_a_code_stream_that_lies_is_refused_before_decoding(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = bytearray(j2k(stored()))
    stream[8:16] = (60000).to_bytes(4, "big") * 2

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", never)
    assert refused(room, image(stored(), syntax=JPEG2000Lossless, encoded=bytes(stream))) == ("lying-codestream",)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEG2000Lossless, j2k),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEGLosslessSV1, imagecodecs.ljpeg_encode),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_streams_are_refused(room: Room, syntax: str, encode: Any, share: float) -> None:
    stream = bytes(encode(stored((64, 64))))
    cut = stream[: int(len(stream) * share) // 2 * 2]
    (reason,) = refused(room, image(stored((64, 64)), syntax=syntax, encoded=cut))
    assert reason in ("truncated-pixels", "bad-codestream", "undecodable-pixels")


def rle(segments: list[bytes], offsets: list[int] | None = None) -> bytes:
    starts, place = [], 64
    for segment in segments:
        starts.append(place)
        place += len(segment)
    words = [len(segments), *(offsets or starts)]
    return b"".join(w.to_bytes(4, "little") for w in words + [0] * (16 - len(words))) + b"".join(segments)


@pytest.mark.parametrize(
    "stream",
    [
        rle([b"\x81\x00" * 2]),
        rle([b"\x81\x00", b"\x81\x00"]),
        rle([b"\x81\x00" * 50, b"\x81\x00" * 50]),
        rle([b"\x81\x00" * 2] * 2, offsets=[64, 9999]),
        rle([b"\x81\x00" * 2] * 2, offsets=[70, 64]),
        b"\x02\0\0\0",
    ],
)
def test_rle_of_another_size_is_refused(room: Room, stream: bytes) -> None:
    (reason,) = refused(room, image(stored(), syntax=RLELossless, encoded=stream))
    assert reason in ("truncated-pixels", "lying-codestream", "undecodable-pixels")


def test_real_truncated_jpeg_2000(shared_data: Path, room: Room) -> None:
    assert room.refused(shared_data / "odd" / "emri_small_jpeg_2k_lossless_too_short.dcm") == ("no-position",)


def test_slices_stored_in_different_ways_are_refused(room: Room) -> None:
    slices = stack(3)
    slices[1].PixelRepresentation = 1
    assert refused(room, *slices) == ("mixed-pixels",)


def test_a_transfer_syntax_without_decoder_is_refused(room: Room) -> None:
    ds = image(stored(), syntax="1.2.840.10008.1.2.4.100", encoded=b"mpeg")
    assert refused(room, ds) == ("unsupported-transfer-syntax",)


# -- colour -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_where_the_rules_want_it(tmp_path: Path, planar: int, photometric: str) -> None:
    from pydicom.pixels import convert_color_space

    rgb = stored((16, 12, 3), high=256, kind="u1")
    more = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": planar}
    ds = image(rgb, Modality="ES", **more)
    if planar:
        ds.PixelData = np.ascontiguousarray(np.moveaxis(rgb, -1, 0)).tobytes()
    folder = write(tmp_path / "in", [ds])
    grey, colour = (Room.at(tmp_path / name, colour=name == "colour") for name in ("grey", "colour"))
    assert grey.refused(folder) == ("colour",)
    volume = colour.only(folder)
    expected = rgb if photometric == "RGB" else convert_color_space(rgb, "YBR_FULL", "RGB")
    assert volume.unit == "colour"
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(expected, -1, 0))


def test_a_real_palette_becomes_rgb(shared_data: Path, tmp_path: Path) -> None:
    from pydicom.pixels import apply_color_lut

    path = shared_data / "odd" / "gdcm-US-ALOKA-16.dcm"
    ds = pydicom.dcmread(path)
    volume = Room.at(tmp_path, allow={"US"}, colour=True).only(path)
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(apply_color_lut(ds.pixel_array, ds), -1, 0))


# -- PET ----------------------------------------------------------------------------------------------------------


def pet(**more: Any) -> list[Dataset]:
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = "4.0e8", "6586.2"
    drug.RadiopharmaceuticalStartTime = more.pop("injected", "110000.00")
    if start := more.pop("injected_at", None):
        drug.RadiopharmaceuticalStartDateTime = start
    drug.RadionuclideTotalDose = more.pop("dose", "4.0e8")
    values = {
        "SOPClassUID": PositronEmissionTomographyImageStorage,
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["ATTN", "DECY", "SCAT"],
        "PatientWeight": "80",
        "SeriesDate": "20240229",
        "SeriesTime": "120000",
        "AcquisitionDate": "20240229",
        "AcquisitionTime": "120000",
        "RescaleIntercept": 0,
        "RadiopharmaceuticalInformationSequence": Sequence([drug]),
    }
    slices = stack(3, **(values | more))
    for n, ds in enumerate(slices):
        ds.RescaleSlope = 2.5 + n
    return slices


@pytest.mark.parametrize(
    ("more", "hours"),
    [
        ({}, 1.0),
        ({"injected": "233000.00", "SeriesTime": "003000", "AcquisitionTime": "003000"}, 1.0),
        ({"injected_at": "20240228233000.00", "SeriesTime": "003000", "AcquisitionTime": "003000"}, 1.0),
        ({"SeriesTime": "150000"}, 1.0),
        ({"DecayCorrection": "ADMIN"}, 0.0),
    ],
)
def test_pet_becomes_suv_by_body_weight(room: Room, more: dict[str, Any], hours: float) -> None:
    slices = pet(**more)
    volume = ingested(room, *slices)
    assert volume.unit == "SUVbw"
    dose = 4.0e8 * 2 ** (-hours * 3600 / 6586.2)
    for n, ds in enumerate(slices):
        np.testing.assert_allclose(volume.array[n], ds.pixel_array * (2.5 + n) * 80_000 / dose, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "unit"),
    [
        ({"PatientWeight": None}, "BQML"),
        ({"DecayCorrection": "NONE"}, "BQML"),
        ({"CorrectedImage": ["ATTN"]}, "BQML"),
        ({"dose": "400"}, "BQML"),
        ({"injected": "", "injected_at": None}, "BQML"),
        ({"Units": "CNTS"}, "CNTS"),
        ({"Units": "PROPCPS"}, "stored"),
        ({"Units": "GML", "SUVType": "LBM"}, "stored"),
    ],
)
def test_pet_without_what_suv_needs_stays_as_it_is_with_a_note(room: Room, more: dict[str, Any], unit: str) -> None:
    slices = pet(**more)
    volume = ingested(room, *slices)
    assert volume.unit == unit
    assert volume.notes
    np.testing.assert_allclose(volume.array[1], slices[1].pixel_array * 3.5, rtol=1e-6)


def test_pet_in_grams_per_millilitre_is_suv_already(room: Room) -> None:
    slices = pet(Units="GML", SUVType="BW")
    volume = ingested(room, *slices)
    assert (volume.unit, volume.notes) == ("SUVbw", ())
