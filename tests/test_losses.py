"The losses on any input: properties, reference implementations, and two real processes."
import math
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import SupConLoss

from ptacl.core.errors import PtaclError
from ptacl.nets.losses import alignment_matrix, cosine_local_loss, global_contrastive_loss, local_contrastive_loss, ptacl_loss

sigmas = st.one_of(st.just(0.0), st.floats(1e-30, 1e-3), st.floats(0.01, 1), st.floats(1, 1e30))
soft = st.floats(0.03, 0.3)  # wide enough to see a neighbour, narrow enough to see a distance
taus = st.floats(0.03, 2)
seeds = st.integers(0, 10**6)
extremes = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1e30, -1e30, 1e-30, -1e-30]))


def pair(*shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def arc(T, sigma, tau):
    "(1, T, 2): unit vectors whose cosines / τ are a constant − d² / 2σ² for small τ, so that their softmax is P."
    angle = torch.arange(T, dtype=torch.float64) / T * tau**0.5 / sigma
    return torch.stack([angle.cos(), angle.sin()], -1)[None]


def entropy(P):
    return torch.special.entr(P.double()).sum(1).mean().item()


# --- alignment -------------------------------------------------------------------------------------------------------------

@given(T=st.integers(1, 200), sigma=sigmas, circular=st.booleans())
def test_alignment_rows_are_distributions_around_the_diagonal(T, sigma, circular):
    P = alignment_matrix(T, sigma, circular)
    assert P.shape == (T, T) and P.isfinite().all() and (P >= 0).all()
    torch.testing.assert_close(P.sum(1), torch.ones(T))
    assert (P.diagonal() >= P.amax(1) - 1e-6).all()
    if circular:
        torch.testing.assert_close(P, P.T, atol=1e-4, rtol=0)
        torch.testing.assert_close(P, P.roll((1, 1), (0, 1)), atol=1e-4, rtol=0)
    else: torch.testing.assert_close(P, P.flip(0, 1), atol=1e-4, rtol=0)


@given(T=st.integers(2, 40), sigma=st.floats(0.02, 1), circular=st.booleans())
def test_alignment_is_a_gaussian_of_the_time_distance(T, sigma, circular):
    def weight(k, t):
        d = abs(k - t) / T
        return math.exp(-0.5 * ((min(d, 1 - d) if circular else d) / sigma) ** 2)
    rows = [[weight(k, t) for t in range(T)] for k in range(T)]
    expected = torch.tensor([[w / sum(row) for w in row] for row in rows])
    torch.testing.assert_close(alignment_matrix(T, sigma, circular), expected, atol=1e-4, rtol=0)


@given(T=st.integers(1, 60), circular=st.booleans())
def test_alignment_from_hard_to_flat(T, circular):
    for sigma in (0, 0.0, 1e-300, 1e-30, 1e-8): assert torch.equal(alignment_matrix(T, sigma, circular), torch.eye(T))
    for sigma in (1e6, 1e30, 1e300, math.inf):
        torch.testing.assert_close(alignment_matrix(T, sigma, circular), torch.full((T, T), 1 / T))


@pytest.mark.parametrize("T, sigma", [(0, 0.1), (-1, 0.1), (13, -1e-9), (13, -math.inf), (13, math.nan)])
def test_alignment_refuses(T, sigma):
    with pytest.raises(PtaclError, match="sigma ≥ 0"): alignment_matrix(T, sigma)


# --- any input -------------------------------------------------------------------------------------------------------------

@given(seed=seeds, order=st.permutations(range(6)), sigma=sigmas, tau=taus, circular=st.booleans(), data=st.data())
def test_order_of_patients_does_not_matter(seed, order, sigma, tau, circular, data):
    (a, b), valid = pair(6, 5, 8, seed=seed), torch.tensor(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)))
    close = lambda x, y: torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    close(global_contrastive_loss(a[:, 0], b[:, 0], tau), global_contrastive_loss(a[order, 0], b[order, 0], tau))
    close(local_contrastive_loss(a, b, sigma, tau, circular=circular, valid=valid),
          local_contrastive_loss(a[order], b[order], sigma, tau, circular=circular, valid=valid[order]))
    close(cosine_local_loss(a, b, valid), cosine_local_loss(a[order], b[order], valid[order]))


