"""Inference from ECG files alone: what comes out of which file, what is refused, coverage, export, processes that die, the shell."""
import json
import os
import re
import shutil
import signal
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import ID, dicom_ecg, muse, record, strip
from typer.testing import CliRunner

from ptacl.inference import embedding, export, screening
from ptacl.bench.measure import _Peak, _trim
from ptacl.app.cli import app
from ptacl.data.cohort import SAMPLES, Cohort, Stream
from ptacl.data.store import MV
from ptacl.nets.encoders import CMREncoder, ECGEncoder
from ptacl.core.errors import PtaclError
from ptacl.train.finetune import Tuned
from ptacl.inference.embedding import ECGFeatures, embed, features, on_device
from ptacl.inference.outputs import refused_file
from ptacl.inference.export import export_encoder, _run_onnx, _run_program
from ptacl.inference.prediction import Probe, _conformal_half_widths, _fit_probe, _predictions, load_probe
from ptacl.inference.prediction import predict_phenotypes, probe_cohort, save_probe
from ptacl.inference.screening import find_recordings, in_order, _likeness, read_one, screen, visits_of
from ptacl.data.ingest import ingest
from ptacl.data.pseudonyms import pseudonym, read_key
from ptacl.simulate.cohorts import write_virtual
from ptacl.nets.mae import MAE
from ptacl.nets.joint import PTACL, joint_loss
from ptacl.nets.views import View
from ptacl.nets.weights import save_weights
from ptacl.core.presets import LEADS, PHENOTYPES, paper_regression, workshop
from ptacl.data.pairs import Pairs
from ptacl.train.loop import fit
from ptacl.simulate.heartbeat import leads12
from ptacl.simulate.patients import simulate
from ptacl.simulate.writers import write_patients

tiny = replace(workshop, width=16, heads=2, ecg_layers=1, cmr_layers=1, frozen_layers=0, proj_dim=8)
shell = CliRunner()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PTACL(tiny).eval()


@pytest.fixture(scope="module")
def module(model): return ECGFeatures(model)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory): return save_weights(model, tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def signals(): return simulate(6, seed=3, cine=False).ecg.numpy()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_virtual(simulate(48, 5, frames=2), tmp_path_factory.mktemp("cohort") / "cohort", workers=1, shares={"train": .6, "val": .4})


@pytest.fixture(scope="module")
def probe(module, cohort):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few patients for sixteen features
        return probe_cohort(module, cohort)


def formats(folder, signals):
    "One recording in every format, under names that tell nothing."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.xml").write_bytes(strip(signals[0]))
    (folder / "b.xml").write_bytes(muse(signals[1]))
    (folder / "c.dcm").write_bytes(dicom_ecg(signals[2]))
    record(folder, LEADS, signals[3], name="d")
    return folder


@pytest.fixture
def files(tmp_path, signals): return formats(tmp_path / "ecgs", signals)


@pytest.fixture
def run(module, tmp_path):
    return lambda paths, out="emb.parquet", **more: embed(paths, module, tmp_path / out, **{"workers": 1, "own_names": True} | more)


def left_over(folder): return [f.name for f in Path(folder).iterdir() if f.name.startswith(".")]


# what comes out

def test_every_format_in_one_run_gives_what_the_model_says(files, run, module, signals):
    done = run([files])
    table = pd.read_parquet(done.path)
    assert list(table.index) == ["a", "b", "c", "d"] and table.index.name == "recording" and len(done.refused) == 0
    assert table.shape == (4, tiny.width) and (table.dtypes == np.float32).all()
    assert refused_file(done.path).read_text().strip() == "recording,reason,remedy"
    for name, path in zip("abcd", ("a.xml", "b.xml", "c.dcm", "d.hea")):
        np.testing.assert_allclose(table.loc[name], features(module, screen(files / path)[0][None])[0], atol=2e-2)  # bf16, another batch


def test_a_file_gives_what_it_gives_after_ingest(module, tmp_path):
    vp = simulate(2, seed=9, frames=4, size=88)
    vp.phenotypes.index = vp.covariates.index = [str(10**6 + k) for k in (11, 12)]
    write_patients(vp, tmp_path / "raw", "ukb")
    done = ingest(tmp_path / "raw", tmp_path / "cohort", frames=4, workers=1, key=tmp_path / "key")
    got = embed([tmp_path / "raw"], module, tmp_path / "emb.parquet", workers=1, key=tmp_path / "key", exact=True)
    cohort, table = Cohort.open(done.path), pd.read_parquet(got.path)
    assert set(table.index) == set(cohort.table.index)                     # the same pseudonyms
    with torch.no_grad(): expected = module(cohort.batch(None, None)["ecg"])
    np.testing.assert_allclose(table.loc[cohort.table.index], expected, atol=1e-5)
    out = b"".join(f.read_bytes() for f in tmp_path.glob("emb*"))
    assert not any(i.encode() in out for i in vp.phenotypes.index)


def test_projected_is_what_the_global_loss_compares(model, signals):
    from ptacl.signal.ecg import normalize, preprocess_ecg
    clean = preprocess_ecg(signals, 500, stats=(0, 1))
    with torch.no_grad():
        ours = ECGFeatures(model, projected=True)(torch.from_numpy(clean))
        theirs = model.proj_ecg(model.ecg_features({"ecg": torch.from_numpy(normalize(clean))}))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_workers_and_batches_change_nothing(files, run):
    one = pd.read_parquet(run([files], exact=True).path)
    for more in ({"size": 1}, {"size": 3, "workers": 2}):  # the second takes seconds: each worker loads torch
        pd.testing.assert_frame_equal(pd.read_parquet(run([files], exact=True, **more).path), one, atol=1e-5)


def test_csv_and_many_row_groups(run, tmp_path, data_samples, monkeypatch):
    monkeypatch.setattr(embedding, "_ROWS", 5)
    whole = pd.read_parquet(run([data_samples], size=2).path)
    table = pd.read_csv(run([data_samples], "emb.csv").path, index_col="recording")
    np.testing.assert_allclose(table, whole, atol=2e-2); assert list(table.index) == list(whole.index)


# names

def test_no_number_of_a_person_leaves(run, signals, tmp_path):
    raw = tmp_path / "raw"; raw.mkdir()
    for name in (f"{ID}_20205_2_0.xml", f"{ID}_20205_3_0.xml", f"{ID}.xml"): (raw / name).write_bytes(strip(signals[0]))
    (raw / f"x{ID}_broken.xml").write_bytes(strip(signals[0])[:3000])
    done = run([raw], key=tmp_path / "key")
    person = pseudonym(ID, read_key(tmp_path / "key", ""))
    assert sorted(pd.read_parquet(done.path).index) == sorted([person, f"{person}-3", f"{person}~2"])
    text = f"{done} {done.refused.to_csv()}".encode() + b"".join(f.read_bytes() for f in tmp_path.glob("emb*"))
    assert ID.encode() not in text and len(done.refused) == 1


def test_names_that_are_nobodys_stay_and_need_no_key(tmp_path):
    files = [Path("HR00001.hea"), Path("x/HR00001.hea"), Path("sim-00001_20205_3_0.xml")]
    assert [t.name for t in visits_of(files, tmp_path / "key", own_names=True)] == ["HR00001", "HR00001~2", "sim-00001-3"]
    assert [t.name for t in visits_of(files[2:], tmp_path / "key")] == ["sim-00001-3"] and not (tmp_path / "key").exists()


def test_a_number_like_a_participants_is_refused_alone_where_no_key_is(run, signals, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)); raw = tmp_path / "raw"; raw.mkdir()
    for name in (f"{ID}_demo.xml", f"{ID}_20205_2_0.xml", "HR00001.xml"): (raw / name).write_bytes(strip(signals[0]))
    done = run([raw])
    assert list(pd.read_parquet(done.path).index) == ["HR00001"] and not (tmp_path / ".config").exists()
    assert set(done.refused.recording) == {"#######_demo", "#######_20205_2_0"}
    assert done.refused.reason.str.contains("a number of seven digits, as participants' have").all()
    assert done.refused.remedy.str.contains("Rename it, or give the key").all() and "own-names" not in str(done.refused.to_csv())
    assert len(pd.read_parquet(run([raw / f"{ID}_demo.xml"], "none.parquet").path)) == 0
    with pytest.raises(PtaclError, match="#######_demo.xml: its name holds"): visits_of([raw / f"{ID}_demo.xml"], own_names=True)
    assert len(run([raw], key=tmp_path / "key").refused) == 0  # with a key they are pseudonyms


