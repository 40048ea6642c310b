"Several processes on one batch: the loss, the gradients and the model of one; and what happens where one of them dies."
import io
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
import torch.distributed as dist
from steps import Harm, Odd, noise, refuses, start, stems, tiny
from torch.multiprocessing import get_context

import ptacl.rivals.dualphase
import ptacl.nets.losses
import ptacl.rivals.methods
import ptacl.rivals.simclr
from ptacl.bench.data import repeated_cohort
from ptacl.rivals.cmae import CMAE, Autoencoder, autoencoder_step, beat_preset, cmae_step
from ptacl.data.cohort import Cohort, Stream
from ptacl.rivals.dualphase import DualPhase, TwoPhases, phenotype_step, _three_way_loss, _volumes
from ptacl.nets.encoders import ECGEncoder
from ptacl.core.errors import PtaclError
from ptacl.train.finetune import Tuned, masked_error
from ptacl.core.distributed import BatchNorm, gather, with_others
from ptacl.nets.losses import global_contrastive_loss, local_contrastive_loss
from ptacl.studies.experiments import run_experiment
from ptacl.rivals.methods import METHODS, train_method
from ptacl.rivals.mmcl import MMCL
from ptacl.nets.joint import joint_loss
from ptacl.nets.weights import from_pretrained
from ptacl.nets.trimodal import start_modalities
from ptacl.core.presets import PHENOTYPES
from ptacl.rivals.simclr import SimCLR, nt_xent
from ptacl.studies.learning import own_loss
from ptacl.core.processes import child, stream
from ptacl.train.launch import fit_in_processes
from ptacl.data.pairs import Pairs
from ptacl.train.checkpoint import read_state
from ptacl.train.loop import _add_gradients, fit, infer, _share_out
from ptacl.train.optimiser import learning_rate
from ptacl.train.steps import joint_step

pytestmark = [pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
              pytest.mark.skipif(sys.platform == "win32", reason="no fork")]


