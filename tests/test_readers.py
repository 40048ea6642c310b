"""Readers on real files, on properties and on broken input."""
import random
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from ptacl.errors import PtaclError
from ptacl.presets import LEADS
from ptacl.readers import EINTHOVEN, lead_name, make_ecg, mask_ids, parse_samples, read_cine, read_ecg, twelve_leads

REAL = Path(__file__).parents[2] / "shared" / "real"
ID = str(10**6 + 234_567)  # looks like a participant
need_wfdb = pytest.mark.skipif(not (REAL / "ecg_wfdb").exists(), reason="no real WFDB records in ../shared/real")
need_cmr = pytest.mark.skipif(not (REAL / "cmr_sax").exists(), reason="no real CMR stack in ../shared/real")


@pytest.fixture(scope="module")
def dicom():
    file = get_testdata_file("waveform_ecg.dcm", download=False)
    if file is None: pytest.skip("this pydicom ships no waveform_ecg.dcm")
    return Path(file)


def voltages(n=600, seed=0):
    rng = np.random.default_rng(seed)
    limb = EINTHOVEN @ rng.normal(size=(2, n)).cumsum(1) * 0.02
    return np.concatenate([limb, rng.normal(size=(6, n)).cumsum(1) * 0.02])


def strip(signal, leads=LEADS, inside=None, resolution='<Resolution units="uVperLsb">5</Resolution>', count=None, text=None):
    text = text or (lambda x: "\t\t" + ",\r\n\t\t".join(map(str, np.rint(x / .005).astype(int))))
    waves = "".join(f'<WaveformData lead="{lead}">{text(x)}</WaveformData>' for lead, x in zip(leads, signal))
    head = ('<SampleRate units="Hz">500</SampleRate>'
            f"<ChannelSampleCountTotal>{count or signal.shape[1]}</ChannelSampleCountTotal>{resolution}")
    body = f"<StripData>{head}{waves}</StripData>"
    if inside: body = f"<{inside}>{body}</{inside}>"
    trap = f'<WaveformData lead="I">{",".join(["999"] * 600)}</WaveformData>'
    return (f'<?xml version="1.0" encoding="ISO-8859-1" ?><CardiologyXML><Note>\xe4rztlich</Note>'
            f"<RestingECGMeasurements><MedianSamples>{head}{trap}</MedianSamples></RestingECGMeasurements>"
            f"<FullDisclosure>{head}{trap}</FullDisclosure>{body}</CardiologyXML>").encode("iso-8859-1")


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
    assert np.abs(twelve_leads(few)[0] - signal).max() < 0.006  # a few counts of 1.25 µV


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
    package = pytest.importorskip("ecgprocess", reason="ecgprocess, which ships a real CardiologyXML, is not installed")
    file = Path(package.__file__).parent / "example_data" / "example_datasets" / "example-XML1.xml"
    ecg = read_ecg(shutil.copy(file, tmp_path / f"{ID}_20205_2_0.xml"))
    assert ecg.signal.shape == (12, 5000) and ecg.fs == 500 and ecg.meta["resolution_uv"] == 5
    np.testing.assert_allclose(ecg.signal[0, :3] * 200, [-4, -2, -2], atol=1e-4)  # the strip; the median beat starts 6, 6, 6
    np.testing.assert_allclose(ecg.signal[0, -1] * 200, -30, atol=1e-4)
    i, ii, iii = ecg.signal[:3]
    assert np.median(np.abs(i + iii - ii)) < 0.02


@pytest.mark.parametrize("name, lsb", [("example-DICOM1.dcm", 4.88), ("example-DICOM2.dcm", 5)])
def test_real_dicom_of_other_makers(name, lsb):
    package = pytest.importorskip("ecgprocess", reason="ecgprocess, which ships real DICOM ECGs, is not installed")
    ecg = read_ecg(Path(package.__file__).parent / "example_data" / "example_datasets" / name)
    assert ecg.signal.shape == (12, 5000) and ecg.r_peaks is None
    assert ecg.meta["resolution_uv"] == pytest.approx(lsb)


