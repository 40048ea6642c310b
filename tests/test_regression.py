"The linear probe against scikit-learn and explicit resampling, and what it refuses."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional import r2_score as torch_r2

from ptacl.core.errors import PtaclError
from ptacl.core.presets import PHENOTYPES
from ptacl.evaluate.regression import PAPER_TABLE2, demographics, linear_probe, ols_predict, regression_scores, score_difference


def data(seed=0, n=300, D=8, targets=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D)) * rng.uniform(0.1, 10, D) + 5
    y = pd.DataFrame(x @ rng.normal(size=(D, targets)) + 20 * rng.normal(size=(n, targets)) + 100, columns=list("abc")[:targets])
    return x, y


def test_each_target_is_its_own_least_squares_fit():
    x, y = data()
    y.iloc[10:60, 1] = np.nan; y.iloc[40:90, 2] = np.nan; y.iloc[250:270, 2] = np.nan
    t = linear_probe(x[:200], y[:200], x[200:], y[200:])
    assert t["n"].tolist() == [100, 100, 80]
    for name in y:
        a, b = y[name][:200].notna().to_numpy(), y[name][200:].notna().to_numpy()
        p = LinearRegression().fit(x[:200][a], y[name][:200][a]).predict(x[200:][b]); v = y[name][200:][b]
        expected = [r2_score(v, p), mean_absolute_error(v, p), np.corrcoef(v, p)[0, 1], np.polyfit(p, v, 1)[0]]
        np.testing.assert_allclose(t.loc[name, ["R2", "MAE", "r", "slope"]].astype(float), expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 60), st.floats(0, 0.4))
def test_scores_are_those_of_a_loop_and_of_torchmetrics(seed, n, missing):
    rng = np.random.default_rng(seed)
    y = pd.DataFrame(rng.normal(100, 20, size=(n, 2)), columns=["a", "b"])
    pred = (y + rng.normal(0, 15, size=y.shape)).to_numpy() + 3
    gone = rng.random(y.shape) < missing
    gone[:3] = False
    y = y.mask(gone)
    t = regression_scores(y, pred)
    for i, p in enumerate(y):
        there = [j for j in range(n) if not np.isnan(y[p][j])]
        v, q = [y[p][j] for j in there], [pred[j, i] for j in there]
        mv, mq = sum(v) / len(v), sum(q) / len(q)
        left, all_ = sum((a - b) ** 2 for a, b in zip(v, q)), sum((a - mv) ** 2 for a in v)
        cov, spread = sum((a - mv) * (b - mq) for a, b in zip(v, q)), sum((b - mq) ** 2 for b in q)
        expected = [1 - left / all_, sum(abs(a - b) for a, b in zip(v, q)) / len(v), cov / (all_ * spread) ** .5, cov / spread, len(v)]
        np.testing.assert_allclose(t.loc[p, ["R2", "MAE", "r", "slope", "n"]].astype(float), expected, rtol=1e-7, atol=1e-9)
        a, b = torch.tensor(v), torch.tensor(q)
        assert float(torch_r2(b, a)) == pytest.approx(t.R2[p], abs=1e-6) and float(pearson_corrcoef(b, a)) == pytest.approx(t.r[p], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_units_do_not_matter(seed, scale, shift):
    "Any invertible affine map of the features leaves the table; a unit of the targets changes MAE alone."
    x, y = data(seed, n=120)
    A = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(8, 8)))[0] * scale
    t = linear_probe(x[:80], y[:80], x[80:], y[80:])
    u = linear_probe(x[:80] @ A + shift, y[:80] * 1000, x[80:] @ A + shift, y[80:] * 1000)
    np.testing.assert_allclose(t[["R2", "r", "slope"]], u[["R2", "r", "slope"]], atol=1e-5)
    np.testing.assert_allclose(t.MAE * 1000, u.MAE, rtol=1e-5)


def test_feature_types_and_duplicated_or_dead_features():
    x, y = data()
    t = linear_probe(x[:200], y[:200], x[200:], y[200:])
    wide = np.hstack([x, x[:, :3], np.full((300, 2), 4.0)])
    for f in (lambda a: torch.tensor(a, requires_grad=True), lambda a: a.astype(np.float32)):
        u = linear_probe(f(wide[:200]), y[:200], f(wide[200:]), y[200:])
        np.testing.assert_allclose(t.R2, u.R2, atol=1e-4)
    half = torch.tensor(x).bfloat16()
    assert np.isfinite(linear_probe(half[:200], y[:200], half[200:], y[200:]).R2).all()


