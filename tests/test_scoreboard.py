"The tables against loops, scikit-learn and simulation; what always stands in them, what is never bold, what is refused."
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from ptacl.core.errors import PtaclError
from ptacl.core.files import _as_json
from ptacl.core.presets import PHENOTYPES
from ptacl.evaluate.intervals import _difference_draws
from ptacl.evaluate.regression import PAPER_TABLE2, demographics
from ptacl.evaluate.retrieval import PAPER_TABLE1, phenotype_retrieval
from ptacl.evaluate.boards import _board_cell, _board_grid, _board_notes, _latex_board, plot_differences, save_board, show_board
from ptacl.evaluate.scoreboard import ROW_KEY, _ceiling_rows, _regression_board, _summarise, table1, table2

ABOUT = {"cohort": "made up & small_1", "preset": "none", "seed": 0, "budget": "100 % of a second"}
GLOBAL, OURS = ("ECG", "Global", "LP"), ("ECG", "PTACL", "LP")


@pytest.fixture(scope="module")
def study():
    "300 patients, features of two methods in two trainings each, one fine-tuned one; LVEF is missing here and there."
    rng, n = np.random.default_rng(0), 300
    male = rng.random(n) < 0.5
    y = pd.DataFrame({"LVEDV": 140 + 40 * male + 20 * rng.normal(size=n), "LVEF": 60 + 5 * rng.normal(size=n)})
    c = pd.DataFrame({"sex": np.where(male, "M", "F"), "age": rng.normal(62, 7, n), "height": 163 + 13 * male + rng.normal(0, 6, n),
                      "bmi": rng.normal(26, 4, n), "sbp": rng.normal(135, 18, n)})
    z = ((y - y.mean()) / y.std()).to_numpy()
    feature = lambda noise: z @ rng.normal(size=(2, 6)) + noise * rng.normal(size=(n, 6))
    y.loc[rng.random(n) < 0.2, "LVEF"] = np.nan
    cut = 200
    features = {("ECG", name): [(torch.tensor(x[:cut]), torch.tensor(x[cut:])) for x in (feature(w), feature(w))]
                for name, w in (("Global", 2.), ("PTACL", 1.))}
    tuned = {("ECG", "PTACL", "FN+AP"): [np.nan_to_num(y[cut:], nan=60.) + [10, 2] * rng.normal(size=(n - cut, 2))]}
    cine = [z + 0.3 * rng.normal(size=z.shape) for _ in range(2)]
    embeddings = {name: [(torch.tensor(z + w * rng.normal(size=z.shape))[cut:], torch.tensor(x)[cut:]) for x in cine]
                  for name, w in (("Global", 1.5), ("PTACL", 0.7))}
    return dict(y=y, c=c, cut=cut, features=features, tuned=tuned, embeddings=embeddings)


@pytest.fixture(scope="module")
def board2(study):
    y, c, cut = study["y"], study["c"], study["cut"]
    ceilings = pd.DataFrame({"ecg": [.6, .3], "cine": [.9, .8], "both": [.95, .9]}, index=["LVEDV", "LVEF"])
    return table2(y[:cut], y[cut:], (c[:cut], c[cut:]), study["features"], study["tuned"], ceilings=ceilings, n_boot=400)


@pytest.fixture(scope="module")
def board1(study): return table1(study["y"][study["cut"]:], study["c"][study["cut"]:], study["embeddings"], n_boot=400)


def row(board, key, phenotype, score): # the one measured row
    found = board[(board[ROW_KEY] == list(key)).all(axis=1) & (board.source == "measured") & (board.phenotype == phenotype) & (board.score == score)]
    assert len(found) == 1
    return found.iloc[0]


# --- values ----------------------------------------------------------------------------------------------------------------

def test_cells_are_means_over_seeds_of_scikit_learns_scores(study, board2):
    y, cut = study["y"], study["cut"]
    for name in ("Global", "PTACL"):
        for p in y:
            a, b = y[p][:cut].notna().to_numpy(), y[p][cut:].notna().to_numpy()
            r2 = [r2_score(y[p][cut:][b], LinearRegression().fit(x[a], y[p][:cut][a]).predict(t[b])) for x, t in study["features"]["ECG", name]]
            r = row(board2, ("ECG", name, "LP"), p, "R2")
            assert (r.value, r.seed_sd, r.seeds, r.patients) == pytest.approx((np.mean(r2), np.std(r2, ddof=1), 2, b.sum()))
    assert row(board2, ("ECG", "PTACL", "FN+AP"), "LVEF", "R2").seeds == 1