@pytest.mark.parametrize("moment, volume", [("ED", 174), ("ES", 64)])
@need_cmr
def test_real_cine_and_labels(moment, volume):
    folder = REAL / "cmr_sax"
    cine = read_cine(folder / f"sa_{moment}.nii.gz", labels=folder / f"label_sa_{moment}.nii.gz")
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
    (lambda x: strip(x)[:-4000], "ParseError"),
    (lambda x: b"", "empty"),
    (lambda x: b"hello", "no format"),
])
def test_refused_with_reason_and_without_id(tmp_path, change, why):
    scaled = voltages() * 20
    with pytest.raises(PtaclError, match=why) as e: read_ecg(written(tmp_path, change(scaled)))
    assert ID not in str(e.value) and str(tmp_path) not in str(e.value) and e.value.__suppress_context__


def test_entity_bomb(tmp_path):
    entities = "".join(f'<!ENTITY x{k} "{f"&x{k - 1};" * 10 if k else "ha"}">' for k in range(12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE b [{entities}]><CardiologyXML>&x11;</CardiologyXML>'.encode()
    with pytest.raises(PtaclError, match="EntitiesForbidden"): read_ecg(written(tmp_path, bomb))
    outside = b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]><CardiologyXML>&x;</CardiologyXML>'
    with pytest.raises(PtaclError, match="Forbidden"): read_ecg(written(tmp_path, outside))


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
    (lambda ds: setattr(ds.WaveformSequence[0], "NumberOfWaveformSamples", 2_000_000_000), "ValueError"),
    (lambda ds: delattr(ds, "WaveformSequence"), "no waveform in it"),
])
def test_dicom_refused(changed, edit, why):
    with pytest.raises(PtaclError, match=why) as e: read_ecg(changed(edit))
    assert ID not in str(e.value)


def test_dicom_cut_short(dicom, tmp_path):
    with pytest.raises(PtaclError): read_ecg(written(tmp_path, dicom.read_bytes()[:50_000], "x.dcm"))


# WFDB and its traps

def record(folder, names, signal, units="mV", name="rec"):
    wfdb.wrsamp(name, fs=500, units=[units] * len(names), sig_name=list(names), p_signal=np.asarray(signal).T,
                fmt=["16"] * len(names), write_dir=str(folder))
    return folder / f"{name}.hea"


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
    with pytest.raises(PtaclError): read_ecg(header)
    data.unlink()
    with pytest.raises(PtaclError, match="no such file"): read_ecg(header)
    with pytest.raises(PtaclError, match="unknown unit"): read_ecg(record(tmp_path, LEADS, voltages(), "degC"))


# NIfTI and its traps

def nifti(tmp_path, data, zooms, units=("mm", "sec"), name="sa.nii.gz"):
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_xyzt_units(*units)
    image.header.set_zooms(zooms)
    nib.save(image, tmp_path / name)
    return tmp_path / name


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 9))
def test_axes(tmp_path_factory, shape, seed):
    data = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    cine = read_cine(nifti(tmp_path_factory.mktemp("axes"), data, (1.5, 1.25, 8, 0.03)))
    x, y, z, t = (seed % n for n in shape)
    assert cine.frames.shape == shape[::-1] and cine.frames[t, z, y, x] == data[x, y, z, t]
    assert cine.spacing == (8, 1.25, 1.5)
    assert (cine.phase is None) == (shape[3] == 1) and (cine.phase is None or cine.phase[0] == 0)


def test_units_and_scale(tmp_path):
    data = np.full((4, 4, 1, 20), 7, np.int16)
    cine = read_cine(nifti(tmp_path, data, (0.0018, 0.0018, 0.01, 40), ("meter", "msec")))
    assert cine.spacing == pytest.approx((10, 1.8, 1.8)) and cine.meta["frame_interval_s"] == pytest.approx(0.04)
    cine = read_cine(nifti(tmp_path, data, (1.8, 1.8, 10, 1), ("unknown", "unknown")))
    assert cine.meta["frame_interval_s"] is None  # 20 s are no heartbeat
    image = nib.Nifti1Image(data, np.diag([2, 2, 10, 1]))
    image.header.set_slope_inter(2, 5)
    nib.save(image, tmp_path / "scaled.nii")
    assert (read_cine(tmp_path / "scaled.nii").frames == np.asarray(nib.load(tmp_path / "scaled.nii").dataobj)[0, 0, 0, 0]).all()


