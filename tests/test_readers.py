"""Readers on real files, on every trap of their formats, on properties and on broken input."""
import io
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from makers import (ID, SAX, acdc, dicom_ecg, enhanced, image, moving, muse, nifti, packed, record, saved, scan, strip, ukb_zip,
                    voltages)
from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.core.privacy import mask_ids
from ptacl.data.dicom import read_cine
from ptacl.data.ecg_files import read_ecg
from ptacl.data.standard_leads import lead_name, make_ecg, _twelve_leads
from ptacl.data.xml_exports import _parse_samples

REAL = Path(__file__).parents[2] / "shared" / "real"
need_wfdb = pytest.mark.skipif(not (REAL / "ecg_wfdb").exists(), reason="no real WFDB records in ../shared/real")
need_cmr = pytest.mark.skipif(not (REAL / "cmr_sax").exists(), reason="no real CMR stack in ../shared/real")


@pytest.fixture(scope="module")
def dicom():
    file = get_testdata_file("waveform_ecg.dcm", download=False)
    if file is None: pytest.skip("this pydicom ships no waveform_ecg.dcm")
    return Path(file)


def written(tmp_path, content, name=f"{ID}_20205_2_0.xml"):
    file = tmp_path / name
    file.write_bytes(content)
    return file


# real files

def test_pydicom_ecg(dicom):
    ecg = read_ecg(dicom)
    group = pydicom.dcmread(dicom).WaveformSequence[0]
    stored = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12)
    assert ecg.signal.shape == (12, 10_000) and ecg.signal.dtype == np.float32 and ecg.fs == 1000
    np.testing.assert_allclose(ecg.signal, stored.T * 1.25e-3, atol=1e-6)  # stored in our order, 1.25 µV
    marks = [527, 1526, 2507, 3489, 4485, 5468, 6442, 7444, 8417, 9370]  # without 501, the median beat
    np.testing.assert_allclose(ecg.r_peaks, (np.array(marks) - 1) / 1000)


@pytest.mark.parametrize("kept", [("I", "II"), ("aVR", "aVL"), ("III", "aVF"), ("II", "aVL", "aVF")])
def test_derived_limb_leads_are_those_the_device_recorded(dicom, kept):
    signal = read_ecg(dicom).signal
    few = {lead: signal[LEADS.index(lead)] for lead in (*kept, *LEADS[6:])}
    assert np.abs(_twelve_leads(few)[0] - signal).max() < 0.006  # a few counts of 1.25 µV


def test_no_word_about_the_person(dicom):
    ds = pydicom.dcmread(dicom)
    said = str(read_ecg(dicom).meta) + repr(read_ecg(dicom))
    for word in (ds.PatientID, ds.PatientBirthDate, ds.StudyDate, ds.InstitutionName, ds.Manufacturer, ds.AccessionNumber):
        assert word and str(word) not in said


@pytest.mark.parametrize("name, samples", [("A0001", 7500), ("A0002", 5000), ("A0003", 5000), ("A0004", 5974), ("A0005", 12_500)])
@need_wfdb
def test_real_wfdb(name, samples):
    ecg = read_ecg(REAL / "ecg_wfdb" / f"{name}.hea")
    assert ecg.signal.shape == (12, samples) and ecg.fs == 500 and ecg.r_peaks is None
    np.testing.assert_array_equal(ecg.signal, read_ecg(REAL / "ecg_wfdb" / f"{name}.mat").signal)
    stored = np.frombuffer((REAL / "ecg_wfdb" / f"{name}.mat").read_bytes()[24:], "<i2").reshape(-1, 12)
    np.testing.assert_allclose(ecg.signal, stored.T / 1000, atol=1e-6)
    i, ii, iii = ecg.signal[:3]
    assert np.abs(i + iii - ii).max() < 0.005


def test_real_cardiology_xml(tmp_path):
    package = pytest.importorskip("ecgprocess", reason="ecgprocess, which ships a real CardiologyXML, is not installed: not for Python 3.14")
    file = Path(package.__file__).parent / "example_data" / "example_datasets" / "example-XML1.xml"
    ecg = read_ecg(shutil.copy(file, tmp_path / f"{ID}_20205_2_0.xml"))
    assert ecg.signal.shape == (12, 5000) and ecg.fs == 500 and ecg.meta["resolution_uv"] == 5
    np.testing.assert_allclose(ecg.signal[0, :3] * 200, [-4, -2, -2], atol=1e-4)  # the strip; the median beat starts 6, 6, 6
    np.testing.assert_allclose(ecg.signal[0, -1] * 200, -30, atol=1e-4)
    i, ii, iii = ecg.signal[:3]
    assert np.median(np.abs(i + iii - ii)) < 0.02


@pytest.mark.parametrize("name, lsb", [("example-DICOM1.dcm", 4.88), ("example-DICOM2.dcm", 5)])
def test_real_dicom_of_other_makers(name, lsb):
    package = pytest.importorskip("ecgprocess", reason="ecgprocess, which ships real DICOM ECGs, is not installed: not for Python 3.14")
    ecg = read_ecg(Path(package.__file__).parent / "example_data" / "example_datasets" / name)
    assert ecg.signal.shape == (12, 5000) and ecg.r_peaks is None
    assert ecg.meta["resolution_uv"] == pytest.approx(lsb)


@pytest.mark.parametrize("moment, volume", [("ED", 174), ("ES", 64)])
@need_cmr
def test_real_cine_and_labels(moment, volume):
    folder = REAL / "cmr_sax"
    cine = read_cine(folder / f"sa_{moment}.nii.gz", labels=folder / f"label_sa_{moment}.nii.gz", still=True)
    assert cine.frames.shape == cine.labels.shape == (1, 9, 256, 216) and cine.phase is None
    assert cine.spacing == pytest.approx((10, 175 / 128, 175 / 128))
    assert (cine.labels == 1).sum() * np.prod(cine.spacing) / 1000 == pytest.approx(volume, abs=1)  # ml of LV blood
    assert cine.frames[cine.labels == 1].mean() > 1.5 * cine.frames[cine.labels == 2].mean()  # labels lie on their image


