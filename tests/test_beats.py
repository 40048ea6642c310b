"Beats: any rhythm, any crop, and real recordings."
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from hypothesis import assume, given
from hypothesis import strategies as st
from makers import muse, record
from pydicom.data import get_testdata_file

from ptacl.signal.beats import detect_r_peaks, find_beats, _pad_r_peaks, r_peaks_of
from ptacl.signal.segments import beat_weights, segment_beats
from ptacl.signal.sure_beats import judge_beats, rhythm_of, sure_r_peaks
from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.data.ecg_files import read_ecg
from ptacl.data.prepare import prepare_ecg
from ptacl.simulate.patients import simulate

WIDTH = 0.1  # seconds of a token
crops = st.sampled_from([30, 50])  # tokens: workshop, paper
rates = st.floats(40, 180)
shares = st.floats(0, 1)  # of the room that a crop has in the record
nan = float("nan")


def rhythm(rate, first=0.1, spread=0.0, seed=0):
    "R-peaks of a 10 s record (s) at a rate in beats/min, every interval off by up to ±spread."
    steps = 60 / rate * (1 + spread * np.random.default_rng(seed).uniform(-1, 1, 40))
    peaks = first + np.concatenate([[0], steps.cumsum()])
    return peaks[peaks < 10].tolist()


def whole_beats(peaks, start, n):
    "Naive count of the beats inside the crop; None where a peak stands too near to an edge to say."
    if any(abs(r - edge) < 1e-4 for r in peaks for edge in (start, start + n * WIDTH)): return None
    return [(a, b) for a, b in pairwise(peaks) if start <= a and b <= start + n * WIDTH]


def phase_tokens(peaks, start, n):
    "(1, n, 2): cos and sin of the phase at the centre of every token."
    centre = start + (np.arange(n) + 0.5) * WIDTH
    before, after = peaks[0] - (peaks[1] - peaks[0]), peaks[-1] + (peaks[-1] - peaks[-2])
    knots = [before, *peaks, after, after + 2]
    angle = 2 * np.pi * np.interp(centre, knots, np.arange(len(knots)))
    return torch.tensor(np.stack([np.cos(angle), np.sin(angle)], -1))[None].float()


@given(rate=rates, share=shares, n=crops, first=st.floats(0, 0.3), spread=st.sampled_from([0, 0.1]), seed=st.integers(0, 99))
def test_phase_comes_out_in_order_for_any_rate_and_crop(rate, share, n, first, spread, seed):
    peaks, start = rhythm(rate, first, spread, seed), share * (10 - n * WIDTH)
    assume(whole_beats(peaks, start, n))
    z, valid = segment_beats(phase_tokens(peaks, start, n), _pad_r_peaks([peaks]), start, WIDTH, 13)
    phase = torch.atan2(z[0, :, 1], z[0, :, 0]) / (2 * torch.pi) % 1
    assert valid.all() and (phase.diff() > 0).all(), phase
    torch.testing.assert_close(phase, (torch.arange(13) + 0.5) / 13, atol=0.06, rtol=0)


@given(rate=rates, share=shares, n=crops, T=st.integers(1, 30), spread=st.sampled_from([0, 0.3]), seed=st.integers(0, 99))
def test_weights_are_means_and_beats_are_counted_as_a_loop_counts_them(rate, share, n, T, spread, seed):
    peaks, start = rhythm(rate, 0.1, spread, seed), share * (10 - n * WIDTH)
    expected = whole_beats(peaks, start, n)
    assume(expected is not None)
    W, beats = beat_weights(_pad_r_peaks([peaks]), torch.tensor([start]), WIDTH, n, T)
    assert beats.tolist() == [len(expected)] and W.shape == (1, T, n) and (W >= 0).all()
    torch.testing.assert_close(W.sum(-1), torch.full((1, T), float(bool(expected))))


@given(rate=st.floats(40, 120), share=shares, seed=st.integers(0, 99))
def test_mean_beat_as_a_loop_makes_it(rate, share, seed):
    peaks, start, n, T = rhythm(rate, 0.1, 0.2, seed), share * 5, 50, 13
    beats = whole_beats(peaks, start, n)
    assume(beats)
    tokens = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(seed))
    centre = start + (np.arange(n) + 0.5) * WIDTH
    moments = [[a + (k + 0.5) / T * (b - a) for k in range(T)] for a, b in beats]
    expected = np.mean([[np.interp(m, centre, tokens[0, :, d]) for d in range(4)] for m in moments], 0).T
    torch.testing.assert_close(segment_beats(tokens, _pad_r_peaks([peaks]), start, WIDTH, T)[0][0], torch.tensor(expected).float(), atol=1e-3, rtol=0)


