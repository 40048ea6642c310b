"""The kit through the interfaces of other libraries: scikit-learn, MNE, wfdb, pydicom, braindecode."""
import io
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
import wfdb
from makers import ID, dicom_ecg, record
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ptacl import read_ecg
from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS, workshop
from ptacl.data.ecg_external import OpenECG, Samples
from ptacl.inference.embedding import ECGFeatures, embed
from ptacl.inference.estimator import ECGEmbedder, _small_model
from ptacl.nets.joint import PTACL
from ptacl.nets.weights import save_weights
from ptacl.simulate.patients import simulate

tiny = replace(workshop, width=16, heads=2, proj_dim=8)


@pytest.fixture(scope="module")
def signals(): return simulate(6, seed=3, cine=False).ecg.numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return str(save_weights(PTACL(tiny), tmp_path_factory.mktemp("run") / "model"))


# scikit-learn's own checks

NO_ECG = "its data are rows of a few numbers, and fit refuses what is no ECG"
NARROW = """check_fit_score_takes_y check_estimators_overwrite_params check_estimators_fit_returns_self check_readonly_memmap_input
    check_n_features_in_after_fitting check_positive_only_tag_during_fit check_estimators_dtypes check_dtype_object check_pipeline_consistency
    check_estimators_pickle check_f_contiguous_array_estimator check_transformer_data_not_an_array check_transformer_general
    check_methods_sample_order_invariance check_methods_subset_invariance check_fit2d_1sample check_fit2d_1feature check_dict_unchanged
    check_fit_idempotent check_fit_check_is_fitted check_n_features_in check_fit2d_predict1d check_dont_overwrite_attributes
    check_dont_overwrite_parameters check_dataframe_column_names_consistency check_transformer_get_feature_names_out
    check_transformer_get_feature_names_out_pandas check_set_output_transform check_set_output_transform_pandas
    check_global_output_transform_pandas check_set_output_transform_polars check_global_set_output_transform_polars""".split()


@parametrize_with_checks([ECGEmbedder()], expected_failed_checks=lambda _: dict.fromkeys(NARROW, NO_ECG))
def test_checks_on_data_that_are_no_ecgs(estimator, check): check(estimator)


class Widened(ECGEmbedder):
    "The estimator with the checks' few numbers turned into ECGs; everything else is its own."
    def _rows(self, x):
        base = simulate(1, 0, cine=False).ecg[0].numpy()
        sizes = 1 + 0.5 * np.tanh(np.nan_to_num(np.asarray(x, float)).reshape(len(x), -1) @ np.linspace(1, 0.5, x[0].size))
        return [OpenECG(Samples(base * size, self.fs), f"row {k}") for k, size in enumerate(sizes)]


@parametrize_with_checks([Widened()])
def test_checks_on_ecgs(estimator, check): check(estimator)


# scikit-learn's own ways

def test_pipeline_search_and_scores(signals, saved):
    y = signals[:, 1].std(1)
    pipe = make_pipeline(ECGEmbedder(saved), StandardScaler(), Ridge())
    assert np.isfinite(cross_val_score(pipe, signals, y, cv=3, scoring="r2", error_score="raise")).all()
    settings = {"ecgembedder__projected": [False, True], "ridge__alpha": [1.0, 10.0]}
    search = GridSearchCV(pipe, settings, cv=2, scoring="neg_mean_squared_error", error_score="raise")
    assert search.fit(signals, y).best_params_["ridge__alpha"] in (1.0, 10.0)


def test_cross_val_score_in_processes_sends_the_path(signals, saved):
    pipe = make_pipeline(ECGEmbedder(saved), LogisticRegression())
    scores = cross_val_score(pipe, signals, [0, 1] * 3, cv=2, n_jobs=2, error_score="raise")
    assert scores.shape == (2,)