# CardiologyXML and its traps

@pytest.mark.parametrize("inside", [None, "Strip"])
def test_strip_and_nothing_else(tmp_path, inside):
    x = voltages()
    ecg = read_ecg(written(tmp_path, strip(x, inside=inside)))
    np.testing.assert_allclose(ecg.signal, x, atol=2.51e-3)


def test_mixed_case_and_order(tmp_path):
    x, order = voltages(), np.random.default_rng(1).permutation(12)
    names = [(str.lower, str.upper, str)[k % 3](LEADS[k]) for k in order]
    np.testing.assert_allclose(read_ecg(written(tmp_path, strip(x[order], leads=names))).signal, x, atol=2.51e-3)


def test_empty_fields(tmp_path):
    x = voltages()
    ints = lambda x: np.rint(x / .005).astype(int).astype(str)
    stray = strip(x, text=lambda x: ", ,".join(ints(x)) + ",")
    np.testing.assert_allclose(read_ecg(written(tmp_path, stray)).signal, x, atol=2.51e-3)
    gap = strip(x, text=lambda x: ",".join([*ints(x)[:100], " ", *ints(x)[101:]]))
    ecg = read_ecg(written(tmp_path, gap))
    assert ecg.meta["missing_samples"] == 12
    np.testing.assert_allclose(np.delete(ecg.signal, 100, 1), np.delete(x, 100, 1), atol=2.51e-3)
    np.testing.assert_allclose(ecg.signal[:, 100], ecg.signal[:, [99, 101]].mean(1), atol=1e-5)
    hole = strip(x, text=lambda x: ",".join([*ints(x)[:100], *[" "] * 50, *ints(x)[150:]]))
    with pytest.raises(PtaclError, match="more than 1 % of the samples are missing"): read_ecg(written(tmp_path, hole))


@pytest.mark.parametrize("change, why", [
    (lambda x: strip(x, resolution=""), "no unit"),
    (lambda x: strip(x, resolution='<Resolution units="mVperLsb">5</Resolution>'), "no unit"),
    (lambda x: strip(x, resolution='<Resolution units="uVperLsb">0</Resolution>'), "none of an ECG"),
    (lambda x: strip(x, resolution='<Resolution units="uVperLsb">500</Resolution>'), "unit or gain"),
    (lambda x: strip(x, count=700), "600 samples in a lead, expected 700"),
    (lambda x: strip(x[:11]), "lead V6 missing"),
    (lambda x: strip(x[[0, *range(6, 12)]], leads=["I", *LEADS[6:]]), "leads II, III, aVR, aVL, aVF missing"),
    (lambda x: strip(x[[0, *range(12)]], leads=["I", *LEADS]), "lead I occurs more than once"),
    (lambda x: strip(x).replace(b"<StripData>", b"<Other>").replace(b"</StripData>", b"</Other>"), "no StripData"),
    (lambda x: strip(x).replace(b'"Hz">500<', b'"Hz">0<'), "sampling rate"),
    (lambda x: strip(x, text=lambda x: ",".join(["1.5"] * len(x))), "not a whole number"),
    (lambda x: strip(x)[:-4000], "breaks off in line .* cut short"),
    (lambda x: b"", "empty"),
    (lambda x: b"hello", "no format"),
])
def test_refused_with_reason_and_without_id(tmp_path, change, why):
    scaled = voltages() * 20
    with pytest.raises(PtaclError, match=why) as e: read_ecg(written(tmp_path, change(scaled)))
    assert ID not in str(e.value) and str(tmp_path) not in str(e.value) and e.value.__suppress_context__


# DICOM and its traps

@pytest.fixture
def changed(dicom, tmp_path):
    def change(edit):
        ds = pydicom.dcmread(dicom)
        edit(ds)
        ds.save_as(tmp_path / f"{ID}.dcm")
        return tmp_path / f"{ID}.dcm"
    return change


def each_channel(**tags):
    def edit(ds):
        for channel in ds.WaveformSequence[0].ChannelDefinitionSequence:
            for tag, value in tags.items():
                if value is None: delattr(channel, tag)
                else: setattr(channel, tag, value)
    return edit


def test_correction_factor_and_baseline(dicom, changed):
    plain = read_ecg(dicom).signal
    doubled = read_ecg(changed(each_channel(ChannelSensitivityCorrectionFactor="2"))).signal
    np.testing.assert_allclose(doubled, 2 * plain, atol=1e-5)
    raised = read_ecg(changed(each_channel(ChannelBaseline="100"))).signal  # µV
    np.testing.assert_allclose(raised, plain + 0.1, atol=1e-5)


@pytest.mark.parametrize("tags", [dict(ChannelSampleSkew="3"), dict(ChannelTimeSkew="0.003")])
def test_channels_that_were_sampled_later(dicom, changed, tags):
    plain = read_ecg(dicom).signal
    late = read_ecg(changed(each_channel(**tags))).signal  # at 1000 Hz
    np.testing.assert_allclose(late[:, 3:], plain[:, :-3], atol=1e-4)


def test_channels_by_code_or_label(dicom, changed):
    def no_meaning(ds):
        for c in ds.WaveformSequence[0].ChannelDefinitionSequence: c.ChannelSourceSequence[0].CodeMeaning = "?"
    def only_label(ds):
        for c, lead in zip(ds.WaveformSequence[0].ChannelDefinitionSequence, LEADS):
            c.ChannelSourceSequence[0].CodeMeaning, c.ChannelSourceSequence[0].CodeValue, c.ChannelLabel = "?", "x", lead.lower()
    for edit in (no_meaning, only_label):
        np.testing.assert_array_equal(read_ecg(changed(edit)).signal, read_ecg(dicom).signal)


