"""Echocardiograms: what is drawn measures what is stated, speckle belongs to the tissue, and randomness is the echo's own."""
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from ptacl.core.errors import PtaclError
from ptacl.signal.echo import ECHO_FRAMES, ECHO_SIZE, beat_frames, film_levels, preprocess_echo, square_frames
from ptacl.simulate.causes import population
from ptacl.simulate.draws import Streams, keys32
from ptacl.simulate.echo_calibration import echo_agreement, echo_calibration
from ptacl.simulate.echo_films import simulate_echo_films
from ptacl.simulate.echo_heart import ECHO_PHENOTYPES, echo_moments, echo_population, echo_shapes
from ptacl.simulate.echo_image import _DEPTHS, _LINES, beams, echo_looks, echo_scene, scan_converted, sector
from ptacl.simulate.echo_scans import simulate_echo
from ptacl.simulate.patients import simulate

SEED = 21


@pytest.fixture(scope="module")
def scans(): return simulate_echo(5, SEED, labels=True)


def drawn(patient, phases, keys=None):
    "Beams of one patient at some phases of a beat, and what they were drawn from."
    streams = Streams(SEED, torch.tensor([patient]))
    p = population(streams)
    e = echo_population(streams, p)
    rows = torch.zeros(len(phases), dtype=torch.long)
    p, e = ({k: x[rows] for k, x in d.items()} for d in (p, e))
    moments = echo_moments(p, e, torch.as_tensor(phases, dtype=torch.float64), 60 / e["hr_echo"])
    shapes = {k: x.float() for k, x in echo_shapes(p, e, moments).items()}
    looks = echo_looks(streams, {k: x[:1] for k, x in p.items()}, {k: x[:1] for k, x in e.items()})
    keys = torch.arange(len(phases), dtype=torch.int32) if keys is None else keys
    return beams(echo_scene(streams, looks, "cpu"), rows, shapes, keys), moments, looks


# --- the same patients, and nobody else's randomness ---------------------------------------------------------------------

def test_who_asks_for_echoes_gets_the_same_patients_as_before():
    with_echo, without = simulate(2, SEED, frames=6, size=48, echo=True), simulate(2, SEED, frames=6, size=48)
    for name in ("ecg", "r_peaks", "cine", "lv", "rv"):
        assert torch.equal(getattr(with_echo, name).nan_to_num(-1), getattr(without, name).nan_to_num(-1)), name
    for name in ("phenotypes", "covariates", "causes"):
        assert getattr(with_echo, name).equals(getattr(without, name)), name
    assert without.echo is None and list(with_echo.echo.phenotypes.index) == list(without.phenotypes.index)
    with pytest.raises(PtaclError, match="sinus rhythm only"): simulate(1, SEED, echo=True, rhythm="pvc")


def test_a_patient_is_the_same_in_any_batch(scans):
    for start, n in ((3, 1), (2, 3)):
        again = simulate_echo(n, SEED, start=start, labels=True)
        for i in range(n):
            k = int(again.lengths[i])
            assert k == int(scans.lengths[start + i])
            assert torch.equal(again.frames[i, :k], scans.frames[start + i, :k])
            assert torch.equal(again.labels[i, :k], scans.labels[start + i, :k])
            assert torch.equal(again.lv[i, :k], scans.lv[start + i, :k])
        assert scans.phenotypes.iloc[start:start + n].equals(again.phenotypes)


def test_other_seeds_are_other_patients(scans):
    other = simulate_echo(1, SEED + 1)
    assert not np.allclose(other.phenotypes.to_numpy(), scans.phenotypes.iloc[:1].to_numpy())


def test_films_are_frames_of_the_clip():
    films = simulate_echo_films(3, SEED, size=64)
    clips = simulate_echo(3, SEED, height=64, width=64)
    index, phase = beat_frames(clips.times, clips.r_peaks)
    for i in range(3):
        assert torch.equal(films.films[i], film_levels(clips.frames[i, index[i]][None])[0])
    assert torch.equal(films.phase, phase.float()) and films.films.shape == (3, ECHO_FRAMES, 64, 64)


# --- what is drawn measures what is stated ----------------------------------------------------------------------------------

def discs(labels, chamber, mm, tilt):
    "Volume by disks one pixel high, as if the axis were vertical; the tilt makes each of them wider and the axis longer."
    widths = (labels == chamber).sum(-1) * mm / 10
    return (math.pi / 4 * widths.double().square()).sum(-1) * mm / 10 * math.cos(tilt) ** 3


