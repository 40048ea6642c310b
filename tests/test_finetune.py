"Fine-tuning: pooling, masked loss, units, gaps, freezing, resuming, and what it refuses."
import json
import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptacl.nets.encoders import CMREncoder, ECGEncoder, EchoEncoder
from ptacl.core.errors import PtaclError
from ptacl.train.finetune import AttentionPool, Tuned, attention_map, finetune, load_tuned, masked_error, predict
from ptacl.train.finetune import supervised, _training_view, tune_step, with_targets
from ptacl.nets.joint import PTACL
from ptacl.nets.weights import from_pretrained
from ptacl.core.presets import paper_regression
from ptacl.evaluate.scoreboard import table1, table2
from ptacl.rivals.methods import load_method
from ptacl.data.pairs import Pairs
from ptacl.train.loop import infer
from ptacl.train.optimiser import make_optimizer

# of the paper's kind; tests/test_stems.py has the other one
tiny = replace(paper_regression, ecg_crop=500, frames=4, size=42, cmr_patch=(2, 21, 21), width=16, heads=2, ecg_layers=2, cmr_layers=2,
               frozen_layers=0, decoder_width=16, proj_dim=8, batch_size=8, augment=0.,
               centred=True, lr_tune=1e-3, epochs_mae=5, epochs_joint=5)
ENCODERS = {"ecg": ECGEncoder, "cmr": CMREncoder}


def cohort(n=48, seed=0):
    "Hearts of which one number shows in the ECG (its amplitude) and in the film (its brightness), in ml and in %."
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator=g)
    ecg = torch.sin(torch.arange(600) / 8) * (1 + 0.3 * z)[:, None, None] + 0.05 * torch.randn(n, 12, 600, generator=g)
    cine = (128 + 30 * z[:, None, None, None] + 5 * torch.randn(n, 4, 42, 42, generator=g)).clamp(0, 255).to(torch.uint8)
    return Pairs(ecg, torch.zeros(n, 1), cine), pd.DataFrame({"LVEDV": 150 + 30 * z.numpy(), "LVEF": 60 - 5 * z.numpy()})


@pytest.fixture(scope="module")
def pairs(): return cohort()


def r2(y, p): return 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum()


# --- pooling and loss ------------------------------------------------------------------------------------------------------

