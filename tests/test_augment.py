"Augmentation: shapes, ranges, phase, repeatability, and what each item must leave alone."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptacl.signal.augment import CMRAugment, augment_ecg, centre_crop, _crop_at, fourier_surrogate, rescale
from ptacl.core.errors import PtaclError
from ptacl.core.presets import get_preset, paper_regression, workshop

FULL = paper_regression  # augmented at full strength

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request): return request.param


@pytest.mark.parametrize("preset", [workshop, paper_regression], ids=lambda p: p.name)
def test_shapes_and_devices(device, preset):
    crop, start = augment_ecg(torch.randn(3, 12, 5000, device=device), preset)
    assert crop.shape == (3, 12, preset.ecg_crop) and start.shape == (3,) and crop.device.type == start.device.type == device
    assert (start >= 0).all() and (start + preset.ecg_crop / preset.fs <= 10).all()
    cine = CMRAugment(preset).to(device)(torch.rand(3, 50, 84, 84, device=device))
    assert cine.shape == (3, preset.frames, preset.size, preset.size)
    assert cine.device.type == device and cine.dtype == torch.float32
    assert cine.amin() >= 0 and cine.amax() <= 1


def test_start_agrees_with_content(device):
    clock = torch.arange(5000., device=device).expand(16, 12, 5000)
    crop, start = augment_ecg(clock / 1000, workshop, surrogate=0, noise=0, scale=0)
    begin = (crop[:, 0, 100] * 1000 - 100) / 500
    assert torch.allclose(begin, start, atol=2e-3) and start.unique().numel() > 8, "each patient has a window of its own"
    crop, start = centre_crop(clock, workshop)
    assert torch.equal(crop[:, 5, 0], start * 500)


@settings(max_examples=25, deadline=None)
@given(starts=st.lists(st.integers(0, 60), min_size=1, max_size=6), length=st.integers(1, 40))
def test_crop_at_is_slicing(starts, length):
    x = torch.randn(len(starts), 12, 100)
    out = _crop_at(x, torch.tensor(starts), length)
    assert all(torch.equal(o, e[:, s:s + length]) for o, e, s in zip(out, x, starts))


def test_every_start_is_possible():
    preset = get_preset("workshop", ecg_crop=150)
    _, start = augment_ecg(torch.zeros(2000, 12, 200), preset)
    assert start.min() == 0 and start.max() == pytest.approx(0.1)


@pytest.mark.parametrize("n", [100, 101, 1500, 2500])
def test_surrogate_keeps_spectrum_and_leads(n):
    x = torch.randn(4, 12, n, dtype=torch.float64); x[:, 2] = 2 * x[:, 0] - x[:, 1]
    y = fourier_surrogate(x, 0.4)
    assert torch.allclose(torch.fft.rfft(y).abs(), torch.fft.rfft(x).abs(), atol=1e-8)
    assert torch.allclose(y[:, 2], 2 * y[:, 0] - y[:, 1], atol=1e-8)
    cross = lambda z: torch.fft.rfft(z[:, 3]) * torch.fft.rfft(z[:, 7]).conj()
    assert torch.allclose(cross(y), cross(x), atol=1e-6), "leads keep their phase to each other"
    assert not torch.allclose(y, x, atol=0.05)
    assert torch.allclose(fourier_surrogate(x, 0.0), x)


def test_surrogate_differs_between_patients_and_keeps_beats():
    t = torch.arange(2500) / 500
    beat = torch.exp(-0.5 * (((t % 0.8) - 0.4) / 0.015) ** 2)
    x = ((beat - beat.mean()) / beat.std()).expand(32, 12, 2500)
    y = fourier_surrogate(x)
    assert not torch.allclose(y[0], y[1], atol=0.05)
    for k in range(6):
        c = round((0.4 + 0.8 * k) * 500); assert (y[:, 0, c - 50:c + 50].argmax(1) - 50).abs().max() <= 2
    y = fourier_surrogate(x, torch.linspace(0, 0.3, 32).view(-1, 1, 1))
    assert torch.allclose(y[0], x[0], atol=1e-4) and (y[-1] - x[-1]).std() > 0.2, "a strength for each patient"


def test_surrogate_energy():
    x = torch.randn(64, 12, 2500)
    for m in (0.075, 0.3):
        sinc = math.sin(math.pi * m) / (math.pi * m)
        noise = (fourier_surrogate(x, m) - sinc * x).square().mean() / x.square().mean()
        assert noise.item() == pytest.approx(1 - sinc**2, rel=0.05)