def member(f, rank, world, folder):
    "One process of a group; what f returns, or its error, goes to a file."
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(f(rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def together(f, world, folder):
    "f(rank, world) in each of several processes: a list."
    folder.mkdir()
    members = [get_context("fork").Process(target=member, args=(f, rank, world, folder)) for rank in range(world)]
    for m in members: m.start()
    for m in members: m.join(120)
    alive = [m.kill() for m in members if m.is_alive()]
    assert not alive and [m.exitcode for m in members] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def learn(model, data, rank, world, size, chunk=None, step=None):
    "Loss and gradients of the first batch, of which this process has a part."
    batch, model = next(iter(_share_out(data.batches(size), rank, world))), deepcopy(model).train()
    free = {k: p for k, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(rank)
    out, share = step(model, batch) if step else joint_loss(model, batch, chunk), len(batch["index"]) / size
    (out["loss"] * share).backward()
    _add_gradients(list(free.values()))
    numbers = {k: ptacl.core.distributed.total(v * share) for k, v in out.items()}
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    return numbers | buffers | {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in free.items()}


def close(a, b, atol=1e-7, rtol=1e-7):
    assert a.keys() == b.keys()
    for name in a: torch.testing.assert_close(a[name], b[name], atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}")


# --- losses and gradients --------------------------------------------------------------------------------------------------

def without_beats(data, whom):
    r_peaks = data.r_peaks.clone(); r_peaks[whom] = torch.nan
    return Pairs(data.ecg, r_peaks, data.cine)


CASES = {  # patients of the batch, who of them has no beats, chunk
    "even": (8, [], None), "uneven": (11, [], None), "one more": (9, [2], None),
    "no beats in process 0": (9, [0, 4, 8, 2, 6], None), "no beats at all": (9, list(range(9)), None),
    "in chunks": (8, [1], 2), "in chunks, uneven": (11, [0, 2, 4, 6, 8, 10], 2), "one at a time": (9, [], 1)}

def in_double(data, model):
    return Pairs(data.ecg.double(), data.r_peaks.double(), data.cine), model.double()


@pytest.fixture
def doubled(monkeypatch):
    "Everything in double precision: what differs is no rounding."
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return in_double


def test_in_single_precision_too(tmp_path):
    data, model = noise(), start()
    flat = lambda found: torch.cat([found[name].flatten() for name, _ in model.named_parameters()])
    parts = together(lambda rank, world: learn(model, data, rank, world, 11), 2, tmp_path / "run")
    whole = learn(model, data, 0, 1, 11)
    for part in parts:
        assert part["loss"] == pytest.approx(whole["loss"].item(), rel=1e-5)
        assert (flat(part) - flat(whole)).norm() < 2e-5 * flat(whole).norm()   # either is 1e-5 off by rounding; the cases below are not


QUICK = [(2, "uneven"), (2, "in chunks, uneven"), (4, "uneven"), (4, "no beats in process 0")]

@pytest.mark.parametrize("world, case", [pytest.param(w, c, id=f"{w}, {c}", marks=[] if (w, c) in QUICK else pytest.mark.long)
                                         for w in (2, 4) for c in CASES])
def test_processes_have_the_loss_and_the_gradients_of_one(world, case, tmp_path, doubled):
    size, whom, chunk = CASES[case]
    data, model = doubled(without_beats(noise(), whom), start())
    parts = together(lambda rank, world: learn(model, data, rank, world, size, chunk), world, tmp_path / "run")
    whole = learn(model, data, 0, 1, size)
    assert whole["loss"] > 1 and sum(v.abs().max() > 1e-3 for v in whole.values()) > 20
    for part in parts: close(part, whole)


@pytest.mark.parametrize("size", [8, 11])
def test_stems_have_the_loss_gradients_and_statistics_of_one_process(size, tmp_path, doubled):
    data, model = doubled(noise(), start("stems"))
    parts = together(lambda rank, world: learn(model, data, rank, world, size), 2, tmp_path / "run")
    whole = learn(model, data, 0, 1, size)
    names = [name for name in whole if not name.endswith("num_batches_tracked")]
    assert sum("running_var" in name for name in names) > 10
    for part in parts: close({k: part[k] for k in names}, {k: whole[k] for k in names}, atol=1e-6, rtol=1e-6)


LACKS = {  # who of 11 patients lacks what; process 0 has the even ones
    "two": {"echo": [1, 4]}, "process 0 has no echo": {"echo": [0, 2, 4, 6, 8, 10]}, "one echo in process 1": {"echo": [1, 3, 5, 9], "ecg": [2]},
    "one echo alone": {"echo": list(range(1, 11))}, "one each": {"ecg": [0, 3, 6, 9], "cmr": [1, 4, 7, 10], "echo": [2, 5, 8]}}

@pytest.mark.parametrize("kind, lacks", [("stems", name) for name in LACKS] + [("tiny", "process 0 has no echo"), ("tiny", "one each")])
def test_processes_with_missing_recordings_have_the_loss_and_the_gradients_of_one(kind, lacks, tmp_path, doubled):
    torch.manual_seed(3)
    data, model = doubled(without_beats(noise(), [5]), start_modalities({"stems": stems, "tiny": tiny}[kind], ("ecg", "cmr", "echo")))
    echo = torch.randint(0, 256, (11, 32, 84, 84), dtype=torch.uint8)
    has = {f"has_{name}": ~torch.isin(torch.arange(11), torch.tensor(whom)) for name, whom in LACKS[lacks].items()}
    data = data.with_extra(echo=echo, **has)
    parts = together(lambda rank, world: learn(model, data, rank, world, 11), 2, tmp_path / "run")
    whole = learn(model, data, 0, 1, 11)
    names = [name for name in whole if not name.endswith("num_batches_tracked")]
    assert whole["loss"] > 1 and sum(whole[name].abs().max() > 1e-3 for name, _ in model.named_parameters()) > 20
    assert whole["proj_echo.1.weight"].any() == (lacks != "one echo alone")
    for part in parts: close({k: part[k] for k in names}, {k: whole[k] for k in names}, atol=1e-6, rtol=1e-6)


def test_training_with_missing_recordings_goes_on_in_two_processes_as_in_one(tmp_path, importable):
    echo, has = torch.randint(0, 256, (12, 32, 84, 84), dtype=torch.uint8), torch.arange(12) % 2 == 1     # process 0 never sees an echo
    data, histories = noise(12).with_extra(echo=echo, has_echo=has), []
    for processes in (1, 2):
        torch.manual_seed(3)
        model = start_modalities(tiny, ("ecg", "cmr", "echo"))
        histories.append(fit_in_processes(processes, model, joint_loss, data, replace(tiny, batch_size=12), 2, 1e-3, tmp_path / str(processes)))
    for a, b in zip(*histories, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx({k: v for k, v in b.items() if k != "seconds"}, rel=0.15)  # bf16


BY_TORCHRUN = """
import os, sys
import torch
import torch.distributed as dist
from test_scaling import CASES, in_double, learn, noise, start, without_beats
torch.set_num_threads(1); torch.Tensor.float = torch.Tensor.double
dist.init_process_group("gloo")
size, whom, chunk = CASES[sys.argv[1]]
found = learn(*reversed(in_double(without_beats(noise(), whom), start())), dist.get_rank(), dist.get_world_size(), size, chunk)
torch.save(found, f"{dist.get_rank()}.pt"); dist.destroy_process_group()
"""

@pytest.mark.parametrize("world, case", [pytest.param(w, c, id=f"{w}, {c}", marks=[] if (w, c) == (2, "uneven") else pytest.mark.long)
                                         for w in (2, 4) for c in ("uneven", "no beats in process 0", "in chunks, uneven")])
def test_processes_of_torchrun_have_the_loss_and_the_gradients_of_one(world, case, tmp_path, doubled, importable):
    (tmp_path / "by_torchrun.py").write_text(BY_TORCHRUN)
    env = os.environ | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={world}",
                          "by_torchrun.py", case], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    size, whom, _ = CASES[case]
    data, model = doubled(without_beats(noise(), whom), start())
    whole = learn(model, data, 0, 1, size)
    for rank in range(world): close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), whole)


def two_crops(model, batch):
    return {"loss": nt_xent(*model(torch.cat([batch["ecg"][..., at:at + tiny.ecg_crop] for at in (0, 2500)])).chunk(2), 0.1)}

def both_ways(model, batch): return {"loss": global_contrastive_loss(*model.embeddings(batch), 0.1)}
def all_three(model, batch): return {"loss": _three_way_loss(*model.three(batch), 0.1)}
def phenotypes_of(model, batch): return {"loss": masked_error(model(batch["ecg"][..., :tiny.ecg_crop]), batch["targets"])}

RIVALS = {"SimCLR": (lambda: SimCLR(ECGEncoder(tiny)), two_crops), "MMCL": (lambda: MMCL(tiny), both_ways), "CMAE": (lambda: CMAE(tiny), cmae_step),
          "autoencoder": (lambda: Autoencoder(ECGEncoder(beat_preset(tiny))), autoencoder_step), "phases": (lambda: TwoPhases(tiny), phenotype_step),
          "dual-phase": (lambda: DualPhase(tiny), all_three), "tuned": (lambda: Tuned(ECGEncoder(tiny), PHENOTYPES), phenotypes_of)}

@pytest.mark.parametrize("name", RIVALS)
def test_rivals_learn_from_the_patients_of_all_processes(name, tmp_path, doubled, monkeypatch):
    build, step = RIVALS[name]
    monkeypatch.setattr(ptacl.rivals.dualphase, "_volumes", lambda batch, mirror=0: _volumes(batch).double())   # mirrored by nobody's coin
    torch.manual_seed(0)
    data, model = doubled(without_beats(noise(), [0, 2, 4, 5]), build())
    targets = torch.randn(11, len(PHENOTYPES)).double(); targets[::2, 1:] = torch.nan                  # half of process 0's are missing
    data = data.with_extra(targets=targets)
    parts = together(lambda rank, world: learn(model, data, rank, world, 11, step=step), 2, tmp_path / "run")
    whole = learn(model, data, 0, 1, 11, step=step)
    assert whole["loss"] > 0.1 and sum(whole[k].abs().max() > 1e-4 for k, _ in model.named_parameters() if k in whole) > 1
    for part in parts: close(part, whole)


@pytest.mark.parametrize("preset", [tiny, stems], ids=["linear", "conv"])
@pytest.mark.parametrize("build, step", [(CMAE, cmae_step), (lambda p: Autoencoder(ECGEncoder(beat_preset(p))), autoencoder_step)],
                         ids=["CMAE", "autoencoder"])
def test_a_process_none_of_whose_patients_has_a_beat(build, step, preset, tmp_path, doubled):
    torch.manual_seed(0)
    data, model = doubled(without_beats(noise(), [0, 2, 4, 6, 8, 10]), build(preset))
    parts = together(lambda rank, world: learn(model, data, rank, world, 11, step=step), 2, tmp_path / "run")
    whole = learn(model, data, 0, 1, 11, step=step)
    for part in parts: close(part, whole)


def test_nt_xent_compares_its_own_views_only(tmp_path):
    def shapes(rank, world):
        seen, real = [], ptacl.rivals.simclr.cosine
        def cosine(x, y): seen.append((len(x), len(y))); return real(x, y)
        ptacl.rivals.simclr.cosine = cosine
        nt_xent(torch.randn(3 - rank, 4), torch.randn(3 - rank, 4), 0.1)
        return torch.tensor(seen)
    assert [x.tolist() for x in together(shapes, 2, tmp_path / "run")] == [[[6, 10]], [[4, 10]]]


def test_processes_that_ask_the_same_patients_say_what_one_says(tmp_path):
    torch.manual_seed(0)
    model, data = SimCLR(ECGEncoder(tiny)), noise(8)
    alone = own_loss(model, data, 8)
    parts = together(lambda rank, world: torch.tensor(own_loss(model, data, 8)["loss"]), 2, tmp_path / "run")
    assert [part.item() for part in parts] == pytest.approx([alone["loss"]] * 2, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 99])
