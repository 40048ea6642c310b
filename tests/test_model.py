"Sizes of the paper, what is trained and what is frozen, and models on disk."
import gc
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import ptacl.nets.weights
from ptacl.nets.encoders import Block, CMREncoder, ECGEncoder
from ptacl.core.errors import PtaclError
from ptacl.nets.mae import MAE, patchify, random_mask, unpatchify
from ptacl.nets.joint import PTACL, joint_loss, start_joint
from ptacl.nets.views import centre_view
from ptacl.nets.weights import from_pretrained, save_weights
from ptacl.core.presets import PRESETS, paper_regression, paper_retrieval, workshop
from ptacl.train.optimiser import make_optimizer
from ptacl.nets.views import turned_view

tiny = replace(workshop, width=16, heads=2, ecg_layers=2, cmr_layers=2, frozen_layers=1, decoder_width=16, proj_dim=8)
# of the paper's kind: positions that are learned, patches by a linear map
LINEAR = replace(paper_regression, name="linear", ecg_crop=1500, cmr_patch=(2, 21, 21), width=16, heads=2, ecg_layers=2, cmr_layers=2,
                 frozen_layers=1, decoder_width=16, proj_dim=8, centred=True)
PAPER = pytest.mark.parametrize("preset", [paper_regression, paper_retrieval], ids=lambda p: p.name)


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def a_batch(B, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"ecg": torch.randn(B, 12, 5000, generator=g), "cine": torch.rand(B, 50, 84, 84, generator=g),
            "r_peaks": torch.arange(0.3, 10, 0.9).repeat(B, 1)}


def models(preset=tiny):
    torch.manual_seed(0)
    return {"PTACL": PTACL(preset), "MAE-ECG": MAE(ECGEncoder(preset)), "MAE-CMR": MAE(CMREncoder(preset))}


# --- sizes -----------------------------------------------------------------------------------------------------------------

@PAPER
def test_paper_parameter_counts(preset):
    assert count(Block(preset.width, preset.heads, preset.mlp_ratio)) == 3_152_384
    ecg, cmr = ECGEncoder(preset), CMREncoder(preset)
    assert (len(ecg.blocks), len(cmr.blocks)) == (6, 4)
    assert count(ecg) == 6 * 3_152_384 + 12 * 50 * 512 + 51 * 512 + 1024
    assert round(count(ecg) / 1e6, 2) == 19.25 and round(count(cmr) / 1e6, 2) == pytest.approx(13.09, abs=0.011)
    for encoder, trained, published in ((ecg, 4, 12.61), (cmr, 2, 6.30)):
        encoder.freeze(preset.frozen_layers)
        assert count(encoder.blocks, True) == trained * 3_152_384 and round(trained * 3_152_384 / 1e6, 2) == published
        assert count(encoder, True) == trained * 3_152_384 + 1024                  # and the last norm
        assert count(encoder.freeze(0), True) == count(encoder)


def test_paper_settings():
    common = dict(fs=500, ecg_crop=2500, ecg_patch=50, frames=26, size=84, cmr_patch=(2, 12, 12), ecg_mask=0.75, cmr_mask=0.9, heads=8,
                  decoder_layers=1, decoder_heads=4, frozen_layers=2, beta=1.0, T=13, ecg_times=50, cmr_places=49, local="contrastive")
    for p, own in ((paper_regression, (0.1, 0.1, 1.0)), (paper_retrieval, (0, 0.07, 0.07))):
        assert {k: getattr(p, k) for k in common} == common and (p.sigma, p.tau_global, p.tau_local) == own


