"scripts/against.py: two revisions of a small repository, two rows that take their time, and one of this one."
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def against(monkeypatch):
    spec = importlib.util.spec_from_file_location("against", ROOT / "scripts" / "against.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "against", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def two_revisions(tmp_path, monkeypatch, against):
    "A slow module under its old name, and a quick one that has moved."
    repository = tmp_path / "repository"
    package = repository / "ptacl"
    package.mkdir(parents=True)
    def git(*words):
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(["git", "-C", str(repository), *name, *words], check=True, capture_output=True, text=True)
    git("init", "-q")
    (package / "__init__.py").write_text("")
    (package / "training.py").write_text("import time\ntime.sleep(2)\nMB = 300\n")
    git("add", ".")
    git("commit", "-qm", "slow")
    slow = git("rev-parse", "HEAD").stdout.strip()
    (package / "training.py").unlink()
    (package / "train").mkdir()
    (package / "train" / "loop.py").write_text("import time\ntime.sleep(0.1)\nMB = 100\n")
    monkeypatch.setattr(against, "REPOSITORY", repository)
    memory = against.Row("memory", 'say(seconds=1, mb=take("ptacl.train.loop.MB", "ptacl.training.MB"))')
    monkeypatch.setitem(against.ROWS, "memory", memory)
    return repository, slow


def test_a_moved_module_is_found_and_the_ratio_says_how_much_quicker_it_is(against, two_revisions, tmp_path, capsys):
    repository, slow = two_revisions
    file = tmp_path / "rows.json"
    options = ["--only", "import", "--only", "memory", "--repeats", "2", "--json", str(file)]
    rows = against.main([slow, *options])
    time, one, memory = json.loads(file.read_text())
    assert set(time) == {"what", "ratio", "lo", "hi"}
    assert 1 < time["lo"] <= time["ratio"] <= time["hi"]
    assert one["ratio"] == 1 and memory["ratio"] == 3 and "memory" in memory["what"]
    assert rows[0]["before"] > 2 and rows[0]["after"] > 0.1
    assert "2.00×" not in capsys.readouterr().out.splitlines()[-1]
    worktrees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True).stdout
    assert len(worktrees.splitlines()) == 1   # those of the comparison are gone


def test_two_revisions_can_be_compared_and_a_failing_row_says_where(against, two_revisions, monkeypatch):
    _, slow = two_revisions
    row, = against.main([slow, slow, "--only", "import", "--repeats", "1"])
    assert 0.5 < row["ratio"] < 2
    monkeypatch.setitem(against.ROWS, "memory", against.Row("memory", 'take("ptacl.nowhere.x")'))
    with pytest.raises(RuntimeError, match=r"(?s)before: .*ptacl.nowhere.x"):
        against.main([slow, "--only", "memory", "--repeats", "1"])


def test_the_rows_find_their_things_in_this_tree(against, tmp_path):
    "Names that `take` looks for: the first place of each is that of today."
    import re
    places = [re.findall(r'take\("([\w.]+)"', row.script) for row in against.ROWS.values()]
    names = {name for row in places for name in row}
    assert len(names) > 8
    lines = "\n".join(f'take("{name}")' for name in sorted(names))
    assert against.once(against.Row("names", lines + "\nsay(seconds=1)"), ROOT, tmp_path) == {"seconds": 1}


def test_training_loads_without_what_it_does_not_use():
    "A second or two of every start: detectors, pictures and tables that the loop has no need of."
    code = "import sys, ptacl.train.loop; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'torch'" in loaded
    for name in ("neurokit2", "pandas", "matplotlib", "sklearn", "great_tables", "zarr"):
        assert f"'{name}'" not in loaded, name
