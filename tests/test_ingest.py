"""Ingest: killed at any moment, on a cluster, with broken files, and without any id in what comes out."""
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import time
from pathlib import Path
from threading import RLock
from types import SimpleNamespace

import dask
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from distributed import Client, KilledWorker, LocalCluster
from makers import acdc, eli, record, voltages
from tqdm import tqdm
from typer.testing import CliRunner

from ptacl import __version__
from ptacl.app.cli import app
from ptacl.data import ingest as ingest_module, prepare, pseudonyms, sources
from ptacl.signal.beats import detect_r_peaks
from ptacl.signal.cmr import preprocess as preprocess_cine
from ptacl.data.cohort import Cohort
from ptacl.data.store import MV, SHARD
from ptacl.signal.ecg import preprocess_ecg
from ptacl.core.errors import PtaclError
from ptacl.data.ingest import ingest
from ptacl.data.prepare import prepare_ecg
from ptacl.data.pseudonyms import pseudonym, read_key
from ptacl.data.sources import find_patients, table_values
from ptacl.inference.screening import find_recordings
from ptacl.simulate.cohorts import write_virtual
from ptacl.core.presets import LEADS, PHENOTYPES
from ptacl.data.recordings import ECG
from ptacl.simulate.patients import simulate
from ptacl.simulate.writers import write_patients

N = 8
IDS = [str(10**6 + 7919 * k) for k in range(1, N + 1)]  # look like participants


@pytest.fixture(scope="module")
def virtual():
    return simulate(N, seed=5, frames=6, size=88)


@pytest.fixture(scope="module")
def folder(virtual, tmp_path_factory):
    "Raw files under ids that look real; tests that change something take a copy."
    path, names = tmp_path_factory.mktemp("raw") / "raw", virtual.phenotypes.index
    virtual.phenotypes.index = virtual.covariates.index = IDS
    write_patients(virtual, path, "nifti")
    virtual.phenotypes.index = virtual.covariates.index = names
    return path


@pytest.fixture
def raw(folder, tmp_path): return Path(shutil.copytree(folder, tmp_path / "raw"))


@pytest.fixture
def take(tmp_path):
    "`ingest` in this process, with a key of this test."
    def run(raw, out="cohort", **more):
        return ingest(raw, tmp_path / out, **{"frames": 6, "workers": 1, "key": tmp_path / "keys" / "k.key"} | more)
    return run


def files(path): return {str(f.relative_to(path)): f.read_bytes() for f in sorted(Path(path).rglob("*")) if f.is_file()}


def source(raw, k): return next(s for s in find_patients(raw) if s.id == IDS[k])


# what comes out

def test_what_training_gets(raw, virtual, take, tmp_path):
    done = take(raw)
    cohort, key = Cohort.open(done.path), read_key(tmp_path / "keys" / "k.key", done.path)
    assert (done.patients, done.new, len(done.quarantine), len(cohort.verify())) == (N, N, 0, 0)
    rows = [list(cohort.table.index).index(pseudonym(i, key)) for i in IDS]
    assert sorted(cohort.table.index) == list(cohort.table.index)
    batch = cohort[rows]
    for k in range(N):
        clean = preprocess_ecg(virtual.ecg[k].numpy(), 500, stats=(0, 1))
        assert np.abs(cohort[rows[k]].ecg.signal - clean).max() < 0.01
        peaks = detect_r_peaks(clean, 500)
        np.testing.assert_allclose(cohort[rows[k]].ecg.r_peaks, peaks, atol=0.011)
        film = preprocess_cine(virtual.cine[k].numpy(), 1.8, frames=6)
        assert np.abs(batch["cine"][k].numpy() / 255 - film).max() < 0.01
    np.testing.assert_allclose(cohort.phenotypes.iloc[rows], virtual.phenotypes[list(PHENOTYPES)], rtol=1e-5)
    assert list(cohort.covariates.sex.iloc[rows]) == list(virtual.covariates.sex)
    told = json.loads(cohort.table.provenance.iloc[0])
    assert told["ecg"]["format"] == "CardiologyXML" and told["cine"]["format"] == "NIfTI" and told["kit"] == __version__
    assert len(told["checksum"]) == 32 and set(cohort.table.split) <= {"train", "val", "test"}


def test_no_id_anywhere(raw, take, tmp_path, capfd):
    source(raw, 0).ecg[0].write_bytes(b"<x>"); source(raw, 1).ecg[0].unlink()
    shutil.copy(source(raw, 2).cine[0], source(raw, 2).cine[0].with_name("seg_sa.nii.gz"))
    table = pd.read_csv(raw / "phenotypes.csv", dtype=str); table[:-1].to_csv(raw / "phenotypes.csv", index=False)
    done = take(raw)
    said = repr(done) + done.quarantine.to_csv() + "".join(capfd.readouterr())
    inside = b"".join(name.encode() + content for name, content in files(done.path).items())
    assert len(done.quarantine) == 4 and not [i for i in IDS if i in said or i.encode() in inside]
    names = " ".join(str(f) for f in tmp_path.rglob("*") if raw not in f.parents)
    assert not re.search(r"\d{7}", names) and all(re.fullmatch(r"p-[b-z]{12}", p) for p in Cohort.open(done.path).table.index)


def test_ids_of_another_form_are_hidden_too(raw, take):
    path = source(raw, 0).ecg[0]; path.rename(path.with_name("smith-john_20205_2_0.xml")).write_bytes(b"")
    (raw / "cmr" / IDS[0]).rename(raw / "cmr" / "smith-john")
    table = (raw / "phenotypes.csv").read_text().replace(IDS[0], "smith-john"); (raw / "phenotypes.csv").write_text(table)
    done = take(raw)
    assert done.quarantine["what"].tolist() == ["ECG"] and "smith" not in repr(done) + done.quarantine.to_csv() + str(files(done.path))


