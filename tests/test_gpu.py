"The script for one GPU: it loads, and at a two-hundredth of its size a CPU goes through all of it, in as many calls as it takes."
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu.py"


def call(*options, **kw):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, options)], capture_output=True, text=True, **kw)


def test_it_loads_and_says_what_it_does():
    shown = call("--help")
    assert shown.returncode == 0 and "one GPU" in shown.stdout, shown.stderr


@pytest.mark.long
def test_all_of_it_at_a_two_hundredth(tmp_path):
    options = ("--out", tmp_path / "out", "--work", tmp_path / "work", "--scale", 0.005, "--presets", "workshop", "workshop",
               "--batch-size", 16, "--n-boot", 20, "--skip-bench", "--minutes", 40)
    for minutes in (2, 30):  # the first call ends on the way
        done = call(*options, "--call-minutes", minutes)
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert found["finished"] and {"table1", "table2", "learning", "curves", "finetuned"} <= set(found)
    assert all(row["chance"] > 0 and 0 < row["rank_share"] <= 1 for row in found["learning"].values())
    files = list((tmp_path / "out").iterdir())
    assert len(files) <= 8 and max(f.stat().st_size for f in files) < 16 * 2**20