def test_chunks_have_the_loss_and_the_gradients_of_the_whole(chunk, doubled):
    data, model = doubled(without_beats(noise(), [3]), start())
    close(learn(model, data, 0, 1, 11, chunk), learn(model, data, 0, 1, 11))


def test_small_batches_are_something_else():
    "What chunks are for: the sum of the losses of parts is not the loss of the whole."
    data, model = noise(8), start()
    whole = learn(model, data, 0, 1, 8)["global"]
    parts = [joint_loss(model, data.__getitems__(list(range(i, i + 2))))["global"] for i in range(0, 8, 2)]
    assert abs(torch.stack(parts).mean() - whole) > 0.3


def test_in_chunks_autograd_keeps_little_more_than_the_inputs():
    data, model, kept = noise(8), start(), {}
    def held(chunk):
        kept.clear()
        def pack(x): kept[x.data_ptr()] = x.untyped_storage().nbytes(); return x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): loss = joint_loss(model, data.__getitems__(list(range(8))), chunk)["loss"]
        loss.backward()
        return sum(kept.values())
    assert held(1) < 0.2 * held(None)


def test_augmentation_is_the_same_when_a_chunk_is_encoded_again(doubled):
    data, model = doubled(noise(8), start())
    def learned(chunk):
        torch.manual_seed(4); model.zero_grad()
        joint_step(model, data.__getitems__(list(range(8))), chunk)["loss"].backward()
        return {k: p.grad.clone() for k, p in model.named_parameters()}
    close(learned(3), learned(None))