def test_names_inside_files_go_into_no_message(raw, take):
    name = "DOE_JOHN"
    def instead(k, text=None, suffix=".hea"):
        source(raw, k).ecg[0].unlink()
        file = raw / "ecg" / f"{IDS[k]}{suffix}"
        if text: file.write_text(text)
        return file
    (raw / "ecg").mkdir(exist_ok=True)
    lines = [f"{name}.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS]
    instead(0, "\n".join(["x 12 500 5000", *lines]))                                               # a signal file that is missing,
    (raw / "ecg" / f"{name}_1.dat").write_bytes(bytes(100))
    instead(1, "\n".join(["x 12 500 5000", *(line.replace(name, f"{name}_1") for line in lines)]))  # and one that is cut short
    instead(2, f"x/1 12 500 5000\n{name}_2 5000\n")
    instead(3); record(raw / "ecg", [f"{name}{k}" for k in range(12)], voltages(5000), name=IDS[3])
    instead(4); record(raw / "ecg", LEADS, voltages(5000), name, name=IDS[4])
    instead(5); (raw / "ecg" / f"{IDS[5]}.xml").write_bytes(eli(voltages(5000)).replace(b'FREQ="500"', b'FREQ="DOE_JOHN"'))
    (raw / "cmr" / IDS[6] / "sa.nii.gz").unlink()
    acdc(raw / "cmr" / IDS[6], np.random.default_rng(0).normal(size=(6, 3, 88, 88)), np.full((6, 3, 88, 88), 9, np.uint8), name=name)
    done = take(raw)
    said = repr(done) + done.quarantine.to_csv()
    assert (done.patients, len(done.quarantine)) == (1, 7) and "DOE" not in said and "DOE" not in str(files(done.path))
    for why in ("signal file 1 of its header is missing", "its first signal file has room for 4", "segment 1 of its header is missing",
                "by the names of all 12", "unknown unit of voltage: expected", "Mortara ELI XML", "segmentation of frame 1: labels other"):
        assert why in said


def test_the_order_of_the_store_says_nothing_of_the_ids(raw, take, tmp_path):
    key = read_key(tmp_path / "keys" / "k.key", tmp_path / "cohort")
    assert take(raw).patients == N
    assert sorted(IDS, key=lambda i: pseudonym(i, key)) != IDS


# quarantine and repair

def test_one_broken_file_never_stops_the_others(raw, take):
    harm = [lambda s: s.ecg[0].unlink(), lambda s: s.ecg[0].write_bytes(b""), lambda s: s.cine[0].write_bytes(s.cine[0].read_bytes()[:900]),
            lambda s: shutil.rmtree(s.cine[0].parent), lambda s: shutil.copy(s.ecg[0], raw / s.ecg[0].name),
            lambda s: nib.save(nib.Nifti1Image(np.ones((90, 90, 1, 6), np.uint8), np.eye(4)), s.cine[0])]
    for k, break_ in enumerate(harm): break_(source(raw, k))
    done = take(raw)
    reasons = " | ".join(f"{r.what}: {r.reason}" for r in done.quarantine.itertuples())
    for why in ("no ecg file", "the file is empty", "cannot be read as a cine", "no cine file", "2 ecg files", "constant"): assert why in reasons
    assert (done.patients, len(done.quarantine)) == (2, 6) and done.quarantine.remedy.str.len().min() > 10
    kept = Cohort.open(done.path).quarantine
    pd.testing.assert_frame_equal(kept[["patient", "what", "reason", "remedy"]], done.quarantine)
    assert "1  ECG: the file is empty" in repr(done)


def test_odd_headers_and_faults_in_the_plan_stop_nobody(raw, take, monkeypatch, tmp_path):
    monkeypatch.setenv("PTACL_LOG", str(tmp_path / "ptacl.log"))
    (raw / "ecg").mkdir(exist_ok=True)
    for k, first in enumerate(("x ² 500 5000", f"x {'9' * 5000} 500 5000", "x 12 500 ²", f"x/{'9' * 5000} 12 500 5000")):
        source(raw, k).ecg[0].unlink()
        (raw / "ecg" / f"{IDS[k]}.hea").write_text(f"{first}\na 5000\n")
    real = prepare._parts_of
    def parts_of(path):
        if IDS[4] in path.name: raise RuntimeError("odd")
        return real(path)
    monkeypatch.setattr(prepare, "_parts_of", parts_of)
    done = take(raw)
    assert done.patients == N - 5 and sorted(done.quarantine.reason) == [
        "its header has 1 lines of signals, and its first line says 12", "the length in the header's first line is no number of samples",
        *["the number of signals in the header's first line is no number"] * 2, "unexpected RuntimeError"]


def test_all_broken(raw, take):
    for s in find_patients(raw): s.ecg[0].write_bytes(b"")
    done = take(raw)
    assert done.patients == 0 and f"{N}  ECG: the file is empty" in repr(done)
    with pytest.raises(PtaclError, match="without patients"): Cohort.open(done.path)


def test_all_broken_are_listed_with_their_names(raw, tmp_path, monkeypatch):
    "The command writes why, and who: with nobody in the cohort these are all there is."
    monkeypatch.setenv("PTACL_LOG", str(tmp_path / "log"))
    for s in find_patients(raw): s.ecg[0].write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("q.csv", "n.csv", "k.key")]
    command = ["ingest", raw, tmp_path / "cohort", "--frames", 6, "--workers", 1, "--quarantine", paths[0], "--names", paths[1], "--key", paths[2]]
    done = CliRunner().invoke(app, [*map(str, command)])
    assert done.exit_code == 0 and "0 patients" in done.output, done.output
    bad, names = pd.read_csv(paths[0], dtype=str), pd.read_csv(paths[1], dtype=str)
    assert set(bad.reason) == {"the file is empty"} and set(bad.patient) == set(names.patient) and set(names.id) == set(IDS)
    again = CliRunner().invoke(app, [*map(str, command), "--force", "--names", str(tmp_path / "cohort" / "n.csv")])
    assert again.exit_code == 1 and "inside the store" in again.output and "0 patients" in again.output


def test_only_the_repaired_are_read_again(raw, take, monkeypatch):
    whole = [source(raw, k).ecg[0].read_bytes() for k in (1, 4)]
    for k in (1, 4): source(raw, k).ecg[0].write_bytes(b"")
    first = take(raw)
    before = Cohort.open(first.path); table = before.table
    read = []
    real = prepare.prepare
    monkeypatch.setattr(ingest_module, "prepare", lambda visit, frames: read.append(visit.source.id) or real(visit, frames))
    source(raw, 4).ecg[0].write_bytes(whole[1])
    second = take(raw)
    assert read == [IDS[4]] and (second.patients, second.new, len(second.quarantine)) == (7, 1, 1)
    source(raw, 1).ecg[0].write_bytes(whole[0])
    third = take(raw)
    assert read == [IDS[4], IDS[1]] and (third.patients, len(third.quarantine)) == (8, 0)
    after = Cohort.open(third.path)
    pd.testing.assert_frame_equal(after.table[:6], table)  # nobody else moved, in place or in split
    assert take(raw).new == 0 and read == [IDS[4], IDS[1]] and len(after.verify()) == 0


def test_changed_files_and_numbers_replace_what_was_there(raw, take, tmp_path):
    first = take(raw); old = Cohort.open(first.path)
    name = pseudonym(IDS[2], read_key(tmp_path / "keys" / "k.key", first.path))
    shutil.copy(source(raw, 3).ecg[0], source(raw, 2).ecg[0])
    table = pd.read_csv(raw / "phenotypes.csv"); table.loc[table.eid == int(IDS[5]), "24100-2.0"] = 111.0
    table.to_csv(raw / "phenotypes.csv", index=False)
    second = take(raw); new = Cohort.open(second.path)
    assert (second.patients, second.new) == (N, 2) and list(new.table.index) == list(old.table.index)
    row = list(new.table.index).index(name)
    other = list(new.table.index).index(pseudonym(IDS[3], read_key(tmp_path / "keys" / "k.key", first.path)))
    assert torch.equal(new[[row]]["ecg"], new[[other]]["ecg"])
    assert (new.phenotypes.LVEDV == 111).sum() == 1 and new.table.split.equals(old.table.split) and len(new.verify()) == 0


