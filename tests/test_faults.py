"Rhythms, faults of recording and scanner, and the full stack: truth against signals and images."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptacl.signal.ecg import quality
from ptacl.core.errors import PtaclError
from ptacl.core.presets import FS
from ptacl.simulate.electrodes import ELECTRODES, _NEEDS, electrode_off, from_electrodes, to_electrodes
from ptacl.simulate.heartbeat import DURATION, MAX_BEATS, draw_ecg, leads12, peaks_inside, sinus_rhythm, waves
from ptacl.core.presets import LEADS, PHENOTYPES
from ptacl.simulate.causes import population
from ptacl.simulate.draws import Streams, hash32_
from ptacl.simulate.heart import anatomy, volume_curve
from ptacl.simulate.image import SLICE, draw_cine, slab_sections, stack_heights
from ptacl.simulate.patients import simulate

ECG_FAULTS = dict(lead_off="any", bursts=0.2, hum=50, swap=True)
CINE_FAULTS = dict(gating_shift=0.1, gating_jitter=0.03, missing=4, breathing=4.)
lead = {name: i for i, name in enumerate(LEADS)}


DEFAULT = dict(  # drawn before there were faults
    peaks=[0.4, 1.36774, 2.37414, 3.3458],
    ecg=[[0.0, 0.02867, 0.02151, 0.00064, 3e-05, 0.63795, 0.19802, 0.0], [0.0, 0.03558, 0.03147, 0.00087, 6e-05, 0.73094, 0.27052, 0.0],
        [0.0, 0.00691, 0.00997, 0.00023, 3e-05, 0.09299, 0.0725, 0.0], [-0.0, -0.03213, -0.02649, -0.00076, -4e-05, -0.68444, -0.23427,
        -0.0], [0.0, 0.01088, 0.00577, 0.0002, 0.0, 0.27248, 0.06276, 0.0], [0.0, 0.02125, 0.02072, 0.00055, 4e-05, 0.41196, 0.17151, 0.0],
        [0.0, -0.04293, 0.07078, 0.0003, -1e-05, -1.17841, 0.06613, 0.0], [0.0, -0.02356, 0.14446, 0.00146, 3e-05, -0.8859, 0.40979, 0.0],
        [0.0, 0.02115, 0.1714, 0.00238, 8e-05, 0.11269, 0.69703, 0.0], [0.0, 0.05379, 0.11796, 0.00216, 9e-05, 1.00231, 0.64893, 0.0], [0.0,
        0.06027, 0.06143, 0.00155, 7e-05, 1.28187, 0.47716, 0.0], [0.0, 0.05041, 0.01535, 0.00086, 5e-05, 1.15383, 0.27164, 0.0]],
    power=[73.5598, 127.7099, 19.7368, 95.7006, 14.7208, 55.3334, 233.6019, 278.4879, 307.5553, 357.5779, 337.7958, 222.371],
    cine=[[177, 211, 58, 128, 133, 105, 62, 27, 159, 42, 14, 35, 93, 170, 73, 160, 54, 12, 4, 161, 85, 153, 54, 22, 62, 86, 108, 48, 27, 35,
        64, 48, 48, 55, 22, 122], [170, 212, 55, 132, 125, 105, 60, 17, 162, 46, 6, 24, 95, 174, 52, 161, 55, 19, 15, 60, 65, 151, 48, 30,
        62, 75, 43, 50, 7, 30, 64, 39, 35, 59, 31, 118], [186, 195, 59, 124, 119, 116, 61, 32, 105, 31, 14, 29, 73, 84, 49, 174, 47, 9, 0,
        102, 57, 125, 41, 23, 48, 81, 24, 76, 14, 31, 64, 39, 31, 67, 25, 113], [177, 203, 48, 133, 120, 121, 68, 21, 93, 33, 7, 31, 77,
        106, 60, 167, 51, 16, 14, 12, 51, 83, 51, 31, 61, 87, 36, 95, 22, 33, 76, 49, 38, 59, 28, 100]],
    mean=[74.353, 70.899, 67.648, 64.335])


# --- what was there before ----------------------------------------------------------------------------------------------

def counters(*shape): return hash32_(torch.arange(int(np.prod(shape)), dtype=torch.int32)).view(shape)