def test_arrays_flat_arrays_files_objects_and_frames_agree(signals, saved, tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom_ecg(signals[0]))
    header = record(tmp_path, LEADS, signals[1], name="b")
    things = [tmp_path / "a.dcm", wfdb.rdrecord(str(header.with_suffix("")))]
    one = ECGEmbedder(saved).fit(signals[:2])
    assert one.n_features_in_ == 12
    expected = one.transform(signals[:2])
    def got(X): return ECGEmbedder(saved).fit_transform(X)
    np.testing.assert_allclose(got(signals[:2].reshape(2, -1)), expected, atol=1e-5)
    np.testing.assert_allclose(got(pd.DataFrame(signals[:2].reshape(2, -1))), expected, atol=1e-5)
    for listing in (things, pd.Series(things), np.array(things, object), [str(things[0]), things[1]], [read_ecg(t) for t in things]):
        np.testing.assert_allclose(got(listing), expected, atol=2e-3)  # 5 µV of the file
    np.testing.assert_allclose(ECGEmbedder(saved, unit="uV").fit_transform(1000 * signals[:2]), expected, atol=1e-4)
    back = list(reversed(LEADS))
    np.testing.assert_allclose(ECGEmbedder(saved, leads=tuple(back)).fit_transform(signals[:2, ::-1]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="not in the usual order"): ECGEmbedder(saved).fit_transform(signals[:2, ::-1])
    table = ECGEmbedder(saved, projected=True).set_output(transform="pandas").fit_transform(signals[:2])
    assert list(table) == [f"e{k:03d}" for k in range(8)]


def test_it_says_what_embed_says(signals, saved, tmp_path):
    from ptacl import from_pretrained
    module = ECGFeatures(from_pretrained(saved))
    things = {"one": Samples(signals[0], 500), "two": Samples(signals[1], 500)}
    done = embed(things, module, tmp_path / "e.parquet", workers=1, own_names=True, exact=True)
    table = pd.read_parquet(done.path)
    assert list(table.index) == ["one", "two"]
    np.testing.assert_allclose(ECGEmbedder(saved).fit_transform(signals[:2]), table, atol=1e-6)


def test_what_should_not_be_read(signals, saved):
    bad = signals[:3].copy(); bad[1, 6:] = 0
    with pytest.raises(ValueError, match=r"1 of 3 recordings refused; row 1: .*V1.*refused='nan'"): ECGEmbedder(saved).fit_transform(bad)
    x = ECGEmbedder(saved, refused="nan").fit_transform(bad)
    assert np.isnan(x).all(1).tolist() == [False, True, False]
    assert np.isfinite(make_pipeline(ECGEmbedder(saved, refused="nan"), SimpleImputer()).fit_transform(bad)).all()
    all_bad = ECGEmbedder(saved, refused="nan").fit_transform(bad[[1]])
    assert all_bad.shape == (1, 16) and np.isnan(all_bad).all()
    with pytest.raises(ValueError, match="refused is 'raise' or 'nan'"): ECGEmbedder(saved, refused="drop").fit(signals)


def test_pickles_hold_a_path(signals, saved, tmp_path):
    fitted = ECGEmbedder(saved).fit(signals[:2])
    stored = pickle.dumps(fitted)
    again = pickle.loads(stored)
    assert len(stored) < 2000 and again.model == saved and not hasattr(again, "_encoder")
    np.testing.assert_array_equal(again.transform(signals[:2]), fitted.transform(signals[:2]))
    assert not hasattr(clone(fitted), "weights_")
    held = ECGEmbedder(PTACL(tiny)).fit(signals[:2])
    assert clone(held).fit_transform(signals[:2]).shape == (2, 16)
    with pytest.raises(ValueError, match="not pickled"): pickle.dumps(held)


# objects of other libraries

def test_embed_takes_objects_beside_files_and_names_nobody(signals, saved, tmp_path):
    module = ECGFeatures(PTACL(tiny).eval())
    header = record(tmp_path, LEADS, signals[0], name=ID)
    opened = wfdb.rdrecord(str(header.with_suffix("")))
    dataset = pydicom.dcmread(io.BytesIO(dicom_ecg(signals[1])))
    dataset.PatientName, dataset.PatientID = "Doe^Jane", ID
    done = embed([opened, dataset, Samples(signals[2] * 0, 500)], module, tmp_path / "e.csv", workers=1)
    text = "".join(f.read_text() for f in tmp_path.glob("e*.csv"))
    assert list(pd.read_csv(done.path).recording) == ["ecg-00001", "ecg-00002"] and list(done.refused.recording) == ["ecg-00003"]
    assert ID not in text and "Doe" not in text
    alone = embed(opened, module, tmp_path / "one.csv", workers=1)
    assert alone.rows == 1
    key = tmp_path / "key"
    named = embed({ID: opened, "sim-00001": dataset}, module, tmp_path / "n.csv", workers=1, key=key)
    names = list(pd.read_csv(named.path).recording)
    assert names[0].startswith("p-") and names[1] == "sim-00001"


def test_objects_go_to_worker_processes(signals, tmp_path):
    module = ECGFeatures(PTACL(tiny).eval())
    things = [wfdb.Record(p_signal=x.T, fs=500, sig_name=list(LEADS), units=["mV"] * 12) for x in signals[:3]]
    one, two = (pd.read_parquet(embed(things, module, tmp_path / f"{w}.parquet", workers=w, exact=True).path) for w in (1, 2))
    pd.testing.assert_frame_equal(one, two, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"physical": False}, {"smooth_frames": False}, {"physical": False, "smooth_frames": False}])