def test_quarantined_are_tried_again_by_a_newer_kit(raw, take, monkeypatch):
    source(raw, 0).ecg[0].write_bytes(b"")
    take(raw); tried = []
    real = prepare.prepare
    monkeypatch.setattr(ingest_module, "prepare", lambda visit, frames: tried.append(visit.source.id) or real(visit, frames))
    take(raw); assert tried == []
    monkeypatch.setattr(ingest_module, "KIT_VERSION", "99.0")
    take(raw); assert tried == [IDS[0]]


def test_a_fault_of_the_kit_costs_one_patient(raw, take, monkeypatch, tmp_path):
    monkeypatch.setenv("PTACL_LOG", str(log := tmp_path / "ptacl.log"))
    real = prepare.read_ecg
    def read(path):
        if IDS[3] in path.name: raise RuntimeError(f"{path} is odd")
        return real(path)
    monkeypatch.setattr(prepare, "read_ecg", read)
    done = take(raw)
    assert done.patients == N - 1 and done.quarantine.reason.tolist() == ["unexpected RuntimeError"] and "report" in done.quarantine.remedy[0]
    assert str(log).removeprefix(str(Path.home())) in done.quarantine.remedy[0]
    assert "RuntimeError: " in log.read_text() and not any(i in log.read_text() for i in IDS)


def killing(worst):
    "What workers do, but that the files of one patient end them; sent to them as it stands here."
    def work(visit, staging, frames):
        from ptacl.data.ingest import _work
        if visit.source.id == worst: os.kill(os.getpid(), signal.SIGKILL)
        return _work(visit, staging, frames)
    work.__module__ = "ptacl.data.ingest"  # which workers load first
    return work


STOPPED = ["its reader was stopped, perhaps for lack of memory"]


def test_files_that_end_their_reader_cost_one_patient(raw, take, monkeypatch):
    "In one run; in the next one this patient alone is read, and not by the process that has to go on."
    with monkeypatch.context() as m:
        m.setattr(ingest_module, "_work", killing(IDS[3]))
        done = take(raw, workers=2)
        assert (done.patients, done.new, done.quarantine.reason.tolist()) == (N - 1, N - 1, STOPPED)
        assert "more memory" in done.quarantine.remedy[0] and len(Cohort.open(done.path).verify()) == 0
        done = take(raw, workers=2)
        assert (done.patients, done.new, done.quarantine.reason.tolist()) == (N - 1, 0, STOPPED)
    done = take(raw, workers=2)  # where there is memory, though no file has changed
    assert (done.patients, done.new, len(done.quarantine)) == (N, 1, 0)


def test_a_cluster_that_gives_up_costs_one_patient(raw, take, monkeypatch):
    "As Dask says it where one worker after the other has died; a worker is a thread here."
    def work(visit, staging, frames):
        if visit.source.id == IDS[3]: raise KilledWorker("work", SimpleNamespace(address="a"), 3)
        return real(visit, staging, frames)
    real = ingest_module._work
    monkeypatch.setattr(ingest_module, "_work", work)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        done = take(raw, cluster=client)
    assert (done.patients, done.quarantine.reason.tolist()) == (N - 1, STOPPED)


# killed

def run(raw, out, key, stop_at=None, withdrawn=()):
    "An ingest in a process of its own; with `stop_at` it kills itself at that write into the store."
    if stop_at is not None:
        real, count = zarr.storage.LocalStore.set, [0]
        async def set_(self, *args, **more):
            count[0] += 1
            if count[0] == stop_at: os.kill(os.getpid(), signal.SIGKILL)
            return await real(self, *args, **more)
        zarr.storage.LocalStore.set = set_
    torch.set_num_threads(1)
    ingest(raw, out, frames=6, workers=1, key=key, withdrawn=withdrawn)


def with_own_lock(*args):
    "A run with a lock of its own for progress bars: tqdm's is shared by forked processes, and who is killed while holding it stops all others."
    tqdm.set_lock(RLock())
    run(*args)


def start(*args):
    process = multiprocessing.get_context("fork").Process(target=with_own_lock, args=args)
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    "The store of a run that nobody disturbed, its key, and how long it took."
    tmp = tmp_path_factory.mktemp("whole")
    begun = time.perf_counter()
    process = start(folder, tmp / "cohort", tmp / "k.key"); process.join()
    assert process.exitcode == 0
    return files(tmp / "cohort"), tmp / "k.key", time.perf_counter() - begun


def kill_and_resume(folder, whole, out, kills, seed):
    "Kill so many times at random moments; who is done once is never read again; the end is as if nothing had happened."
    expected, key, seconds = whole
    rng, staging, seen = np.random.default_rng(seed), Path(f"{out}.ingest"), {}
    while kills:
        process = start(folder, out, key); process.join(rng.uniform(0.02, 0.5) * seconds)
        if process.is_alive(): os.kill(process.pid, signal.SIGKILL); kills -= 1
        process.join()
        if process.exitcode == 0:  # it came through: begin anew
            assert files(out) == expected
            shutil.rmtree(out); seen = {}; continue
        now = {f.name: f.stat().st_mtime_ns for f in staging.glob("p-*.npz")} if staging.exists() else {}
        if not out.exists() or json.loads((out / "zarr.json").read_text())["attributes"]["patients"] == 0:
            assert all(now.get(name) == written for name, written in seen.items())
            seen |= now
    process = start(folder, out, key); process.join()
    assert process.exitcode == 0 and files(out) == expected and not staging.exists()


def test_killed_at_ten_random_moments(folder, whole, tmp_path):
    kill_and_resume(folder, whole, tmp_path / "cohort", 10, seed=0)


@pytest.mark.long
def test_killed_at_a_hundred_random_moments(folder, whole, tmp_path):
    kill_and_resume(folder, whole, tmp_path / "cohort", 100, seed=1)


def kill_at_write(folder, whole, out, write):
    expected, key, _ = whole
    process = start(folder, out, key, write); process.join()
    again = start(folder, out, key); again.join()
    assert again.exitcode == 0 and files(out) == expected and not Path(f"{out}.ingest").exists()
    return process.exitcode == -signal.SIGKILL


def test_killed_while_packing(folder, whole, tmp_path):
    assert all(kill_at_write(folder, whole, tmp_path / f"at{k}", k) for k in (2, 7, 20))


@pytest.mark.long
def test_killed_at_every_write_into_the_store(folder, whole, tmp_path):
    k = 1
    while kill_at_write(folder, whole, tmp_path / f"at{k}", k): k += 1
    assert k > 25