def test_default_ecg_is_what_it_was():
    "Beats and waves from fixed parameters, to a microvolt, as drawn before there were other rhythms."
    p = dict(hr_ecg=62, pq=166, qrs=92, qt=405, p_duration=106, voltage=1.0, posterior=1.15, t_wave=1.1, p_wave=1.2, st=0.05,
        rv_force=1.0, axis=45, t_axis=45)
    p, one = {k: torch.tensor([float(x)]) for k, x in p.items()}, torch.ones(1)
    r = sinus_rhythm(p["hr_ecg"], 0.04 * one, 0.25 * one, 0.4 * one, 0 * one, torch.zeros(1, MAX_BEATS))
    x = leads12(draw_ecg(r, waves(p), torch.ones_like(r)))[0]
    np.testing.assert_allclose(peaks_inside(r)[0, :4], DEFAULT["peaks"], atol=1e-5)
    np.testing.assert_allclose(x[:, ::625], DEFAULT["ecg"], atol=1e-5)
    np.testing.assert_allclose(x.double().square().sum(1), DEFAULT["power"], rtol=1e-4)


def test_default_cine_is_what_it_was():
    "Frames from fixed anatomy and sections, to a grey level."
    n, f = 1, torch.linspace(0, 1, 4)
    a = dict(x=1.2, y=.15, turn=.18, span=1.4, skew=.35, wobble=(.02, .012, .008), wobble_phase=(.5, 1., 2.), fat=.16, pap=(-.85, 1.05),
        pap_size=.4, blood=.64, rv_blood=.68, myo=.208, body=[.1 * k - .8 for k in range(16)], noise=.022)
    a = {k: torch.tensor([x]) for k, x in a.items()}
    cut = [x.view(1, 1, 4) for x in (2.6 - .6 * f, 3.5 - .3 * f, 16 - 8 * f, f)]
    images, labels = draw_cine(a, cut, 84, (counters(n, 8, 8), counters(n, 34, 34)), torch.tensor([7], dtype=torch.int32), counters(1, 4, 84, 84))
    assert labels is None and images.shape == (1, 1, 4, 84, 84)
    assert abs(images[0, 0, :, 7::14, 7::14].int() - torch.tensor(DEFAULT["cine"]).view(4, 6, 6)).max() <= 1
    np.testing.assert_allclose(images.double().mean((0, 1, 3, 4)), DEFAULT["mean"], atol=0.01)


def test_what_is_off_changes_nothing():
    plain = simulate(3, seed=2)
    off = simulate(3, seed=2, rhythm="sinus", lead_off="", bursts=0, hum=0, swap=False, gating_shift=0, gating_jitter=0, missing=0,
        breathing=0, stack=False, affected=0.5)
    assert torch.equal(plain.ecg, off.ecg) and torch.equal(plain.cine, off.cine) and plain.covariates.equals(off.covariates)
    assert all(getattr(off, k) is None for k in ("faults", "labels", "ectopic", "phase", "shift"))


def test_whom_nothing_strikes_is_the_same():
    plain = simulate(3, seed=2)
    for how in ({"rhythm": k} for k in ("af", "pvc", "lbbb", "rbbb", "paced")):
        none = simulate(3, seed=2, affected=0, cine=False, **how)
        torch.testing.assert_close(none.ecg, plain.ecg, atol=2e-6, rtol=0)
        pd.testing.assert_frame_equal(none.covariates, plain.covariates)
    none = simulate(3, seed=2, affected=0, **ECG_FAULTS, **CINE_FAULTS)
    torch.testing.assert_close(none.ecg, plain.ecg, atol=2e-6, rtol=0)
    assert torch.equal(none.cine, plain.cine) and torch.equal(none.lv, plain.lv)
    assert not none.faults.swap.any() and (none.faults.lead_off == "").all() and (none.shift == 0).all()


@pytest.mark.parametrize("how", [dict(rhythm="af"), dict(rhythm="pvc"), dict(rhythm="lbbb"), dict(rhythm="rbbb"), dict(rhythm="paced"),
                                 ECG_FAULTS, CINE_FAULTS,
    dict(stack=True, breathing=3.)], ids=lambda d: next(iter(d.values())) if "rhythm" in d else next(iter(d)))