def test_demographics_rows_are_those_of_a_plain_fit(study, board2):
    y, c, cut = study["y"].LVEDV, demographics(study["c"]).to_numpy(), study["cut"]
    fit = lambda x, t: r2_score(y[cut:], LinearRegression().fit(x, y[:cut]).predict(t))
    assert row(board2, ("demographics", "Demographics", "LP"), "LVEDV", "R2").value == pytest.approx(fit(c[:cut], c[cut:]))
    both = [fit(np.hstack([x, c[:cut]]), np.hstack([t, c[cut:]])) for x, t in study["features"]["ECG", "PTACL"]]
    assert row(board2, ("ECG + demographics", "Demographics + PTACL", "LP"), "LVEDV", "R2").value == pytest.approx(np.mean(both))
    assert row(board2, ("none", "Random features", "LP"), "LVEDV", "R2").value < 0.03


def test_retrieval_cells_are_means_over_seeds_of_the_table(study, board1):
    y, cut = study["y"], study["cut"]
    expected = sum(phenotype_retrieval(e, c, y[cut:]) for e, c in study["embeddings"]["PTACL"]) / 2
    for p in y:
        for s in expected: assert row(board1, ("ECG", "PTACL", "cosine"), p, s).value == pytest.approx(expected.loc[p, s])


def test_demographics_joined_to_an_embedding_is_the_mean_of_two_cosines(study, board1):
    y, cut = study["y"][study["cut"]:], study["cut"]
    d = demographics(study["c"])[cut:]
    d = torch.tensor(((d - d.mean()) / d.std(ddof=0)).to_numpy())
    cos = lambda a, b: torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    e, c = study["embeddings"]["PTACL"][0]
    sim = ((cos(e, c) + cos(d, d)) / 2).fill_diagonal_(-9)
    first = y.LVEDV.to_numpy()[sim.argmax(1)]
    hit = np.abs(first - y.LVEDV) <= 0.5 * y.LVEDV.std(ddof=0)
    one = table1(y, study["c"][cut:], {"PTACL": [(e, c)]}, "PTACL", n_boot=5)
    assert row(one, ("ECG + demographics", "Demographics + PTACL", "cosine"), "LVEDV", "P@1").value == pytest.approx(hit.mean(), abs=0.011)


def test_options_of_retrieval_reach_every_row(study):
    y, c = study["y"][study["cut"]:], study["c"][study["cut"]:]
    b = table1(y, c, study["embeddings"], n_boot=5, ks=(1, 2), exclude_self=False, tolerance=1.0)
    assert list(b[b.source == "measured"].score.unique()) == ["P@1", "P@2", "MnR", "MdR"]
    assert row(b, ("demographics", "Demographics", "cosine"), "LVEDV", "P@1").value == 1     # everybody finds himself
    assert b[b.source == "expected"].value.iloc[0] == pytest.approx(0.5205, abs=1e-4)      # 2Φ(1/√2) − 1


# --- intervals -------------------------------------------------------------------------------------------------------------

def test_intervals_are_those_of_explicit_resampling(study, board2):
    y, cut = study["y"], study["cut"]
    rng, v = np.random.default_rng(9), y.LVEDV[cut:].to_numpy()
    pred = {name: [LinearRegression().fit(x, y.LVEDV[:cut]).predict(t) for x, t in study["features"]["ECG", name]] for name in ("Global", "PTACL")}
    values, diffs = [], []
    for i in rng.integers(100, size=(2000, 100)):
        a, b = ([r2_score(v[i], p[i]) for p in pred[name]] for name in ("PTACL", "Global"))
        d = np.subtract(a, b)
        values.append(np.mean(a)); diffs.append(d.mean() + d.std(ddof=1) / 2 ** .5 * rng.standard_t(1))
    r = row(board2, OURS, "LVEDV", "R2")
    lo, hi = np.quantile(values, [.025, .975])
    assert abs(r.lo - lo) < 0.15 * (hi - lo) and abs(r.hi - hi) < 0.15 * (hi - lo)
    lo, hi = np.quantile(diffs, [.025, .975])
    assert abs(r.difference_lo - lo) < 0.35 * (hi - lo) and abs(r.difference_hi - hi) < 0.35 * (hi - lo)   # tails of t with one degree


