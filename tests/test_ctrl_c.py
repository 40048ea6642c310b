"""Ctrl-C on every command that may take long: it ends within two seconds with one line that says what is kept and how to go on.

Measured where nothing else runs; the limit here is for machines on which much does. What is measured is printed (pytest -rP).
"""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from typer.main import get_command

from ptacl.app.cli import app

pytestmark = pytest.mark.skipif(os.name == "nt", reason="ends by a signal")
LIMIT = 2 if os.environ.get("PTACL_QUIET") else 20   # s: two are meant, where nothing else runs
MANY = 3000          # files: seconds of work on any machine
SERVERS = "explore", "workshop start"
LONG = "run processes", "workshop check notebooks", "workshop start", "workshop progress", "bench"   # until they are at work


def link(old, new):
    "The same bytes under another name."
    new.parent.mkdir(parents=True, exist_ok=True)
    try: os.link(old, new)
    except OSError: os.symlink(old, new)      # another disk


@pytest.fixture(scope="module")
def given(tmp_path_factory, root):
    "What the commands work on: many patients, labels, finished runs, learners' notebooks, a model, a probe, a slow git."
    top = tmp_path_factory.mktemp("given")
    head, *rows = (root / "data_samples" / "phenotypes.csv").read_text().splitlines()
    names = [(f"sim-{i + 1:05d}", rows[i % len(rows)].split(",", 1)) for i in range(MANY)]
    for new, (old, _) in names:
        link(root / "data_samples" / "ecg" / f"{old}_20205_2_0.xml", top / "raw" / "ecg" / f"{new}_20205_2_0.xml")
        link(root / "data_samples" / "cmr" / old / "sa.nii.gz", top / "raw" / "cmr" / new / "sa.nii.gz")
    (top / "raw" / "phenotypes.csv").write_text("\n".join([head, *(f"{new},{values}" for new, (_, values) in names)]) + "\n")
    (top / "labels.csv").write_text("file,ill\n" + "".join(f"{new}_20205_2_0.xml,{i % 2}\n" for i, (new, _) in enumerate(names)))
    result = json.dumps({"experiment": "x", "rows": [{"score": "R²", "value": i / 7} for i in range(50)]})
    for i in range(MANY):
        (top / "reports" / f"run {i}").mkdir(parents=True)
        (top / "reports" / f"run {i}" / "result.json").write_text(result)
        for file in (root / "nbs" / "workshop").glob("01*.ipynb"): link(file, top / "learners" / f"learner {i}" / file.name)
    (top / "bin").mkdir()
    (top / "bin" / "git").write_text("#!/bin/sh\ntouch git-is-asked; exec sleep 600\n")
    (top / "bin" / "git").chmod(0o755)
    (top / "project" / ".git").mkdir(parents=True)
    return top


@pytest.fixture(scope="module")
def probe(given, root):
    "A probe of the model below that says the same to everybody."
    import numpy as np

    from ptacl.inference.embedding import ECGFeatures
    from ptacl.inference.prediction import Probe, fingerprint, save_probe
    from ptacl.rivals.methods import load_method
    features = ECGFeatures(load_method(root / "ptacl" / "models" / "sigma-0"))
    width = features.encoder.preset.width
    save_probe(Probe(["LVEDV"], np.zeros((width, 1)), np.zeros(1), np.zeros((99, 1)), {"model": fingerprint(features)}), given / "probe")


