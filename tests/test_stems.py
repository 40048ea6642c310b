"Stems and the encoders around them: what is hidden stays hidden, films are circles, frozen parts keep still."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptacl.core.errors import PtaclError
from ptacl.core.presets import Preset, get_preset, laptop, paper_regression, paper_retrieval, workshop
from ptacl.nets.encoders import CMREncoder, ECGEncoder
from ptacl.nets.joint import PTACL, joint_loss, start_joint
from ptacl.nets.mae import MAE
from ptacl.nets.stems import _PlaceNorm
from ptacl.nets.weights import from_pretrained
from ptacl.data.pairs import Pairs
from ptacl.train.checkpoint import read_state
from ptacl.train.finetune import finetune
from ptacl.train.loop import fit
from ptacl.train.steps import mae_cmr_step, mae_ecg_step

SMALL = replace(workshop, width=32, heads=2, proj_dim=8, decoder_width=32)
DEPTHS = (0, 1)


def encoder(kind, layers=0, seed=0, **changes):
    torch.manual_seed(seed)
    preset = replace(SMALL, ecg_layers=layers, cmr_layers=layers, **changes)
    return {"ecg": ECGEncoder, "cmr": CMREncoder}[kind](preset)


def an_input(kind, n=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    shape = (n, 12, SMALL.ecg_crop) if kind == "ecg" else (n, SMALL.frames, SMALL.size, SMALL.size)
    return torch.randn(shape, generator=g) if kind == "ecg" else torch.rand(shape, generator=g)


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("kind", ["ecg", "cmr"])
@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.9))
def test_what_is_hidden_changes_nothing(kind, layers, training, seed, share):
    e, x = encoder(kind, layers).train(training), an_input(kind)
    g = torch.Generator().manual_seed(seed)
    n = int(np.prod(e.places))
    keep = torch.rand(3, n, generator=g).argsort(1)[:, :max(1, round(share * n))]
    hidden = torch.ones(3, n, dtype=torch.bool).scatter_(1, keep, False)
    spoilt = e.patches(x).clone()
    spoilt[hidden] = 99 * torch.randn(spoilt[hidden].shape, generator=g)
    with torch.no_grad():
        assert torch.equal(e(x, keep), e(e.unpatch(spoilt), keep))


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("kind", ["ecg", "cmr"])
def test_nothing_hidden_is_no_mask(kind, layers):
    e, x = encoder(kind, layers).eval(), an_input(kind)
    n = int(np.prod(e.places))
    torch.testing.assert_close(e(x, torch.arange(n).expand(3, -1)), e(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", DEPTHS)
@settings(max_examples=5, deadline=None)
@given(by=st.integers(0, 12))
def test_a_film_that_begins_elsewhere_has_the_same_tokens_elsewhere(layers, by):
    e, film = encoder("cmr", layers).eval(), an_input("cmr")
    with torch.no_grad():
        a, b = e.over_time(e(film)), e.over_time(e(film.roll(-2 * by, 1)))
    torch.testing.assert_close(b, a.roll(-by, 1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layers", DEPTHS)
def test_a_still_film_has_equal_moments(layers):
    e, film = encoder("cmr", layers).eval(), an_input("cmr")
    with torch.no_grad():
        moments = e.over_time(e(film[:, :2].repeat(1, 13, 1, 1)))
    assert moments.std(1).max() < 1e-4


@pytest.mark.parametrize("kind", ["ecg", "cmr"])
def test_a_patient_alone_or_among_others(kind):
    e, x = encoder(kind, 1).eval(), an_input(kind)
    with torch.no_grad():
        torch.testing.assert_close(e(x[:1]), e(x)[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ecg", "cmr"])
@pytest.mark.parametrize("frozen", [1, 2, 3, 4])
def test_frozen_stages_keep_weights_and_statistics(kind, frozen):
    e = encoder(kind).freeze(frozen).train()
    norms = [[m for m in part.modules() if isinstance(m, _PlaceNorm)] for part in e.stages]
    before = [[m.running_mean.clone() for m in part] for part in norms]
    with torch.no_grad():
        e(an_input(kind))
    for i, (part, old) in enumerate(zip(norms, before)):
        still = [torch.equal(m.running_mean, o) for m, o in zip(part, old)]
        assert all(still) if i < frozen else not any(still) or not still
    assert not any(w.requires_grad for part in e.stages[:frozen] for w in part.parameters()) and not e.pos.requires_grad
    assert all(w.requires_grad for w in e.freeze(0).parameters())


@pytest.mark.parametrize("kind", ["ecg", "cmr"])
def test_every_weight_of_an_autoencoder_learns(kind):
    mae = MAE(encoder(kind, 1)).train()
    mae(an_input(kind))["loss"].backward()
    assert not [name for name, w in mae.named_parameters() if w.grad is None]


@pytest.mark.parametrize("kind", ["ecg", "cmr"])
def test_held_out_patients_are_asked_of_the_network_that_is_kept(kind, tmp_path, capsys):
    "History, state, card and the last line speak of the stem that has seen whole inputs; the weights are those without a watch."
    g = torch.Generator().manual_seed(0)
    data = Pairs(torch.randn(12, 12, 5000, generator=g), torch.zeros(12, 1), torch.randint(0, 256, (12, 26, 48, 48), dtype=torch.uint8, generator=g))
    def watch(mae):
        x = torch.randn(3, 12, SMALL.ecg_crop, generator=torch.Generator().manual_seed(1)) if kind == "ecg" else an_input("cmr")
        with torch.no_grad(): return {"loss": mae.eval().encoder(x).square().mean().item(), "chance": 0.123456}
    preset, models = replace(SMALL, batch_size=4), [MAE(encoder(kind)) for _ in range(2)]
    step = mae_ecg_step if kind == "ecg" else mae_cmr_step
    history = fit(models[0], step, data, preset, 2, 1e-3, folder=tmp_path, watch=watch)
    kept = watch(from_pretrained(tmp_path / "model"))
    assert history[-1]["held_out"] == kept == read_state(tmp_path)["history"][-1]["held_out"] and history[0]["held_out"] != kept
    assert f"held-out loss | {kept['loss']:.3f}" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"settled  held-out loss {kept['loss']:.3f} (chance 0.123)" in capsys.readouterr().out
    fit(models[1], step, data, preset, 2, 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values()))


def test_place_norm_is_batch_norm_where_all_is_seen():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 9, requires_grad=True)
    ours, theirs = _PlaceNorm(4), torch.nn.BatchNorm1d(4)
    a, b = ours(x, torch.ones(6, 1, 9)), theirs(x)
    torch.testing.assert_close(a, b)
    for mine, other in ((ours.running_mean, theirs.running_mean), (ours.running_var, theirs.running_var)): torch.testing.assert_close(mine, other)
    grads = [torch.autograd.grad(y.square().sum() + y[:, 0].sum(), x)[0] for y in (a, b)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("changes, why", [
    ({"ecg_patch": 25}, "multiple of 10"), ({"cmr_patch": (2, 12, 12)}, "8, 16"), ({"width": 24, "heads": 2}, "multiple of 16"),
    ({"heads": 64, "width": 64}, "even width"), ({"stem": "deep"}, "'linear' or 'conv'"), ({"ecg_layers": -1}, "ecg_layers must be"),
    ({"frozen_layers": 5}, "frozen_layers"), ({"views": "none"}, "'strong' or 'gentle'"), ({"projection": "deep"}, "'linear' or 'mlp'"),
    ({"cmr_pool": "max"}, "'attention' or 'cycle'"), ({"batch_size": 1}, "batch_size must be ≥ 2"), ({"batch_size": 0}, "batch_size must be ≥ 2")])
def test_presets_that_cannot_work_are_refused(changes, why):
    with pytest.raises(PtaclError, match=why): replace(workshop, **changes)


def test_the_papers_presets_know_nothing_of_stems():
    for preset in (paper_regression, paper_retrieval):
        assert (preset.stem, preset.views, preset.projection, preset.cmr_pool, preset.any_start) == ("linear", "strong", "linear", "attention", False)
        old = {k: v for k, v in vars(preset).items() if k not in ("stem", "views", "projection", "cmr_pool")}
        assert Preset(**old) == preset                                   # files of before the fields were there
    with pytest.raises(PtaclError, match="ecg_layers must be ≥ 1"): get_preset("paper_regression", ecg_layers=0, frozen_layers=0)
    assert replace(laptop, name="workshop", epochs_mae=workshop.epochs_mae, epochs_joint=workshop.epochs_joint) == workshop


def test_batch_norms_want_whole_batches():
    batch = {"ecg": torch.randn(4, 12, 5000), "cine": torch.rand(4, 50, 84, 84), "r_peaks": torch.arange(0.3, 10, 0.9).repeat(4, 1)}
    with pytest.raises(PtaclError, match="train without chunk"): joint_loss(PTACL(SMALL), batch, chunk=2)
    assert joint_loss(PTACL(SMALL), batch, chunk=4)["loss"].isfinite()


def test_encoders_of_another_kind_do_not_fit():
    with pytest.raises(PtaclError, match="does not fit"): start_joint(workshop, ECGEncoder(replace(workshop, width=64)))


@pytest.mark.parametrize("kind", ["ecg", "cmr"])
@pytest.mark.parametrize("freeze", [0, 2, 4])
def test_fine_tuning_moves_what_is_free(kind, freeze):
    start = encoder(kind, batch_size=8)
    before = {name: w.clone() for name, w in start.state_dict().items()}
    data = Pairs(torch.randn(16, 12, 5000), torch.zeros(16, 1), torch.randint(0, 256, (16, 50, 84, 84), dtype=torch.uint8))
    y = pd.DataFrame({"LVEDV": np.arange(16.) + 100})
    model = finetune(start, data, y, epochs=2, freeze=freeze)
    assert all(torch.equal(w, before[name]) for name, w in start.state_dict().items())
    stages = model.encoder.stages
    for i, (mine, old) in enumerate(zip(stages, start.stages)):
        still = all(torch.equal(a, b) for a, b in zip(mine.parameters(), old.parameters()))
        assert still == (i < freeze)
    assert type(model.pool).__name__ == ("CyclePool" if kind == "cmr" else "AttentionPool")
    with pytest.raises(PtaclError, match="has 4 layers"): finetune(start, data, y, freeze=5)