STRANGERS = ("MRN00123456", "7", "Doe_Jane_1950-02-01", "2024.77.1", "AB12345678", "case-0042")

def test_names_of_any_institution_are_pseudonyms_unless_they_are_nobodys(run, signals, tmp_path):
    raw = tmp_path / "raw"; raw.mkdir()
    for name in STRANGERS: (raw / f"{name}.xml").write_bytes(strip(signals[0]))
    for name in STRANGERS[:3]: (raw / f"{name}.dcm").write_bytes(b"no DICOM")
    done = run([raw], key=tmp_path / "key", own_names=False)
    secret = read_key(tmp_path / "key", "")
    assert set(pd.read_parquet(done.path).index.str.removesuffix("~2")) == {pseudonym(name, secret) for name in STRANGERS}
    assert len(done.refused) == 3 and done.refused.recording.str.fullmatch(r"p-[a-z]{12}(~2)?").all()
    text = f"{done} {done.refused.to_csv()}".encode() + b"".join(f.read_bytes() for f in tmp_path.glob("emb*"))
    assert not [name for name in STRANGERS if len(name) > 1 and name.encode() in text]
    assert {n.removesuffix("~2") for n in pd.read_parquet(run([raw]).path).index} == set(STRANGERS)


def test_without_a_key_strangers_are_refused_with_both_ways_out(run, signals, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)); (tmp_path / "MRN00123456.xml").write_bytes(strip(signals[0]))
    with pytest.raises(PtaclError, match="no key of pseudonyms at .*--key.*nobody's: own_names=True, --own-names"):
        run([tmp_path / "MRN00123456.xml"], own_names=False)
    assert not (tmp_path / "emb.parquet").exists() and not (tmp_path / ".config").exists()


