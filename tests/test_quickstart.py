"The main job as a stranger starts it: the installed command in a process of its own, with a cohort small enough for a test."
import json
import os
import re
import shlex
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ptacl.app.cli import app
from ptacl.app.comparison import Compared, open_models
from ptacl.core.errors import PtaclError
from ptacl.studies.experiments import check_parameters, find_experiment, parameters_of
from ptacl.nets.joint import PTACL
from ptacl.nets.weights import from_pretrained
from ptacl.core.presets import PHENOTYPES


PTACL_COMMAND = Path(sys.executable).with_name("ptacl.exe" if os.name == "nt" else "ptacl")
METHODS = ["random", "demographics", "MAE", "global", "PTACL"]
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:root|home|work|tmp|Users|mnt|opt|private|scratch)/\w[^\s'\"]*|[A-Z]:\\Users\\\w+")  # as in test_project
PARTICIPANT = re.compile(r"(?<![a-zA-Z\d.])[1-6]\d{6}(?![a-zA-Z\d]|\.\d)")
SMALL = dict(n_train=32, n_test=24, epochs=1, seed=3, temperatures="[0.1, 0.2]", sigma=0.1)


class Run:
    "One call of `ptacl run quickstart`: what it said, when, and what it left."
    def __init__(self, folder, **parameters):
        self.folder, p = folder, SMALL | parameters | {"output_dir": str(folder / "out")}
        args = [a for name, value in p.items() for a in ("-p", name, str(value))]
        self.out, self.lines, started = folder / "out", [], time.monotonic()
        with open(folder / "stderr", "w+", encoding="utf-8") as errors:
            process = subprocess.Popen([PTACL_COMMAND, "run", "quickstart", *args], cwd=folder, stdout=subprocess.PIPE, stderr=errors,
                                       text=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
            try:
                for line in process.stdout: self.lines.append((time.monotonic() - started, line.rstrip("\n")))
                self.rc = process.wait(timeout=60)
            finally: process.kill()
            self.seconds = time.monotonic() - started
            errors.seek(0); self.stderr = errors.read()
        self.stdout = "\n".join(line for _, line in self.lines)

    @property
    def result(self):
        def refuse(name): raise AssertionError(f"{name} is no JSON")
        return json.loads((self.out / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)

    @property
    def notebook(self): return json.loads((self.out / "quickstart.ipynb").read_text(encoding="utf-8"))

    @property
    def html(self): return (self.out / "quickstart.html").read_text(encoding="utf-8")

    def clean(self, text):
        "Without the folder of this test, which a report may name because it was asked to write there."
        return text.replace(str(self.folder), "")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if not PTACL_COMMAND.exists(): pytest.skip("the ptacl command is not installed beside this Python")
    return Run(tmp_path_factory.mktemp("quickstart"))


# --- the run ---------------------------------------------------------------------------------------------------------------

def test_it_ends_well_and_leaves_three_files(run):
    assert run.rc == 0, run.stderr[-3000:]
    for name in ("quickstart.ipynb", "quickstart.html", "result.json"): assert (run.out / name).stat().st_size > 1000
    assert not [f for f in run.folder.iterdir() if f.name not in ("out", "stderr")]    # nothing elsewhere
    assert not list(run.out.glob(".*"))


def test_last_lines_say_where_and_the_key_numbers(run):
    said = run.stdout.splitlines()[-8:]
    for name in ("quickstart.html", "quickstart.ipynb", "result.json"): assert any(str(run.out / name) in line for line in said)
    for model, scores in run.result["alignment"].items():
        line = next(line for line in said if line.split()[:1] == [model])
        assert f"within_one {scores['within_one']:.3f}" in line and f"exact {scores['exact']:.3f}" in line


def test_what_it_says_to_do_next_can_be_done_as_printed(run, tmp_path, monkeypatch):
    "`share` is run; of `explore`, whose page has tests of its own, the models and the cohort are opened."
    last = [cell for cell in run.notebook["cells"] if cell.get("outputs")][-1]
    printed = "".join("".join(output["data"]["text/markdown"]) for output in last["outputs"])
    look, look_at_files, share = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("    ptacl ")]
    monkeypatch.chdir(tmp_path)
    shared = CliRunner().invoke(app, share)
    assert shared.exit_code == 0 and (tmp_path / "shared_model" / "README.md").exists(), shared.output
    assert look[0] == look_at_files[0] == "explore" and look[1:] == look_at_files[1:-2] and look_at_files[-2] == "--cohort"
    models = [folder for option, folder in zip(look[1::2], look[2::2]) if option == "--model"]
    assert list(Compared(look_at_files[-1], models).models) == list(open_models(models)) and len(models) == 2


def test_progress_is_seen_while_it_runs(run):
    at = {line.strip("─ "): t for t, line in run.lines if line.startswith("──")}
    assert list(at) == list(run.result["seconds"])
    assert at["virtual patients"] < at["pre-train both"] < at["train both"] < run.seconds - 1    # not all at the end
    epochs = {"MAE, ECG": 5, "MAE, CMR": 5, "global": 1, "PTACL": 1}
    for name in epochs:
        lines = [line for _, line in run.lines if re.match(rf"{name}  epoch \d+/\d+  loss \d", line)]
        assert lines and lines[-1].split("epoch ")[1].split()[0] == f"{len(lines)}/{len(lines)}"
        assert re.search(rf"{name}: +\d+%\|", run.stderr)                               # a bar for every training
    assert "Traceback" not in run.stderr


def test_result_has_the_agreed_shape(run):
    r = run.result
    assert {"cohort", "preset", "seed", "seconds", "versions", "alignment", "retrieval", "regression"} <= r.keys()
    assert r["preset"] == "workshop" and r["seed"] == 3
    assert (r["cohort"]["kind"], r["cohort"]["n_train"], r["cohort"]["n_test"], r["cohort"]["samples_read"]) == ("virtual", 32, 24, 12)
    assert all(s >= 0 for s in r["seconds"].values()) and 0 < sum(r["seconds"].values()) < run.seconds
    assert {"ptacl", "torch", "python", "git"} <= r["versions"].keys() and all(r["versions"].values())
    assert list(r["alignment"]) == ["global", "ptacl"]
    for s in r["alignment"].values():
        assert 0 <= s["exact"] <= s["within_one"] <= 1 and 0 <= s["phase_error"] <= 0.5 and s["n"] + s["skipped"] == 24
    assert list(r["retrieval"]) == list(r["regression"]) == METHODS
    for method in METHODS:
        assert list(r["retrieval"][method]) == list(r["regression"][method]) == list(PHENOTYPES)
        for row in r["retrieval"][method].values():
            assert all(0 <= row[f"P@{k}"] <= 1 for k in (1, 5, 10)) and 1 <= row["MnR"] <= 24 and 1 <= row["MdR"] <= 24
        assert all(row["R2"] <= 1 and row["R2_lo"] <= row["R2_hi"] for row in r["regression"][method].values())


def test_methods_are_measured_and_not_copied(run):
    r = run.result
    for table in ("retrieval", "regression"):
        rows = [json.dumps(r[table][method]) for method in METHODS]
        assert len(set(rows)) == len(METHODS)
    assert r["alignment"]["global"] != r["alignment"]["ptacl"]


def test_parameters_reach_the_models(run):
    p = run.result["parameters"]
    assert (p["epochs"], p["sigma"], p["temperatures"]) == (1, 0.1, [0.1, 0.2])
    for name, beta in (("global", 0), ("ptacl", p["beta"])):
        model = from_pretrained(run.out / "runs" / name / "model")
        q = model.preset
        assert isinstance(model, PTACL) and (q.sigma, q.tau_global, q.tau_local, q.beta) == (0.1, 0.1, 0.2, beta)
    injected = [c for c in run.notebook["cells"] if "injected-parameters" in c["metadata"].get("tags", [])]
    assert len(injected) == 1 and "n_train = 32" in "".join(injected[0]["source"])


# --- the report ------------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    "What a page loads, its words and its pictures."
    def __init__(self, text):
        super().__init__()
        self.loads, self.words, self.css, self.pictures, self.inside = [], [], [], 0, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.inside = tag if tag in ("script", "style") else None
        target = a.get("src") or a.get("data") or a.get("poster") or a.get("srcset")
        if tag in ("link", "image", "use", "base"): target = target or a.get("href")
        if target and not target.startswith(("data:", "#")): self.loads.append(f"<{tag}> {target[:100]}")
        self.css.append(a.get("style") or "")
        self.pictures += tag == "img" and (a.get("src") or "").startswith("data:image/png;base64,")

    def handle_endtag(self, tag): self.inside = None

    def handle_data(self, data):
        if self.inside == "style": self.css.append(data)
        elif self.inside is None: self.words.append(data)


def test_what_a_page_loads_is_found():
    page = Page('<link href="a.css"><script src="https://x/y.js"></script>'
                '<img src="data:image/png;base64,AA"><p style="background:url(b.png)">hello</p>')
    assert page.loads == ["<link> a.css", "<script> https://x/y.js"] and page.pictures == 1 and "".join(page.words) == "hello"
    assert any("b.png" in css for css in page.css)


def test_html_opens_without_internet(run):
    page = Page(run.html)
    assert page.loads == []
    for css in page.css:
        assert "@import" not in css
        for url in re.findall(r"url\(\s*['\"]?([^)]{0,60})", css): assert url.startswith(("data:", "#")), url
    assert page.pictures >= 7
    words = " ".join("".join(page.words).split())
    for said in ("not for clinical use", "Table 1", "Table 2", "Fig. 2", "within_one", "demographics", "32 training and 24 held-out"):
        assert said in words
    assert "import torch" not in words                                                  # pictures and words, no code
    assert "$" not in words                                                             # formulas would need a program from elsewhere


def test_executed_notebook_is_whole(run):
    code = [c for c in run.notebook["cells"] if c["cell_type"] == "code"]
    assert all(c["execution_count"] for c in code) and not [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
    assert "widgets" not in run.notebook["metadata"]


def outputs(notebook):
    for cell in notebook["cells"]:
        yield "".join(cell["source"])
        for o in cell.get("outputs", []):
            yield "".join(o.get("text", ""))
            for mime, data in o.get("data", {}).items():
                if not mime.startswith("image/"): yield "".join(data) if isinstance(data, list) else json.dumps(data)


def found(pattern, text): return sorted({m[0] for m in pattern.finditer(text)})


def test_no_participant_in_the_report(run):
    words = {"html": "".join(Page(run.html).words), "notebook": "\n".join(outputs(run.notebook)), "screen": run.stdout + run.stderr}
    assert {where: hits for where, text in words.items() if (hits := found(PARTICIPANT, text))} == {}


def test_no_path_of_this_machine_in_result(run):
    assert found(MACHINE_PATH, run.clean(json.dumps(run.result))) == []


def test_no_path_of_this_machine_in_what_the_report_shows(run):
    assert found(MACHINE_PATH, run.clean("".join(Page(run.html).words))) == []
    assert found(MACHINE_PATH, run.clean("\n".join(outputs(run.notebook)))) == []


def test_no_path_of_this_machine_in_the_metadata_of_the_notebook(run):
    kept = [run.notebook["metadata"], *(c["metadata"] for c in run.notebook["cells"])]
    assert found(MACHINE_PATH, run.clean(json.dumps(kept))) == []


# --- refusals --------------------------------------------------------------------------------------------------------------

def refused(*args):
    "The message of the command, which ends with status 1 and one line; what it lets through is raised."
    answer = CliRunner().invoke(app, ["run", *args], catch_exceptions=False)
    assert answer.exit_code == 1 and not answer.stdout
    assert answer.stderr.startswith("ptacl: ") and answer.stderr.count("\n") == 1
    return answer.stderr


@pytest.mark.parametrize("args, says", [
    (["-p", "n_trian", "32"], "no parameter n_trian: it takes preset, n_train"), (["-p", "n_train", "many"], "n_train = many is no whole number"),
    (["-p", "n_train", "32.5"], "32.5 is no whole"), (["-p", "n_train", "True"], "no whole number"), (["-p", "n_train", ""], "no whole number"),
    (["-p", "sigma", "soft"], "sigma = soft is no number"), (["-p", "temperatures", "0.1"], "is no list"), (["-p", "seed", "[1]"], "no whole number"),
    (["-p", "temperatures", "__import__('os').getcwd()"], "is no list"), (["-p", "n_train"], "-p NAME VALUE"), (["n_train", "32"], "-p NAME VALUE"),
    (["--n_train", "32"], "-p NAME VALUE"), (["-p", "n_train", "32", "-p"], "-p NAME VALUE")])
def test_wrong_names_and_types_are_refused_before_anything_starts(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused("quickstart", *args)
    assert not list(tmp_path.iterdir())


def test_unknown_experiment_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "unknown experiment 'quickstrat': choose from" in refused("quickstrat")


def test_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    assert "taken" in refused("quickstart", "-p", "output_dir", str(tmp_path / "taken"))


def test_given_values_get_their_types():
    notebook = find_experiment("quickstart")
    assert set(parameters_of(notebook)) == {"preset", "n_train", "n_test", "seed", "epochs", "sigma", "temperatures", "beta", "output_dir"}
    assert check_parameters(notebook, {"n_train": "32", "sigma": "1", "temperatures": "[0.1, 1]", "output_dir": "1"}) == {
        "n_train": 32, "sigma": 1.0, "temperatures": [0.1, 1], "output_dir": "1"}
    assert check_parameters(notebook, {"n_train": 32, "sigma": 1, "preset": "workshop"}) == {"n_train": 32, "sigma": 1.0, "preset": "workshop"}


@pytest.mark.parametrize("value", ["None", None])
def test_none_can_be_given_where_it_is_the_default(value):
    assert check_parameters(find_experiment("quickstart"), {"epochs": value, "temperatures": value}) == {"epochs": None, "temperatures": None}


@pytest.fixture(scope="module")
def validation():
    "The parameters cell, the imports and the cell that checks, as code."
    code = [c for c in json.loads(find_experiment("quickstart").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert code[0]["metadata"]["tags"] == ["parameters"]
    return ["".join(c["source"]) for c in code[:3]]


def checks(validation, **parameters):
    names = {}
    exec(validation[0], names); names |= parameters
    for source in validation[1:]: exec(source, names)
    return names["p"]


@pytest.mark.parametrize("parameters, says", [
    (dict(preset="huge"), "unknown preset 'huge': choose from"), (dict(n_train=2), "n_train"), (dict(n_test=1), "n_test"),
    (dict(n_train=-5), "n_train"),
    (dict(sigma=-1.0), "sigma must be ≥ 0"), (dict(temperatures=[1]), "two numbers, .global, local."),
    (dict(temperatures=[]), "two numbers, .global, local."),
    (dict(temperatures=[0.1, 0.1, 0.1]), "two numbers, .global, local."), (dict(temperatures=[0.1, 0]), "temperatures must be > 0"),
    (dict(epochs=0), "epochs"),
    (dict(beta=-1.0), "beta must be ≥ 0"), (dict(temperatures=["a", 1]), "two numbers, .global, local.")], ids=str)
def test_bad_values_are_refused_before_anything_is_simulated(validation, parameters, says):
    with pytest.raises(PtaclError, match=says): checks(validation, **parameters)


def test_good_values_pass(validation):
    p = checks(validation, preset="paper_retrieval", epochs=2, sigma=0.2, temperatures=[0.3, 0.4], beta=0.0)
    assert (p.name, p.epochs_joint, p.sigma, p.tau_global, p.tau_local, p.beta) == ("paper_retrieval", 2, 0.2, 0.3, 0.4, 0)


def test_a_bad_value_ends_with_one_line_and_leaves_the_earlier_report(tmp_path):
    (tmp_path / "out").mkdir(); (tmp_path / "out" / "result.json").write_text('{"old": 1}')
    run = Run(tmp_path, sigma=-1)
    said = [line for line in run.stderr.splitlines() if line.startswith("ptacl: ")]
    assert run.rc == 1 and len(said) == 1 and "sigma must be ≥ 0, got -1" in said[0] and "Traceback" not in run.stderr + run.stdout
    assert (run.out / "result.json").read_text() == '{"old": 1}' and (run.out / "failed.json").exists()
    assert "virtual patients" not in run.stdout