def test_each_process_compares_its_own_rows_only(tmp_path):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 11, 6, generator=g)
    def shapes(rank, world):
        seen, real = [], ptacl.nets.losses.cosine
        def cosine(x, y): seen.append((len(x), len(y))); return real(x, y)
        ptacl.nets.losses.cosine = cosine
        global_contrastive_loss(a[rank::world], b[rank::world], 0.1)
        return torch.tensor(seen)
    assert [x.tolist() for x in together(shapes, 4, tmp_path / "run")] == [[[3, 11]] * 2] * 3 + [[[2, 11]] * 2]


def test_gather_and_batch_norm_with_uneven_parts(tmp_path):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 3, generator=g), torch.randn(7, 3, generator=g)
    def part(rank, world):
        mine = slice(0, 1) if rank == 0 else slice(1, 3) if rank == 1 else slice(3, 7)
        norm, own = BatchNorm(3), x[mine].clone().requires_grad_()
        (norm(own) * weight[mine]).sum().backward()
        everyone, rows = with_others(x[mine])
        assert rows == mine and torch.equal(everyone, x) and torch.equal(gather(torch.arange(7)[mine]), torch.arange(7))
        return {"grad": own.grad, "mean": norm.running_mean, "var": norm.running_var}
    parts = together(part, 3, tmp_path / "run")
    norm, whole = torch.nn.BatchNorm1d(3), x.clone().requires_grad_()
    (norm(whole) * weight).sum().backward()
    torch.testing.assert_close(torch.cat([p["grad"] for p in parts]), whole.grad, atol=1e-5, rtol=1e-5)
    for p in parts: torch.testing.assert_close((p["mean"], p["var"]), (norm.running_mean, norm.running_var))