def test_what_needs_no_key_is_refused_before_one_is_read_or_made(probe, module, signals, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)); (tmp_path / "MRN00123456.xml").write_bytes(strip(signals[0]))
    out, paths = tmp_path / "e.csv", [tmp_path / "MRN00123456.xml"]; (tmp_path / "empty").mkdir()
    for key in (None, tmp_path / "key"):
        for ask, why in ((partial(embed, paths, module, tmp_path / "e.xlsx"), "ends in .parquet or .csv"),
                         (partial(embed, paths, module, tmp_path / "none" / "e.csv"), r"no folder for .*none.e\.csv"),
                         (partial(embed, paths, module, out, allow=["hum"]), "hum cannot be allowed"),
                         (partial(embed, [tmp_path / "empty"], module, out), "no ECG there"),
                         (partial(predict_phenotypes, paths, module, probe, out, 1.5), "between 0 and 1"),
                         (partial(predict_phenotypes, paths, module, probe, out, 0.99), "99 are needed"),
                         (partial(predict_phenotypes, paths, module, replace(probe, weight=probe.weight[1:]), out, 0.8),
                          "features: this probe takes")):
            with pytest.raises(PtaclError, match=why): ask(key=key)
    assert not (tmp_path / "key").exists() and not (tmp_path / ".config").exists()


def test_folders_are_searched_and_films_left_alone(tmp_path):
    films = "cmr/x/im1.dcm", "echo/6.dcm", f"{ID}_20209_2_0/1.dcm"
    for f in ("a/1.xml", "a/b/2.hea", "a/b/2.dat", "3.dcm", *films, ".hidden/4.xml", "._5.xml", "table.csv"):
        (tmp_path / f).parent.mkdir(parents=True, exist_ok=True); (tmp_path / f).touch()
    (tmp_path / "IM0001").write_bytes(dicom_ecg(np.zeros((12, 5000)))); (tmp_path / "README").write_text("no DICOM")
    assert {f.name for f in find_recordings([tmp_path])} == {"1.xml", "2.hea", "3.dcm", "IM0001"}
    assert [f.name for f in find_recordings([tmp_path / "a/b/2.dat", tmp_path / "a/b/2.hea"])] == ["2.hea"]


# refused

