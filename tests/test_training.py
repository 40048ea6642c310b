"The training loop: the same numbers twice, after an interruption, and on awkward data."
import math
import os
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import KINDS, noise, same, start, tiny
from torch.optim.optimizer import register_optimizer_step_pre_hook

import ptacl.train.checkpoint
import ptacl.train.optimiser
from ptacl.signal.augment import CMRAugment
from ptacl.core.errors import PtaclError
from ptacl.nets.mae import MAE
from ptacl.nets.joint import PTACL
from ptacl.nets.weights import from_pretrained
from ptacl.data.pairs import Pairs
from ptacl.train.bad_steps import read_kept_batch
from ptacl.train.checkpoint import load_state
from ptacl.train.loop import fit, infer
from ptacl.train.optimiser import learning_rate, make_optimizer
from ptacl.train.steps import joint_step


@pytest.fixture(scope="module")
def pairs(): return noise(10)


def run(model, pairs, epochs=3, kind="joint", step=None, **kw):
    return fit(model, step or KINDS[kind][1], pairs, tiny, epochs, 3e-3, **kw)


def losses(history): return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


class Interrupted(Exception): pass


def stops(step, after):
    "A step that fails at its call number `after`."
    calls = iter(range(after))
    def cut(model, batch):
        if next(calls, None) is None: raise Interrupted
        return step(model, batch)
    return cut


# --- the same numbers ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_run_twice_and_another_seed_another(kind, pairs):
    a, b, c = start(kind), start(kind), start(kind)
    first = run(a, pairs, 2, kind, seed=1)
    torch.rand(5)                                                                   # whatever was drawn before
    second, other = run(b, pairs, 2, kind, seed=1), run(c, pairs, 2, kind, seed=2)
    assert losses(first) == losses(second) and same(a, b)
    assert losses(first) != losses(other) and not same(a, c)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [2, 3, 5])   # of 2 steps an epoch: between epochs, and within one
def test_resumed_is_uninterrupted(kind, after, pairs, tmp_path):
    whole, cut, resumed = start(kind), start(kind), KINDS[kind][0]()                # the last one starts elsewhere
    history = run(whole, pairs, 3, kind, seed=5)
    with pytest.raises(Interrupted): run(cut, pairs, 3, kind, step=stops(KINDS[kind][1], after), seed=5, folder=tmp_path)
    assert not (tmp_path / "model").exists()
    assert losses(run(resumed, pairs, 3, kind, seed=5, folder=tmp_path, resume=True)) == losses(history)
    assert same(resumed, whole) and same(from_pretrained(tmp_path / "model"), whole)


def test_a_finished_run_is_not_trained_again(pairs, tmp_path):
    model, again = start(), start()
    history = run(model, pairs, 2, folder=tmp_path)
    assert run(again, pairs, 2, folder=tmp_path, resume=True, step=stops(joint_step, 0)) == history and same(again, model)


def test_without_resume_a_run_starts_anew(pairs, tmp_path):
    run(start(), pairs, 2, folder=tmp_path)
    assert [row["epoch"] for row in run(start(), pairs, 1, folder=tmp_path)] == [1]
    assert run(start(), pairs, 1, folder=tmp_path / "new", resume=True)             # nothing there yet