def test_the_local_mean_is_over_all_valid_patients(tmp_path):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 5, 4, generator=g)
    valid = torch.tensor([False, True, False, True, False, False])
    def part(rank, world): return local_contrastive_loss(a[rank::2], b[rank::2], 0.1, 0.1, valid=valid[rank::2]) / 2
    parts = together(part, 2, tmp_path / "run")
    torch.testing.assert_close(sum(parts), local_contrastive_loss(a, b, 0.1, 0.1, valid=valid)); assert parts[0] == 0


@pytest.mark.parametrize("n", [1, 2, 11])
def test_inference_counts_nobody_twice(n, tmp_path):
    data, model = noise(n), start().eval()
    def outputs(rank, world):
        z, index = infer(lambda b: (model.embeddings(b)[0], b["index"]), model, data, 3)
        maps = infer(lambda b: b["ecg"][:, :2, :3], model, data, 4)
        return {"z": z, "index": index, "maps": maps}
    parts = together(outputs, 2, tmp_path / "run")
    whole = outputs(0, 1)
    assert whole["index"].tolist() == list(range(n))
    for part in parts: close(part, whole, atol=0.05, rtol=0.02); assert torch.equal(part["index"], whole["index"])


# --- fit -------------------------------------------------------------------------------------------------------------------

TESTS = Path(__file__).parent


@pytest.fixture
def importable(monkeypatch):
    "The steps of these tests, for processes of their own."
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def launched(folder, step=joint_loss, epochs=3, processes=2, **kw):
    model = start()
    return model, fit_in_processes(processes, model, step, noise(), tiny, epochs, 3e-3, folder, **{"silence": 120, "name": "in two"} | kw)


def at_work(folder):
    "Processes of a launch into that folder."
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try: line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError: continue
        if b"\0ptacl.scaling\0" in line and str(folder).encode() in line: found.append(int(pid))
    return found


def gone(folder, seconds=60):
    "Whether the processes of a launch end, and leave nothing."
    until = time.monotonic() + seconds
    while at_work(folder) and time.monotonic() < until: time.sleep(0.2)
    return not at_work(folder)


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    "A run in two processes: folder, model, history, and what it said."
    folder, said = tmp_path_factory.mktemp("in two"), io.StringIO()
    with redirect_stdout(said): return folder, *launched(folder), said