def test_same_patient_whatever_the_batch(how):
    how = how | dict(affected=0.6, frames=6, size=64)
    big = simulate(4, seed=5, **how)
    for n, start in ((1, 2), (2, 1)):
        part, small = slice(start, start + n), simulate(n, seed=5, start=start, **how)
        assert torch.equal(small.ecg, big.ecg[part]) and torch.equal(small.cine, big.cine[part])
        pd.testing.assert_frame_equal(small.faults, big.faults[part]); pd.testing.assert_frame_equal(small.causes, big.causes[part])
        for k in ("r_peaks", "lv", "rv", "labels", "ectopic", "phase", "height", "shift"):
            a, b = getattr(small, k), getattr(big, k)
            if b is not None: torch.testing.assert_close(a, b[part], equal_nan=True, atol=0, rtol=0)


# --- rhythms ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def rhythms(): return {k: simulate(16, seed=9, cine=False, rhythm=k) for k in ("sinus", "af", "pvc", "lbbb", "rbbb", "paced")}


def beats(v, name, before=0.4, after=0.5): # (beats, samples) mV of one lead around each R-peak, and the patient of each
    x, who = [], []
    for i in range(len(v)):
        for t in v.r_peaks[i][v.r_peaks[i].isfinite()].tolist():
            k = round(t * FS)
            if k - before * FS >= 0 and k + after * FS < DURATION * FS:
                x.append(v.ecg[i, lead[name], k - int(before * FS):k + int(after * FS)]); who.append(i)
    return torch.stack(x), np.array(who)


def mean_beat(v, name, **span):
    x, who = beats(v, name, **span)
    return torch.stack([x[who == i].mean(0) for i in range(len(v))])


def test_einthoven_and_volumes_hold_in_every_rhythm(rhythms):
    for v in rhythms.values():
        I, II, III, aVR, aVL, aVF = v.ecg[:, :6].unbind(1)
        for zero in (I + III - II, aVR + aVL + aVF, aVR + (I + II) / 2): assert zero.abs().max() < 1e-5
        assert v.phenotypes.equals(rhythms["sinus"].phenotypes) and v.ecg.isfinite().all()
        r = v.r_peaks.diff()
        assert r[r.isfinite()].min() > 0.25 and (v.r_peaks.isfinite().sum(1) >= 5).all()


def test_fibrillation_has_no_rhythm_and_no_p(rhythms):
    af, sinus = rhythms["af"], rhythms["sinus"]
    spread = lambda v: (np.nanstd(v.r_peaks.diff(), 1) / np.nanmean(v.r_peaks.diff(), 1))
    assert np.median(spread(af)) > 0.14 > 0.08 > np.median(spread(sinus)) and af.covariates.pq.isna().all()
    p_wave = lambda v: (mean_beat(v, "II")[:, 95:160].amax(1) - mean_beat(v, "II")[:, 95:160].amin(1)).mean()   # 0.21 to 0.08 s before R
    assert p_wave(sinus) > 0.09 and p_wave(af) < 0.7 * p_wave(sinus)
    def band(v, name): # power between 4 and 8 Hz in the last 0.25 s before the QRS is too short: whole record without the QRST
        x = v.ecg[:, lead[name]].clone()
        for i in range(len(v)):
            for t in v.r_peaks[i][v.r_peaks[i].isfinite()].tolist():
                x[i, max(0, int((t - 0.08) * FS)):int((t + 0.42) * FS)] = 0
        return torch.fft.rfft(x).abs().square()[:, 40:80].sum(1)
    ratio = band(af, "V1") / band(sinus, "V1")
    assert ratio.median() > 4, ratio