def test_labels_hold_the_stated_volumes(scans):
    streams = Streams(SEED, torch.arange(5))
    p = population(streams)
    tilt = echo_looks(streams, p, echo_population(streams, p))["tilt"]
    for i in range(5):
        k, mm = int(scans.lengths[i]), float(scans.mm[i])
        got = discs(scans.labels[i, :k], 1, mm, float(tilt[i]))
        # slanted disks are no true disks: a few per cent
        assert ((got / scans.lv[i, :k] - 1).abs() < 0.08).all()
        ratio = got.min() / got.max()
        stated = 1 - scans.phenotypes.LVEF.iloc[i] / 100
        assert abs(float(ratio) - stated) < 0.05
    assert list(scans.phenotypes) == list(ECHO_PHENOTYPES)
    y = scans.phenotypes
    assert np.allclose(y.LVSV, y.LVEDV - y.LVESV) and np.allclose(y.LVEF, 100 * y.LVSV / y.LVEDV)


def test_the_r_peak_is_where_the_ventricle_is_full(scans):
    for i in range(5):
        k = int(scans.lengths[i])
        peaks = scans.r_peaks[i][scans.r_peaks[i].isfinite()]
        assert len(peaks) == 2 and 0 <= peaks[0] < peaks[1] <= scans.times[i, k - 1] + 0.04
        near = (scans.times[i, :k, None] - peaks).abs().argmin(0)
        assert (scans.lv[i, near] > 0.97 * scans.phenotypes.LVEDV.iloc[i]).all()
        rate = scans.covariates.frame_rate.iloc[i]
        assert 30 <= rate <= 60 and torch.allclose(scans.times[i, :k].diff(), torch.full((k - 1,), 1 / rate).double())


def test_blood_is_dark_and_muscle_bright(scans):
    for i in range(5):
        k = int(scans.lengths[i])
        frames, labels = scans.frames[i, :k].float(), scans.labels[i, :k]
        blood, muscle = frames[labels == 1].mean(), frames[labels == 2].mean()
        assert muscle > blood + 50
    assert (scans.frames[:, :, ~scans.mask] == 0).all() and (scans.labels[:, :, ~scans.mask] == 0).all()


@pytest.mark.parametrize("patient", [0, 1, 2])
def test_the_mitral_valve_opens_and_closes(patient):
    phases = np.linspace(0, 0.99, 60)
    _, moments, _ = drawn(patient, phases)
    opening, volume = moments["mitral_open"].numpy(), moments["LV"].numpy()
    assert (opening[phases < 0.25] == 0).all() and opening.max() > 0.8
    es = volume.argmin()
    assert (opening[2:es] < 0.05).all()  # shut while blood is ejected
    filling = np.diff(volume) > 0.02 * np.ptp(volume)
    assert (opening[1:][filling & (np.arange(59) < 56)] > 0.2).all()


def test_annulus_and_walls_move_as_in_a_heart():
    _, w, _ = drawn(0, np.linspace(0, 0.99, 100))
    es = int(w["LV"].argmin())
    assert 0.3 < float(w["length"][0] - w["length"][es]) < 2.5  # cm towards the apex
    assert w["LA"][es] == w["LA"].max() and w["RA"].argmax() in range(es - 4, es + 5)


# --- speckle ----------------------------------------------------------------------------------------------------------------

def correlation(a, b): return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_tissue_keeps_its_speckle_and_blood_does_not():
    polar, _, _ = drawn(0, [0.0, 0.0], torch.tensor([1, 2], dtype=torch.int32))  # one moment, twice
    scan = scan_converted(polar, 240, 320)
    labels = simulate_echo(1, SEED, labels=True)
    full = labels.lv[0].nan_to_num(0).argmax()
    muscle, blood = (labels.labels[0, full] == k for k in (2, 1))
    def speckle(x, inside):  # without the levels of depths
        level = gaussian_filter(x * inside, 4) / gaussian_filter(inside.astype(np.float32), 4).clip(1e-6)
        return (x - level)[inside]
    inner = binary_erosion(blood.numpy(), iterations=16)  # away from walls and leaflets
    for inside, low, high in ((muscle.numpy(), 0.8, 1), (inner, -0.15, 0.15)):
        a, b = (speckle(x, inside) for x in scan.float().numpy())
        assert low < correlation(a, b) < high, inside.sum()


