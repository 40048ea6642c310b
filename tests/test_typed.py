"""What the texts tell people to type into a shell: every command is run as printed in a folder of its own, or is in the list of those that are not.

Where one would take minutes, `SHORTER` says by what it is made short. Commands that train are long even so: ordinary tests run all others with what
`instead` leaves in their place, long ones run them, too. Blocks of Python: tests/test_docs.py.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted(str(f.relative_to(ROOT)) for f in (*ROOT.glob("*.md"), *ROOT.glob("docs/pages/*.md"), *ROOT.glob("data_samples/*.md")))
# begins like this -> why it is not run here
NOT_RUN = {
    "make demo": "five minutes; tests/test_quickstart.py runs its notebook",
    "make lab": "a server until somebody ends it, in an environment that is installed first",
    "py -3.11": "Windows, and installs from the network", r".venv\Scripts": "Windows, and installs from the network",
    "ptacl explore": "a server until somebody ends it; tests/test_explorer.py opens it",
    "ptacl workshop start": "a server until somebody ends it; tests/test_workshop.py starts it",
    ".venv/bin/nbdev_export": "writes into the checkout; tests/test_project.py exports into a copy",
    ".venv/bin/nbdev_clean": "writes into the checkout; tests/test_project.py cleans a copy",
    ".venv/bin/nbdev_test": "a part of make test, as is this", ".venv/bin/python -m pytest": "a part of make test, as is this",
    "pip wheel": "collects gigabytes from the package index", "pip install --no-index": "installs what that has collected",
    "uv pip compile": "asks the package index; .ci/pins does it",
}
SMALL = """-p methods '["mae","global","ptacl"]' -p reference mae -p repeated '["ptacl"]' -p epochs 1 -p n_boot 20 -p n_seeds 1"""
FEWER = [("ptacl simulate 150 ", "ptacl simulate 24 "), ("148 patients, 148", "22 patients, 22")]   # where nothing trains: tables take 20 to test on
SHORTER = [
    ("ptacl run joint  ", "ptacl run joint -p n_train 48 -p n_test 20 -p epochs 1 -p n_boot 20 "),
    ("joint -p cohort cohort -p preset paper_retrieval", "joint -p cohort cohort -p preset workshop -p epochs 1 -p n_boot 20"),
    ("-p preset paper_regression", "-p preset workshop " + SMALL), ("-p preset paper_retrieval  ", "-p preset workshop " + SMALL),
    ("simulate 20 raw_echo", "simulate 3 raw_echo"),
    ('"[0]" -p shares "[0.0]"', '"[0]" -p shares "[0.0]" -p n_train 32 -p n_test 24 -p epochs 1 -p n_boot 20'),
    ("seed=0,1,2,3", "seed=0,1"), ("-p n_seeds 4", "-p n_seeds 2"),
    ("ptacl workshop check", "ptacl workshop check 1 --no-run"), ("progress DIR", "progress course/student"),
]
TRAINS = "ptacl run "      # a minute or several each, whatever the size: a kernel, a cohort, an encoder for each modality, a report
PRINTED = "raw/", "cohort: "     # how the blocks begin that show files, or what a command says


def blocks(file):
    "Those without a language, shell or what it prints."
    found = re.finditer(r"^```(\w*)\n(.*?)^```", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for language, block in (m.groups() for m in found) if language in ("", "sh", "bash", "console")]


def commands(block):
    return [] if block.startswith(PRINTED) else [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def is_run(command): return not command.startswith(tuple(NOT_RUN))


def short(text, trains):
    for long, less in SHORTER + FEWER * (not trains): text = text.replace(long, less)
    return text


@pytest.fixture
def shell(tmp_path, root):
    "Types a command: what it says. `ptacl` is this one."
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ptacl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ptacl.app.cli "$@"\n')
    (tmp_path / "bin" / "ptacl").chmod(0o755)
    (tmp_path / "work").mkdir()
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "XDG_CONFIG_HOME": str(tmp_path / "config"),
                        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.example", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.example"}

    def typed(command):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "work", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout
    return typed


def prepare(file, folder, data_samples):
    "What the texts take as given: raw files under path/to/…, who has withdrawn, a change to commit."
    if file == "README.md":
        head, *rows = (data_samples / "phenotypes.csv").read_text().splitlines()
        raw, lines = folder / "path" / "to" / "raw", [head]
        for i in range(84):                                           # seven times the twelve: intervals take nine patients to validate with
            old, values = rows[i % len(rows)].split(",", 1)
            lines.append(f"sim-{i + 1:05d},{values}")
            for part, name in (("ecg", "{}_20205_2_0.xml"), ("cmr", "{}/sa.nii.gz")):
                new = raw / part / name.format(f"sim-{i + 1:05d}")
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(data_samples / part / name.format(old), new)
        (raw / "phenotypes.csv").write_text("\n".join(lines) + "\n")
        shutil.copytree(data_samples / "ecg", folder / "path" / "to" / "ecgs")
    if file == "docs/pages/own_cohort.md": (folder / "withdrawn.csv").write_text("sim-00005\n")
    if file == "CONTRIBUTING.md":
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        (folder / "changed").write_text("now")
        subprocess.run(["git", "add", "."], cwd=folder, check=True)


def instead(command, folder, root):
    "What later commands need of one that trains: a model that travels with the kit, and a result to report."
    experiment = command.split()[2]
    made = folder / "reports" / experiment
    if experiment == "joint" and not made.exists(): shutil.copytree(root / "ptacl" / "models" / "sigma-0", made / "runs" / "ptacl" / "model")
    made.mkdir(parents=True, exist_ok=True)
    (made / "result.json").write_text(json.dumps({"experiment": experiment, "rows": [{"score": "R²", "value": 0.4}]}))


typed_texts = [f for f in TEXTS if any(map(is_run, sum(map(commands, blocks(f)), [])))]
training_texts = [f for f in typed_texts if any(c.startswith(TRAINS) for block in blocks(f) for c in commands(block))]


def all_typed(file, shell, folder, root, trains):
    "Every command of a text in order, the training ones or what stands in their place."
    prepare(file, folder, root / "data_samples")
    said = ""
    for block in (short(text, trains) for text in blocks(file)):
        for command in filter(is_run, commands(block)):
            if command.startswith(TRAINS) and not trains: instead(command, folder, root)
            else: said = shell(command)
        if block.startswith("cohort: "): assert said.split() == block.split(), file


bash = pytest.mark.skipif(os.name == "nt" or not shutil.which("git"), reason="types into bash, and one of the commands is git")


@bash
@pytest.mark.parametrize("file", typed_texts)
def test_commands_in_the_texts_run_as_printed(file, shell, tmp_path, root): all_typed(file, shell, tmp_path / "work", root, False)


@bash
@pytest.mark.long
@pytest.mark.parametrize("file", training_texts)
def test_commands_in_the_texts_run_with_those_that_train(file, shell, tmp_path, root): all_typed(file, shell, tmp_path / "work", root, True)


def test_what_is_not_run_stands_in_the_texts():
    "A list of exceptions that nobody needs any more would hide one that somebody makes."
    all_commands = [c for file in TEXTS for block in blocks(file) for c in commands(block)]
    assert [e for e in NOT_RUN if not any(c.startswith(e) for c in all_commands)] == []
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in TEXTS)
    assert [long for long, _ in SHORTER + FEWER if long not in text] == []
    assert set(typed_texts) == {"README.md", "CONTRIBUTING.md", "docs/pages/own_cohort.md"} and set(training_texts) < set(typed_texts)