def some_patients():
    "Six patients, two of them without a whole beat in their crop; R-peaks, starts, tokens."
    peaks = _pad_r_peaks([rhythm(45), [], rhythm(70, 0.3), [2.0], rhythm(130), rhythm(180, 0.2)])
    return peaks, torch.tensor([0.0, 1, 2.5, 0.7, 5, 3.3]), torch.randn(6, 50, 4, generator=torch.Generator().manual_seed(0))


@given(order=st.permutations(range(6)))
def test_patients_do_not_see_each_other(order):
    peaks, start, tokens = some_patients()
    z, valid = segment_beats(tokens, peaks, start, WIDTH, 13)
    z2, valid2 = segment_beats(tokens[order], peaks[order], start[order], WIDTH, 13)
    torch.testing.assert_close(z2, z[order]); assert torch.equal(valid2, valid[order])
    i = order[0]
    alone = segment_beats(tokens[i:i + 1], peaks[i:i + 1], start[i], WIDTH, 13)
    torch.testing.assert_close(alone[0], z[i:i + 1]); assert alone[1] == valid[i]


def test_who_has_no_whole_beat_is_zero_and_said_so():
    peaks, start, tokens = some_patients()
    z, valid = segment_beats(tokens, peaks, start, WIDTH, 13)
    assert valid.dtype == torch.bool and valid.tolist() == [True, False, True, False, True, True]
    assert not z[~valid].any() and z[valid].abs().sum((1, 2)).min() > 1 and z.isfinite().all()
    for r in ([[]], [[nan, nan]], [[1.0, 7.0]], [[-0.1, 0.9]], [[4.5, 5.1]]):   # none, none, longer than the crop, over an edge
        z, valid = segment_beats(tokens[:1], torch.tensor(r), 0.0, WIDTH, 13)
        assert not valid.any() and not z.any() and z.shape == (1, 13, 4)
    z, valid = segment_beats(tokens[:1], torch.tensor([[0.0, 5.0]]), 0.0, WIDTH, 13)   # fits to the edge
    assert valid.all() and z.isfinite().all()


@given(pad=st.integers(0, 7))
def test_padding_changes_nothing(pad):
    peaks, start, tokens = some_patients()
    wide = torch.cat([peaks, torch.full((6, pad), nan)], 1)
    for a, b in zip(segment_beats(tokens, wide, start, WIDTH, 13), segment_beats(tokens, peaks, start, WIDTH, 13)): assert torch.equal(a, b)


def test_leads_are_averaged_first():
    peaks, start, _ = some_patients()
    tokens = torch.randn(6, 12, 50, 4)
    for a, b in zip(segment_beats(tokens, peaks, start, WIDTH, 13), segment_beats(tokens.mean(1), peaks, start, WIDTH, 13)):
        torch.testing.assert_close(a, b)


def test_gradients_reach_the_tokens():
    peaks = torch.tensor([[0.12, 0.55, 0.97, nan], [0.3, nan, nan, nan]])
    tokens = torch.randn(2, 12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: segment_beats(t, peaks, 0.0, WIDTH, 5)[0], tokens)
    segment_beats(tokens, peaks, 0.0, WIDTH, 5)[0].pow(2).sum().backward()
    g = tokens.grad.abs().sum(-1)
    assert (g[0, 1:10] > 0).all() and not g[0, 11:].any() and not g[1].any()    # tokens under the two beats, nobody else's


def test_moments_of_half_precision_tokens_come_in_full_precision():
    peaks, start, tokens = some_patients()
    z, exact = segment_beats(tokens.bfloat16(), peaks.double(), start, WIDTH, 13)[0], segment_beats(tokens, peaks, start, WIDTH, 13)[0]
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, exact, atol=0.03, rtol=0)
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(segment_beats(tokens, peaks, start, WIDTH, 13)[0], exact)


@pytest.mark.parametrize("tokens, peaks", [(torch.ones(2, 50, 4), torch.ones(3, 2)), (torch.ones(50, 4), torch.ones(50, 2)),
                                           (torch.ones(2, 3, 12, 50, 4), torch.ones(2, 2))])
def test_unequal_batches_are_refused(tokens, peaks):
    with pytest.raises(PtaclError, match="expected"): segment_beats(tokens, peaks, 0.0, WIDTH, 13)