def test_interrupted_while_the_state_is_written(pairs, tmp_path, monkeypatch):
    run(start(), pairs, 1, folder=tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    def cut(fd): raise Interrupted                                                   # the file is there, under its passing name
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", cut)
        with pytest.raises(Interrupted): run(start(), pairs, 2, folder=tmp_path, resume=True)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert len(run(start(), pairs, 2, folder=tmp_path, resume=True)) == 2
    assert {f.name for f in tmp_path.iterdir()} == {"state.pt", "state-1.pt", "model"}


def test_every_patient_is_seen_once_an_epoch_in_new_order(pairs):
    seen = []
    def spy(model, batch): seen.append(batch["index"].tolist()); return joint_step(model, batch)
    run(start(), pairs, 2, step=spy)
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert all(len(set(e)) == len(e) == 8 and set(e) < set(range(10)) for e in epochs) and epochs[0] != epochs[1]   # the short batch is dropped


def spied(kind, pairs, monkeypatch):
    "What a step of an autoencoder hands to it: view, target, and the view as its visible patches are seen."
    seen = []
    monkeypatch.setattr(MAE, "forward", lambda self, x, target=None, corrupt=lambda x: x: seen.append((x, target, corrupt(x))) or {"loss": x.mean()})
    mae = start(kind); mae.encoder.preset = replace(tiny, augment=1.0)
    torch.manual_seed(8); KINDS[kind][1](mae, pairs.__getitems__([0, 1, 2]))
    return seen[0]


def test_the_ecg_autoencoder_is_asked_for_the_recorded_window(pairs, monkeypatch):
    view, target, seen = spied("ecg", pairs, monkeypatch)
    assert torch.equal(view, seen)
    windows = pairs.ecg[:3].unfold(-1, tiny.ecg_crop, 1)                            # every window there is
    assert all((w == t[:, None]).all(-1).all(0).sum() == 1 for w, t in zip(windows, target)), "one window, as recorded"
    assert (view != target).any() and torch.corrcoef(torch.stack([view.flatten(), target.flatten()]))[0, 1] > 0.5


def test_the_cmr_autoencoder_is_asked_for_the_moved_film_without_noise(pairs, monkeypatch):
    view, target, seen = spied("cmr", pairs, monkeypatch)
    torch.manual_seed(8); moved = CMRAugment(replace(tiny, augment=1.0)).move(pairs.cine[:3])
    assert torch.equal(target, moved) and (view != target).any()
    assert seen.min() >= 0 and seen.max() <= 1 and ((seen - view).flatten(1).std(1) > 0.002).all(), "each in its own light and noise"


def test_light_and_noise_fall_on_what_is_seen_and_in_full_precision(pairs, monkeypatch):
    seen, shade = [], CMRAugment.shade
    def spy(self, x): seen.extend((x, shade(self, x))); return seen[-1]
    monkeypatch.setattr(CMRAugment, "shade", spy)
    mae = start("cmr")
    with torch.autocast("cpu", torch.bfloat16): KINDS["cmr"][1](mae, pairs.__getitems__([0, 1, 2]))
    visible = max(1, round(len(mae.pos) * (1 - tiny.cmr_mask)))
    assert [x.shape for x in seen] == [(3, visible, math.prod(tiny.cmr_patch))] * 2 and {x.dtype for x in seen} == {torch.float32}


# --- awkward data ----------------------------------------------------------------------------------------------------------

def spoilt(pairs, who, value=math.nan):
    "Pairs with pseudonyms, of whom some have a value that is no number."
    ecg = pairs.ecg.clone(); ecg[who, 3] = value
    return Pairs(ecg, pairs.r_peaks, pairs.cine, names=[f"sim-{i:05d}" for i in range(len(pairs))])


@pytest.mark.parametrize("kind", ["joint", "ecg"])   # a cine is of bytes, which are all numbers
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad, kind, pairs, capsys):
    model = start(kind)
    history = run(model, spoilt(pairs, [4], bad), 3, kind)
    seen = sum(row["skipped"] for row in history)
    assert 0 < seen <= 3 and all(math.isfinite(v) for row in history for v in row.values())
    assert all(v.isfinite().all() for v in model.state_dict().values())             # batch norms, too
    said = capsys.readouterr().out
    assert said.count("step skipped") == seen and said.count("the data of sim-00004\n") == seen