def test_intervals_are_those_of_explicit_resampling():
    x, y = data(targets=2)
    y.iloc[250:260, 1] = np.nan
    pred = ols_predict(x[:200], y[:200], x[200:])
    t = regression_scores(y[200:], pred, n_boot=4000)
    rng, v, p = np.random.default_rng(5), y[200:]["b"].to_numpy(), pred["b"].to_numpy()
    draws = []
    for i in rng.integers(100, size=(1500, 100)):
        i = i[np.isfinite(v[i])]
        a, b = v[i], p[i]
        draws.append([r2_score(a, b), mean_absolute_error(a, b), np.corrcoef(a, b)[0, 1], np.polyfit(b, a, 1)[0]])
    for k, (lo, hi) in zip(("R2", "MAE", "r", "slope"), np.quantile(draws, [0.025, 0.975], axis=0).T):
        assert abs(t.loc["b", f"{k}_lo"] - lo) < 0.15 * (hi - lo) and abs(t.loc["b", f"{k}_hi"] - hi) < 0.15 * (hi - lo), k


def test_paired_interval_is_narrower_and_antisymmetric():
    x, y = data(n=800)
    one, two = ols_predict(x[:400], y[:400], x[400:]), ols_predict(x[:400, :7], y[:400], x[400:, :7])
    d, e = score_difference(y[400:], one, two), score_difference(y[400:], two, one)
    np.testing.assert_allclose(d.lo, -e.hi, atol=1e-12)
    t = regression_scores(y[400:], one, n_boot=1000)
    assert ((d.hi - d.lo) < (t.R2_hi - t.R2_lo)).all()


def test_the_mean_scores_zero_and_has_no_slope():
    _, y = data()
    t = regression_scores(y, np.tile(y.mean().to_numpy(), (300, 1)))
    np.testing.assert_allclose(t.R2, 0, atol=1e-12)


def test_overfitting_warns_once_per_fit_and_enough_patients_do_not():
    x, y = data()
    with pytest.warns(UserWarning, match="means nothing"): ols_predict(x[:9], y[:9], x)
    with pytest.warns(UserWarning, match="overfitting adds"): ols_predict(x[:30], y[:30], x)
    with warnings.catch_warnings(): warnings.simplefilter("error"); ols_predict(x, y, x)


def test_refused():
    x, y = data()
    with pytest.raises(PtaclError, match="targets differ"): linear_probe(x, y, x, y[["b", "a", "c"]])
    with pytest.raises(PtaclError, match="fewer than 2 test patients have b"): linear_probe(x, y, x, y.assign(b=np.nan))
    with pytest.raises(PtaclError, match="without numbers: a"): ols_predict(x, y.assign(a="-"), x)
    with pytest.raises(PtaclError, match="patients, features"): linear_probe(x[:, 0], y, x, y)
    with pytest.raises(PtaclError, match="but 3 predictions"): regression_scores(y, np.zeros((3, 3)))


def test_demographics_are_the_same_function_of_any_subset():
    cov = pd.DataFrame({"sex": ["F", "M", np.nan, "M"], "age": [50, np.nan, 70, 60], "height": [160, 180, np.nan, 175],
                        "bmi": 25.0, "sbp": [np.nan] * 4, "site": "x"}, index=list("wxyz"))
    d = demographics(cov)
    assert d.notna().all(axis=None) and list(d.columns) == ["male", "age", "height", "bmi", "sbp"]
    pd.testing.assert_frame_equal(d.loc[["y", "z"]], demographics(cov.loc[["y", "z"]]))


def test_paper_table_has_every_row_and_its_own_order():
    assert list(PAPER_TABLE2.columns) == list(PHENOTYPES)
    ecg = PAPER_TABLE2.loc["ECG"]
    assert (ecg.loc[("PTACL", "LP")] > ecg.loc[("MAE", "LP")]).all() and ecg.loc[("Random Init", "LP")].abs().max() < 1e-3
    assert PAPER_TABLE2.loc[("CMR", "MAE", "LP")].mean() == pytest.approx(0.6875, abs=1e-4)
    assert (ecg.loc[("PTACL", "LP")] < ecg.loc[("Global", "LP")]).sum() == 1   # LVEF