def test_half_a_part_is_made_again(raw, take, tmp_path, whole):
    out = tmp_path / "cohort"
    process = start(raw, out, tmp_path / "keys" / "k.key", 5); process.join()
    parts = sorted(Path(f"{out}.ingest").glob("p-*.npz")); assert len(parts) == N
    parts[0].write_bytes(parts[0].read_bytes()[:5000]); parts[1].write_bytes(b""); (parts[2].parent / ".99.p-x").write_bytes(b"half")
    assert take(raw).patients == N and len(Cohort.open(out).verify()) == 0


def replaced(folder, to):
    "The folder with other recordings of two patients: their cines swapped."
    shutil.copytree(folder, to, copy_function=os.link)
    a, b = (source(to, k).cine[0] for k in (1, 4)); swap = a.with_name("x"); a.rename(swap); b.rename(a); swap.rename(b)
    return to


def kill_at_change(folder, out, key, write, before, after, withdrawn=()):
    "Kill a second run at a write; what can be read then is old or new, and a third run makes it new."
    process = start(folder, out, key, write, withdrawn); process.join()
    try: refused = False; assert Cohort.open(out).table.index.size in (len(before), len(after)) and len(Cohort.open(out).verify()) == 0
    except PtaclError as e: refused = True; assert "was interrupted" in str(e) and "store" in set(Cohort.open(out, write=True).verify()["where"])
    again = start(folder, out, key, None, withdrawn); again.join()
    assert again.exitcode == 0 and not Path(f"{out}.ingest").exists()
    cohort = Cohort.open(out); assert len(cohort.verify()) == 0 and content(cohort) == after
    return process.exitcode == -signal.SIGKILL, refused


def content(cohort): return {p.id: (p.cine.frames.tobytes(), p.ecg.signal.tobytes()) for p in (cohort[i] for i in range(len(cohort)))}


@pytest.mark.parametrize("what", ["replace", "remove"])
def test_killed_while_changing(folder, whole, tmp_path, what):
    key, first = whole[1], tmp_path / "first"
    other, withdrawn = (replaced(folder, tmp_path / "raw"), ()) if what == "replace" else (folder, (IDS[1], IDS[4]))
    start(folder, first, key).join(); before = content(Cohort.open(first))
    shutil.copytree(first, tmp_path / "new"); start(other, tmp_path / "new", key, None, withdrawn).join()
    after = content(Cohort.open(tmp_path / "new"))
    assert before != after and len(after) == (N if what == "replace" else N - 2)
    seen = set()
    for write in (1, 2, 4, 6, 30):
        shutil.copytree(first, tmp_path / str(write))
        seen.add(kill_at_change(other, tmp_path / str(write), key, write, before, after, withdrawn))
    assert (True, True) in seen


# workers

@pytest.mark.long
def test_workers_give_the_same_bytes(folder, whole, tmp_path):
    ingest(folder, tmp_path / "cohort", frames=6, workers=2, key=whole[1])
    assert files(tmp_path / "cohort") == whole[0]


def test_a_real_dask_cluster_gives_the_same_bytes(folder, whole, tmp_path):
    "Two worker processes; forked, so that they need not load everything anew."
    with dask.config.set({"distributed.worker.multiprocessing-method": "fork"}), LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path / "dask") as cluster:
        pids = {w.pid for w in cluster.workers.values()}
        done = ingest(folder, tmp_path / "cohort", frames=6, cluster=cluster.scheduler_address, key=whole[1])
        computed = [str(t[0]) for t in cluster.scheduler.transition_log if t[2] == "memory"]
    assert sum("work" in key for key in computed) >= 2  # it was the cluster that did it, not this machine beside it
    assert len(pids) == 2 and os.getpid() not in pids
    assert done.patients == N and files(tmp_path / "cohort") == whole[0]


def test_no_cluster_there(raw, take):
    soon = dask.config.set({"distributed.comm.timeouts.connect": "0.3s"})
    with soon, pytest.raises(PtaclError, match="no Dask scheduler answers at tcp://127.0.0.1:9"): take(raw, cluster="tcp://127.0.0.1:9")


def measure_pack(out, n, queue):
    "Peak memory of packing n parts that are the same file."
    staging = Path(f"{out}.ingest")
    cohort = ingest_module._open_or_create(Path(out), staging, 50)
    rng = np.random.default_rng(0)
    ecg, cine = rng.integers(-99, 99, (12, 5000)).astype(np.int16), rng.integers(0, 255, (50, 84, 84), dtype=np.uint8)
    class Part(dict):  # pseudonym -> file, made when it is asked for
        def __getitem__(self, name):
            np.savez(staging / "one.npz", row=np.array(json.dumps({"id": name, "participant": name})), ecg=ecg, cine=cine)
            return staging / "one.npz"
    ingest_module._pack(cohort, Part.fromkeys([f"p-{k:04d}" for k in range(n)]), cohort.quarantine, None, 0)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def test_memory_does_not_grow_with_the_cohort(tmp_path):
    peaks = []
    fresh = multiprocessing.get_context("spawn")  # a fork begins with all that other tests have left in memory
    for n in (SHARD, 5 * SHARD):
        queue = fresh.Queue()
        process = fresh.Process(target=measure_pack, args=(tmp_path / str(n), n, queue))
        process.start(); peaks.append(queue.get(timeout=180)); process.join()
    assert peaks[1] - peaks[0] < 60  # MB; the recordings are 121 MB more


# what is found

def test_uk_biobank_bulk_with_a_repeat_visit(raw, take, tmp_path):
    bulk = tmp_path / "bulk"
    for k, (visit, ecg, cine) in enumerate([(2, 0, 0), (3, 1, 1), (2, 2, 2)]):
        i = IDS[0] if k < 2 else IDS[2]
        (bulk / f"20205/{i[:2]}").mkdir(parents=True, exist_ok=True); (bulk / "20209").mkdir(exist_ok=True)
        shutil.copy(source(raw, ecg).ecg[0], bulk / f"20205/{i[:2]}/{i}_20205_{visit}_0.xml")
        shutil.copytree(source(raw, cine).cine[0].parent, bulk / f"20209/{i}_20209_{visit}_0")
    found = find_patients(bulk)
    assert [(s.id, s.visit, len(s.ecg), len(s.cine)) for s in found] == [(IDS[0], 2, 1, 1), (IDS[0], 3, 1, 1), (IDS[2], 2, 1, 1)]
    table = pd.read_csv(raw / "phenotypes.csv")
    table = table.join(table.filter(regex=r"-2\.0").add(1).rename(columns=lambda c: c.replace("-2.", "-3.")))
    table.to_csv(bulk / "phenotypes.csv", index=False)
    visits = ingest_module._plan(bulk, None, tmp_path / "k.key", tmp_path / "out").visits
    assert len({t.participant for t in visits}) == 2 and sorted(t.name.removeprefix(t.participant) for t in visits) == ["", "", "-3"]
    again = next(t for t in visits if t.source.visit == 3)
    first = next(t for t in visits if t.name == again.participant)
    np.testing.assert_allclose(np.array(again.values["phenotypes"]) - first.values["phenotypes"], 1)
    assert again.values["sex"] == first.values["sex"] in "FM"