@given(z=arrays("float32", (2, 3, 4, 5), elements=extremes), sigma=sigmas, tau=st.floats(1e-3, 1e3), weight=st.floats(0, 1))
def test_finite_for_any_finite_input(z, sigma, tau, weight):
    a, b = torch.from_numpy(z)
    for loss in (global_contrastive_loss(a[:, 0], b[:, 0], tau, weight), local_contrastive_loss(a, b, sigma, tau, weight),
                 cosine_local_loss(a, b)):
        assert loss.ndim == 0 and loss.isfinite() and loss >= -1e-5


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e30, -1e30])
def test_constant_embeddings_sit_on_the_plateau(value):
    z = torch.full((4, 13, 8), value)
    assert global_contrastive_loss(z[:, 0], z[:, 0], 0.1) == pytest.approx(math.log(4), abs=1e-4)
    for sigma in (0, 0.1): assert local_contrastive_loss(z, z, sigma, 0.07) == pytest.approx(math.log(13), abs=1e-4)


@given(seed=seeds, size=st.sampled_from([1e-4, 1.0, 1e4]), sigma=sigmas, tau=taus)
def test_gradients_are_finite_and_not_zero(seed, size, sigma, tau):
    a, b = (pair(4, 5, 8, seed=seed) * size).requires_grad_(True).unbind()
    losses = (global_contrastive_loss(a[:, 0], b[:, 0], tau), local_contrastive_loss(a, b, sigma, tau), cosine_local_loss(a, b))
    for loss in losses:
        for g in torch.autograd.grad(loss, (a, b), retain_graph=True): assert g.isfinite().all() and g.abs().max() > 0


def test_patients_without_a_beat_leave_no_trace_in_the_gradient():
    a, b = (z.clone().requires_grad_() for z in pair(3, 5, 8))
    with torch.no_grad(): a[1] = 0                  # as segment_beats leaves them
    valid = torch.tensor([True, False, True])
    for f in (lambda v: local_contrastive_loss(a, b, 0.1, 0.1, valid=v), lambda v: cosine_local_loss(a, b, v)):
        for g in torch.autograd.grad(f(valid), (a, b)): assert g.isfinite().all() and not g[1].any() and g[0].any()
        nobody = f(torch.zeros(3, dtype=torch.bool))
        assert nobody == 0 and not torch.autograd.grad(nobody, a)[0].any()


@given(seed=seeds, valid=st.lists(st.booleans(), min_size=5, max_size=5), sigma=sigmas, tau=taus)
def test_valid_is_the_mean_over_those_patients_alone(seed, valid, sigma, tau):
    assume(any(valid))
    (a, b), valid = pair(5, 4, 8, seed=seed), torch.tensor(valid)
    spoilt = torch.where(valid[:, None, None], a, 1e6)
    each = torch.stack([local_contrastive_loss(a[i:i + 1], b[i:i + 1], sigma, tau) for i in range(5) if valid[i]])
    torch.testing.assert_close(local_contrastive_loss(spoilt, b, sigma, tau, valid=valid), each.mean())
    torch.testing.assert_close(cosine_local_loss(spoilt, b, valid), cosine_local_loss(a[valid], b[valid]))


