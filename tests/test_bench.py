"""The bench: what it counts, that its ways agree, what it says when it cannot; and the quick ways that it led to, against the plain ones."""
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from ptacl.bench import bench, data, measure, plain, training
from ptacl.signal.beats import detect_r_peaks, r_peaks_of
from ptacl.signal.segments import beat_weights, segment_beats
from ptacl.signal.ecg import denoise
from ptacl.nets.encoders import _attend
from ptacl.core.errors import PtaclError
from ptacl.nets.losses import global_contrastive_loss
from ptacl.core.presets import paper_regression, workshop
from ptacl.simulate.patients import simulate


def shell(root, *words, **more):
    return subprocess.run([sys.executable, *map(str, words)], cwd=root, capture_output=True, text=True, **more)


# --- what is measured ----------------------------------------------------------------------------------------------------

def test_ways_take_turns_and_what_comes_before_is_off_the_clock():
    seen = []
    turns = measure.take_turns({k: lambda k=k: seen.append(k) for k in "ab"}, 2, before={k: lambda k=k: seen.append(k.upper()) for k in "ab"})
    assert "".join(seen) == "AaBb" * 3
    assert {k: len(v) for k, v in turns.items()} == {"a": 2, "b": 2}


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_products_are_counted(n, i, o):
    x, w = torch.randn(n, i), torch.randn(o, i, requires_grad=True)
    assert training._count_flops(lambda: F.linear(x, w)) == 2 * n * i * o
    assert training._count_flops(lambda: F.linear(x, w).sum().backward()) == 4 * n * i * o     # forward, and the weight's gradient


def test_attention_counts_the_same_by_every_kernel():
    q = torch.randn(2, 4, 30, 16)
    assert training._count_flops(lambda: _attend(q, q, q)) == training._count_flops(lambda: _attend(*[q.bfloat16()] * 3)) == 4 * 2 * 4 * 30**2 * 16

# of the paper's kind, as the plain models are, and small
LINEAR = replace(paper_regression, name="small", ecg_crop=1500, ecg_layers=3, cmr_patch=(2, 21, 21), cmr_layers=3, width=128, heads=4,
                 decoder_width=128, frozen_layers=1, proj_dim=64)


def test_frozen_layers_cost_their_forward_pass_only():
    whole, free = (training._step_flops("joint", p) for p in (LINEAR, replace(LINEAR, frozen_layers=0)))
    block = lambda n: 24 * n * LINEAR.width**2 + 4 * n**2 * LINEAR.width
    ecg, cmr = 12 * LINEAR.ecg_times, LINEAR.T * LINEAR.cmr_places
    assert 0.97 < ((3 + 2 * 2) * (block(ecg) + block(cmr))) / whole < 1
    assert 0.96 < ((3 + 3 * 2) * (block(ecg) + block(cmr))) / free < 1


def test_a_row_has_median_quartiles_and_shares():
    r = measure.result_row("a", "b", "c", [1., 2., 3., 4., 100.], items=6, flops=9e9)
    assert (r["seconds"], r["seconds_lo"], r["seconds_hi"], r["per_second"], r["gflops"]) == (3, 2, 4, 2, 3)


def test_the_yardstick_multiplies_what_the_blocks_multiply():
    "Forward, apart from patches, head and attention's own products, the products of a model are those of its yardstick."
    for kind in training.STEPS:
        p, seen = LINEAR, []
        model, view = training.start_model(kind, p), {"ecg": torch.randn(2, 12, p.ecg_crop), "cine": torch.rand(2, p.frames, p.size, p.size)}
        hooks = [m.register_forward_hook(lambda m, x, y, seen=seen: seen.append((x[0].shape[0] * x[0].shape[1], m.in_features, m.out_features)))
                 for b in model.modules() if type(b).__name__ == "Block" for m in b.modules() if isinstance(m, torch.nn.Linear)]
        training._encode_and_back(kind, model, view, torch.float32)
        assert sorted(seen) == sorted(measure._own_shapes(kind, p, 2)) and len(hooks) == len(seen)
        for way in ("shapes", "layers"):
            f, flops = measure.yardsticks(kind, p, 2, 64, "cpu")[way]
            assert training._count_flops(f) == flops


def test_a_timed_step_is_a_step_of_fit():
    model = training.start_model("mae_ecg", workshop)
    before = [x.clone() for x in model.parameters()]
    row = training._step_parts("mae_ecg", model, workshop, training.noise_pairs(8), 4, "cpu")["step"]()
    assert row["skipped"] == 0 and np.isfinite(row["loss"]) and all((a != b).any() for a, b in zip(before, model.parameters()))


def test_targets_say_what_was_met():
    rows = pd.DataFrame([measure.result_row("denoising", "8 records", w, [1.], ratio=r) for w, r in (("kit", 1), ("loop", 2.5))])
    table = bench._judge_targets(rows, "cpu")
    assert table[["goal", "measured", "met"]].values.tolist() == [[3, 2.5, False]]


# --- the ways agree ------------------------------------------------------------------------------------------------------

