"Alignment maps and scores: known maps, chance, controls, and the joint model itself."
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptacl.evaluate.alignment import alignment_map, alignment_scores, chance_scores, cosine_maps, lag_profile, patient_scores, plot_alignment
from ptacl.core.errors import PtaclError

matplotlib.use("agg")
NAMES = ("exact", "within_one", "phase_error")


class Fake(nn.Module):
    "Returns what the batch holds, with dropout before it, as a real encoder has."
    def __init__(self, fail=False): super().__init__(); self.drop, self.fail = nn.Dropout(0.5), fail
    def local_embeddings(self, batch):
        if self.fail: raise RuntimeError("broken")
        return self.drop(batch["e"]).requires_grad_(), batch["c"], batch["valid"]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 24))
def test_chance_is_what_random_maps_score(T):
    maps = torch.rand(4000, T, T, generator=torch.Generator().manual_seed(T))
    got, chance = alignment_scores(maps), chance_scores(T)
    for k in NAMES: assert got[k] == pytest.approx(chance[k], abs=0.012), k


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(0, 19))
def test_a_known_shift_scores_as_counted_by_hand(T, shift):
    shift %= T
    got = alignment_scores(torch.eye(T).roll(shift, 1)[None])
    best = [(k + shift) % T for k in range(T)]
    assert got["exact"] == pytest.approx(np.mean([t == k for k, t in enumerate(best)]))
    assert got["within_one"] == pytest.approx(np.mean([abs(t - k) <= 1 for k, t in enumerate(best)]))
    assert got["phase_error"] == pytest.approx(min(shift, T - shift) / T)
    assert lag_profile(torch.eye(T).roll(shift, 1)[None]).idxmax() % T == shift


def test_maps_are_cosines_without_gradient_and_the_mode_is_restored():
    g = torch.Generator().manual_seed(0)
    e, c = torch.randn(2, 5, 13, 8, generator=g)
    batch = {"e": e, "c": c, "valid": torch.tensor([1, 1, 0, 1, 1]).bool()}
    model = Fake().train()
    m = alignment_map(model, batch)
    assert model.training and model.drop.training and not m.requires_grad
    assert torch.equal(m.isnan().all((1, 2)), ~batch["valid"]) and m[batch["valid"]].abs().max() <= 1 + 1e-6
    torch.testing.assert_close(m[0, 3, 7], torch.cosine_similarity(batch["e"][0, 3], batch["c"][0, 7], dim=0))
    assert not Fake().eval().training
    broken = Fake(fail=True).train()
    with pytest.raises(RuntimeError): alignment_map(broken, batch)
    assert broken.training


def test_low_precision_and_zero_vectors_stay_finite():
    z = torch.randn(2, 13, 8).bfloat16(); z[0, 0] = 0
    m = cosine_maps(z, z)
    assert m.dtype == torch.float32 and m.isfinite().all()


def test_patients_without_map_are_left_out_and_counted():
    maps = torch.eye(13).repeat(4, 1, 1); maps[1] = torch.nan; maps[3] = maps[3].flip(1)
    s = alignment_scores(maps)
    assert (s["n"], s["skipped"]) == (3, 1) and s["exact"] == pytest.approx((1 + 1 + 1 / 13) / 3)
    assert patient_scores(maps).isna().all(axis=1).tolist() == [False, True, False, False]
    with pytest.raises(PtaclError, match="none of 1"): alignment_scores(maps[1:2])
    with pytest.raises(PtaclError, match=r"must be \(B, T, T'\), got \(13, 13\)"): alignment_scores(maps[0])


def test_interval_follows_the_spread_between_patients():
    rng = torch.Generator().manual_seed(0)
    maps = torch.eye(13) + 0.6 * torch.randn(200, 13, 13, generator=rng)
    s, each = alignment_scores(maps, n_boot=2000), patient_scores(maps)
    for k in NAMES:
        assert s[f"{k}_lo"] < s[k] < s[f"{k}_hi"]
        assert s[f"{k}_hi"] - s[f"{k}_lo"] == pytest.approx(2 * 1.96 * each[k].std() / 200**0.5, rel=0.1)


def test_result_is_plain_json():
    import json
    s = alignment_scores(torch.eye(13)[None], n_boot=10)
    assert json.loads(json.dumps(s)) == s


@pytest.mark.parametrize("patients", [(), (0,), (0, 2), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("temperature", [None, 0.1])
def test_pictures_of_any_number_of_patients(patients, temperature):
    import matplotlib.pyplot as plt
    maps = {"global": torch.rand(6, 7, 7), "PTACL": torch.eye(7).repeat(6, 1, 1)}
    fig = plot_alignment(maps, torch.eye(7), patients, temperature)
    images = [im for ax in fig.findobj(plt.Axes) for im in ax.get_images()]
    assert len(images) == 2 * (len(patients) + 1) + 1
    assert len({im.get_clim() for im in images[:-1]}) == 1         # models share one colour scale
    fig.canvas.draw(); plt.close(fig)
    plt.close(plot_alignment({"alone": maps["PTACL"]}, None, patients))