@pytest.mark.parametrize("data, zooms, why", [
    (np.zeros((4, 4), np.uint8), (1, 1), "2 axes"),
    (np.zeros((4, 4, 2, 2, 2), np.uint8), (1,) * 5, "5 axes"),
    (np.zeros((4, 4, 2, 2), np.uint8), (50, 50, 10, 1), "none of a cardiac cine"),
    (np.zeros((4, 4, 2, 2), np.uint8), (0, 1, 10, 1), "pixdim 0"),
    (np.full((4, 4, 2, 2), np.nan, np.float32), (1, 1, 10, 1), "finite"),
    (np.zeros((4, 4, 2, 2), np.complex64), (1, 1, 10, 1), "no real numbers"),
])
def test_nifti_refused(tmp_path, data, zooms, why):
    with pytest.raises(PtaclError, match=why): read_cine(nifti(tmp_path, data, zooms, name=f"{ID}.nii.gz"))


def test_nifti_claims_and_cuts(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (40, 40, 2, 9), dtype=np.uint8)
    file = nifti(tmp_path, data, (1, 1, 8, 0.1), name="x.nii")
    whole = bytearray(file.read_bytes())
    file.write_bytes(whole[:5000])
    with pytest.raises(PtaclError, match="cut short"): read_cine(file)
    whole[42:50] = np.array([30_000] * 4, "<i2").tobytes()  # dim[1] to dim[4]: 8e17 voxels
    file.write_bytes(whole)
    with pytest.raises(PtaclError, match="claims"): read_cine(file)
    with pytest.raises(PtaclError, match="no format of a cine"): read_cine(written(tmp_path, b"x", "cine.avi"))


# properties

@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(LEADS[:6]), min_size=2, max_size=6, unique=True), st.integers(0, 1000))
def test_any_two_limb_leads_give_the_others(limbs, seed):
    x = dict(zip(LEADS, voltages(50, seed)))
    signal, derived = twelve_leads({lead: x[lead] for lead in (*limbs, *LEADS[6:])})
    np.testing.assert_allclose(signal, np.stack(list(x.values())), atol=1e-5)
    assert set(derived) == set(LEADS[:6]) - set(limbs)


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50),
       st.sampled_from([",", ", ", ",\r\n\t\t", " ,\n"]), st.booleans())
def test_samples_come_back(numbers, separator, comma):
    np.testing.assert_array_equal(parse_samples(separator.join(map(str, numbers)) + "," * comma, len(numbers)), numbers)


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


@pytest.mark.parametrize("kind", ["xml", "dicom", "wfdb", "nifti"])
def test_any_damage_ends_in_a_value_or_a_refusal(kind, dicom, tmp_path):
    if kind == "xml": file = written(tmp_path, strip(voltages(120)))
    elif kind == "dicom": file = shutil.copy(dicom, tmp_path / "x.dcm")
    elif kind == "wfdb": file = record(tmp_path, LEADS, voltages(120))
    else: file = nifti(tmp_path, np.zeros((6, 6, 1, 4), np.uint8), (1, 1, 8, 0.1), name="x.nii")
    file, rng = Path(file), random.Random(0)
    reader, whole, refused = (read_cine if kind == "nifti" else read_ecg), file.read_bytes(), 0
    for _ in range(40 if kind == "dicom" else 100):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)): damaged[rng.randrange(min(len(damaged), 4000))] = rng.randrange(256)
        file.write_bytes(damaged[:rng.randrange(len(damaged))] if rng.random() < 0.2 else damaged)
        try: reader(file)
        except PtaclError: refused += 1
    assert refused