@pytest.mark.parametrize("units", ["mV", "uV"])
def test_a_wfdb_record_says_what_its_file_says(signals, tmp_path, options, units):
    names = [lead.lower() for lead in reversed(LEADS)]
    header = record(tmp_path, names, signals[0][::-1] * (1 if units == "mV" else 1000), units)
    ours, theirs = read_ecg(wfdb.rdrecord(str(header.with_suffix("")), **options)), read_ecg(header)
    np.testing.assert_array_equal(ours.signal, theirs.signal)
    assert ours.fs == theirs.fs and ours.meta | {"r_peaks_from": None} == theirs.meta  # marks lie beside a file


def test_records_that_are_no_ecg(signals):
    def made(x=signals[0], fs=500, names=LEADS, units=None):
        return wfdb.Record(p_signal=x.T, fs=fs, sig_name=list(names), units=units or ["mV"] * len(x))
    for thing, words in ((made(names=[f"x{k}" for k in range(12)]), "none of its signals is a lead"), (made(units=["furlong"] * 12), "unknown unit"),
                         (made(signals[0][:7], names=LEADS[:7]), "V2, V3"), (made(fs=3), "sampling rate"), (wfdb.Record(fs=500), "holds no signals"),
                         (pydicom.Dataset(), "no waveform"), (Samples(signals[0], 500, "furlong"), "unknown unit")):
        with pytest.raises(PtaclError, match=words): read_ecg(thing)


def test_a_dataset_made_in_memory_needs_no_file(signals):
    dataset = pydicom.dcmread(io.BytesIO(dicom_ecg(signals[0], sensitivity=2.5)))
    np.testing.assert_allclose(read_ecg(dataset).signal, signals[0], atol=2e-3)
    plain = pydicom.Dataset()
    plain.WaveformSequence = dataset.WaveformSequence
    np.testing.assert_allclose(read_ecg(plain).signal, signals[0], atol=2e-3)


@pytest.fixture
def raw_of(signals):
    mne = pytest.importorskip("mne")
    def make(names=LEADS, kind="ecg", fs=500):
        return mne.io.RawArray(signals[0] / 1000, mne.create_info(list(names), fs, kind), verbose="error")
    return make


@pytest.mark.parametrize("kind", ["ecg", "eeg", "bio"])
def test_a_raw_of_mne_is_in_volts(raw_of, signals, kind):
    ecg = read_ecg(raw_of([f"ECG {lead}" for lead in LEADS], kind))
    np.testing.assert_allclose(ecg.signal, signals[0], atol=1e-5)
    assert ecg.fs == 500 and ecg.meta["format"] == "MNE"


def test_what_mne_excludes_stays_excluded(raw_of, signals):
    annotations = pytest.importorskip("mne").Annotations
    raw = raw_of()
    raw.info["bads"] = ["III"]
    assert read_ecg(raw).meta["derived_leads"] == ("III",)
    raw.info["bads"] = ["V3"]
    with pytest.raises(PtaclError, match="lead V3 missing"): read_ecg(raw)
    raw.info["bads"] = []
    raw.set_annotations(annotations([1], [0.05], ["BAD_cough"]))
    assert read_ecg(raw).meta["missing_samples"] > 0
    raw.set_annotations(annotations([1], [0.5], ["BAD_cough"]))
    with pytest.raises(PtaclError, match="more than 1 % of the samples are missing"): read_ecg(raw)
    with pytest.raises(PtaclError, match="not in volts"): read_ecg(raw_of(kind="misc"))
    with pytest.raises(PtaclError, match="none of its channels"): read_ecg(raw_of([f"EEG{k:03d}" for k in range(12)]))


def test_mne_from_a_file_and_braindecode_sets(raw_of, signals, saved, tmp_path):
    mne = pytest.importorskip("mne")
    raw_of().save(tmp_path / "x_raw.fif", verbose="error")
    raw = mne.io.read_raw_fif(tmp_path / "x_raw.fif", verbose="error")  # not loaded
    assert not raw.preload
    expected = ECGEmbedder(saved).fit_transform(signals[:1])
    np.testing.assert_allclose(ECGEmbedder(saved).fit_transform([raw]), expected, atol=1e-3)
    sets = SimpleNamespace(datasets=[SimpleNamespace(raw=raw, description={"subject": ID}), SimpleNamespace(raw=raw)])
    done = embed(sets, ECGFeatures(PTACL(tiny).eval()), tmp_path / "e.csv", workers=1)
    assert list(pd.read_csv(done.path).recording) == ["ecg-00001-1", "ecg-00001-2"]
    np.testing.assert_allclose(ECGEmbedder(saved).fit_transform(sets), np.repeat(expected, 2, 0), atol=1e-3)
    assert _small_model().is_dir()
