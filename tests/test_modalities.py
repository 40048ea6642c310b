"Any set of modalities: the loss of two is the paper's to the last bit, what is lacking is never looked at; and the two studies."
import copy
import math
from dataclasses import replace
from itertools import combinations, permutations

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from ptacl.core.errors import PtaclError
from ptacl.core.presets import paper_regression, workshop
from ptacl.data.pairs import Pairs
from ptacl.evaluate.retrieval import phenotype_retrieval
from ptacl.nets.encoders import EchoEncoder
from ptacl.nets.joint import PTACL, JointModel, joint_loss, preset_for
from ptacl.nets.views import View
from ptacl.nets.losses import alignment_matrix
from ptacl.nets.mae import MAE
from ptacl.nets.trimodal import start_modalities
from ptacl.nets.weights import from_pretrained, save_weights
from ptacl.signal.segments import segment_beats
from ptacl.studies import unpaired
from ptacl.studies.experiments import run_experiment
from ptacl.studies.unpaired import WAYS, _Draws, _Rounds, groups_of, _pairs_needed, _pseudo_pair_step, _transport
from ptacl.train.checkpoint import save_state
from ptacl.train.loop import fit
from ptacl.train.steps import joint_step, mae_cmr_step

CONV = replace(workshop, width=32, heads=2, proj_dim=16)
LINEAR = replace(paper_regression, name="linear", width=32, heads=2, ecg_layers=1, cmr_layers=1, frozen_layers=0, size=48, proj_dim=16)
ALL = ("ecg", "cmr", "echo")


def a_batch(B=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"ecg": torch.randn(B, 12, 5000, generator=g), "cine": torch.rand(B, 50, 48, 48, generator=g),
            "echo": torch.rand(B, 32, 48, 48, generator=g), "r_peaks": torch.arange(0.3, 10, 0.9).repeat(B, 1)}


def seeded(build):
    torch.manual_seed(3)
    return build()


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([w.grad.flatten() for w in model.parameters()])


def by_the_paper(model, view):
    "Eq. 1, 3 and 4 for an ECG and a film, written down once more."
    p = model.preset
    ecg = model.ecg.over_time(model.ecg(view["ecg"]))
    cmr = model.cmr.over_time(model.cmr(view["cine"]))
    a, b = (F.normalize(z, dim=-1) for z in (model.proj_ecg(ecg.mean(1)), model.proj_cmr(cmr.mean(1))))
    own = torch.arange(len(a))
    whole = 0.5 * F.cross_entropy(a @ b.mT / p.tau_global, own) + 0.5 * F.cross_entropy(b @ a.mT / p.tau_global, own)
    beat, valid = segment_beats(ecg, view["r_peaks"], view["start"], p.token_width, p.T)
    if p.centred: beat, cmr = (z - z.mean(1, keepdim=True) for z in (beat, cmr))
    logits = F.normalize(beat, dim=-1) @ F.normalize(cmr, dim=-1).mT / p.tau_local
    P = alignment_matrix(p.T, p.sigma, p.circular)
    each = [-(P * x.log_softmax(-1)).sum(-1).mean(-1) for x in (logits, logits.mT)]
    return whole + p.beta * torch.where(valid, 0.5 * each[0] + 0.5 * each[1], 0).sum() / valid.sum()


