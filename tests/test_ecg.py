"ECG: what denoising, normalisation and the quality verdict promise for any record."
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from ptacl.core.presets import SCOPES
from ptacl.signal.ecg import denoise, _ecg_stats, normalize, plot_ecg, preprocess_ecg, quality, wavelet_bands
from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.simulate.patients import simulate


@pytest.fixture(scope="module")
def patients(): return simulate(8, seed=11, cine=False)

@pytest.fixture(scope="module")
def ecg(patients): return patients.ecg.numpy()


def sway(freq, phase, n=5000, fs=500): return np.sin(2 * np.pi * freq * np.arange(n) / fs + phase).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(freq=st.floats(0.05, 0.5), phase=st.floats(0, 6.28), mv=st.floats(0.05, 2), offset=st.floats(-5, 5),
       n=st.integers(4500, 5500))
def test_wander_loses_20_db(freq, phase, mv, offset, n):
    wander = mv * sway(freq, phase, n)
    left = denoise(wander + np.float32(offset), 500)
    assert left.shape == (n,) and left.dtype == np.float32
    assert 20 * np.log10(np.sqrt((wander**2).mean()) / np.sqrt((left**2).mean())) >= 20


@settings(max_examples=15, deadline=None)
@given(freq=st.floats(0.2, 0.5), phase=st.floats(0, 6.28))
def test_wander_loses_20_db_under_an_ecg(ecg, freq, phase):
    wander = 0.5 * sway(freq, phase)
    left = denoise(ecg[:2] + wander, 500) - denoise(ecg[:2], 500)
    assert (20 * np.log10(wander.std() / left.std(-1))).min() >= 20


@settings(max_examples=15, deadline=None)
@given(freq=st.floats(0.2, 0.5), phase=st.floats(0, 6.28), patient=st.integers(0, 7))
def test_r_amplitude_within_ten_percent(patients, ecg, freq, phase, patient):
    r = patients.r_peaks[patient].numpy() * 500
    r = r[(r > 60) & (r < 4940)].round().astype(int)
    raw, clean = ecg[patient], denoise(ecg[patient] + 0.5 * sway(freq, phase), 500)
    def height(x): return x[:, r[:, None] + np.arange(-5, 6)].max(-1) - x[:, r[:, None] + np.arange(-40, -27)].mean(-1)
    lead = height(raw).mean(1).argmax()
    change = height(clean)[lead] / height(raw)[lead] - 1
    assert abs(np.median(change)) < 0.10 and np.abs(change).max() < 0.20
    place = [x[lead][r[:, None] + np.arange(-8, 9)].argmax(1) for x in (raw, clean)]
    assert np.abs(place[0] - place[1]).max() * 2 <= 6, "the R-peak stays within 6 ms"


def test_high_frequency_noise_goes():
    noise = sway(140, 0.3)
    assert np.abs(denoise(noise, 500)[200:-200]).max() < 0.1
    assert np.abs(denoise(sway(10, 0.3), 500) - sway(10, 0.3))[500:-500].max() < 0.06


@pytest.mark.parametrize("fs", [250, 500, 1000])
def test_the_same_bands_at_every_rate(fs):
    n = 10 * fs
    assert denoise(sway(0.3, 1, n, fs), fs).std() < 0.1 * sway(0.3, 1, n, fs).std()
    beat = sway(8, 0, n, fs)
    assert np.abs(denoise(beat, fs) - beat)[fs:-fs].max() < 0.06


