"""Writers: what they write is what other programs expect, the same every time, and whole or not at all."""
import base64
import csv
import importlib.util
import io
import re
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
import wfdb
from pydicom.uid import UID

from ptacl.simulate import writers
from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.data.tables import read_table
from ptacl.simulate.patients import simulate
from ptacl.simulate.cine_writers import _THICKNESS, _acdc_folder, _dicom_series, _multiframe_dicom, nifti_bytes, ukb_zip
from ptacl.simulate.ecg_writers import _WFDB_LAYOUTS, cardiology_xml, _dicom_ecg, _muse_xml, write_wfdb
from ptacl.simulate.writers import _COHORT_FORMATS, in_batches, write_patients

SAMPLES = Path(__file__).parents[1] / "data_samples"
F, Z, H, W = 6, 11, 14, 10  # all different, and more than nine slices


@pytest.fixture(scope="module")
def virtual():
    return simulate(3, seed=5, frames=6, size=48)


@pytest.fixture(scope="module")
def signal(virtual): return virtual.ecg[0].numpy()


@pytest.fixture(scope="module")
def r_peaks(virtual): return virtual.r_peaks[0].numpy()


@pytest.fixture(scope="module")
def stack():
    return np.random.default_rng(0).integers(0, 4096, (F, Z, H, W)).astype(np.uint16)


def opened(content): return pydicom.dcmread(io.BytesIO(content))


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as z: return {i.filename: z.read(i) for i in z.infolist()}


def images(content):
    return [opened(c) for name, c in unzipped(content).items() if name.endswith(".dcm")]