@given(peaks=st.lists(st.lists(st.floats(0, 10), max_size=5), max_size=6))
def test_lists_as_one_array_and_back(peaks):
    padded = _pad_r_peaks(peaks)
    assert padded.shape == (len(peaks), max(map(len, peaks), default=0)) and padded.dtype == torch.float32
    for row, p in zip(padded, peaks): np.testing.assert_array_equal(row[~row.isnan()], np.float32(p))


# --- detection -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    file = get_testdata_file("waveform_ecg.dcm", download=False)
    if file is None: pytest.skip("this pydicom ships no waveform_ecg.dcm")
    return read_ecg(file)


def near(found, truth, tolerance):
    assert len(found) == len(truth) and np.abs(found - truth).max() <= tolerance, f"{found} for {truth}"


def test_real_r_peaks_within_8_ms_of_the_annotation(real):
    assert len(real.r_peaks) == 10                         # the median beat's fiducial is none of them
    near(detect_r_peaks(real.signal, real.fs), real.r_peaks, 0.008)


@pytest.mark.parametrize("change", [lambda x: 3 * x, lambda x: x + 2, lambda x: x + np.sin(np.arange(x.shape[-1]) / 900),
                                    lambda x: x + np.random.default_rng(0).normal(0, 0.02, x.shape)],
                         ids=["gain", "offset", "wander", "noise"])
def test_real_r_peaks_whatever_the_recorder_adds(real, change):
    near(detect_r_peaks(change(real.signal), real.fs), real.r_peaks, 0.012)


def test_real_r_peaks_in_chosen_leads(real):
    for lead in ("I", "V5"):
        peaks = detect_r_peaks(real.signal, real.fs, lead)
        near(peaks, real.r_peaks, 0.012)
        np.testing.assert_array_equal(peaks, detect_r_peaks(real.signal[LEADS.index(lead)], real.fs))


@pytest.mark.parametrize("spoilt", ["zero", "constant", "nan", "one nan", "inf"])
def test_another_lead_takes_over_where_ii_is_no_use(real, spoilt):
    ecg = real.signal.copy()
    if spoilt == "one nan": ecg[1, 5000] = nan
    else: ecg[1] = {"zero": 0, "constant": 1.5, "nan": nan, "inf": np.inf}[spoilt]
    assert len(detect_r_peaks(ecg, real.fs, "II")) == 0    # a lead that was asked for is not replaced
    near(detect_r_peaks(ecg, real.fs), real.r_peaks, 0.05)
    ecg[:6] = ecg[1:2]                                     # all limb leads lost
    near(detect_r_peaks(ecg, real.fs), real.r_peaks, 0.05)


@pytest.mark.parametrize("ecg", [np.zeros((12, 5000)), np.full((12, 5000), nan), np.ones((12, 3)), np.eye(12, 3)],
                         ids=["flat", "nan", "short, flat", "short"])
def test_no_heartbeat_no_peaks(ecg): assert len(detect_r_peaks(ecg, 500)) == 0


@pytest.mark.parametrize("n", [0, 60, 100])
@pytest.mark.parametrize("shape", [(), (12,)])
def test_a_lead_too_short_for_a_heartbeat_has_no_peaks(n, shape):
    assert len(detect_r_peaks(np.random.default_rng(0).normal(size=(*shape, n)), 500)) == 0


@pytest.mark.parametrize("ecg, lead", [(np.zeros((8, 5000)), None), (np.zeros((1, 12, 5000)), None), (np.zeros((12, 5000)), "V9")])
def test_what_is_no_record_is_refused(ecg, lead):
    with pytest.raises(PtaclError): detect_r_peaks(ecg, 500, lead)


def test_cohort_with_an_empty_record(real):
    ecg = np.stack([real.signal, np.zeros_like(real.signal), real.signal])
    padded = r_peaks_of(ecg, real.fs)
    assert padded.shape == (3, 10) and padded[1].isnan().all()
    near(padded[2].numpy(), real.r_peaks, 0.008)


@pytest.mark.parametrize("name, rate", [("A0001", (90, 110)), ("A0002", (70, 85)), ("A0003", (120, 170)), ("A0004", (80, 140)),
                                        ("A0005", (110, 130))])
