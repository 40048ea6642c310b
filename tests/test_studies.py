"The studies: patients, paired scores, sentences, reports of many runs, sweeps, and the experiment notebooks at the smallest size."
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.kernelspec import KernelSpecManager
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from typer.testing import CliRunner

from ptacl.studies import scores, tasks, variants
from ptacl.app import serving
from ptacl.app.cli import app
from ptacl.core.errors import PtaclError
from ptacl.core.processes import own_kernel
from ptacl.core.files import write_result
from ptacl.studies.experiments import _failure_kept, parameters_of, run_experiment
from ptacl.simulate.cohorts import write_virtual
from ptacl.data.cohort import Cohort
from ptacl.nets.encoders import ECGEncoder
from ptacl.nets.joint import PTACL
from ptacl.rivals.methods import train_method
from ptacl.studies.learning import Watch
from ptacl.core.presets import PHENOTYPES, workshop
from ptacl.studies.report import _read_runs, _report_page, _result_rows, write_report
from ptacl.studies.sweeps import _sweep_grid
from ptacl.data.pairs import Pairs
from ptacl.simulate.patients import simulate
from ptacl.train.checkpoint import read_state
from ptacl.train.finetune import Tuned

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "nbs" / "experiments").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:root|home|work|tmp|Users|mnt|opt|private|scratch)/\w[^\s'\"<]*")


def made_up_task(n=60, m=40, seed=0):
    "A task whose features can be made at will."
    rng = np.random.default_rng(seed)
    y, test_y = (pd.DataFrame(rng.normal(size=(k, len(PHENOTYPES))), columns=list(PHENOTYPES)) for k in (n, m))
    about = {"kind": "virtual", "n_train": n, "n_test": m, "seed": seed, "train": {}, "test": {}}
    return tasks.Task(None, None, y, test_y, None, None, None, about)


def made_up_pairs(n=4, frames=50, bpm=60):
    "Films whose grey level says their phase."
    phase = torch.arange(frames) / frames
    cine = (120 + 100 * torch.cos(2 * torch.pi * phase)).round().to(torch.uint8)[None, :, None, None].expand(n, -1, 8, 8).contiguous()
    return Pairs(torch.randn(n, 12, 100), torch.arange(0.2, 9.5, 60 / bpm).repeat(n, 1), cine)


# --- scores and what is said of them ------------------------------------------------------------------------------------

def test_mean_r2_is_that_of_scikit_learn():
    task, rng = made_up_task(), np.random.default_rng(1)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    theirs = r2_score(task.test_y, LinearRegression().fit(a, task.train_y).predict(b))
    draws = scores.r2_draws(a, b, task, 50)
    assert draws.shape == (51,) and draws[0] == pytest.approx(theirs)
    assert len(set(draws[1:])) > 40


def test_within_one_leaves_out_patients_without_a_map():
    perfect, none = torch.eye(13).repeat(5, 1, 1), torch.full((3, 13, 13), torch.nan)
    assert scores.within_draws(torch.cat([perfect, none]), 20) == pytest.approx(np.ones(21))
    assert np.isnan(scores.within_draws(none, 20)).all()


def test_a_difference_is_paired():
    "Two scores that move together differ clearly although their intervals overlap."
    common = np.random.default_rng(0).normal(size=1001)
    table = scores.comparison_table({("a",): {"R2": common}, ("b",): {"R2": common + 0.1}}, ["method"], lambda key: ("a",))
    a, b = table.iloc[0], table.iloc[1]
    assert b.lo < a.hi and b.clear and b.difference == pytest.approx(0.1)
    assert np.isnan(a.difference) and not a.clear


@given(st.floats(-1, 1), st.integers(0, 100))
def test_a_sentence_says_clearly_only_where_the_interval_excludes_zero(shift, seed):
    rng = np.random.default_rng(seed)
    measured = {("a",): {"R2": rng.normal(size=201)}, ("b",): {"R2": rng.normal(size=201) + 3 * shift}}
    table = scores.comparison_table(measured, ["method"], lambda key: ("a",))
    row, (sentence,) = table.iloc[1], scores.difference_sentences(table, ["method"])
    assert ("is clearly" in sentence) == (row.difference_lo > 0 or row.difference_hi < 0)
    if row.clear: assert ("higher" in sentence) == (row.difference > 0)
    html = scores.show_comparison(table, ["method"], "t", {"cohort": "c"}).as_raw_html()
    assert (f"<b>{row.difference:+.3f}</b>" in html) == row.clear


def test_a_table_says_cohort_preset_seed_and_budget():
    said = tasks.provenance(made_up_task(), replace(workshop, sigma=0.1), [3])
    assert "60 for training and 40 for testing" in said["cohort"] and said["preset"] == "workshop, sigma 0.1"
    assert said["seed"] == "3" and f"{workshop.epochs_joint} of joint" in said["budget"]
    html = scores.show_comparison(scores.comparison_table({("a",): {"R2": np.arange(3.)}}, ["m"]), ["m"], "t", said).as_raw_html()
    assert all(text in html for text in said.values())


# --- patients -----------------------------------------------------------------------------------------------------------

@given(st.integers(0, 1000), st.sampled_from([50, 100, 150]))
def test_r_peaks_jitter_by_so_many_milliseconds(seed, ms):
    data = made_up_pairs(40)
    off = (variants.misaligned(data, jitter=ms, seed=seed).r_peaks - data.r_peaks) * 1000
    assert off.std().item() == pytest.approx(ms, rel=0.15) and abs(off.mean().item()) < ms / 3


def test_a_film_is_delayed_as_a_share_of_its_own_beat():
    g = torch.Generator().manual_seed(5)
    torch.randn(made_up_pairs().r_peaks.shape, generator=g)
    for bpm in (60, 90):
        g = torch.Generator().manual_seed(5)
        data = made_up_pairs(bpm=bpm)
        torch.randn(data.r_peaks.shape, generator=g); delay = torch.randn(4, generator=g) * 0.1 * bpm / 60   # of the cycle
        seen = variants.misaligned(data, shift=100, seed=5).cine[:, :, 0, 0].float()
        expected = 120 + 100 * torch.cos(2 * torch.pi * (torch.arange(50) / 50 - delay[:, None]))
        assert (seen - expected).abs().max() < 2


def test_nothing_is_changed_where_nothing_is_asked():
    data = made_up_pairs()
    same = variants.misaligned(data)
    assert same.cine is data.cine and same.r_peaks is data.r_peaks


def test_a_folder_of_models_belongs_to_its_patients(tmp_path):
    task = made_up_task()
    tasks.claim(tmp_path, task)
    tasks.claim(tmp_path, replace(task, about=task.about | {"n_test": 7}))    # other test patients change no model
    for other in ({"n_train": 61}, {"seed": 1}, {"train": {"rhythm": "af"}}):
        with pytest.raises(PtaclError, match="other training patients"): tasks.claim(tmp_path, replace(task, about=task.about | other))


# --- reports ------------------------------------------------------------------------------------------------------------

def result(**changes):
    return {"experiment": "study", "cohort": {}, "preset": "workshop", "seed": 0, "parameters": {"σ": 0.1}, "about": {"cohort": "100 % virtual"},
            "seconds": {"a": 60}, "versions": {"git": "abc"}, "findings": ["A is clearly higher than B."],
            "rows": [{"method": "A_1", "score": "R2", "value": 0.25, "lo": 0.1, "hi": 0.4}]} | changes


def test_a_report_gathers_what_finished_and_lists_what_failed(tmp_path):
    write_result(tmp_path / "x" / "deep", result())
    write_result(tmp_path / "y", result(findings=["C & D <b>do not</b> differ."], rows=[{"score": "P@5", "value": None}]))
    with pytest.raises(PtaclError), _failure_kept(tmp_path / "z", "study", {"n": 3, "output_dir": str(tmp_path / "z")}):
        (tmp_path / "z").mkdir()
        raise PtaclError("no data", f"The notebook as far as it came: {tmp_path}/z.ipynb")
    done = write_report(tmp_path)
    assert (done["finished"], done["failed"]) == (2, 1)
    text, table = done["html"].read_text(encoding="utf-8"), pd.read_csv(done["csv"])
    assert "A is clearly higher than B." in text and "C &amp; D &lt;b&gt;do not" in text and "no data" in text and "n = 3" in text
    assert not MACHINE_PATH.search(text) and not re.search(r"<(script|link|img)|https?://", text)
    assert table.run.tolist() == ["x/deep", "y"] and table["about cohort"].tolist() == ["100 % virtual"] * 2
    tex = done["tex"].read_text(encoding="utf-8")
    assert r"100 \% virtual" in tex and r"A\_1" in tex and tex.count(r"\begin{longtable}") == 2


def test_the_last_verdict_on_a_folder_counts(tmp_path):
    for older, newer in (("result.json", "failed.json"), ("failed.json", "result.json")):
        folder = tmp_path / newer.removesuffix(".json")
        write_result(folder, result(), "result.json")
        write_result(folder, {"error": "killed", "parameters": {}}, "failed.json")
        os.utime(folder / older, (1, 1))
    finished, failed = _read_runs(tmp_path)
    assert [r["run"] for r in finished] == ["result"] and [(r["run"], r["error"]) for r in failed] == [("failed", "killed")]


def test_success_removes_the_mark_of_failure(tmp_path):
    with pytest.raises(PtaclError), _failure_kept(tmp_path, "study", {}): raise PtaclError("no")
    assert json.loads((tmp_path / "failed.json").read_text())["error"] == "no"
    with _failure_kept(tmp_path, "study", {}): pass
    assert not (tmp_path / "failed.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_result_is_listed_as_failed(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(text)
    finished, failed = _read_runs(tmp_path)
    assert not finished and failed[0]["run"] == "run" and "run it again" in failed[0]["error"]
    _report_page(finished, failed, "t")


def test_numbers_of_the_quickstart_are_gathered_too():
    table = {"LVEDV": {"R2": 0.4, "R2_lo": 0.3, "R2_hi": 0.5, "n": 9}}
    rows = _result_rows({"regression": {"PTACL": table}, "alignment": {"global": {"exact": 0.1, "exact_lo": 0.0, "exact_hi": 0.2}}})
    assert [(r["table"], r["method"], r["phenotype"], r["value"]) for r in rows] == [("alignment", "global", None, 0.1),
                                                                                  ("regression", "PTACL", "LVEDV", 0.4)]


def test_a_result_lacks_nothing():
    assert set(result()) == set(variants._SCHEMA)
    for name in variants._SCHEMA:
        with pytest.raises(PtaclError, match=name): variants._check_result({k: v for k, v in result().items() if k != name})
    with pytest.raises(PtaclError, match="no score"): variants._check_result(result(rows=[{"value": 1}]))


# --- sweeps and notebooks -----------------------------------------------------------------------------------------------

def test_a_sweep_is_every_combination():
    assert len(_sweep_grid(["a=1,2,3", "b=x,y"])) == 6
    assert _sweep_grid(["t=[0.1, 0.2],[1, 2]"]) == [{"t": "[0.1, 0.2]"}, {"t": "[1, 2]"}]


def test_a_sweep_of_two_runs_one_of_which_fails(tmp_path):
    body = ("from ptacl.core.files import write_result\nif n > 2: raise ValueError('too large')\n"
            "write_result(output_dir, {'experiment': 'tiny', 'seconds': {}, 'findings': [f'n is {n}.'], 'rows': [{'score': 'n', 'value': n}]})")
    cells = [nbformat.v4.new_code_cell("n: int = 1\noutput_dir: str = 'runs'", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(body)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "tiny.ipynb")
    arguments = ["run", str(tmp_path / "tiny.ipynb"), "--sweep", "n=2,3", "-p", "output_dir", str(tmp_path / "runs")]
    out = CliRunner().invoke(app, arguments)
    assert out.exit_code == 1 and "1 finished, 1 failed" in out.output, out.output
    text = (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")
    assert "n is 2." in text and "ValueError: too large" in text and not MACHINE_PATH.search(text)
    assert CliRunner().invoke(app, ["report", str(tmp_path / "runs")]).exit_code == 1


def test_a_sweep_is_checked_before_it_starts(tmp_path):
    for swept in ("n_trian=8", "n_train=eight", "output_dir=a,b"):
        out = CliRunner().invoke(app, ["run", "table1", "--sweep", swept, "-p", "output_dir", str(tmp_path / "runs")])
        assert out.exit_code == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda f: f.stem)
def test_parameters_have_types_and_the_common_names(notebook):
    known = parameters_of(notebook)
    assert {"preset", "n_train", "n_test", "seed", "epochs", "output_dir"} <= set(known)
    assert all(q["inferred_type_name"] not in ("", "None") and (q["help"] or name in ("seed", "epochs", "output_dir")) for name, q in known.items())
    assert known["output_dir"]["default"] == f'"reports/{notebook.stem}"'


SMALL = {"n_train": 16, "n_test": 24, "epochs": 1, "n_boot": 20}


def test_table1_is_filled_and_goes_on_where_it_stopped(tmp_path):
    parameters = SMALL | {"methods": ["global", "ptacl"], "output_dir": str(tmp_path / "out")}
    folder, found = run_experiment("table1", parameters)
    rows = pd.DataFrame(found["rows"])
    assert {"Random", "Random, if Gaussian", "Demographics", "Demographics + PTACL", "Global", "PTACL"} <= set(rows.method)
    mine = rows[rows.source == "measured"]
    assert mine[["value", "lo", "hi"]].notna().all().all() and set(rows.source) == {"measured", "expected", "paper"}
    assert len(mine) == 5 * 10 * 7
    assert found["cohort"]["n_train"] == 16 and found["findings"]
    html = (folder / "table1.html").read_text(encoding="utf-8")
    assert found["about"]["cohort"] in html and not MACHINE_PATH.search(html.replace(str(tmp_path), ""))


STUDIES = [f.stem for f in NOTEBOOKS if f.stem not in ("quickstart", "table1")]


def small(name, folder):
    "Parameters of a study with few patients; one training a row, and no longer, where it would take several."
    offered = parameters_of(NOTEBOOKS[0].parent / f"{name}.ipynb")
    once = {"n_seeds": 1, "seeds": [0], "times": 1}
    return SMALL | {k: v for k, v in once.items() if k in offered} | {"n_train": 32, "output_dir": str(folder)}


RUN_ELSEWHERE = {"data_size", "unpaired"}  # whole, by a test below and by tests/test_modalities.py


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in RUN_ELSEWHERE])
def test_every_study_runs(tmp_path, name):
    found = run_experiment(name, small(name, tmp_path))[1]
    variants._check_result(found)
    assert found["learning"] and all({"loss", "chance"} <= set(asked) for asked in found["learning"].values())


@pytest.mark.long
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_and_is_found_trained_the_second_time(tmp_path, name):
    parameters = small(name, tmp_path)
    _, first = run_experiment(name, parameters)
    variants._check_result(first)
    trained = {f: f.read_bytes() for f in tmp_path.rglob("state.pt")}
    _, second = run_experiment(name, parameters)
    assert trained and {f: f.read_bytes() for f in tmp_path.rglob("state.pt")} == trained
    a, b = (pd.DataFrame(found["rows"]).value.astype(float) for found in (first, second))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_numbers_of_pairs_streamed_from_disk(tmp_path):
    "The same scores as from memory: films are shrunk on their way instead of before, which may move a grey level."
    cohort = tmp_path / "cohort"
    write_virtual(simulate(56, 0), cohort, workers=1, shares={"train": 32 / 56, "test": 24 / 56})
    found = []
    for stream in (False, True):
        parameters = small("data_size", tmp_path / str(stream)) | {"cohort": str(cohort), "shares": [0.5, 1.0], "stream": stream}
        said = run_experiment("data_size", parameters)[1]
        assert said["learning"] and all({"loss", "chance"} <= set(asked) for asked in said["learning"].values())
        found.append(pd.DataFrame(said["rows"]))
    assert found[0].pairs.tolist() == found[1].pairs.tolist() and set(found[0].pairs) == {16, 32}
    within = [rows[rows.score == "within_one"].value.astype(float) for rows in found]
    np.testing.assert_allclose(*within, atol=0.2)


def test_who_came_twice_counts_once(tmp_path):
    "Two visits of one heart are no two patients: neither for intervals, nor as each other's match or negative."
    cohort = write_virtual(simulate(90, 0, frames=4, size=84), tmp_path / "cohort", workers=1, shares={"train": .6, "test": .4})
    group = zarr.open(tmp_path / "cohort", mode="r+")["table/1"]
    person = group["participant"][:]
    train, test = cohort.split("train"), cohort.split("test")
    for rows in (train, test): person[rows[1:11:2]] = person[rows[0:10:2]]
    group["participant"][:] = person
    with pytest.warns(UserWarning, match="cohort: 5 repeat visits of the split"): task = tasks.make_task(str(tmp_path / "cohort"))
    assert (len(task.train), len(task.test)) == (len(train) - 5, len(test) - 5)
    again = Cohort.open(tmp_path / "cohort")
    assert not pd.Index(again.table.participant[task.test_y.index]).duplicated().any()


def test_a_phenotype_that_nobody_has_is_left_out(tmp_path):
    cohort = write_virtual(simulate(90, 0, frames=4, size=84), tmp_path / "cohort", workers=1, shares={"train": .6, "test": .4})
    zarr.open(tmp_path / "cohort", mode="r+")["table/1/phenotypes"][:, 5] = np.nan
    with pytest.warns(UserWarning, match="cohort: LVM left out"): task = tasks.make_task(str(tmp_path / "cohort"))
    assert "LVM" not in task.train_y and list(task.test_y) == list(task.train_y) and len(task.train_y.columns) == 9
    assert task.train.extra["targets"].isnan().all(0).tolist() == [p == "LVM" for p in cohort.phenotypes]


def test_watching_patients_with_gaps_ends_no_training():
    "A phenotype that nobody has, and one that only patients have who are not asked."
    y = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 10)), columns=list(PHENOTYPES))
    parts = [Pairs(torch.randn(n, 12, 5000), torch.arange(0.3, 10, 0.9).repeat(n, 1),
                   torch.randint(0, 256, (n, 30, 48, 48), dtype=torch.uint8)) for n in (36, 24)]
    watch = Watch(parts[0], y[:36], parts[1], y[36:], n=20, m=12)
    tiny = replace(workshop, width=32, heads=2, proj_dim=16)
    taught, joint = Tuned(ECGEncoder(tiny), PHENOTYPES), PTACL(tiny)
    torch.nn.init.normal_(taught.head.weight)
    whole = watch(taught)["loss"], watch(joint)["probe_r2"]
    fewer = replace(watch, train_y=y[:36].drop(columns="LVM"), test_y=y[36:].drop(columns="LVM"))
    assert np.isfinite(fewer(taught)["loss"]) and fewer(taught)["loss"] != whole[0]
    for rows in (slice(20), slice(37, 48), slice(36, 48)):            # of those who teach the probe, and of those who are asked
        gaps = y.copy(); gaps.iloc[rows, 9] = np.nan
        asked = replace(watch, train_y=gaps[:36], test_y=gaps[36:])
        assert np.isfinite(asked(joint)["probe_r2"]) and asked(joint)["probe_r2"] != whole[1]
    nobody = replace(watch, test_y=y[36:] * np.nan)
    assert "probe_r2" not in nobody(joint) and nobody(joint)["loss"] > 0


