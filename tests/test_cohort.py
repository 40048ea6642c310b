"""The cohort: there and back, broken patients, and no id anywhere."""
import importlib.util
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from ptacl.cohort import COVARIATES, FIELDS, Cohort, cardiology_xml, pseudonyms, ukb_column, write_cohort
from ptacl.errors import PtaclError
from ptacl.presets import PHENOTYPES
from ptacl.readers import read_ecg
from ptacl.virtual import SPACING, simulate

SAMPLES = Path(__file__).parents[1] / "data_samples"
IDS = [str(10**6 + 7 * k) for k in range(1, 5)]  # look like participants
STYLES = {"showcase": "{f}-{i}.0", "R": "f.{f}.{i}.0", "platform": "p{f}_i{i}"}


@pytest.fixture(scope="module")
def virtual():
    return simulate(4, seed=5, frames=6, size=48)


@pytest.fixture
def real(virtual, tmp_path):
    "The same patients under ids that look real; the table's index is put back afterwards."
    names = virtual.phenotypes.index
    virtual.phenotypes.index = virtual.covariates.index = IDS
    write_cohort(virtual, tmp_path / "cohort")
    virtual.phenotypes.index = virtual.covariates.index = names
    return tmp_path / "cohort"


def edit_table(folder, edit):
    table = pd.read_csv(folder / "phenotypes.csv", dtype=str)
    edit(table).to_csv(folder / "phenotypes.csv", index=False)


# there and back

def test_round_trip(virtual, tmp_path):
    cohort = write_cohort(virtual, tmp_path / "cohort")
    patients, quarantined = cohort.load()
    assert [p.id for p in patients] == list(virtual.phenotypes.index) == list(cohort.covariates.index) and not len(quarantined)
    for k, p in enumerate(patients):
        assert np.abs(p.ecg.signal - virtual.ecg[k].numpy()).max() <= 2.501e-3  # half a count of 5 µV
        np.testing.assert_array_equal(p.cine.frames[:, 0], virtual.cine[k].numpy())
        assert p.cine.spacing == (10, SPACING, SPACING) and p.cine.labels is None
        rate = 60 / (p.cine.meta["frame_interval_s"] * len(p.cine.frames))
        assert rate == pytest.approx(1000 * p.phenotypes.LVCO / p.phenotypes.LVSV, rel=1e-4)
    np.testing.assert_allclose(cohort.phenotypes, virtual.phenotypes[list(PHENOTYPES)], rtol=1e-5)
    assert list(cohort.covariates.sex) == list(virtual.covariates.sex)
    numbers = list(COVARIATES)[1:]
    np.testing.assert_allclose(cohort.covariates[numbers].astype(float), virtual.covariates[numbers], rtol=1e-5)


def test_same_bytes_twice(virtual, tmp_path):
    for name in "ab": write_cohort(virtual, tmp_path / name)
    files = [f.relative_to(tmp_path / "a") for f in sorted((tmp_path / "a").rglob("*")) if f.is_file()]
    assert all((tmp_path / "a" / f).read_bytes()[4:8] == bytes(4) for f in files if f.suffix == ".gz")  # no time stamp
    assert len(files) == 9 and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_the_median_beat_is_a_real_trap(virtual, tmp_path):
    content = cardiology_xml(virtual.ecg[0].numpy(), virtual.r_peaks[0].numpy())
    assert content.index(b"MedianSamples") < content.index(b"StripData") and content.count(b"<WaveformData") == 24
    (tmp_path / "x.xml").write_bytes(content.replace(b"StripData", b"MedianData"))
    with pytest.raises(PtaclError, match="no StripData"): read_ecg(tmp_path / "x.xml")


def test_beat_times_are_late_as_in_real_files(virtual):
    content = cardiology_xml(virtual.ecg[0].numpy(), virtual.r_peaks[0].numpy()).decode()
    times = np.array([int(t.split("<")[0]) for t in content.split('<Time units="ms">')[1:]])
    late = times - 1000 * virtual.r_peaks[0].numpy()[:len(times)]
    assert len(times) > 5 and (times % 5 == 0).all() and 10 < late.min() and late.max() < 20


