"CMR: centre, crop, scaling and phase, on virtual patients and on the real stack beside the repository."
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptacl.signal.cmr import cardiac_centre, crop, middle_slice, minmax, plot_cine, preprocess, resample_frames
from ptacl.core.errors import PtaclError
from ptacl.simulate.patients import simulate

REAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "cmr_sax"


@pytest.fixture(scope="module")
def cines(): return simulate(3, seed=12, size=128, ecg=False).cine.numpy()


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir(): pytest.skip("no ../shared/real/cmr_sax beside the repository: the real stack is not here")
    nib = pytest.importorskip("nibabel")
    def stack(kind):  # (X, Y, Z) each -> (F, Z, X, Y)
        return np.stack([np.asarray(nib.load(REAL / f"{kind}sa_{p}.nii.gz").dataobj) for p in ("ED", "ES")]).transpose(0, 3, 1, 2)
    spacing = nib.load(REAL / "sa_ED.nii.gz").header.get_zooms()[:2]
    return stack(""), stack("label_"), tuple(map(float, spacing))


def test_real_centre_without_labels(real):
    stack, labels, spacing = real
    truth = np.argwhere(middle_slice(labels) > 0)[:, 1:].mean(0)
    found = cardiac_centre(middle_slice(stack), spacing=spacing)
    error = np.hypot(*((found - truth) * spacing))
    print(f"centre {error:.1f} mm from the centroid of the labels")
    assert error < 15


def test_real_centre_in_every_slice_with_a_heart(real):
    stack, labels, spacing = real
    for z in range(stack.shape[1]):
        where = np.argwhere(labels[:, z] > 0)
        if not len(where): continue
        off = cardiac_centre(stack[:, z], spacing=spacing) - where[:, 1:].mean(0)
        assert np.hypot(*(off * spacing)) < 15, f"slice {z}"


def test_real_centre_with_labels(real):
    stack, labels, spacing = real
    truth = np.argwhere(middle_slice(labels) > 0)[:, 1:].mean(0)
    np.testing.assert_array_equal(cardiac_centre(middle_slice(stack), middle_slice(labels), spacing), truth)


def test_real_stack_preprocessed(real):
    stack, labels, spacing = real
    for extra in ({}, {"labels": labels}):
        out = preprocess(stack, spacing, frames=26, **extra)
        assert out.shape == (26, 84, 84) and out.dtype == np.float32 and out.min() == 0 and out.max() == 1
    found = cardiac_centre(middle_slice(stack), spacing=spacing)
    heart = preprocess((labels > 0).astype(float), spacing, centre=found)
    inside, true = (heart[0] > 0.5).sum() * 1.8**2, (middle_slice(labels)[0] > 0).sum() * np.prod(spacing)
    assert abs(inside / true - 1) < 0.05, "the whole heart lies in the crop, at its true size"


@settings(max_examples=15, deadline=None)
@given(dy=st.integers(-6, 14), dx=st.integers(-6, 14), gain=st.floats(0.1, 50), patient=st.integers(0, 2))
def test_centre_follows_the_image_and_ignores_brightness(cines, dy, dx, gain, patient):
    c = cines[patient].astype(np.float32)
    moved = cardiac_centre(np.roll(c, (dy, dx), axis=(1, 2)) * gain + 7)
    assert np.abs(moved - cardiac_centre(c) - (dy, dx)).max() < 1.5


def test_centre_survives_a_moving_edge(cines):
    c = cines[0].astype(np.float32).copy(); before = cardiac_centre(c)
    c[:, :6, :] += 60 * np.sin(2 * np.pi * np.arange(len(c)) / len(c))[:, None, None]   # a wrapped-in arm
    assert np.hypot(*(cardiac_centre(c) - before)) * 1.8 < 15


def test_empty_labels_fall_back_on_motion(cines):
    np.testing.assert_array_equal(cardiac_centre(cines[0], np.zeros_like(cines[0])), cardiac_centre(cines[0]))
    with pytest.raises(PtaclError, match="do not fit"): cardiac_centre(cines[0], np.ones((10, 10)))