@given(seed=seeds, tau=taus, sigma=sigmas, weight=st.floats(0, 1), scale=st.floats(1e-3, 1e3))
def test_weight_and_scale(seed, tau, sigma, weight, scale):
    a, b = pair(4, 5, 8, seed=seed)
    for f in (lambda a, b, w: global_contrastive_loss(a[:, 0], b[:, 0], tau, w), lambda a, b, w: local_contrastive_loss(a, b, sigma, tau, w)):
        torch.testing.assert_close(f(a, b, weight), weight * f(a, b, 1.0) + (1 - weight) * f(a, b, 0.0))
        torch.testing.assert_close(f(a, b, weight), f(b, a, 1 - weight))   # the other modality asks
        torch.testing.assert_close(f(a, b, weight), f(scale * a, b, weight), atol=1e-4, rtol=1e-4)


def test_half_precision_is_computed_in_full():
    a, b = pair(4, 5, 64).bfloat16()
    expected = [global_contrastive_loss(a[:, 0].float(), b[:, 0].float(), 0.07), local_contrastive_loss(a.float(), b.float(), 0.1, 0.07),
                cosine_local_loss(a.float(), b.float())]
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            got = [global_contrastive_loss(a[:, 0], b[:, 0], 0.07), local_contrastive_loss(a, b, 0.1, 0.07), cosine_local_loss(a, b)]
        for x, y in zip(got, expected): assert x.dtype == torch.float32; torch.testing.assert_close(x, y)


# --- references ------------------------------------------------------------------------------------------------------------

@given(seed=seeds, tau=taus, B=st.integers(1, 5), T=st.integers(1, 14), circular=st.booleans())
def test_hard_alignment_is_cross_entropy_on_the_diagonal(seed, tau, B, T, circular):
    a, b = pair(B, T, 8, seed=seed)
    logits = F.cosine_similarity(a[:, :, None], b[:, None], dim=-1) / tau
    own = torch.arange(T).repeat(B)
    e2c, c2e = (F.cross_entropy(x.reshape(-1, T), own) for x in (logits, logits.mT))
    torch.testing.assert_close(local_contrastive_loss(a, b, 0, tau, circular=circular), (e2c + c2e) / 2)
    torch.testing.assert_close(local_contrastive_loss(a, b, 0, tau, weight=0.8), 0.8 * e2c + 0.2 * c2e)


@given(seed=seeds, tau=taus, B=st.integers(1, 9))
def test_global_loss_by_hand(seed, tau, B):
    a, b = pair(B, 8, seed=seed)
    s = [[float(F.cosine_similarity(x, y, dim=0)) / tau for y in b] for x in a]
    e2c = sum(math.log(sum(math.exp(s[i][j]) for j in range(B))) - s[i][i] for i in range(B)) / B
    c2e = sum(math.log(sum(math.exp(s[j][i]) for j in range(B))) - s[i][i] for i in range(B)) / B
    assert global_contrastive_loss(a, b, tau) == pytest.approx((e2c + c2e) / 2, abs=1e-4)
    assert global_contrastive_loss(a, b, tau, 0.25) == pytest.approx(0.25 * e2c + 0.75 * c2e, abs=1e-4)


def khosla_out(anchors, others, labels, tau):
    "L_out of Khosla et al. (2020), eq. 2, written out: for each anchor the mean over its positives of −log softmax."
    total = 0
    for i, z in enumerate(anchors):
        s = [float(F.cosine_similarity(z, y, dim=0)) / tau for y in others]
        log_denominator = math.log(sum(math.exp(x) for x in s))
        positives = [p for p in range(len(others)) if labels[p] == labels[i]]
        total += sum(log_denominator - s[p] for p in positives) / len(positives)
    return total / len(anchors)