def test_premature_beats(rhythms):
    v, sinus = rhythms["pvc"], rhythms["sinus"]
    assert v.ectopic.shape == v.r_peaks.shape and not v.ectopic[v.r_peaks.isnan()].any() and v.ectopic.any(1).all()
    for i in range(len(v)):
        r, e = v.r_peaks[i][v.r_peaks[i].isfinite()].numpy(), v.ectopic[i].numpy()
        usual = np.median(np.diff(sinus.r_peaks[i][sinus.r_peaks[i].isfinite()]))
        for k in np.flatnonzero(e[:len(r)])[:1]:
            if not 0 < k < len(r) - 1: continue
            early, late = r[k] - r[k - 1], r[k + 1] - r[k]
            assert 0.5 < early / usual < 0.8 and 1.2 < late / usual < 1.55 and abs((early + late) / usual - 2) < 0.15
    x, who = beats(v, "II", 0.2, 0.3)
    flag = torch.cat([e[r.isfinite() & (r * FS >= 100) & ((r * FS).round() + 150 < 5000)] for r, e in zip(v.r_peaks, v.ectopic)])
    half = lambda x: ((x - x[:, :5].mean(1, keepdim=True)).abs() > 0.5 * (x - x[:, :5].mean(1, keepdim=True)).abs().amax(1, keepdim=True)).sum(1)
    assert len(flag) == len(x) and half(x[flag]).float().median() > 2.5 * half(x[~flag]).float().median()
    assert x[flag].abs().amax(1).median() > x[~flag].abs().amax(1).median()


def test_bundle_branch_block(rhythms):
    normal, left, right = (rhythms[k] for k in ("sinus", "lbbb", "rbbb"))
    for v in (left, right): assert (v.covariates.qrs >= 120).all() and (v.covariates.qt >= normal.covariates.qt).all()
    def of(v, name):
        m = mean_beat(v, name, before=0.12, after=0.45)
        return m - m[:, :3].mean(1, keepdim=True)
    v1, v6, one = of(left, "V1"), of(left, "V6"), of(left, "I")
    assert (v1[:, 20:85].amin(1) < -0.4).all() and (v1[:, 20:60].amax(1) < 0.15).all(), "deep in V1, hardly an r"
    assert (v6[:, 25:95].amax(1) > 0.3).all() and (v6[:, 15:50].amin(1) > -0.12).all(), "broad R without q in V6"
    assert ((v6[:, 150:280].mean(1) < 0) & (v1[:, 150:280].mean(1) > 0)).float().mean() > 0.9, "T against QRS"
    assert one[:, 20:85].amax(1).median() > 0.3
    v1, v6 = of(right, "V1"), of(right, "V6")
    assert (v1[:, 80:110].amax(1) > 0.2).all() and (v1[:, 80:110].amax(1) > of(normal, "V1")[:, 80:110].amax(1) + 0.2).all(), "R' in V1"
    assert (v6[:, 75:110].amin(1) < -0.1).all() and (v6[:, 75:110].amin(1) < of(normal, "V6")[:, 75:110].amin(1)).all(), "S in V6"
    assert (v1[:, 200:260].amin(1) < -0.03).all(), "T against the R' in V1"


def test_detector_finds_the_conducted_beats_of_every_rhythm(rhythms):
    import neurokit2 as nk
    warnings.filterwarnings("ignore")
    for name, v in rhythms.items():
        if name == "paced": continue  # a detector of one lead marks spikes; twelve leads together are tried in test_beats
        hit = total = 0
        odd = torch.zeros_like(v.r_peaks, dtype=torch.bool) if v.ectopic is None else v.ectopic   # wide beats are often missed
        for x, r in zip(v.ecg[:8, 1].numpy(), v.r_peaks.masked_fill(odd, torch.nan)[:8].numpy()):
            found = nk.ecg_peaks(nk.ecg_clean(x, sampling_rate=FS), sampling_rate=FS)[1]["ECG_R_Peaks"] / FS
            true = r[(r > 0.5) & (r < 9.5)]
            hit += (np.abs(found[None] - true[:, None]).min(1) < 0.06).sum()
            total += len(true)
        assert hit > 0.9 * total, (name, hit, total)


# --- the recording -------------------------------------------------------------------------------------------------------

def test_swapped_arms():
    good, bad = simulate(4, seed=3, cine=False), simulate(4, seed=3, cine=False, swap=True)
    for old, new, sign in (("I", "I", -1), ("II", "III", 1), ("III", "II", 1), ("aVR", "aVL", 1), ("aVL", "aVR", 1), ("aVF", "aVF", 1)):
        torch.testing.assert_close(bad.ecg[:, lead[new]], sign * good.ecg[:, lead[old]], atol=1e-5, rtol=0)
    torch.testing.assert_close(bad.ecg[:, 6:], good.ecg[:, 6:], atol=1e-5, rtol=0)
    assert bad.faults.swap.all() and torch.equal(bad.r_peaks.nan_to_num(-1), good.r_peaks.nan_to_num(-1))