def test_rhythm_strip_wherever_it_stands(dicom, changed):
    def swap(ds): ds.WaveformSequence = pydicom.Sequence(list(ds.WaveformSequence)[::-1])
    np.testing.assert_array_equal(read_ecg(changed(swap)).signal, read_ecg(dicom).signal)


def test_fiducials_too_close_are_not_trusted(changed):
    def forget_trigger(ds): del ds.WaveformSequence[1].TriggerSamplePosition
    assert read_ecg(changed(forget_trigger)).r_peaks is None  # 501 and 527 cannot both be beats


def in_pressure(ds):
    ds.WaveformSequence[0].ChannelDefinitionSequence[3].ChannelSensitivityUnitsSequence[0].CodeValue = "mmHg"


@pytest.mark.parametrize("edit, why", [
    (each_channel(ChannelSensitivity=None), "no sensitivity"),
    (each_channel(ChannelSensitivity="12500"), "unit or gain"),
    (in_pressure, "unknown unit"),
    (lambda ds: setattr(ds.WaveformSequence[0], "WaveformOriginality", "DERIVED"), "no original waveform"),
    (lambda ds: setattr(ds.WaveformSequence[0], "NumberOfWaveformSamples", 2_000_000_000), "lasts 33333 min"),
    (lambda ds: setattr(ds.WaveformSequence[0], "NumberOfWaveformSamples", 200_000), "shorter than the .* bytes .*cut short"),
    (lambda ds: delattr(ds, "WaveformSequence"), "no waveform in it"),
])
def test_dicom_refused(changed, edit, why):
    with pytest.raises(PtaclError, match=why) as e: read_ecg(changed(edit))
    assert ID not in str(e.value)


def test_dicom_cut_short(dicom, tmp_path):
    with pytest.raises(PtaclError): read_ecg(written(tmp_path, dicom.read_bytes()[:50_000], "x.dcm"))


# WFDB and its traps

def test_wfdb_orders_cases_and_units(tmp_path):
    x = voltages()
    mimic = [*LEADS[:4], "aVF", "aVL", *LEADS[6:]]
    order = [LEADS.index(n) for n in mimic]
    np.testing.assert_allclose(read_ecg(record(tmp_path, mimic, x[order])).signal, x, atol=1e-3)
    np.testing.assert_allclose(read_ecg(record(tmp_path, [n.lower() for n in LEADS], x * 1000, "uV")).signal, x, atol=1e-3)


def test_wfdb_gain_of_its_own(tmp_path):
    header = record(tmp_path, LEADS, voltages())
    text = header.read_text()
    for gain in ("0", "0(0)/mV"):
        lines = [line.split() for line in text.splitlines()]
        header.write_text("\n".join([" ".join(lines[0])] + [" ".join([*c[:2], gain, *c[3:]]) for c in lines[1:]]))
        with pytest.raises(PtaclError, match="not calibrated"): read_ecg(header)
    header.write_text("\n".join([" ".join(lines[0])] + [" ".join(c[:2]) for c in lines[1:]]))
    with pytest.raises(PtaclError, match="not calibrated"): read_ecg(header)


def test_wfdb_broken(tmp_path):
    header = record(tmp_path, LEADS, voltages())
    data = header.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(PtaclError, match="promises 600 samples of each signal, and its first signal file has room for 41"): read_ecg(header)
    data.unlink()
    with pytest.raises(PtaclError, match="signal file 1 of its header is missing"): read_ecg(header)
    with pytest.raises(PtaclError, match="unknown unit"): read_ecg(record(tmp_path, LEADS, voltages(), "degC"))


# NIfTI and its traps

def nifti_file(tmp_path, data, zooms, units=("mm", "sec"), name="sa.nii.gz"):
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_xyzt_units(*units)
    image.header.set_zooms(zooms)
    nib.save(image, tmp_path / name)
    return tmp_path / name


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 9))
def test_axes(tmp_path_factory, shape, seed):
    data = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    cine = read_cine(nifti_file(tmp_path_factory.mktemp("axes"), data, (1.5, 1.25, 8, 0.03)), still=True)
    x, y, z, t = (seed % n for n in shape)
    assert cine.frames.shape == shape[::-1] and cine.frames[t, z, y, x] == data[x, y, z, t]
    assert cine.spacing == (8, 1.25, 1.5)
    assert (cine.phase is None) == (shape[3] == 1) and (cine.phase is None or cine.phase[0] == 0)


def test_units_and_scale(tmp_path):
    data = np.full((4, 4, 1, 20), 7, np.int16)
    cine = read_cine(nifti_file(tmp_path, data, (0.0018, 0.0018, 0.01, 40), ("meter", "msec")))
    assert cine.spacing == pytest.approx((10, 1.8, 1.8)) and cine.meta["frame_interval_s"] == pytest.approx(0.04)
    cine = read_cine(nifti_file(tmp_path, data, (1.8, 1.8, 10, 1), ("unknown", "unknown")))
    assert cine.meta["frame_interval_s"] is None  # 20 s are no heartbeat
    image = nib.Nifti1Image(data, np.diag([2, 2, 10, 1]))
    image.header.set_slope_inter(2, 5)
    nib.save(image, tmp_path / "scaled.nii")
    assert (read_cine(tmp_path / "scaled.nii").frames == np.asarray(nib.load(tmp_path / "scaled.nii").dataobj)[0, 0, 0, 0]).all()


@pytest.mark.parametrize("data, zooms, why", [
    (np.zeros((4, 4), np.uint8), (1, 1), "2 axes"),
    (np.zeros((4, 4, 2, 2, 2), np.uint8), (1,) * 5, r"5 axes \(4×4×2×2×2\), expected \(x, y, z, t\). Save it with four"),
    (np.zeros((4, 4, 2, 2), np.uint8), (50, 50, 10, 1), "none of a cardiac cine"),
    (np.zeros((4, 4, 2, 2), np.uint8), (0, 1, 10, 1), "pixdim 0"),
    (np.full((4, 4, 2, 2), np.nan, np.float32), (1, 1, 10, 1), "finite"),
    (np.zeros((4, 4, 2, 2), np.complex64), (1, 1, 10, 1), "no real numbers"),
])
def test_nifti_refused(tmp_path, data, zooms, why):
    with pytest.raises(PtaclError, match=why): read_cine(nifti_file(tmp_path, data, zooms, name=f"{ID}.nii.gz"))