@PAPER
def test_one_patient_at_paper_size(preset):
    torch.manual_seed(0)
    model, batch = PTACL(preset).eval(), a_batch(1)
    with torch.no_grad():
        view = centre_view(batch, preset)
        assert view["ecg"].shape == (1, 12, 2500) and view["cine"].shape == (1, 26, 84, 84)
        tokens = model.ecg(view["ecg"]), model.cmr(view["cine"])
        assert [t.shape for t in tokens] == [(1, 600, 512), (1, 637, 512)] and all(t.isfinite().all() for t in tokens)
        z_ecg, z_cmr, valid = model.local_embeddings(batch)
        out = joint_loss(model, batch)
    assert z_ecg.shape == z_cmr.shape == (1, 13, 512) and valid.all()
    assert all(v.isfinite() for v in out.values()) and out["valid"] == 1 and out["local"] > 0
    assert out["global"].abs() < 1e-5                                              # one patient has nobody to be confused with


@pytest.mark.parametrize("encoder, visible, total, shape", [(ECGEncoder, 150, 600, (1, 12, 2500)), (CMREncoder, 64, 637, (1, 26, 84, 84))])
def test_masked_autoencoders_at_paper_size(encoder, visible, total, shape):
    torch.manual_seed(0)
    mae, seen = MAE(encoder(paper_regression)), []
    mae.encoder.blocks[0].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    mae.blocks[0].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    out = mae(torch.rand(shape))
    assert seen == [(1, visible, 512), (1, total, paper_regression.decoder_width)]
    assert out["loss"].isfinite() and out["guess"].shape[:2] == (1, total - visible)
    assert out["hidden"].shape == (1, total) and out["hidden"].sum() == total - visible
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mae.parameters())


# --- masked autoencoder ----------------------------------------------------------------------------------------------------

@pytest.fixture(params=["MAE-ECG", "MAE-CMR"])
def mae(request): return models()[request.param].eval()


def input_of(mae, B=3, seed=0):
    g, p = torch.Generator().manual_seed(seed), mae.encoder.preset
    return torch.rand(B, 12, p.ecg_crop, generator=g) if isinstance(mae.encoder, ECGEncoder) else torch.rand(B, p.frames, p.size, p.size, generator=g)


def with_mask(mae, *args):
    "The same mask each time."
    torch.manual_seed(7)
    return mae(*args)


def changed(x, mae, tokens, value):
    patches = patchify(x, mae.encoder).clone(); patches[tokens] += value
    return unpatchify(patches, mae.encoder)