def test_a_supervised_network_is_watched_in_a_cohort_that_lacks_a_phenotype(tmp_path):
    "Ten outputs, nine of them taught; RVEF was measured in training patients alone, and is not asked for."
    write_virtual(simulate(60, 0, frames=26), tmp_path / "cohort", workers=1, shares={"train": .6, "test": .4})
    table = zarr.open(tmp_path / "cohort", mode="r+")
    opened = Cohort.open(tmp_path / "cohort")
    measured = opened.phenotypes.to_numpy(copy=True)
    measured[:, 5] = np.nan
    measured[opened.split("test")[1:], 9] = np.nan
    table["table/1/phenotypes"][:] = measured
    with pytest.warns(UserWarning, match="left out"): task = tasks.make_task(str(tmp_path / "cohort"), side=48)
    assert {"LVM", "RVEF"}.isdisjoint(task.test_y) and list(task.train_y) == list(task.test_y)
    assert task.train.extra["targets"].isnan().all(0).tolist() == [p == "LVM" for p in PHENOTYPES]
    tiny = replace(workshop, width=32, heads=2, proj_dim=16, batch_size=16, epochs_mae=1, epochs_joint=1)
    watch = Watch(task.train, task.train_y, task.test, task.test_y)
    train_method("supervised", task.train, tiny, folder=tmp_path / "run", watch=watch)
    asked = [read_state(tmp_path / "run" / name)["history"][-1]["held_out"]["loss"] for name in ("supervised_ecg", "supervised_cmr")]
    assert np.isfinite(asked).all()