def test_the_model_of_two_processes_is_that_of_one(in_two):
    folder, _, history, said = in_two
    assert [said.getvalue().count(f"in two  epoch {i}/3") for i in (1, 2, 3)] == [1, 1, 1]     # one of them speaks
    alone = fit(start(), joint_loss, noise(), tiny, 3, 3e-3)
    for a, b in zip(history, alone, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx({k: v for k, v in b.items() if k != "seconds"}, rel=0.15)  # bf16
    assert {f.name for f in folder.iterdir()} == {"state.pt", "state-1.pt", "model"} and gone(folder, 0)
    with pytest.warns(UserWarning, match="cut short"):                                       # one process goes on with it
        (folder / "state.pt").write_bytes(b"")
        assert len(fit(start(), joint_loss, noise(), tiny, 3, 3e-3, folder, resume=True)) == 3


NOTEBOOK = """
from steps import *
from ptacl.core.files import write_result
from ptacl.train.launch import fit_in_processes
model = start()
fit_in_processes(2, model, Harm() if harm else joint_loss, noise(), tiny, 3, 3e-3, output_dir + "/run", name="in two", resume=True, silence=120)
write_result(output_dir, {"sum": sum(p.double().sum().item() for p in model.parameters())})
"""

def notebook(folder):
    book, code = nbformat.v4.new_notebook(), nbformat.v4.new_code_cell
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    book.cells = [code("harm: bool = False\noutput_dir: str = 'reports'", metadata={"tags": ["parameters"]}), code(NOTEBOOK)]
    nbformat.write(book, folder / "two.ipynb")
    return str(folder / "two.ipynb")


def test_a_process_that_dies_is_a_notebook_that_fails_and_goes_on_later(tmp_path, importable, capsys, in_two):
    book, out = notebook(tmp_path), tmp_path / "out"
    with pytest.raises(PtaclError, match=r"two failed: in two: process 1 of 2 was killed, by lack of memory or by hand, and the others were stopped"):
        run_experiment(book, {"harm": True, "output_dir": str(out)})
    said = capsys.readouterr().out
    assert "in two  epoch 1/3" in said and "epoch 2/3" not in said and "in two  epoch 1/3" in (out / "failed.ipynb").read_text(encoding="utf-8")
    assert (out / "failed.json").exists() and not (out / "result.json").exists() and gone(out)
    _, result = run_experiment(book, {"output_dir": str(out)})
    assert result["sum"] == sum(p.double().sum().item() for p in in_two[1].parameters())     # bit for bit
    assert not (out / "failed.json").exists()


def test_what_a_process_refuses_is_said_here(tmp_path, importable):
    with pytest.raises(PtaclError, match=r"^in two: sim-00003 is not welcome here$"): launched(tmp_path, refuses)
    assert gone(tmp_path)


def test_a_step_that_fails_in_one_process_is_skipped_in_all(tmp_path, importable):
    _, history = launched(tmp_path / "run", Odd(str(tmp_path)))
    zero, one = ((tmp_path / f"weights-{rank}").read_text().split() for rank in (0, 1))
    assert zero == one and len(zero) == 6 and [zero[i] == zero[i + 1] for i in range(5)] == [False, True, False, False, False]
    assert [row["skipped"] for row in history] == [1, 0, 0]
    assert [row["lr"] for row in history] == pytest.approx([3e-3 * learning_rate(k, 6, tiny.warmup) for k in (1, 3, 5)])


@pytest.mark.parametrize("name", METHODS)
def test_every_phase_of_a_method_is_trained_in_processes(name, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(ptacl.rivals.methods, "fit_in_processes", lambda processes, *_, name, **__: asked.append((name, processes)))
    train_method(name, noise().with_extra(targets=torch.randn(11, len(PHENOTYPES))), tiny, 0, tmp_path, processes=3)
    assert asked == [(part, 3) for part in (*METHODS[name].start, *[name] * bool(METHODS[name].step))]


@pytest.mark.long
@pytest.mark.parametrize("name", ["supervised", "cmae", "dualphase"])
def test_a_method_in_two_processes(name, tmp_path, importable):
    data = noise().with_extra(targets=torch.randn(11, len(PHENOTYPES)))
    model = train_method(name, data, replace(tiny, epochs_mae=1, epochs_joint=1), 0, tmp_path, processes=2)
    assert all(v.isfinite().all() for v in model.state_dict().values()) and gone(tmp_path, 0)


@pytest.mark.long
def test_the_joint_experiment_in_two_processes_and_in_chunks(tmp_path, importable):
    parameters = {"n_train": 32, "n_test": 24, "epochs": 1, "n_boot": 20, "processes": 2, "chunk": 4, "output_dir": str(tmp_path / "out")}
    folder, found = run_experiment("joint", parameters)
    said = (folder / "joint.ipynb").read_text(encoding="utf-8")
    assert said.count("epoch 1/1") >= 4 and {r["method"] for r in found["rows"]} >= {"Global", "PTACL"} and gone(tmp_path, 0)


def test_two_processes_stream_a_cohort(tmp_path, importable):
    repeated_cohort(tmp_path / "cohort", 16, of=8)
    stream = Stream(Cohort.open(tmp_path / "cohort"))
    history = fit_in_processes(2, start(), joint_loss, stream, tiny, 2, 3e-3, tmp_path / "two", silence=120)
    alone = fit(start(), joint_loss, stream, tiny, 2, 3e-3)
    for a, b in zip(history, alone, strict=True): assert a["loss"] == pytest.approx(b["loss"], rel=0.03) and a["valid"] == b["valid"]  # bf16


ALONE = """
import sys
from steps import Harm, noise, start, tiny
from ptacl.core.errors import PtaclError
from ptacl.train.loop import fit
try: fit(start(), Harm(), noise(), tiny, 4, 3e-3, sys.argv[1], name="in two")
except PtaclError as e: sys.exit(str(e))
"""

def test_whoever_started_the_processes_is_told_that_one_is_gone(tmp_path, importable):
    "As two machines do it, without torchrun: the second kills itself."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    both = [subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path / "run")], env=env | {"RANK": str(rank)}, text=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for rank in (0, 1)]
    said = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [1, -signal.SIGKILL], said
    assert "in two: another process died, or did not answer within 600 s" in said[0]
    assert f"The states in {tmp_path / 'run'} are kept" in said[0]


