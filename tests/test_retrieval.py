"Retrieval against a brute-force loop, another library, known values, and limits of time and memory."
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_precision, retrieval_reciprocal_rank

from ptacl.evaluate import retrieval
from ptacl.core.errors import PtaclError
from ptacl.core.presets import PHENOTYPES
from ptacl.evaluate.retrieval import PAPER_TABLE1, gaussian_random_precision, phenotype_retrieval, query_results
from ptacl.evaluate.retrieval import _random_retrieval, retrieval_draws, retrieval_interval, retrieval_table


def brute_force(q, g, y, ks, tolerance, exclude_self, queries=None):
    "The definition, one query and one phenotype at a time: {(query, phenotype): [P@k …, rank]}."
    unit = [torch.nn.functional.normalize(torch.as_tensor(e).float(), dim=1) for e in (q, g)]
    sims = ((unit[0] @ unit[1].T) * 2**22).round().numpy()
    out = {}
    for i in queries if queries is not None else range(len(q)):
        order = [j for j in np.argsort(-sims[i], kind="stable") if not (exclude_self and j == i)]
        for p in y:
            v = y[p].to_numpy()
            if np.isnan(v[i]): out[i, p] = [np.nan] * (len(ks) + 1); continue
            tol = tolerance * np.nanstd(v)
            hit = [bool(abs(v[j] - v[i]) <= tol) for j in order]
            out[i, p] = [sum(hit[:k]) / k for k in ks] + [hit.index(True) + 1 if any(hit) else np.nan]
    return out


def same(results, expected):
    for (i, p), row in expected.items(): np.testing.assert_allclose(results[p].iloc[i], row, atol=1e-12, err_msg=f"{i} {p}")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 40), st.sampled_from([0.05, 0.5, 2.0]), st.booleans(), st.floats(0, 0.5))
def test_brute_force(seed, n, tolerance, exclude_self, missing):
    rng = np.random.default_rng(seed)
    q, g = rng.normal(size=(2, n, 3))
    y = pd.DataFrame(rng.normal(size=(n, 2)), columns=["a", "b"]).mask(rng.random((n, 2)) < missing)
    args = q, g, y, (1, 3), tolerance, exclude_self
    same(query_results(*args), brute_force(*args))


@pytest.mark.parametrize("tolerance", [0.002, 0.5])   # at 0.002 most first matches lie beyond the top 64
def test_brute_force_over_several_chunks(tolerance):
    rng = np.random.default_rng(0)
    n = 4000
    q, g = rng.normal(size=(2, n, 4)).astype(np.float32)
    y = pd.DataFrame({"a": rng.normal(size=n)})
    y.iloc[::7] = np.nan
    r = query_results(q, g, y, tolerance=tolerance)
    if tolerance < 0.1: assert r["a", "rank"].median() > 64
    same(r, brute_force(q, g, y, (1, 3, 5, 10, 15), tolerance, True, queries=range(0, n, 97)))


@pytest.mark.parametrize("n", [30, 3000])
def test_ties_follow_the_gallery_order(n):
    "All embeddings equal: the first candidates of the gallery are retrieved, for every query."
    e = torch.ones(n, 8)
    y = pd.DataFrame({"a": np.arange(n) // 3 * 10.0})            # triples share a value
    r = query_results(e, e, y, ks=(1, 2), tolerance=1e-3)["a"]
    assert r["rank"].iloc[:4].tolist() == [1, 1, 1, 4]             # 0 finds 1; 1 finds 0; 2 finds 0; 3 finds 4 behind 0, 1, 2
    assert r["rank"].iloc[n - 1] == n - 2


def test_torchmetrics_agrees():
    rng = torch.Generator().manual_seed(0)
    q, g = torch.randn(2, 50, 6, generator=rng)
    y = pd.DataFrame({"a": torch.randn(50, generator=rng).numpy()})
    r = query_results(q, g, y, ks=(5,))["a"]
    sim = torch.nn.functional.cosine_similarity(q[:, None], g[None], dim=-1)
    for i in range(50):
        others = torch.arange(50) != i
        target = torch.tensor((y["a"] - y["a"][i]).abs().to_numpy() <= 0.5 * y["a"].std(ddof=0))[others]
        if not target.any(): continue
        assert float(retrieval_precision(sim[i, others], target, top_k=5)) == pytest.approx(r["P@5"][i])
        assert float(retrieval_reciprocal_rank(sim[i, others], target)) == pytest.approx(1 / r["rank"][i])


@pytest.mark.parametrize("tolerance", [0.25, 0.5, 1.0])
def test_gaussian_random_precision(tolerance):
    y = pd.DataFrame(np.random.default_rng(1).normal(size=(3000, 6)))
    got = _random_retrieval(y, tolerance=tolerance)["P@15"].mean()
    assert got == pytest.approx(gaussian_random_precision(tolerance), abs=0.008)


def test_exact_chance_of_any_distribution():
    "With m matches among n − 1 candidates a random P@k is m / (n − 1) and the first match is expected at n / (m + 1)."
    y = pd.DataFrame({"skewed": np.random.default_rng(0).gamma(2, size=800)})
    v, tol = y["skewed"].to_numpy(), 0.5 * y["skewed"].std(ddof=0)
    m = (np.abs(v[:, None] - v) <= tol).sum(1) - 1
    got = pd.concat([_random_retrieval(y, seed=s) for s in range(20)]).mean()
    assert got["P@10"] == pytest.approx((m / 799).mean(), abs=0.01)
    assert got["MnR"] == pytest.approx((800 / (m + 1))[m > 0].mean(), rel=0.08)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_patients_and_length_of_vectors_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.normal(size=(2, 60, 8))
    y = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"])
    order = rng.permutation(60)
    a = phenotype_retrieval(q, g, y)
    pd.testing.assert_frame_equal(a, phenotype_retrieval(q[order] * 3, g[order] * 0.2, y.iloc[order]))
    pd.testing.assert_frame_equal(a, phenotype_retrieval(torch.tensor(q), torch.tensor(g, dtype=torch.float32), y * 10 - 4))


def test_the_contract():
    y = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 10)), columns=list(PHENOTYPES))
    e = torch.randn(40, 8)
    t = phenotype_retrieval(e, e, y, exclude_self=False)
    assert list(t.index) == list(PHENOTYPES) and list(t.columns) == ["P@1", "P@3", "P@5", "P@10", "P@15", "MnR", "MdR"]
    assert (t[["P@1", "MnR", "MdR"]] == 1).all(axis=None)         # with itself in the gallery, everybody finds himself
    assert list(PAPER_TABLE1.columns) == list(t.columns)


