"Training that is killed, short of disk, or handed damaged states: what is lost is at most an epoch, and never the numbers."
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import RLock

import nbformat
import pytest
import torch
from accelerate.state import AcceleratorState
from steps import KINDS, noise, same, start, stems, tiny
from torch.multiprocessing import get_context
from tqdm import tqdm

import ptacl.studies.experiments
import ptacl.train.accelerator
import ptacl.train.loop
from ptacl.bench.data import repeated_cohort
from ptacl.data.cohort import Cohort, Stream
from ptacl.nets.encoders import ECGEncoder
from ptacl.core.errors import PtaclError
from ptacl.studies.experiments import run_experiment
from ptacl.train.finetune import load_tuned
from ptacl.rivals.methods import load_method
from ptacl.nets.joint import PTACL, joint_loss, start_joint
from ptacl.nets.weights import from_pretrained, save_weights
from ptacl.core.presets import paper_regression
from ptacl.nets.mae import MAE
from ptacl.train.loop import fit
from ptacl.train.steps import mae_ecg_step
from ptacl.simulate.patients import simulate

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork")
EPOCHS = 5


def train(kind, folder, epochs=EPOCHS, precision="no"):
    "The phase to its end, or on to it; in full precision, on one thread."
    AcceleratorState._reset_state(True)
    ptacl.train.accelerator.precision = lambda *a: precision
    torch.set_num_threads(1)
    torch.rand(os.getpid() % 100)                                  # whatever was drawn before
    name, _, on_disk = kind.partition(", from ")
    data = Stream(Cohort.open(on_disk)) if on_disk else noise()
    return fit(start(name), KINDS[name][1], data, tiny, epochs, 3e-3, folder, seed=5, resume=True)


def with_own_lock(f, *args):
    "f with a lock of its own for progress bars: tqdm's is shared by forked processes, and who is killed while holding it stops all others."
    tqdm.set_lock(RLock())
    f(*args)


def forked(f, *args):
    "f in a process of its own: the process."
    process = get_context("fork").Process(target=with_own_lock, args=(f, *args))
    process.start()
    return process


def finished(f, *args):
    process = forked(f, *args); process.join(120)
    assert process.exitcode == 0