FAULTS = {
    "flat": lambda x, rng: np.where((np.arange(12) == 4)[:, None] & (np.arange(5000) > 2000), 0.1, x),
    "clipped": lambda x, rng: np.clip(x, -0.35, 0.35),
    "contradictory": lambda x, rng: x * np.where(np.arange(12) == 2, -1, 1)[:, None],
    "beatless": lambda x, rng: leads12(torch.tensor(rng.normal(0, 0.3, (1, 8, x.shape[1]))))[0].numpy(),
    "too short": lambda x, rng: x[:, :3000],
    "silent": lambda x, rng: x * (np.arange(12) != 7)[:, None],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_should_not_be_read_is_refused_with_reason_and_remedy(fault, run, signals, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "bad.xml").write_bytes(strip(FAULTS[fault](signals[0], np.random.default_rng(0))))
    (tmp_path / "raw" / "good.xml").write_bytes(strip(signals[1]))
    done = run([tmp_path / "raw"])
    assert list(pd.read_parquet(done.path).index) == ["good"]
    listed = pd.read_csv(refused_file(done.path))
    assert list(listed.recording) == ["bad"] and listed.reason[0] and listed.remedy[0]
    word = {"beatless": "no heartbeat", "too short": "ten are needed", "silent": "missing"}.get(fault, fault)
    assert word in f"{listed.reason[0]} {listed.remedy[0]}"
    if fault in screening.FAULTS: assert run([tmp_path / "raw"], "all.parquet", allow=[fault]).rows == 2


@pytest.mark.parametrize("rhythm", ["sinus", "af", "pvc", "lbbb", "rbbb", "paced"])
def test_hearts_out_of_step_are_read(rhythm, tmp_path):
    vp = simulate(6, seed=4, cine=False, rhythm=rhythm)
    for k, x in enumerate(vp.ecg.numpy()): (tmp_path / f"{k}.xml").write_bytes(strip(x))
    got = [read_one(t) for t in visits_of(find_recordings([tmp_path]), own_names=True)]
    assert all(isinstance(g, tuple) for g in got), [g for g in got if isinstance(g, dict)]


def test_real_hearts_are_read(shared_real):
    got = [read_one(t) for t in visits_of(find_recordings([shared_real / "ecg_wfdb"]), own_names=True)]
    assert len(got) == 5 and all(isinstance(g, tuple) and not g[1] for g in got)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_noise_is_unlike_itself(seed, beats):
    rng = np.random.default_rng(seed)
    assert _likeness(rng.normal(size=(12, 5000)), rng.uniform(0, 10, beats)) < screening._LIKENESS
    assert -1 <= _likeness(np.zeros((12, 5000)), rng.uniform(0, 10, beats)) <= 0


def test_a_run_over_nothing_but_rubbish_says_so(tmp_path, saved):
    (tmp_path / "x.xml").write_bytes(b"<x>")
    files, out = [str(tmp_path / name) for name in ("x.xml", "gone.xml")], str(tmp_path / "e.parquet")
    out = shell.invoke(app, ["embed", *files, "--model", str(saved), "--out", out, "--workers", "1", "--own-names"])
    assert out.exit_code == 1 and "0 recordings; 2 refused" in out.output and "Traceback" not in out.output
    assert len(pd.read_parquet(tmp_path / "e.parquet")) == 0 and len(pd.read_csv(tmp_path / "e.refused.csv")) == 2


# streaming

def test_results_come_in_order_and_memory_does_not_grow():
    drawn = []
    def items():
        for k in range(300): drawn.append(k); yield k
    for k, got in enumerate(in_order(partial(pow, 2), items(), workers=2, ahead=16)):
        assert got == 2**k and len(drawn) <= k + 17
    assert k == 299


def test_a_reader_that_dies_costs_its_file_alone():
    def read(item): # sent to the workers as it stands here
        if item in (5, 17): os.kill(os.getpid(), signal.SIGKILL)
        return item
    got = list(in_order(read, range(24), workers=2, ahead=6))
    assert [g for g in got if not isinstance(g, Exception)] == [k for k in range(24) if k not in (5, 17)]
    assert all(isinstance(got[k], PtaclError) and "reader died" in str(got[k]) for k in (5, 17))


def test_a_recording_whose_reader_dies_leaves_the_others_of_its_part(files, run, monkeypatch):
    paths = find_recordings([files])
    worst = visits_of(paths, own_names=True)[2].name
    def read(visits, allow): # sent to the workers as it stands here
        from ptacl.inference.screening import read_some
        if worst in [visit.name for visit in visits]: os.kill(os.getpid(), signal.SIGKILL)
        return read_some(visits, allow)
    monkeypatch.setattr(embedding, "read_some", read)
    done = run(paths, workers=2)
    assert worst in list(done.refused.recording) and "reader died" in done.refused.reason[done.refused.recording == worst].item()
    assert done.rows == len(paths) - len(done.refused) > 1


def test_a_cluster_of_two_processes_gives_the_same_tables(files, module, probe, run, tmp_path, monkeypatch):
    "Forked, so that they need not load everything anew; the folder is given as it is called from here."
    import dask
    from distributed import LocalCluster
    monkeypatch.chdir(files.parent)
    monkeypatch.setattr(embedding, "_TOGETHER", 1)
    alone = pd.read_parquet(run([files.name]).path)
    def predicted(out, **how):
        return pd.read_parquet(predict_phenotypes([files.name], module, probe, tmp_path / out, own_names=True, **how).path)
    with dask.config.set({"distributed.worker.multiprocessing-method": "fork"}), LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path / "dask") as cluster:
        done = run([files.name], "cluster.parquet", cluster=cluster.scheduler_address)
        computed = [str(t[0]) for t in cluster.scheduler.transition_log if t[2] == "memory"]
        there = predicted("there.parquet", cluster=cluster.scheduler_address)
    pd.testing.assert_frame_equal(there, predicted("here.parquet", workers=1))
    assert sum("on_one_thread" in key for key in computed) == done.rows + len(done.refused) > 3
    pd.testing.assert_frame_equal(pd.read_parquet(done.path), alone)
    with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}), pytest.raises(PtaclError, match="no Dask scheduler answers"):
        run([files.name], "nowhere.parquet", cluster="tcp://127.0.0.1:9")
    assert not left_over(tmp_path)


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_the_shell_hands_the_cluster_on(command):
    "Both commands take --cluster, and say what it is, as ingest does."
    import inspect
    from ptacl.app import model_commands
    assert "cluster" in inspect.signature(getattr(model_commands, f"_{command}_command")).parameters
    shown = CliRunner().invoke(app, [command, "--help"]).output
    assert "--cluster" in shown and "Dask scheduler" in shown


