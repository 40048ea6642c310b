"""How fast this checkout is against an earlier revision, or one revision against another, on this machine.

    python scripts/against.py 66cc721                         # all rows, the working tree against that revision
    python scripts/against.py 66cc721 HEAD --only import --only embed --repeats 9 --json speed.json

Each row is a small script that runs in a process of its own in a tree of each revision, on the same data and with two threads. The revisions
take turns, so that what else the machine does meets both; of every turn the ratio is taken. The table has medians with quartiles, and a ratio
above 1 says that the second revision is quicker (or smaller, where a row is of memory). Modules have moved since the first revisions: `take`
in a script names the places in which a thing may lie, the newest first.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
THREADS = 2
PATIENTS = {"ukb": 192, "nifti": 48, "wfdb": 256}   # format -> virtual patients in the folder of that name

PREAMBLE = '''
import json, sys, time
from importlib import import_module
from pathlib import Path

# an installation in place would give a tree that lacks a module the one of another tree
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
begun = time.perf_counter()
data, out = map(Path, sys.argv[1:3])

def take(*places):
    for place in places:
        module, _, name = place.rpartition(".")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            pass
    raise ImportError(" or ".join(places))

def seconds_of(f, *arguments, times=1, **options):
    begun = time.perf_counter()
    for _ in range(times):
        f(*arguments, **options)
    return (time.perf_counter() - begun) / times

def say(**values):
    print(json.dumps(values))
'''

STEP = '''
import torch
get_preset = take("ptacl.core.presets.get_preset", "ptacl.presets.get_preset")
start = take("ptacl.bench.training.start_model", "ptacl.bench.start")
pairs = take("ptacl.bench.training.noise_pairs", "ptacl.bench.made_up")(128)
epoch_of = take("ptacl.bench.training.epoch_of", "ptacl.bench.an_epoch")
take("ptacl.core.devices.keep_memory", "ptacl.train.optimiser.keep_memory", "ptacl.training.keep_memory")()
torch.manual_seed(0)
preset, size = get_preset("workshop"), SIZE
if hasattr(pairs, "shrunk"):   # films as its trainings keep them
    pairs = pairs.shrunk(preset.size)
batch = pairs.__getitems__(list(range(size)))
step = epoch_of("KIND", start("KIND", preset), preset, lambda: [dict(batch)], size, "cpu")
step()
say(seconds=seconds_of(step, times=2))
'''

SIMULATE = '''
simulate = take("ptacl.simulate.patients.simulate", "ptacl.virtual.simulate")
simulate(2, 0)
say(seconds=seconds_of(simulate, 32, 1))
'''

BEATS = '''
simulate = take("ptacl.simulate.patients.simulate", "ptacl.virtual.simulate")
r_peaks_of = take("ptacl.signal.beats.r_peaks_of", "ptacl.beats.r_peaks_of")
ecgs = simulate(128, 1, cine=False).ecg.numpy().repeat(32, 0)
r_peaks_of(ecgs[:8], 500)
say(seconds=seconds_of(r_peaks_of, ecgs, 500))
'''

INGEST = '''
import psutil
peak = take("ptacl.bench.ingest._PeakWithChildren", "ptacl.ingest.PeakMemory")
def sample(self):   # ten times a second, as the bench does, looking itself would take a third of a core
    process = psutil.Process()
    while not self.over.wait(1):
        try:
            family = (process, *process.children(recursive=True))
            self.most = max(self.most, sum(p.memory_full_info().pss for p in family))
        except psutil.Error:   # one that has just ended
            pass
peak.run = sample
timed = take("ptacl.bench.ingest._time_way", "ptacl.ingest.timed")
got = timed("ingest", str(data / "FORMAT"), str(out / "cohort"), "WORKERS")
say(seconds=got["seconds"], mb=got["MB"])
'''

PLAIN = '''
timed = take("ptacl.bench.ingest._time_way", "ptacl.ingest.timed")
seconds = {way: timed(way, str(data / "nifti"), str(out / way), "1")["seconds"] for way in ("loop", "ingest")}
say(seconds=seconds["ingest"] / seconds["loop"])
'''

EMBED = '''
import os, subprocess, threading, psutil
cli = take("ptacl.app.cli.__file__", "ptacl.cli.__file__")
module = "ptacl.app.cli" if Path(cli).parent.name == "app" else "ptacl.cli"
get_preset = take("ptacl.core.presets.get_preset", "ptacl.presets.get_preset")
start = take("ptacl.bench.training.start_model", "ptacl.bench.start")
save_weights = take("ptacl.nets.weights.save_weights", "ptacl.nets.joint.save_weights", "ptacl.nets.joint.save_pretrained",
                    "ptacl.model.save_pretrained")
save_weights(start("joint", get_preset("workshop")).eval(), out / "model")
files = [data / "wfdb"] if RECORDS == 0 else sorted((data / "wfdb").rglob("*.hea"))[:RECORDS]
command = [sys.executable, "-c", f"from {module} import app; app()", "embed", *map(str, files), "--model", str(out / "model"),
           "--out", str(out / "e.parquet"), "--own-names", "--allow", "beatless"]
begun = time.perf_counter()
process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
most = 0
while process.poll() is None:
    try:
        most = max(most, sum(p.memory_full_info().pss for p in (process, *process.children(recursive=True))))
    except psutil.Error:  # one that has just ended
        pass
    time.sleep(0.2)
said, wrong = process.communicate()
if process.returncode:
    sys.exit(wrong.decode()[-500:])
say(seconds=time.perf_counter() - begun, mb=most / 2**20)
'''

IMPORT = '''
try:
    import ptacl.train.loop
except ImportError:
    import ptacl.training
say(seconds=time.perf_counter() - begun)
'''

EXPLORE = '''
import os, re, shutil, socket, subprocess, threading, urllib.error, urllib.request
cli = take("ptacl.app.cli.__file__", "ptacl.cli.__file__")
module = "ptacl.app.cli" if Path(cli).parent.name == "app" else "ptacl.cli"
take("ptacl.app.shipped.shipped_cohort", "ptacl.app.comparison.shipped_cohort", "ptacl.explorer.shipped_cohort")()  # drawn the first time
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
command = [sys.executable, "-c", f"from {module} import app; app()", "explore", "--no-browser", "--port", str(port)]
lines = []
def answers():
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read()
    except urllib.error.HTTPError:
        pass
    except OSError:
        return False
    return True
def until(true, seconds=900):
    begun = time.perf_counter()
    while not (found := true()):
        if process.poll() is not None or time.perf_counter() > begun + seconds:
            sys.exit("".join(lines)[-500:] or "no answer")
        time.sleep(0.05)
    return found
def drawn():
    from playwright.sync_api import sync_playwright
    address = until(lambda: re.search(r"http://\\S+token=\\w+", "".join(lines)))[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address, wait_until="commit", timeout=900_000)
        page.wait_for_selector(".px[data-ready='1']", timeout=900_000)
        browser.close()
begun = time.perf_counter()
process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
try:
    until(answers) if "WHAT" == "page" else drawn()
    say(seconds=time.perf_counter() - begun)
finally:
    process.terminate()
    process.wait()
'''


@dataclass(frozen=True)
class Row:
    "A thing to measure: a script that says seconds, and mb where memory is of interest."
    what: str
    script: str
    data: tuple = ()    # formats of the folders that it reads

    def filled(self, **words) -> "Row":
        "The same with words in place of capitals."
        script = self.script
        for name, word in words.items():
            script = script.replace(name, str(word))
        return Row(self.what, script, self.data)


ROWS = {
    "joint": Row("joint step, workshop, batch 128", STEP).filled(KIND="joint", SIZE=128),
    "mae_ecg": Row("MAE step ECG, workshop, batch 128", STEP).filled(KIND="mae_ecg", SIZE=128),
    "mae_cmr": Row("MAE step CMR, workshop, batch 128", STEP).filled(KIND="mae_cmr", SIZE=128),
    "simulator": Row("simulator, ECG and 50 frames, 32 patients", SIMULATE),
    "beats": Row("R-peaks of 4,096 records of twelve leads", BEATS),
    "ingest": Row("ingest, UK Biobank zips, 2 workers", INGEST, ("ukb",)).filled(FORMAT="ukb", WORKERS=2),
    "plain": Row("ingest against a plain loop, NIfTI, 1 worker (its time / the loop's)", PLAIN, ("nifti",)),
    "embed": Row(f"embed, {PATIENTS['wfdb']} WFDB records, with starting", EMBED, ("wfdb",)).filled(RECORDS=0),
    "embed_few": Row("embed, 4 WFDB records, with starting", EMBED, ("wfdb",)).filled(RECORDS=4),
    "page": Row("explore, command to the first page that is answered", EXPLORE).filled(WHAT="page"),
    "explore": Row("explore, command to the first view in Chromium", EXPLORE).filled(WHAT="view"),
    "import": Row("import of the training loop", IMPORT),
}


def in_tree(tree: Path, command: list) -> str:
    "What a command says in a tree. Raises `RuntimeError` where it fails."
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
    env = os.environ | threads | {"PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tree.name}: {done.stderr[-2000:]}")
    return done.stdout


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    "A tree of a revision, for the time of the block."
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), revision], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def make_data(formats: set, folder: Path):
    "Folders of virtual patients' files, written by this checkout; those that are there are taken as they are."
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(formats - {path.name for path in folder.iterdir()}):
        print(f"{PATIENTS[name]} virtual patients as {name}", file=sys.stderr, flush=True)
        command = ["-m", "ptacl.app.cli", "simulate", str(PATIENTS[name]), str(folder / name), "--format", name]
        in_tree(REPOSITORY, command)


def once(row: Row, tree: Path, data: Path) -> dict:   # seconds, and mb where the script says it
    "One run of a row's script in a process of its own."
    with tempfile.TemporaryDirectory() as out:
        said = in_tree(tree, ["-c", PREAMBLE + row.script, str(data), out])
    return json.loads(said.splitlines()[-1])


def quartiles(values: list) -> tuple:   # lower, median, upper
    "Of at least one value."
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else (values[0],) * 3


def compared(row: Row, trees: tuple, data: Path, repeats: int) -> list[dict]:
    "Rows of a comparison: of time, and of memory where it was measured."
    turns = []
    for k in range(repeats):
        order = trees if k % 2 == 0 else trees[::-1]   # who comes first would have the colder machine
        got = {tree: once(row, tree, data) for tree in order}
        turns.append([got[tree] for tree in trees])
    rows = []
    for measure, unit in (("seconds", ""), ("mb", ", memory of all processes")):
        if measure not in turns[0][0]:
            continue
        before, after = ([turn[k][measure] for turn in turns] for k in (0, 1))
        lo, ratio, hi = quartiles([b / a for b, a in zip(before, after)])
        rows.append({"what": row.what + unit, "ratio": ratio, "lo": lo, "hi": hi,
                     "before": quartiles(before)[1], "after": quartiles(after)[1]})
    return rows


def table(rows: list[dict]) -> str:
    "The comparison as text: s or MB of both, and how many times as quick or small."
    width = max([len(row["what"]) for row in rows], default=0)
    lines = [f"{'':{width}}  {'before':>9}  {'after':>9}  {'ratio':>7}  quartiles"]
    for row in rows:
        lines.append(f"{row['what']:{width}}  {row['before']:9.4g}  {row['after']:9.4g}  {row['ratio']:6.2f}×  "
                     f"{row['lo']:.2f} … {row['hi']:.2f}")
    return "\n".join(lines)


def main(arguments: list | None = None) -> list[dict]:
    "Compare, print the table, and write the rows."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("revision", help="what is compared with, as git names it")
    p.add_argument("other", nargs="?", help="what is compared; the working tree where none is given")
    p.add_argument("--only", action="append", choices=list(ROWS), help="a row; may be given again")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--data", type=Path, help="folder for the virtual patients, to be kept and taken again")
    p.add_argument("--json", type=Path, help="file for the rows: what, ratio, lo, hi")
    args = p.parse_args(arguments)
    chosen = [ROWS[name] for name in args.only or ROWS]
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        data = args.data.resolve() if args.data else Path(tmp) / "data"
        make_data({name for row in chosen for name in row.data}, data)
        other = checked_out(args.other, Path(tmp) / "after") if args.other else nullcontext(REPOSITORY)
        with checked_out(args.revision, Path(tmp) / "before") as before, other as after:
            for row in chosen:
                rows += compared(row, (before, after), data, args.repeats)
                print(*table(rows).splitlines()[1:], sep="\n", end="\n\n", file=sys.stderr, flush=True)
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    print(f"{args.revision} against {args.other or 'the working tree'}, {THREADS} threads{load}\n\n{table(rows)}")
    if args.json:
        kept = [{name: row[name] for name in ("what", "ratio", "lo", "hi")} for row in rows]
        args.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