def test_a_skipped_step_leaves_no_trace(pairs):
    def never(model, batch): return {"loss": joint_step(model, batch)["loss"] * math.nan}
    model = start(); before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PtaclError, match="no step had a finite"): run(model, pairs, 1, step=never)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_too_many_in_a_row_end_the_run_with_the_batch_saved(pairs, tmp_path):
    run(start(), pairs, 1, folder=tmp_path)
    before, calls = (tmp_path / "state.pt").read_bytes(), []
    def later(model, batch):
        calls.append(batch["index"].tolist())
        return {"loss": joint_step(model, batch)["loss"] * (1 if len(calls) in (1, 4) else math.nan)}
    with pytest.raises(PtaclError, match=r"of-run: the loss is nan in 2 steps in a row; the data of its patients .*bad_batch_0\.safetensors") as e:
        run(start(), pairs, 9, step=later, folder=tmp_path, resume=True, name="of-run", bad_steps=2)
    assert len(calls) == 3 and "Lower the learning rate" in str(e.value)             # one good, two bad
    kept, patients = read_kept_batch(tmp_path / "bad_batch_0.safetensors")
    assert kept["index"].tolist() == calls[-1] and len(patients) == 4 and kept["cine"].shape == (4, 50, 84, 84)
    assert (tmp_path / "state-1.pt").read_bytes() == before or (tmp_path / "state.pt").read_bytes() == before


def test_bad_patients_are_named_when_the_run_ends(pairs, tmp_path):
    small = replace(tiny, batch_size=2)
    with pytest.raises(PtaclError, match=r"the loss is nan in 3 steps in a row; values that are no numbers in the data of sim-0000\d.* mend") as e:
        fit(start(), joint_step, spoilt(pairs, range(10)), small, 9, 3e-3, tmp_path)
    assert "Leave these patients out" in str(e.value) and not (tmp_path / "state.pt").exists()


def test_a_learning_rate_that_blows_up_is_said(pairs):
    def explodes(model, batch): return {"loss": joint_step(model, batch)["loss"] * math.inf}
    with pytest.raises(PtaclError, match="the loss is"): run(start(), pairs, 2, step=explodes, bad_steps=2)


def test_a_gradient_that_is_not_finite_spoils_no_weights(pairs, tmp_path):
    def root(model, batch): return {"loss": joint_step(model, batch)["loss"] + torch.sqrt(0 * sum(p.sum() for p in model.parameters()))}
    with pytest.raises(PtaclError, match="the gradient is nan"):                    # the loss is finite
        fit(start(), root, Pairs(pairs.ecg[:4], pairs.r_peaks[:4], pairs.cine[:4]), tiny, 1, 3e-3, tmp_path, bad_steps=1)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_patients_to_train_on_is_said(n, pairs):
    with pytest.raises(PtaclError, match=f"{n} patients are too few"): run(start(), Pairs(pairs.ecg[:n], pairs.r_peaks[:n], pairs.cine[:n]), 1)


@pytest.mark.parametrize("without", [[0, 3, 7], range(10)], ids=["some", "all"])
@pytest.mark.parametrize("local", ["contrastive", "cosine"])
def test_patients_without_r_peaks_train_without_nan(without, local, pairs):
    r_peaks = pairs.r_peaks.clone(); r_peaks[list(without)] = torch.nan
    model, preset = start(), replace(tiny, local=local)
    model.preset = preset
    history = fit(model, joint_step, Pairs(pairs.ecg, r_peaks, pairs.cine), preset, 3, 3e-3)
    assert all(math.isfinite(v) for row in history for v in row.values())
    assert all(v.isfinite().all() for v in model.state_dict().values())
    if len(without) == 10: assert all(row["valid"] == row["local"] == 0 and row["loss"] > 0 for row in history)
    else: assert all(0.25 <= row["valid"] < 1 and row["local"] > 0 for row in history)


def test_no_r_peaks_at_all_is_a_width_of_zero(pairs):
    history = run(start(), Pairs(pairs.ecg, torch.empty(10, 0), pairs.cine), 1)
    assert history[0]["valid"] == 0 and math.isfinite(history[0]["loss"])


def test_fewer_patients_than_a_batch(pairs):
    few = Pairs(pairs.ecg[:3], pairs.r_peaks[:3], pairs.cine[:3])
    assert math.isfinite(run(start(), few, 1)[0]["loss"])


