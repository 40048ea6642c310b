"""Echocardiograms as files: valid objects, read back to the level, privacy, and damage of every kind refused by name."""
import io
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID
from typer.testing import CliRunner

from ptacl.app.cli import app
from ptacl.core.errors import PtaclError
from ptacl.data.echo import echo_film, read_echo
from ptacl.signal.echo import ECHO_FRAMES, ECHO_SIZE
from ptacl.simulate.echo_scans import simulate_echo
from ptacl.simulate.echo_writers import _MARGINS, _echo_dicom, echo_file
from ptacl.simulate.patients import simulate
from ptacl.simulate.writers import in_batches, write_patients

WAYS = [dict(), dict(vector=True), dict(photometric="RGB"), dict(photometric="YBR_FULL_422"), dict(compression="rle"),
        dict(photometric="RGB", compression="rle"), dict(compression="jpeg"), dict(photometric="RGB", compression="jpeg")]


@pytest.fixture(scope="module")
def scans(): return simulate_echo(1, 3, height=120, width=160)


@pytest.fixture(scope="module")
def clip(scans):
    "Every fifth frame: small files."
    k = int(scans.lengths[0])
    peaks = scans.r_peaks[0][scans.r_peaks[0].isfinite()].numpy()
    return dict(frames=scans.frames[0, :k:5].numpy(), times=scans.times[0, :k:5].numpy(), mm=float(scans.mm[0]), r_peaks=peaks)


@pytest.fixture(scope="module")
def plain(clip): return _echo_dicom(**clip, heart_rate=61.)


def opened(content): return pydicom.dcmread(io.BytesIO(content))