@pytest.mark.parametrize("spec", [
    {"name": "python3", "display_name": "Python 3", "language": "python"},
    {"name": "conda-env-other-py", "display_name": "Python [conda env:other]", "language": "python"}])
def test_a_foreign_kernel_is_never_started(tmp_path, monkeypatch, spec):
    "`ptacl run` where JUPYTER_PATH names kernels of another Python, as on shared machines; each would leave a mark."
    mark = tmp_path / "started"
    for name in {"python3", spec["name"]}:
        folder = tmp_path / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        argv = [sys.executable, "-c", f"open({str(mark)!r}, 'w')", "{connection_file}"]
        (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    body = ("import sys\nfrom ptacl.core.files import write_result\n"
            "write_result(output_dir, {'experiment': 'x', 'python': sys.executable})")
    settings = nbformat.v4.new_code_cell("output_dir: str = 'runs'", metadata={"tags": ["parameters"]})
    cells = [settings, nbformat.v4.new_code_cell(body)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), tmp_path / "x.ipynb")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert KernelSpecManager().find_kernel_specs()["python3"].startswith(str(tmp_path))  # what Jupyter would start
    done = CliRunner().invoke(app, ["run", str(tmp_path / "x.ipynb"), "-p", "output_dir", str(tmp_path / "out")])
    assert done.exit_code == 0 and "Traceback" not in done.output, done.output
    assert json.loads((tmp_path / "out" / "result.json").read_text())["python"] == sys.executable and not mark.exists()


def test_the_explorers_page_and_jupyterlab_look_for_our_kernel_first(tmp_path, monkeypatch):
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["/bin/false"]
    page = tmp_path / "page"
    page.mkdir()
    serving._write_notebook(page)
    for path in (serving._environment(page, str(page), "x")["JUPYTER_PATH"], own_kernel(tmp_path / "lab")):
        monkeypatch.setenv("JUPYTER_PATH", path)
        assert KernelSpecManager().get_kernel_spec("python3").argv[0] == sys.executable
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