@pytest.mark.parametrize("electrode", ELECTRODES)
def test_lead_off(electrode):
    v, good = simulate(4, seed=3, cine=False, lead_off=electrode), simulate(4, seed=3, cine=False)
    gone = _NEEDS[ELECTRODES.index(electrode)]
    for i, start in enumerate(v.faults.lead_off_from):
        k = int(np.ceil(start * FS)) + 1
        assert (v.ecg[i, gone, k:] == 0).all() and not (v.ecg[i, ~gone, k:] == 0).all(-1).any()
        torch.testing.assert_close(v.ecg[i, :, :max(0, k - 2)], good.ecg[i, :, :max(0, k - 2)], atol=1e-5, rtol=0)
    words = quality(v.ecg.numpy())[np.array(LEADS)[gone.numpy()]]
    assert words.isin(["flat", "missing"]).all().all()


def test_a_lost_arm_leaves_wilsons_terminal_to_the_others():
    e = torch.randn(1, 9, 10)
    twelve = leads12(from_electrodes(e))
    off = electrode_off(twelve, torch.tensor([1]), torch.zeros(1))
    torch.testing.assert_close(off[:, 6:], e[:, 3:] - (e[:, 0:1] + e[:, 2:3]) / 2, atol=1e-5, rtol=0)


def test_hum_and_bursts_are_where_the_truth_says():
    good = simulate(5, seed=6, cine=False).ecg
    for rate in (50, 60):
        v = simulate(5, seed=6, cine=False, hum=rate)
        d = v.ecg - good
        assert ((torch.fft.rfft(d).abs().argmax(-1) / DURATION) == rate).all() and (v.faults.hum_hz == rate).all()
        size = torch.tensor(v.faults.hum_mv.to_numpy())
        assert (d[:, 6:].abs().amax((1, 2)) <= 4 / 3 * size).all() and (d.abs().amax((1, 2)) > 0.3 * size).all()
    v = simulate(5, seed=6, cine=False, bursts=0.2)
    t = torch.arange(DURATION * FS) / FS
    for i, f in enumerate(v.faults.itertuples()):
        inside = ((t > f.burst_1_from) & (t < f.burst_1_to)) | ((t > f.burst_2_from) & (t < f.burst_2_to))
        d = (v.ecg - good)[i]
        assert d[:, ~inside].abs().max() < 1e-5 < 0.05 < d[:, inside].std(1).max()
        if f.burst_1_at.startswith("V"): assert d[lead[f.burst_1_at], (t > f.burst_1_from) & (t < f.burst_1_to)].std() > 0.1


def test_electrodes_and_back():
    x = torch.randn(4, 8, 30)
    torch.testing.assert_close(from_electrodes(to_electrodes(x)), x, atol=1e-5, rtol=0)
    assert to_electrodes(x)[:, :3].sum(1).abs().max() < 1e-5


def test_affected_share():
    v = simulate(3000, seed=1, ecg=False, cine=False, affected=0.3, rhythm="af", **ECG_FAULTS, **CINE_FAULTS)
    t = v.faults
    struck = pd.DataFrame(dict(rhythm=t.rhythm == "af", off=t.lead_off != "", burst=t.burst_sd > 0, hum=t.hum_hz > 0, swap=t.swap,
        shift=t.gating_shift != 0, jitter=t.gating_jitter > 0, missing=t.missing > 0, breathing=t.breathing > 0))
    assert (struck.mean() - 0.3).abs().max() < 0.04
    assert (struck.astype(float).corr() - np.eye(9)).abs().max().max() < 0.08
    assert set(t.lead_off) == {"", *ELECTRODES} and t.lead_off_from.isna().equals(t.lead_off == "")
    assert v.covariates.pq.isna().equals(t.rhythm == "af")
    assert (v.phase.isnan().sum(1).numpy() == t.missing).all()


