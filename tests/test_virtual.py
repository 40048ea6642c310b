"Virtual patients: identities, Einthoven's law, independence of the batch, calibration, images, R-peaks."
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS, PHENOTYPES
from ptacl.core.presets import FS, SPACING
from ptacl.simulate import film_loops
from ptacl.simulate.causes import DEMOGRAPHICS, REFERENCE, explained, population
from ptacl.simulate.draws import Streams
from ptacl.simulate.heart import anatomy, coverage, cross_sections, masks, polar_maps, volume_curve
from ptacl.simulate.heartbeat import DURATION
from ptacl.simulate.patients import simulate

PAPER = dict(LVEDV=.514, LVESV=.500, LVSV=.386, LVEF=.255, LVCO=.289, LVM=.616, RVEDV=.540, RVESV=.557, RVSV=.389, RVEF=.299)


@pytest.fixture(scope="module")
def few(): return simulate(10, seed=7)


@pytest.fixture(scope="module")
def cohort(): return simulate(20_000, seed=11, ecg=False, cine=False)


def test_shapes_and_tables(few):
    assert few.ecg.shape == (10, 12, FS * DURATION) and few.ecg.dtype == torch.float32
    assert few.cine.shape == (10, 50, 84, 84) and few.cine.dtype == torch.uint8
    assert list(few.phenotypes) == list(PHENOTYPES) and tuple(few.covariates)[:5] == DEMOGRAPHICS
    assert few.phenotypes.index[0] == "sim-00001" and set(few.covariates.sex) <= {"F", "M"}
    assert few.lv.shape == few.rv.shape == (10, 50) and SPACING == 1.8
    assert len(few) == 10 and torch.isfinite(few.ecg).all()


def test_identities(cohort):
    t, hr = cohort.phenotypes, cohort.covariates.hr_cmr
    for s in ("LV", "RV"):
        np.testing.assert_allclose(t[s + "SV"], t[s + "EDV"] - t[s + "ESV"])
        np.testing.assert_allclose(t[s + "EF"], 100 * t[s + "SV"] / t[s + "EDV"])
    np.testing.assert_allclose(t.LVCO, t.LVSV * hr / 1000)
    assert (t > 0).all().all()


def test_curves_have_the_volumes(few):
    t = few.phenotypes
    for curve, side in ((few.lv, "LV"), (few.rv, "RV")):
        np.testing.assert_allclose(curve[:, 0], t[side + "EDV"], rtol=1e-5)
        np.testing.assert_allclose(curve.amin(1), t[side + "ESV"], rtol=0.02)
        assert (curve.argmin(1) > 8).all() and (curve.argmin(1) < 33).all()


def test_einthoven(few):
    lead = {name: few.ecg[:, i] for i, name in enumerate(LEADS)}
    for zero in (lead["I"] + lead["III"] - lead["II"], lead["aVR"] + lead["aVL"] + lead["aVF"],
                 lead["aVR"] + (lead["I"] + lead["II"]) / 2, lead["aVL"] - (lead["I"] - lead["III"]) / 2):
        assert zero.abs().max() < 1e-5


def test_same_patient_whatever_the_batch(few):
    for n, start in ((1, 6), (3, 2)):
        part = slice(start, start + n)
        other = simulate(n, seed=7, start=start)
        assert other.phenotypes.equals(few.phenotypes[part]) and other.covariates.equals(few.covariates[part])
        assert other.causes.equals(few.causes[part])
        torch.testing.assert_close(other.ecg, few.ecg[part], atol=1e-5, rtol=0)
        torch.testing.assert_close(other.r_peaks, few.r_peaks[part], equal_nan=True)
        far = (other.cine.int() - few.cine[part].int()).abs()
        assert far.max() <= 1 and (far > 0).float().mean() < 1e-3