@pytest.mark.long
def test_a_process_that_hangs_is_stopped(tmp_path, importable):
    with pytest.raises(PtaclError, match="no sign of life for 20 s"): launched(tmp_path, Harm(signal.SIGSTOP), silence=20)
    assert gone(tmp_path)


LAUNCH = """
import signal, sys
from steps import *
signal.signal(signal.SIGINT, signal.default_int_handler)   # as in CHILD
from ptacl.train.launch import fit_in_processes
fit_in_processes(2, start(), slow, noise(), tiny, 999, 1e-3, sys.argv[1])
"""

@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.long
def test_where_the_caller_is_killed_nobody_trains_on(tmp_path, importable, how):
    with subprocess.Popen([sys.executable, "-c", LAUNCH, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as caller:
        until = time.monotonic() + 120
        while not (tmp_path / "state.pt").exists() and time.monotonic() < until: time.sleep(0.2)
        there = len(at_work(tmp_path)); caller.send_signal(how); caller.wait(60)
    assert there == 3 and gone(tmp_path)                                                    # torchrun and two


@pytest.mark.parametrize("processes, why", [(0, "at least 1"), (9, "9 processes cannot share a batch of 4")])
def test_a_number_of_processes_that_cannot_be(processes, why, tmp_path):
    with pytest.raises(PtaclError, match=why):
        if processes: _share_out(noise().batches(4), 0, processes)
        else: launched(tmp_path, processes=0)


def test_without_a_folder_the_model_could_not_come_back():
    with pytest.raises(PtaclError, match="need a folder"): launched(None)


def test_more_processes_than_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True); monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PtaclError, match="3 processes, but 2 GPUs: one for each, so at most 2"): launched(tmp_path, processes=3)


def test_what_is_streamed_comes_as_it_is_said(capsys):
    "Bars return to the start of their line; umlauts may come in halves."
    code = ("import os, time\n"
            "for byte in 'a\\rä\\n'.encode(): os.write(1, bytes([byte])); time.sleep(.05)")
    assert stream([sys.executable, "-c", code], 60) == (0, "a\rä\n") and capsys.readouterr().out == "a\rä\n"