def test_unequal_parts_are_no_pairs(pairs):
    with pytest.raises(PtaclError, match="no pairs"): Pairs(pairs.ecg, pairs.r_peaks, pairs.cine[:9])


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_infer_keeps_the_order_and_does_not_depend_on_the_batch(size, pairs):
    model = start().train()
    torch.testing.assert_close(infer(model.embeddings, model, pairs, size)[0], infer(model.embeddings, model, pairs, 10)[0], atol=0.05, rtol=0.02)
    assert torch.equal(infer(lambda b: b["index"].float(), model, pairs, size), torch.arange(10.0))


# --- a folder of somebody else ---------------------------------------------------------------------------------------------

class Bomb:
    def __init__(self, file): self.file = file
    def __reduce__(self): return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_state_that_runs_code_is_refused(how, pairs, tmp_path):
    run(start(), pairs, 1, folder=tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True) | {"history": Bomb(tmp_path / "was here")}
    if how == "torch": torch.save(state, tmp_path / "state.pt")
    else: (tmp_path / "state.pt").write_bytes(pickle.dumps(state))
    with pytest.raises(PtaclError, match="no state"): run(start(), pairs, 2, folder=tmp_path, resume=True)
    assert not (tmp_path / "was here").exists()


SPOIL = {"empty": lambda data: b"", "truncated": lambda data: data[:-200], "text": lambda data: b"no state",
         "pickle": lambda data: pickle.dumps(Bomb("x"))}

@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL.keys())
def test_a_spoilt_state_is_refused_in_words(spoil, pairs, tmp_path):
    run(start(), pairs, 1, folder=tmp_path)
    (tmp_path / "state.pt").write_bytes(spoil((tmp_path / "state.pt").read_bytes()))
    with pytest.raises(PtaclError): run(start(), pairs, 2, folder=tmp_path, resume=True)


def test_a_state_of_another_model_is_refused_in_words(pairs, tmp_path):
    run(start("ecg"), pairs, 1, "ecg", folder=tmp_path)
    with pytest.raises(PtaclError): run(start("cmr"), pairs, 2, "cmr", folder=tmp_path, resume=True)


def test_a_state_of_other_settings_is_refused(pairs, tmp_path):
    run(start(), pairs, 1, folder=tmp_path)
    other = replace(tiny, tau_local=0.5)
    with pytest.raises(PtaclError, match=r"other settings, tau_local 0\.07 \(now 0\.5\): use"): fit(
        PTACL(other), joint_step, pairs, other, 2, 3e-3, tmp_path, resume=True)
    with pytest.raises(PtaclError, match="other settings"): run(start(), pairs, 2, seed=1, folder=tmp_path, resume=True)
    fewer = Pairs(pairs.ecg[:8], pairs.r_peaks[:8], pairs.cine[:8])
    with pytest.raises(PtaclError, match="other settings"): run(start(), fewer, 2, folder=tmp_path, resume=True)


def test_state_and_settings_come_back(pairs, tmp_path):
    history = run(start(), pairs, 2, folder=tmp_path)
    settings = torch.load(tmp_path / "state.pt", weights_only=True)["settings"]
    assert settings == asdict(tiny) | {"seed": 0, "lr": 3e-3, "patients": 10, "patient_names": None}
    assert load_state(tmp_path, settings) == history and load_state(tmp_path / "none", settings) == []


def test_other_patients_of_the_same_number_are_refused(pairs, tmp_path):
    def named(names): return Pairs(pairs.ecg, pairs.r_peaks, pairs.cine, names=names)
    a, b = ([f"{letter}-{i}" for i in range(10)] for letter in "ab")
    history = run(start(), named(a), 1, folder=tmp_path)
    for others in (named(b), named(a[::-1]), named(None)):
        with pytest.raises(PtaclError, match=r"holds a run of other settings, patient_names \w+ \(now \w+\): use another folder, or resume=False"):
            run(start(), others, 2, folder=tmp_path, resume=True)
    assert run(start(), named(a), 2, folder=tmp_path, resume=True)[:1] == history
    state = torch.load(tmp_path / "state.pt", weights_only=True)                    # of a kit that did not ask for names
    del state["settings"]["patient_names"]; torch.save(state, tmp_path / "state.pt")
    with pytest.raises(PtaclError, match="patient_names None"): run(start(), named(a), 3, folder=tmp_path, resume=True)
    assert len(run(start(), named(None), 3, folder=tmp_path, resume=True)) == 3