def test_rescale_never_flips():
    y = rescale(torch.ones(5000, 12, 2), 0.5)
    assert y.min() > 0 and (y == y[:, :1, :1]).all() and y[:, 0, 0].log().std().item() == pytest.approx(0.5, abs=0.05)


def test_repeatable(device):
    ecg, cine = torch.randn(4, 12, 5000, device=device), torch.rand(4, 50, 84, 84, device=device)
    def draw(seed):
        torch.manual_seed(seed); return (*augment_ecg(ecg, FULL), CMRAugment(FULL).to(device)(cine))
    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1)))
    assert not any(torch.equal(a, b) for a, b in zip(draw(1), draw(2)))


@pytest.mark.parametrize("shape", [(2, 12, 1499), (12, 5000)])
def test_short_records(shape):
    with pytest.raises(PtaclError, match="whole records"): augment_ecg(torch.zeros(shape), workshop)
    with pytest.raises(PtaclError, match="whole records"): centre_crop(torch.zeros(shape), workshop)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), frames=st.integers(26, 50))
def test_cine_keeps_its_clock(seed, frames):
    clock = torch.linspace(0.3, 0.6, frames).view(1, -1, 1, 1).expand(4, frames, 84, 84)
    torch.manual_seed(seed)
    middle = CMRAugment(FULL, noise=0)(clock)[:, :, 42, 42]
    assert (middle[:, 1:-1] > middle[:, :-2]).all()
    middle = CMRAugment(FULL, noise=0, light=0)(clock)[:, :, 42, 42]
    assert torch.allclose(middle[:, 0], torch.full((4,), 0.3), atol=1e-4)
    if frames > 26:
        at = (middle[:, 1:25] - 0.3) / 0.3 * (frames - 1) / frames * 26 - torch.arange(1, 25)
        assert (at.abs() <= 0.5 + 1e-2).all() and at.std(1).max() < 0.01, "one shift for all frames, within half a step"


def test_all_frames_move_together():
    picture = torch.rand(4, 1, 84, 84).expand(4, 50, 84, 84)
    out = CMRAugment(FULL, noise=0)(picture)
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-5)
    assert (out[:, 0] - picture[:, 0]).abs().mean((1, 2)).min() > 0.05, "and every patient is changed"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_shade_takes_each_pixel_by_itself(seed):
    film = torch.rand(4, 26, 84, 84); some = film.flatten(1)[:, ::7].reshape(4, 2, -1)
    torch.manual_seed(seed); whole = CMRAugment(FULL, noise=0).shade(film)
    torch.manual_seed(seed); part = CMRAugment(FULL, noise=0).shade(some)
    assert part.shape == some.shape and torch.equal(part, whole.flatten(1)[:, ::7].reshape(4, 2, -1))
    grey = CMRAugment(FULL, noise=0).shade(torch.full((8, 100), 0.5))
    assert (grey.std(1) < 1e-6).all() and len(grey[:, 0].unique()) == 8, "each patient in a light of its own"
    spread = (CMRAugment(FULL, light=0).shade(torch.full((64, 1000), 0.5)) - 0.5).std(1)
    assert spread.max() < 0.06 and spread.min() < 0.02 and spread.mean() > 0.015, "each patient has noise of its own strength"


def test_switched_off_is_identity():
    cine = torch.rand(4, 26, 84, 84)
    still = CMRAugment(FULL, time=0, scale=(1, 1), degrees=0., flip=0, light=0, blur=0, noise=0)(cine)
    corner = still[:, :, 6:-6, 6:-6] - cine[:, :, 6:-6, 6:-6]
    assert corner.abs().mean() < 0.08, "only the aspect ratio is drawn"


def test_eval_only_resamples():
    cine = torch.rand(2, 26, 84, 84)
    assert torch.equal(CMRAugment(FULL).eval()(cine), cine)


def test_input_is_left_alone():
    ecg, cine = torch.randn(2, 12, 5000), torch.rand(2, 26, 84, 84)
    before = ecg.clone(), cine.clone()
    augment_ecg(ecg, FULL); CMRAugment(FULL)(cine)
    assert torch.equal(ecg, before[0]) and torch.equal(cine, before[1])
