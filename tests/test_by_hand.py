"What people do by hand: Ctrl-C, a mistyped name, a file that is there already."
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from ptacl.app.cli import app
from ptacl.studies.report import write_report

LIMIT = 2 if os.environ.get("PTACL_QUIET") else 20   # s: two are meant, where nothing else runs


def interrupted(command, ready, folder):
    "The command, Ctrl-C to its whole group as soon as `ready()`: seconds until it ended, status, what it said at last."
    process = subprocess.Popen([sys.executable, "-m", "ptacl.app.cli", *command], cwd=folder, start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(600):
        if ready() or process.poll() is not None: break
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    return time.monotonic() - asked, process.returncode, [line for line in said.splitlines() if line.startswith("ptacl: ")]


@pytest.mark.skipif(os.name == "nt", reason="ends by a signal")
def test_a_run_ends_soon_and_is_no_failure(tmp_path):
    running = tmp_path / "reports" / "quickstart" / "running.ipynb"
    seconds, status, said = interrupted(["run", "quickstart"], running.exists, tmp_path)
    assert seconds < LIMIT and status == 130
    assert len(said) == 1 and "stopped by hand" in said[0] and "running.ipynb" in said[0] and "the same command" in said[0]
    kept = json.loads((running.parent / "failed.json").read_text(encoding="utf-8"))
    assert kept["stopped"] is True and kept["error"] == "stopped by hand"
    report = write_report(tmp_path / "reports")
    assert (report["finished"], report["failed"], report["stopped"]) == (0, 0, 1)
    assert "0 failed, 1 stopped by hand" in report["html"].read_text(encoding="utf-8")
    answer = CliRunner().invoke(app, ["report", str(tmp_path / "reports")])
    assert answer.exit_code == 0 and "0 failed, 1 stopped by hand" in answer.stdout


@pytest.mark.skipif(os.name == "nt", reason="ends by a signal")
def test_simulate_ends_soon_and_says_what_is_kept(tmp_path):
    begun = time.monotonic()
    seconds, status, said = interrupted(["simulate", "5000", "raw", "--format", "ukb"], lambda: time.monotonic() - begun > 3, tmp_path)
    assert seconds < LIMIT and status == 130 and len(said) == 1 and "stopped by hand" in said[0]


@pytest.mark.parametrize("args, meant", [(["run", "quickstrat"], "quickstart"), (["run", "quickstart", "-p", "n_trian", "8"], "n_train"),
                                         (["simulate", "3", "out", "-p", "rythm", "af"], "rhythm"), (["embedd"], "embed")])
def test_a_mistyped_name_gets_the_nearest(args, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, args)
    assert answer.exit_code and f"Did you mean {meant}?" in answer.stderr.replace("'", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["embed", "ecgs", "--model", "model"], ["predict", "ecgs", "--model", "model", "--probe", "probe"]])
def test_a_file_is_not_replaced_unasked(command, tmp_path):
    out = tmp_path / "table.csv"
    out.write_text("mine")
    answer = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert answer.exit_code == 1 and f"{out}: exists already" in answer.stderr and "--force" in answer.stderr
    asked = CliRunner().invoke(app, [*command, "--out", str(out), "--force"])
    assert "exists already" not in asked.stderr and out.read_text() == "mine"       # refused for the model that is not there


def helped(*words):
    "What `ptacl … --help` says, on lines as wide as a terminal's."
    answer = CliRunner().invoke(app, [*words, "--help"], terminal_width=80)
    assert answer.exit_code == 0
    return answer.output


@pytest.mark.parametrize("group", [[], ["workshop"]])
def test_the_help_has_a_whole_sentence_for_each_command(group):
    commands = [line.split(maxsplit=1) for line in helped(*group).partition("Commands:\n")[2].splitlines()]
    assert len(commands) > 3
    assert [told for _, told in commands if not told.endswith(".") or told.endswith("..") or len(told) > 60] == []


def test_the_help_of_run_names_all_experiments(root):
    told = " ".join(helped("run").split())
    names = re.search(r"Experiments: ([\w, ]+)\.", told)[1].split(", ")
    assert names == sorted(f.stem for f in (root / "nbs" / "experiments").glob("*.ipynb")) and "--parameters" in told


def test_an_experiment_says_its_parameters_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["run", "table2", "--parameters"])
    assert answer.exit_code == 0 and not list(tmp_path.iterdir())
    assert re.search(r"^-p n_seeds +trainings of the methods in .* \(default: 3\)$", answer.output, re.MULTILINE)


def test_the_help_of_simulate_names_every_parameter():
    told = helped("simulate")
    refused = CliRunner().invoke(app, ["simulate", "3", "out", "-p", "no_such", "1"]).stderr
    names = re.search(r"choose from (.+)$", refused.strip())[1].split(", ")
    assert len(names) > 10
    assert [name for name in names if name != "echo" and not re.search(rf"^  -p {name} \S+ +\S", told, re.MULTILINE)] == []


def test_the_help_of_report_names_its_files():
    told = " ".join(helped("report").split())
    assert all(name in told for name in ("FOLDER/report.html", "report.csv", "report.tex", "Status 1"))


def test_a_model_that_is_nowhere_is_said_to_be(tmp_path):
    answer = CliRunner().invoke(app, ["embed", str(tmp_path), "--model", str(tmp_path / "none"), "--out", str(tmp_path / "e.csv")])
    assert answer.exit_code == 1 and "there is no such folder. `ptacl run joint` leaves a model in" in answer.stderr
