"""An hour of train, evaluate, embed in one process, with faults all along: memory, open files and temporary files must not grow.

`pytest -m long tests/test_soak.py` takes the hour; PTACL_SOAK_MINUTES=3 takes three minutes. What was found is written to
the file named by PTACL_SOAK_LOG, where there is one: nbs/results/soak.json is kept for the book.
By itself: python tests/test_soak.py MINUTES LOG.json
"""
import ctypes
import errno
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest

MINUTES = float(os.environ.get("PTACL_SOAK_MINUTES", 60))
# by which the last rounds may exceed the first ones:
ALLOCATED = 6  # MB given out by the C library; a file of logs, a cache of compiled patterns
BLOCKS = 20    # thousands of Python's objects
MEMORY = 100   # MB of the process, whose heap varies by so much while what is allocated stays the same


class Cut(Exception):
    "What a training is interrupted by."


def cut_after(n, step):
    "A step that fails at its n-th call."
    left = iter(range(n))
    def cut(model, batch):
        if next(left, None) is None: raise Cut
        return step(model, batch)
    return cut


def refused(f, *a, **kw):
    "Something that must end in the kit's own error."
    from ptacl.core.errors import PtaclError
    try: f(*a, **kw)
    except PtaclError: return
    raise AssertionError(f"{f.__name__} took what it should refuse")


def allocated() -> int:
    "Bytes that the C library has given out and not got back, however large the heap around them; 0 where it does not tell."
    libc, text, size = ctypes.CDLL(None), ctypes.c_char_p(), ctypes.c_size_t()
    if not hasattr(libc, "malloc_info"): return 0
    libc.open_memstream.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
    libc.malloc_info(0, stream); libc.fclose(stream)
    found = {e.get("type"): int(e.get("size")) for e in ElementTree.fromstring(text.value) if e.tag in ("total", "system")}
    libc.free(text)
    return found["current"] + found["mmap"] - found["fast"] - found["rest"]


