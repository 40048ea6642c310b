"""The paper's experiment at its full size on one GPU, within minutes: how fast, how well, beside the paper's numbers.

    python scripts/gpu.py --out results --minutes 11           # the same line again goes on where the minutes of a call were over

It measures its own speed first, and from that chooses how many epochs each training gets, so that every part is reached:

    bench       training steps of the paper's sizes against what this device multiplies
    patients    27,951 + 5,991 virtual patients, simulated on the device, prepared on all cores, kept in memory alone
    mae         both autoencoders
    regression  Global and PTACL with σ 0.1, then Table 2 with intervals
    retrieval   Global and PTACL with σ 0, τ 0.07, then Table 1
    finetune    PTACL's ECG encoder, fine-tuned with attention pooling

After each part `gpu.json` in the output folder holds all numbers so far, and the boards lie beside it as CSV; the ECG encoder comes in
bf16, in pieces below 16 MB. Models stay in the folder --work, so that a second call finds them. No network is needed, nor anything but
torch, accelerate, numpy, scipy, pandas, scikit-learn, einops, safetensors, tqdm and psutil, and as wheels where they are missing:
fastcore, kornia (with kornia_rs), PyWavelets, threadpoolctl, platformdirs; numba (with llvmlite) for a rehearsal on a CPU.
The kit need not be installed: PYTHONPATH=. in its folder will do.
"""
import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

from ptacl.bench.training import time_steps
from ptacl.core.devices import choose_device
from ptacl.core.errors import PtaclError
from ptacl.core.files import versions, write_result
from ptacl.core.presets import FS, PRESETS, Preset, get_preset
from ptacl.data.pairs import Pairs
from ptacl.evaluate.alignment import alignment_scores, cosine_maps
from ptacl.evaluate.scoreboard import table1, table2
from ptacl.nets.encoders import CMREncoder, ECGEncoder
from ptacl.nets.joint import PTACL, start_joint
from ptacl.nets.weights import from_pretrained, save_weights
from ptacl.evaluate.retrieval import contrast
from ptacl.nets.mae import MAE
from ptacl.signal.beats import find_beats
from ptacl.signal.echo import film_levels
from ptacl.signal.ecg import preprocess_ecg
from ptacl.signal.sure_beats import judge_beats, sure_r_peaks
from ptacl.simulate.patients import simulate
from ptacl.train.finetune import finetune, predict, with_targets
from ptacl.train.loop import fit, infer
from ptacl.train.steps import joint_step, mae_cmr_step, mae_ecg_step

TRAIN, TEST, SEED = 27_951, 5_991, 0   # the paper's patients
MOST_BEATS = 40                        # R-peaks of a record that are kept
PIECE = 15 * 2**20                     # bytes of one file of weights
BENCH_SECONDS = 60                     # at most, for the steps alone
RESERVE = 15                           # s of a call that no training takes: tables and files come after it
SHARES = {                             # of the seconds that are left when the patients are there; the rest is for fine-tuning and tables
    "mae_ecg": 0.20,
    "mae_cmr": 0.16,
    "global_regression": 0.13,
    "ptacl_regression": 0.13,
    "global_retrieval": 0.10,
    "ptacl_retrieval": 0.10,
}


class TimeUp(Exception):
    "A part would not end within this call."


@dataclass
class Study:
    "What all parts share."
    out: Path
    work: Path
    device: str
    began: float       # time.monotonic() of this call
    ends: float        # and when it is to be over
    used: float        # minutes of the calls before
    presets: dict      # regression, retrieval -> Preset
    results: dict      # what has been measured so far
    train: Pairs | None = None
    test: Pairs | None = None
    features: dict = field(default_factory=dict)   # (input, method) -> features of train and test
    phenotypes: dict | None = None   # train, test -> DataFrame
    covariates: dict | None = None

    def left(self) -> float:
        "Seconds until this call is to be over."
        return self.ends - time.monotonic()

    def keep(self, **numbers):
        "Add to the numbers, and write all of them: for whoever looks, and for the next call."
        minutes = self.used + (time.monotonic() - self.began) / 60   # a call that is killed has used them, too
        self.results |= numbers | {"minutes_used": minutes}
        for folder in (self.out, self.work):
            write_result(folder, self.results, "gpu.json")


def parsed() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("reports/gpu"), help="folder for the numbers, at most 8 files")
    p.add_argument("--work", type=Path, default=Path("reports/gpu_work"), help="folder for models, which a second call finds")
    p.add_argument("--minutes", type=float, default=11.0, help="of all calls together")
    p.add_argument("--call-minutes", type=float, default=9.5, help="of one call at most")
    p.add_argument("--scale", type=float, default=1.0, help="share of the paper's patients")
    p.add_argument("--batch-size", type=int, default=256)
    p.add_argument("--presets", nargs=2, default=["paper_regression", "paper_retrieval"], help="of Table 2 and of Table 1")
    p.add_argument("--n-boot", type=int, default=500, help="draws of the test patients for intervals")
    p.add_argument("--skip-bench", action="store_true")
    return p.parse_args()