def test_nifti_claims_and_cuts(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (40, 40, 2, 9), dtype=np.uint8)
    file = nifti_file(tmp_path, data, (1, 1, 8, 0.1), name="x.nii")
    whole = bytearray(file.read_bytes())
    file.write_bytes(whole[:5000])
    with pytest.raises(PtaclError, match="cut short"): read_cine(file)
    whole[42:50] = np.array([30_000] * 4, "<i2").tobytes()  # dim[1] to dim[4]: 8e17 voxels
    file.write_bytes(whole)
    with pytest.raises(PtaclError, match="claims"): read_cine(file)
    with pytest.raises(PtaclError, match="no format of a cine"): read_cine(written(tmp_path, b"x", "cine.avi"))


# real images that packages ship

def test_images_that_are_no_cine():
    for name in ("MR_small.dcm", "CT_small.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "liver_1frame.dcm", "rtdose.dcm", "image_dfl.dcm",
                 "MR_truncated.dcm", "reportsi.dcm", "no_meta.dcm", "693_J2KI.dcm"):
        file = get_testdata_file(name, download=False)
        with pytest.raises(PtaclError): read_cine(file)


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm", "MR_small_bigendian.dcm",
                                  "MR_small_padded.dcm"])
def test_real_image_in_every_transfer_syntax(name, tmp_path):
    source = pydicom.dcmread(get_testdata_file(name, download=False))
    for f in range(4):  # a cine of which each frame is the same picture
        source.TriggerTime, source.InstanceNumber, source.SOPInstanceUID = 50 * f, f + 1, f"1.2.{f}"
        source.save_as(tmp_path / f"{f}.dcm")
    cine = read_cine(tmp_path)
    expected = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False)).pixel_array
    np.testing.assert_array_equal(cine.frames, np.broadcast_to(expected, (4, 1, 64, 64)))