class Soak:
    "What is made once, and one round of everything."
    def __init__(self, folder: Path):
        import torch
        from ptacl.simulate.cohorts import write_virtual
        from ptacl.core.presets import workshop
        from ptacl.simulate.patients import simulate
        from ptacl.simulate.writers import write_patients
        torch.set_num_threads(1)
        self.folder, self.tiny = folder, replace(workshop, width=32, heads=2, ecg_layers=1, cmr_layers=1, decoder_width=32, proj_dim=16, batch_size=8,
                                                 ecg_crop=1000, size=32, frozen_layers=0)
        patients = simulate(48, 0, frames=6)
        self.cohort = write_virtual(patients, folder / "cohort", workers=1, shares={"train": .5, "val": .25, "test": .25})
        write_patients(simulate(6, 1, frames=2, size=84), folder / "raw", "wfdb")
        self.whole = [f for f in sorted((folder / "raw").rglob("*")) if f.suffix == ".hea"]

    def train(self, k):
        "Both autoencoders and the joint model for an epoch or two; some rounds are cut off and resumed, some find a damaged state."
        import torch
        from ptacl.data.cohort import Stream
        from ptacl.nets.encoders import CMREncoder, ECGEncoder
        from ptacl.core.errors import PtaclError
        from ptacl.nets.mae import MAE
        from ptacl.nets.joint import PTACL, start_joint
        from ptacl.data.pairs import Pairs
        from ptacl.train.loop import fit
        from ptacl.train.steps import joint_step, mae_cmr_step, mae_ecg_step
        torch.manual_seed(k); p = self.tiny
        data = Stream(self.cohort, "train") if k % 2 else Pairs(**self.cohort.load("train", workers=2))
        maes = [MAE(E(p)) for E in (ECGEncoder, CMREncoder)]
        for mae, step in zip(maes, (mae_ecg_step, mae_cmr_step)): fit(mae, step, data, p, 1, 1e-3)
        model, run = start_joint(p, *(m.encoder for m in maes)), self.folder / "run"
        try: fit(model, cut_after(4, joint_step) if k % 3 == 1 else joint_step, data, p, 2, 1e-3, run, seed=k)
        except Cut: model = PTACL(p); fit(model, joint_step, data, p, 2, 1e-3, run, seed=k, resume=True)
        if k % 3 == 2:
            state = run / "state.pt"; state.write_bytes(state.read_bytes()[:random.Random(k).randrange(4000)])
            with suppress(PtaclError): fit(model, joint_step, data, p, 2, 1e-3, run, seed=k, resume=True)
        diverged = PTACL(p)
        with torch.no_grad(): diverged.proj_ecg[1].weight.fill_(torch.nan)
        if k % 3 == 0:
            with suppress(PtaclError): fit(diverged, joint_step, data, p, 1, 1e-3)
        if k % 4 == 0:
            full = mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device"))
            with full: refused(fit, PTACL(p), joint_step, data, p, 1, 1e-3, self.folder / "full")
        return model

    def evaluate(self, model):
        "Both tables and the maps."
        from ptacl.evaluate.alignment import alignment_map, alignment_scores
        from ptacl.data.cohort import Stream
        from ptacl.evaluate.regression import linear_probe
        from ptacl.evaluate.retrieval import phenotype_retrieval
        from ptacl.train.loop import infer
        rows = {s: self.cohort.split(s) for s in ("train", "test")}
        x = {s: infer(model.ecg_features, model, Stream(self.cohort, r)) for s, r in rows.items()}
        y = {s: self.cohort.phenotypes.iloc[r] for s, r in rows.items()}
        linear_probe(x["train"], y["train"], x["test"], y["test"], n_boot=20)
        phenotype_retrieval(*infer(model.embeddings, model, Stream(self.cohort, rows["test"])), y["test"], ks=(1, 3))
        alignment_scores(infer(lambda b: alignment_map(model, b), model, Stream(self.cohort, rows["test"])))

    def spoil(self, k):
        "Files as they should not be."
        rng, raw = random.Random(k), self.folder / "bad"
        raw.mkdir(exist_ok=True)
        header, data = self.whole[0], self.whole[0].with_suffix(".dat")
        for name, text in (("cut", data.read_bytes()[:rng.randrange(100_000)]), ("noise", rng.randbytes(data.stat().st_size))):
            (raw / f"{name}.hea").write_text(header.read_text().replace(header.stem, name)); (raw / f"{name}.dat").write_bytes(text)
        texts = {"empty.xml": b"", "bytes.dcm": rng.randbytes(3000), "half.xml": b"<CardiologyXML><St"}
        for name, text in texts.items(): (raw / name).write_bytes(text)
        return raw

    def infer(self, model, k):
        "Embed and predict good and bad files; sometimes in processes, one of which is killed; damaged probes, and one of another model."
        from ptacl.inference.embedding import ECGFeatures, embed
        from ptacl.inference.prediction import load_probe, predict_phenotypes, probe_cohort, save_probe
        from ptacl.inference.screening import in_order
        from ptacl.nets.joint import PTACL
        from ptacl.nets.weights import from_pretrained
        module, out = ECGFeatures(from_pretrained(self.folder / "run" / "model")), self.folder / "out"
        out.mkdir(exist_ok=True); paths = [*self.whole, self.spoil(k)]
        probe = load_probe(save_probe(probe_cohort(module, self.cohort), out / "p.safetensors"), module)
        done = embed(paths, module, out / "e.parquet", workers=2 if k % 25 == 0 else 1, own_names=True)
        assert (done.rows, len(done.refused)) == (6, 5), done
        assert predict_phenotypes(paths, module, probe, out / "p.csv", 0.5, workers=1, own_names=True).rows == 6
        refused(load_probe, out / "p.safetensors", ECGFeatures(PTACL(self.tiny)))
        refused(embed, paths, module, out / "none" / "e.parquet", workers=1)
        (out / "p.safetensors").write_bytes((out / "p.safetensors").read_bytes()[:100]); refused(load_probe, out / "p.safetensors")
        def read(item):
            if item == 3: os.kill(os.getpid(), signal.SIGKILL)
            return item
        if k % 25 == 0: assert sum(isinstance(x, Exception) for x in in_order(read, range(6), 2, 4)) == 1

    def round(self, k):
        "Everything once."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = self.train(k); self.evaluate(model); self.infer(model, k)

    def measure(self) -> dict:
        "What must not grow."
        gc.collect(); me = psutil.Process()
        return {"memory": round(me.memory_full_info().uss / 2**20, 2), "allocated": round(allocated() / 2**20, 3),   # MB
                "blocks": round(sys.getallocatedblocks() / 1000, 1),   # thousands
                "files": me.num_fds(), "threads": me.num_threads(), "sockets": len(me.net_connections()),
                "temporary": sum(len(files) + len(folders) for _, folders, files in os.walk(tempfile.gettempdir())),
                "kept": sum(f.is_file() for f in self.folder.rglob("*"))}