def history(folder):
    rows = torch.load(folder / "state.pt", weights_only=True)["history"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def equal(a, b):
    "Bit for bit: weights, optimiser, history."
    one, two = (torch.load(f / "state.pt", weights_only=True) for f in (a, b))
    moments = lambda state: [x for s in state["optimizer"]["state"].values() for x in s.values()]
    assert all(torch.equal(x, y) for x, y in zip(moments(one), moments(two), strict=True)) and one["schedule"] == two["schedule"]
    return same(from_pretrained(a / "model"), from_pretrained(b / "model")) and history(a) == history(b)


@pytest.fixture(scope="module", params=[*KINDS, "joint, from disk"])
def whole(request, tmp_path_factory):
    "An uninterrupted run of each phase, and one that streams its patients from disk."
    folder, kind = tmp_path_factory.mktemp("whole"), request.param
    if kind not in KINDS:
        disk = tmp_path_factory.mktemp("disk") / "cohort"
        repeated_cohort(disk, 16, of=8); kind = f"joint, from {disk}"
    began = time.monotonic(); finished(train, kind, folder)
    return kind, folder, time.monotonic() - began


# --- killed ----------------------------------------------------------------------------------------------------------------

def killed_and_resumed(whole, tmp_path, kills):
    "So many kills at random moments; a run that came through is compared, and the next one begins."
    kind, expected, seconds = whole
    rng, done, runs, folder = random.Random(kills), 0, 0, tmp_path / "0"
    while done < kills or not (folder / "model").exists():
        process = forked(train, kind, folder)
        if done < kills:
            process.join(rng.uniform(0.02, 0.8) * seconds)
            if process.is_alive(): os.kill(process.pid, signal.SIGKILL); done += 1
        process.join(600)
        assert not process.is_alive(), "it hangs"
        if process.exitcode != 0: continue
        assert equal(folder, expected)
        runs += 1; folder = tmp_path / str(runs) if done < kills else folder
    assert {f.name for f in folder.iterdir()} == {"state.pt", "state-1.pt", "model"}    # no leftovers


def test_killed_at_three_random_moments(whole, tmp_path): killed_and_resumed(whole, tmp_path, 3)


@pytest.mark.long
def test_killed_at_twenty_random_moments(whole, tmp_path): killed_and_resumed(whole, tmp_path, 20)


def train_until(folder, write, after):
    "A run that kills itself at a certain write: before it, or right after."
    count = iter(range(write))
    def deadly(f):
        def g(*args, **kw):
            last = next(count, None) is None
            if last and not after: os.kill(os.getpid(), signal.SIGKILL)
            out = f(*args, **kw)
            if last: os.kill(os.getpid(), signal.SIGKILL)
            return out
        return g
    os.fsync, Path.replace, Path.rename = deadly(os.fsync), deadly(Path.replace), deadly(Path.rename)
    train("joint", folder, epochs=3)


def killed_at(write, folder, expected):
    "Whether the run was killed there, before or after; where it was, the next one ends as if nothing had been."
    for after in (False, True):
        run = folder / f"{write}{after}"
        process = forked(train_until, run, write, after); process.join(120)
        if process.exitcode == 0: return False
        assert process.exitcode == -signal.SIGKILL
        finished(train, "joint", run, 3)
        assert equal(run, expected)
    return True


def test_killed_while_one_state_takes_the_place_of_another(tmp_path):
    finished(train, "joint", tmp_path / "whole", 3)
    assert killed_at(3, tmp_path, tmp_path / "whole")                 # the first one has been moved aside, or is about to be


def settled_never(folder):
    "Killed between the last epoch's state and the statistics of whole inputs that an autoencoder's stem ends with."
    ptacl.train.loop._settle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    stem(folder)


def stem(folder):
    ptacl.train.accelerator.precision = lambda *a: "no"
    torch.set_num_threads(1)
    torch.manual_seed(3)
    fit(MAE(ECGEncoder(stems)), mae_ecg_step, noise(), stems, 1, 3e-3, folder, seed=5, resume=True)


def test_killed_right_before_the_stem_settles(tmp_path):
    finished(stem, tmp_path / "whole")
    process = forked(settled_never, tmp_path / "killed"); process.join(120)
    assert process.exitcode == -signal.SIGKILL
    finished(stem, tmp_path / "killed")
    assert equal(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.long
def test_killed_at_every_write(tmp_path):
    finished(train, "joint", tmp_path / "whole", 3)
    kills = next(write for write in range(50) if not killed_at(write, tmp_path, tmp_path / "whole"))
    assert kills >= 3 + 3 + 2 + 1                                     # three states, two of which move one aside; the model


def train_to(writes, then, folder, epochs=3, precision="no"):
    "A run to which something happens at the write of the state after so many."
    left, real = iter(range(writes)), os.fsync
    def fsync(fd):
        if next(left, None) is None: then()
        real(fd)
    os.fsync = fsync
    train("joint", folder, epochs, precision)


@pytest.mark.long
def test_bf16_comes_back_bit_for_bit_too(tmp_path):
    finished(train, "joint", tmp_path / "whole", 3, "bf16")
    process = forked(train_to, 1, lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "cut", 3, "bf16"); process.join(60)
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "cut" / "state.pt").exists()
    finished(train, "joint", tmp_path / "cut", 3, "bf16")
    assert equal(tmp_path / "cut", tmp_path / "whole")


# --- damaged states --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("length", [0, 1, 100, 0.3, 0.9, -1])
def test_a_state_cut_short_is_skipped_for_the_one_before_it(length, tmp_path):
    run = lambda epochs: fit(start(), joint_loss, noise(), tiny, epochs, 3e-3, tmp_path, resume=True)
    whole = start(); fit(whole, joint_loss, noise(), tiny, 4, 3e-3)
    learn = fit(start(), joint_loss, noise(), tiny, 4, 3e-3, tmp_path)
    data = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[:int(length * len(data)) if isinstance(length, float) else length])
    model = start()
    with pytest.warns(UserWarning, match=r"state\.pt in .* is no state of a run .* going on from the one before it"):
        again = fit(model, joint_loss, noise(), tiny, 4, 3e-3, tmp_path, resume=True)
    assert same(model, whole) and [row["loss"] for row in again] == [row["loss"] for row in learn]
    for file in tmp_path.glob("state*.pt"): file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning), pytest.raises(PtaclError, match=r"state-1\.pt .* nor is any other there: remove it, or resume=False"): run(5)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_states_are_kept(keep, tmp_path):
    fit(start(), joint_loss, noise(4), tiny, 5, 3e-3, tmp_path, keep=keep)
    epochs = {f.name: len(torch.load(f, weights_only=True)["history"]) for f in tmp_path.glob("*.pt")}
    assert epochs == {"state.pt" if i == 0 else f"state-{i}.pt": 5 - i for i in range(keep)}


# --- a full disk -----------------------------------------------------------------------------------------------------------

def shrink(room):
    "From now on no file of this process can grow beyond so many bytes, as on a disk that is full."
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def no_space(): raise OSError(28, "No space left on device")


def said_by(f, result):
    try: f(); said = ""
    except PtaclError as e: said = str(e)
    result.write_text(said, encoding="utf-8")


