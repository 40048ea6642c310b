"""There and back: virtual patients written in every format and read again. Signals within one quantum, frames in order, volumes, R-peaks."""
import io
import zipfile

import numpy as np
import pytest

from ptacl.signal.beats import detect_r_peaks
from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.data.dicom import read_cine
from ptacl.data.ecg_files import read_ecg
from ptacl.data.standard_leads import EINTHOVEN
from ptacl.core.presets import SPACING
from ptacl.simulate.patients import simulate
from ptacl.simulate.cine_writers import _acdc_folder, _dicom_series, _multiframe_dicom, nifti_bytes, ukb_zip
from ptacl.simulate.ecg_writers import cardiology_xml, _dicom_ecg, _muse_xml, write_wfdb
from ptacl.simulate.writers import write_patients

F, Z, H, W = 12, 11, 40, 36  # all different, and more than nine slices
INTERVAL = 0.075


@pytest.fixture(scope="module")
def virtual():
    return simulate(3, seed=7, frames=12, size=48)


@pytest.fixture(scope="module")
def stack():
    "Slices and moments that can all be told apart."
    rng = np.random.default_rng(0)
    return rng.integers(0, 200, (F, Z, H, W)).astype(np.uint8) // 8 + (10 * np.arange(F))[:, None, None, None].astype(np.uint8)


def saved(path, content):
    path.write_bytes(content)
    return path


# ECG

ECG_FORMATS = { # how it is written, half a count in mV
    "CardiologyXML": (lambda tmp, x, r: saved(tmp / "a.xml", cardiology_xml(x, r)), 2.5e-3),
    "MUSE XML": (lambda tmp, x, r: saved(tmp / "a.xml", _muse_xml(x, r)), 2.44e-3),
    "MUSE XML, 12 leads": (lambda tmp, x, r: saved(tmp / "a.xml", _muse_xml(x, r, leads=LEADS[::-1], microvolts=2.5)), 1.25e-3),
    "WFDB, PTB-XL": (lambda tmp, x, r: write_wfdb(tmp, "rec", x, layout="ptb-xl"), 0.5e-3),
    "WFDB, MIMIC": (lambda tmp, x, r: write_wfdb(tmp, "rec", x, layout="mimic"), 2.5e-3),
    "WFDB, PTB": (lambda tmp, x, r: write_wfdb(tmp, "rec", x, layout="ptb"), 0.25e-3),
    "WFDB, signal file": (lambda tmp, x, r: write_wfdb(tmp, "rec", x).with_suffix(".dat"), 0.5e-3),
    "DICOM": (lambda tmp, x, r: saved(tmp / "a.dcm", _dicom_ecg(x, r)), 1.25e-3),
    "DICOM, no correction": (lambda tmp, x, r: saved(tmp / "a.dcm", _dicom_ecg(x, r, sensitivity=1.25, correction=1.0)), 0.625e-3)}


@pytest.mark.parametrize("format", ECG_FORMATS)
def test_ecg(virtual, tmp_path, format):
    write, half = ECG_FORMATS[format]
    for k in range(len(virtual)):
        x, truth = virtual.ecg[k].numpy(), virtual.r_peaks[k].numpy()
        truth = truth[np.isfinite(truth)]
        ecg = read_ecg(write(tmp_path, x, virtual.r_peaks[k].numpy()))
        assert ecg.leads == LEADS and ecg.fs == 500 and ecg.signal.shape == (12, 5000) and ecg.signal.dtype == np.float32
        stored = [i for i, lead in enumerate(LEADS) if lead not in ecg.meta["derived_leads"]]
        np.testing.assert_allclose(ecg.signal[stored], x[stored], atol=1.001 * half)
        np.testing.assert_allclose(ecg.signal[:6], EINTHOVEN @ x[:2], atol=2.002 * half + np.abs(EINTHOVEN @ x[:2] - x[:6]).max())
        if ecg.r_peaks is not None: np.testing.assert_allclose(ecg.r_peaks, truth, atol=1.001e-3)
        found = detect_r_peaks(ecg.signal, ecg.fs)
        inside = truth[(truth > 0.5) & (truth < 9.5)]
        assert np.abs(found[:, None] - inside).min(axis=0).max() < 0.02