@settings(max_examples=60, deadline=None)
@given(h=st.integers(5, 60), w=st.integers(5, 60), size=st.integers(1, 90), data=st.data())
def test_crop_has_its_size_and_its_centre(h, w, size, data):
    r, c = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    image = np.arange(1, h * w + 1).reshape(1, h, w)
    out = crop(image, (r, c), size)
    assert out.shape == (1, size, size)
    assert image[0, r, c] in out[0, (size - 1) // 2:size // 2 + 1, (size - 1) // 2:size // 2 + 1]


@pytest.mark.parametrize("centre", [(-3, 10), (10, 200), (float("nan"), 3)])
def test_crop_outside(centre):
    with pytest.raises(PtaclError, match="outside"): crop(np.ones((2, 40, 40)), centre)


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0.01, 1e4), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_minmax_ignores_scale_and_offset(gain, offset, seed):
    x = torch.rand(3, 5, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out = minmax(x * gain + offset)
    assert out.dtype == torch.float32 and out.amin() < 1e-2 and out.amax() > 1 - 1e-2
    assert torch.allclose(out, minmax(x), atol=1e-3 + 1e-4 * abs(offset) / gain)
    assert torch.equal(minmax(x[1:2]), minmax(x)[1:2]), "each sequence for itself"


def test_minmax_clips_at_the_percentiles(cines):
    c = torch.from_numpy(cines[:1, :, :84, :84].copy()); out = minmax(c)
    lo, hi = np.percentile(c, (0.1, 99.9))
    np.testing.assert_allclose(out.numpy(), np.clip((c.numpy() - lo) / (hi - lo), 0, 1), atol=0.02)
    assert torch.equal(out, minmax(c.float()))


def test_minmax_names_the_bad_one():
    x = torch.rand(3, 4, 8, 8); x[2] = 5
    with pytest.raises(PtaclError, match="cine 2"): minmax(x)
    x[2] = float("nan")
    with pytest.raises(PtaclError, match="cine 2"): minmax(x)


@settings(max_examples=40, deadline=None)
@given(F=st.integers(2, 50), n=st.integers(2, 52), shift=st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3))
def test_frames_keep_phase(F, n, shift):
    phase = torch.arange(F) / F
    film = torch.stack([torch.cos(2 * torch.pi * phase), torch.sin(2 * torch.pi * phase), phase])
    film = film[:, :, None, None].expand(3, F, 2, 2)
    jitter = torch.tensor(shift)
    out = resample_frames(film, n, jitter)
    assert out.shape == (3, n, 2, 2) and torch.equal(out[:, 0], film[:, 0]), "frame 0 is phase 0"
    at = (torch.arange(n) + jitter[2] * (torch.arange(n) > 0)) / n
    inside = at <= 1 - 1 / F
    assert torch.allclose(out[2, inside, 0, 0], at[inside], atol=1e-5), "time is read linearly"
    assert out.amin() >= film.amin() - 1e-6 and out.amax() <= film.amax() + 1e-6


def test_frames_are_periodic():
    film = torch.tensor([0., 0, 0, 8]).view(1, 4, 1, 1)
    assert resample_frames(film, 8).flatten().tolist() == [0, 0, 0, 0, 0, 4, 8, 4]
    assert torch.allclose(resample_frames(film.byte(), 8), resample_frames(film, 8) / 255), "bytes stand for 0 … 1"


@pytest.mark.parametrize("frames", [None, 26, 13])
@pytest.mark.parametrize("F", [2, 12, 50])
def test_preprocess_shapes(cines, F, frames):
    c = resample_frames(torch.from_numpy(cines[:1]), F)[0].numpy()
    out = preprocess(c, frames=frames)
    assert out.shape == (frames or F, 84, 84) and out.dtype == np.float32 and 0 <= out.min() <= out.max() <= 1


def test_preprocess_of_a_small_image(cines):
    assert preprocess(cines[0][:, 20:90, 20:90]).shape == (50, 84, 84)


def test_preprocess_keeps_the_field_of_view(cines):
    from scipy.ndimage import gaussian_filter, zoom
    fine = zoom(cines[0].astype(np.float32), (1, 2, 1.5), order=1, mode="nearest", grid_mode=True)
    out, same = preprocess(fine, spacing=(0.9, 1.2)), preprocess(cines[0])
    blurred = [gaussian_filter(x, (0, 2, 2)).ravel() for x in (out, same)]  # crops snap to pixels: half a pixel may differ
    assert np.corrcoef(*blurred)[0, 1] > 0.97
    wrong = gaussian_filter(preprocess(fine, spacing=(1.2, 1.2)), (0, 2, 2)).ravel()
    assert np.corrcoef(wrong, blurred[1])[0, 1] < 0.9, "another field of view would be seen"


def test_preprocess_faults(cines):
    good = cines[0].astype(float)
    nan = good.copy(); nan[0, 0, 0] = np.nan
    still = np.repeat(good[:1], 5, axis=0)
    cases = ((nan, "NaN"), (np.full((5, 90, 90), 3.0), "constant"), (good[:1], "at least 2 frames"), (good[0], "shape"),
             (still, "nothing moves"))
    for bad, why in cases:
        with pytest.raises(PtaclError, match=why): preprocess(bad)
    with pytest.raises(PtaclError, match="outside"): preprocess(good, centre=(500, 3))
    for spacing in (0, -1, (1, 2, 3, 4), (1, 0), float("nan")):
        with pytest.raises(PtaclError, match="spacing"): preprocess(good, spacing=spacing)


def test_plot(cines):
    import matplotlib; matplotlib.use("Agg")
    axes = plot_cine(preprocess(cines[0], frames=26), n=5)
    assert [a.get_title() for a in axes][0] == "phase 0.00" and len(axes) == 5
    matplotlib.pyplot.close("all")