def test_seeds_and_patients_differ(few):
    other = simulate(2, seed=8)
    assert (other.phenotypes.LVEDV.values != few.phenotypes.LVEDV.values[:2]).all()
    noise = few.cine[:, :, -12:, :12].float().flatten(1)
    noise = noise - few.cine[:, :, -12:, :12].float().mean(1, keepdim=True).expand(-1, 50, -1, -1).flatten(1)
    r = torch.corrcoef(noise) - torch.eye(10)
    assert r.abs().max() < 0.1


def test_parts_can_be_left_out(few):
    only = simulate(2, seed=7, ecg=False)
    assert only.ecg is None and only.r_peaks is None and torch.equal(only.cine, few.cine[:2])
    only = simulate(2, seed=7, cine=False)
    assert only.cine is None and torch.allclose(only.ecg, few.ecg[:2], atol=1e-5)


@pytest.mark.parametrize("frames,size", [(25, 84), (12, 128), (50, 48)])
def test_other_sizes(frames, size):
    v = simulate(2, seed=3, ecg=False, frames=frames, size=size)
    assert v.cine.shape == (2, frames, size, size) and v.lv.shape == (2, frames)
    middle = v.cine[:, :, size // 2 - 10:size // 2 + 10, size // 2 - 10:size // 2 + 10].float()
    assert middle.std(1).mean() > 3, "the heart must move"


def test_device_argument(few):
    v = simulate(1, seed=7, device=torch.device("cpu"))
    assert v.ecg.device.type == "cpu" and torch.allclose(v.ecg, few.ecg[:1], atol=1e-5)
    if torch.cuda.is_available():
        g = simulate(10, seed=7, device="cuda")
        assert g.cine.is_cuda and torch.allclose(g.ecg.cpu(), few.ecg, atol=1e-3)
        assert ((g.cine.cpu().int() - few.cine.int()).abs() <= 1).float().mean() > 0.999


def test_threads_are_put_back():
    before = torch.get_num_threads()
    simulate(3, seed=0, cine=False)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [dict(n=0), dict(n=-3), dict(n=1, frames=1), dict(n=1, size=8), dict(n=1, start=-1)])
def test_refusals(wrong):
    with pytest.raises(PtaclError, match="at least"): simulate(seed=0, **wrong)


@pytest.mark.parametrize("name", [k for k in REFERENCE])
def test_calibration(cohort, name):
    men, sd_men, women, sd_women = REFERENCE[name]
    x = cohort.phenotypes[name] if name in cohort.phenotypes else cohort.covariates[name]
    for sex, mean, sd in (("M", men, sd_men), ("F", women, sd_women)):
        y = x[cohort.covariates.sex == sex]
        assert abs(y.mean() - mean) < 0.15 * sd and abs(y.std() / sd - 1) < 0.15


def test_ecg_readings(cohort):
    readings = dict(hr_ecg=(59, 11), pq=(166, 26), qrs=(90, 12), qt=(426, 32), axis=(26, 37), t_axis=(41, 33))
    for name, (mean, sd) in readings.items():
        x = cohort.causes[name]
        assert abs(x.mean() - mean) < 0.15 * sd and abs(x.std() / sd - 1) < 0.15, name
    assert 0.7 < np.corrcoef(cohort.covariates.hr_ecg, cohort.covariates.hr_cmr)[0, 1] < 0.85
    assert 0.5 < np.corrcoef(cohort.phenotypes.LVM, cohort.causes.qrs)[0, 1] < 0.7


def test_what_the_ecg_knows(cohort):
    from ptacl.simulate.causes import ECG_PARAMETERS
    y, ecg = cohort.phenotypes[:5000], cohort.causes[list(ECG_PARAMETERS)][:5000]
    r2, sex = explained(ecg, y), explained((cohort.covariates[["sex"]][:5000] == "M") * 1.0, y)
    for name, value in PAPER.items(): assert abs(r2[name] - value) < 0.10, (name, r2[name])
    assert 0.3 < sex.LVEDV < 0.45 and sex.LVEF < 0.15


