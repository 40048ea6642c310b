"The rivals on any input: against reference implementations and plain loops, patient by patient, from any start."
from copy import deepcopy
from dataclasses import replace
from itertools import permutations
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss

import ptacl.rivals.cmae
import ptacl.rivals.methods
import ptacl.rivals.simclr
from ptacl.rivals.cmae import CMAE, Autoencoder, autoencoder_step, beat_preset, cmae_step, _cmae_view, _median_beat, _mix
from ptacl.rivals.dualphase import DualPhase, TwoPhases, dualphase_step, _mlp_predict, phenotype_step, _three_way_loss, _volumes
from ptacl.rivals.eccl import eccl_step, _eccl_view, _flip, start_eccl
from ptacl.nets.encoders import CMREncoder, ECGEncoder, EchoEncoder
from ptacl.core.errors import PtaclError
from ptacl.rivals.methods import METHODS, PRETRAININGS, load_method, train_method, _with_standard_targets
from ptacl.rivals.mmcl import MMCL, frame_least_like_diastole, mmcl_step, _mmcl_view, _three_channels
from ptacl.nets.joint import PTACL
from ptacl.nets.losses import global_contrastive_loss, masked_mean
from ptacl.core.presets import PHENOTYPES, paper_regression, workshop
from ptacl.rivals.simclr import SimCLR, nt_xent, simclr_step, _two_views
from ptacl.data.pairs import Pairs, pairs_of_virtual
from ptacl.signal.cmr import shrink
from ptacl.simulate.patients import simulate

tiny = replace(workshop, width=32, heads=2, ecg_layers=1, cmr_layers=1, frozen_layers=0, decoder_width=32, proj_dim=16, batch_size=8,
               ecg_crop=1000, size=32, epochs_mae=1, epochs_joint=1)
seeds = st.integers(0, 10**6)