def test_a_skipped_step_moves_neither_optimiser_nor_learning_rate(pairs, tmp_path):
    calls = iter(range(100))
    def odd(model, batch): return {"loss": joint_step(model, batch)["loss"] * (math.nan if next(calls) in (1, 4) else 1)}
    history = run(start(), pairs, 5, step=odd, folder=tmp_path)                     # of 10 steps 8 are taken
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {state["schedule"]["last_epoch"]} == {8}
    taken = [1, 3, 4, 6, 8]
    assert [row["lr"] for row in history] == pytest.approx([3e-3 * learning_rate(k, 10, tiny.warmup) for k in taken])


# --- optimiser -------------------------------------------------------------------------------------------------------------

@given(steps=st.integers(1, 2000), warmup=st.floats(0, 0.5))
def test_learning_rate_rises_then_falls_to_almost_nothing(steps, warmup):
    rate, first = [learning_rate(s, steps, warmup) for s in range(steps + 1)], max(1, round(steps * warmup))
    assert all(0 <= r <= 1 for r in rate) and rate[first - 1] == 1 and rate[0] == pytest.approx(1 / first)
    assert all(b > a for a, b in zip(rate[:first - 1], rate[1:first]))
    assert all(b < a for a, b in zip(rate[first:-1], rate[first + 1:]))
    if steps > first: assert rate[steps] == pytest.approx(0, abs=1e-9)
    middle = first + (steps - first) / 2
    if steps > first and middle == int(middle): assert rate[int(middle)] == pytest.approx(0.5)


def test_learning_rate_of_the_run_follows_it(pairs):
    history = run(start(), pairs, 5)
    assert [row["lr"] for row in history] == pytest.approx([3e-3 * learning_rate(2 * e, 10, tiny.warmup) for e in range(1, 6)])


@pytest.mark.parametrize("warmup", [0.1, 0.6])   # over when the run is gone on with, and still under way
def test_a_run_gone_on_with_for_longer_has_the_rates_of_a_long_one(warmup, pairs, tmp_path):
    def rates(epochs, **kw):
        preset, taken = replace(tiny, warmup=warmup), []
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_: taken.append([g["lr"] for g in optimizer.param_groups]))
        try: fit(start(), joint_step, pairs, preset, epochs, 3e-3, **kw)
        finally: hook.remove()
        return taken
    straight = rates(5)
    assert len(straight) == 10 and rates(2, folder=tmp_path) != straight[:4]
    assert rates(5, folder=tmp_path, resume=True) == straight[4:]                   # to the last bit, from the first step


def test_optimizer_takes_what_is_free_once_and_decays_matrices_only():
    model = PTACL(replace(tiny, ecg_layers=2, cmr_layers=2, frozen_layers=1))
    model.ecg.freeze(1); model.cmr.freeze(0)
    optimizer = make_optimizer(model, tiny, 1e-3)
    decay, rest = (set(map(id, g["params"])) for g in optimizer.param_groups)
    assert decay | rest == {id(p) for p in model.parameters() if p.requires_grad} and not decay & rest
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(n.endswith("weight") and "norm" not in n for n in map(names.get, decay)) and "cmr.pos" in map(names.get, rest)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0] and optimizer.defaults["betas"] == (0.9, 0.95)