@settings(max_examples=20, deadline=None)
@given(shape=st.sampled_from([(12,), (3, 12), (2, 2, 12)]), n=st.integers(500, 3001))
def test_any_leading_axes_and_length(shape, n):
    x = np.random.default_rng(n).normal(size=(*shape, n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = denoise(x, 500)
    assert y.shape == x.shape and y.dtype == np.float32
    np.testing.assert_allclose(denoise(x[..., 1, :], 500), y[..., 1, :], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(fs=st.sampled_from([250, 257, 500, 1000]), n=st.integers(1200, 5000), cuts=st.sets(st.integers(1, 19)),
       threads=st.sampled_from([1, 2]), scope=st.sampled_from(["record", "lead", "group"]))
def test_a_record_is_prepared_alike_in_every_batch(ecg, fs, n, cuts, threads, scope):
    x = np.concatenate([ecg, 0.7 * ecg, ecg[:4, ::-1]])[..., :n]  # 20 records: small batches, and those shared out to threads
    with threadpool_limits(threads, "blas"):
        parts = [preprocess_ecg(part, fs, scope) for part in np.split(x, sorted(cuts))]
    assert (np.concatenate(parts) == preprocess_ecg(x, fs, scope)).all(), "to the last bit"


def test_a_record_is_normalised_alike_however_it_lies_in_memory(ecg):
    for scope in ("record", "lead", "group"):
        stats = [np.stack(_ecg_stats(x, scope)) for x in (ecg, np.asfortranarray(ecg), np.repeat(ecg, 2, -1)[..., ::2])]
        assert (stats[0] == stats[1]).all() and (stats[0] == stats[2]).all()
        assert (np.stack(_ecg_stats(ecg[3:4], scope)) == stats[0][:, 3:4]).all()


def test_denoising_is_linear_and_keeps_einthoven(ecg):
    np.testing.assert_allclose(denoise(3 * ecg[0] - ecg[1], 500), 3 * denoise(ecg[0], 500) - denoise(ecg[1], 500), atol=1e-4)
    clean = denoise(ecg, 500)
    np.testing.assert_allclose(clean[:, 0] + clean[:, 2], clean[:, 1], atol=1e-4)


@pytest.mark.parametrize("fs", [0, -500, float("nan")])
def test_no_sampling_rate(fs):
    with pytest.raises(PtaclError, match="sampling rate"): wavelet_bands(fs)


@settings(max_examples=40, deadline=None)
@given(scope=st.sampled_from(SCOPES), gain=st.floats(0.01, 1000), offset=st.floats(-100, 100), flat=st.integers(0, 11))
def test_scale_and_offset_do_not_matter_and_flat_is_finite(ecg, scope, gain, offset, flat):
    x = ecg[:2].astype(float).copy()
    x[:, flat] = x[:, flat, :1]
    z = normalize(x, scope)
    assert np.isfinite(z).all() and z.dtype == np.float32 and z.shape == x.shape
    np.testing.assert_allclose(normalize(gain * x + offset, scope), z, atol=1e-3)


def test_cohort_keeps_absolute_voltage_and_record_does_not(ecg):
    stats = _ecg_stats(ecg, "cohort")
    once, twice = (normalize(k * ecg[:1], "cohort", stats).std() for k in (1, 2))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4)
    np.testing.assert_allclose(normalize(2 * ecg[:1]), normalize(ecg[:1]), atol=1e-4)
    with pytest.raises(PtaclError, match="unknown scope"): normalize(ecg, "leads")


@settings(max_examples=30, deadline=None)
@given(lead=st.integers(0, 11), record=st.integers(0, 3), start=st.integers(0, 900),
       fault=st.sampled_from(["clipped", "flat", "non-finite", "missing"]))
def test_every_fault_is_found_in_its_lead_alone(ecg, lead, record, start, fault):
    bad = np.round(ecg[:4] / 0.005) * 0.005
    x = bad[record, lead]
    if fault == "clipped":
        rail = 0.6 * np.abs(x - np.median(x)).max(); x[:] = np.clip(x - np.median(x), -rail, rail)
    if fault == "flat": x[start:start + 2100] = x[start]
    if fault == "non-finite": x[start] = np.inf
    if fault == "missing": x[:] = [0, np.nan][start % 2]
    table = quality(bad)
    expected = np.full((4, 12), "good", dtype=object)
    if fault == "flat" and table.iloc[record, lead] == "good": return  # 2100 samples need not cover a whole window of two seconds
    expected[record, lead] = fault
    assert (table[list(LEADS)].values == expected).all() and table.verdict[record] == fault


def test_a_quiet_baseline_is_not_clipped():
    x = np.zeros((12, 5000)) + 0.005 * (np.arange(5000) // 400 % 2)       # 5 µV steps: the largest value lasts 0.8 s
    x[:, 250::500] = -0.8                                                 # a negative spike in the middle of it
    x[:, 249::500] = x[:, 251::500] = -0.3
    x[:, 248::500] = x[:, 252::500] = -0.04
    assert "clipped" not in quality(x).iloc[0, :12].values


@pytest.mark.parametrize("fs", [250, 257, 360, 1000])
def test_preprocess_from_any_rate(fs):
    t = np.arange(10 * fs) / fs
    beat = np.exp(-0.5 * (((t % 1) - 0.5) / 0.02) ** 2)
    x = np.stack([a * beat + 0.3 for a in np.linspace(-1, 2, 12)])
    out = preprocess_ecg(x, fs)
    assert out.shape == (12, 5000) and out.dtype == np.float32 and np.isfinite(out).all()
    peaks = [500 * k + 250 + (out[-1, 500 * k + 150:500 * k + 350].argmax() - 100) for k in range(1, 9)]
    assert np.abs(np.array(peaks) - 500 * np.arange(1, 9) - 250).max() <= 2, "R-peaks keep their time"


def test_preprocess_names_what_is_wrong(ecg):
    bad = ecg[:3].copy(); bad[2, 6, 17] = np.nan
    with pytest.raises(PtaclError, match="ECG 2: lead V1 is non-finite"): preprocess_ecg(bad, 500)
    bad = ecg[:3].copy(); bad[1, 0] = np.nan
    with pytest.raises(PtaclError, match="ECG 1: lead I is missing"): preprocess_ecg(bad, 500)
    with pytest.raises(PtaclError, match="12"): preprocess_ecg(ecg[:, :11], 500)


@pytest.mark.parametrize("n", [2500, 5000, 7321])
def test_plot_of_any_length(ecg, n):
    import matplotlib; matplotlib.use("Agg")
    ax = plot_ecg(np.tile(ecg[0], 2)[:, :n], 500, r_peaks=[1.0, np.nan, 99.0])
    assert len(ax.texts) == 13 and ax.get_xlim() == (0, min(n, 5000) / 500)
    assert plot_ecg(ecg[0], unit=None).get_aspect() == 0.4
    matplotlib.pyplot.close("all")