def middle_slice(n, seed):
    s = Streams(seed, torch.arange(n))
    p = population(s)
    f = {k: x.float() for k, x in p.items()}
    lv, rv = (volume_curve(f[v + "EDV"], f[v + "ESV"], f, 50) for v in ("LV", "RV"))
    a = {k: x.float() for k, x in anatomy(s, p).items()}
    return f, a, cross_sections(a, lv, rv, f["LVM"], a["height"][:, None])


def test_middle_slice_predicts_volumes_but_not_perfectly():
    import pandas as pd
    f, _, (inner, outer, area, _) = middle_slice(3000, 4)
    x = pd.DataFrame({f"{k}{i}": g(v[:, 0]) for k, v in dict(a=inner**2, b=outer**2, c=area).items()
        for i, g in enumerate((lambda v: v[:, 0], lambda v: v.amin(1)))})
    r2 = explained(x, pd.DataFrame({k: f[k] for k in ("LVEDV", "LVM", "RVEDV", "LVEF")}))
    assert 0.65 < r2.LVEDV < 0.9 and 0.65 < r2.LVM < 0.92 and 0.6 < r2.RVEDV < 0.9 and r2.LVEF < 0.85


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([84, 100, 128]))
def test_masks_have_the_areas_of_the_sections(seed, size):
    _, a, cut = middle_slice(2, seed)
    m = {k: v.sum((-1, -2)) * (SPACING / 10) ** 2 for k, v in masks(coverage(a, polar_maps(a, size), *cut)).items()}
    inner, outer, area, _ = cut
    torch.testing.assert_close(m["lv"] + m["myo"], np.pi * outer**2, rtol=0.04, atol=0.2)
    assert (m["lv"] / (np.pi * inner**2) - 1).abs().max() < 0.06
    if size == 128: assert ((m["rv"] - area).abs() < 0.06 * area + 0.5).all()


def test_wall_keeps_its_volume():
    f, a, _ = middle_slice(3, 9)
    lv, rv = (volume_curve(f[v + "EDV"], f[v + "ESV"], f, 20) for v in ("LV", "RV"))
    h = torch.linspace(-0.7, 13, 686)[None].expand(3, -1)             # 0.02 cm apart, from below the apex
    inner, outer, area, _ = cross_sections(a, lv, rv, f["LVM"], h)
    area_sum = lambda x: x.sum(1) * 0.02
    torch.testing.assert_close(area_sum(np.pi * inner**2), lv, rtol=0.03, atol=0)
    mass = area_sum(np.pi * (outer**2 - inner**2)) * 1.05
    torch.testing.assert_close(mass, f["LVM"][:, None].expand(-1, 20), rtol=0.05, atol=0)
    torch.testing.assert_close(area_sum(area), rv, rtol=0.03, atol=0)


def test_grey_levels(few):
    s = Streams(7, torch.arange(10))
    p = population(s)
    a = {k: x.float() for k, x in anatomy(s, p).items()}
    mask = masks(coverage(a, polar_maps(a, 84), *cross_sections(a, few.lv, few.rv, p["LVM"].float(), a["height"][:, None])))
    grey = few.cine.float() / 255
    for name, level, least, most in (("lv", .58, .06, .18), ("rv", .64, .06, .23), ("myo", .22, .03, .1)):
        x = grey[mask[name][:, 0] > 0.9]
        assert abs(x.mean() - level) < 0.09 and least < x.std() < most, (name, x.mean(), x.std())
    back = np.quantile(grey[sum(mask.values())[:, 0] < 0.01], (.05, .5, .95))
    assert np.abs(back - (.02, .16, .68)).max() < 0.13, back
    assert (few.cine == 255).float().mean() < 0.01