def test_real_wfdb_records_have_plausible_peaks(shared_real, name, rate):
    file = shared_real / "ecg_wfdb" / f"{name}.hea"
    if not file.exists(): pytest.skip("no real WFDB records in ../shared/real")
    ecg = read_ecg(file)
    peaks = detect_r_peaks(ecg.signal, ecg.fs)
    intervals, seconds = np.diff(peaks), ecg.signal.shape[1] / ecg.fs
    assert (intervals > 0.25).all() and (intervals < 1.5).all() and rate[0] < 60 / np.median(intervals) < rate[1]
    assert peaks[0] < 1.5 and peaks[-1] > seconds - 1.5
    others = [detect_r_peaks(ecg.signal, ecg.fs, lead) for lead in ("I", "V2", "V5")]  # by neurokit2
    marked = np.array([[np.abs(p - peak).min() < 0.1 for peak in peaks] for p in others])
    assert (marked.sum(1) >= [len(p) - 1 for p in others]).all()  # no beat of one lead is lost
    assert (marked.sum(0)[1:-1] >= 2).all()  # none is of one lead alone; V2 misses A0005's broad beats
    at = (peaks * ecg.fs).round().astype(int)
    slope = np.abs(np.diff(ecg.signal[1])); window = np.arange(-30, 30)
    steep = [slope[np.clip(i + window, 0, len(slope) - 1)].max() for i in at]
    assert np.median(steep) > np.quantile(slope, 0.97)     # they stand on QRS complexes


def test_a_large_cohort_is_read_as_its_records_one_by_one(monkeypatch):
    ecg = simulate(6, 3, cine=False).ecg.numpy()
    ecg[1, LEADS.index("II")] = 0; ecg[2] = 0; ecg[3, LEADS.index("II"), 100] = np.nan
    for lead in (None, "V5"):
        few = r_peaks_of(ecg, 500, lead)
        with monkeypatch.context() as m:
            m.setattr("ptacl.signal.beats.MANY_RECORDS", 5)
            torch.testing.assert_close(r_peaks_of(ecg, 500, lead, workers=1), few, equal_nan=True, atol=0, rtol=0)
            with pytest.raises(PtaclError, match="shape"): r_peaks_of(ecg[:, :3], 500, lead)
            with pytest.raises(PtaclError, match="choose from"): r_peaks_of(ecg, 500, "X")


# --- twelve leads together -------------------------------------------------------------------------------------------------

def missed_and_false(found, truth, tolerance=0.05):
    found, truth = np.asarray(found), np.asarray(truth)
    far = np.abs(found[:, None] - truth) > tolerance
    return int(far.all(0).sum()), int(far.all(1).sum())


def paced_record(fs=500):
    "Ventricular pacing: a spike of 1 mV for 4 ms, 100 ms before the middle of a broad QRS that is downward in II."
    r, t, rng = np.arange(0.9, 10, 60 / 61), np.arange(10 * fs) / fs, np.random.default_rng(0)
    size = dict(I=.6, II=-.9, V1=-.5, V2=-.9, V3=-1.4, V4=-1.4, V5=-.9, V6=-.5)
    lead = {}
    for name, a in size.items():
        lead[name] = rng.normal(0, 0.005, len(t))
        for k in r:
            lead[name] += a * np.exp(-0.5 * ((t - k) / 0.022) ** 2) + 0.3 * np.exp(-0.5 * ((t - k - 0.28) / 0.05) ** 2)
            lead[name][int((k - 0.1) * fs):][:max(1, round(0.004 * fs))] += 1
    I, II = lead["I"], lead["II"]
    lead |= {"III": II - I, "aVR": -(I + II) / 2, "aVL": I - II / 2, "aVF": II - I / 2}
    return np.stack([lead[name] for name in LEADS]), r


def test_t_waves_of_fibrillation_are_no_beats():
    patients = simulate(9, 2, cine=False, rhythm="af")
    truth = patients.r_peaks[8][patients.r_peaks[8].isfinite()].numpy()
    found = detect_r_peaks(patients.ecg[8].numpy(), 500)
    assert patients.phenotypes.index[8] == "sim-00009" and len(found) == len(truth) == 8
    assert missed_and_false(found, truth) == (0, 0) and np.diff(found).min() > 1


@pytest.mark.parametrize("fs", [250, 500, 1000])
def test_spikes_of_a_pacemaker_are_no_beats(fs):
    ecg, truth = paced_record(fs)
    assert missed_and_false(detect_r_peaks(ecg, fs), truth) == (0, 0)
    assert abs(int(find_beats(ecg[None], fs).paced) - len(truth)) <= 1