def test_mae_loss_is_the_error_of_hidden_tokens_against_the_clean_target(mae):
    clean, noisy = input_of(mae), input_of(mae, seed=1)
    out = with_mask(mae, noisy, clean)
    hidden, wanted = out["hidden"], (patchify(clean, mae.encoder) - mae.encoder.mean) / mae.encoder.sd
    torch.testing.assert_close(out["loss"], (out["guess"].flatten(0, 1) - wanted[hidden]).square().mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(with_mask(mae, noisy, changed(clean, mae, ~hidden, 50))["loss"], out["loss"])   # visible target: no matter
    assert with_mask(mae, noisy, changed(clean, mae, hidden, 50))["loss"] > out["loss"] + 100
    assert not torch.isclose(with_mask(mae, noisy)["loss"], out["loss"], atol=1e-4, rtol=0)                 # noisy input is not the target
    torch.testing.assert_close(with_mask(mae, clean)["loss"], with_mask(mae, clean, clean)["loss"])


def test_mae_never_sees_what_is_hidden(mae):
    x = input_of(mae)
    out = with_mask(mae, x)
    torch.testing.assert_close(with_mask(mae, changed(x, mae, out["hidden"], 9))["guess"], out["guess"])
    assert not torch.allclose(with_mask(mae, changed(x, mae, ~out["hidden"], 9))["guess"], out["guess"], atol=1e-3)


def test_mae_checks_its_shapes(mae):
    x = input_of(mae)
    with pytest.raises(PtaclError, match="differ in shape"): mae(x, x[:2])
    with pytest.raises(PtaclError, match="this preset takes"): mae(x[..., :-1], x[..., :-1])


@pytest.mark.parametrize("N, ratio, visible", [(1, 0.9, 1), (2, 0.9, 1), (600, 0.75, 150), (637, 0.9, 64), (637, 0.999, 1), (10, 0.01, 9)])
def test_masks_keep_the_right_share_of_every_patient(N, ratio, visible):
    keep, hidden = random_mask(5, N, ratio)
    assert keep.shape == (5, visible) and (hidden.sum(1) == N - keep.shape[1]).all()
    assert not hidden.gather(1, keep).any()
    order = torch.cat([keep, hidden.nonzero()[:, 1].view(5, -1)], 1).sort(1)[0]
    assert (order == torch.arange(N)).all()
    if N > 100 and ratio < 0.95: assert not torch.equal(hidden[0], hidden[1])


# --- joint phase -----------------------------------------------------------------------------------------------------------

def one_step(model, batch):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, model.preset, 1e-2)
    model.train(); joint_loss(model, batch)["loss"].backward(); optimizer.step()
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_frozen_parameters_stay_and_all_others_move(layers):
    maes = models(LINEAR)
    model = start_joint(replace(LINEAR, frozen_layers=layers), maes["MAE-ECG"].encoder, maes["MAE-CMR"].encoder)
    names = {n for n, _ in model.named_parameters()}
    def fixed(n): return layers and (".patch." in n or n.endswith(".pos") or any(f".blocks.{i}." in n for i in range(layers)))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {n for n in names if fixed(n)}
    assert one_step(model, a_batch(4)) == {n for n in names if not fixed(n)}
    for part in ("MAE-ECG", "MAE-CMR"):                                             # copied, not shared
        for mine, theirs in zip(models(LINEAR)[part].parameters(), maes[part].parameters()): assert torch.equal(mine, theirs)


def test_joint_model_starts_from_the_pre_trained_encoders():
    maes = models()
    ecg, cmr = maes["MAE-ECG"].encoder, maes["MAE-CMR"].encoder
    model = start_joint(tiny, ecg, cmr)
    for mine, theirs in ((model.ecg, ecg), (model.cmr, cmr)):
        for a, b in zip(mine.state_dict().values(), theirs.state_dict().values()): assert torch.equal(a, b)
    assert count(start_joint(tiny, ecg, cmr, freeze=False), True) == count(model) == count(start_joint(tiny), True)
    half = start_joint(tiny, ecg)
    assert count(half.ecg, True) < count(half.ecg) and count(half.cmr, True) == count(half.cmr)