@given(seed=seeds, tau=taus, labels=st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_uniform_rows_give_l_out_of_khosla(seed, tau, labels):
    a, b = pair(1, len(labels), 8, seed=seed)
    same = torch.tensor(labels)[:, None] == torch.tensor(labels)
    with patch("ptacl.nets.losses.alignment_matrix", lambda T, sigma, circular, columns=None: same / same.sum(1, keepdim=True)):
        forth, back = (local_contrastive_loss(a, b, 0.1, tau, w).item() for w in (1.0, 0.0))
    assert forth == pytest.approx(khosla_out(a[0], b[0], labels, tau), abs=1e-4)
    assert back == pytest.approx(khosla_out(b[0], a[0], labels, tau), abs=1e-4)
    if len(set(labels)) == 1: return   # the library leaves out anchors without a negative
    y, library = torch.tensor(labels), SupConLoss(temperature=tau, distance=CosineSimilarity())
    assert forth == pytest.approx(library(a[0], y, ref_emb=b[0], ref_labels=y.clone()).item(), abs=1e-4)


@pytest.mark.parametrize("sigma, labels", [(0, range(13)), (1e9, [0] * 13)], ids=["one-hot", "uniform"])
def test_both_ends_of_sigma_give_l_out_of_khosla(sigma, labels):
    a, b = pair(1, 13, 16)
    for tau in (0.07, 1.0):
        expected = (khosla_out(a[0], b[0], labels, tau) + khosla_out(b[0], a[0], labels, tau)) / 2
        assert local_contrastive_loss(a, b, sigma, tau) == pytest.approx(expected, abs=1e-4)


# --- floor and shuffling ---------------------------------------------------------------------------------------------------

@given(seed=seeds, T=st.integers(1, 20), sigma=sigmas, tau=st.floats(1e-3, 10), circular=st.booleans(), same=st.booleans())
def test_no_input_goes_below_the_entropy_of_the_target(seed, T, sigma, tau, circular, same):
    a, b = pair(3, T, 4, seed=seed)
    floor = entropy(alignment_matrix(T, sigma, circular))
    for weight in (0.0, 0.5, 1.0):
        assert local_contrastive_loss(a, a if same else b, sigma, tau, weight, circular) >= floor - 1e-3


@given(sigma=soft, T=st.integers(2, 20))
def test_equal_inputs_reach_the_entropy_floor_as_the_temperature_falls(sigma, T):
    floor = entropy(alignment_matrix(T, sigma))
    above = [local_contrastive_loss(z, z, sigma, tau).item() - floor for tau in (1e-2, 1e-3) for z in [arc(T, sigma, tau)]]
    assert abs(above[1]) < 2e-3 and above[1] < above[0] + 1e-3


@given(seed=seeds, T=st.integers(1, 20))
def test_floor_of_hard_alignment_is_zero(seed, T):
    z = pair(2, T, 32, seed=seed)[0]
    assert local_contrastive_loss(z, z, 0, 0.01) < 1e-4


@given(order=st.permutations(range(8)), seed=seeds, tau=taus, sigma=soft)
def test_shuffled_segments_raise_the_loss(order, seed, tau, sigma):
    assume(order != sorted(order))
    z = pair(1, 8, 32, seed=seed)[0]
    assert local_contrastive_loss(z[:, order], z, 0, tau) > local_contrastive_loss(z, z, 0, tau) + 1e-3
    z = arc(8, sigma, 1e-3)
    assert local_contrastive_loss(z[:, order], z, sigma, 1e-3) > local_contrastive_loss(z, z, sigma, 1e-3) + 1e-3


def test_circular_time_has_no_first_moment():
    a, b = pair(2, 12, 4)
    loss = lambda turn, circular: local_contrastive_loss(a.roll(turn, 1), b.roll(turn, 1), 0.1, 0.1, circular=circular)
    torch.testing.assert_close(loss(5, True), loss(0, True))
    assert abs(loss(5, False) - loss(0, False)) > 0.01


def test_circular_time_is_best_where_nothing_is_shifted():
    phase = torch.arange(12) * 2 * math.pi / 12
    wheel = torch.stack([phase.cos(), phase.sin()], -1)[None]
    turns = [local_contrastive_loss(wheel.roll(k, 1), wheel, 0.1, 0.1, circular=True) for k in range(-5, 7)]
    assert min(turns) == turns[5]
    for k in range(1, 6): torch.testing.assert_close(turns[5 - k], turns[5 + k])   # as wrong early as late


@given(seed=seeds)
def test_cosine_loss_sees_matching_moments_only(seed):
    a, b = pair(3, 5, 8, seed=seed)
    expected = sum(1 - float(F.cosine_similarity(x, y, dim=0)) for p, q in zip(a, b) for x, y in zip(p, q)) / 15
    assert cosine_local_loss(a, b) == pytest.approx(expected, abs=1e-5)
    assert cosine_local_loss(a, 3 * a) == pytest.approx(0, abs=1e-5) and cosine_local_loss(a, -a) == pytest.approx(2, abs=1e-5)


def test_sum_of_both():
    assert ptacl_loss(torch.tensor(2.0), torch.tensor(3.0)) == 5 and ptacl_loss(torch.tensor(2.0), torch.tensor(3.0), 0.0) == 2


# --- refusals --------------------------------------------------------------------------------------------------------------

z = torch.randn(4, 13, 8)

@pytest.mark.parametrize("call", [
    lambda: global_contrastive_loss(z[:, 0], z[:3, 0], 0.1), lambda: global_contrastive_loss(z, z, 0.1),
    lambda: global_contrastive_loss(z[:, 0], z[:, 0, :4], 0.1), lambda: local_contrastive_loss(z, z[..., :4], 0.1, 0.1),
    lambda: local_contrastive_loss(z[0], z[0], 0.1, 0.1), lambda: local_contrastive_loss(z, z[:1], 0.1, 0.1),
    lambda: cosine_local_loss(z, z[:1]), lambda: cosine_local_loss(z[:, 0], z[:, 0])])
def test_unequal_shapes_are_refused_with_both_of_them(call):
    with pytest.raises(PtaclError, match=r"shape, got \(.*\) and \("): call()


@pytest.mark.parametrize("tau", [0, -0.1, math.nan])
def test_temperature_is_positive(tau):
    with pytest.raises(PtaclError, match="temperature must be > 0"): global_contrastive_loss(z[:, 0], z[:, 0], tau)
    with pytest.raises(PtaclError, match="temperature must be > 0"): local_contrastive_loss(z, z, 0.1, tau)


def test_negative_sigma_is_refused():
    with pytest.raises(PtaclError, match="sigma ≥ 0"): local_contrastive_loss(z, z, -0.1, 0.1)


# --- two processes ---------------------------------------------------------------------------------------------------------

WORKER = '''
import sys
import torch
import torch.distributed as dist
from torch import nn
from ptacl.nets.losses import global_contrastive_loss

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1: dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.ecg, self.cmr = nn.Linear(12, 6), nn.Linear(10, 6)
    def forward(self, x, y): return global_contrastive_loss(self.ecg(x), self.cmr(y), 0.1, 0.3)

torch.manual_seed(0)
heads, x, y = Heads(), torch.randn(8, 12), torch.randn(8, 10)
mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
model = nn.parallel.DistributedDataParallel(heads) if world > 1 else heads
loss = model(x[mine], y[mine])
loss.backward()
torch.save({"loss": loss.detach()} | {n: p.grad for n, p in heads.named_parameters()}, f"{folder}/{world}-{rank}.pt")
if world > 1: dist.destroy_process_group()
'''


@pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this torch has no gloo")
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    runs = [subprocess.Popen([sys.executable, str(script), str(rank), str(world), str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True)
            for rank, world in ((0, 1), (0, 2), (1, 2))]
    try: said = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs: run.kill()
    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(said)
    whole, *parts = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert 0 < whole["loss"] and all(g.abs().max() > 1e-4 for n, g in whole.items() if n.endswith("weight"))
    mean = (parts[0].pop("loss") + parts[1].pop("loss")) / 2                         # each of its own patients
    torch.testing.assert_close(mean, whole.pop("loss"), atol=1e-6, rtol=1e-5)
    for part in parts:
        assert part.keys() == whole.keys()
        for name in whole: torch.testing.assert_close(part[name], whole[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