def test_pooling_is_multi_head_attention_by_hand():
    torch.manual_seed(0)
    pool, x = AttentionPool(8, 2), torch.randn(3, 7, 8)
    W, b = pool.attention.in_proj_weight, pool.attention.in_proj_bias
    expected = []
    for tokens in x:                                                       # one patient, one head at a time
        q, k, v = tokens.mean(0) @ W[:8].T + b[:8], tokens @ W[8:16].T + b[8:16], tokens @ W[16:].T + b[16:]
        heads = [torch.softmax(k[:, h] @ q[h] / 4 ** .5, 0) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
        expected.append(pool.norm(pool.attention.out_proj(torch.cat(heads))))
    torch.testing.assert_close(pool(x), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_equal_tokens_share_the_weight():
    torch.testing.assert_close(AttentionPool(8, 2).weights(torch.ones(1, 5, 8)), torch.full((1, 5), 0.2))


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_masked_error_is_that_of_a_loop(seed, missing):
    g = torch.Generator().manual_seed(seed)
    z, t = torch.randn(2, 5, 3, generator=g)
    t[torch.rand(5, 3, generator=g) < missing] = torch.nan
    seen = [(z[i, p] - t[i, p]).item() ** 2 for i in range(5) for p in range(3) if not t[i, p].isnan()]
    assert masked_error(z, t).item() == pytest.approx(np.mean(seen) if seen else 0, abs=1e-6)


def test_a_batch_without_any_value_moves_nothing():
    model = Tuned(ECGEncoder(tiny), ["a"], [0.], [1.])
    loss = tune_step(model, {"ecg": torch.randn(4, 12, 600), "targets": torch.full((4, 1), torch.nan)})["loss"]
    loss.backward()
    assert loss == 0 and all((p.grad is None) or (p.grad == 0).all() for p in model.parameters())


# --- learning --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ENCODERS)
def test_both_modalities_learn_and_answer_in_units(kind, pairs):
    data, y = pairs
    model = finetune(ENCODERS[kind](tiny), data, y, epochs=40, lr=5e-3, seed=1)  # enough from any first weights
    held, held_y = cohort(32, seed=7)
    p = predict(model, held, held_y.index)
    assert list(p) == list(y) and p.index.equals(held_y.index)
    assert r2(held_y.LVEDV, p.LVEDV) > 0.5 and r2(held_y.LVEF, p.LVEF) > 0.5
    assert model.history[-1]["loss"] < 0.5 < model.history[0]["loss"]


def test_gaps_of_one_target_do_not_touch_the_other(pairs):
    "Half of LVEF missing, of the hearts that have much of it: no bias towards zero, LVEDV learned as before."
    data, y = pairs
    model = finetune(CMREncoder(tiny), data, y.mask(pd.DataFrame({"LVEDV": False, "LVEF": np.arange(len(y)) % 2 == 0})), epochs=15, lr=5e-3, seed=1)
    held, held_y = cohort(32, seed=7)
    p = predict(model, held)
    assert r2(held_y.LVEDV, p.LVEDV) > 0.5 and r2(held_y.LVEF, p.LVEF) > 0.4 and abs(p.LVEF.mean() - held_y.LVEF.mean()) < 2


def test_units_change_predictions_and_nothing_else(pairs):
    (data, y), enc = pairs, ECGEncoder(tiny)
    a, b = (finetune(enc, data, t, epochs=1, seed=3) for t in (y, y * 1000 + 7))
    assert [h["loss"] for h in a.history] == pytest.approx([h["loss"] for h in b.history], rel=1e-3)
    np.testing.assert_allclose(predict(a, data) * 1000 + 7, predict(b, data), rtol=1e-3)


def test_it_starts_from_the_mean_of_what_was_measured(pairs):
    data, y = pairs
    y = y.mask(np.arange(len(y))[:, None] < [10, 20])
    p = predict(finetune(ECGEncoder(tiny), data, y, epochs=0), data)
    np.testing.assert_allclose(p, np.broadcast_to(y.mean(), p.shape), rtol=1e-5)


def test_same_seed_same_model(pairs):
    data, y = pairs
    enc = CMREncoder(tiny)
    for train in (lambda seed: finetune(enc, data, y, epochs=1, seed=seed), lambda seed: supervised(CMREncoder, tiny, data, y, epochs=1, seed=seed)):
        a, b, c = (predict(train(s), data).to_numpy() for s in (0, 0, 1))
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3


# --- freezing --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("freeze", [0, 1, 2])
def test_frozen_layers_stay_and_the_startencoder_never_moves(kind, freeze, pairs):
    data, y = pairs
    start = ENCODERS[kind](tiny)
    before = deepcopy(start.state_dict())
    model = finetune(start, data, y, epochs=2, freeze=freeze)     # the first steps only move the head, which starts at zero
    assert all(torch.equal(w, before[name]) for name, w in start.state_dict().items())
    moved = {name.split(".")[0] + "." + name.split(".")[1] if name.startswith("blocks") else name.split(".")[0]
             for name, w in model.encoder.state_dict().items() if not torch.equal(w, before[name])}
    free = {f"blocks.{i}" for i in range(freeze, 2)} | {"norm"} | ({"patch", "pos"} if freeze == 0 else set())
    assert moved == free


def test_an_encoder_that_was_frozen_before_is_free_again():
    data, y = cohort(16)
    model = finetune(ECGEncoder(tiny).freeze(2), data, y, epochs=0)
    assert all(p.requires_grad for p in model.encoder.parameters())
    assert sum(len(g["params"]) for g in make_optimizer(model, tiny, 1e-3).param_groups) == len(list(model.parameters()))


# --- batches, views, disk --------------------------------------------------------------------------------------------------

def test_targets_travel_with_their_patients(pairs):
    data, y = pairs
    told = with_targets(Pairs(data.ecg, data.r_peaks, data.cine, {"age": torch.arange(48.)}), y)
    for batch in told.batches(7, train=True, seed=3):
        assert torch.equal(batch["age"].long(), batch["index"])
        np.testing.assert_allclose(batch["targets"], y.iloc[batch["index"].tolist()], rtol=1e-6)
    assert "targets" not in data.extra


def test_the_view_keeps_the_size_of_the_heart():
    torch.manual_seed(0)
    e = CMREncoder(replace(tiny, augment=1., size=84, cmr_patch=(2, 21, 21)))
    disc = ((torch.arange(84) - 41.5)[:, None]**2 + (torch.arange(84) - 41.5)**2 < 15**2).float() * 200
    x = _training_view(e, {"ecg": torch.zeros(16, 12, 1), "cine": disc.to(torch.uint8).expand(16, 6, 84, 84)})
    seen = (x[:, 0] > x[:, 0].amax((1, 2), keepdim=True) / 2).sum((1, 2)) / (disc > 100).sum()
    assert x.shape == (16, 4, 84, 84) and (seen - 1).abs().max() < 0.12


def test_a_run_resumes_and_comes_back_from_disk(pairs, tmp_path):
    data, y = pairs
    enc = ECGEncoder(tiny)
    whole = finetune(enc, data, y, epochs=4, lr=1e-3, folder=tmp_path / "a", name="whole")
    class Cut(Exception): pass
    steps = []
    def cut(m, i):
        steps.append(1)
        if m.training and len(steps) > 8: raise Cut
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, i: cut(m, i) if isinstance(m, Tuned) else None)
    try:
        with pytest.raises(Cut): finetune(enc, data, y, epochs=4, lr=1e-3, folder=tmp_path / "b")
    finally: hook.remove()
    resumed = finetune(enc, data, y, epochs=4, lr=1e-3, folder=tmp_path / "b", resume=True)
    np.testing.assert_allclose(predict(resumed, data), predict(whole, data), rtol=1e-4)
    again = load_tuned(tmp_path / "b" / "model")
    assert again.names == list(y) and not again.training
    np.testing.assert_allclose(predict(again, data), predict(whole, data), rtol=1e-4)
    with pytest.raises(PtaclError, match="no model of this kit"): from_pretrained(tmp_path / "b" / "model")
    with pytest.raises(PtaclError, match="other settings"): finetune(enc, data, y, epochs=4, lr=2e-3, folder=tmp_path / "b", resume=True)
    with pytest.raises(PtaclError, match="other targets"): finetune(enc, data, 2 * y, epochs=4, lr=1e-3, folder=tmp_path / "b", resume=True)


def test_an_echo_comes_back_as_an_echo(pairs, tmp_path):
    "Which key of a batch it reads, what it is standardised with; and what was stored as a cine's still is one."
    data, y = pairs
    echoes = Pairs(data.ecg, data.r_peaks, data.cine.flip(0), {"echo": data.cine})     # the cines are of others
    for preset in (tiny, replace(tiny, cmr_pool="cycle")):
        tuned = finetune(EchoEncoder(preset), echoes, y, epochs=2, folder=tmp_path / preset.cmr_pool)
        assert tuned.config["kind"] == "Tuned-Echo"
        for load in (load_tuned, load_method):
            again = load(tmp_path / preset.cmr_pool / "model")
            assert type(again.encoder) is EchoEncoder
            pd.testing.assert_frame_equal(predict(again, echoes), predict(tuned, echoes))
    assert torch.equal(again.predict({"echo": data.cine}), tuned.predict({"echo": data.cine}))     # an echo alone
    config = tmp_path / "cycle" / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": "Tuned-CMR"}))
    assert type(load_tuned(config.parent).encoder) is CMREncoder


def test_attention_maps_sum_to_one_over_leads_and_times(pairs):
    data, y = pairs
    for kind, shape in (("ecg", (12, 10)), ("cmr", (2, 4))):
        maps = attention_map(Tuned(ENCODERS[kind](tiny), ["a"]), data.__getitems__([0, 1, 2]))
        assert maps.shape == (3, *shape)
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))