@pytest.mark.parametrize("preset", [CONV, LINEAR], ids=lambda p: p.name)
def test_two_of_any_modalities_are_ptacl_to_the_last_bit(preset):
    batch = a_batch()
    batch["r_peaks"][2] = torch.nan
    two, ptacl = seeded(lambda: JointModel(preset, ("ecg", "cmr"))), seeded(lambda: PTACL(preset))
    assert list(two.state_dict()) == list(ptacl.state_dict())
    assert {k.split(".")[0] for k in two.state_dict()} == {"ecg", "cmr", "proj_ecg", "proj_cmr"}
    losses = [seeded(lambda m=model: joint_step(m, batch)["loss"]) for model in (two, ptacl)]
    assert torch.equal(*losses) and torch.equal(gradient(two, losses[0]), gradient(ptacl, losses[1]))
    view = ptacl.view(batch)
    torch.testing.assert_close(joint_loss(ptacl, view)["loss"], by_the_paper(ptacl, view), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("names", [*combinations(ALL, 2), ALL], ids="+".join)
def test_the_loss_is_the_mean_over_pairs(names):
    whole = seeded(lambda: start_modalities(CONV, names))
    view, parts = whole.view(a_batch()), []
    for pair in combinations(names, 2):
        part = JointModel(CONV, pair)
        part.load_state_dict({k: v for k, v in whole.state_dict().items() if k.split(".")[0].removeprefix("proj_") in pair})
        parts.append(joint_loss(part, view))
    got = joint_loss(whole, view)
    for name in ("loss", "global", "local"): torch.testing.assert_close(got[name], torch.stack([x[name] for x in parts]).mean())


@pytest.mark.parametrize("lacks", ALL)
def test_what_lacks_is_never_looked_at(lacks):
    model, batch = seeded(lambda: start_modalities(CONV, ALL)), a_batch()
    has = torch.tensor([True, False, True, True, False, True])
    key = {"ecg": "ecg", "cmr": "cine", "echo": "echo"}[lacks]
    view = View(model.view(batch) | {f"has_{lacks}": has})
    other = View(view | {key: torch.where(has.view(-1, *[1] * (view[key].ndim - 1)), view[key], torch.nan)})
    grads = [gradient(model, joint_loss(model, v)["loss"]) for v in (view, other)]
    assert torch.equal(*grads) and grads[0].isfinite().all() and grads[0].abs().sum() > 0
    features = dict(zip(ALL, model.eval().features(other)))
    assert features[lacks].isnan().all(1).tolist() == (~has).tolist()
    assert all(x.isfinite().all() for name, x in features.items() if name != lacks)


def test_in_chunks_patients_may_lack_something_too():
    model = seeded(lambda: start_modalities(LINEAR, ALL))
    view = View(model.view(a_batch(7)) | {"has_echo": torch.arange(7) % 3 > 0, "has_ecg": torch.arange(7) != 4})
    whole, parts = (gradient(model, joint_loss(model, view, chunk=c)["loss"]) for c in (None, 2))
    assert (whole - parts).norm() < 1e-4 * whole.norm()


def test_nobody_to_compare_is_no_loss_and_no_error():
    model = start_modalities(CONV, ALL)
    nobody = {f"has_{name}": torch.arange(6) % 3 == i for i, name in enumerate(ALL)}
    loss = joint_loss(model, View(model.view(a_batch()) | nobody))["loss"]
    assert loss.item() == 0 and not gradient(model, loss).any()


def test_what_no_model_can_be_made_of():
    for names in (("ecg",), ("ecg", "ecg")):
        with pytest.raises(PtaclError, match="two or more"): JointModel(CONV, names)
    with pytest.raises(PtaclError, match="this model has no 'echo'"): PTACL(CONV).embeddings_of("echo", a_batch())


def test_encoders_of_what_the_model_has_not_are_refused():
    echo = MAE(EchoEncoder(preset_for("echo", LINEAR))).encoder
    with pytest.raises(PtaclError, match="encoders of echo for a model of ecg, cmr"): start_modalities(LINEAR, ("ecg", "cmr"), {"echo": echo})


@pytest.mark.parametrize("query, gallery", [*permutations(ALL, 2)], ids="→".join)
def test_retrieval_across_any_pair(query, gallery):
    "One vector for each heart in the place of what an encoder sees: each recording finds its own heart's, and hearts like it, in any other modality."
    model = seeded(lambda: JointModel(CONV, ALL)).eval()
    hearts = torch.randn(40, CONV.width, generator=torch.Generator().manual_seed(0))
    for name in ALL: model.encoder(name).forward = lambda x: hearts[x.flatten(1)[:, 0].long(), None]
    for name in ALL: setattr(model, f"proj_{name}", torch.nn.Identity())
    number = torch.arange(40.)
    model.view = lambda batch, names=None: View(batch)
    batch = {"ecg": number.view(-1, 1, 1).expand(40, 12, 9), "cine": number.view(-1, 1, 1, 1), "echo": number.view(-1, 1, 1, 1)}
    z = dict(zip(ALL, (model.features_of(name, batch) for name in ALL)))
    found = phenotype_retrieval(z[query], z[gallery], pd.DataFrame({"LVEDV": hearts[:, 0]}), ks=(1,), exclude_self=False)
    assert found.loc["LVEDV", ["P@1", "MdR"]].tolist() == [1, 1]


def test_an_echo_s_autoencoder_is_trained_and_hands_its_encoder_on(tmp_path):
    "Pre-training by the loop, the encoder copied, its first layers frozen, and a step of the joint phase leaves those alone."
    preset = replace(LINEAR, ecg_layers=2, cmr_layers=2, frozen_layers=1, batch_size=4)
    batch = a_batch(8)
    data = Pairs(batch["ecg"], batch["r_peaks"], (255 * batch["cine"]).to(torch.uint8), {"echo": (255 * batch["echo"]).to(torch.uint8)})
    mae = seeded(lambda: MAE(EchoEncoder(preset_for("echo", preset))))
    before = mae.encoder.pos.detach().clone()
    history = fit(mae, mae_cmr_step, data, preset, epochs=1, lr=1e-3, folder=tmp_path / "mae")
    assert math.isfinite(history[0]["loss"]) and not torch.equal(mae.encoder.pos, before)
    stored = from_pretrained(tmp_path / "mae" / "model")
    model = start_modalities(preset, ("ecg", "echo"), {"echo": stored.encoder})
    frozen, free = (copy.deepcopy(model.echo.blocks[k].state_dict()) for k in (0, 1))
    fit(model, joint_step, data, preset, epochs=1, lr=1e-3, folder=tmp_path / "joint")
    same = [all(torch.equal(x, w) for x, w in zip(model.echo.blocks[k].state_dict().values(), kept.values())) for k, kept in ((0, frozen), (1, free))]
    assert same == [True, False]
    cards = [(tmp_path / part / "model" / "README.md").read_text(encoding="utf-8") for part in ("mae", "joint")]
    assert all("8 patients, 1 epochs" in card and "apical four-chamber" in card and "echocardiography" in card for card in cards)
    assert ["resting ECGs" in card for card in cards] == [False, True] and not any("short-axis" in card for card in cards)


# --- the studies ----------------------------------------------------------------------------------------------------------

def test_an_epoch_is_so_many_steps_whoever_there_is():
    data = Pairs(torch.randn(20, 12, 100), torch.zeros(20, 3), torch.zeros(20, 4, 8, 8, dtype=torch.uint8))
    for groups in ([torch.arange(3)], [torch.arange(3), torch.arange(5, 20), torch.tensor([], dtype=torch.long)]):
        rounds = _Rounds(data, groups, (4, 4, 4)[:len(groups)], steps=7)
        batches = [batch["index"] for batch in rounds.batches(rounds.batch, train=True)]
        assert len(batches) == 7 == len(rounds) // rounds.batch and all(len(b) == rounds.batch for b in batches)
        seen = torch.cat([b[:3] for b in batches])
        assert seen.bincount(minlength=3).tolist() == [7, 7, 7]                      # each as often as the others
        assert all(set(b[3:].tolist()) <= set(range(5, 20)) for b in batches)


@pytest.mark.parametrize("n, size", [(205, 64), (205, 200), (7, 7), (40, 64), (256, 64)])
def test_nobody_is_twice_in_a_batch(n, size):
    "A patient twice in a batch would be told from themselves; in the long run each is seen about as often."
    rows = torch.arange(100, 100 + n)
    data = Pairs(torch.randn(400, 12, 10), torch.zeros(400, 3), torch.zeros(400, 2, 4, 4, dtype=torch.uint8))
    loader = _Rounds(data, [rows, torch.arange(50)], [size, 32], steps=32).batches(0, train=True)
    seen = torch.zeros(400)
    for _ in range(20):                                                             # epochs
        for batch in loader:
            assert len(batch["index"]) == min(n, size) + 32 == len(set(batch["index"].tolist()))
            seen[batch["index"]] += 1
    assert seen[rows].min() > 0.8 * seen[rows].mean() and set(seen.nonzero().flatten().tolist()) == {*range(50), *rows.tolist()}


def test_draws_that_end_with_a_batch_are_what_they_were():
    "Two orders of 64, whole: to the last patient those of the generator."
    draws = _Draws([torch.arange(200, 264), torch.arange(3)], [32, 3], 4, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    first = torch.cat([200 + torch.randperm(64, generator=g) for _ in range(2)]).view(4, 32)
    second = torch.stack([torch.randperm(3, generator=g) for _ in range(4)])
    assert list(draws) == torch.cat([first, second], 1).tolist()


def test_who_is_paired_stays_paired_and_nobody_gains_a_recording():
    drawn = {share: [set(g.tolist()) for g in groups_of(200, share, 4)] for share in (0.1, 0.25, 0.5, 1.0)}
    for (pairs, ecgs, films), (more, fewer_ecgs, fewer_films) in zip(drawn.values(), list(drawn.values())[1:]):
        assert pairs < more and fewer_ecgs < ecgs and fewer_films < films
        assert len(pairs | ecgs | films) == 200 and abs(len(ecgs) - len(films)) <= 1


def test_the_weights_that_are_kept_and_their_epoch_stay_together(tmp_path, monkeypatch):
    "Killed after the watch has kept an epoch's weights and before its state is there: they say themselves whose they are."
    model = seeded(lambda: JointModel(CONV, ("ecg", "cmr")))
    said = iter([0.4, 0.2,   0.45, 0.3, 0.1])
    monkeypatch.setattr(unpaired, "infer", lambda *_: (None, None))
    monkeypatch.setattr(unpaired, "contrast", lambda *_: {"rank_share": next(said)})
    def epoch(watch, number):
        model.proj_ecg[0].weight.data.fill_(number)
        return {"held_out": watch(model)}
    watch = unpaired.BestEpoch(None, tmp_path)
    history = [epoch(watch, 1)]
    save_state(tmp_path, history=history)
    epoch(watch, 2)                                                                 # and here it was killed
    for restored in (2, 2, 2, 4):
        watch = unpaired.BestEpoch(None, tmp_path)
        assert watch.restore(model).epoch == restored and (model.proj_ecg[0].weight == restored).all()
        if len(history) == 4: break
        history.append(epoch(watch, len(history) + 1))                              # the second one again, and on
        save_state(tmp_path, history=history)
    save_weights(model, tmp_path / "best")                                          # by an earlier version, without a note
    assert unpaired.BestEpoch(None, tmp_path).restore(model).epoch == 4
    fresh = unpaired.BestEpoch(None, tmp_path / "new")
    said = iter([0.5]); epoch(fresh, 7)
    assert fresh.restore(model).epoch == 1 and (model.proj_ecg[0].weight == 7).all()


def test_transport_spreads_equal_masses():
    plan = _transport(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), sharpness=1., rounds=100)
    torch.testing.assert_close(plan.sum(1), torch.ones(30))
    torch.testing.assert_close(plan.sum(0), torch.full((12,), 30 / 12), rtol=1e-4, atol=1e-4)


def test_unpaired_recordings_teach_their_own_encoder():
    "What an unpaired ECG says reaches the ECG's encoder, and the loss of the pairs is that of the pairs alone."
    model = seeded(lambda: JointModel(CONV, ("ecg", "cmr"))).eval()
    batch = a_batch(8) | {"has_ecg": torch.arange(8) != 7, "has_cmr": torch.arange(8) != 6, "index": torch.arange(8)}
    mixed = seeded(lambda: _pseudo_pair_step(model, batch))
    only = seeded(lambda: joint_step(model, batch))
    assert torch.equal(mixed["global"], only["global"]) and torch.equal(mixed["local"], only["local"])
    alone = gradient(model, mixed["loss"]) - gradient(model, only["loss"])
    assert mixed["unpaired"] > 0 and alone.abs().max() > 1e-4
    torch.testing.assert_close(mixed["loss"], only["loss"] + mixed["unpaired"])


def test_pairs_that_are_saved_lie_on_the_curve():
    assert _pairs_needed(0.3, (100, 1000), (0.1, 0.3)) == 1000 and _pairs_needed(0.0, (100, 1000), (0.1, 0.3)) == pytest.approx(100)
    needed = [_pairs_needed(s, (100, 300, 1000), (0.1, 0.3, 0.2)) for s in (0.1, 0.15, 0.2, 0.29)]
    assert needed == sorted(needed) and needed[-1] < 300


@pytest.mark.parametrize("name, changes", [("trimodal", {"shares": [0.5], "arms": ["ECG + echo", "ECG + CMR + echo"]}),
                                           ("unpaired", {"shares": [0.25, 1.0], "n_train": 28, "n_val": 4, "settings": {"views": "strong"}})])
def test_a_study_says_what_it_found_and_whether_it_learned(tmp_path, name, changes):
    small = {"n_train": 24, "n_test": 20, "epochs": 1, "n_boot": 10, "seeds": [0], "output_dir": str(tmp_path)}
    folder, found = run_experiment(name, small | changes)
    rows = pd.DataFrame(found["rows"])
    assert {"R2"} < set(rows.score) and rows.value.notna().all() and found["findings"]
    assert found["learning"] and all({"loss", "chance"} <= set(x) for x in found["learning"].values())
    assert (folder / f"{name}.html").exists()
    if name == "unpaired":
        assert {x["way"] for x in found["parameters"]["pairs_saved"]} == set(WAYS[1:]) and found["parameters"]["pairs"]["25%"] == 6
        assert found["parameters"]["settings"] == {"views": "strong"} and "workshop, views strong" in (folder / f"{name}.html").read_text()