def test_nifti_that_nibabel_ships():
    cine = read_cine(Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz")
    assert cine.frames.shape == (2, 24, 96, 128) and cine.spacing == pytest.approx((2.2, 2.0, 2.0), abs=0.01)
    np.testing.assert_array_equal(cine.frames.T, nib.load(Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz").get_fdata())


# CardiologyXML: strip, and what is like it

def test_neither_median_beat_nor_full_disclosure(tmp_path):
    x = voltages()
    for inside in (None, "Strip"):
        ecg = read_ecg(written(tmp_path, strip(x, inside=inside)))
        assert ecg.signal.shape == (12, 600) and ecg.signal.max() < 4  # the decoys are 5 mV throughout
    for gone in ("RestingECGMeasurements", "FullDisclosure"):
        only = strip(x).replace(b"<StripData>", f"<{gone}><StripData>".encode()).replace(b"</StripData>", f"</StripData></{gone}>".encode())
        with pytest.raises(PtaclError, match="no StripData where it belongs"): read_ecg(written(tmp_path, only))


def test_latin_letters_and_offsets(tmp_path):
    x = voltages() + np.linspace(-0.5, 0.5, 12)[:, None]  # a shift of its own for each lead
    content = strip(x)
    assert b"\xe4" in content
    np.testing.assert_allclose(read_ecg(written(tmp_path, content)).signal, x, atol=2.51e-3)
    for encoding in ("utf-8", "utf-16"):
        other = content.decode("latin-1").replace("ISO-8859-1", encoding).encode(encoding)
        np.testing.assert_allclose(read_ecg(written(tmp_path, other)).signal, x, atol=2.51e-3)


def test_limb_leads_of_xml_are_derived(tmp_path):
    x = voltages()
    names = ["aVF", "aVL", *LEADS[6:]]
    ecg = read_ecg(written(tmp_path, strip(x[[LEADS.index(n) for n in names]], leads=names)))
    assert ecg.meta["derived_leads"] == ("I", "II", "III", "aVR")
    np.testing.assert_allclose(ecg.signal, x, atol=0.01)


# MUSE and its traps

def test_muse(tmp_path):
    x = voltages()
    for options in (dict(), dict(kinds=("Rhythm", "Median")), dict(leads=LEADS), dict(leads=(*LEADS[6:], "II", "I")),
                    dict(step=0.00488, unit="MILLIVOLTS"), dict(base=5, exponent=2), dict(base=5000, exponent=-1)):
        content = muse(x, **options)
        ecg = read_ecg(written(tmp_path, content))
        np.testing.assert_allclose(ecg.signal, x, atol=0.008)  # one and a half counts in a derived lead
        np.testing.assert_allclose(ecg.signal[6:], x[6:], atol=2.45e-3)
        assert ecg.fs == 500 and ecg.r_peaks is None and ecg.meta["format"] == "MUSE XML"


@pytest.mark.parametrize("content, why", [
    (muse(voltages(), kinds=("Median",)), "only an averaged beat"),
    (muse(voltages(), unit="COUNTS"), "no unit"),
    (muse(voltages()).replace(b"<LeadAmplitudeUnitsPerBit>4.88", b"<LeadAmplitudeUnitsPerBit>"), "no number in its LeadAmplitudeUnitsPerBit"),
    (muse(voltages(), count=5000), "600 samples in a lead, expected 5000"),
    (muse(voltages(), leads=("I", *LEADS[6:])), "leads II, III, aVR, aVL, aVF missing"),
    (muse(voltages(), leads=("I", "II", *LEADS[6:11])), "lead V6 missing"),
    (muse(voltages(), base=0), "sampling rate"),
    (muse(voltages(), start=2500), "begin at different times"),
    (muse(voltages()).replace(b"<LeadSampleSize>2", b"<LeadSampleSize>4"), "samples of 4 bytes"),
    (muse(voltages()).replace(b"MICROVOLTS", b"MILLIVOLTS"), "unit or gain"),
    (muse(voltages()).replace(b"<WaveFormData>\n", b"<WaveFormData>\n!"), "damaged"),
])
def test_muse_refused(tmp_path, content, why):
    with pytest.raises(PtaclError, match=why) as e: read_ecg(written(tmp_path, content))
    assert ID not in str(e.value)


# DICOM ECG of a maker's own

def test_dicom_units_and_correction(tmp_path):
    x = voltages()
    small = [n.lower() for n in LEADS]
    for options in (dict(), dict(sensitivity=0.005, unit="mV"), dict(sensitivity=10, correction=0.5), dict(fs=1000), dict(leads=small)):
        ecg = read_ecg(written(tmp_path, dicom_ecg(x, **options), "x.dcm"))
        np.testing.assert_allclose(ecg.signal, x, atol=2.51e-3)
        assert ecg.fs == options.get("fs", 500)
    eight = [0, 1, *range(6, 12)]
    ecg = read_ecg(written(tmp_path, dicom_ecg(x[eight], leads=[LEADS[i] for i in eight]), "x.dcm"))
    np.testing.assert_allclose(ecg.signal, x, atol=0.008)


# WFDB layouts

def test_ptbxl_layout(tmp_path):
    x = voltages(5000)
    header = record(tmp_path, ["I", "II", "III", "AVR", "AVL", "AVF", *LEADS[6:]], x, name="00001_hr")
    for path in (header, header.with_suffix(".dat"), header.with_suffix("")):
        np.testing.assert_allclose(read_ecg(path).signal, x, atol=1e-3)


def test_mimic_layout(tmp_path):
    x, n = voltages(5000), LEADS.index
    order = [0, 1, 2, 3, n("aVF"), n("aVL"), *range(6, 12)]
    holed = x.copy()
    holed[4, 100:110] = np.nan
    ecg = read_ecg(record(tmp_path, [LEADS[i] for i in order], holed[order]))
    assert ecg.meta["missing_samples"] == 10
    np.testing.assert_allclose(np.delete(ecg.signal, range(100, 110), 1), np.delete(x, range(100, 110), 1), atol=1e-3)


def test_ptb_layout_with_frank_leads(tmp_path):
    x = voltages()
    names = [*(n.lower() for n in LEADS), "vx", "vy", "vz"]
    np.testing.assert_allclose(read_ecg(record(tmp_path, names, np.concatenate([x, 9 + x[:3]]), fs=1000)).signal, x, atol=1e-3)


def test_a_lead_that_two_others_give(tmp_path):
    x = voltages()
    names = ["II", "III", *LEADS[6:]]
    ecg = read_ecg(record(tmp_path, names, x[[LEADS.index(n) for n in names]]))
    np.testing.assert_allclose(ecg.signal, x, atol=5e-3)
    with pytest.raises(PtaclError, match="leads I, III, aVR, aVL, aVF missing"):
        read_ecg(record(tmp_path, names[:1] + names[2:], x[[1, *range(6, 12)]]))


# short-axis zips of UK Biobank and their traps

def read_zip(tmp_path, data, name=f"{ID}_20209_2_0.zip"):
    return read_cine(written(tmp_path, data, name))


@pytest.mark.parametrize("manifest", ["manifest.csv", "manifest.cvs", "MANIFEST.CSV", None])
@pytest.mark.parametrize("date", ["2015-08-30", "Aug 30, 2015", "Aug  3, 2015", '"Aug 30, 2015"', "30, 08, 2015"])
def test_manifests(tmp_path, manifest, date):
    cine = moving()
    files = scan(cine, step=-10)  # positions run the other way: the names count
    nameless = [(series, data.replace(b"CINE_segmented_SAX", b"no_name_to_go_by_x")) for series, data in files]
    if manifest is None or date == "30, 08, 2015": nameless = files  # the header's name is the second chance
    read = read_zip(tmp_path, ukb_zip(nameless, manifest, date))
    np.testing.assert_array_equal(read.frames, cine)
    assert read.spacing == (10, 2, 1.5) and list(read.phase) == [f / 6 for f in range(6)]
    assert read.meta["frame_interval_s"] is None  # six frames of 20 ms are no heartbeat
    assert ID not in repr(read.meta)


@pytest.mark.parametrize("column", ["series discription", "series description", " Series Discription "])
def test_manifest_columns(tmp_path, column):
    cine = moving()
    wrong = [(series, data.replace(b"CINE_segmented_SAX", b"no_name_to_go_by_x")) for series, data in scan(cine, step=-10)]
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(wrong, column=column)).frames, cine)


def test_tenth_slice_comes_after_the_ninth(tmp_path):
    cine = moving(4, 12)
    turned = scan(cine, step=-10)  # positions run the other way: the names count
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(turned)).frames, cine)
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(turned, manifest=None)).frames, cine)


@pytest.mark.parametrize("other", [SAX + "_InlineVF", "CINE_segmented_SAX_b_InlineVF", "InlineVF_SAX_b{}", "CINE_segmented_LAX_2Ch", SAX + "s"])
def test_series_that_are_not_the_cine(tmp_path, other):
    cine = moving()
    files = scan(cine) + scan(0 * cine, other, uid="1.2.3.9")
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(files)).frames, cine)


def test_mixed_series_is_split_by_position(tmp_path):
    cine = moving(4, 11)
    for orientation in ((1, 0, 0, 0, 1, 0), (0.8, 0.6, 0, 0, 0, -1)):
        read = read_zip(tmp_path, ukb_zip(scan(cine, "CINE_segmented_SAX", uid="1.2", orientation=orientation)))
        np.testing.assert_array_equal(read.frames, cine)
        assert read.spacing == (10, 2, 1.5)
        assert read.meta["slice_positions_mm"] == pytest.approx(np.arange(11) * 10)