def test_the_whole_way_to_both_tables(pairs):
    "Encoder, features, embeddings and fine-tuned predictions of the same test patients, as an experiment hands them in."
    (data, y), (held, held_y), model = pairs, cohort(32, seed=7), PTACL(tiny)
    people = lambda n: pd.DataFrame({"sex": ["F", "M"] * (n // 2), "age": 60.0, "height": 170.0, "bmi": 25.0, "sbp": 130.0})
    features = [infer(model.ecg_features, model, d) for d in (data, held)]
    tuned = predict(finetune(model.ecg, data, y, epochs=20, lr=5e-3), held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                             # 16 features of 48 patients overfit, and say so
        two = table2(y, held_y, (people(48), people(32)), {("ECG", "PTACL"): [features]}, {("ECG", "PTACL", "FN+AP"): [tuned]},
                     reference=("ECG", "PTACL", "LP"), n_boot=20)
    one = table1(held_y, people(32), {"PTACL": [infer(model.embeddings, model, held)]}, "PTACL", n_boot=20)
    for board in (one, two): assert board[board.source == "measured"].value.notna().all()
    mine = two[(two["eval"] == "FN+AP") & (two.source == "measured") & (two.score == "R2")].set_index("phenotype").value
    assert mine.to_dict() == pytest.approx({p: r2(held_y[p], tuned[p]) for p in y}) and mine.min() > 0.4


def test_refused(pairs, tmp_path):
    data, y = pairs
    enc = ECGEncoder(tiny)
    with pytest.raises(PtaclError, match="48 patients, but 5 rows"): finetune(enc, data, y[:5])
    with pytest.raises(PtaclError, match="LVEF: no two"): finetune(enc, data, y.assign(LVEF=np.nan))
    with pytest.raises(PtaclError, match="without numbers: sex"): finetune(enc, data, y.assign(sex="F"))
    for freeze in (-1, 3):
        with pytest.raises(PtaclError, match="has 2 layers"): finetune(enc, data, y, freeze=freeze)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PtaclError, match="holds no fine-tuned model"): load_tuned(tmp_path)
    with pytest.raises(PtaclError, match="not one row for each"): Pairs(data.ecg, data.r_peaks, data.cine, {"a": torch.zeros(3)})