def test_a_repeat_visit_lies_in_the_split_of_its_person(raw, take, monkeypatch):
    table = pd.read_csv(raw / "phenotypes.csv")
    table.join(table.filter(regex=r"-2\.0").rename(columns=lambda c: c.replace("-2.", "-3."))).to_csv(raw / "phenotypes.csv", index=False)
    found = find_patients(raw)
    twice = found + [sources.Source(s.id, 3, s.ecg, s.cine) for s in found]
    monkeypatch.setattr(ingest_module, "find_patients", lambda folder: twice)
    done = take(raw)
    kept = Cohort.open(done.path).table
    assert len(kept) == 2 * N and kept.participant.nunique() == N and kept.groupby("participant").split.nunique().max() == 1
    assert kept.split.nunique() > 1
    table.to_csv(raw / "phenotypes.csv", index=False)  # without the columns of visit 3
    assert take(raw, "other").quarantine.reason.tolist() == ["no columns of visit 3 in the table"] * N


@pytest.mark.parametrize("style", ["{f}-{i}.0", "f.{f}.{i}.0", "p{f}_i{i}"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_visits_of_a_table(tmp_path, style, kind):
    row = {"eid": "a", style.format(f=31, i=0): "0"} | {style.format(f=24100 + k, i=v): str(k + 10 * v) for k in range(10) for v in (2, 3)}
    path = tmp_path / f"t.{kind}"
    if kind == "csv": pd.DataFrame([row]).to_csv(path, index=False)
    else: pd.DataFrame([row]).to_parquet(path)
    values, listed = table_values(path, {("a", 2), ("a", 3)})
    assert listed == {"a"} and table_values(path, {("b", 2)}) == ({}, {"a"})
    assert [values["a", v]["phenotypes"] for v in (2, 3)] == [list(range(20, 30)), list(range(30, 40))]
    assert {values["a", v]["sex"] for v in (2, 3)} == {"F"}


def test_withdrawn_participants_are_not_taken(raw, take):
    table = pd.read_csv(raw / "phenotypes.csv", dtype=str); table[2:].to_csv(raw / "phenotypes.csv", index=False)
    done = take(raw)
    assert done.patients == N - 2 and done.quarantine.reason.tolist() == ["no row in the table"] * 2 and "withdrawn" in done.quarantine.remedy[0]


def less(raw, *gone):
    "The table without some."
    table = pd.read_csv(raw / "phenotypes.csv", dtype=str)
    table[~table.iloc[:, 0].isin([IDS[k] for k in gone])].to_csv(raw / "phenotypes.csv", index=False)


def test_who_withdraws_is_removed(raw, take, tmp_path):
    "By the list, whether the files are there or not; nothing of them stays on disk."
    done = take(raw); key = read_key(tmp_path / "keys" / "k.key", "x"); gone = [pseudonym(IDS[k], key) for k in (0, 5)]
    cohort = Cohort.open(done.path)
    records = [(cohort[i].ecg.signal / MV).round().astype(np.int16).tobytes() for i, n in enumerate(cohort.table.index) if n in gone]
    splits = cohort.table.split
    less(raw, 0, 5); [f.unlink() for f in source(raw, 5).ecg]; shutil.rmtree(source(raw, 5).cine[0].parent)
    done = take(raw, withdrawn=[IDS[0], IDS[5]]); assert (done.patients, done.new, done.removed) == (N - 2, 0, 2) and "; 2 removed" in repr(done)
    cohort = Cohort.open(done.path); assert len(cohort.verify()) == 0 and cohort.table.split.equals(splits[cohort.table.index])
    assert not len(done.quarantine) and done.unlisted == 0
    inside = b"".join(files(done.path).values())
    assert not any(r in inside for r in records) and not any(gone[1].encode(code) in inside for code in ("utf-8", "utf-32-le"))
    done = take(raw); assert (done.patients, done.removed) == (N - 2, 0) and "removed" not in repr(done)
    assert done.quarantine.patient.tolist() == gone[:1]  # whose files are still there, without a row


def test_a_lost_row_is_no_withdrawal(raw, take):
    "A table that is cut short removes nobody, whether the files are there or not, and says so."
    take(raw)
    whole = (raw / "phenotypes.csv").read_bytes()
    less(raw, 0, 5); [f.unlink() for f in source(raw, 5).ecg]; shutil.rmtree(source(raw, 5).cine[0].parent)
    done = take(raw); assert (done.patients, done.removed, done.unlisted) == (N, 0, 2)
    assert "2 of the cohort have no row in the table and stay" in repr(done)
    assert done.quarantine.reason.tolist() == ["no row in the table"] and "list of those who did" in done.quarantine.remedy[0]
    assert len(Cohort.open(done.path).verify()) == 0
    (raw / "phenotypes.csv").write_bytes(whole)
    done = take(raw); assert (done.patients, done.removed, done.unlisted, len(done.quarantine)) == (N, 0, 0, 0)


def test_files_that_are_gone_remove_nobody(raw, take):
    take(raw); [f.unlink() for f in source(raw, 5).ecg]; shutil.rmtree(source(raw, 5).cine[0].parent)
    assert (take(raw).patients, take(raw).removed) == (N, 0)


def test_another_folder_removes_nobody(raw, take, tmp_path):
    other = Path(shutil.copytree(raw, tmp_path / "other"))
    for here, mine in ((raw, range(4)), (other, range(4, N))):
        less(here, *(set(range(N)) - set(mine)))
        for k in set(range(N)) - set(mine): [f.unlink() for f in source(here, k).ecg]; shutil.rmtree(here / "cmr" / IDS[k])
    assert take(raw).patients == 4 and (take(other).patients, take(other).removed) == (N, 0) and take(raw).removed == 0
    less(other, 6); [f.unlink() for f in source(other, 6).ecg]; shutil.rmtree(other / "cmr" / IDS[6])
    assert take(raw).removed == 0 and (take(other).removed, take(other).unlisted, take(other).patients) == (0, 1, N)


def test_withdrawn_by_list(raw, take, tmp_path):
    take(raw)
    (tmp_path / "list.csv").write_text(f'{IDS[1]}\n"{IDS[2]}"\n\n7654321\n')
    done = take(raw, withdrawn=tmp_path / "list.csv"); assert (done.patients, done.removed, len(done.quarantine)) == (N - 2, 2, 0)
    assert take(raw, withdrawn=[IDS[1], int(IDS[2])]).patients == N - 2
    assert take(raw).new == 2  # the list is not remembered
    with pytest.raises(PtaclError, match="withdrawn participants cannot be read"): take(raw, withdrawn=tmp_path / "none.csv")


@pytest.mark.parametrize("row", ["{}.0", "{},2024-05-01", "{};", '"{}"\t"a, b"', '"{}.0";x', " {} "])
def test_a_list_of_withdrawn_participants_as_spreadsheets_save_it(raw, take, tmp_path, row):
    head = re.sub(r"[^,;\t]+", "eid", row)
    (tmp_path / "list").write_text("\n".join([head, *(row.format(i) for i in (IDS[1], IDS[2], "7654321")), ";;", ""]))
    done = take(raw, withdrawn=tmp_path / "list")
    assert (done.patients, len(done.quarantine), done.withdrawn) == (N - 2, 0, (2, 3))
    assert "2 of 3 withdrawn participants are here" in repr(done) and not any(i in repr(done) for i in IDS)


def test_withdrawn_participants_who_are_nobody_here(raw, take, tmp_path):
    "A line that is no id is refused by its number; a list that names nobody is warned of."
    (tmp_path / "list").write_text(f"eid\n{IDS[1]}\n{IDS[2]} {IDS[3]}\n\n-5\n")
    with pytest.raises(PtaclError, match="no id in line 3, 5") as e: take(raw, withdrawn=tmp_path / "list")
    assert not any(i in str(e.value) for i in IDS) and not (tmp_path / "cohort").exists()
    with pytest.raises(PtaclError, match="no id in item 2"): take(raw, withdrawn=[IDS[1], float("nan")])
    with pytest.warns(UserWarning, match="none of 2 withdrawn participants is here"): done = take(raw, withdrawn=["7654321", 7654322])
    assert done.patients == N and "0 of 2 withdrawn" in repr(done)


def test_all_withdraw_and_one_comes_back(raw, take):
    done = take(raw); done = take(raw, withdrawn=IDS); assert (done.patients, done.removed) == (0, N)
    with pytest.raises(PtaclError, match="without patients"): Cohort.open(done.path)
    done = take(raw, withdrawn=IDS[1:]); assert done.patients == 1 and len(Cohort.open(done.path).verify()) == 0


def test_an_interrupted_change_that_cannot_be_completed(raw, take):
    done = take(raw); name = Cohort.open(done.path).table.index[3]
    cohort = Cohort.open(done.path, write=True); cohort.begin([name])
    for s in find_patients(raw): s.ecg[0].write_bytes(b"")
    done = take(raw)
    assert (done.patients, done.removed) == (N - 1, 1) and name not in Cohort.open(done.path).table.index


# what lies in the folder

def test_dangling_links_and_vanished_files_are_quarantined(raw, take, monkeypatch, capfd):
    a, b = source(raw, 0), source(raw, 1)
    a.ecg[0].unlink(); a.ecg[0].symlink_to(raw / "nowhere"); b.cine[0].unlink(); b.cine[0].symlink_to(raw / "nowhere.nii.gz")
    real = prepare._checksum
    def checksum(source):
        if source.id == IDS[2]: raise PermissionError(13, "Permission denied", f"/x/{IDS[2]}.xml")
        return real(source)
    monkeypatch.setattr(prepare, "_checksum", checksum)
    done = take(raw); said = repr(done) + done.quarantine.to_csv() + "".join(capfd.readouterr())
    assert done.patients == N - 3 and "cannot be read (Permission denied)" in said and not [i for i in IDS if i in said]


def test_a_recording_of_two_patients_is_said_and_kept(raw, take):
    a, b, c = (source(raw, k) for k in range(3))
    shutil.copy(a.cine[0], b.cine[0]); shutil.copy(a.ecg[0], c.ecg[0])
    done = take(raw); said = repr(done) + done.listed().to_csv()
    assert done.patients == N and done.doubtful[done.doubtful.what.isin(["ECG", "cine"])].what.tolist() == ["ECG"] * 2 + ["cine"] * 2
    for what in ("ECG", "cine"):
        rows = done.doubtful[done.doubtful.what == what]
        assert rows.reason.tolist() == [f"the same as of {other}" for other in rows.patient[::-1]]
        assert f"{what}s of 2 in the cohort are those of another one, too" in said
    assert not [i for i in IDS if i in said]
    assert repr(take(raw)).count("those of another one, too") == 2   # and in every run that follows


def test_a_folder_that_cannot_be_read_is_said(raw, take, monkeypatch):
    real = os.scandir
    def scandir(path):
        if str(path).endswith(IDS[3]): raise PermissionError(13, "Permission denied", str(path))
        return real(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PtaclError, match=r"1 folders in .*raw cannot be read \(Permission denied\)") as e: take(raw)
    assert IDS[3] not in str(e.value)


def test_folders_behind_links_are_searched(raw, tmp_path):
    moved = shutil.move(raw / "cmr", tmp_path / "disk")
    try: (raw / "cmr").symlink_to(moved)
    except OSError: pytest.skip("links need a right here")
    (raw / "round").symlink_to(raw)
    assert [(s.id, len(s.ecg), len(s.cine)) for s in find_patients(raw)] == [(i, 1, 1) for i in IDS]
    records = tmp_path / "records"
    (records / "more").mkdir(parents=True)
    for s in find_patients(raw)[:2]: shutil.copy(s.ecg[0], tmp_path / "disk")
    shutil.rmtree(records / "more"); (records / "more").symlink_to(tmp_path / "disk")
    assert len(find_recordings([records])) == 2


def test_a_folder_for_each_series(raw, tmp_path):
    "As a PACS exports: cmr/{id}/{series}/image. A folder that holds downloads of UK Biobank is no patient."
    for folder, name in (("p1/SER1", "IM1"), ("p1/SER2", "IM1"), ("site/one", "x9_20209_2_0.zip")):
        folder = raw / "cmr" / folder
        folder.mkdir(parents=True)
        (folder / name).write_bytes(bytes(128) + b"DICM")
    found = {s.id: s for s in find_patients(raw)}
    assert found["p1"].cine == [raw / "cmr" / "p1"] and "site" not in found and [f.name for f in found["x9"].cine] == ["x9_20209_2_0.zip"]


def test_a_name_that_is_no_text_has_a_pseudonym():
    assert pseudonym("Jos\udce9", b"k" * 32) != pseudonym("Jos\udce8", b"k" * 32)


def test_names_that_mean_nothing(raw, tmp_path):
    (raw / f"._{IDS[0]}_20205_2_0.xml").touch(); (raw / "cmr" / IDS[0] / "._sa.nii.gz").touch(); (raw / "cmr" / f"._{IDS[1]}").mkdir()
    assert [(s.id, len(s.ecg), len(s.cine)) for s in find_patients(raw)] == [(i, 1, 1) for i in IDS]
    (tmp_path / "cmr").mkdir(); study = raw.rename(tmp_path / "cmr" / "study")  # the top is no patient
    assert [s.id for s in find_patients(study)] == IDS and len(find_patients(f"{study}/")) == N


def test_parts_of_a_wfdb_record(tmp_path, monkeypatch):
    for f in ("a.hea", "a.dat", "b.hea", "b.mat", "a.xml"): (tmp_path / f).touch()
    monkeypatch.setattr(Path, "glob", None)
    for names in (["a.hea", "a.dat"], ["b.hea", "b.mat"], ["a.xml"]): assert [p.name for p in prepare._parts_of(tmp_path / names[0])] == names


def test_reprs_say_nothing_of_anybody(raw):
    s = source(raw, 0); t = prepare.Visit("p-x", "p-x", s, None, "0")
    assert not any(x in repr([s, t]) for x in (IDS[0], str(raw)))


@pytest.mark.parametrize("id, text, out", [("12", "1200 samples, 12 leads of 12.xml", "1200 samples, 12 leads of p-x.xml"),
                                           ("ab", "cable of ab_2.xml", "cable of p-x_2.xml")])
def test_short_ids_do_not_garble(id, text, out):
    assert prepare._without_id(text, prepare.Visit("p-x", "p-x", sources.Source(id, 2), None, "0")) == out


def test_stamps_are_keyed(raw): assert prepare.stamp(source(raw, 0), None) != prepare.stamp(source(raw, 0), None, b"k" * 32)


def test_another_rate_is_resampled_and_ten_seconds_are_taken(monkeypatch, virtual):
    from scipy.signal import resample_poly
    signal = virtual.ecg[0].numpy()
    for fs, seconds in ((1000, 10), (250, 10), (500, 12), (257, 10)):
        long = np.tile(signal, 2)[:, :seconds * 500]
        recorded = ECG(resample_poly(long, fs, 500, axis=-1).astype(np.float32), float(fs))
        monkeypatch.setattr(prepare, "read_ecg", lambda path, recorded=recorded: recorded)
        counts, r_peaks, verdict, facts = prepare_ecg("x.xml")
        expected = preprocess_ecg(signal, 500, stats=(0, 1))
        assert counts.shape == (12, 5000) and facts["fs"] == fs and verdict == "good"
        assert np.abs(counts * MV - expected)[:, 300:4700].max() < (0.02 if fs >= 500 else 0.2)
    monkeypatch.setattr(prepare, "read_ecg", lambda path: ECG(signal[:, :4900], 500.0))
    with pytest.raises(PtaclError, match="9.8 s long, ten are needed"): prepare_ecg("x.xml")


def test_a_short_record_is_quarantined_without_its_name(raw, take, monkeypatch):
    real = prepare.read_ecg
    def short(path):
        ecg = real(path)
        return ECG(ecg.signal[:, :4000], ecg.fs) if IDS[2] in path.name else ecg
    monkeypatch.setattr(prepare, "read_ecg", short)
    done = take(raw)
    assert done.quarantine.reason.tolist() == ["8 s long, ten are needed"]


def test_bad_leads_are_named_in_the_verdict(monkeypatch, virtual):
    signal = virtual.ecg[0].numpy().copy(); signal[7, 1000:3000] = 0.1; signal[3] = np.clip(signal[3], -0.1, 9)
    monkeypatch.setattr(prepare, "read_ecg", lambda path: ECG(signal, 500.0))
    assert "flat: V2" in prepare_ecg("x.xml")[2]


# what is refused as a whole

def test_refusals(raw, take, tmp_path):
    with pytest.raises(PtaclError, match="no such folder"): take(tmp_path / "none")
    (tmp_path / "void").mkdir()
    with pytest.raises(PtaclError, match="no recording found"): take(tmp_path / "void")
    with pytest.raises(PtaclError, match="writes to a folder"): ingest(raw, "s3://bucket/x")
    (tmp_path / "taken").mkdir(); (tmp_path / "taken" / "a").write_text("a")
    with pytest.raises(PtaclError, match="taken"): take(raw, "taken")
    for frames in (0, 1, -3, 2.5):
        with pytest.raises(PtaclError, match="no phase"): take(tmp_path / "none", frames=frames)  # before anything is read
        with pytest.raises(PtaclError, match="no phase"): Cohort.create(tmp_path / "new", frames)
    take(raw)
    with pytest.raises(PtaclError, match="cines of 6 frames, not 50"): take(raw, frames=50)
    with pytest.raises(PtaclError, match="there is no key"): take(raw, key=tmp_path / "other.key")
    assert not (tmp_path / "other.key").exists()
    read_key(tmp_path / "other.key", "x")
    with pytest.raises(PtaclError, match="another key"): take(raw, key=tmp_path / "other.key")
    (raw / "phenotypes.csv").unlink()
    with pytest.raises(PtaclError, match="no phenotypes.csv"): take(raw)
    with pytest.raises(PtaclError, match="no phenotypes.csv"): take(raw, "new")
    assert not list(tmp_path.glob("*.ingest")) and not (tmp_path / "new").exists()
    assert Cohort.open(tmp_path / "cohort").attributes["patients"] == N



@pytest.fixture
def mounted(tmp_path, monkeypatch):
    "An empty folder that behaves as a disk of its own: nothing is renamed into it or out of it, and it cannot be removed."
    disk = tmp_path / "disk"
    disk.mkdir()
    def between(real):
        def rename(source, target, **more):
            if disk in map(Path, (source, target)): raise OSError(errno.EBUSY, "Device or resource busy")
            if len({disk in Path(p).parents for p in (source, target)}) == 2: raise OSError(errno.EXDEV, "Invalid cross-device link")
            return real(source, target, **more)
        return rename
    def rmdir(path, **more):
        if not isinstance(path, int) and Path(path) == disk: raise OSError(errno.EBUSY, "Device or resource busy")
        return removed(path, **more)
    removed = os.rmdir
    for name in ("rename", "replace"): monkeypatch.setattr(os, name, between(getattr(os, name)))
    monkeypatch.setattr(os, "rmdir", rmdir)
    return disk


def test_a_disk_of_its_own_takes_a_cohort(raw, take, tmp_path, mounted, virtual, monkeypatch):
    def begin_to_copy(new, out, **more):
        shutil.copy(new / "zarr.json.partial", out)
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(shutil, "copytree", begin_to_copy)
        with pytest.raises(KeyboardInterrupt): take(raw, mounted)
    done = take(raw, mounted)
    assert (done.patients, len(Cohort.open(mounted).verify())) == (N, 0)
    assert sorted(f.name for f in mounted.iterdir()) == ["cine", "ecg", "table", "zarr.json"] and not list(tmp_path.glob("*.ingest"))


@pytest.mark.parametrize("write", [lambda virtual, path, **more: write_virtual(virtual, path, workers=1, **more), write_patients])
def test_a_disk_of_its_own_takes_virtual_patients(mounted, virtual, tmp_path, write):
    write(virtual, tmp_path / "beside"); write(virtual, mounted)
    def names(path): return sorted(str(f.relative_to(path)) for f in path.rglob("*"))
    assert names(mounted) == names(tmp_path / "beside")
    write(virtual, mounted, overwrite=True)
    assert names(mounted) == names(tmp_path / "beside") and sorted(f.name for f in tmp_path.iterdir()) == ["beside", "disk"]


def test_a_link_takes_a_cohort_to_where_it_leads(raw, take, tmp_path):
    (tmp_path / "far" / "empty").mkdir(parents=True)
    for link, to in (("link", "empty"), ("loose", "nothing")):
        (tmp_path / link).symlink_to(tmp_path / "far" / to)
        assert take(raw, link).patients == N and take(raw, link).new == 0
        assert (tmp_path / link).is_symlink() and len(Cohort.open(tmp_path / "far" / to)) == N
    assert not list(tmp_path.rglob("*.ingest"))
    with pytest.raises(PtaclError, match="inside a cohort"): take(raw, "link/more")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_can_touch_is_refused(tmp_path, mode):
    read_key(tmp_path / "k", tmp_path / "out"); os.chmod(tmp_path / "k", mode)
    with pytest.raises(PtaclError, match="read by others"): read_key(tmp_path / "k", tmp_path / "out")


def test_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    key = read_key(None, tmp_path / "out")
    assert (tmp_path / ".config/ptacl/pseudonyms.key").stat().st_mode & 0o777 == 0o600 and len(key) == 32 and key == read_key(None, "x")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(PtaclError, match="inside the store"): read_key(tmp_path / "link" / "k", tmp_path / "out")
    (tmp_path / "short").write_bytes(b"x"); os.chmod(tmp_path / "short", 0o600)
    with pytest.raises(PtaclError, match="is no key"): read_key(tmp_path / "short", tmp_path / "out")


def test_the_key_in_the_staging_folder(tmp_path):
    with pytest.raises(PtaclError, match="inside the store"): read_key(tmp_path / "out.ingest" / "k", tmp_path / "out")


def test_a_kill_leaves_no_empty_key(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda f: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): read_key(tmp_path / "k", tmp_path / "out")
    assert not (tmp_path / "k").exists(); monkeypatch.undo()
    assert len(read_key(tmp_path / "k", tmp_path / "out")) == 32 and [f.name for f in tmp_path.iterdir()] == ["k"]
    with pytest.raises(FileExistsError): pseudonyms.make_once(tmp_path / "k", b"")
    monkeypatch.setattr(os, "link", lambda a, b: (_ for _ in ()).throw(PermissionError))
    assert len(read_key(tmp_path / "k2", tmp_path / "out")) == 32 and len(list(tmp_path.iterdir())) == 2


def test_two_at_once(raw, take, tmp_path):
    lock = tmp_path / "cohort.ingest" / "lock"; lock.parent.mkdir()
    host = socket.gethostname()
    for process, where in ((os.getpid(), host), (1, "elsewhere")):
        lock.write_text(f"{process}\n{where}\n")
        with pytest.raises(PtaclError, match=rf"process {process} on {where} is taking patients in"): take(raw)
        assert lock.exists() and not (tmp_path / "cohort").exists()
    process = multiprocessing.get_context("fork").Process(target=int); process.start(); process.join()
    lock.write_text(f"{process.pid}\n{host}\n"); assert take(raw).patients == N and not lock.parent.exists()


def test_virtual_patients_need_no_key(virtual, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_patients(virtual, tmp_path / "raw", "nifti")
    done = ingest(tmp_path / "raw", tmp_path / "cohort", frames=6, workers=1)
    assert list(Cohort.open(done.path).table.index) == list(virtual.phenotypes.index) and not (tmp_path / ".config").exists()


# virtual patients

def test_virtual_by_both_ways(virtual, tmp_path):
    write_patients(virtual, tmp_path / "raw", "nifti")
    a = Cohort.open(ingest(tmp_path / "raw", tmp_path / "a", frames=6, workers=1).path)
    b = write_virtual(virtual, tmp_path / "b", workers=1)
    np.testing.assert_allclose(a.batch(None, None)["ecg"], b.batch(None, None)["ecg"], atol=0.006)  # a count of the XML is 5 µV
    assert torch.equal(a[:]["cine"], b[:]["cine"]) and list(a.table.split) == list(b.table.split)
    np.testing.assert_allclose(a.phenotypes, b.phenotypes, rtol=1e-5)
    assert "hr_cmr" in b.covariates and len(b.verify()) == 0


@pytest.mark.parametrize("options", [dict(stack=True), dict(spacing=2.6)], ids=str)
def test_stacks_and_other_pixels_by_both_ways(options, tmp_path):
    virtual = simulate(3, 8, frames=6, size=96, **options)
    write_patients(virtual, tmp_path / "raw", "nifti")
    a = Cohort.open(ingest(tmp_path / "raw", tmp_path / "a", frames=6, workers=1).path)
    b = write_virtual(virtual, tmp_path / "b", workers=1)
    assert (a[:]["cine"].int() - b[:]["cine"].int()).abs().max() <= 1


def test_truth_and_quality_of_virtual_patients_are_kept(tmp_path):
    virtual = simulate(6, 8, frames=6, rhythm="pvc", lead_off="V3", missing=2)
    cohort = write_virtual(virtual, tmp_path / "c", workers=1, simulated={"seed": 8})
    truth = [json.loads(p)["truth"] for p in cohort.table.provenance]
    assert len(cohort) + len(cohort.quarantine) == 6 and set(cohort.quarantine.reason) <= {"lead V3 is missing (nothing but zeros)"}
    for k, t in zip([list(virtual.phenotypes.index).index(i) for i in cohort.phenotypes.index], truth):
        r = virtual.r_peaks[k].isfinite()
        np.testing.assert_allclose(t["r_peaks"], virtual.r_peaks[k, r], atol=1e-4)
        assert t["ectopic"] == virtual.ectopic[k, r].tolist() and sum(p is None for p in t["phase"]) == 2 and t["faults"]
    assert any("V3" in q for q in cohort.table.quality) and Cohort.open(tmp_path / "c").attributes["simulated"] == {"seed": 8}


def test_a_killed_write_of_virtual_patients_leaves_nothing(tmp_path):
    def batches(): yield simulate(2, 1, frames=6); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_virtual(batches(), tmp_path / "c", workers=1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(PtaclError, match="is a file"): write_virtual(simulate(1, 1, frames=6), tmp_path / "file")


def test_virtual_refused(virtual, tmp_path):
    with pytest.raises(PtaclError, match="simulate them with both"): write_virtual(simulate(1, 0, cine=False), tmp_path / "x")
    write_virtual(virtual, tmp_path / "x", workers=1)
    with pytest.raises(PtaclError, match="exists already"): write_virtual(virtual, tmp_path / "x")
    assert len(write_virtual(virtual, tmp_path / "x", overwrite=True, workers=1)) == N