@pytest.mark.parametrize("older, newer", [("1.2.3.1", "1.2.3.2"), ("1.2.3.9", "1.2.3.10"), ("1.2.3", f"1.2.{'9' * 5000}")])
@pytest.mark.parametrize("names", [SAX, "CINE_segmented_SAX", "cine sa"])
def test_slice_taken_again(tmp_path, older, newer, names):
    cine = moving()
    first = scan(cine[::-1], names, uid=older, keep=lambda f, z: z == 1)
    read = read_zip(tmp_path, ukb_zip(first + scan(cine, names, uid=newer)))
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["slices_taken_again"] == 1
    read = read_zip(tmp_path, ukb_zip(scan(cine, names, uid=older) + scan(0 * cine, names, uid=newer, keep=lambda f, z: f < 2)))
    np.testing.assert_array_equal(read.frames, cine)  # the later one was broken off


def test_frames_by_trigger_time(tmp_path):
    cine = moving(25, 2)
    read = read_zip(tmp_path, ukb_zip(scan(cine)))  # instance numbers run the other way
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["frame_interval_s"] == pytest.approx(0.02)
    assert read_zip(tmp_path, ukb_zip(scan(cine, time=lambda f, z: 0.02 * f))).meta["frame_interval_s"] is None  # seconds, against the rule
    timeless = [(s, saved_with(d, TriggerTime=None)) for s, d in scan(cine)]
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(timeless)).frames, cine[::-1])  # then they are what there is


def saved_with(data, **tags):
    ds = pydicom.dcmread(io.BytesIO(data))
    for key, value in tags.items():
        if value is not None: setattr(ds, key, value)
        elif key in ds: delattr(ds, key)
    return saved(ds)


@pytest.mark.parametrize("start", [0, 37.5])
@pytest.mark.parametrize("gone, like", [([7], {7: 6}), ([0], {0: 1}), ([24], {24: 23}), ([3, 4, 20], {3: 2, 4: 2, 20: 19}),
                                        ([0, 24], {0: 1, 24: 23})])
def test_missing_frames(tmp_path, gone, like, start):
    cine = moving(25, 2, 4, 4)
    def time(f, z): return round(19.6 * (1.3 if z else 1) * f + start)  # whole milliseconds; the slice with the gap had another heart rate
    read = read_zip(tmp_path, ukb_zip(scan(cine, time=time, keep=lambda f, z: z != 1 or f not in gone)))
    for f, other in like.items(): cine[f, 1] = cine[other, 1]
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["missing_frames"] == tuple((1, f) for f in gone)


def test_too_many_frames_missing_or_there(tmp_path):
    cine = moving(10, 3)
    with pytest.raises(PtaclError, match="slice 2 has 7 frames of 10"): read_zip(tmp_path, ukb_zip(scan(cine, keep=lambda f, z: z != 1 or f > 2)))
    with pytest.raises(PtaclError, match="slice 1 has 10 frames of 5"): read_zip(tmp_path, ukb_zip(scan(cine, CardiacNumberOfImages=5)))
    with pytest.raises(PtaclError, match="one frame in each slice"): read_zip(tmp_path, ukb_zip(scan(cine[:1])))
    counted = read_zip(tmp_path, ukb_zip(scan(cine, CardiacNumberOfImages=12)))  # no frame is made up
    np.testing.assert_array_equal(counted.frames, cine)
    assert counted.meta["missing_frames"] == () and "has 10 evenly spaced frames, and its headers count 12" in counted.meta["warnings"][0]
    files = scan(cine)
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(files + files[:4])).frames, cine)  # the same files twice
    for count in (0, None):
        files = [(s, saved_with(d, CardiacNumberOfImages=count)) for s, d in scan(cine, keep=lambda f, z: (f, z) != (5, 1))]
        read = read_zip(tmp_path, ukb_zip(files))
        assert read.frames.shape[0] == 10 and read.meta["missing_frames"] == ((1, 5),)


@pytest.mark.parametrize("names", [*(f"CINE_segmented_LAX_{n}Ch" for n in (2, 3, 4)), "CINE_segmented_LAX", "cine_4ch", "tf2d 2 chamber"])
def test_long_axis(tmp_path, names):
    files = scan(moving(6, 1), names)
    for data in (ukb_zip(files), ukb_zip(files, manifest=None)):
        with pytest.raises(PtaclError, match="#######_20208_2_0.zip: holds the long axis"): read_zip(tmp_path, data, f"{ID}_20208_2_0.zip")
        with pytest.raises(PtaclError, match="the long axis .* zip of field 20209"): read_zip(tmp_path, data, "x.zip")
    nameless = [("x", saved_with(d, SeriesDescription=None)) for _, d in files]
    with pytest.raises(PtaclError, match="holds the long axis"): read_zip(tmp_path, ukb_zip(nameless, None), f"{ID}_20208_2_0.zip")


@pytest.mark.parametrize("files, why", [
    ([], "no DICOM image of a cine"),
    (scan(moving(), SAX + "_InlineVF"), "only the scanner's own contours"),
    (scan(moving(), PixelSpacing=[0.01, 0.01]), "none of a cardiac cine"),
    (scan(moving(), PixelSpacing=None), "none of a cardiac cine"),
    (scan(moving(), PhotometricInterpretation="PALETTE COLOR"), "no grey images"),
    (scan(moving()) + scan(moving(6, 3, 5, 5), "CINE_segmented_SAX_b9"), "differ in size"),
    (scan(moving(), "x", ImagePositionPatient=None), "slices cannot be told apart"),
    (scan(moving(4, 1), "a") + scan(moving(4, 1), "b", orientation=(1, 0, 0, 0, 0, -1)), "2 views of 1 slices"),
    (scan(moving(), PixelData=b"12"), "damaged"),
])
def test_zip_refused(tmp_path, files, why):
    with pytest.raises(PtaclError, match=why) as e: read_zip(tmp_path, ukb_zip(files))
    assert ID not in str(e.value) and "Some" not in str(e.value)