def test_a_lead_that_comes_off_decides_nothing(real):
    rng, truth = np.random.default_rng(0), detect_r_peaks(real.signal, real.fs)
    for lead in range(12):
        ecg = real.signal.copy()
        ecg[lead, 3000:] = rng.normal(0, 0.003, 7000)
        near(detect_r_peaks(ecg, real.fs), truth, 0.03)


def eleven_of_twelve(ecg):
    whole = detect_r_peaks(ecg.signal, ecg.fs)
    for lead in range(12):
        some = ecg.signal.copy()
        some[lead] = 0
        near(detect_r_peaks(some, ecg.fs), whole, 0.01)


def test_any_eleven_leads_say_the_same(real): eleven_of_twelve(real)


@pytest.mark.parametrize("name", ["example-XML1.xml", "example-DICOM1.dcm", "example-DICOM2.dcm"])
def test_any_eleven_leads_say_the_same_of_other_makers(name):
    package = pytest.importorskip("ecgprocess", reason="ecgprocess, which ships real ECGs, is not installed: not for Python 3.14")
    eleven_of_twelve(read_ecg(Path(package.__file__).parent / "example_data" / "example_datasets" / name))


def test_any_eleven_leads_say_the_same_of_all_wfdb_records(shared_real):
    files = sorted((shared_real / "ecg_wfdb").glob("*.hea"))
    if not files: pytest.skip("no real WFDB records in ../shared/real")
    assert len(files) >= 5
    for file in files: eleven_of_twelve(read_ecg(file))


@pytest.mark.parametrize("off", [2.2, 4.2, 7.0])
@pytest.mark.parametrize("noise", [0, 0.003])
def test_t_waves_before_an_electrode_comes_off_are_no_beats(off, noise):
    patients = simulate(10, 101, cine=False)                       # sim-00010: T is a third of R in the limb leads
    ecg, rng = patients.ecg[9].numpy().copy(), np.random.default_rng(0)
    truth = patients.r_peaks[9][patients.r_peaks[9].isfinite()].numpy()
    lost = [0, 1, 3, 4, 5]                                         # all that need the right arm
    ecg[lost, round(off * 500):] = rng.normal(0, noise, (5, 5000 - round(off * 500)))
    assert missed_and_false(detect_r_peaks(ecg, 500), truth) == (0, 0)


def test_all_beats_of_a_right_bundle_branch_block_are_marked_at_r():
    patients = simulate(5, 102, cine=False, rhythm="rbbb")         # in sim-00005 S is as large as R in the limb leads
    for ecg, r in zip(patients.ecg.numpy(), patients.r_peaks):
        truth = r[(r > 0.15) & (r < 9.85)].numpy()
        late = np.array([(found := detect_r_peaks(ecg, 500))[np.abs(found - t).argmin()] - t for t in truth])
        assert np.abs(late).max() < 0.03 and np.ptp(late) < 0.015


@pytest.mark.parametrize("share", [0.35, 0.5, 0.65])
def test_every_other_beat_may_be_low(share):
    "Also in a fast heart, whose low beats follow the high ones as T waves do."
    patients = simulate(256, 7, cine=False)
    fast = patients.r_peaks.diff(dim=1).nanmedian(1).values < 0.7
    assert fast.sum() >= 3
    t = torch.arange(5000) / 500
    for ecg, r in zip(patients.ecg[fast], patients.r_peaks[fast]):
        low = (-0.5 * ((t - r[r.isfinite()][1::2, None]) / 0.15) ** 4).exp().sum(0).clamp(max=1)
        found = torch.from_numpy(detect_r_peaks((ecg * (1 - (1 - share) * low)).numpy(), 500))
        inner = r[(r > 0.4) & (r < 9.6)]
        assert (inner[:, None] - found).abs().amin(1).max() < 0.05
        assert (found[(found > 0.4) & (found < 9.6), None] - r[r.isfinite()]).abs().amin(1).max() < 0.05   # and nothing else


def test_clean_sinus_rhythm_is_where_lead_ii_says():
    patients = simulate(20, 5, cine=False).ecg.numpy()
    late = []
    for ecg in patients:
        one, all_leads = detect_r_peaks(ecg, 500, "II"), detect_r_peaks(ecg, 500)
        late += [(all_leads - r)[np.abs(all_leads - r).argmin()] for r in one if np.abs(all_leads - r).min() < 0.1]
    assert np.median(np.abs(late)) < 0.004 and np.quantile(np.abs(late), 0.9) < 0.008  # two samples, four