def test_gradients_are_clipped(pairs):
    def steep(model, batch): return {"loss": 1e6 * joint_step(model, batch)["loss"]}
    norms, model = [], start()
    def spied(optimizer, *a, **k): norms.append(torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]).norm().item())
    handle = register_optimizer_step_pre_hook(spied)
    try: run(model, pairs, 1, step=steep)
    finally: handle.remove()
    assert len(norms) == 2 and norms == pytest.approx([tiny.clip] * 2, rel=1e-3)


@pytest.mark.parametrize("first, second", [("no", "bf16"), ("bf16", "no")])
def test_a_second_training_may_have_another_precision(first, second, monkeypatch):
    "One of many in a notebook, or after another module's tests."
    for wanted in (first, second):
        monkeypatch.setattr(ptacl.train.accelerator, "precision", lambda wanted=wanted: wanted)
        assert ptacl.train.accelerator.start_accelerator(None, None, "run", {}).mixed_precision == wanted


# --- compiled blocks -----------------------------------------------------------------------------------------------------

def test_nothing_is_compiled_on_a_cpu_unless_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(ptacl.train.optimiser, "can_compile", asked.append)
    for value in (None, "0", ""):
        monkeypatch.setenv("PTACL_COMPILE", value) if value is not None else monkeypatch.delenv("PTACL_COMPILE", raising=False)
        with ptacl.train.optimiser.compiled(start(), "cpu"): pass
    assert asked == []
    monkeypatch.delenv("PTACL_COMPILE")
    with ptacl.train.optimiser.compiled(start(), "cuda"): pass
    assert asked == ["cuda"]


def test_without_a_compiler_training_goes_on(pairs, monkeypatch, capsys):
    monkeypatch.setenv("PTACL_COMPILE", "1")
    def fails(f): raise RuntimeError("No working compiler found\nin a long list")
    plain = losses(run(start("ecg"), pairs, 1, "ecg", seed=1))
    monkeypatch.setattr(torch, "compile", fails)
    assert run(start("ecg"), pairs, 1, "ecg", seed=1)[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-4)
    assert "training goes on without: No working compiler found. Install" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_learn_the_same(kind, pairs, tmp_path, monkeypatch):
    plain = losses(run(start(kind), pairs, 2, kind, seed=1))
    monkeypatch.setenv("PTACL_COMPILE", "1")
    model = start(kind)
    quick = losses(run(model, pairs, 2, kind, seed=1, folder=tmp_path))
    assert [row["loss"] for row in quick] == pytest.approx([row["loss"] for row in plain], rel=2e-3)
    assert not any(m._compiled_call_impl for m in model.modules())
    assert same(from_pretrained(tmp_path / "model"), model)


@pytest.mark.parametrize("value, on", [("1", True), ("true", True), ("0", False), ("off", False), ("", False)])
def test_the_switch(value, on, monkeypatch):
    asked = []
    monkeypatch.setattr(ptacl.train.optimiser, "can_compile", asked.append)
    monkeypatch.setenv("PTACL_COMPILE", value)
    with ptacl.train.optimiser.compiled(start(), "cuda"): pass
    assert bool(asked) == on


# --- states that are damaged ---------------------------------------------------------------------------------------------

def test_a_damaged_state_does_not_take_a_good_ones_place(pairs, tmp_path):
    "Cut short after three epochs, gone on from the second, killed after one more: there is still a way back."
    run(start(), pairs, 3, folder=tmp_path)
    state = tmp_path / "state.pt"; state.write_bytes(state.read_bytes()[:500])
    with pytest.warns(UserWarning, match="cut short"): run(start(), pairs, 3, folder=tmp_path, resume=True)
    assert [len(torch.load(f, weights_only=True)["history"]) for f in ptacl.train.checkpoint.state_files(tmp_path)] == [3, 2]


def test_fewer_epochs_than_there_are(pairs, tmp_path):
    run(start(), pairs, 3, folder=tmp_path)
    with pytest.raises(PtaclError, match="3 epochs already: ask for as many or more"): run(start(), pairs, 2, folder=tmp_path, resume=True)
    assert len(run(start(), pairs, 3, folder=tmp_path, resume=True)) == 3