def test_the_eight_leads_of_muse_become_twelve(virtual, tmp_path):
    ecg = read_ecg(saved(tmp_path / "a.xml", _muse_xml(virtual.ecg[0].numpy(), virtual.r_peaks[0].numpy())))
    assert ecg.meta["derived_leads"] == ("III", "aVR", "aVL", "aVF")


def test_other_sampling_rates(virtual, tmp_path):
    x, r = virtual.ecg[0].numpy(), virtual.r_peaks[0].numpy()
    for fs in (250, 1000):  # the same samples, told to be slower or faster
        at = r * 500 / fs
        for path in (saved(tmp_path / "a.xml", cardiology_xml(x, at, fs)), saved(tmp_path / "b.xml", _muse_xml(x, at, fs)),
                     write_wfdb(tmp_path, "rec", x, fs), saved(tmp_path / "c.dcm", _dicom_ecg(x, at, fs))):
            ecg = read_ecg(path)
            assert ecg.fs == fs and ecg.signal.shape == (12, 5000)
            np.testing.assert_allclose(ecg.signal[1], x[1], atol=2.501e-3)


# cine

def folder_of(tmp, files):
    (tmp / "series").mkdir()
    for f in files: (tmp / "series" / f.name).write_bytes(f.content)
    return tmp / "series"


CINE_FORMATS = {
    "NIfTI": lambda tmp, x: saved(tmp / "sa.nii.gz", nifti_bytes(x, INTERVAL)),
    "UK Biobank": lambda tmp, x: saved(tmp / "x_20209_2_0.zip", ukb_zip(x, INTERVAL)),
    "manifest.cvs": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, manifest="manifest.cvs")),
    "no manifest": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, manifest=None)),
    "shuffled": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, shuffle=3)),
    "slices taken twice": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, twice=(0, 4), shuffle=4)),
    "InlineVF": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, inline_vf=True)),
    "InlineVF, no manifest": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, inline_vf=True, manifest=None)),
    "mixed series": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, series="CINE_segmented_SAX", shuffle=5)),
    "everything": lambda tmp, x: saved(tmp / "a.zip", ukb_zip(x, INTERVAL, manifest="manifest.cvs", shuffle=6, twice=(2,), inline_vf=True)),
    "DICOM folder": lambda tmp, x: folder_of(tmp, _dicom_series(x, INTERVAL, shuffle=7)),
    "DICOM folder, another series": lambda tmp, x: folder_of(tmp, _dicom_series(x, INTERVAL, series="cine_tf2d_sax", shuffle=8)),
    "multi-frame DICOM": lambda tmp, x: saved(tmp / "a.dcm", _multiframe_dicom(x, INTERVAL))}


@pytest.mark.parametrize("format", CINE_FORMATS)
@pytest.mark.parametrize("slices", [1, Z])
def test_cine(stack, tmp_path, format, slices):
    x = stack[:, :slices]
    cine = read_cine(CINE_FORMATS[format](tmp_path, x[:, 0] if slices == 1 else x))
    np.testing.assert_array_equal(cine.frames, x)
    assert cine.spacing == pytest.approx((10, SPACING, SPACING), abs=1e-3)
    np.testing.assert_allclose(cine.phase, np.arange(F) / F)
    assert cine.meta["frame_interval_s"] == pytest.approx(INTERVAL, rel=1e-3) and cine.labels is None


@pytest.mark.parametrize("missing", [[(0, 5)], [(3, 0)], [(10, 11)], [(2, 3), (2, 8), (7, 1)]])
@pytest.mark.parametrize("shuffle", [None, 1])
def test_a_missing_frame_repeats_the_one_before(stack, tmp_path, missing, shuffle):
    truth = stack.copy()
    for z, f in missing: truth[f, z] = stack[f - 1 if f else 1, z]
    cine = read_cine(saved(tmp_path / "a.zip", ukb_zip(stack, INTERVAL, missing=missing, shuffle=shuffle)))
    np.testing.assert_array_equal(cine.frames, truth)


@pytest.mark.parametrize("series", ["CINE_segmented_LAX_{}Ch", "CINE_segmented_LAX"])
def test_the_long_axis_is_refused(stack, tmp_path, series):
    with pytest.raises(PtaclError, match="long axis"): read_cine(saved(tmp_path / "a.zip", ukb_zip(stack[:, :3], INTERVAL, series=series)))


