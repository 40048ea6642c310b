"""Marks: nbgrader itself makes an assignment of a session and grades it. It is no part of the kit, so it is installed for the test."""
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ptacl.course.sessions import assignments, exercises, session_version, sessions, tagged
from ptacl.course.workshop import build

VERSION = "0.9.6"    # the one that the chapter on sessions names
FILE = sessions()[0]
NAME = FILE.stem


def read(file): return nbformat.read(file, 4)


def test_what_nbgrader_gets_is_the_session_without_what_is_for_the_teacher(tmp_path):
    made = assignments(tmp_path / "nbgrader")
    assert sorted(f.stem for f in (made / "source").rglob("*.ipynb")) == [f.stem for f in sessions()]
    for file in sessions():
        source, student = read(made / "source" / file.stem / file.name), session_version(read(file), file.stem, True)
        assert [(c.id, c.metadata.get("nbgrader")) for c in source.cells] == [(c.id, c.metadata.get("nbgrader")) for c in student.cells]
        assert not any(c.get("outputs") for c in source.cells) and "### BEGIN SOLUTION" in str(source)


@pytest.fixture(scope="module")
def nbgrader(tmp_path_factory, root):
    "nbgrader in an environment of its own that sees all packages of this one: a command that runs it in a folder."
    top = tmp_path_factory.mktemp("nbgrader")
    subprocess.run([sys.executable, "-m", "venv", top / "env"], check=True)
    programs = top / "env" / ("Scripts" if os.name == "nt" else "bin")
    def of_the_environment(key): return sysconfig.get_path(key, "venv", {"base": str(top / "env")})
    (Path(of_the_environment("purelib")) / "kit.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run([programs / "python", "-m", "pip", "install", "-q", "-c", root / "constraints.txt", f"nbgrader=={VERSION}"],
                          capture_output=True, text=True)
    if done.returncode: pytest.skip(f"nbgrader {VERSION} does not install: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    env = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(folder, *words):
        done = subprocess.run([programs / "nbgrader", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-3000:]
    return run


def hand_in(folder, learner, answers, check=None):
    "A learner's copy, as `ptacl workshop start` made it, with these answers and perhaps another first check."
    nb = session_version(read(FILE), NAME, True)
    for cell, answer in zip([c for c in nb.cells if tagged(c, "exercise")], answers): cell.source = answer
    if check: next(c for c in nb.cells if tagged(c, "check")).source = check
    (folder / "submitted" / learner / NAME).mkdir(parents=True)
    nbformat.write(nb, folder / "submitted" / learner / NAME / FILE.name)


@pytest.mark.long
def test_nbgrader_grades_a_session(nbgrader, tmp_path):
    folder = build(tmp_path / "course") / "nbgrader"
    nbgrader(folder, "generate_assignment", NAME)
    released = read(folder / "release" / NAME / FILE.name)
    assert [c.source for c in released.cells] == [c.source for c in read(tmp_path / "course" / "student" / FILE.name).cells]

    tasks = exercises(read(FILE))
    right = [task.solution for task in tasks]
    wrong = [right[0], tasks[1].wrong[0], right[2]]
    hand_in(folder, "right", right)
    hand_in(folder, "wrong", wrong)
    hand_in(folder, "tick", [tasks[0].wrong[0], *right[1:]], check="print('✓ heart_rate is right')")
    hand_in(folder, "nothing", [])
    nbgrader(folder, "autograde", NAME)
    nbgrader(folder, "export")
    grades = pd.read_csv(folder / "grades.csv").set_index("student_id")
    assert grades.score.to_dict() == {"right": 3, "wrong": 2, "tick": 2, "nothing": 0} and set(grades.max_score) == {3}
    told = read(folder / "autograded" / "wrong" / NAME / FILE.name)
    assert "given in percent" in str([c.outputs for c in told.cells if tagged(c, "check")][1])