def tree(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# the same bytes, whenever

def test_same_bytes_at_another_time(virtual, signal, r_peaks, stack, tmp_path, monkeypatch):
    def all_of(folder):
        folder.mkdir()
        _acdc_folder(folder / "patient001", stack, stack % 4)
        for layout in _WFDB_LAYOUTS: write_wfdb(folder, f"rec-{layout}", signal, layout=layout)
        for name, content in {"a.xml": cardiology_xml(signal, r_peaks), "b.xml": _muse_xml(signal, r_peaks), "c.dcm": _dicom_ecg(signal, r_peaks),
                              "d.dcm": _multiframe_dicom(stack, 0.02), "e.gz": nifti_bytes(stack, 0.02),
                              "f.zip": ukb_zip(stack[:2], 0.02, shuffle=1, twice=(3,), inline_vf=True)}.items():
            (folder / name).write_bytes(content)
        return tree(folder)
    first = all_of(tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert all_of(tmp_path / "b") == first and len(first) == 6 + 6 + 6
    for format in _COHORT_FORMATS:
        trees = [tree(write_patients(virtual, tmp_path / name / format, format)) for name in ("c", "d")]
        assert trees[0] == trees[1] and len(trees[0]) == {"ukb": 7, "nifti": 7, "wfdb": 10}[format]


def test_patients_are_told_apart(stack):
    ids = [{opened(f.content)[k].value for f in _dicom_series(stack[:1], 0.02, name=name) for k in ("SOPInstanceUID", "StudyInstanceUID")}
           for name in ("sim-00001", "sim-00002")]
    assert not ids[0] & ids[1] and len(ids[0]) == Z + 1


# ECG

def test_cardiology_xml(signal, r_peaks):
    content = cardiology_xml(signal, r_peaks)
    root = ElementTree.fromstring(content)
    for place, n in (("RestingECGMeasurements/MedianSamples", 600), ("StripData", 5000)):
        waves = {w.get("lead"): [int(x) for x in w.text.split(",")] for w in root.findall(f"{place}/WaveformData")}
        assert tuple(waves) == LEADS and {len(x) for x in waves.values()} == {n}
    np.testing.assert_allclose(np.array(list(waves.values())) * 0.005, signal, atol=2.501e-3)
    times = np.array([int(t.text) for t in root.findall("StripData/ArrhythmiaResults/Time")])
    late = times - 1000 * r_peaks[np.isfinite(r_peaks)]
    assert len(times) > 5 and (times % 5 == 0).all() and 10 < late.min() and late.max() < 20
    assert content.index(b"MedianSamples") < content.index(b"StripData") and b"\t\t" in content and b",\n" in content


def test_muse_xml(signal, r_peaks):
    root = ElementTree.fromstring(_muse_xml(signal, r_peaks))
    kinds = {w.findtext("WaveformType"): w for w in root.findall("Waveform")}
    assert root.tag == "RestingECG" and list(kinds) == ["Median", "Rhythm"] and kinds["Rhythm"].findtext("SampleBase") == "500"
    leads = {}
    for lead in kinds["Rhythm"].findall("LeadData"):
        raw = base64.b64decode(lead.findtext("WaveFormData"))
        assert len(raw) == int(lead.findtext("LeadByteCountTotal")) == 2 * int(lead.findtext("LeadSampleCountTotal"))
        assert lead.findtext("LeadAmplitudeUnits") == "MICROVOLTS"
        leads[lead.findtext("LeadID")] = np.frombuffer(raw, "<i2") * float(lead.findtext("LeadAmplitudeUnitsPerBit")) / 1000
    assert list(leads) == ["I", "II", *LEADS[6:]]
    for lead, x in leads.items(): np.testing.assert_allclose(x, signal[LEADS.index(lead)], atol=2.4401e-3)


@pytest.mark.parametrize("layout, first, gain", [
    ("ptb-xl", ["I", "II", "III", "AVR", "AVL", "AVF", "V1"], 1000), ("mimic", ["I", "II", "III", "aVR", "aVF", "aVL", "V1"], 200),
    ("ptb", ["i", "ii", "iii", "avr", "avl", "avf", "v1"], 2000)])
def test_wfdb(signal, tmp_path, layout, first, gain):
    header = write_wfdb(tmp_path, "rec", signal, layout=layout)
    record = wfdb.rdrecord(str(header.with_suffix("")))
    assert record.sig_name[:7] == first and record.adc_gain == [gain] * 12 and record.units == ["mV"] * 12 and record.fmt == ["16"] * 12
    for name, x in zip(record.sig_name, record.p_signal.T):
        ours = [lead.lower() for lead in LEADS].index(name.lower())
        np.testing.assert_allclose(x, signal[ours], atol=0.5001 / gain)


def test_dicom_ecg(signal, r_peaks):
    ds = opened(_dicom_ecg(signal, r_peaks, sensitivity=5.0, correction=0.5))
    rhythm, median = ds.WaveformSequence
    assert (rhythm.WaveformOriginality, median.WaveformOriginality) == ("ORIGINAL", "DERIVED") and ds.Modality == "ECG"
    np.testing.assert_allclose(ds.waveform_array(0).T / 1000, signal, atol=1.2501e-3)
    assert [c.ChannelSourceSequence[0].CodeMeaning for c in rhythm.ChannelDefinitionSequence] == [f"Lead {lead}" for lead in LEADS]
    marks = [a.ReferencedSamplePositions for a in ds.WaveformAnnotationSequence if a.ReferencedWaveformChannels[0] == 1]
    np.testing.assert_allclose((np.array(marks) - 1) / 500, r_peaks[np.isfinite(r_peaks)], atol=1e-3 + 1e-6)


@pytest.mark.parametrize("write", [cardiology_xml, _muse_xml, _dicom_ecg])
@pytest.mark.parametrize("value", [np.nan, np.inf, 200.0])
def test_no_voltage_is_written_that_does_not_fit(signal, r_peaks, write, value):
    wrong = signal.copy()
    wrong[3 if write is not _muse_xml else 1, 100] = value
    with pytest.raises(PtaclError, match="16 bits"): write(wrong, r_peaks)


def test_few_beats(signal):
    for peaks in (np.array([]), np.array([np.nan]), np.array([0.1])):
        for write in (cardiology_xml, _muse_xml, _dicom_ecg): assert len(write(signal, peaks)) > 50_000


# DICOM images

def wrapper_from_data(ds):
    "nibabel's reader of DICOM, which warns that it is young."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import dicomwrappers
        return dicomwrappers.wrapper_from_data(ds)


def check_image(ds):
    "What every reader relies on, and what the standard demands of each value."
    assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID and ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
    for e in ds.iterall():
        values = e.value if isinstance(e.value, pydicom.multival.MultiValue) else [e.value]
        if e.VR == "UI": assert all(UID(v).is_valid for v in values)
        if e.VR in ("DS", "IS"): assert all(len(str(v)) <= 16 for v in values)
        if e.VR in ("SH", "CS"): assert all(len(str(v)) <= 16 for v in values)
    assert ds.pixel_array.dtype == np.uint16 and (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (16, 12, 11)


def test_series_in_other_programs(stack):
    files = _dicom_series(stack, 0.02, spacing=1.5)
    assert len(files) == F * Z
    for k, f in enumerate(files):
        ds, (z, t) = opened(f.content), divmod(k, F)
        check_image(ds)
        np.testing.assert_array_equal(ds.pixel_array, stack[t, z])
        assert ds.SeriesDescription == f.description == f"CINE_segmented_SAX_b{z + 1}" and ds.SeriesInstanceUID == f.series
        assert float(ds.TriggerTime) == pytest.approx(20 * t) and ds.CardiacNumberOfImages == F and ds.NominalInterval == 120
        assert f.name == f"{ds.SOPInstanceUID}.dcm"
    ours = [wrapper_from_data(opened(f.content)) for f in files[::F]]  # nibabel's own reader of DICOM
    assert all(w.voxel_sizes[:2] == pytest.approx((1.5, 1.5)) for w in ours)
    steps = np.diff([w.image_position for w in ours], axis=0)
    normal = -ours[0].slice_normal  # its normal points to the other side
    np.testing.assert_allclose(steps, 10 * np.broadcast_to(normal, steps.shape), atol=1e-4)
    assert np.linalg.det(ours[0].rotation_matrix) == pytest.approx(1)


def test_thickness_is_not_the_distance(stack):
    ds = opened(_dicom_series(stack, 0.02)[0].content)
    assert ds.SliceThickness == _THICKNESS == 8 and ds.SpacingBetweenSlices == 10


def test_multiframe_in_other_programs(stack):
    content = _multiframe_dicom(stack, 0.02, spacing=1.5)
    ds = opened(content)
    check_image(ds)
    assert ds.NumberOfFrames == F * Z and len(ds.PerFrameFunctionalGroupsSequence) == F * Z
    for k, g in enumerate(ds.PerFrameFunctionalGroupsSequence):
        t, z = divmod(k, Z)
        assert list(g.FrameContentSequence[0].DimensionIndexValues) == [z + 1, t + 1]
        assert g.CardiacSynchronizationSequence[0].NominalCardiacTriggerDelayTime == pytest.approx(20 * t)
        np.testing.assert_array_equal(ds.pixel_array[k], stack[t, z])
    first, second = (np.array(ds.PerFrameFunctionalGroupsSequence[k].PlanePositionSequence[0].ImagePositionPatient, float) for k in (0, 1))
    assert np.linalg.norm(second - first) == pytest.approx(10, abs=1e-4)
    theirs = wrapper_from_data(ds)  # nibabel's own reader of DICOM
    assert theirs.image_shape == (H, W, Z, F) and theirs.voxel_sizes == pytest.approx((1.5, 1.5, 10), abs=1e-4)
    np.testing.assert_array_equal(np.asarray(theirs.get_data()).transpose(3, 2, 0, 1)[:, ::-1], stack)  # which looks at it from the apex


@pytest.mark.parametrize("cine, why", [
    (np.zeros((2, 4, 4)), "whole numbers"), (np.full((2, 4, 4), 4096), "whole numbers"), (np.full((2, 4, 4), -1), "whole numbers"),
    (np.zeros((4, 4), int), "2 axes"), (np.zeros((1, 2, 3, 4, 4), int), "5 axes")])
def test_no_image_is_written_that_does_not_fit(cine, why):
    for write in (_dicom_series, _multiframe_dicom, ukb_zip):
        with pytest.raises(PtaclError, match=why): write(cine, 0.02)


# the zip and its traps

def manifest_rows(content, name="manifest.csv"):
    "As the scripts for UK Biobank read it: dates first freed from their comma."
    text = unzipped(content)[name].decode()
    fixed = re.sub(r"([A-Z]\w{2}) (\d{1,2}), 20(\d{2})", r"\2-\1-20\3", text)
    return text, list(csv.DictReader(io.StringIO(fixed)))


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.cvs"])
def test_manifest(stack, name):
    content = ukb_zip(stack, 0.02, manifest=name, name="sim-00007")
    text, rows = manifest_rows(content, name)
    lines = text.splitlines()
    assert {len(line.split(",")) for line in lines[1:]} == {len(lines[0].split(",")) + 1}  # what breaks a naive reader
    assert {row["filename"] for row in rows} | {name} == set(unzipped(content)) and len(rows) == F * Z
    for row in rows[::7]:
        ds = opened(unzipped(content)[row["filename"]])
        assert row["series discription"] == ds.SeriesDescription and row["seriesid"] == ds.SeriesInstanceUID and row["patientid"] == "sim-00007"
    assert set(unzipped(ukb_zip(stack[:1], 0.02, manifest=None))) == {f.name for f in _dicom_series(stack[:1], 0.02)}


def test_shuffle(stack):
    plain, mixed = images(ukb_zip(stack, 0.02)), images(ukb_zip(stack, 0.02, shuffle=3))
    def order(all_of, key): return [(s.SeriesDescription, float(s.TriggerTime)) for s in sorted(all_of, key=key)]
    truth = order(plain, lambda s: (s.SeriesNumber, s.TriggerTime))
    assert order(mixed, lambda s: (s.SeriesNumber, s.TriggerTime)) == truth
    for key in (lambda s: 0, lambda s: (s.SeriesNumber, s.InstanceNumber), lambda s: (s.SeriesNumber, s.SOPInstanceUID)):
        assert order(plain, key) == truth or key(plain[0]) == 0
        assert order(mixed, key) != truth


def test_twice(stack):
    mine = [s for s in images(ukb_zip(stack, 0.02, twice=(1,))) if s.SeriesDescription == "CINE_segmented_SAX_b2"]
    series = sorted({s.SeriesInstanceUID for s in mine})
    assert len(mine) == 2 * F and len(series) == 2 and series == sorted(series, key=lambda u: [int(x) for x in u.split(".")])
    for uid, truth in zip(series, (np.repeat(stack[:1, 1] // 2, F, axis=0), stack[:, 1])):
        got = [s.pixel_array for s in sorted(mine, key=lambda s: s.TriggerTime) if s.SeriesInstanceUID == uid]
        np.testing.assert_array_equal(got, truth)


def test_missing(stack):
    times = [(s.SeriesDescription[19:], round(float(s.TriggerTime) / 20)) for s in images(ukb_zip(stack, 0.02, missing=[(0, 2), (10, 5)]))]
    assert set(times) == {(f"b{z + 1}", t) for z in range(Z) for t in range(F)} - {("b1", 2), ("b11", 5)} and len(times) == F * Z - 2


def test_inline_vf(stack):
    there = images(ukb_zip(stack, 0.02, inline_vf=True))
    burnt = [s for s in there if s.SeriesDescription == "CINE_segmented_SAX_InlineVF"]
    assert len(burnt) == F * Z and len(there) == 2 * F * Z
    assert not any((s.pixel_array == stack[0, 0]).all() for s in burnt)


def test_mixed_series(stack):
    there = images(ukb_zip(stack, 0.02, series="CINE_segmented_SAX"))
    assert len({s.SeriesInstanceUID for s in there}) == 1 and {s.SeriesDescription for s in there} == {"CINE_segmented_SAX"}
    assert len({tuple(s.ImagePositionPatient) for s in there}) == Z and len(there) == F * Z


def test_long_axis(stack):
    short, long = (images(ukb_zip(stack[:, :3], 0.02, series=s))[0] for s in ("CINE_segmented_SAX_b{}", "CINE_segmented_LAX_{}Ch"))
    normals = [np.cross(*np.array(s.ImageOrientationPatient, float).reshape(2, 3)) for s in (short, long)]
    assert long.SeriesDescription == "CINE_segmented_LAX_1Ch" and abs(normals[0] @ normals[1]) < 1e-6


# NIfTI and ACDC

def test_nifti(stack, tmp_path):
    (tmp_path / "sa.nii.gz").write_bytes(nifti_bytes(stack, 0.025, 1.5))
    image = nib.load(tmp_path / "sa.nii.gz")
    assert image.shape == (W, H, Z, F) and image.header.get_zooms() == pytest.approx((1.5, 1.5, 10, 0.025)) and image.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(3, 2, 1, 0), stack)


def test_acdc(stack, tmp_path):
    labels = np.zeros((F, Z, H, W), np.uint8)
    labels[:, :, 3:9, 3:9] = 2
    for f in range(F): labels[f, :, 4:8 - (f == 4), 4:8] = 1
    labels[:, :, 3:9, :2] = 3
    folder = _acdc_folder(tmp_path / "patient007", stack, labels)
    assert dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines()) | {"ED": "1", "ES": "5", "NbFrame": "6"} == dict(
        ED="1", ES="5", Group="NOR", Height="170.0", NbFrame="6", Weight="70.0")
    def volume(name): return np.asanyarray(nib.load(folder / f"patient007_{name}.nii.gz").dataobj)
    assert volume("4d").shape == (W, H, Z, F) and nib.load(folder / "patient007_4d.nii.gz").header.get_zooms()[3] == 1
    for name, f in (("frame01", 0), ("frame05", 4)):
        np.testing.assert_array_equal(volume(name).transpose(3, 2, 1, 0)[0], stack[f])
        for theirs, ours in ((1, 3), (2, 2), (3, 1), (0, 0)):
            np.testing.assert_array_equal(volume(f"{name}_gt").transpose(3, 2, 1, 0)[0] == theirs, labels[f] == ours)
    with pytest.raises(PtaclError, match="do not fit"): _acdc_folder(tmp_path / "x", stack, labels[:2])


# whole cohorts

@pytest.mark.parametrize("format", _COHORT_FORMATS)
def test_table_beside(virtual, tmp_path, format):
    ids, phenotypes, covariates = read_table(write_patients(virtual, tmp_path / "c", format) / "phenotypes.csv")
    assert ids == list(virtual.phenotypes.index) == [f"sim-0000{k}" for k in (1, 2, 3)]
    np.testing.assert_allclose(phenotypes, virtual.phenotypes, rtol=1e-5)


@pytest.mark.parametrize("format", _COHORT_FORMATS)
def test_in_batches(tmp_path, format):
    options = dict(frames=4, size=32)
    whole = tree(write_patients(simulate(5, seed=2, **options), tmp_path / "whole", format))
    assert tree(write_patients(in_batches(5, 2, batch=2, **options), tmp_path / "parts", format, total=5)) == whole
    assert tree(write_patients(in_batches(5, 2, batch=99, **options), tmp_path / "one", format)) == whole


def test_one_batch_at_a_time(tmp_path):
    alive = []
    def batches():
        for k in range(4):
            alive.append(len(list((tmp_path / next(f.name for f in tmp_path.iterdir()) / "cohort" / "ecg").iterdir())))
            yield simulate(2, seed=1, start=2 * k, frames=4, size=32)
    write_patients(batches(), tmp_path / "c")
    assert alive == [0, 2, 4, 6]


def test_stacks_and_labels(tmp_path):
    virtual = simulate(2, seed=3, frames=4, size=32)
    virtual.cine, virtual.height = virtual.cine[:, :, None].repeat(1, 1, 3, 1, 1), None
    virtual.labels = virtual.cine % 4
    for format in _COHORT_FORMATS: write_patients(virtual, tmp_path / format, format)
    for format in ("nifti", "wfdb"):
        for name, truth in (("sa", virtual.cine), ("label_sa", virtual.labels)):
            image = nib.load(tmp_path / format / "cmr" / "sim-00002" / f"{name}.nii.gz")
            np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(3, 2, 1, 0), truth[1].numpy())
    there = images((tmp_path / "ukb" / "cmr" / "sim-00002_20209_2_0.zip").read_bytes())
    assert len(there) == 12 and len({s.SeriesInstanceUID for s in there}) == 3


def test_slices_that_were_not_planned_are_not_written(tmp_path):
    virtual = simulate(2, seed=3, frames=4, size=32)
    virtual.cine, virtual.height = virtual.cine[:, :, None].repeat(1, 1, 3, 1, 1), None
    virtual.labels, virtual.height = virtual.cine % 4, torch.tensor([[5., 4., np.nan], [5., 4., 3.]])
    for format in _COHORT_FORMATS: write_patients(virtual, tmp_path / format, format)
    for k, slices in ((1, 2), (2, 3)):
        for name in ("sa", "label_sa"):
            assert nib.load(tmp_path / "nifti" / "cmr" / f"sim-0000{k}" / f"{name}.nii.gz").shape == (32, 32, slices, 4)
        assert len(images((tmp_path / "ukb" / "cmr" / f"sim-0000{k}_20209_2_0.zip").read_bytes())) == 4 * slices


def test_lost_frames_and_other_spacings(tmp_path):
    virtual = simulate(2, seed=3, frames=4, size=32)
    virtual.phase = (virtual.lv * 0).clone()
    virtual.phase[1, 2] = np.nan
    virtual.spacing = 1.4
    write_patients(virtual, tmp_path / "c", "ukb")
    there = [images((tmp_path / "c" / "cmr" / f"sim-0000{k}_20209_2_0.zip").read_bytes()) for k in (1, 2)]
    assert [len(x) for x in there] == [4, 3] and {s.InstanceNumber for s in there[1]} == {2, 4, 8}
    assert there[0][0].PixelSpacing == [1.4, 1.4]


def test_the_truth_about_faults_lies_beside(tmp_path):
    virtual = simulate(2, seed=3, frames=4, size=32)
    for faults in (pd.DataFrame({"swap": [True, False]}, index=virtual.phenotypes.index), pd.DataFrame(index=virtual.phenotypes.index)):
        virtual.faults = faults
        write_patients(virtual, tmp_path / "c", overwrite=True)
        file = tmp_path / "c" / "faults.csv"
        assert file.exists() == bool(len(faults.columns))
        if file.exists(): pd.testing.assert_frame_equal(pd.read_csv(file, index_col="eid"), faults, check_names=False)


def test_a_repeat_visit(virtual, tmp_path):
    path = write_patients(virtual, tmp_path / "c", "ukb", instance=3)
    assert sorted(f.name for f in path.rglob("sim-00002*")) == ["sim-00002_20205_3_0.xml", "sim-00002_20209_3_0.zip"]
    np.testing.assert_allclose(read_table(path / "phenotypes.csv", instance=3)[1], virtual.phenotypes, rtol=1e-5)
    with pytest.raises(PtaclError, match="lacks"): read_table(path / "phenotypes.csv")


def test_a_folder_that_is_there(virtual, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(PtaclError, match="not empty"): write_patients(virtual, tmp_path)
    with pytest.raises(PtaclError, match="is a file"): write_patients(virtual, tmp_path / "README.md")
    (tmp_path / "empty").mkdir()
    write_patients(virtual, tmp_path / "empty")
    one = simulate(1, seed=6, frames=6, size=48)
    write_patients(virtual, tmp_path, overwrite=True)
    write_patients(one, tmp_path, "wfdb", overwrite=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["README.md", "cmr", "ecg", "empty", "phenotypes.csv"]
    assert sorted(f.name for f in (tmp_path / "ecg").iterdir()) == ["sim-00001.dat", "sim-00001.hea"] and len(list((tmp_path / "cmr").iterdir())) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_stopped_half_way(virtual, tmp_path, monkeypatch, stop):
    write_patients(virtual, tmp_path / "old")
    before, old = tree(tmp_path / "old"), writers.nifti_bytes
    def fail(cine, *args):
        if (cine == virtual.cine[1].numpy()).all(): raise stop
        return old(cine, *args)
    monkeypatch.setattr(writers, "nifti_bytes", fail)
    for name in ("old", "new"):
        with pytest.raises(stop): write_patients(virtual, tmp_path / name, overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["old"] and tree(tmp_path / "old") == before


def test_refusals(virtual, tmp_path):
    for patients in (simulate(1, seed=1, cine=False), simulate(1, seed=1, ecg=False, frames=4, size=32)):
        with pytest.raises(PtaclError, match="simulate them with both"): write_patients(patients, tmp_path / "c")
    with pytest.raises(PtaclError, match="choose one of ukb, nifti, wfdb"): write_patients(virtual, tmp_path / "c", "cohort")
    with pytest.raises(PtaclError, match="no patients"): write_patients([], tmp_path / "c")
    with pytest.raises(PtaclError, match="at least 1"): list(in_batches(0, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(PtaclError, match="cannot be written"): write_patients(virtual, tmp_path / "file" / "c")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_no_person_in_any_file(virtual, tmp_path):
    for format in _COHORT_FORMATS: write_patients(virtual, tmp_path / format, format)
    names = " ".join(f.name for f in tmp_path.rglob("*"))
    assert not re.search(r"(?<!\d)[1-6]\d{6}(?!\d)", names)
    for ds in images((tmp_path / "ukb" / "cmr" / "sim-00001_20209_2_0.zip").read_bytes()):
        assert ds.PatientName == ds.PatientID == "sim-00001" and not ds.PatientBirthDate


# the sample cohort

def test_data_samples_are_written_by_this(tmp_path):
    spec = importlib.util.spec_from_file_location("make", SAMPLES / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    virtual = simulate(2, seed=make.SEED, frames=make.FRAMES, size=make.SIZE)
    for name, content in tree(write_patients(virtual, tmp_path / "c")).items():
        if name.endswith(".xml"): # another processor may round differently
            ours, theirs = ([[int(x) for x in w.text.split(",")] for w in ElementTree.fromstring(c).iter("WaveformData")]
                            for c in (content, (SAMPLES / name).read_bytes()))
            assert all(np.abs(np.subtract(a, b)).max() <= 1 for a, b in zip(ours, theirs))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "c" / "phenotypes.csv"), pd.read_csv(SAMPLES / "phenotypes.csv")[:2], rtol=1e-4)