def test_patients_without_a_beat_are_left_out_of_the_local_loss():
    model, batch = models()["PTACL"].eval(), a_batch(4)
    whole = joint_loss(model, batch)
    batch["r_peaks"][1:3] = torch.nan
    part = joint_loss(model, batch)
    expected = joint_loss(model, {k: v[[0, 3]] for k, v in batch.items()})["local"]
    assert part["valid"] == 0.5 and part["global"] == whole["global"]
    torch.testing.assert_close(part["local"], expected)
    batch["r_peaks"][:] = torch.nan
    nobody = joint_loss(model, batch)
    assert nobody["valid"] == 0 and nobody["local"] == 0 and nobody["loss"] == nobody["global"]
    nobody["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_turned_film_means_the_same_moments_once_its_frames_have_no_number():
    "Without positions in time the encoder cannot tell where a film begins; with them it can."
    model = models(LINEAR)["PTACL"].eval()
    view = centre_view(a_batch(3), LINEAR)
    torch.manual_seed(3)
    elsewhere = turned_view(view, LINEAR)
    assert elsewhere["turn"].any() and not torch.equal(elsewhere["cine"], view["cine"])
    apart = lambda: (model.local_embeddings(elsewhere)[1] - model.local_embeddings(view)[1]).abs().max().item()
    with torch.no_grad():
        assert apart() > 1e-2
        model.cmr.pos.copy_(model.cmr.pos[:1].expand_as(model.cmr.pos))
        assert apart() < 1e-4


@pytest.mark.parametrize("beta, local", [(0.0, "contrastive"), (2.5, "contrastive"), (1.0, "cosine")])
def test_loss_is_global_plus_beta_local(beta, local):
    out = joint_loss(PTACL(replace(tiny, beta=beta, local=local)), a_batch(3))
    torch.testing.assert_close(out["loss"].detach(), out["global"] + beta * out["local"])
    assert out["local"] > 0


# --- on disk ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["PTACL", "MAE-ECG", "MAE-CMR"])
def test_round_trip(kind, tmp_path):
    model = models()[kind]
    if kind == "PTACL": joint_loss(model.train(), a_batch(3))                       # statistics of the projections, too, are kept
    folder = save_weights(model, tmp_path / "new" / kind)
    again = from_pretrained(str(folder))
    assert type(again) is type(model) and not again.training
    assert (again if kind == "PTACL" else again.encoder).preset == tiny
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    if kind == "PTACL": assert torch.equal(again.embeddings(a_batch(2))[1], model.eval().embeddings(a_batch(2))[1])
    else: assert torch.equal(with_mask(again, input_of(again))["loss"], with_mask(model.eval(), input_of(model))["loss"])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_every_preset_survives_its_config(preset, tmp_path):
    mae = MAE(CMREncoder(replace(preset, width=32, heads=2, cmr_layers=1, frozen_layers=0, decoder_width=16, decoder_heads=2)))
    assert from_pretrained(save_weights(mae, tmp_path / "m")).encoder.preset == mae.encoder.preset


def test_reading_a_model_again_and_again_leaves_nothing_behind(tmp_path):
    folder = save_weights(models()["PTACL"], tmp_path / "model")
    for _ in range(3): from_pretrained(folder)
    gc.collect(); before = sys.getallocatedblocks()
    for _ in range(20): from_pretrained(folder)
    gc.collect(); assert sys.getallocatedblocks() - before < 20 * 20    # two objects a tensor would be 20 * 204


@pytest.fixture
def saved(tmp_path): return save_weights(models()["PTACL"], tmp_path / "model")


def test_folder_holds_no_pickle(saved):
    assert sorted(f.name for f in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(f.name for f in saved.parent.iterdir()) == ["model"]
    head = (saved / "model.safetensors").read_bytes()
    assert head[8:9] == b"{" and json.loads(head[8:8 + int.from_bytes(head[:8], "little")])
    assert set(json.loads((saved / "config.json").read_text(encoding="utf-8"))) == {"kind", "preset"}


def edit(saved, **changes):
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    for k, v in changes.items(): (config["preset"] if k in config["preset"] else config)[k] = v
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")


def weights(saved, change):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")


TAMPER = {
    "no folder": shutil.rmtree,
    "no config": lambda s: (s / "config.json").unlink(),
    "no weights": lambda s: (s / "model.safetensors").unlink(),
    "config is no json": lambda s: (s / "config.json").write_text("{"),
    "config is no text": lambda s: (s / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config is a list": lambda s: (s / "config.json").write_text("[]"),
    "config is empty": lambda s: (s / "config.json").write_text("{}"),
    "unknown kind": lambda s: edit(s, kind="os.system"),
    "another kind": lambda s: edit(s, kind="MAE-ECG"),
    "kind is a list": lambda s: edit(s, kind=["PTACL"]),
    "no preset": lambda s: edit(s, preset=None),
    "unknown setting": lambda s: edit(s, preset={"name": "x", "colour": 1}),
    "another width": lambda s: edit(s, width=32),
    "another depth": lambda s: edit(s, ecg_layers=3),
    "fewer layers": lambda s: edit(s, cmr_layers=1),
    "text for a number": lambda s: edit(s, width="16"),
    "patch of two": lambda s: edit(s, cmr_patch=[2, 28]),
    "sigma < 0": lambda s: edit(s, sigma=-1),
    "weights truncated": lambda s: (s / "model.safetensors").write_bytes((s / "model.safetensors").read_bytes()[:-100]),
    "weights half": lambda s: (s / "model.safetensors").write_bytes((s / "model.safetensors").read_bytes()[:20]),
    "weights empty": lambda s: (s / "model.safetensors").write_bytes(b""),
    "weights are a pickle": lambda s: torch.save({"a": torch.ones(2)}, s / "model.safetensors"),
    "weights are a folder": lambda s: [(s / "model.safetensors").unlink(), (s / "model.safetensors").mkdir()],
    "one tensor gone": lambda s: weights(s, lambda t: t.pop("ecg.pos")),
    "one tensor more": lambda s: weights(s, lambda t: t.update(extra=torch.ones(2))),
    "one tensor smaller": lambda s: weights(s, lambda t: t.update({"ecg.pos": t["ecg.pos"][:-1].clone()})),
}


@pytest.mark.parametrize("tamper", TAMPER.values(), ids=TAMPER.keys())
def test_what_is_no_model_is_refused(saved, tamper):
    from_pretrained(saved)
    tamper(saved)
    with pytest.raises(PtaclError, match="model holds no model of this kit"): from_pretrained(saved)


@pytest.mark.parametrize("changes", [
    {"heads": 0}, {"ecg_patch": 0}, {"cmr_patch": [0, 28, 28]}, {"decoder_heads": 0}, {"beta": -1.0}, {"fs": 250},
    {"width": 10**12}, {"width": -16}, {"width": 16.0}, {"ecg_layers": -1}], ids=str)
def test_settings_that_no_model_can_have_are_refused(saved, changes):
    edit(saved, **changes)
    with pytest.raises(PtaclError): from_pretrained(saved)


def test_saving_again_replaces(saved):
    other = MAE(CMREncoder(tiny))
    save_weights(other, saved)
    assert torch.equal(from_pretrained(saved).pos, other.pos) and sorted(f.name for f in saved.iterdir()) == ["config.json", "model.safetensors"]


class Interrupted(Exception): pass


def cut_off(saved, monkeypatch):
    "Save over `saved`, interrupted while the weights are written."
    def stop(model, file, *_): open(file, "wb").write(b"half"); raise Interrupted
    with monkeypatch.context() as m:
        m.setattr(ptacl.nets.weights, "save_model", stop)
        with pytest.raises(Interrupted): save_weights(MAE(CMREncoder(tiny)), saved)


def test_interrupted_save_leaves_the_old_model(saved, monkeypatch):
    before = from_pretrained(saved).state_dict()
    cut_off(saved, monkeypatch)
    after = from_pretrained(saved).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_interrupted_save_leaves_no_litter(saved, monkeypatch):
    cut_off(saved, monkeypatch)
    assert [f.name for f in saved.parent.iterdir()] == ["model"]


def test_saving_works_after_an_interrupted_save(saved, monkeypatch):
    cut_off(saved, monkeypatch)
    other = MAE(CMREncoder(tiny))
    save_weights(other, saved)
    assert torch.equal(from_pretrained(saved).pos, other.pos)


def test_old_model_goes_only_when_the_new_one_is_in_place(saved, monkeypatch):
    def stop(*args): raise Interrupted
    with monkeypatch.context() as m:
        for name in ("pathlib.Path.rename", "pathlib.Path.replace", "os.rename", "os.replace", "shutil.move"): m.setattr(name, stop)
        with pytest.raises(Interrupted): save_weights(MAE(CMREncoder(tiny)), saved)
    assert isinstance(from_pretrained(saved), PTACL)


def test_a_folder_that_is_no_model_is_not_deleted(tmp_path):
    (tmp_path / "thesis").mkdir(); (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(PtaclError): save_weights(MAE(CMREncoder(tiny)), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()