def test_one_infinite_embedding_and_text_are_refused():
    e, y = torch.randn(20, 4), pd.DataFrame({"a": np.arange(20.0)})
    broken = e.clone(); broken[3, 1] = torch.inf
    with pytest.raises(PtaclError, match="1 of 20 gallery"): query_results(e, broken, y)
    with pytest.raises(PtaclError, match="sex"): query_results(e, e, y.assign(sex="F"))


def test_a_phenotype_that_nobody_has_is_an_empty_row():
    e, y = torch.randn(20, 4), pd.DataFrame({"a": np.arange(20.0), "b": np.nan})
    r = query_results(e, e, y)
    assert retrieval_table(r).loc["b"].isna().all() and retrieval_interval(r, n_boot=20).loc["b"].isna().all()
    assert retrieval_table(r).loc["a"].notna().all()


def test_interval_is_that_of_an_explicit_bootstrap():
    rng = np.random.default_rng(0)
    q, y = rng.normal(size=(200, 5)), pd.DataFrame({"a": rng.normal(size=200)})
    r = query_results(q, q + rng.normal(size=q.shape), y)
    got = retrieval_interval(r, n_boot=2000).loc["a"]
    tables = pd.DataFrame([retrieval_table(r.iloc[rng.integers(200, size=200)]).loc["a"] for _ in range(300)])
    for m in ("P@1", "P@15", "MnR", "MdR"):
        lo, hi = tables[m].quantile([0.025, 0.975])
        tol = 0.25 * (hi - lo) + 1e-9 if m != "MdR" else 1
        assert abs(got[f"{m}_lo"] - lo) <= tol and abs(got[f"{m}_hi"] - hi) <= tol, m


def test_draws_of_two_models_are_paired():
    "The same seed draws the same patients, so the difference of draws is the draw of the difference."
    rng = np.random.default_rng(0)
    q, y = rng.normal(size=(2, 150, 5)), pd.DataFrame({"a": rng.normal(size=150)})
    one, two = (query_results(x, x, y) for x in q)
    a, b = (retrieval_draws(r, 80, seed=4) for r in (one, two))
    got = retrieval_interval(one, minus=two, n_boot=80, seed=4).loc["a"]
    assert got["P@5_lo"] == pytest.approx(np.quantile(a["a", "P@5"] - b["a", "P@5"], 0.025))
    assert (a["a", "P@5"] == retrieval_draws(one, 80, seed=4)["a", "P@5"]).all()
    assert (a["a", "P@5"] != retrieval_draws(one, 80, seed=5)["a", "P@5"]).any()


@pytest.mark.quiet
def test_paper_size_is_fast():
    "5,991 × 5,991 × 10 phenotypes: about 1 s of processor time (half of that on two cores)."
    y = pd.DataFrame(np.random.default_rng(0).normal(size=(5991, 10)))
    e = torch.randn(2, 5991, 128)
    t = time.process_time(); query_results(*e, y)
    assert time.process_time() - t < 8


def test_memory_is_linear_in_the_gallery(monkeypatch):
    "Chunks of queries never hold more than 2^23 similarities, however large the gallery: all pairs here would be 49 million."
    sizes, keys = [], retrieval._rank_keys
    monkeypatch.setattr(retrieval, "_rank_keys", lambda *a: sizes.append(len(a[0]) * len(a[1])) or keys(*a))
    query_results(*torch.randn(2, 7000, 4), pd.DataFrame({"a": np.random.default_rng(0).normal(size=7000)}))
    assert max(sizes) <= 2**23 and sum(sizes) == 7000**2