def test_stopping_in_the_middle_leaves_nothing(files, run, tmp_path, monkeypatch):
    def stop(*_, **__): raise KeyboardInterrupt
    run([files]); before = (tmp_path / "emb.parquet").read_bytes()
    monkeypatch.setattr(embedding, "read_some", stop)
    with pytest.raises(KeyboardInterrupt): run([files])
    assert (tmp_path / "emb.parquet").read_bytes() == before and not left_over(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_and_leaves_nothing(files, run, tmp_path, monkeypatch):
    class Full(embedding._WRITERS[".csv"]):
        def __init__(self, path, schema): Path(path).touch(); super().__init__("/dev/full", schema)
    monkeypatch.setitem(embedding._WRITERS, ".csv", Full)
    with pytest.raises(PtaclError, match="cannot be written .*make room"): run([files], "emb.csv")
    assert not left_over(tmp_path) and not (tmp_path / "emb.csv").exists()


@pytest.mark.long
def test_thousands_of_recordings_in_the_memory_of_some_hundred(module, tmp_path, data_samples):
    "Links to the dozen, so that each is read: 3,000 recordings take no more memory than 600, by which all buffers are full."
    for k in range(3000): os.symlink(find_recordings([data_samples])[k % 12].resolve(), tmp_path / f"r{k:05d}.xml")
    links, used = find_recordings([tmp_path]), {}
    for n in (600, 3000):
        with _Peak() as memory: done = embed(links[:n], module, tmp_path / "e.parquet", workers=1, own_names=True)
        assert (done.rows, len(done.refused)) == (n, 0)
        _trim(); used[n] = memory.most, psutil.Process().memory_info().rss
    assert used[3000][0] < used[600][0] + 150 * 2**20, "at most: the heap varies by 100 MB, the other recordings are 290"
    assert used[3000][1] < used[600][1] + 40 * 2**20, "and in the end"


# intervals

@given(st.integers(0, 10**6), st.integers(9, 60), st.sampled_from([0.5, 0.8, 0.9]))
def test_conformal_half_widths_are_order_statistics(seed, n, level):
    r = np.sort(np.abs(np.random.default_rng(seed).normal(size=(n, 3))), axis=0)
    q = _conformal_half_widths(Probe(["a", "b", "c"], np.zeros((2, 3)), np.zeros(3), r, {}), level)
    assert ((r <= q).sum(0) >= (n + 1) * level - 1e-9).all() and ((r < q).sum(0) < (n + 1) * level).all()


def test_coverage_on_virtual_patients_that_were_held_out():
    "Mean over many calibrations of 100: at least the level, and at most one part in 101 more."
    rng, inside, level = np.random.default_rng(0), [], 0.8
    sim = simulate(6000, seed=8, ecg=False, cine=False).phenotypes
    x = ((sim - sim.mean()) / sim.std()).to_numpy() @ rng.normal(size=(10, 16)) + 6 * rng.normal(size=(6000, 16))
    for k in range(40):
        i = rng.permutation(6000)
        fit, val, test = i[:300], i[300:400], i[400:1400]
        probe = _fit_probe(x[fit], sim.iloc[fit], x[val], sim.iloc[val])
        p, y = _predictions(probe, x[test], level), sim.iloc[test]
        inside.append([np.mean((y[n].to_numpy() >= p[f"{n}_low"]) & (y[n].to_numpy() <= p[f"{n}_high"])) for n in sim])
    mean = np.mean(inside)
    assert level - 0.01 < mean < level + 1 / 101 + 0.01


def test_gaps_do_not_shift_the_others():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 3)), pd.DataFrame(rng.normal(size=(80, 2)), columns=["LVEDV", "LVM"])
    holed = y.assign(LVM=y.LVM.where(np.arange(80) % 3 > 0))
    a, b = _fit_probe(x[:50], y[:50], x[50:], y[50:]), _fit_probe(x[:50], holed[:50], x[50:], holed[50:])
    np.testing.assert_allclose(a.weight[:, 0], b.weight[:, 0]); assert _conformal_half_widths(a)[0] == _conformal_half_widths(b)[0]
    assert np.isfinite(b.residuals[:, 1]).sum() == holed.LVM[50:].notna().sum()


def test_a_probe_comes_back_and_predicts(probe, module, files, tmp_path):
    again = load_probe(save_probe(probe, tmp_path / "p.safetensors"), module)
    x = np.random.default_rng(0).normal(size=(5, tiny.width))
    pd.testing.assert_frame_equal(_predictions(again, x, 0.8), _predictions(probe, x, 0.8))
    table = pd.read_parquet(predict_phenotypes([files], module, again, tmp_path / "p.parquet", 0.8, workers=1, own_names=True).path)
    assert list(table)[:3] == ["LVEDV", "LVEDV_low", "LVEDV_high"] and len(table.columns) == 3 * len(PHENOTYPES)
    assert all((table[f"{n}_low"] < table[n]).all() and (table[n] < table[f"{n}_high"]).all() for n in PHENOTYPES)


@pytest.mark.parametrize("out", ["p.csv", "p.parquet"])
def test_what_passes_by_allowance_has_no_interval(out, probe, module, signals, tmp_path):
    (tmp_path / "clipped.xml").write_bytes(strip(FAULTS["clipped"](signals[0], None))); (tmp_path / "good.xml").write_bytes(strip(signals[0]))
    done = predict_phenotypes([tmp_path], module, probe, tmp_path / out, 0.8, workers=1, own_names=True, allow=["clipped", "beatless"])
    table = pd.read_csv(done.path, index_col=0) if out.endswith("csv") else pd.read_parquet(done.path)
    ends = [c for c in table if c.endswith(("_low", "_high"))]
    assert table.loc["clipped", ends].isna().all() and table.loc["clipped", list(PHENOTYPES)].notna().all() and table.loc["good"].notna().all()