def test_neurokit_finds_the_peaks():
    import neurokit2 as nk
    warnings.filterwarnings("ignore")
    v, late, all_ = simulate(60, seed=5, cine=False), [], 0
    for x, r in zip(v.ecg[:, 1].numpy(), v.r_peaks.numpy()):
        found = nk.ecg_peaks(nk.ecg_clean(x, sampling_rate=FS), sampling_rate=FS)[1]["ECG_R_Peaks"] / FS
        true = r[(r > 0.5) & (r < 9.5)]
        d = found[np.abs(found[None] - true[:, None]).argmin(1)] - true
        late += list(d[np.abs(d) < 0.05])
        all_ += len(true)
    assert len(late) > 0.97 * all_ and abs(np.median(late)) < 0.01


@pytest.mark.skipif(os.name == "nt", reason="limits of files")
def test_a_full_disk_leaves_no_older_code(tmp_path):
    "A loop is changed, and what was compiled of it cannot be kept: nobody is handed what was compiled before."
    loops, env = tmp_path / "loops.py", os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(film_loops.__file__).parents[2])])}
    def answer(most):
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); import loops; print(loops.add(1))"
        return subprocess.run([sys.executable, "-B", "-c", code], check=True, capture_output=True, text=True, env=env).stdout.strip()
    for number, most in ((1, -1), (100, 2000), (100, -1)):                 # bytes that a file may have; -1: any number
        loops.write_text(f"from ptacl.core.compiled import compiled\n@compiled\ndef add(x): return x + {number}\n")
        assert answer(most) == str(1 + number)


def both_ways(monkeypatch, **how): # -> films and labels by the compiled loops; the same by operations on whole frames
    "Virtual patients whose films are drawn twice."
    from ptacl.simulate import image
    from ptacl.simulate.draws import folded
    films, again, by_loops = [], [], image._draw_films_by_loops
    def draw(scene, cut, keys, base, share, images, labels):
        by_loops(scene, cut, keys, base, share, images, labels)
        others = [None if x is None else torch.zeros_like(x) for x in (images, labels)]
        image._draw_films(scene, cut, keys, folded(base), share, *others)
        films.append((images, labels))
        again.append(others)
    monkeypatch.setattr(image, "_draw_films_by_loops", draw)
    simulate(seed=3, ecg=False, **how)
    return zip(films, again)


@pytest.mark.parametrize("how", [dict(n=6), dict(n=2, frames=12, stack=True), dict(n=2, size=100, spacing=1.3, gating_jitter=0.1)], ids=str)
def test_compiled_films_are_those_of_whole_frames(how, monkeypatch):
    films = [*both_ways(monkeypatch, **how)]
    assert films
    for (images, labels), (others, other_labels) in films:
        apart = (images.int() - others.int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3
        assert (labels is None) == ("stack" not in how) and (labels is None or torch.equal(labels, other_labels))


def test_films_are_the_same_to_the_bit_whoever_else_is_drawn(few):
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert torch.equal(simulate(10, seed=7, ecg=False).cine, few.cine)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(simulate(1, seed=7, start=4, ecg=False).cine[0], few.cine[4])


def test_only_those_who_simulate_load_numba():
    code = "import sys, ptacl, ptacl.train.loop, ptacl.simulate.patients; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_films_are_drawn_where_nothing_compiled_can_be_kept(tmp_path):
    "A package that cannot be written, a user without a home: a file stands where a folder would be made."
    (tmp_path / "file").touch()
    shutil.copytree(Path(film_loops.__file__).parents[1], tmp_path / "ptacl", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("core", "simulate"): (tmp_path / "ptacl" / folder / "__pycache__").touch()
    env = os.environ | dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "IPYTHONDIR"), str(tmp_path / "file"))
    env.pop("NUMBA_CACHE_DIR", None)
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    code = ("import ptacl; from ptacl.simulate import film_loops as f; print(ptacl.__file__, f.share(f.HALF), f.share.stats.cache_path)")
    said = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, env=env, cwd=tmp_path).stdout
    assert said.split() == [str(tmp_path / "ptacl" / "__init__.py"), "0.5", "None"]
