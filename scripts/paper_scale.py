"""The paper's experiment at its full size, on virtual patients: cohort, both autoencoders, the joint phase in the paper's two
settings, with and without the local loss, fine-tuning, and both tables.

    python scripts/paper_scale.py --minutes 9.5        # the same line again and again, until it says "finished"

It stops cleanly when its minutes are over and goes on at the next call: patients are kept a thousand at a time, trainings epoch by
epoch. A fiftieth of it on a CPU: python scripts/paper_scale.py --scale 0.02 --epochs 1 --epochs-mae 1 --batch-size 16
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import joblib
import torch

from ptacl.simulate.calibration import ceilings
from ptacl.data.cohort import Cohort
from ptacl.data.tables import COVARIATES
from ptacl.core.devices import choose_device
from ptacl.core.errors import PtaclError
from ptacl.core.files import versions, write_result
from ptacl.train.finetune import finetune, with_targets
from ptacl.simulate.cohorts import UNITS, virtual_rows
from ptacl.rivals.methods import train_method
from ptacl.core.presets import Preset
from ptacl.studies.tasks import preset_of
from ptacl.data.pairs import Pairs
from ptacl.simulate.patients import simulate

TRAIN, TEST, SEED = 27_951, 5_991, 0   # the paper's patients
METHODS = ("random", "mae", "global", "ptacl")
AGAIN = 75                             # exit status: not finished, call again


class TimeUp(BaseException):
    "The minutes of this call are over. No `Exception`, so that nobody on the way mistakes it for an error."


def time_up(*_): raise TimeUp


def settings():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("reports/paper_scale"), help="folder for cohort, models and reports")
    p.add_argument("--scale", type=float, default=1., help="share of the paper's patients")
    p.add_argument("--epochs", type=int, default=10, help="of each joint training and of fine-tuning")
    p.add_argument("--epochs-mae", type=int, default=40, help="of each autoencoder")
    p.add_argument("--batch-size", type=int, default=256)
    p.add_argument("--presets", nargs=2, default=["paper_regression", "paper_retrieval"], help="of table 2 and of table 1")
    p.add_argument("--n-boot", type=int, default=1000, help="draws of the test patients for intervals")
    p.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: never")
    return p.parse_args()


def make_cohort(path: Path, n_train: int, n_test: int, device: str) -> Cohort:
    "The virtual patients, simulated on the device, prepared on all cores, and kept 1,024 at a time; split at the end."
    n = n_train + n_test
    if not (path / "zarr.json").exists():
        columns = simulate(1, SEED, ecg=False, cine=False).covariates.columns.drop("sex")
        possible = ceilings(simulate(5000, SEED, ecg=False, cine=False))
        Cohort.create(path, covariates={c: COVARIATES.get(c, UNITS.get(c, "")) for c in columns}, ceilings=possible.to_dict("split"))
    cohort, run = Cohort.open(path, write=True), joblib.Parallel(-1)
    while (k := len(cohort)) < n:
        vp = simulate(min(1024, n - k), SEED, device, start=k)
        cohort.extend(virtual_rows(vp, slice(i, min(i + 64, len(vp))), run, []) for i in range(0, len(vp), 64))
        print(f"patients  {len(cohort):,} of {n:,}", flush=True)
        if len(cohort) == k: raise PtaclError(f"none of the patients from {k} on could be prepared")
    if not len(cohort.split("test")): cohort.set_splits({"train": n_train / n, "test": n_test / n}, SEED)
    there = [len(cohort.split(s)) for s in ("train", "test")]
    if sum(there) != n or abs(there[0] - n_train) > max(2, 0.01 * n):
        raise PtaclError(f"{path.name} holds {there[0]:,} and {there[1]:,} patients, not {n_train:,} and {n_test:,}: "
                         "take the --scale of its first call, or another --out")
    return cohort


def share_pretraining(source: Path, target: Path, preset: Preset):
    "The autoencoders know neither σ nor τ, so the second setting takes those of the first, under its own name."
    for name in ("mae_ecg", "mae_cmr"):
        if (target / name).exists(): continue
        new = target / f".{name}"
        shutil.rmtree(new, ignore_errors=True); shutil.copytree(source / name, new)
        state = torch.load(new / "state.pt", weights_only=True)
        torch.save(state | {"settings": state["settings"] | asdict(preset)}, new / "state.pt")
        new.rename(target / name)


def train(cohort: Cohort, folder: Path, presets: list, device: str):
    "Every phase of both settings, on data that lies on the device; what is trained already is found."
    rows = cohort.split("train")
    targets = cohort.phenotypes.iloc[rows]
    data = with_targets(Pairs(**cohort.load(rows, device)), targets)
    for k, preset in enumerate(presets):
        runs = folder / f"setting-{k + 1}" / "runs" / f"seed-{SEED}"
        if k: share_pretraining(folder / "setting-1" / "runs" / f"seed-{SEED}", runs, preset)
        for name in METHODS:
            model = train_method(name, data, preset, SEED, runs)
        if k == 0: finetune(model.ecg, data, targets, seed=SEED, folder=runs / "ptacl_tuned", resume=True)


def table(name: str, preset: str, given: argparse.Namespace, k: int, cohort: Path):
    "A table's notebook, in a process that ends with this one; its models are found."
    out, runs = given.out / name, given.out / f"setting-{k}" / "runs"
    if (out / "result.json").exists(): return
    parameters = {"preset": preset, "cohort": cohort, "methods": list(METHODS), "epochs": given.epochs, "epochs_mae": given.epochs_mae,
                  "batch_size": given.batch_size, "seed": SEED, "n_boot": given.n_boot, "runs": runs, "output_dir": out}
    options = [str(x) for pair in parameters.items() for x in ("-p", *pair)]
    shell = subprocess.Popen([sys.executable, "-m", "ptacl.app.cli", "run", name, *options], start_new_session=True)
    try:
        if shell.wait(): raise PtaclError(f"{name} failed: see {out / 'failed.json'}")
    except BaseException:  # the time is up, Ctrl-C: nothing goes on without this process
        if shell.poll() is None: os.killpg(shell.pid, signal.SIGTERM); shell.wait()
        raise


def main():
    given, begun = settings(), time.time()
    device = choose_device()
    n_train, n_test = round(TRAIN * given.scale), round(TEST * given.scale)
    presets = [preset_of(name, given.epochs, epochs_mae=given.epochs_mae, batch_size=given.batch_size) for name in given.presets]
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # the notebook of a table ends with this process
    signal.signal(signal.SIGALRM, time_up); signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        cohort = make_cohort(given.out / "cohort", n_train, n_test, device)
        train(cohort, given.out, presets, device)
        table("table2", given.presets[0], given, 1, given.out / "cohort")
        table("table1", given.presets[1], given, 2, given.out / "cohort")
        finished = True
    except TimeUp: finished = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    with open(given.out / "seconds.txt", "a+") as clock:   # a line for each call
        clock.write(f"{time.time() - begun:.1f}\n"); clock.seek(0); calls = [float(line) for line in clock]
    took = f"{sum(calls) / 60:.1f} minutes in {len(calls)} calls"
    if not finished: print(f"time is up after {took}: call again to go on"); sys.exit(AGAIN)
    words = {k: str(v) for k, v in vars(given).items() if k not in ("out", "minutes")}
    took_in_all = {"minutes": sum(calls) / 60, "calls": len(calls), "patients": [n_train, n_test]}
    write_result(given.out, took_in_all | {"device": device, "versions": versions()} | words, "run.json")
    print(f"finished: {took}, tables in {given.out}")


if __name__ == "__main__":
    try: main()
    except PtaclError as e: sys.exit(f"paper_scale: {e}")
    except KeyboardInterrupt: sys.exit("paper_scale: stopped; call again to go on")