def test_overwrite(virtual, tmp_path):
    write_cohort(virtual, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(PtaclError, match="holds a cohort already"): write_cohort(virtual, tmp_path)
    one = simulate(1, seed=6, frames=6, size=48)
    assert len(write_cohort(one, tmp_path, overwrite=True)) == 1
    assert len(list((tmp_path / "cmr").iterdir())) == len(list((tmp_path / "ecg").iterdir())) == 1
    assert (tmp_path / "README.md").exists() and not list(tmp_path.glob(".writing*"))


def test_killed_while_writing_leaves_no_cohort(virtual, tmp_path, monkeypatch):
    def fail(*args): raise KeyboardInterrupt
    monkeypatch.setattr("ptacl.cohort.phenotype_table", fail)
    with pytest.raises(KeyboardInterrupt): write_cohort(virtual, tmp_path / "cohort")
    assert not list((tmp_path / "cohort").iterdir())
    with pytest.raises(PtaclError, match="there is no phenotypes.csv"): Cohort.open(tmp_path / "cohort")


def test_only_whole_patients_are_written(tmp_path):
    with pytest.raises(PtaclError, match="simulate them with both"): write_cohort(simulate(1, seed=1, cine=False), tmp_path)


# the sample cohort

def test_data_samples_are_what_was_simulated():
    if not (SAMPLES / "phenotypes.csv").exists(): pytest.skip("no data_samples: run python data_samples/make.py")
    spec = importlib.util.spec_from_file_location("make", SAMPLES / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    cohort, start = Cohort.open(SAMPLES), 5
    assert len(cohort) == make.N == 12
    virtual = simulate(2, seed=make.SEED, frames=make.FRAMES, size=make.SIZE, start=start)
    for k in range(2):
        p = cohort[start + k]
        assert p.id == virtual.phenotypes.index[k] and p.cine.frames.shape == (make.FRAMES, 1, make.SIZE, make.SIZE)
        assert np.abs(p.ecg.signal - virtual.ecg[k].numpy()).max() <= 2.51e-3
        off = np.abs(p.cine.frames[:, 0] - virtual.cine[k].numpy())
        assert off.max() <= 1 and off.mean() < 1e-3  # another processor may round differently
        np.testing.assert_allclose(p.phenotypes, virtual.phenotypes.iloc[k], rtol=1e-4)


def test_data_samples_are_small_and_nobody():
    if not (SAMPLES / "phenotypes.csv").exists(): pytest.skip("no data_samples: run python data_samples/make.py")
    assert sum(f.stat().st_size for f in SAMPLES.rglob("*") if f.is_file()) < 10e6
    assert all(i.startswith("sim-") for i in Cohort.open(SAMPLES).phenotypes.index)


# the table

@pytest.mark.parametrize("style", STYLES)
def test_column_styles(real, style):
    before = Cohort.open(real)
    if style != "showcase":
        name = lambda c: STYLES[style].format(**dict(zip("fi", ukb_column(c)))) if ukb_column(c) else "eid"
        edit_table(real, lambda t: t.rename(columns=name).rename(columns={"p31_i0": "p31"}))
    after = Cohort.open(real)
    pd.testing.assert_frame_equal(after.phenotypes, before.phenotypes)
    pd.testing.assert_frame_equal(after.covariates, before.covariates)


def test_the_older_set_is_never_mixed_in(real):
    older = {f"{22420 + k}-2.0": "1" for k in range(8)}
    before = Cohort.open(real).phenotypes
    edit_table(real, lambda t: t.assign(**older, **{"24110-2.0": "1", "24100-3.0": "1"}))
    pd.testing.assert_frame_equal(Cohort.open(real).phenotypes, before)
    edit_table(real, lambda t: t.drop(columns=["24103-2.0", "24105-2.0"]))
    with pytest.raises(PtaclError, match=r"lacks LVEF \(24103-2.0\), LVM \(24105-2.0\)"): Cohort.open(real)


@pytest.mark.parametrize("edit, why", [
    (lambda t: t.rename(columns={"eid": "name"}), "no column eid"),
    (lambda t: pd.concat([t, t[:1]]), "row 6 has an id that occurred before"),
    (lambda t: t.assign(eid=["/etc/x", *t.eid[1:]]), "row 2 has no id"),
    (lambda t: t.assign(eid=["..", *t.eid[1:]]), "row 2 has no id"),
    (lambda t: t.assign(eid=[None, *t.eid[1:]]), "row 2 has no id"),
    (lambda t: t.assign(**{"24100-2.0": IDS}).assign(**{"24101-2.0": "high"}), "no number"),
    (lambda t: t.assign(**{"p24100_i2": "1"}), "more than one column"),
])
def test_table_refused_without_id(real, edit, why):
    edit_table(real, edit)
    with pytest.raises(PtaclError, match=why) as e: Cohort.open(real)
    assert not any(i in str(e.value) for i in IDS) and str(real) not in str(e.value)


def test_empty_cells_stay_empty(real):
    edit_table(real, lambda t: t.assign(**{"24103-2.0": [None, *t["24103-2.0"][1:]], "31-0.0": None}).drop(columns="4080-2.0"))
    cohort = Cohort.open(real)
    assert np.isnan(cohort.phenotypes.LVEF.iloc[0]) and cohort.phenotypes.LVEF.notna().sum() == 3
    assert cohort.covariates.sex.isna().all() and cohort.covariates.sbp.isna().all()
    assert len(cohort.load()[0]) == 4


def test_fields():
    assert [FIELDS[n] for n in PHENOTYPES] == [(24100 + k, 2) for k in range(10)]
    assert [ukb_column(c) for c in ("24100", "24100-2", "f.24100", "24100-2.0.1", "P24100", "")] == [None] * 6


# quarantine and privacy

def test_broken_patients_cost_nobody_else(real):
    (real / "ecg" / f"{IDS[0]}_20205_2_0.xml").unlink()
    (real / "ecg" / f"{IDS[1]}_20205_2_0.xml").write_bytes(b"")
    cine = real / "cmr" / IDS[2] / "sa.nii.gz"
    cine.write_bytes(cine.read_bytes()[:2000])
    cohort = Cohort.open(real)
    patients, quarantined = cohort.load()
    assert [p.id for p in patients] == ["p-00004"] and list(quarantined.index) == ["p-00001", "p-00002", "p-00003"]
    for reason, why in zip(quarantined.reason, ("ECG: no such file", "ECG: the file is empty", "cine: cannot be read")):
        assert reason.startswith(why)
    assert [p.id for p in cohort.load([3])[0]] == ["p-00004"]
    with pytest.raises(PtaclError, match="p-00002: ECG: the file is empty"): cohort[1]
    with pytest.raises(IndexError): cohort[4]


def test_no_id_in_anything_that_is_said(real):
    label = real / "cmr" / IDS[3] / "label_sa.nii.gz"
    label.write_bytes((real / "cmr" / IDS[3] / "sa.nii.gz").read_bytes())  # no labels: grey values
    (real / "ecg" / f"{IDS[0]}_20205_2_0.xml").write_bytes(b"<x>")
    cohort = Cohort.open(real)
    patients, quarantined = cohort.load()
    p = patients[0]
    said = [repr(x) for x in (cohort, patients, p.ecg, p.cine, p.ecg.meta, p.cine.meta, p.phenotypes, p.covariates)]
    said += [x.to_csv() for x in (cohort.phenotypes, cohort.covariates, quarantined)]
    assert len(quarantined) == 2 and "labels other than" in quarantined.reason.iloc[1]
    assert not [i for i in IDS for text in said if i in text]


def test_ids_of_another_form_are_hidden_too(real):
    (real / "ecg" / f"{IDS[0]}_20205_2_0.xml").rename(real / "ecg" / "smith-john_20205_2_0.xml")
    edit_table(real, lambda t: t.assign(eid=["smith-john", *t.eid[1:]]))
    quarantined = Cohort.open(real).load([0])[1]
    assert "smith" not in quarantined.to_csv() and list(quarantined.index) == ["p-00001"]


def test_labels_are_read(virtual, real):
    folder = real / "cmr" / IDS[0]
    image = nib.load(folder / "sa.nii.gz")
    nib.save(nib.Nifti1Image((np.asanyarray(image.dataobj) % 4).astype(np.uint8), image.affine), folder / "seg_sa.nii.gz")
    p = Cohort.open(real)[0]
    np.testing.assert_array_equal(p.cine.labels, p.cine.frames % 4)


def test_reading_is_lazy(real):
    for f in real.rglob("*"):
        if f.suffix in (".xml", ".gz"): os.truncate(f, 0)
    assert len(Cohort.open(real)) == 4


def test_pseudonyms_are_unique():
    assert pseudonyms(["sim-00002", IDS[0], "sim-" + IDS[0], "x"]) == ["sim-00002", "p-00002", "p-00003", "p-00004"]