@pytest.mark.parametrize("seeds, others", [(2, 2), (3, 3), (5, 5), (3, 1), (2, 4)])
def test_equal_methods_rarely_differ_whatever_the_number_of_seeds(seeds, others):
    "Training noise and noise of patients alike: at most about 5 % of equal methods are called different."
    rng, n = np.random.default_rng(0), 600
    a, b = rng.normal(size=(seeds, n, 1)), rng.normal(size=(others, n, 1)) * (others > 1)
    patients = rng.normal(size=(n, 1)) + rng.normal(size=(n, 1000))
    lo, hi = np.quantile(_difference_draws(a + patients, b + 0 * patients), [.025, .975], axis=1)
    assert ((lo > 0) | (hi < 0)).mean() < 0.075


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    "R² of a known relation, 150 test sets of 150 patients."
    rng, truth, inside = np.random.default_rng(0), 1 - 0.5 / 1.5, 0
    for _ in range(150):
        x = rng.normal(size=150)
        y = pd.DataFrame({"a": x + 0.5 ** .5 * rng.normal(size=150)})
        r = _regression_board(y, {OURS: [x[:, None]]}, n_boot=300).query("score == 'R2'").iloc[0]
        inside += r.lo <= truth <= r.hi
    assert 0.88 <= inside / 150 <= 0.99


def test_a_method_does_not_differ_from_its_twin(study):
    y = study["y"][study["cut"]:]
    p = study["tuned"]["ECG", "PTACL", "FN+AP"]
    b = _regression_board(y, {OURS: p, GLOBAL: p}, GLOBAL, n_boot=50)
    assert (b[b.method == "PTACL"][["difference", "difference_lo", "difference_hi"]] == 0).all(axis=None) and not b.clear.any()
    assert b[b.method == "Global"].difference.isna().all()


def test_a_phenotype_that_a_method_lacks_is_an_empty_cell(study):
    y, p = study["y"][study["cut"]:], study["tuned"]["ECG", "PTACL", "FN+AP"][0].copy()
    p[:, 1] = np.nan
    b = _regression_board(y, {OURS: [p], GLOBAL: study["tuned"]["ECG", "PTACL", "FN+AP"]}, GLOBAL, n_boot=20)
    r = row(b, OURS, "LVEF", "R2")
    assert np.isnan(r.value) and np.isnan(r.lo) and not r.clear and _board_cell(r) == "–"


# --- what always stands there ----------------------------------------------------------------------------------------------

def test_rows_that_are_always_there(board1, board2):
    assert {"Random features", "Demographics", "Demographics + PTACL"} <= set(board2[board2.source == "measured"].method)
    assert {"Random", "Demographics", "Demographics + PTACL"} <= set(board1[board1.source == "measured"].method)
    assert board1[board1.source == "expected"].value.round(3).unique().tolist() == [0.276]
    assert board2[board2.source == "ceiling"].method.unique().tolist() == ["Ceiling: the ECG", "Ceiling: the cine", "Ceiling: ECG and cine"]


def test_the_papers_numbers_are_the_printed_ones_and_say_so(board1, board2):
    two = board2[board2.source == "paper"].pivot(index=ROW_KEY, columns="phenotype", values="value")
    pd.testing.assert_frame_equal(two.loc[PAPER_TABLE2.index, list(PHENOTYPES)], PAPER_TABLE2, check_names=False)
    one = board1[(board1.source == "paper") & (board1.method == "PTACL")].pivot(index="phenotype", columns="score", values="value")
    pd.testing.assert_frame_equal(one.loc[list(PHENOTYPES), list(PAPER_TABLE1.columns)], PAPER_TABLE1.loc["PTACL"], check_names=False)
    for b, score, rows in ((board1, None, 3 * 10), (board1, "P@5", 2), (board1, "P@1", 3), (board2, "R2", 16)):   # no random P@5 is printed
        labels = _board_grid(b, score).index.get_level_values("row")
        assert sum(label.startswith("the paper's") for label in labels) == rows
    assert not board2[board2.source != "measured"][["lo", "hi", "difference", "patients"]].notna().any(axis=None)


# --- print -----------------------------------------------------------------------------------------------------------------