def test_speckle_travels_with_the_wall():
    # shortly after the valve has shut the base moves to the apex; a piece of the lateral wall is found again higher up
    polar, moments, looks = drawn(1, [0.16, 0.22])
    (a, b), cm = scan_converted(polar, 480, 640).float().numpy(), float(looks["depth"]) / 480
    labels = simulate_echo(1, SEED, start=1, height=480, width=640, labels=True)
    k = int((labels.phase[0] - 0.16).abs().nan_to_num(9).argmin())
    wall = labels.labels[0, k].numpy() == 2
    rows = np.flatnonzero(wall.any(1))
    low = rows[0] + int(0.70 * (rows[-1] - rows[0]))
    columns = np.flatnonzero(wall[low])
    lateral = columns[columns > columns.mean()]
    patch = np.s_[low - 40:low + 40, lateral[0] - 2:lateral[-1] + 3]
    def found(shift): return correlation(a[patch], b[patch[0].start - shift:patch[0].stop - shift, patch[1]])
    scores = {shift: found(shift) for shift in range(-25, 26)}
    moved = float(moments["length"][0] - moments["length"][1]) / cm * 0.75  # at three quarters of the length
    best = max(scores, key=scores.get)
    assert moved > 3 and abs(best - moved) < 5 and scores[best] > scores[0] + 0.05


def test_speckle_widens_with_depth():
    noise = torch.from_numpy(np.random.default_rng(0).normal(128, 40, (1, _DEPTHS, _LINES))).float()
    picture = scan_converted(noise, 480, 640)[0].float().numpy()
    def width(rows):  # pixels until neighbours across no longer agree
        x = picture[rows, 300:340]
        return next(k for k in range(1, 40) if correlation(x[:, :-k], x[:, k:]) < 0.4)
    assert width(slice(380, 440)) > 1.5 * width(slice(150, 210))


def test_the_sector_is_a_sector():
    places, weights, inside = sector(120, 200)
    assert torch.allclose(weights.sum(0)[inside.flatten()], torch.ones(int(inside.sum()))) and not weights[:, ~inside.flatten()].any()
    assert places.max() < _DEPTHS * _LINES and inside[119, 100] and not inside[119, 199] and not inside[10, 50]


# --- prepared for learning --------------------------------------------------------------------------------------------------

def test_frames_of_one_beat_at_their_phases():
    films = simulate_echo_films(64, SEED, size=32)
    assert films.films.dtype == torch.uint8 and films.phase.shape == (64, ECHO_FRAMES)
    rate, hr = (torch.tensor(films.covariates[k].tolist()) for k in ("frame_rate", "hr_echo"))
    off = (films.phase - torch.arange(ECHO_FRAMES) / ECHO_FRAMES).abs().amax(1)
    assert (off <= 0.5 / rate * hr / 60 * 1.2).all()  # half a frame; beats vary
    assert (films.films.flatten(1).amax(1) == 255).all() and (films.films.flatten(1).amin(1) == 0).all()
    assert ECHO_SIZE % 8 == 0 and ECHO_FRAMES % 2 == 0


def test_square_frames_keep_the_heart_in_proportion():
    frames = torch.zeros(2, 100, 160, dtype=torch.uint8)
    mask = torch.zeros(100, 160, dtype=torch.bool)
    mask[10:90, 40:120] = True
    frames[:, 30:70, 60:100] = 200
    for spacing, wide in (((1., 1.), 16), ((1., 2.), 32), ((2., 1.), 8)):
        box = square_frames(frames, mask, spacing, 32)[0] > 100
        assert abs(int(box.sum(0).max()) - 16) <= 1 and abs(int(box.sum(1).max()) - wide) <= 1, spacing


@pytest.mark.parametrize("peaks", [[], [0.3], [-1., 0.2], [0.2, 5.], [math.nan, 0.1]])
def test_no_whole_beat_is_refused(peaks):
    times = torch.arange(30) / 30.
    with pytest.raises(PtaclError, match="no whole beat"):
        preprocess_echo(torch.zeros(30, 8, 8, dtype=torch.uint8), times, torch.tensor(peaks or [math.nan]), torch.ones(8, 8) > 0, (1., 1.))


# --- beside real ones ---------------------------------------------------------------------------------------------------------

def test_reference_values_hold_for_another_seed():
    table = echo_calibration(8000, seed=5)
    assert table["shift"].abs().max() < 0.15 and table.spread.abs().max() < 0.15
    assert ((table["mean from"] < table["mean"]) & (table["mean"] < table["mean to"])).all()
    together = echo_agreement(8000, seed=5)
    assert -69 <= together.loc["LVEDV", "difference"] <= -23 and 0.54 <= together.loc["LVEF", "r"] <= 0.75
    with pytest.raises(PtaclError, match="at least 10"): echo_calibration(3)


@pytest.mark.parametrize("how", [dict(n=0), dict(start=-1), dict(beats=0), dict(height=8), dict(width=8)])
def test_nonsense_is_refused(how):
    with pytest.raises(PtaclError, match=f"{next(iter(how))} must be at least"): simulate_echo(**dict(n=1, seed=0) | how)


def test_keys_of_frames_are_their_own():
    patients = torch.tensor([3, 3 + (1 << 40), 4])
    assert len(set(keys32(Streams(0, patients), "echo noise", 1, "cpu").flatten().tolist())) == 3