def test_denoising_equals_the_loop_over_leads():
    for n in (1, 3, 20):
        ecg = simulate(n, 1, cine=False).ecg.numpy()
        np.testing.assert_allclose(denoise(ecg, 500), plain.denoise_by_lead(ecg.astype(float)), atol=1e-6)  # the loop in float32 is no nearer
        assert denoise(ecg[0, 0], 500).shape == (5000,)


peak_lists = st.lists(st.lists(st.floats(0, 9.9), max_size=14).map(sorted), min_size=1, max_size=4)


@given(peak_lists, st.floats(0, 5), st.integers(2, 60), st.integers(1, 15))
def test_segments_equal_the_loop_over_patients_and_beats(peaks, start, n, T):
    most = max(map(len, peaks)) + 1
    r = torch.tensor([p + [torch.nan] * (most - len(p)) for p in peaks])
    x, first = torch.randn(len(peaks), n, 5), torch.full((len(peaks),), start)
    quick, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    z, valid = segment_beats(quick, r, first, 0.1, T)
    (z.square().sum() + z.sum()).backward()
    for beat in (plain._by_segment, plain.segments_at_once):
        want = plain.segment_by_beat(slow, r, first, 0.1, T, beat)
        torch.testing.assert_close(z, want, atol=2e-3, rtol=1e-3)
    if valid.any(): (want.square().sum() + want.sum()).backward(); torch.testing.assert_close(quick.grad, slow.grad, atol=2e-2, rtol=1e-2)
    else: assert not quick.grad.any()


def test_weights_of_one_token_and_of_nobody():
    W, beats = beat_weights(torch.tensor([[0.0, 0.1], [0.02, 0.5]]), torch.zeros(2), 0.1, n=1, T=3)
    assert W[0].tolist() == [[1], [1], [1]] and beats.tolist() == [1, 0] and not W[1].any()
    W, beats = beat_weights(torch.empty(2, 0), torch.zeros(2), 0.1, n=5, T=3)
    assert not W.any() and not beats.any()


def test_metric_learning_gives_the_same_loss_and_gradient():
    a, b = torch.randn(2, 20, 8, requires_grad=True)
    ours, theirs = (torch.autograd.grad(f(a, b), (a, b)) for f in (lambda a, b: global_contrastive_loss(a, b, 0.1), training._metric_learning(0.1)))
    for x, y in zip(ours, theirs): torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("n", [7, 64, 150])
def test_attention_in_bf16_is_the_fused_one_but_for_rounding(n):
    torch.manual_seed(0)
    exact = torch.randn(3, 2, 4, n, 32, requires_grad=True); rounded = exact.detach().bfloat16().requires_grad_()
    out, want = _attend(*rounded), F.scaled_dot_product_attention(*exact)
    out.float().square().sum().backward(); want.square().sum().backward()
    assert (out - want).abs().max() < 0.03 and (rounded.grad - exact.grad).abs().max() < 0.05 * exact.grad.abs().max()
    assert torch.equal(_attend(*exact), want)


def test_plain_models_have_our_weights_and_freeze_where_we_do():
    for kind in training.STEPS:
        ours, theirs = training.start_model(kind, LINEAR), plain.plain_model(kind, LINEAR)
        count = lambda m: [sum(x.numel() for x in m.parameters() if x.requires_grad == free) for free in (True, False)]
        assert count(ours) == count(theirs)


def test_plain_steps_do_the_work_of_ours():
    "Counted operations agree but for the patches, which a plain autoencoder embeds before it hides them."
    for kind, most in {"mae_ecg": 1.02, "mae_cmr": 1.2, "joint": 1.001}.items():
        model = plain.plain_model(kind, LINEAR)
        inputs = plain._plain_inputs(kind, training.noise_pairs(2).__getitems__([0, 1]), LINEAR)
        counted = training._count_flops(lambda model=model, inputs=inputs: model(*inputs).backward()) / 2
        assert 0.999 < counted / training._step_flops(kind, LINEAR) < most


def test_plainly_nobody_is_aligned_without_a_whole_beat():
    z, c = torch.randn(2, 5, 13, 8)
    none = torch.zeros(3, 13, 8)
    assert plain._plain_local_loss(none, c[:3], 0.1, 1.0) == 0 < plain._plain_local_loss(z, c, 0.1, 1.0)
    more = torch.cat([z, none]), torch.cat([c, c[:3]])
    torch.testing.assert_close(plain._plain_local_loss(*more, 0.1, 1.0), plain._plain_local_loss(z, c, 0.1, 1.0))


# --- the command ---------------------------------------------------------------------------------------------------------

def test_a_section_through_the_shell(root, tmp_path):
    words = ("bench", "--quick", "--device", "cpu", "--only", "segmentation", "--out", tmp_path / "b.json")
    run = shell(root, "-c", "from ptacl.app.cli import app; app()", *words)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert {r["way"] for r in result["rows"]} == {"kit", "loop", "loop, segments at once"}
    assert result["versions"]["torch"] and "times a loop" in run.stdout