@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_bold_never_spans_zero(d, below, above):
    frame = pd.DataFrame({"phenotype": ["LVM"], "score": "R2", "patients": 9})
    b = _summarise(frame, {OURS: np.array([[d]]), GLOBAL: np.array([[0.]])},
                  {OURS: np.linspace(d - below, d + above, 101)[None, None], GLOBAL: np.zeros((1, 1, 101))}, GLOBAL)
    r = b.iloc[0]
    assert ("<b>" in _board_cell(r, "difference")) == (not r.difference_lo <= 0 <= r.difference_hi)
    assert "<b>" not in _board_cell(r) and r.lo <= r.hi


def test_values_hold_no_bold_and_differences_are_bold_where_clear(board1, board2):
    for b, score in ((board1, "P@5"), (board2, "R2")):
        assert not _board_grid(b, score).map(lambda c: "<b>" in c).any(axis=None)
        bold = _board_grid(b, score, "difference").map(lambda c: "<b>" in c).sum().sum()
        assert bold == b[(b.score == score)].clear.sum()
    assert row(board1, ("ECG", "PTACL", "cosine"), "LVEDV", "P@15").difference > 0


def test_html_latex_and_csv_say_the_same(board2, tmp_path):
    files = save_board(board2, tmp_path / "new", "table2", "Table 2: R²", ABOUT, "R2")
    page, tex = (files[k].read_text(encoding="utf-8") for k in ("html", "tex"))
    csv = pd.read_csv(files["csv"], keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(csv[board2.columns].fillna({"eval": "", "reference": ""}), board2, check_dtype=False)
    assert set(csv.budget) == {"100 % of a second"} and set(csv.cohort) == {"made up & small_1"}
    r = row(board2, OURS, "LVEDV", "R2")
    assert f"{r.value:.3f}" in page and f"{r.value:.3f}" in tex and f"{r.difference:+.3f}" in page
    assert not re.search(r"<(script|link|img)|@import|url\(", page)
    assert r"small\_1" in tex and r"100 \% of" in tex and r"made up \& small" in tex
    for table in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", tex, re.S):
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1 and table.count("{") == table.count("}")


def test_notes_say_what_the_reader_must_know(board2):
    text = " ".join(_board_notes(board2, ABOUT, "difference"))
    assert all(str(v) in text for v in ABOUT.values()) and "ECG, Global, LP" in text and "excludes zero" in text and "another training" in text
    assert "27,951" in " ".join(_board_notes(board2, ABOUT))
    trained = ~board2.input.isin(["none", "demographics"])
    assert "One seed each" in " ".join(_board_notes(board2.assign(seeds=board2.seeds.where(~trained, 1)), ABOUT, "difference"))
    for lacking in ABOUT:
        with pytest.raises(PtaclError, match=lacking): show_board(board2, "t", {k: v for k, v in ABOUT.items() if k != lacking}, "R2")
        with pytest.raises(PtaclError, match=lacking): _latex_board(board2, "t", ABOUT | {lacking: " "}, "R2")


def test_a_board_goes_into_a_result_and_comes_back(board2):
    again = pd.DataFrame.from_dict(_as_json(board2), orient="index")
    np.testing.assert_allclose(again.value.astype(float), board2.value)


def test_the_picture_shows_every_compared_method(board2):
    fig = plot_differences(board2)
    compared = board2[(board2.score == "R2") & board2.difference.notna()].groupby(ROW_KEY).ngroups
    assert len(fig.axes) == compared == 5


def test_refused(study, board2):
    y, c, cut = study["y"], study["c"], study["cut"]
    args = y[:cut], y[cut:], (c[:cut], c[cut:]), study["features"]
    with pytest.raises(PtaclError, match="not among the methods"): table2(*args, reference=("ECG", "Golbal", "LP"), n_boot=5)
    with pytest.raises(PtaclError, match="has no features"): table2(*args, combine=("ECG", "MAE"), n_boot=5)
    with pytest.raises(PtaclError, match="targets differ"): table2(y[:cut], y[cut:][["LVEF", "LVEDV"]], *args[2:])
    with pytest.raises(PtaclError, match="has no embeddings"): table1(y[cut:], c[cut:], study["embeddings"], combine="MAE")
    with pytest.raises(PtaclError, match="predictions"): _regression_board(y[cut:], {OURS: [np.zeros((3, 2))]})
    with pytest.raises(PtaclError, match="holds no value of P@1"): _board_grid(board2, "P@1")
    with pytest.raises(PtaclError, match="holds no difference"): _board_grid(_ceiling_rows(pd.DataFrame({"ecg": [.5]}, ["LVM"])), "R2", "difference")