def saved(ds, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(path, enforce_file_format=True)
    return path


# --- valid --------------------------------------------------------------------------------------------------------------------

NOT_EMPTY = """SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType SamplesPerPixel PhotometricInterpretation Rows
Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData NumberOfFrames FrameIncrementPointer LossyImageCompression
SequenceOfUltrasoundRegions""".split()
PRESENT = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber SeriesNumber
InstanceNumber Manufacturer PatientOrientation""".split()
OF_REGIONS = """RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0 RegionLocationMaxX1 RegionLocationMaxY1
PhysicalUnitsXDirection PhysicalUnitsYDirection PhysicalDeltaX PhysicalDeltaY""".split()


def faults_of(ds):
    "What a validator of the Ultrasound Multi-frame Image IOD (PS3.3 A.7) would say."
    yield from (f"{k} is missing or empty" for k in NOT_EMPTY if ds.get(k) in (None, "", b""))
    yield from (f"{k} is missing" for k in PRESENT if k not in ds)
    yield from (f"{e.keyword}: {e.value} is no UID" for e in ds if e.VR == "UI" and not UID(e.value).is_valid)
    if ds.Modality != "US" or ds.SOPClassUID.name != "Ultrasound Multi-frame Image Storage": yield "another class"
    if (ds.SamplesPerPixel > 1) != ("PlanarConfiguration" in ds): yield "PlanarConfiguration belongs to colours alone"
    if (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) != (8, 8, 7, 0): yield "not eight bits"
    if ds.SamplesPerPixel != (1 if ds.PhotometricInterpretation == "MONOCHROME2" else 3): yield "samples and colours do not agree"
    pointer = pydicom.datadict.keyword_for_tag(ds.FrameIncrementPointer)
    if pointer not in ds: yield f"the frames are counted by {pointer}, which is not there"
    if pointer == "FrameTimeVector" and len(ds.FrameTimeVector) != ds.NumberOfFrames: yield "a frame without time"
    if not ds.file_meta.TransferSyntaxUID.is_compressed:
        each = {"MONOCHROME2": 1, "RGB": 3, "YBR_FULL_422": 2}[ds.PhotometricInterpretation]
        length = ds.Rows * ds.Columns * ds.NumberOfFrames * each
        if len(ds.PixelData) != length + length % 2: yield "pixels of another length"
    if ("LossyImageCompressionRatio" in ds) != (ds.LossyImageCompression == "01"): yield "lossy or not?"
    if ds.file_meta.MediaStorageSOPInstanceUID != ds.SOPInstanceUID or ds.file_meta.MediaStorageSOPClassUID != ds.SOPClassUID: yield "two names"
    for region in ds.SequenceOfUltrasoundRegions:
        yield from (f"{k} of a region is missing" for k in OF_REGIONS if k not in region)
        if not (0 <= region.RegionLocationMinX0 < region.RegionLocationMaxX1 < ds.Columns): yield "a region beside the picture"
        if not (0 <= region.RegionLocationMinY0 < region.RegionLocationMaxY1 < ds.Rows): yield "a region below the picture"


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_valid(clip, how, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    ds = opened(_echo_dicom(**clip, heart_rate=61., **how))
    assert not [e for e in ds.iterall() if e.tag.is_private]  # each is parsed, and checked against its kind
    assert not list(faults_of(ds))


def test_the_validator_sees_faults(clip):
    ds = opened(_echo_dicom(**clip))
    ds.BitsStored, ds.PatientOrientation = 12, ""
    del ds.FrameTime, ds.StudyID
    assert {"not eight bits", "StudyID is missing", "the frames are counted by FrameTime, which is not there"} == set(faults_of(ds))


def test_same_bytes_at_another_time(clip, monkeypatch):
    first = _echo_dicom(**clip)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert _echo_dicom(**clip) == first


# --- there and back -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", WAYS, ids=str)
def test_there_and_back(clip, how, tmp_path):
    (tmp_path / "a.dcm").write_bytes(_echo_dicom(**clip, heart_rate=61., **how))
    echo = read_echo(tmp_path / "a.dcm")
    off = np.abs(echo.frames.astype(int) - clip["frames"])[:, echo.mask]
    assert off.mean() < 4 if how.get("compression") == "jpeg" else off.max() <= 1
    assert np.allclose(echo.times, clip["times"], atol=1e-4) and np.allclose(echo.r_peaks, clip["r_peaks"], atol=1e-4)
    assert np.allclose(echo.spacing, clip["mm"]) and echo.frames.dtype == np.uint8
    assert echo.meta["heart_rate"] == 61 and echo.meta["times_by"] == ("FrameTimeVector" if how.get("vector") else "FrameTime")
    assert (echo.frames[:, ~echo.mask] == 0).all()
    assert 0.95 < echo.mask.sum() / (clip["frames"].max(0) > 12).sum() < 1.1


def test_a_film_of_a_file(scans, tmp_path):
    (tmp_path / "a.dcm").write_bytes(echo_file(scans, 0))
    film, phase = echo_film(read_echo(tmp_path / "a.dcm"))
    assert film.shape == (ECHO_FRAMES, ECHO_SIZE, ECHO_SIZE) and film.max() == 255
    assert np.abs(phase.numpy() - np.arange(ECHO_FRAMES) / ECHO_FRAMES).max() < 0.05


def test_uneven_frame_times_are_kept(clip, tmp_path):
    times = clip["times"] + np.r_[0, np.random.default_rng(0).uniform(-.01, .01, len(clip["times"]) - 1)]
    (tmp_path / "a.dcm").write_bytes(_echo_dicom(**clip | dict(times=times), vector=True))
    assert np.allclose(read_echo(tmp_path / "a.dcm").times, times, atol=1e-4)


def test_r_peaks_as_numbers_of_frames_or_not_at_all(plain, clip, tmp_path):
    ds = opened(plain)
    del ds.RWaveTimeVector
    echo = read_echo(saved(ds, tmp_path / "none.dcm"))
    assert echo.r_peaks is None and "no R-peaks are marked" in echo.meta["warnings"][0]
    with pytest.raises(PtaclError, match="no R-peaks are marked"): echo_film(echo)
    ds.RWavePointer = [2, 7]
    echo = read_echo(saved(ds, tmp_path / "frames.dcm"))
    assert np.allclose(echo.r_peaks, clip["times"][[1, 6]], atol=1e-4) and echo.meta["r_peaks_by"] == "RWavePointer"


@pytest.mark.parametrize("format", ["echo"])
def test_a_cohort_with_echoes(tmp_path, format):
    options = dict(frames=4, size=48, echo=True)
    folder = write_patients(in_batches(3, 2, batch=2, **options), tmp_path / "c", format, total=3)
    whole = write_patients(simulate(3, 2, **options), tmp_path / "whole", format)
    files = sorted(f.name for f in (folder / "echo").iterdir())
    assert files == [f"sim-0000{k}.dcm" for k in (1, 2, 3)] and len((folder / "echo.csv").read_text().splitlines()) == 4
    assert all((folder / "echo" / f).read_bytes() == (whole / "echo" / f).read_bytes() for f in files)
    assert (folder / "ecg").exists() and (folder / "cmr").exists() and read_echo(folder / "echo" / files[0]).frames.shape[1:] == (240, 320)
    with pytest.raises(PtaclError, match="simulate them with echo=True"): write_patients(simulate(1, 2, frames=4, size=48), tmp_path / "n", format)
    assert not (tmp_path / "n").exists()


def test_from_the_shell(tmp_path):
    run = CliRunner().invoke(app, ["simulate", "1", str(tmp_path / "c"), "--format", "echo", "--size", "48", "-p", "frames", "4"])
    assert run.exit_code == 0, run.output
    assert read_echo(tmp_path / "c" / "echo" / "sim-00001.dcm").r_peaks is not None
    run = CliRunner().invoke(app, ["simulate", "1", str(tmp_path / "d"), "-p", "echo", "true"])
    assert run.exit_code != 0 and not (tmp_path / "d").exists()


# --- privacy ------------------------------------------------------------------------------------------------------------------

def test_nothing_beside_the_sector_is_kept(clip, tmp_path):
    frames = clip["frames"].copy()
    frames[:, 2:9, 2:30] = 255  # a name in the corner of the region
    frames[:, 2:9, -30:-2] = 240
    (tmp_path / "a.dcm").write_bytes(_echo_dicom(**clip | dict(frames=frames), name="sim-00007"))
    echo = read_echo(tmp_path / "a.dcm")
    assert not echo.frames[:, 2:9, 2:30].any() and not echo.frames[:, 2:9, -30:-2].any()
    assert echo.frames.shape == frames.shape  # and what is above and below the region is cut off
    assert echo.meta["cut_from"] == (frames.shape[1] + _MARGINS[0] + _MARGINS[1], frames.shape[2] + 2 * _MARGINS[2])


def test_nobody_is_named(plain, tmp_path):
    ds, number = opened(plain), str(1_234_567)
    ds.PatientName, ds.PatientID, ds.InstitutionName = "Mustermann^Erika", number, "Klinikum"
    echo = read_echo(saved(ds, tmp_path / f"{number}.dcm"))
    said = f"{echo} {echo.meta}"
    del ds.FrameTime
    with pytest.raises(PtaclError) as e: read_echo(saved(ds, tmp_path / f"{number}.dcm"))
    for secret in ("Mustermann", number, "Klinikum"): assert secret not in f"{said} {e.value}"


# --- damage -------------------------------------------------------------------------------------------------------------------

def change(**values):
    def apply(ds):
        for name, value in values.items():
            if value is None: delattr(ds, name)
            else: setattr(ds, name, value)
    return apply


def of_region(**values): return lambda ds: change(**values)(ds.SequenceOfUltrasoundRegions[0])


def second_region(**values):
    def apply(ds):
        other = Dataset()
        other.update(ds.SequenceOfUltrasoundRegions[0])
        change(**values)(other)
        ds.SequenceOfUltrasoundRegions = Sequence([ds.SequenceOfUltrasoundRegions[0], other])
    return apply


DAMAGE = [
    (change(FrameTime=None), "does not say when its frames were taken"),
    (change(FrameTime=""), "does not say when its frames were taken"),
    (change(FrameTime="0"), "frame times that no echo has"),
    (change(FrameTime="-20"), "frame times that no echo has"),
    (change(FrameTime="4000"), "frame times that no echo has"),
    (change(FrameTimeVector=["0", "20"]), "2 frame times"),
    (change(SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1"), "a single ultrasound image"),
    (change(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "no ultrasound clip"),
    (change(NumberOfFrames=1), "a clip of a single frame"),
    (change(NumberOfFrames=None), "a clip of a single frame"),
    (change(NumberOfFrames=400), "cannot be read|cannot be unpacked"),
    (change(NumberOfFrames=100_000), "claims 100000 frames"),
    (change(UltrasoundColorDataPresent=1), "colour Doppler"),
    (of_region(RegionDataType=2), "colour Doppler"),
    (of_region(RegionSpatialFormat=2), "M-mode"),
    (of_region(RegionSpatialFormat=3), "spectral Doppler"),
    (of_region(RegionSpatialFormat=5), "no picture of tissue"),
    (second_region(RegionDataType=2), "colour Doppler"),
    (second_region(RegionSpatialFormat=2), "M-mode"),
    (second_region(), "2 pictures of tissue"),
    (change(SequenceOfUltrasoundRegions=None), "no ultrasound regions"),
    (change(SequenceOfUltrasoundRegions=Sequence([])), "no ultrasound regions"),
    (of_region(RegionLocationMaxX1=9999), "outside of"),
    (of_region(RegionLocationMinY0=500), "outside of"),
    (of_region(RegionLocationMinX0=None), "does not say where its picture lies"),
    (of_region(PhysicalUnitsXDirection=0), "how many centimetres"),
    (of_region(PhysicalDeltaY=None), "how many centimetres"),
    (of_region(PhysicalDeltaX=0.), "how many centimetres"),
    (change(BitsAllocated=16, BitsStored=16, HighBit=15), "another depth than 8 bits"),
    (change(PhotometricInterpretation="PALETTE COLOR"), "pixels of the kind PALETTE COLOR"),
    (change(PhotometricInterpretation="MONOCHROME1"), "pixels of the kind MONOCHROME1"),
    (change(PhotometricInterpretation="SMITH JOHN"), "pixels of no kind that is known with 1 samples"),
    (change(PixelData=None), "has no pixels"),
    (lambda ds: change(PixelData=ds.PixelData[:2000])(ds), "cannot be read|cannot be unpacked"),
    (lambda ds: change(PixelData=bytes(len(ds.PixelData)))(ds), "dark throughout"),
]


@pytest.mark.parametrize("damage, message", DAMAGE, ids=[f"{k}-{m[:24]}" for k, (_, m) in enumerate(DAMAGE)])
def test_refused_by_name(plain, damage, message, tmp_path):
    ds = opened(plain)
    damage(ds)
    with pytest.raises(PtaclError, match=message) as e: read_echo(saved(ds, tmp_path / "clip.dcm"))
    assert str(e.value).startswith("clip.dcm: ")


def test_colours_in_the_picture_are_refused(clip, tmp_path):
    ds = opened(_echo_dicom(**clip, photometric="RGB"))
    pixels = ds.pixel_array.copy()
    pixels[3, 90:110, 80:100] = 200, 30, 20  # a jet
    ds.PixelData = pixels.tobytes()
    with pytest.raises(PtaclError, match="coloured"): read_echo(saved(ds, tmp_path / "a.dcm"))
    pixels = opened(_echo_dicom(**clip, photometric="RGB")).pixel_array.copy()
    pixels[:, 4:12, 100:120] = 250, 120, 0   # the maker's sign on the screen, outside the region
    ds.PixelData = pixels.tobytes()
    assert read_echo(saved(ds, tmp_path / "b.dcm")).frames.shape == clip["frames"].shape


def test_a_still_picture_repeated_is_refused(clip, tmp_path):
    still = np.repeat(clip["frames"][:1], len(clip["frames"]), 0)
    (tmp_path / "a.dcm").write_bytes(_echo_dicom(**clip | dict(frames=still)))
    with pytest.raises(PtaclError, match="all its frames are alike"): read_echo(tmp_path / "a.dcm")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "text.dcm").write_text("no picture" * 40)
    for name, message in (("empty.dcm", "empty"), ("text.dcm", "no DICOM file"), ("none.dcm", "no such file"), (".", "is a folder")):
        with pytest.raises(PtaclError, match=message): read_echo(tmp_path / name)


@pytest.mark.parametrize("how", [dict(), dict(compression="rle"), dict(compression="jpeg")], ids=str)
def test_cut_short_or_scratched(clip, how, tmp_path):
    content, file, rng = _echo_dicom(**clip, **how), tmp_path / "a.dcm", np.random.default_rng(1)
    def outcome(data):
        file.write_bytes(data)
        try: return type(read_echo(file)).__name__
        except PtaclError as e: return str(e)
    cut = [outcome(content[:k]) for k in np.linspace(140, len(content) - 400, 12).astype(int)]
    assert all(x.startswith("a.dcm: ") for x in cut)  # whatever is missing, it is not taken for a clip
    for _ in range(40):  # nothing but a clip or a refusal
        scratched = bytearray(content)
        for at in rng.integers(132, 1800, 3): scratched[at] = rng.integers(256)
        assert outcome(bytes(scratched))


def test_what_cannot_be_written_is_refused(clip):
    for how, message in ((dict(frames=clip["frames"][:1]), "with F times"), (dict(frames=clip["frames"].astype(float)), "bytes"),
                         (dict(frames=clip["frames"][:, 1:]), "must be even"), (dict(photometric="HSV"), "no way"),
                         (dict(photometric="YBR_FULL_422", compression="rle"), "RLE packs no")):
        with pytest.raises(PtaclError, match=message): _echo_dicom(**clip | how)