@pytest.mark.parametrize("full", [no_space, lambda: shrink(10_000)], ids=["said by the disk", "in the middle of a file"])
def test_a_full_disk_leaves_the_state_before_it(full, tmp_path):
    run, result = tmp_path / "run", tmp_path / "said"
    finished(train, "joint", tmp_path / "whole", 4)
    finished(said_by, lambda: train_to(1, full, run, 4), result)
    said = result.read_text(encoding="utf-8")
    assert f"cannot write the state of {run}" in said and "intact" in said
    assert "make room on the disk, then run again with resume=True" in said
    assert {f.name for f in run.iterdir()} <= {"state.pt", "state-1.pt"} and len(history(run)) in (1, 2)
    finished(train, "joint", run, 4)
    assert equal(run, tmp_path / "whole")


def test_a_full_disk_leaves_the_model_before_it(tmp_path):
    model, other, result = start(), PTACL(tiny), tmp_path / "said"
    save_weights(model, tmp_path / "model")
    finished(said_by, lambda: [shrink(10_000), save_weights(other, tmp_path / "model")], result)
    assert f"cannot write the model to {tmp_path / 'model'}" in result.read_text(encoding="utf-8")
    assert same(from_pretrained(tmp_path / "model"), model)
    assert {f.name for f in tmp_path.iterdir()} == {"model", "said"}


@pytest.mark.parametrize("name", ["e.pt2", "e.onnx"])
def test_a_full_disk_under_an_export_is_one_sentence(name, tmp_path):
    if name == "e.onnx": pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    from ptacl.inference.embedding import ECGFeatures
    from ptacl.inference.export import export_encoder
    module, result = ECGFeatures(start()), tmp_path / "said"
    finished(said_by, lambda: [shrink(10_000), export_encoder(module, tmp_path / name)], result)
    assert f"{tmp_path / name} cannot be written (File too large): make room" in result.read_text(encoding="utf-8")
    assert {f.name for f in tmp_path.iterdir()} == {"said"}


# --- what does not fit -----------------------------------------------------------------------------------------------------

def test_an_encoder_of_another_preset_is_refused():
    with pytest.raises(PtaclError, match="an encoder of preset small_paper does not fit preset paper_regression"):
        start_joint(paper_regression, ECGEncoder(tiny))


def test_a_killed_kernel_is_a_failed_run(tmp_path, capfd):
    book, code = nbformat.v4.new_notebook(), nbformat.v4.new_code_cell
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    book.cells = [code("output_dir: str = 'reports'", metadata={"tags": ["parameters"]}), code("print('so far')"),
                  code("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), code("print('never')")]
    nbformat.write(book, tmp_path / "dies.ipynb")
    with pytest.raises(PtaclError, match="dies: its process was killed, by lack of memory or by hand. The notebook as far as it came: "):
        run_experiment(str(tmp_path / "dies.ipynb"), {"output_dir": str(tmp_path / "out")})
    failed = json.loads((tmp_path / "out" / "failed.json").read_text(encoding="utf-8"))
    assert failed["error"].startswith("dies: its process was killed") and not (tmp_path / "out" / "result.json").exists()
    assert "so far" in (tmp_path / "out" / "failed.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("also", [False, True])
def test_a_full_disk_under_a_report_is_one_sentence(also, tmp_path, monkeypatch):
    book, code = nbformat.v4.new_notebook(), nbformat.v4.new_code_cell
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    book.cells = [code("output_dir: str = 'reports'", metadata={"tags": ["parameters"]})]
    nbformat.write(book, tmp_path / "full.ipynb")
    def full(*_, **__): no_space()
    monkeypatch.setattr(ptacl.studies.experiments.papermill, "execute_notebook", full)
    if also: monkeypatch.setattr(ptacl.studies.experiments, "write_result", full)
    with pytest.raises(PtaclError, match=r"^full: its report cannot be written \(No space left on device\): make room on the disk, then run again"):
        run_experiment(str(tmp_path / "full.ipynb"), {"output_dir": str(tmp_path / "out")})
    assert (tmp_path / "out" / "failed.json").exists() != also


@pytest.mark.long
def test_a_port_in_use_is_said_and_the_page_has_another():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0)); taken.listen(); port = taken.getsockname()[1]
        command = [sys.executable, "-c", "from ptacl.app.cli import app; app()", "explore", "--no-browser", "--port", str(port)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as page:
            said = []
            for line in page.stderr:
                said.append(line)
                if "token=" in line: break
            time.sleep(2)                                                   # a server that has just begun does not hear of its end
            page.send_signal(signal.SIGINT); page.communicate(timeout=60)
    assert f"port {port} is already in use, trying another" in "".join(said) and f":{port}/" not in said[-1]


@pytest.mark.parametrize("use", [lambda folder: simulate(1, 0, "cuda"), lambda folder: from_pretrained(folder, "cuda:1"),
                                 lambda folder: load_tuned(folder, "cuda"), lambda folder: load_method(folder, torch.device("cuda", 0))])
def test_a_gpu_that_is_not_there_is_one_sentence(use, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PtaclError, match=r"device cuda(:\d)? was asked for, but torch .* finds no GPUs: check .* or take the CPU"): use(tmp_path)