# plain folders and files of DICOM images

def folder_of(tmp_path, files, flat=False):
    for k, (series, data) in enumerate(files):
        folder = tmp_path / "study" / ("" if flat else series.replace(" ", "_"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IM{k:04d}").write_bytes(data)
    return tmp_path / "study"


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("names, uid", [("cine sa {}", "1.2"), ("cine", "1.2"), ("", "1.2")])
def test_plain_folder(tmp_path, flat, names, uid):
    cine = moving(5, 4)
    plane = dict(SeriesInstanceUID="1.9", ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    scouts = [("scout", image(moving()[0, 0], "scout", ImagePositionPatient=[x, 0, 0], **plane)) for x in range(0, 200, 20)]
    four = scan(moving(5, 1), "cine_LAX_4Ch", orientation=(0, 1, 0, 0, 0, 1))
    folder = folder_of(tmp_path, scan(cine, names) + scouts + four, flat)
    (folder / "notes.txt").write_text(ID)
    read = read_cine(folder)
    np.testing.assert_array_equal(read.frames, cine)
    assert read.spacing == (10, 2, 1.5)


def test_one_series_for_all_slices(tmp_path):
    cine = moving(5, 4)
    read = read_cine(folder_of(tmp_path, scan(cine, "sa", SeriesInstanceUID="1.2.3")))
    np.testing.assert_array_equal(read.frames, cine)


def test_unzipped_folder_with_its_manifest(tmp_path):
    cine = moving()
    nameless = [(s, d.replace(b"CINE_segmented_SAX", b"no_name_to_go_by_x")) for s, d in scan(cine, step=-10)]
    with zipfile.ZipFile(io.BytesIO(ukb_zip(nameless, "manifest.cvs"))) as archive: archive.extractall(tmp_path / "x")
    np.testing.assert_array_equal(read_cine(tmp_path / "x").frames, cine)


def test_single_slice_and_its_thickness(tmp_path):
    cine = moving(8, 1)
    assert read_zip(tmp_path, ukb_zip(scan(cine))).spacing == (8, 2, 1.5)
    assert read_zip(tmp_path, ukb_zip(scan(cine, SpacingBetweenSlices=10))).spacing == (10, 2, 1.5)


def test_rescaled_pixels(tmp_path):
    cine = moving()
    files = scan(cine, RescaleSlope=2, RescaleIntercept=-5, RescaleType="US")
    np.testing.assert_array_equal(read_zip(tmp_path, ukb_zip(files)).frames, cine * 2.0 - 5)


@pytest.mark.parametrize("F, Z", [(7, 1), (7, 3), (26, 20)])  # the last: more frames in one file than any slice has
def test_enhanced_multi_frame(tmp_path, F, Z):
    cine = moving(F, Z, 4, 4)
    file = written(tmp_path, enhanced(cine), "x.dcm")
    read = read_cine(file)
    np.testing.assert_array_equal(read.frames, cine)
    assert read.spacing == ((8 if Z == 1 else 10), 2, 1.5)
    np.testing.assert_array_equal(read_cine(tmp_path).frames, cine)
    np.testing.assert_array_equal(read_zip(tmp_path, packed([("a", enhanced(cine))])).frames, cine)


def test_multi_frame_for_each_slice(tmp_path):
    cine = moving(7, 3)
    files = [(f"{z}", image(cine[:, z], "sa", NumberOfFrames=7, FrameTime=45, ImagePositionPatient=[0, 0, 10 * z])) for z in (2, 0, 1)]
    read = read_zip(tmp_path, packed(files))
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["frame_interval_s"] == pytest.approx(0.045)


def test_labels_for_dicom(tmp_path):
    cine = moving()
    labels = written(tmp_path, nifti((cine % 4).astype(np.uint8)), "label.nii")
    file = written(tmp_path, ukb_zip(scan(cine)), "x.zip")
    np.testing.assert_array_equal(read_cine(file, labels=labels).labels, cine % 4)


# NIfTI folders and ACDC

@pytest.mark.parametrize("name", ["label_sa.nii.gz", "seg_sa.nii.gz", "label_sa.nii", None])
def test_ukbb_cardiac_folder(tmp_path, name):
    cine = moving()
    labels = (cine % 4).astype(np.uint8)
    nib.save(nib.Nifti1Image.from_bytes(nifti(cine)), tmp_path / "sa.nii.gz")
    if name: nib.save(nib.Nifti1Image.from_bytes(nifti(labels)), tmp_path / name)
    read = read_cine(tmp_path)
    np.testing.assert_array_equal(read.frames, cine)
    assert read.labels is None if name is None else (read.labels == labels).all()


def test_other_folder_of_nifti(tmp_path):
    (tmp_path / "sa_ED.nii").write_bytes(nifti(moving()[0]))
    with pytest.raises(PtaclError, match="give the file that is meant"): read_cine(tmp_path)


@pytest.mark.parametrize("F", [12, 35])
@pytest.mark.parametrize("ed, es", [(1, 10), (4, 12), (12, 5)])
def test_acdc(tmp_path, F, ed, es):
    cine, theirs = moving(F), np.random.default_rng(1).integers(0, 4, (F, 3, 9, 8), dtype=np.uint8)
    read = read_cine(acdc(tmp_path / "patient001", cine, theirs, ed, es))
    np.testing.assert_array_equal(read.frames, np.roll(cine, 1 - ed, axis=0))
    np.testing.assert_array_equal(read.frames[0], cine[ed - 1])
    ours = np.array([0, 3, 2, 1])[theirs]
    np.testing.assert_array_equal(read.labels[0], ours[ed - 1])
    np.testing.assert_array_equal(read.labels[(es - ed) % F], ours[es - 1])
    assert read.meta["es_frame"] == (es - ed) % F and read.meta["labelled_frames"] == (0, (es - ed) % F)
    assert not read.labels[[f for f in range(F) if f not in read.meta["labelled_frames"]]].any()
    assert not {"Height", "Weight", "Group"} & set(read.meta)


@pytest.mark.parametrize("edit, why", [
    (lambda f: f.joinpath("Info.cfg").write_text("ED: 0\nES: 3\n"), "none of frames 1 to 6"),
    (lambda f: f.joinpath("Info.cfg").write_text("ED: 1\nES: 7\n"), "none of frames 1 to 6"),
    (lambda f: f.joinpath("Info.cfg").write_text("ED: 1\n"), "no line"),
    (lambda f: f.joinpath("Info.cfg").write_text("ED: 1\nES: 3\nNbFrame: 30\n"), "tells of 30 frames, the cine has 6"),
    (lambda f: f.joinpath("patient001_4d.nii").unlink(), "0 files"),
    (lambda f: f.joinpath("patient001_frame01_gt.nii").write_bytes(nifti(moving()[0])), "labels other than"),
    (lambda f: f.joinpath("patient001_frame01_gt.nii").write_bytes(nifti(moving(1, 2)[0])), "do not fit"),
])
def test_acdc_refused(tmp_path, edit, why):
    folder = acdc(tmp_path / "patient001", moving(), np.zeros((6, 3, 9, 8), np.uint8))
    edit(folder)
    with pytest.raises(PtaclError, match=why): read_cine(folder)


def test_acdc_takes_no_other_labels(tmp_path):
    folder = acdc(tmp_path / "patient001", moving(), np.zeros((6, 3, 9, 8), np.uint8), ed=3)
    (tmp_path / "labels.nii").write_bytes(nifti(np.zeros((6, 3, 9, 8), np.uint8)))
    with pytest.raises(PtaclError, match="brings its own segmentations: leave labels out"): read_cine(folder, labels=tmp_path / "labels.nii")


def placed(cine, flipped=(), oblique=True) -> bytes:
    "A NIfTI of (F, Z, H, W) in an oblique plane, some of its axes (0: rows, 1: columns) stored the other way round."
    across, down = np.array([-0.8, -0.5, -0.33]), np.array([0.35, -0.83, 0.42])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = 1.8 * across, 1.8 * down, 10 * np.cross(across, down)
    for k in flipped: affine[:3, 1 - k] *= -1
    picture = nib.Nifti1Image(np.ascontiguousarray(np.flip(cine, [2 + k for k in flipped]).T), None)
    picture.header.set_xyzt_units("mm", "sec")
    picture.header.set_zooms((1.8, 1.8, 10, 0.1)[:cine.ndim])
    if oblique: picture.set_sform(affine, code=1, update_affine=False)
    return picture.to_bytes()


@pytest.mark.parametrize("flipped", [(), (0,), (1,), (0, 1)])
def test_a_nifti_stored_from_below_is_the_same_film(tmp_path, flipped):
    cine, labels = moving(), (moving() % 4).astype(np.uint8)
    (tmp_path / "a.nii").write_bytes(placed(cine, flipped))
    (tmp_path / "labels.nii").write_bytes(placed(labels, flipped))
    read = read_cine(tmp_path / "a.nii", labels=tmp_path / "labels.nii")
    np.testing.assert_array_equal(read.frames, cine)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.meta["flipped"] == flipped
    (tmp_path / "placeless.nii").write_bytes(placed(np.flip(labels, [2 + k for k in flipped]), oblique=False))  # as its picture
    np.testing.assert_array_equal(read_cine(tmp_path / "a.nii", labels=tmp_path / "placeless.nii").labels, labels)


def test_a_nifti_without_a_place_stays_as_it_is(tmp_path):
    (tmp_path / "a.nii").write_bytes(placed(moving(), (0,), oblique=False))
    np.testing.assert_array_equal(read_cine(tmp_path / "a.nii").frames, np.flip(moving(), 2))


def test_acdc_without_segmentation(tmp_path):
    folder = acdc(tmp_path / "patient101", moving(), np.zeros((6, 3, 9, 8), np.uint8), ed=2, name="patient101")
    for f in folder.glob("*_gt*"): f.unlink()
    read = read_cine(folder)
    assert read.labels is None and read.meta["labelled_frames"] == ()
    np.testing.assert_array_equal(read.frames[0], moving()[1])


# properties

@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(LEADS[:6]), min_size=2, max_size=6, unique=True), st.integers(0, 1000))
def test_any_two_limb_leads_give_the_others(limbs, seed):
    x = dict(zip(LEADS, voltages(50, seed)))
    signal, derived = _twelve_leads({lead: x[lead] for lead in (*limbs, *LEADS[6:])})
    np.testing.assert_allclose(signal, np.stack(list(x.values())), atol=1e-5)
    assert set(derived) == set(LEADS[:6]) - set(limbs)


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50),
       st.sampled_from([",", ", ", ",\r\n\t\t", " ,\n"]), st.booleans())
def test_samples_come_back(numbers, separator, comma):
    np.testing.assert_array_equal(_parse_samples(separator.join(map(str, numbers)) + "," * comma, len(numbers)), numbers)


@given(st.text(max_size=12))
def test_lead_names_never_fail(text):
    assert lead_name(text) in (None, *LEADS)


@given(st.text("ab_-./ 0123456789", max_size=40))
def test_masked_text_holds_no_seven_digits(text):
    runs = "".join(c if c.isdigit() else " " for c in mask_ids(text)).split()
    assert all(len(r) != 7 for r in runs)


def test_make_ecg_leaves_other_channels_out():
    x = voltages()
    ecg = make_ecg([*zip(LEADS, x), ("resp", np.full(600, 1e9)), ("V7", x[0])], 500)
    np.testing.assert_allclose(ecg.signal, x, atol=1e-6)