@pytest.mark.parametrize("wrong,word", [(dict(rhythm="vt"), "rhythm"), (dict(lead_off="V7"), "lead_off"), (dict(hum=250), "hum"),
    (dict(hum=-50), "hum"), (dict(missing=50), "missing"), (dict(missing=-1), "missing"), (dict(spacing=0.), "spacing"),
    (dict(affected=1.5), "affected"), (dict(bursts=-1.), "bursts"), (dict(gating_jitter=float("nan")), "gating_jitter"),
    (dict(breathing=float("inf")), "breathing"), (dict(gating_shift=-0.1), "gating_shift")])
def test_refusals(wrong, word):
    with pytest.raises(PtaclError, match=word): simulate(1, seed=0, **wrong)


# --- the scanner ---------------------------------------------------------------------------------------------------------

def test_shifted_frames_are_the_frames_of_another_phase():
    plain, v = (simulate(4, seed=8, ecg=False, **how) for how in ({}, dict(gating_shift=0.3)))
    shift = v.faults.gating_shift.to_numpy()
    assert (np.abs(shift) <= 0.3).all() and len(set(shift)) == 4
    np.testing.assert_allclose(v.phase, (np.arange(50) / 50 + shift[:, None]) % 1, atol=1e-6)
    cavity = lambda v: v.cine[:, :, 34:52, 40:58].float().mean((2, 3))                      # brighter when the cavity is larger
    late = np.round(shift * 50).astype(int)
    for i, k in enumerate(late):
        np.testing.assert_allclose(np.roll(v.lv[i], k), plain.lv[i], atol=4)
        assert np.corrcoef(np.roll(cavity(v)[i], k), cavity(plain)[i])[0, 1] > 0.97
    assert v.phenotypes.equals(plain.phenotypes)


def test_jittered_frames_show_the_volume_of_their_phase():
    v = simulate(6, seed=8, ecg=False, gating_jitter=0.04, size=64)
    off = (v.phase - torch.arange(50) / 50 + 0.5) % 1 - 0.5
    assert 0.03 < off.std() < 0.05 and abs(torch.corrcoef(torch.stack([off[:, 1:].flatten(), off[:, :-1].flatten()]))[0, 1]) < 0.2
    p = {k: x.float() for k, x in population(Streams(8, torch.arange(6))).items()}
    torch.testing.assert_close(v.lv, volume_curve(p["LVEDV"], p["LVESV"], p, v.phase), rtol=1e-4, atol=0.01)


def test_missing_frames_repeat_the_one_before():
    v, whole = simulate(3, seed=8, ecg=False, missing=10, size=64), simulate(3, seed=8, ecg=False, size=64)
    lost = v.phase.isnan()
    assert (lost.sum(1) == 10).all() and not lost[:, 0].any() and len({tuple(x.tolist()) for x in lost}) == 3
    assert (v.cine[:, 1:][lost[:, 1:]] == v.cine[:, :-1][lost[:, 1:]]).all() and torch.equal(v.cine[~lost], whole.cine[~lost])
    assert (v.lv[:, 1:][lost[:, 1:]] == v.lv[:, :-1][lost[:, 1:]]).all() and torch.equal(v.lv[~lost], whole.lv[~lost])


@pytest.mark.parametrize("frames", [12, 20, 35])
def test_fewer_frames(frames):
    v = simulate(2, seed=8, ecg=False, frames=frames)
    assert v.cine.shape[1] == v.lv.shape[1] == frames
    np.testing.assert_allclose(v.lv[:, 0], v.phenotypes.LVEDV, rtol=1e-5)
    np.testing.assert_allclose(v.lv.amin(1), v.phenotypes.LVESV, rtol=0.12)


@pytest.mark.parametrize("spacing", [1.25, 2.3])
def test_other_pixels_show_the_same_heart(spacing):
    v = simulate(3, seed=8, ecg=False, frames=2, spacing=spacing, stack=True, size=round(84 * 1.8 / spacing))
    assert v.spacing == spacing
    ml = (v.labels[:, 0] == 1).sum((1, 2, 3)) * (spacing / 10) ** 2 * SLICE
    np.testing.assert_allclose(ml, v.phenotypes.LVEDV, rtol=0.03)


# --- the stack -----------------------------------------------------------------------------------------------------------