@contextmanager
def timed(study: Study, part: str):
    "Note the seconds of a part, also of one that fails."
    began = time.monotonic()
    print(f"{part:<18} begins, {study.left():.0f} s are left", flush=True)
    try:
        yield
    finally:
        seconds = dict(study.results.get("seconds", {}))
        seconds[part] = round(seconds.get(part, 0) + time.monotonic() - began, 1)
        study.keep(seconds=seconds)


# --- patients ------------------------------------------------------------------------------------------------------------

def prepare_ecgs(ecg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Raw records (B, 12, N) in mV, prepared, and their sure R-peaks (B, MOST_BEATS) in s, NaN where there is none."
    beats = find_beats(torch.from_numpy(ecg), FS)
    verdicts = judge_beats(beats, ecg.shape[-1] / FS)
    peaks = sure_r_peaks(beats.r_peaks, beats.agreement, verdicts)[:, :MOST_BEATS]
    return preprocess_ecg(ecg, FS), F.pad(peaks, (0, MOST_BEATS - peaks.shape[1]), value=float("nan")).numpy()


def on_one_core():
    "Processes that prepare have a core each."
    torch.set_num_threads(1)
    threadpool_limits(1)


def make_patients(n: int, start: int, device: str, pool: ProcessPoolExecutor) -> tuple[Pairs, pd.DataFrame, pd.DataFrame]:
    "Virtual patients on the device: ECGs prepared on all cores while the next ones are simulated."
    prepared, cines, tables = [], [], []
    for k in range(0, n, 1024):
        patients = simulate(min(1024, n - k), SEED, device, start=start + k)
        prepared.append(pool.map(prepare_ecgs, [part.cpu().numpy() for part in patients.ecg.split(64)]))
        cines += [film_levels(part) for part in patients.cine.split(64)]
        tables.append((patients.phenotypes, patients.covariates))
    parts = [part for chunk in prepared for part in chunk]
    ecg, peaks = (torch.from_numpy(np.concatenate(arrays)).to(device) for arrays in zip(*parts))
    phenotypes, covariates = (pd.concat(t) for t in zip(*tables))
    return Pairs(ecg, peaks, torch.cat(cines), names=list(phenotypes.index)), phenotypes, covariates


def patients(study: Study, n_train: int, n_test: int):
    "Simulate everybody anew in each call: that is quicker than a store on disk."
    with timed(study, "patients"):
        began = time.monotonic()
        fresh = multiprocessing.get_context("spawn")   # a process that has seen a GPU must not be forked
        with ProcessPoolExecutor(os.cpu_count(), fresh, on_one_core) as pool:
            train, train_y, train_c = make_patients(n_train, 0, study.device, pool)
            study.test, test_y, test_c = make_patients(n_test, n_train, study.device, pool)
        study.train = with_targets(train, train_y)
        study.train.extra["targets"] = study.train.extra["targets"].to(study.device)
        study.phenotypes = {"train": train_y, "test": test_y}
        study.covariates = {"train": train_c, "test": test_c}
        study.keep(patients=[n_train, n_test], patients_per_second=(n_train + n_test) / (time.monotonic() - began))


# --- training within the time --------------------------------------------------------------------------------------------

def seconds_per_patient(model, step, data: Pairs, size: int, device: str) -> float:
    "Of a training step, after one that warms up."
    model = model.to(device).train()
    rows = torch.arange(min(size, len(data)))
    batch = {k: v.to(device) for k, v in data.__getitems__(rows).items()}
    for k in range(4):
        if k == 1:
            began = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = step(model, batch)["loss"]
        loss.backward()
        model.zero_grad()
        loss.item()
    return (time.perf_counter() - began) / 3 / len(rows)


def trained(study: Study, name: str, build, step, preset: Preset, lr: float, seconds: float):
    "A model from the folder --work, or trained for as many epochs as its seconds allow."
    folder = study.work/name
    if (folder/"config.json").exists():
        return from_pretrained(folder, study.device)
    torch.manual_seed(SEED)
    model = build()
    with timed(study, name):
        n = len(study.train)
        pace = seconds_per_patient(model, step, study.train, preset.batch_size, study.device)
        epochs = max(1, int(min(seconds, study.left() - RESERVE) / (pace * n)))
        if pace * n * 1.2 > study.left() - RESERVE:
            raise TimeUp(name)
        print(f"{name:<18} {1 / pace:,.0f} patients/s: {epochs} epochs", flush=True)
        torch.manual_seed(SEED)
        history = fit(model, step, study.train, preset, epochs, lr, seed=SEED, name=name)
        save_weights(model.eval(), folder)
    rates = study.results.get("patients_per_second_of_training", {}) | {name: 1 / pace}
    curves = study.results.get("curves", {}) | {name: history}
    study.keep(curves=curves, patients_per_second_of_training=rates)
    return model


# --- what was learned ----------------------------------------------------------------------------------------------------

def encode(study: Study, model: PTACL, data: Pairs) -> dict:
    "Features, embeddings and maps of everybody."
    def everything(batch: dict) -> tuple:
        e, c, view = model.over_time(batch)
        ecg, cmr = e.mean(1), c.mean(1)
        return ecg, cmr, model.proj_ecg(ecg), model.proj_cmr(cmr), cosine_maps(*model.moments(e, c, view))
    return dict(zip(("ecg", "cmr", "z_ecg", "z_cmr", "maps"), infer(everything, model, data, size=512)))


def joint_setting(study: Study, name: str, parts: tuple, seconds: dict) -> dict:
    "Global and PTACL in one of the paper's two settings: method -> model, outputs of the test patients."
    preset = study.presets[name]
    found = {}
    for method, beta in (("global", 0.0), ("ptacl", preset.beta)):
        key = f"{method}_{name}"
        p = replace(preset, beta=beta)
        model = trained(study, key, lambda p=p: start_joint(p, *(m.encoder for m in parts)), joint_step, p, p.lr_joint, seconds[key])
        outputs = encode(study, model, study.test)
        learned = contrast(outputs["z_ecg"], outputs["z_cmr"], p.tau_global, preset.batch_size)
        said = learned | {"alignment": alignment_scores(outputs.pop("maps"), circular=p.circular)}
        study.keep(learning=study.results.get("learning", {}) | {key: said})
        print(f"{key:<18} loss {said['loss']:.3f} of {said['chance']:.3f}, own patient at {said['rank_share']:.1%}", flush=True)
        found[method] = model, outputs
    return found


def mean_scores(board: pd.DataFrame, score: str) -> dict:
    "Mean over phenotypes of each row, by its words."
    rows = board[board.score == score]
    means = rows.groupby(["source", "input", "method", "eval"], sort=False).value.mean()
    return {", ".join(map(str, key)): float(value) for key, value in means.items()}


def features_of(study: Study, parts: tuple, found: dict) -> dict:
    "(input, method) -> features of the training and of the test patients; each film is encoded once."
    alone = start_joint(study.presets["regression"], *(m.encoder for m in parts), freeze=False).to(study.device)
    both = [infer(alone.features, alone, data, size=512) for data in (study.train, study.test)]
    features = {(kind, "MAE"): tuple(pair[k] for pair in both) for k, kind in enumerate(("ECG", "CMR"))}
    for method, title in (("global", "Global"), ("ptacl", "PTACL")):
        model, outputs = found[method]
        features["ECG", title] = infer(model.ecg_features, model, study.train, size=512), outputs["ecg"]
    return features


def write_table2(study: Study, parts: tuple, found: dict, n_boot: int, tuned: dict | None = None):
    "Table 2 of all models that there are, and the paper's."
    with timed(study, "table2"):
        study.features = study.features or features_of(study, parts, found)
        y, c = study.phenotypes, study.covariates
        features = {key: [pair] for key, pair in study.features.items()}
        board = table2(y["train"], y["test"], (c["train"], c["test"]), features, tuned, n_boot=n_boot)
        board.to_csv(study.out/"table2.csv", index=False)
        study.keep(table2=mean_scores(board, "R2"))


def write_table1(study: Study, found: dict, n_boot: int):
    "Table 1 of both models, and the paper's."
    with timed(study, "table1"):
        names = {"global": "Global", "ptacl": "PTACL"}
        embeddings = {names[k]: [(out["z_ecg"], out["z_cmr"])] for k, (_, out) in found.items()}
        board = table1(study.phenotypes["test"], study.covariates["test"], embeddings, n_boot=n_boot)
        board.to_csv(study.out/"table1.csv", index=False)
        study.keep(table1=mean_scores(board, "P@5"))


def write_encoder(study: Study, model: PTACL):
    "The ECG encoder in bf16, in pieces that stay below the size of one file."
    pieces, size = [{}], 0
    for name, weights in model.ecg.state_dict().items():
        weights = weights.to("cpu", torch.bfloat16).contiguous()
        if size + weights.nbytes > PIECE and pieces[-1]:
            pieces.append({})
            size = 0
        pieces[-1][name] = weights
        size += weights.nbytes
    for k, piece in enumerate(pieces, 1):
        save_file(piece, study.out/f"ecg_encoder_{k}.safetensors")


# --- all of it -----------------------------------------------------------------------------------------------------------

def bench(study: Study):
    "The training steps of the paper's sizes, one kind after the other while there is time: each is kept at once."
    sizes = {"mae_ecg": 512, "mae_cmr": 1024, "joint": 256} if study.device == "cuda" else dict.fromkeys(("mae_ecg", "mae_cmr", "joint"), 4)
    square = 8192 if study.device == "cuda" else 1024
    until = time.monotonic() + min(BENCH_SECONDS, study.left() / 8)
    rows = []
    with timed(study, "bench"):
        for kind in sizes:
            if time.monotonic() > until:
                break
            try:
                rows += time_steps(PRESETS["paper_regression"], sizes, 3, study.device, square, (kind,))
            except RuntimeError as e:   # out of memory, or a kernel that is not there: the study goes on
                rows.append({"what": kind, "problem": type(e).__name__})
            study.keep(bench=rows)
    if study.device == "cuda":
        torch.cuda.empty_cache()


def run(study: Study, given: argparse.Namespace):
    "Every part in its order; one that is there already is found."
    if "bench" not in study.results and not given.skip_bench:
        bench(study)
    patients(study, round(TRAIN * given.scale), max(20, round(TEST * given.scale)))
    budget = study.results.get("budget") or {name: share * study.left() for name, share in SHARES.items()}
    study.keep(budget=budget)
    p = study.presets["regression"]
    ecg = trained(study, "mae_ecg", lambda: MAE(ECGEncoder(p)), mae_ecg_step, p, p.lr_mae, budget["mae_ecg"])
    cmr = trained(study, "mae_cmr", lambda: MAE(CMREncoder(p)), mae_cmr_step, p, p.lr_mae, budget["mae_cmr"])
    regression = joint_setting(study, "regression", (ecg, cmr), budget)
    if "table2" not in study.results:
        write_table2(study, (ecg, cmr), regression, given.n_boot)
        write_encoder(study, regression["ptacl"][0])
    retrieval = joint_setting(study, "retrieval", (ecg, cmr), budget)
    if "table1" not in study.results:
        write_table1(study, retrieval, given.n_boot)
    if "finetuned" in study.results:
        return
    with timed(study, "finetuned"):
        model = regression["ptacl"][0]
        # a step of fine-tuning costs about as much as one of the ECG's autoencoder does, four times over: all tokens are seen
        pace = 4 * seconds_per_patient(MAE(ECGEncoder(p)), mae_ecg_step, study.train, p.batch_size, study.device)
        epochs = min(p.epochs_joint, int((study.left() - 2 * RESERVE) / (pace * len(study.train))))   # the last training has what is left
        if epochs < 1:
            raise TimeUp("finetuned")
        net = finetune(model.ecg, study.train, study.phenotypes["train"], epochs, seed=SEED)
        predictions = predict(net.to(study.device), study.test).to_numpy()
    write_table2(study, (ecg, cmr), regression, given.n_boot, {("ECG", "PTACL", "FN+AP"): [predictions]})
    study.keep(finetuned={"epochs": epochs})


def started() -> float:
    "time.monotonic() at which this process began: its imports count, too."
    return time.monotonic() - (time.time() - psutil.Process().create_time())


def kept_numbers(given: argparse.Namespace, settings: dict) -> dict:
    "Those of the calls before. Raises `PtaclError` where they are of other settings."
    kept = given.work/"gpu.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    other = [name for name, value in settings.items() if name in results and results[name] != value]
    if other:
        raise PtaclError(f"{given.work.name} holds models of another {', '.join(other)}", "Give another folder with --work")
    return results


def main():
    given, began = parsed(), started()
    os.environ.setdefault("PTACL_COMPILE", "0")   # seven trainings of a minute each would compile longer than they gain
    device = choose_device()
    settings = {"scale": given.scale, "presets": given.presets, "batch_size": given.batch_size, "seed": SEED}
    results = kept_numbers(given, settings)
    for folder in (given.out, given.work):
        folder.mkdir(parents=True, exist_ok=True)
    used = results.get("minutes_used", 0.0)
    minutes = min(given.call_minutes, given.minutes - used)
    if minutes <= 0:
        sys.exit(f"gpu: all of the {given.minutes:g} minutes are used up")
    presets = {name: get_preset(p, batch_size=given.batch_size) for name, p in zip(("regression", "retrieval"), given.presets)}
    study = Study(given.out, given.work, device, began, began + 60 * minutes, used, presets, results)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    study.keep(device=name, versions=versions(), **settings)
    finished = False
    try:
        run(study, given)
        finished = True
    except TimeUp as part:
        print(f"{part}: not within this call", flush=True)
    finally:
        if device == "cuda":
            study.results["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        study.keep(finished=finished)
    print("finished" if finished else "call again to go on")


if __name__ == "__main__":
    try:
        main()
    except PtaclError as error:
        sys.exit(f"gpu: {error}")