def test_a_record_is_the_same_alone_and_among_others():
    ecg = simulate(20, 3, cine=False, rhythm="pvc").ecg
    together = find_beats(ecg, 500)
    for i in (0, 7, 19):
        alone = find_beats(ecg[i:i + 1], 500).r_peaks[0]
        torch.testing.assert_close(alone, together.r_peaks[i, :len(alone)], equal_nan=True, atol=1.1e-4, rtol=0)
    assert find_beats(ecg[:0], 500).r_peaks.shape[0] == 0


def test_verdicts_say_what_is_wrong():
    ecg = simulate(6, 4, cine=False).ecg
    ecg[1, :, 1500:] = 0                     # everything comes off
    ecg[2] = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0)) * 0.1
    ecg[3] = nan
    ecg[4, LEADS.index("II")] *= 0.05
    found = find_beats(ecg, 500)
    verdicts = judge_beats(found, 10)
    assert [v.split(":")[0] for v in verdicts] == ["good", "doubtful", "doubtful", "doubtful", "good", "good"]
    assert "without a beat" in verdicts[1] and rhythm_of(found.r_peaks)[0] == "regular" and rhythm_of(found.r_peaks)[3] == "unknown"
    sure = sure_r_peaks(found.r_peaks, found.agreement, verdicts)
    assert sure[1:4].isnan().all() and torch.equal(sure[0][sure[0].isfinite()], found.r_peaks[0][found.r_peaks[0].isfinite()])


def test_no_beat_begins_or_ends_at_a_doubtful_peak():
    r = torch.tensor([[0.5, 1.5, 2.5, 3.5, 4.5]])
    sure = sure_r_peaks(r, torch.tensor([[1, 1, 0.2, 1, 1]]))
    assert beat_weights(sure, torch.zeros(1), WIDTH, 50, 13)[1].tolist() == [2]
    assert beat_weights(r, torch.zeros(1), WIDTH, 50, 13)[1].tolist() == [4]


def test_marks_beside_a_record_are_compared_with_what_was_found(tmp_path):
    patients = simulate(1, 5, cine=False)
    truth = patients.r_peaks[0][patients.r_peaks[0].isfinite()].numpy()
    header = record(tmp_path, LEADS, patients.ecg[0].numpy())
    for marked, agree in ((truth, 1), (truth[::2], 2 / 3)):
        codes = ["N"] * len(marked) + ["~"]                        # the last one is noise and no beat
        wfdb.wrann("rec", "atr", np.append(np.rint(marked * 500), 4999).astype(int), codes, fs=500, write_dir=str(tmp_path))
        read = read_ecg(header)
        np.testing.assert_allclose(read.r_peaks, marked, atol=1.1e-3)
        assert read.meta["r_peaks_from"] == "annotations (.atr)"
        facts = prepare_ecg(header)[3]
        assert facts["marks"]["agree"] == pytest.approx(agree, abs=0.06)
        assert facts["beats"]["beat_quality"].startswith("good" if agree == 1 else "doubtful: the file marks")


def test_marks_of_a_dicom_are_compared_with_what_was_found(real):
    assert real.meta["r_peaks_from"] == "fiducial points"
    facts = prepare_ecg(get_testdata_file("waveform_ecg.dcm", download=False))[3]
    assert facts["marks"] == {"marks": 10, "found": 10, "agree": 1.0} and facts["beats"]["beat_quality"] == "good"


@pytest.mark.parametrize("moved, verdict", [(0, "good"), (0.45, "doubtful: the file marks 9 beats, 9 were found, F1 0.00")])
def test_marks_of_the_file_are_compared_with_what_was_found(tmp_path, moved, verdict):
    ecg, truth = paced_record()
    marks = "".join(f"<QRS><Type>0</Type><Time>{1000 * (r + moved):.0f}</Time></QRS>" for r in truth)
    file = tmp_path / "paced.xml"
    file.write_bytes(muse(ecg).replace(b"</PatientDemographics>", f"</PatientDemographics><QRSTimesTypes>{marks}</QRSTimesTypes>".encode()))
    read = read_ecg(file)
    np.testing.assert_allclose(read.r_peaks, truth + moved, atol=1e-3)
    assert read.meta["r_peaks_from"] == "QRSTimesTypes"
    _, r_peaks, _, facts = prepare_ecg(file)
    assert missed_and_false(r_peaks, truth) == (0, 0)
    assert facts["beats"]["beat_quality"].startswith(verdict[:30]) and facts["marks"]["agree"] == (0 if moved else 1)