def made_up(B=6, F=12, Z=4, seed=0):
    "A batch of nothing in particular, with stack and targets."
    g = torch.Generator().manual_seed(seed)
    stack = torch.randint(0, 256, (B, F, Z, 84, 84), generator=g, dtype=torch.uint8)
    return {"ecg": torch.randn(B, 12, 5000, generator=g), "r_peaks": torch.arange(0.6, 10, 0.9).repeat(B, 1), "stack": stack,
            "cine": stack[:, :, Z // 2], "targets": torch.randn(B, len(PHENOTYPES), generator=g)}


def of(batch, i):
    return {k: v[i] for k, v in batch.items()}


@pytest.fixture(scope="module")
def data():
    vp = simulate(16, seed=3)
    pairs = pairs_of_virtual(vp)
    targets = torch.tensor(vp.phenotypes.to_numpy(), dtype=torch.float32)
    targets[0] = torch.nan      # a patient of whom nothing was measured
    targets[1:5, 2] = torch.nan
    return Pairs(pairs.ecg, pairs.r_peaks, pairs.cine, {"stack": pairs.cine[:, :, None].expand(-1, -1, 3, -1, -1), "targets": targets})


STEPS = {"SimCLR ECG": (lambda: SimCLR(ECGEncoder(tiny)), simclr_step), "SimCLR CMR": (lambda: SimCLR(CMREncoder(tiny)), simclr_step),
         "MMCL": (lambda: MMCL(tiny), mmcl_step), "CMAE": (lambda: CMAE(tiny), cmae_step), "ECCL": (lambda: start_eccl(tiny), eccl_step),
         "TwoPhases": (lambda: TwoPhases(tiny), phenotype_step), "DualPhase": (lambda: DualPhase(tiny), dualphase_step)}


# --- every step -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_finite_repeatable_and_reaches_every_free_weight(name):
    build, step = STEPS[name]
    torch.manual_seed(0)
    model, batch = build(), made_up()
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        losses.append(step(model, batch)["loss"])
    assert losses[0].ndim == 0 and torch.isfinite(losses[0]) and losses[0] == losses[1]
    losses[0].backward()
    assert not [n for n, w in model.named_parameters() if w.requires_grad and (w.grad is None or not torch.isfinite(w.grad).all())]
    assert all(w.grad is None for w in model.parameters() if not w.requires_grad)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_leaves_its_batch_alone(name):
    build, step = STEPS[name]
    model, batch = build(), made_up()
    before = {k: v.clone() for k, v in batch.items()}
    step(model, batch)
    assert batch.keys() == before.keys() and all(torch.equal(batch[k], before[k]) for k in batch)


@pytest.mark.parametrize("name", ["MMCL", "CMAE", "ECCL", "DualPhase"])
def test_a_patient_is_encoded_the_same_in_any_company(name):
    torch.manual_seed(0)
    model, batch = STEPS[name][0]().eval(), made_up()
    with torch.no_grad():
        for f in (model.features, model.embeddings):
            together, alone = f(batch), f(of(batch, slice(2, 3)))
            for a, b in zip(together, alone): torch.testing.assert_close(a[2:3], b, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.ecg_features(batch), model.features(batch)[0], rtol=1e-3, atol=1e-4)
        no_mri = {k: batch[k] for k in ("ecg", "r_peaks")}
        torch.testing.assert_close(model.ecg_features(no_mri), model.ecg_features(batch))


@pytest.mark.parametrize("name", ["MMCL", "ECCL", "DualPhase"])
def test_ecg_features_look_at_the_ecg_alone(name):
    model, batch = STEPS[name][0]().eval(), made_up()
    other = batch | {k: made_up(seed=1)[k] for k in ("stack", "cine")}
    with torch.no_grad():
        assert torch.equal(model.features(other)[0], model.features(batch)[0])
        assert not torch.allclose(model.features(other)[1], model.features(batch)[1])


@pytest.mark.long
@pytest.mark.parametrize("name", ["simclr_ecg", "simclr_cmr", "autoencoder_ecg", "autoencoder_cmr", "phases"])
def test_pre_training_steps_at_the_size_of_the_paper(name):
    build, step, _ = PRETRAININGS[name]
    step(build(paper_regression), made_up(B=2, F=50, Z=10))["loss"].backward()


@pytest.mark.long
@pytest.mark.parametrize("build, step", [(MMCL, mmcl_step), (CMAE, cmae_step), (start_eccl, eccl_step), (DualPhase, dualphase_step)])
def test_joint_steps_at_the_size_of_the_paper(build, step):
    step(build(paper_regression), made_up(B=2, F=50, Z=10))["loss"].backward()


# --- SimCLR ---------------------------------------------------------------------------------------------------------------

@given(seeds, st.integers(2, 9), st.floats(0.05, 2))
def test_nt_xent_is_that_of_the_metric_learning_library(seed, B, tau):
    a, b = torch.randn(2, B, 5, generator=torch.Generator().manual_seed(seed))
    theirs = NTXentLoss(temperature=tau)(torch.cat([a, b]), torch.arange(B).repeat(2))
    torch.testing.assert_close(nt_xent(a, b, tau), theirs, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_nt_xent_does_not_care_which_view_came_first(seed):
    a, b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(nt_xent(a, b, 0.2), nt_xent(b, a, 0.2))
    torch.testing.assert_close(nt_xent(a[order], b[order], 0.2), nt_xent(a, b, 0.2))


def test_negatives_come_from_all_processes():
    a, b = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    parts = []
    for own in (slice(0, 3), slice(3, 8)):
        with patch.object(ptacl.rivals.simclr, "with_others", side_effect=[(a, own), (b, own)]): parts.append(nt_xent(a[own], b[own], 0.1))
    torch.testing.assert_close(3 / 8 * parts[0] + 5 / 8 * parts[1], nt_xent(a, b, 0.1))


def test_the_two_views_are_of_the_same_patients():
    batch = made_up(B=4)
    still = replace(tiny, augment=0.0, ecg_crop=5000)
    views = _two_views(ECGEncoder(still), batch)
    torch.testing.assert_close(views, batch["ecg"].repeat(2, 1, 1), rtol=1e-3, atol=1e-3)


# --- MMCL -----------------------------------------------------------------------------------------------------------------

@given(st.integers(3, 60), st.integers(0, 10**6), st.floats(0, 0.02))
def test_end_systole_of_a_beating_disc(F, seed, noise):
    g = torch.Generator().manual_seed(seed)
    late = torch.randint(1, F - 1, (3,), generator=g) if F > 3 else torch.ones(3, dtype=torch.long)
    f = torch.arange(F)
    bump = (1 - (f - late[:, None]).abs() / F).clamp(min=0) ** 2
    bump[:, 0] = 0
    radius = 30 - 12 * bump
    yx = torch.arange(84) - 41.5
    film = torch.sigmoid(radius[..., None, None] - (yx[:, None] ** 2 + yx**2).sqrt())
    film = film + noise * torch.randn(film.shape, generator=g)
    assert ((frame_least_like_diastole(film) - late).abs() <= max(1, F // 15)).all()


@given(st.integers(1, 14))
def test_three_slices_of_any_stack(Z):
    stack = torch.arange(Z, dtype=torch.uint8).view(1, 1, Z, 1, 1).expand(2, 5, Z, 6, 6)
    base, middle, apex = _three_channels({"stack": stack})[0, :, 0, 0].tolist()
    assert base <= middle <= apex and middle == Z // 2
    assert Z < 3 or base < middle < apex
    assert Z < 5 or (base > 0 and apex < Z - 1)     # the outermost are left out


def test_mmcl_says_which_channels_it_sees():
    with_stack, without = made_up(F=9), {k: v for k, v in made_up(F=9).items() if k != "stack"}
    slices, moments = MMCL(tiny).eval(), MMCL(tiny, slices=False).eval()
    assert not torch.equal(slices.centre(with_stack)["channels"], moments.centre(with_stack)["channels"])
    assert torch.equal(moments.centre(with_stack)["channels"], slices.centre(without)["channels"])
    torch.testing.assert_close(slices.centre(with_stack)["channels"], shrink(_three_channels(with_stack) / 255, tiny.size))


def test_mmcl_augments_no_time_and_keeps_bytes_in_range():
    x = _mmcl_view(MMCL(tiny), made_up())["channels"]
    assert x.shape == (6, 3, tiny.size, tiny.size) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    flat = made_up() | {"stack": torch.tensor([10, 40, 90, 200], dtype=torch.uint8).view(1, 1, 4, 1, 1).expand(6, 12, 4, 84, 84)}
    still = MMCL(replace(tiny, augment=0.0))
    torch.testing.assert_close(_mmcl_view(still, flat)["channels"][:, :, 16, 16] * 255, torch.tensor([[40., 90., 200.]]).repeat(6, 1),
                               rtol=0, atol=1)


# --- CMAE -----------------------------------------------------------------------------------------------------------------

@given(seeds, st.integers(0, 14), st.booleans())
def test_median_beat_is_that_of_a_loop(seed, n, outside):
    g = torch.Generator().manual_seed(seed)
    ecg = torch.randn(2, 12, 2000, generator=g)
    peaks = torch.full((2, 15), torch.nan)
    peaks[0, :n] = torch.rand(n, generator=g).sort().values * (6 if outside else 4) - (1 if outside else 0)
    peaks[1, 0] = 1.0
    beat, valid = _median_beat(ecg, peaks, length=300, before=0.2)
    for i in range(2):
        windows = []
        for r in peaks[i]:
            if torch.isnan(r): continue
            s = int(torch.round((r - 0.2) * 500))
            if s >= 0 and s + 300 <= 2000: windows.append(ecg[i, :, s:s + 300].numpy())
        assert bool(valid[i]) == bool(windows)
        want = np.sort(np.stack(windows), 0)[(len(windows) - 1) // 2] if windows else np.zeros((12, 300))
        np.testing.assert_allclose(beat[i].numpy(), want, atol=1e-6)


def test_patients_without_a_beat_do_not_count():
    torch.manual_seed(0)
    model, batch = CMAE(tiny), made_up()
    batch["r_peaks"][0] = torch.nan
    parts = []
    for noise in (0.0, 50.0):      # whatever that patient's ECG is
        b = batch | {"ecg": batch["ecg"].clone()}
        b["ecg"][0] += noise
        torch.manual_seed(1)
        parts.append(cmae_step(model.eval(), b)["ecg"])
    assert torch.equal(*parts) and torch.isfinite(parts[0])
    batch["r_peaks"][:] = torch.nan
    assert cmae_step(model.train(), batch)["ecg"] == 0


def cmae_without(batch, model, seed=1):
    "A step, what it leaves in the ECG's half, and its gradients there."
    model = deepcopy(model).train()
    torch.manual_seed(seed)
    out = cmae_step(model, batch)
    out["loss"].backward()
    grads = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}
    return out, dict(model.ecg.named_buffers()), grads


def test_patients_without_a_beat_are_compared_with_nobody():
    "The contrast, and what batch norms learn of ECGs, are those of the others alone."
    torch.manual_seed(0)
    model, batch = CMAE(tiny), made_up(8)
    batch["r_peaks"][[1, 4]] = torch.nan
    others = of(batch, [0, 2, 3, 5, 6, 7])
    alone = deepcopy(model).train()
    z_ecg = alone.ecg(_cmae_view(others, tiny)["beat"])
    z_cmr = deepcopy(model).train().cmr(_cmae_view(batch, tiny)["cine"])[[0, 2, 3, 5, 6, 7]]   # films are everybody's
    out, statistics, _ = cmae_without(batch, model)
    assert torch.equal(out["contrast"], global_contrastive_loss(z_ecg, z_cmr, torch.exp(-model.scale)))
    for name, known in alone.ecg.named_buffers(): assert torch.equal(statistics[name], known), name
    ecg_alone = [Autoencoder(ECGEncoder(beat_preset(tiny))).train() for _ in range(2)]
    ecg_alone[1].load_state_dict(ecg_alone[0].state_dict())
    losses = [autoencoder_step(m, b)["loss"] for m, b in zip(ecg_alone, (batch, others))]
    torch.testing.assert_close(*losses)
    for a, b in zip(*(m.state_dict().values() for m in ecg_alone)): assert torch.equal(a, b)


@pytest.mark.parametrize("have", [0, 1])
def test_a_step_where_next_to_nobody_has_a_beat(have):
    torch.manual_seed(0)
    model, batch = CMAE(tiny), made_up()
    batch["r_peaks"][have:] = torch.nan
    out, statistics, grads = cmae_without(batch, model)
    assert out["contrast"] == 0 and all(torch.isfinite(x).all() for x in (*out.values(), *statistics.values(), *grads.values()))
    assert any(g.any() for k, g in grads.items() if "cmr.encoder" in k) and not any(g.any() for k, g in grads.items() if "ecg.encoder" in k)
    alone = Autoencoder(ECGEncoder(beat_preset(tiny))).train()
    assert autoencoder_step(alone, batch)["loss"] == 0 and all(torch.isfinite(b).all() for b in alone.buffers())


def test_where_all_have_a_beat_a_step_is_what_it_says():
    "To the last bit: both errors of the mix, and a tenth of the contrast."
    torch.manual_seed(0)
    model, batch = CMAE(tiny), made_up()
    out, _, grads = cmae_without(batch, model)
    model.train()
    view = _cmae_view(batch, tiny)
    z_ecg, z_cmr = model.features(view)
    torch.manual_seed(1)
    mixed = torch.where(torch.rand(z_ecg.shape[1]) < 0.5, z_ecg, z_cmr)
    parts = [masked_mean(model.ecg.error(mixed, view["beat"]), view["valid"]), model.cmr.error(mixed, view["cine"]).mean(),
             global_contrastive_loss(z_ecg, z_cmr, torch.exp(-model.scale))]
    loss = parts[0] + parts[1] + 0.1 * parts[2]
    loss.backward()
    assert torch.equal(loss, out["loss"]) and all(torch.equal(p.grad, grads[k]) for k, p in model.named_parameters())


@pytest.mark.parametrize("dropped", ["ecg", "cmr"])
def test_a_dropped_modality_gets_no_gradient_from_the_reconstruction(dropped):
    torch.manual_seed(0)
    model, batch = CMAE(tiny), made_up()
    always = torch.full((tiny.width // 2,), 0.0 if dropped == "cmr" else 1.0)
    with patch.object(ptacl.rivals.cmae.torch, "rand", return_value=always): out = cmae_step(model, batch, weight=0.0)
    out["loss"].backward()
    moved = {side: any(w.grad is not None and w.grad.abs().sum() > 0 for w in getattr(model, side).latent.parameters()) for side in ("ecg", "cmr")}
    assert moved == {"ecg": dropped != "ecg", "cmr": dropped != "cmr"}
    decoders = [w.grad for side in (model.ecg, model.cmr) for w in side.decoder.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in decoders)      # both decoders work all the same


@given(seeds)
def test_mixing_takes_about_half_from_each_and_the_same_from_all_patients(seed):
    torch.manual_seed(seed)
    mixed = _mix(torch.zeros(3, 400), torch.ones(3, 400), torch.tensor([True, False, True]))
    assert 0.35 < mixed[0].mean() < 0.65 and torch.equal(mixed[0], mixed[2])
    assert (mixed[1] == 1).all()                                     # who has no beat has the film's alone


def test_the_view_of_the_cmae_is_made_once():
    view = _cmae_view(made_up(), tiny)
    assert _cmae_view(view, tiny) is view and view["beat"].shape == (6, 12, 600)


@pytest.mark.parametrize("build, step", [(SimCLR, simclr_step), (Autoencoder, autoencoder_step)])
def test_first_phases_of_echoes_are_of_echoes(build, step):
    "They say so, and look at the echo alone."
    torch.manual_seed(0)
    model, batch = build(EchoEncoder(tiny)), made_up()
    assert model.config["kind"] == f"{build.__name__}-Echo"
    batch["echo"] = batch["cine"]
    found = []
    for cine in (batch["cine"], 255 - batch["cine"]):
        torch.manual_seed(1)
        found.append(step(model.eval(), batch | {"cine": cine})["loss"])
    assert torch.equal(*found) and torch.isfinite(found[0])
    torch.manual_seed(1)
    assert not torch.equal(step(model, batch | {"echo": batch["echo"] // 2})["loss"], found[0])


# --- ECCL -----------------------------------------------------------------------------------------------------------------

@given(seeds, st.floats(0, 1))
def test_flips_are_their_own_inverse(seed, p):
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(seed))
    for axis in (-1, -2, None):
        torch.manual_seed(seed); once = _flip(x, axis, p)
        torch.manual_seed(seed); assert torch.equal(_flip(once, axis, p), x)


def test_every_patient_tosses_a_coin_of_their_own():
    torch.manual_seed(0)
    assert 60 < (_flip(torch.ones(200, 1), None, 0.5) < 0).sum() < 140


def test_eccl_turns_whole_films_and_keeps_their_moments():
    model, batch = PTACL(tiny), made_up(F=26)
    clock = torch.linspace(20, 220, 26).to(torch.uint8).view(1, 26, 1, 1).expand(6, 26, 84, 84)
    seen = _eccl_view(model, batch | {"cine": clock})["cine"][:, :, 16, 16]
    assert (seen[:, 1:-1] > seen[:, :-2]).all()


# --- dual-phase -----------------------------------------------------------------------------------------------------------

@given(seeds)
def test_the_three_way_loss_treats_all_alike(seed):
    three = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed))
    first = _three_way_loss(*three, 0.07)
    for order in permutations(three): torch.testing.assert_close(_three_way_loss(*order, 0.07), first)


@pytest.mark.parametrize("Z", [1, 2, 9])
def test_dual_phase_takes_stacks_of_any_depth(Z):
    batch, model = made_up(B=3, Z=Z), DualPhase(tiny).eval()
    assert _volumes(batch).shape == (3, 2, Z, 84, 84)
    assert [f.shape for f in model.features(batch)] == [(3, 32), (3, 64)]


def test_both_volumes_of_a_patient_are_mirrored_alike():
    ramp = torch.arange(84, dtype=torch.uint8).expand(40, 5, 2, 84, 84)
    torch.manual_seed(0)
    rising = _volumes({"stack": ramp}, mirror=0.5).diff(dim=-1).mean((-1, -2)) > 0     # (40, 2, 2)
    assert 8 < rising[:, 0, 0].sum() < 32 and (rising == rising[:, :1, :1]).all()


def test_frozen_cnns_stay_in_evaluation_mode():
    model = DualPhase(tiny)
    for mode in (True, False):
        model.train(mode)
        assert not any(m.training for m in model.phases.modules()) and model.proj_ecg.training == mode


def test_mlp_wants_enough_patients():
    y = pd.DataFrame({"LVEF": [60.0] * 19 + [np.nan] * 10})
    with pytest.raises(PtaclError, match="needs 20"): _mlp_predict(np.zeros((29, 3)), y, np.zeros((2, 3)))


# --- all methods ----------------------------------------------------------------------------------------------------------

def weights(model):
    return {k: v.clone().cpu() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_second_call_finds_everything_done(data, tmp_path):
    first = weights(train_method("ptacl", data, tiny, folder=tmp_path))
    def must_not(*_): raise AssertionError("trained again")
    again = {name: (build, must_not, budget) for name, (build, _, budget) in PRETRAININGS.items()}
    with patch.object(ptacl.rivals.methods, "PRETRAININGS", again):
        with patch.dict(METHODS, ptacl=replace(METHODS["ptacl"], step=must_not)):
            assert same(weights(train_method("ptacl", data, tiny, folder=tmp_path)), first)
        other = train_method("global", data, tiny, folder=tmp_path)      # shares the pre-training, trains its own joint phase
    assert not same(weights(other), first)
    assert same(weights(load_method(tmp_path / "ptacl" / "model")), first)


def test_what_was_trained_before_changes_nothing(data):
    alone = weights(train_method("mmcl", data, tiny, seed=1))
    train_method("random", data, tiny, seed=5)
    assert same(weights(train_method("mmcl", data, tiny, seed=1)), alone)
    assert not same(weights(train_method("mmcl", data, tiny, seed=2)), alone)


def test_targets_are_standardised_whatever_their_unit(data):
    y = _with_standard_targets(data).extra["targets"]
    assert torch.equal(y.isnan(), data.extra["targets"].isnan())
    torch.testing.assert_close(y.nanmean(0), torch.zeros(10), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.square().nanmean(0), torch.ones(10), rtol=1e-3, atol=1e-3)
    litres = Pairs(data.ecg, data.r_peaks, data.cine, {"targets": data.extra["targets"] / 1000})
    torch.testing.assert_close(_with_standard_targets(litres).extra["targets"], y, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.needs.startswith("targets")])
def test_methods_that_learn_phenotypes_take_gaps_and_say_when_there_are_none(name, data):
    model = train_method(name, data, tiny)
    assert all(torch.isfinite(w).all() for w in model.parameters())
    bare = Pairs(data.ecg, data.r_peaks, data.cine)
    with pytest.raises(PtaclError, match="learns from phenotypes"): train_method(name, bare, tiny)


def test_a_spoilt_model_says_so(data, tmp_path):
    train_method("cmae", data, tiny, folder=tmp_path)
    (tmp_path / "cmae" / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PtaclError, match="cmae holds no model"): load_method(tmp_path / "cmae" / "model")
    with pytest.raises(PtaclError, match="holds no model"): load_method(tmp_path / "mmcl" / "model")