def test_no_name_leaves_a_zip(stack, tmp_path):
    name = str(10**6 + 234_567)  # looks like a participant
    content = ukb_zip(stack[:, :2], INTERVAL, name=name)
    with zipfile.ZipFile(io.BytesIO(content)) as z: assert name in z.read("manifest.csv").decode()
    cine = read_cine(saved(tmp_path / f"{name}_20209_2_0.zip", content))
    assert name not in repr(cine) + repr(cine.meta)
    with pytest.raises(PtaclError) as e: read_cine(saved(tmp_path / f"{name}_20209_2_0.zip", content[:5000]))
    assert name not in str(e.value)


# segmentations and volumes

def hearts(stack):
    "Labels whose cavity shrinks and grows: 1 LV, 2 myocardium, 3 RV."
    labels, (y, x) = np.zeros(stack.shape, np.uint8), np.indices(stack.shape[2:])
    for f in range(F):
        r = np.hypot(y - 20, x - 20)
        labels[f] = np.select([r < 9 - 3 * np.sin(np.pi * f / F), r < 12, x < 6], [1, 2, 3], 0)
    return labels


def volumes(cine):  # (F, 3) ml
    return np.stack([(cine.labels == k).sum(axis=(1, 2, 3)) for k in (1, 2, 3)], 1) * np.prod(cine.spacing) / 1000


def test_nifti_labels(stack, tmp_path):
    labels = hearts(stack)
    seg = saved(tmp_path / "label_sa.nii.gz", nifti_bytes(labels, INTERVAL))
    cine = read_cine(saved(tmp_path / "sa.nii.gz", nifti_bytes(stack, INTERVAL)), labels=seg)
    np.testing.assert_array_equal(cine.labels, labels)


def test_acdc(stack, tmp_path):
    labels = hearts(stack)
    cine = read_cine(_acdc_folder(tmp_path / "patient001", stack, labels))
    np.testing.assert_array_equal(cine.frames, stack)
    es = (labels == 1).sum(axis=(1, 2, 3)).argmin()
    for f in (0, es): np.testing.assert_array_equal(cine.labels[f], labels[f])
    ml = volumes(cine)[[0, es]]
    assert (ml[0, 0] > 1.5 * ml[1, 0]) and cine.spacing == pytest.approx((10, SPACING, SPACING))


def test_acdc_that_does_not_begin_with_end_diastole(stack, tmp_path):
    labels = hearts(stack)
    cine = read_cine(_acdc_folder(tmp_path / "patient002", np.roll(stack, 3, axis=0), np.roll(labels, 3, axis=0), ed=3))
    np.testing.assert_array_equal(cine.frames, stack)  # frame 0 is end-diastole, whatever the file's order
    np.testing.assert_array_equal(cine.labels[0], labels[0])


def test_volumes_of_a_stack_are_the_phenotypes(tmp_path):
    virtual = simulate(2, seed=11, frames=20, stack=True)
    write_patients(virtual, tmp_path / "c", "nifti")
    for name, truth in virtual.phenotypes.iterrows():
        folder = tmp_path / "c" / "cmr" / name
        ml = volumes(read_cine(folder / "sa.nii.gz", labels=folder / "label_sa.nii.gz"))
        assert [ml[0, 0], ml[0, 2]] == pytest.approx([truth.LVEDV, truth.RVEDV], rel=0.05)
        assert ml[0, 1] * 1.05 == pytest.approx(truth.LVM, rel=0.05)


# whole cohorts

@pytest.mark.parametrize("format, ecg, cine", [
    ("ukb", "ecg/{}_20205_2_0.xml", "cmr/{}_20209_2_0.zip"), ("nifti", "ecg/{}_20205_2_0.xml", "cmr/{}/sa.nii.gz"),
    ("wfdb", "ecg/{}.hea", "cmr/{}/sa.nii.gz")])
def test_cohorts(virtual, tmp_path, format, ecg, cine):
    path = write_patients(virtual, tmp_path / "c", format)
    for k, (name, truth) in enumerate(virtual.phenotypes.iterrows()):
        assert np.abs(read_ecg(path / ecg.format(name)).signal - virtual.ecg[k].numpy()).max() <= 2.501e-3
        read = read_cine(path / cine.format(name))
        np.testing.assert_array_equal(read.frames[:, 0], virtual.cine[k].numpy())
        rate = 60 / (read.meta["frame_interval_s"] * len(read.frames))
        assert rate == pytest.approx(1000 * truth.LVCO / truth.LVSV, rel=1e-3)