def test_what_is_said_is_heard_at_once(tmp_path):
    "The child says one thing and waits for a file, which is there once that was heard."
    code = ("import pathlib, sys, time; print('one', flush=True); sign = pathlib.Path(sys.argv[1])\n"
            "for _ in range(600):\n    if sign.exists(): sys.exit(3)\n    time.sleep(.1)")
    class Ear(io.StringIO):
        def write(self, text):
            if "one" in text: (tmp_path / "sign").touch()
            return super().write(text)
    with redirect_stdout(Ear()) as ear: code, _ = stream([sys.executable, "-c", code, str(tmp_path / "sign")], 30)
    assert code == 3 and ear.getvalue() == "one\n"


CHILD = """
import signal, sys
from ptacl.core.processes import child
signal.signal(signal.SIGINT, signal.default_int_handler)   # which a shell takes away from what it starts in the background
with child([sys.executable, "-c", "import time; time.sleep(600)"]) as process: print(process.pid, flush=True); process.wait()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_child_ends_with_whoever_started_it(how):
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        there = psutil.Process(int(parent.stdout.readline()))
        assert there.is_running()
        parent.send_signal(how)
        try: parent.wait(60)
        finally: parent.kill()
    assert not there.is_running()


def test_a_child_leaves_signals_as_they_were():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)                                # as nohup does
    try:
        with child([sys.executable, "-c", ""]) as process: heard = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
        assert process.returncode is not None and heard[0] == signal.SIG_IGN != heard[1]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally: signal.signal(signal.SIGHUP, before)


# --- meeting ---------------------------------------------------------------------------------------------------------------

MEET = """
import ptacl.train.accelerator as t
from ptacl.core.errors import PtaclError
t._TIME_LIMIT = 2
try: t._rendezvous()
except PtaclError as e: print(e)
"""

@pytest.mark.parametrize("taken, why", [(True, "in use by another program: choose another"), (False, "did not find each other at 127.0.0.1:")])
def test_a_port_in_use_and_a_process_that_nobody_meets(taken, why):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        port = s.getsockname()[1]
        if not taken: s.close()
        env = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = subprocess.run([sys.executable, "-c", MEET], env=env, capture_output=True, text=True, timeout=120)
    assert why in done.stdout and str(port) in done.stdout, done.stderr[-2000:]


def test_a_gpu_that_was_asked_for_and_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(PtaclError, match="CUDA_VISIBLE_DEVICES=3 asks for a GPU, but torch .* finds none"):
        fit(start(), joint_loss, noise(), tiny, 1, 1e-3)
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert fit(start(), joint_loss, noise(4), tiny, 1, 1e-3)


# --- several machines ------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from steps import noise, start, tiny
from ptacl.nets.joint import joint_loss
from ptacl.train.loop import fit
fit(start(), joint_loss, noise(), tiny, 2, 3e-3, sys.argv[1], seed=4, resume=True)
"""

@pytest.mark.long
def test_two_machines_meet_and_train_one_model(tmp_path, importable):
    "The documented line of torchrun, once for each of two machines that see the same folder; each has one process."
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    line = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
            "--master-port", str(port), "--local-addr", "127.0.0.1"]
    env = os.environ | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    machines = [subprocess.Popen([*line, "--node-rank", str(rank), "train.py", "runs"], cwd=tmp_path, env=env, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True) for rank in (0, 1)]
    said = [m.communicate(timeout=150)[0] for m in machines]
    assert [m.returncode for m in machines] == [0, 0], "\n".join(said)[-3000:]
    assert "epoch 2/2" in said[0] and "epoch 2/2" not in said[1]     # one of them reports and writes
    alone, ours = fit(start(), joint_loss, noise(), tiny, 2, 3e-3, seed=4), read_state(tmp_path / "runs")["history"]
    for a, b in zip(ours, alone, strict=True):
        assert [a[k] for k in ("loss", "valid")] == pytest.approx([b[k] for k in ("loss", "valid")], rel=0.03)  # bf16
    from_pretrained(tmp_path / "runs/model")