def volumes(v) -> pd.DataFrame:
    voxel = (v.spacing / 10) ** 2 * SLICE
    lv, myo, rv = ((v.labels == k).sum((2, 3, 4)).numpy() * voxel for k in (1, 2, 3))
    t = dict(LVM=myo[:, 0] * 1.05)
    for s, x in (("LV", lv), ("RV", rv)):
        t |= {s + "EDV": x[:, 0], s + "ESV": x.min(1), s + "SV": x[:, 0] - x.min(1), s + "EF": 100 * (1 - x.min(1) / x[:, 0])}
    return pd.DataFrame(t | dict(LVCO=t["LVSV"] * v.covariates.hr_cmr.to_numpy() / 1000), index=v.phenotypes.index)[list(PHENOTYPES)], lv, rv


@pytest.fixture(scope="module")
def stacks(): return simulate(24, seed=21, ecg=False, stack=True, frames=25)


def test_labels_add_up_to_the_phenotypes(stacks):
    t, lv, rv = volumes(stacks)
    curve = stacks.phenotypes.assign(LVESV=stacks.lv.amin(1).numpy(), RVESV=stacks.rv.amin(1).numpy())   # 25 frames may miss the minimum
    for s in ("LV", "RV"):
        curve[s + "SV"] = curve[s + "EDV"] - curve[s + "ESV"]
        curve[s + "EF"] = 100 * curve[s + "SV"] / curve[s + "EDV"]
    curve["LVCO"] = curve.LVSV * stacks.covariates.hr_cmr / 1000
    off = t / curve - 1
    assert off.abs().max().max() < 0.03, off.abs().max()
    assert np.abs(lv / stacks.lv.numpy() - 1).max() < 0.035 and np.abs(rv / stacks.rv.numpy() - 1).max() < 0.035


@pytest.mark.long
def test_labels_add_up_in_two_hundred_hearts():
    v = simulate(200, seed=22, ecg=False, stack=True)
    off = volumes(v)[0] / v.phenotypes - 1
    assert (off.abs() < 0.03).all().all(), off.abs().max()


def test_slices_add_up_in_a_thousand_hearts():
    "Without pixels: areas times 10 mm against volumes and mass, over the whole cycle."
    s = Streams(23, torch.arange(1000))
    p = population(s)
    f = {k: x.float() for k, x in p.items()}
    lv, rv = (volume_curve(f[v + "EDV"], f[v + "ESV"], f, 12) for v in ("LV", "RV"))
    a = {k: x.float() for k, x in anatomy(s, p).items()}
    height = stack_heights(a["length"], a["height"])
    n = height.isfinite().sum(1)
    assert n.min() >= 8 and n.max() <= 12
    inner, outer, _, done, share = slab_sections(a, lv, rv, f["LVM"], height)
    shell = (outer.square() - inner.square()).clamp(min=0) * share * np.pi
    mass = shell.sum(1)[:, 0] * 1.05
    off = torch.stack([(mass / f["LVM"] - 1).abs(), ((inner.square() * share * np.pi).sum(1)[:, 0] / f["LVEDV"] - 1).abs()])
    assert (off < 0.02).all(), off.amax(1)


def test_stack_runs_from_base_to_apex(stacks):
    n = stacks.height.isfinite().sum(1)
    assert stacks.labels.shape == stacks.cine.shape == (24, 25, 12, 84, 84) and (n >= 8).all() and (n <= 12).all()
    for i, k in enumerate(n):
        np.testing.assert_allclose(np.diff(stacks.height[i, :k]), -1., atol=1e-5)
        assert (stacks.labels[i, 0, :k] > 0).any((1, 2)).all() and not stacks.labels[i, :, k:].any() and not stacks.cine[i, :, k:].any()
        areas = (stacks.labels[i, 0, 1:k] == 1).sum((1, 2)).float()                          # cavity narrows towards the apex
        assert (areas.diff() <= 12).all()


def test_labels_lie_on_the_picture(stacks):
    grey = stacks.cine.float() / 255
    for k, level in ((1, .58), (2, .22), (3, .64)):
        x = grey[stacks.labels == k]
        assert abs(x.mean() - level) < 0.12, (k, x.mean())