def test_a_probe_reads_no_films(module, cohort, probe, tmp_path):
    blind = Path(shutil.copytree(cohort.path, tmp_path / "blind"))
    shutil.rmtree(blind / "cine" / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = probe_cohort(module, Cohort.open(blind))
    np.testing.assert_array_equal(again.weight, probe.weight); np.testing.assert_array_equal(again.residuals, probe.residuals)


def test_a_probe_is_tied_to_its_weights(probe, tmp_path):
    path = save_probe(probe, tmp_path / "p.safetensors")
    torch.manual_seed(1)
    with pytest.raises(PtaclError, match="fitted on another model: give that one"): load_probe(path, ECGFeatures(PTACL(tiny)))


@pytest.mark.parametrize("spoil, why", [
    (lambda f: f.write_bytes(f.read_bytes()[:200]), "is no probe"),
    (lambda f: f.write_bytes(b""), "is no probe"),
    (lambda f: torch.save({"weight": torch.ones(2)}, f), "is no probe"),
    (lambda f: f.unlink(), "is no probe"),
    (lambda f: safetensors.numpy.save_file({"weight": np.ones(2)}, f), "is no probe"),
    (lambda f: safetensors.numpy.save_file({"weight": np.ones(2)}, f, {"ptacl probe": json.dumps({"format": 99})}), "has format 99.*update ptacl"),
])
def test_what_is_no_probe_is_refused(probe, tmp_path, spoil, why):
    path = save_probe(probe, tmp_path / "p.safetensors")
    spoil(path)
    with pytest.raises(PtaclError, match=why): load_probe(path)


# export

@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.pt2"])
def test_exported_encoders_say_the_same_of_real_and_of_any_number(name, module, data_samples, tmp_path):
    assert export_encoder(module, tmp_path / name) < 1e-4
    run = {".onnx": _run_onnx, ".pt2": _run_program}[Path(name).suffix](tmp_path / name)
    ecg = torch.from_numpy(np.stack([screen(f)[0] for f in find_recordings([data_samples])[:5]])).float() * MV
    with torch.no_grad():
        for n in (1, 2, 5): torch.testing.assert_close(run(ecg[:n]), module(ecg[:n]), atol=1e-4, rtol=0)
    assert not left_over(tmp_path)


def test_an_onnx_file_is_one_file_and_says_what_it_takes(model, tmp_path):
    import onnxruntime
    export_encoder(ECGFeatures(model, projected=True), tmp_path / "z.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "z.onnx")
    about, (takes,), (gives,) = session.get_modelmeta().custom_metadata_map, session.get_inputs(), session.get_outputs()
    assert takes.shape == ["batch", 12, SAMPLES] and gives.shape == ["batch", tiny.proj_dim]
    assert "mV" in about["ecg"] and about["preset"] == tiny.name and [f.name for f in tmp_path.iterdir()] == ["z.onnx"]


def test_an_export_that_differs_is_refused(module, tmp_path, monkeypatch):
    monkeypatch.setitem(export._FORMATS, ".pt2", (export._write_program, lambda path: lambda x: module(x) + 1e-3))
    with pytest.raises(PtaclError, match="differs from the model by 1.0e-03"): export_encoder(module, tmp_path / "e.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_export_at_the_papers_size(tmp_path):
    torch.manual_seed(0)
    for name in ("e.onnx", "e.pt2"): assert export_encoder(ECGFeatures(MAE(ECGEncoder(paper_regression))), tmp_path / name) < 1e-4


def test_onnx_without_its_packages_says_what_to_install(module, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(PtaclError, match=r"ONNX needs the package onnxruntime: pip install .ptacl\[export\]"):
        export_encoder(module, tmp_path / "e.onnx")


# sentences

def spoilt(saved, folder, change):
    "A copy of a model with other settings in its config.json."
    copy = Path(shutil.copytree(saved, folder / "model"))
    config = json.loads((copy / "config.json").read_text())
    change(config); (copy / "config.json").write_text(json.dumps(config))
    return copy


def holds_newer(path):
    about = path / "zarr.json"; about.write_text(about.read_text().replace('"format": 1', '"format": 7'))


@pytest.mark.parametrize("change, why", [
    (lambda c: c["preset"].update(width=32), "weights are not those of the preset in its config.json. Put the config.json back"),
    (lambda c: c["preset"].update(cmr_patch=[2, 8, 8]), "weights are not those of the preset"),
    (lambda c: c["preset"].update(beats=3), "update ptacl"),
    (lambda c: c.update(kind="PTACL-2"), "'PTACL-2'.*update ptacl"),
    (lambda c: c["preset"].update(heads=3), "no multiple of heads"),
])
def test_a_preset_that_is_not_the_checkpoints(change, why, saved, tmp_path, data_samples):
    out = shell.invoke(app, ["embed", str(data_samples), "--model", str(spoilt(saved, tmp_path, change)), "--out", str(tmp_path / "e.parquet")])
    assert out.exit_code == 1 and re.search(why, out.output) and "model holds no model" in out.output and not (tmp_path / "e.parquet").exists()


def test_a_run_is_not_its_model(saved):
    out = shell.invoke(app, ["export", "--model", str(saved.parent), "--out", "e.pt2"])
    assert out.exit_code == 1 and f"{saved.parent.name}/model" in out.output and "Give " in out.output


def test_a_model_of_another_z_score(cohort, tmp_path, data_samples):
    by_lead = replace(tiny, normalize="lead", batch_size=4)
    for data in (Stream(cohort, "train", "lead"), Pairs(**cohort.load("train", normalize="lead"))):
        with pytest.raises(PtaclError, match="takes ECGs normalised by record, these have normalize='lead'"):
            fit(PTACL(tiny), joint_loss, data, tiny, 1, 1e-3)
        fit(PTACL(by_lead), joint_loss, data, by_lead, 1, 1e-3, tmp_path / "run")
    out = shell.invoke(app, ["embed", str(data_samples), "--model", str(tmp_path / "run" / "model"), "--out", str(tmp_path / "e.parquet")])
    assert out.exit_code == 1 and "trained on ECGs normalised by lead" in out.output and not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize("shape", [(2, 8, SAMPLES), (2, 12, 2500), (12, SAMPLES)])
def test_other_leads_or_samples(module, shape):
    with pytest.raises(PtaclError, match="twelve leads of ten seconds at 500 Hz"): module(torch.zeros(shape))


def test_missing_leads_in_a_file(run, signals, tmp_path):
    (tmp_path / "x.xml").write_bytes(strip(signals[0][:8], LEADS[:8]))
    done = run([tmp_path / "x.xml"])
    assert done.rows == 0 and "V3, V4, V5, V6 missing" in done.refused.reason[0] and "all 12 leads" in done.refused.remedy[0]


@pytest.mark.parametrize("shape", [(2, 25, 84, 84), (2, 26, 80, 80)])
def test_other_frames(model, shape):
    view = View(ecg=torch.zeros(2, 12, tiny.ecg_crop), start=torch.zeros(2), cine=torch.zeros(shape))
    with pytest.raises(PtaclError, match="this preset takes .* let `centre_view` cut them, or take the preset"): model.features(view)


@pytest.mark.parametrize("other", [MAE(CMREncoder(tiny)), CMREncoder(tiny), Tuned(CMREncoder(tiny), ["LVEF"])])
def test_models_without_an_ecg(other):
    with pytest.raises(PtaclError, match="no encoder of ECG strips"): ECGFeatures(other)


def test_what_other_models_can_do(signals):
    from ptacl.rivals.cmae import CMAE
    with pytest.raises(PtaclError, match="no encoder of ECG strips"): ECGFeatures(CMAE(replace(tiny, decoder_width=16)))
    with pytest.raises(PtaclError, match="no projection"): ECGFeatures(MAE(ECGEncoder(tiny)), projected=True)
    assert ECGFeatures(Tuned(ECGEncoder(tiny), ["LVEF"]))(torch.from_numpy(signals)).shape == (6, tiny.width)


def test_no_such_device(module):
    if torch.cuda.is_available(): pytest.skip("there is a GPU here")
    for device in ("cuda", "warp"):
        with pytest.raises(PtaclError, match=f"no {device} that torch|device {device} was asked for"): on_device(module, device)


def test_a_model_that_went_astray(run, files):
    module = ECGFeatures(PTACL(tiny))
    with torch.no_grad(): module.encoder.norm.weight.fill_(torch.nan)
    with pytest.raises(PtaclError, match="not finite: its training went astray"): features(module, np.zeros((1, 12, SAMPLES), np.int16))


def test_cohorts_that_give_no_probe(saved, cohort, tmp_path):
    def attempt(path, *more):
        out = shell.invoke(app, ["probe", "--model", str(saved), "--cohort", str(path), "--out", str(tmp_path / "p.safetensors"), *more])
        assert out.exit_code == 1 and "Traceback" not in out.output and not (tmp_path / "p.safetensors").exists()
        return out.output
    newer = Path(shutil.copytree(cohort.path, tmp_path / "newer")); holds_newer(newer)
    assert "newer has format 7, this kit reads up to 1: update ptacl" in attempt(newer)
    gone = Cohort.open(shutil.copytree(cohort.path, tmp_path / "gone"), write=True)
    table = {k: v.copy() for k, v in gone._table.items()}; table["phenotypes"][:, list(PHENOTYPES).index("LVM")] = np.nan
    gone.commit(table)
    assert "no patient of train has LVM: complete the table and ingest again" in attempt(gone.path)
    assert "unknown phenotype LVW: choose from LVEDV" in attempt(cohort.path, "--phenotypes", "LVEF,LVW")
    nobody = Cohort.open(shutil.copytree(cohort.path, tmp_path / "nobody"), write=True)
    nobody.set_splits({"train": 1.0}, keep=False)
    assert "0 good recordings in the split val" in attempt(nobody.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = str(tmp_path / "p.safetensors")
        fitted = shell.invoke(app, ["probe", "--model", str(saved), "--cohort", str(gone.path), "--out", out, "--phenotypes", "LVEF"])
    assert fitted.exit_code == 0 and load_probe(tmp_path / "p.safetensors").names == ["LVEF"]


@pytest.mark.parametrize("asked, options, names", [
    (["--cohort", "c"], ["--labels", "none.csv", "--targets", "foo", "--task", "all", "--seed", "0", "--workers", "1", "--allow", "flat"], 6),
    (["--labels", "l.csv"], ["--phenotypes", "LVM", "--task", "all"], 2), (["ptbxl"], ["--phenotypes", "LVM", "--targets", "foo"], 2)])
def test_options_that_a_probe_does_not_look_at_are_refused(asked, options, names, tmp_path):
    pairs = list(zip(options[::2], options[1::2]))
    assert len(pairs) == names
    for pair in pairs:
        out = shell.invoke(app, ["probe", *asked, *pair, "--model", "m", "--out", str(tmp_path / "p.csv")])
        assert out.exit_code == 1 and f"{pair[0]} has no meaning beside {asked[0] if asked[0] != 'ptbxl' else 'PTB-XL'}" in out.output
    folder = shell.invoke(app, ["probe", "ecgs", "--cohort", "c", "--model", "m", "--out", "p.safetensors"])
    assert folder.exit_code == 1 and "a folder of recordings has no meaning beside --cohort" in folder.output


@pytest.mark.parametrize("command", [["embed", "x.xml", "--model", "m", "--out", "x.csv"], ["ingest", "raw", "out"],
                                     ["predict", "x.xml", "--model", "m", "--probe", "p", "--out", "x.csv"]])
def test_workers_of_a_cluster_are_its_own(command):
    out = shell.invoke(app, [*command, "--cluster", "tcp://127.0.0.1:1", "--workers", "2"])
    assert out.exit_code == 1 and "--workers has no meaning beside --cluster" in out.output


def test_urls_reach_a_probe_and_ingest_whole(saved, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = shell.invoke(app, ["probe", "--model", str(saved), "--cohort", "memory://none/here", "--out", "p.safetensors"])
    assert out.exit_code == 1 and "memory://none/here" in out.output
    into = shell.invoke(app, ["ingest", str(tmp_path), "s3://bucket/cohort"])
    assert into.exit_code == 1 and "ingest writes to a folder" in into.output and not list(tmp_path.iterdir())


def test_the_shell_from_end_to_end(saved, cohort, files, tmp_path):
    p, out = str(tmp_path / "p.safetensors"), str(tmp_path / "pred.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert shell.invoke(app, ["probe", "--model", str(saved), "--cohort", str(cohort.path), "--out", p]).exit_code == 0
    command = ["predict", str(files), "--model", str(saved), "--probe", p, "--out", out, "--workers", "1"]
    done = shell.invoke(app, [*command, "--level", "0.8", "--own-names"])
    assert done.exit_code == 0 and "4 recordings; 0 refused" in done.output and len(pd.read_csv(out)) == 4
    few = shell.invoke(app, [*command, "--level", "0.99", "--force"])
    assert few.exit_code == 1 and "99 are needed" in few.output
    for wrong, why in ((["--allow", "hum"], "hum cannot be allowed: choose from flat"), (["--out", "x.xlsx"], "ends in .parquet or .csv"),
                       (["--out", str(tmp_path / "none" / "x.csv")], "none/x.csv: make it first"), (["--level", "1.5"], "between 0 and 1")):
        bad = shell.invoke(app, ["predict", str(files), "--model", str(saved), "--probe", p, "--out", out, "--workers", "1", "--force", *wrong])
        assert bad.exit_code == 1 and why in bad.output


def test_a_gpu_that_was_asked_for_and_is_not_there(module, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(PtaclError, match="asks for a GPU"): embedding.on_device(module)
    assert embedding.on_device(module, "cpu") is module


@pytest.mark.parametrize("command", [["embed", "x.xml", "--model", "m"], ["predict", "x.xml", "--model", "m", "--probe", "p"],
                                     ["probe", "--labels", "l.csv", "--model", "m"]])
@pytest.mark.parametrize("name", ["e.csv", "e.parquet"])
def test_a_list_of_refused_is_replaced_only_with_force(command, name, tmp_path, monkeypatch):
    "Also where it belongs to a table of the same name with another suffix; nothing is read before."
    if command[0] == "probe" and name != "e.csv": return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.refused.csv").write_text("mine")
    (tmp_path / "l.csv").write_text("file,split,x\na.xml,train,1\nb.xml,test,0\n")
    done = shell.invoke(app, [*command, "--out", str(tmp_path / name)])
    assert done.exit_code == 1 and "e.refused.csv: exists already" in done.output
    assert (tmp_path / "e.refused.csv").read_text() == "mine" and not (tmp_path / name).exists()


def test_what_an_earlier_run_has_written_is_no_recording(module, data_samples, tmp_path):
    raw = tmp_path / "s2"
    (raw / "ecg").mkdir(parents=True)
    for file in find_recordings([data_samples])[:2]: shutil.copy(file, raw / "ecg")
    (raw / "ecg" / "bad.xml").write_text("<x>")
    options = dict(workers=1, own_names=True, names=raw / "ecg" / "names.csv")
    first = embed([raw], module, raw / "ecg" / "out.csv", **options)
    table = (raw / "ecg" / "out.csv").read_text()
    for again in (raw, raw / "ecg" / ".." / "ecg"):
        second = embed([again], module, raw / "ecg" / "out.csv", **options)
        assert (first.rows, len(first.refused)) == (second.rows, len(second.refused)) == (2, 1)
        assert (raw / "ecg" / "out.csv").read_text() == table
    probe = Probe(["LVEF"], np.zeros((tiny.width, 1)), np.zeros(1), np.zeros((99, 1)), {})
    assert predict_phenotypes([raw], module, probe, raw / "ecg" / "out.csv", **options).rows == 2


def test_a_recording_is_not_written_over(module, tmp_path):
    ecg = tmp_path / "a.csv"
    for name in ("a.csv", "a.refused.csv"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(PtaclError, match=f"{name}: is to be written, and is given as a recording, too"): embed([tmp_path / name], module, ecg)
        assert (tmp_path / name).read_text() == "mine"
    with pytest.raises(PtaclError, match="is to hold the names, and the table or the refused"): embed(["x.xml"], module, ecg, names=ecg)


def test_a_list_of_names_is_replaced_only_with_force(tmp_path):
    "Which row is whose is not overwritten unasked, and nothing is written before."
    from typer.testing import CliRunner
    from ptacl.app.cli import app
    (tmp_path / "names.csv").write_text("mine")
    done = CliRunner().invoke(app, ["embed", "x.xml", "--model", "m", "--out", str(tmp_path / "e.csv"), "--names", str(tmp_path / "names.csv")])
    assert done.exit_code == 1 and "names.csv: exists already" in done.output
    assert (tmp_path / "names.csv").read_text() == "mine" and not (tmp_path / "e.csv").exists()
