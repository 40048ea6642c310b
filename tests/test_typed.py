"""What the texts tell people to type into a shell: every command is run as printed in a folder of its own, or is in the list of those that are not.

Where one would take minutes, `SHORTER` says by what it is made short. Blocks of Python: tests/test_docs.py.
"""
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
    "ptacl workshop start": "a server until somebody ends it; tests/test_workshop.py starts it",
    "ptacl run table": "every method in turn, minutes at any size; tests/test_studies.py runs the tables' parts",
    ".venv/bin/nbdev_export": "writes into the checkout; tests/test_project.py exports into a copy",
    ".venv/bin/nbdev_clean": "writes into the checkout; tests/test_project.py cleans a copy",
    ".venv/bin/nbdev_test": "a part of make test, as is this", ".venv/bin/python -m pytest": "a part of make test, as is this",
    "uv pip compile": "asks the package index; .ci/pins does it",
}
SHORTER = [
    ("ptacl simulate 150 ", "ptacl simulate 24 "), ("148 patients, 148", "22 patients, 22"),
    ("ptacl run joint  ", "ptacl run joint -p n_train 48 -p n_test 20 -p epochs 1 -p n_boot 20 "),
    ("joint -p cohort cohort -p preset paper_retrieval", "joint -p cohort cohort -p preset workshop -p epochs 1 -p n_boot 20"),
    ("ptacl workshop check", "ptacl workshop check 1 --no-run"), ("progress DIR", "progress course/student"),
]
PRINTED = "raw/", "cohort: "     # how the blocks begin that show files, or what a command says


def blocks(file):
    "Those without a language, shell or what it prints."
    found = re.finditer(r"^```(\w*)\n(.*?)^```", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for language, block in (m.groups() for m in found) if language in ("", "sh", "bash", "console")]


def commands(block):
    return [] if block.startswith(PRINTED) else [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def is_run(command): return not command.startswith(tuple(NOT_RUN))


def short(text):
    for long, less in SHORTER: text = text.replace(long, less)
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


@pytest.mark.skipif(os.name == "nt", reason="types into bash")
@pytest.mark.skipif(not shutil.which("git"), reason="no git")
@pytest.mark.parametrize("file", [pytest.param(f, marks=[pytest.mark.long] if "ptacl run" in "".join(blocks(f)) else []) for f in TEXTS
                                  if any(map(is_run, sum(map(commands, blocks(f)), [])))])
def test_commands_in_the_texts_run_as_printed(file, shell, tmp_path, data_samples):
    prepare(file, tmp_path / "work", data_samples)
    said = ""
    for block in map(short, blocks(file)):
        for command in filter(is_run, commands(block)): said = shell(command)
        if block.startswith("cohort: "): assert said.split() == block.split(), file


def test_what_is_not_run_stands_in_the_texts():
    "A list of exceptions that nobody needs any more would hide one that somebody makes."
    all_commands = [c for file in TEXTS for block in blocks(file) for c in commands(block)]
    assert [e for e in NOT_RUN if not any(c.startswith(e) for c in all_commands)] == []
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in TEXTS)
    assert [long for long, _ in SHORTER if long not in text] == []
    assert {f for f in TEXTS if any(map(is_run, sum(map(commands, blocks(f)), [])))} == {"README.md", "CONTRIBUTING.md", "docs/pages/own_cohort.md"}