def test_middle_slice_is_the_single_slice():
    v, plain = (simulate(4, seed=21, ecg=False, stack=k, frames=8) for k in (True, False))
    middle = (v.height - plain.height).abs().nan_to_num(99.).argmin(1)
    i = torch.arange(4)
    torch.testing.assert_close(v.height[i, middle], plain.height[:, 0])
    apart = (v.cine[i, :, middle].float() - plain.cine.float()).abs()
    assert apart.mean() < 1.5 and np.corrcoef(v.cine[i, :, middle].flatten(), plain.cine.flatten())[0, 1] > 0.99


def test_breathing_moves_slices():
    v, still = (simulate(3, seed=21, ecg=False, stack=True, frames=2, breathing=b) for b in (5., 0.))
    there = still.height.isfinite()
    assert torch.equal(v.height.nan_to_num(-9), still.height.nan_to_num(-9)) and still.shift is None and v.shift.shape == (3, 12, 3)
    centre = lambda v: torch.stack([((v.labels[:, 0] > 0) & (v.labels[:, 0] < 3)).float().sum(d).matmul(torch.arange(84.)) for d in (2, 3)], -1) \
        / ((v.labels[:, 0] > 0) & (v.labels[:, 0] < 3)).sum((2, 3))[..., None]
    full = there & (still.height > 2) & (torch.arange(12) > 1)
    moved = (centre(v) - centre(still))[full] * 1.8
    torch.testing.assert_close(moved, v.shift[..., :2][full], atol=1.0, rtol=0)
    one = simulate(3, seed=21, ecg=False, frames=2, breathing=5.)
    assert one.shift.shape == (3, 1, 3) and (one.cine != simulate(3, seed=21, ecg=False, frames=2).cine).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), frames=st.integers(2, 9), faults=st.sets(st.sampled_from(sorted(CINE_FAULTS))), stack=st.booleans())
def test_any_mixture_of_faults(seed, frames, faults, stack):
    how = {k: CINE_FAULTS[k] if k != "missing" else 1 for k in faults}
    v = simulate(1, seed=seed, ecg=False, frames=frames, size=48, stack=stack, **how)
    assert v.cine.shape == ((1, frames, 12, 48, 48) if stack else (1, frames, 48, 48)) and v.cine.any() and v.lv.isfinite().all()
    assert (v.faults is None) == (not faults) and (v.labels is not None) == stack


def test_device_is_the_same_for_faults():
    if not torch.cuda.is_available(): return
    how = dict(frames=10, stack=True, **ECG_FAULTS, **CINE_FAULTS)
    a, b = simulate(3, seed=1, **how), simulate(3, seed=1, device="cuda", **how)
    torch.testing.assert_close(b.ecg.cpu(), a.ecg, atol=1e-3, rtol=0)
    assert ((a.cine.int() - b.cine.cpu().int()).abs() <= 1).float().mean() > 0.999


def test_paced(rhythms):
    "A spike that is steeper than any QRS, the broad QRS behind it down in the lower leads, and T against it."
    v = rhythms["paced"]
    assert (v.covariates.qrs >= 150).all() and (v.covariates.qt > rhythms["sinus"].covariates.qt).all()
    for x, r, qrs in zip(v.ecg, v.r_peaks, v.covariates.qrs):
        onset = ((r[r.isfinite()][1:-1] - 0.0005 * qrs - 0.012) * FS).round().long()
        steep = x.diff().abs()
        at = torch.stack([steep[:, k - 3:k + 4].amax(1) for k in onset], 1)     # (12, beats)
        behind = torch.stack([steep[:, k + 12:k + 100].amax(1) for k in onset], 1)
        assert ((at > behind).float().mean(1) > 0.9).sum() >= 4, "steeper than QRS, in a third of the leads or more"
    for name in ("II", "aVF"):
        m = mean_beat(v, name, before=0.12, after=0.45)
        m = m - m[:, :3].mean(1, keepdim=True)
        assert (m[:, 45:100].amin(1) < -0.3).all() and (m[:, 150:280].mean(1) > 0).float().mean() > 0.9
    limbs = v.ecg[:, 2] - (v.ecg[:, 1] - v.ecg[:, 0])
    assert limbs.abs().max() < 1e-4, "spikes obey Einthoven's law"