def soak(minutes: float, log: Path):
    "Rounds until the time is over, at least eight; a line of measures for each, in the file."
    with tempfile.TemporaryDirectory() as tmp:
        work, rows, start = Soak(Path(tmp)), [], time.monotonic()
        while time.monotonic() - start < 60 * minutes or len(rows) < 8:
            k = len(rows)
            work.round(k)
            rows.append({"round": k, "seconds": round(time.monotonic() - start, 1)} | work.measure())
            if k % 50 == 0: log.write_text(json.dumps(summary(rows), indent=0))
    log.write_text(json.dumps(summary(rows), indent=0))


def summary(rows: list) -> dict:
    "What is kept of an hour: how many rounds, what grew, and some of the rounds."
    from ptacl.core.files import versions
    thin = rows[::len(rows) // 120 + 1]
    return {"rounds": len(rows), "minutes": rows[-1]["seconds"] / 60, "growth": growth(rows), "versions": versions(), "rows": thin}


def growth(rows: list) -> dict:
    """The last quarter less the first, after a fifth to warm up, of each measure: of memory the highest, as the heap is 100 MB larger at
    some times than at others while as much of it is in use; of what is counted the median."""
    rows = rows[len(rows) // 5:]; n = max(2, len(rows) // 4)
    def level(part, what): return float((np.max if what == "memory" else np.median)([r[what] for r in part]))
    return {what: level(rows[-n:], what) - level(rows[:n], what) for what in rows[0] if what not in ("round", "seconds")}


def test_growth_is_seen_where_there_is_some():
    still = [{"round": k, "seconds": k, "memory": 900 + 100 * (k % 3), "allocated": 100 + k % 5, "files": 20} for k in range(50)]
    assert abs(growth(still)["memory"]) < MEMORY and growth(still)["files"] == 0 and growth(still)["allocated"] < ALLOCATED
    leaking = [r | {"memory": r["memory"] + 5 * k, "allocated": r["allocated"] + k / 4, "files": 20 + k // 10} for k, r in enumerate(still)]
    assert growth(leaking)["memory"] > MEMORY and growth(leaking)["files"] > 0 and growth(leaking)["allocated"] > ALLOCATED


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_info is glibc's")
def test_what_is_allocated_is_seen():
    before = allocated(); hold = [np.ones(2**17) for _ in range(16)]
    assert before > 0 and abs(allocated() - before - 16 * 2**20) < 2**21     # others allocate, too
    hold.clear(); assert abs(allocated() - before) < 2**21


@pytest.mark.long
@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="open files are counted on Linux and macOS")
def test_soak(tmp_path):
    log = Path(os.environ.get("PTACL_SOAK_LOG") or tmp_path / "soak.json")
    (tmp_path / "tmp").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    run = subprocess.run([sys.executable, __file__, str(MINUTES), str(log)], env=env, capture_output=True, text=True, timeout=60 * MINUTES * 2 + 1800)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(log.read_text()); more = found["growth"]
    print(f"{found['rounds']} rounds in {found['minutes']:.0f} min; growth: {more}")
    assert more["allocated"] < ALLOCATED and more["blocks"] < BLOCKS and more["memory"] < MEMORY, more
    assert max(more[what] for what in ("files", "threads", "sockets", "temporary", "kept")) <= 0, more
    assert not list((tmp_path / "tmp").iterdir()), "temporary files are left behind"


if __name__ == "__main__": soak(float(sys.argv[1]), Path(sys.argv[2]))