class Begun:
    "A command that runs: what it has said, what it has started, what it has written."
    def __init__(self, command, folder, given):
        self.folder, self.mark = folder, uuid4().hex
        places = {"given": given, "model": Path(__file__).parents[1] / "ptacl" / "models" / "sigma-0"}
        words = [word.format(**places) for word in command]
        env = os.environ | {"PTACL_TEST_MARK": self.mark}
        if words[0] == "audit": env["PATH"] = f"{given / 'bin'}{os.pathsep}{env['PATH']}"
        with open(folder / "said", "w") as said:
            self.process = subprocess.Popen([sys.executable, "-m", "ptacl.app.cli", *words], cwd=folder, env=env,
                                            start_new_session=True, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def said(self, pattern=""):
        "The lines with it; a progress bar's every move is one."
        lines = re.split(r"[\r\n]+", (self.folder / "said").read_text(encoding="utf-8", errors="replace"))
        return [line for line in lines if line and re.search(pattern, line)]
    def wrote(self, pattern): return any(self.folder.glob(pattern))

    def worked(self, seconds):
        "Has it used so much time of a core? Loading libraries takes a second or two of it."
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system > seconds

    def started(self, word):
        "Has it started a process whose command has this word?"
        def command(process):
            try: return process.cmdline()
            except psutil.Error: return []
        return any(word in " ".join(command(p)) for p in psutil.Process(self.process.pid).children(recursive=True))

    def left(self):
        "Processes of it that run still."
        def ours(process):
            try: return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("PTACL_TEST_MARK") == self.mark
            except psutil.Error: return False
        return [p for p in psutil.process_iter() if ours(p)]


# command, when it is at work, what its last line says
COMMANDS = {
    "simulate": ("simulate 100000 out", lambda c: c.wrote("*out*"), "nothing was written; the same command"),
    "simulate files": ("simulate 100000 out --format ukb", lambda c: c.wrote("*out*/**/*.xml"), "nothing was written; the same command"),
    "ingest": ("ingest {given}/raw out", lambda c: c.said(rf"[1-9]\d*/{MANY}"), "patients stored so far are kept; the same command"),
    "audit": ("audit {given}/project", lambda c: c.wrote("git-is-asked"), "nothing was changed; the same command"),
    "run": ("run quickstart", lambda c: c.wrote("reports/quickstart/running.ipynb"), "running.ipynb .* the same command"),
    "run sweep": ("run quickstart --sweep seed=0,1", lambda c: c.wrote("reports/quickstart/seed=0/running.ipynb"), "the same command"),
    "run processes": ("run joint --processes 2 -p n_train 16 -p n_test 20", lambda c: c.started("torchrun") or c.started("torch.distributed"),
                      "running.ipynb .* the same command"),
    "report": ("report {given}/reports", lambda c: c.worked(4), "the runs are as they were; the same command"),
    "explore": ("explore --no-browser --port 28866", lambda c: c.started("run_page"), "the same command opens the explorer again"),
    "embed": ("embed {given}/raw/ecg --model {model} --out out.csv --own-names", lambda c: c.said(rf"[1-9]\d*/{MANY}"),
              "nothing was written; the same command"),
    "predict": ("predict {given}/raw/ecg --model {model} --probe {given}/probe --out out.csv --own-names", lambda c: c.said(rf"[1-9]\d*/{MANY}"),
                "nothing was written; the same command"),
    "probe": ("probe {given}/raw/ecg --labels {given}/labels.csv --model {model} --out out.csv", lambda c: c.said(rf"[1-9]\d*/{MANY}"),
              "nothing was written; the same command"),
    "export": ("export --model {model} --out out.onnx", lambda c: c.worked(3), "nothing was (written|started)"),
    "share": ("share --model {model} --out out", lambda c: c.worked(3), "nothing was (written|started)"),
    "workshop build": ("workshop build out", lambda c: c.wrote("*out*/**/slides/*.html"), "nothing was written; the same command"),
    "workshop check": ("workshop check --no-run", lambda c: c.said("01_two_views"), "the numbers of the others"),
    "workshop check notebooks": ("workshop check 1", lambda c: c.started("ipykernel"), "the numbers of the others"),
    "workshop start": ("workshop start --no-browser --port=28888 out", lambda c: c.said("is running at"), "jupyter lab FOLDER goes on"),
    "workshop progress": ("workshop progress {given}/learners", lambda c: c.worked(4), "nothing was written; the same command"),
    "bench": ("bench --device cpu", lambda c: c.worked(15), "no numbers were written"),
}


def test_every_command_is_among_them():
    def names(group, before=""):
        for name, command in group.commands.items():
            yield from names(command, f"{before}{name} ") if hasattr(command, "commands") else [before + name]
    assert {name for name in names(get_command(app)) if not any(case.startswith(name) for case in COMMANDS)} == set()


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.long] * (case in LONG)) for case in COMMANDS])
def test_a_long_command_ends_soon_and_says_what_is_kept(case, given, tmp_path, request):
    if case == "predict": request.getfixturevalue("probe")
    command, at_work, words = COMMANDS[case]
    begun = Begun(command.split(), tmp_path, given)
    try:
        until = time.monotonic() + 1200
        while begun.process.poll() is None and not at_work(begun):
            assert time.monotonic() < until, begun.said()
            time.sleep(0.05)
        assert begun.process.poll() is None, f"it ended by itself: {begun.said()}"
        asked = time.monotonic()
        os.killpg(begun.process.pid, signal.SIGINT)
        status = begun.process.wait(120)
        seconds = time.monotonic() - asked
        print(f"{case}: {seconds:.2f} s after Ctrl-C, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        said = [line for line in begun.said("ptacl: ") if "explorer is at" not in line]
        assert len(said) == 1 and re.search(words, said[0]), begun.said()
        if case != "workshop check":                                     # an exercise on its way may still say how it went
            assert begun.said()[-1] == said[0], begun.said()
        assert not begun.said("Traceback") and status == (0 if case in SERVERS else 130)
        assert seconds < LIMIT
        until = time.monotonic() + 60                                    # who is killed has gone some moments later
        while begun.left() and time.monotonic() < until: time.sleep(0.1)
        assert begun.left() == []
    finally:
        for process in begun.left(): process.kill()


@pytest.mark.long
def test_a_sweep_stopped_by_hand_has_no_failed_run(given, tmp_path):
    "Where the machine is too slow for it to be written down within two seconds, there is no word of it."
    begun = Begun(["run", "quickstart", "--sweep", "seed=0,1"], tmp_path, given)
    until = time.monotonic() + 1200
    while begun.process.poll() is None and not begun.wrote("reports/quickstart/seed=0/running.ipynb"):
        assert time.monotonic() < until, begun.said()
        time.sleep(0.05)
    os.killpg(begun.process.pid, signal.SIGINT)
    assert begun.process.wait(120) == 130
    told = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.rglob("failed.json")]
    assert all(run["stopped"] for run in told) and len(told) <= 1 and not begun.wrote("reports/quickstart/seed=1")