def test_it_says_what_it_cannot_measure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PtaclError, match="sees no GPU"): bench.bench(device="cuda")
    with pytest.raises(PtaclError, match="choose from steps, workshop; against plain, mae_ecg; "): bench.bench(True, "cpu", "speed")


def test_the_help_names_all_sections(root):
    told = " ".join(shell(root, "-m", "ptacl.app.cli", "bench", "--help").stdout.split())
    begins = re.search(r"begins like this, of: ([\w; ]+?) --out", told)[1].split("; ")
    assert {next(b for b in begins if name.startswith(b)) for name in bench._bench_sections(bench._FULL, "cpu")} == set(begins)


def test_a_result_that_could_not_be_written_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_bench_sections", lambda *_: {"steps": lambda: pytest.fail("measured")})
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "b.json"):
        with pytest.raises(PtaclError, match="cannot be written there"): bench.bench(True, "cpu", out=out)


def test_without_the_peer_our_loss_is_measured_alone(monkeypatch):
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    assert [r["way"] for r in training.time_infonce((8, 16), 2, "cpu")] == ["kit", "kit"]


def test_targets_of_growth():
    both = (("probe", 1.5, 4), ("probe", 1.5, 16), ("retrieval", 2., 4), ("retrieval", 2., 16))
    rows = [measure.result_row(part, f"{n} patients", "kit", [1.], peak_mb=n, slope=s, memory=1.) for part, s, n in both]
    rows += [measure.result_row("streaming", f"{n} patients", "kit", [1.], peak_mb=p) for n, p in ((64, 10.), (256, 10.), (1024, 30.))]
    table = bench._judge_targets(pd.DataFrame(rows), "cpu").set_index("target")
    assert table.met.to_dict() == {"probe: exponent of time over patients": False, "probe: exponent of memory over patients": True,
                                   "streaming: memory for 16 times the patients": False}


def test_the_kept_result_has_what_the_chapter_shows(root):
    kept = json.loads((root / "nbs/results/bench.json").read_text(encoding="utf-8"))
    assert {"conditions", "rows", "targets", "versions"} <= set(kept)
    # sections that joined later are not in it yet
    assert set(kept["size"]) <= set(bench.asdict(bench._FULL)) and kept["size"]["presets"] == list(bench._FULL.presets)
    assert {"step", "step, compiled", "encoders", "squares", "shapes", "layers"} <= {r["way"] for r in kept["rows"]}
    assert bench._judge_targets(pd.DataFrame(kept["rows"]), "cpu").target.tolist() == [r["target"] for r in kept["targets"]]
    assert kept["conditions"] in bench.result_text(kept)


@pytest.mark.long
def test_all_of_it_quickly(tmp_path):
    result = bench.bench(True, "cpu", out=tmp_path / "bench.json")
    assert {r["section"] for r in result["rows"]} == set(bench._bench_sections(bench._QUICK, "cpu"))
    assert pd.DataFrame(result["targets"]).measured.notna().all()


@pytest.mark.long
def test_r_peaks_by_all_cores_are_those_of_one(monkeypatch):
    monkeypatch.setattr("ptacl.signal.beats.MANY_RECORDS", 100)
    ecg = data._repeated_records(300)
    assert torch.equal(r_peaks_of(ecg, 500), r_peaks_of(ecg, 500, workers=1))
    np.testing.assert_allclose(r_peaks_of(ecg[:1], 500)[0], detect_r_peaks(ecg[0], 500), atol=1e-6)


@pytest.mark.long
def test_paper_scale_stops_and_goes_on(root, tmp_path):
    words = ("--scale", 0.004, "--epochs", 1, "--epochs-mae", 1, "--batch-size", 16, "--presets", "workshop", "workshop", "--n-boot", 20)
    calls = []
    while not calls or calls[-1].returncode == 75:
        calls.append(shell(root, "scripts/paper_scale.py", *words, "--out", tmp_path, "--minutes", 0.5))
        assert len(calls) < 40
    assert calls[-1].returncode == 0, calls[-1].stderr[-2000:]
    assert len(calls) > 1 and "go on" in calls[0].stdout
    for k in (1, 2):
        result = json.loads((tmp_path / f"table{k}" / "result.json").read_text())
        assert result["cohort"]["n_train"] == 112 and {r["method"] for r in result["rows"]} > {"PTACL", "Global"}
    whole = shell(root, "scripts/paper_scale.py", *words, "--out", tmp_path / "whole")
    assert "in 1 calls" in whole.stdout and f"in {len(calls)} calls" in calls[-1].stdout
    for k in (1, 2):
        a, b = (pd.DataFrame(json.loads((tmp_path / f / f"table{k}" / "result.json").read_text())["rows"]).value.astype(float) for f in ("", "whole"))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)   # pieces change nothing
    other = shell(root, "scripts/paper_scale.py", *words[:1], 0.005, *words[2:], "--out", tmp_path)
    assert other.returncode == 1 and "take the --scale of its first call" in other.stderr
    states = [torch.load(tmp_path / f"setting-{k}/runs/seed-0/mae_cmr/state.pt", weights_only=True) for k in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*(s["model"].values() for s in states)))
