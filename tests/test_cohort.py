"""The store: there and back, through URLs and processes, and what it refuses."""
import json
import multiprocessing
import pickle
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ptacl.data import store as module
from ptacl.data.cohort import Cohort, Stream
from ptacl.data.splits import SHARES, SPLITS, assign_splits
from ptacl.data.store import MV, SHARD, factors, lead_stats, shard_parts, to_counts
from ptacl.signal.ecg import normalize
from ptacl.core.errors import PtaclError
from ptacl.core.privacy import given_path
from ptacl.core.presets import LEADS, PHENOTYPES, SCOPES

N, F = 70, 4  # more than a shard


def make(path, n=N, start=0, rng=7, frames=F, parts=None):
    "A cohort of noise, and what went into it."
    rng = np.random.default_rng(rng)
    ecg = rng.integers(-2000, 2000, (n, 12, 5000), dtype=np.int16) + np.arange(12, dtype=np.int16)[:, None] * 100
    cine = rng.integers(0, 256, (n, frames, 84, 84), dtype=np.uint8)
    rows = [{"id": f"sim-{start + k:05d}", "participant": f"sim-{start + k:05d}", "sex": "FM"[k % 2], "phenotypes": rng.normal(100, 9, 10),
             "covariates": rng.normal(60, 9, 4), "r_peaks": np.sort(rng.uniform(0, 10, 3 + k % 9)), "quality": "good",
             "provenance": json.dumps({"ecg": {"format": "noise"}})} for k in range(n)]
    cohort = Cohort.create(path, frames)
    cohort.extend((ecg[p], cine[p], rows[p]) for p in parts or shard_parts(0, n))
    return cohort, ecg, cine, rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("cohort") / "noise")


@pytest.fixture
def copy(made, tmp_path):
    "A cohort that a test may damage."
    return Path(shutil.copytree(made[0].path, tmp_path / "copy"))


def files(folder): return {f.relative_to(folder): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}


# there and back

def test_everything_comes_back(made):
    _, ecg, cine, rows = made
    cohort = Cohort.open(made[0].path)
    got = cohort.batch(None, normalize=None)
    np.testing.assert_array_equal(got["cine"], cine)
    np.testing.assert_allclose(got["ecg"], ecg * np.float32(MV), rtol=1e-6)
    np.testing.assert_array_equal(cohort.phenotypes, [r["phenotypes"] for r in rows])
    np.testing.assert_array_equal(cohort.covariates.drop(columns="sex"), [r["covariates"] for r in rows])
    assert list(cohort.covariates.sex) == [r["sex"] for r in rows] and list(cohort.phenotypes) == list(PHENOTYPES)
    for r, peaks in zip(rows, cohort.r_peaks): np.testing.assert_allclose(peaks[np.isfinite(peaks)], r["r_peaks"], rtol=1e-6)
    assert list(cohort.table.beats) == [len(r["r_peaks"]) for r in rows]
    assert len(cohort.verify()) == 0 and len(cohort) == N


def test_other_software_can_read_it(made):
    "By Zarr alone: names, units and shapes are in the store."
    group = zarr.open_group(made[0].path, mode="r")
    np.testing.assert_array_equal(group["cine"][66], made[2][66])
    np.testing.assert_array_equal(group["ecg"][3], made[1][3])
    about = group["ecg"].attrs
    assert (about["units"], about["scale"], about["fs"], tuple(about["leads"])) == ("mV", MV, 500, LEADS)
    table = group[f"table/{group.attrs['generation']}"]
    assert dict(zip(table["phenotypes"].attrs["columns"], table["phenotypes"].attrs["units"])) == PHENOTYPES
    assert list(table["id"][:2]) == ["sim-00000", "sim-00001"]


def test_parts_do_not_matter(made, tmp_path):
    odd = make(tmp_path / "odd", parts=[slice(0, 5), slice(5, 40), slice(40, N)])[0]
    assert files(odd.path) == files(made[0].path)


def test_grown_is_like_written_at_once(tmp_path):
    once = make(tmp_path / "once", 9)[0]
    grown, ecg, cine, rows = make(tmp_path / "grown", 9, parts=[slice(0, 4)])
    Cohort.open(grown.path, write=True).extend([(ecg[4:], cine[4:], rows[4:])])
    a, b = Cohort.open(once.path), Cohort.open(grown.path)
    pd.testing.assert_frame_equal(a.table, b.table)
    assert all(torch.equal(a[:][k].nan_to_num(), b[:][k].nan_to_num()) for k in a[:]) and len(b.verify()) == 0


@pytest.mark.parametrize("scope", (None, *SCOPES))
def test_normalised_as_the_ecg_chapter_does(made, scope):
    cohort, ecg, _, _ = made
    expected = ecg * np.float32(MV) if scope is None else normalize(ecg * np.float32(MV), scope)
    np.testing.assert_allclose(cohort.batch(None, scope)["ecg"], expected, atol=2e-4)


def test_a_lead_without_variance_becomes_zero():
    counts = np.full((1, 12, 5000), 300, np.int16)
    a, b = factors(*lead_stats(counts).values(), "lead")
    np.testing.assert_allclose(a[..., None] * counts + b[..., None], normalize(counts * MV, "lead"), atol=1e-4)


@given(st.lists(st.floats(-40, 40, width=32), min_size=12, max_size=12))
def test_counts_are_within_half_a_microvolt_or_refused(values):
    signal = np.repeat(np.array(values, np.float32)[:, None], 3, 1)
    if np.abs(np.rint(signal / MV)).max() >= 2**15:
        with pytest.raises(PtaclError, match="±32 mV"): to_counts(signal)
    else: assert np.abs(to_counts(signal) * MV - signal).max() <= 0.503 * MV


# reading

@pytest.mark.parametrize("indices", [slice(None), slice(60, 68), slice(None, None, -7), [3], [69, 0, 3, 3], [-1, -N],
                                     np.array([63, 64]), []], ids=str)
def test_batches(made, indices):
    batch = made[0][indices]
    rows = np.arange(N)[np.array(indices, int) if isinstance(indices, list) else indices]
    assert batch["index"].tolist() == rows.tolist()
    np.testing.assert_array_equal(batch["cine"], made[2][rows])
    assert batch["ecg"].shape == (len(rows), 12, 5000) and batch["r_peaks"].shape == (len(rows), 40)


def test_by_mask(made):
    table = made[0].table
    assert made[0][(table.beats > 10).to_numpy()]["index"].tolist() == np.flatnonzero(table.beats > 10).tolist()


@pytest.mark.parametrize("index", [N, -N - 1, [0, N]])
def test_out_of_range(made, index):
    with pytest.raises(IndexError): made[0][index]


def test_one_patient(made):
    cohort, ecg, cine, rows = made
    p = cohort[-1]
    assert p.id == rows[-1]["id"] and p.ecg.fs == 500 and p.ecg.meta == {"format": "noise"}
    np.testing.assert_array_equal(p.cine.frames[:, 0], cine[-1])
    np.testing.assert_allclose(p.ecg.signal, ecg[-1] * MV, atol=1e-5)
    np.testing.assert_allclose(p.ecg.r_peaks, rows[-1]["r_peaks"], rtol=1e-6)


def test_load_is_batch(made):
    cohort = made[0]
    everything, batch = cohort.load(workers=3), cohort.batch(None)
    for k in ("ecg", "r_peaks", "cine"): torch.testing.assert_close(everything[k], batch[k], rtol=0, atol=0, equal_nan=True)
    half = cohort.load([66, 2], dtype=torch.float16)
    assert half["ecg"].dtype == torch.float16 and torch.equal(half["cine"], batch["cine"][[66, 2]])
    torch.testing.assert_close(half["ecg"].float(), batch["ecg"][[66, 2]], rtol=1e-3, atol=1e-3)


def test_load_reads_straight_into_its_place(made, monkeypatch):
    "No second copy: the buffers that are filled are the tensors that come back."
    filled = []
    real = Cohort.read_into
    def read_into(self, rows, ecg, cine, normalize):
        filled.append((ecg.ctypes.data, cine.ctypes.data)); real(self, rows, ecg, cine, normalize)
    monkeypatch.setattr(Cohort, "read_into", read_into)
    out = made[0].load(workers=1)
    assert filled == [(out["ecg"][i].data_ptr(), out["cine"][i].data_ptr()) for i in (0, SHARD)]


def test_records_of_zeros_are_records(tmp_path):
    cohort = Cohort.create(tmp_path / "zeros", 2)
    cohort.extend([(np.zeros((3, 12, 5000), np.int16), np.ones((3, 2, 84, 84), np.uint8), [{"id": f"sim-{k}"} for k in range(3)])])
    b = cohort.batch(None, None)
    assert not b["ecg"].any() and b["cine"].all() and np.isnan(cohort.phenotypes).all(axis=None) and cohort.covariates.sex.isna().all()


# elsewhere

class Server(SimpleHTTPRequestHandler):
    "A web server that can send parts of a file, as those that hold data do."
    def log_message(self, *args): pass

    def do_GET(self):
        file = Path(self.translate_path(self.path))
        if not file.is_file(): return self.send_error(404)
        raw = file.read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = (int(first), int(last or len(raw) - 1) + 1) if first else (len(raw) - int(last), len(raw))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(raw[start:stop])))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(raw)}")
        self.end_headers()
        self.wfile.write(raw[start:stop])
        self.server.sent.append(len(raw[start:stop]))


@pytest.fixture
def web(made):
    "The cohort behind a web server on this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(made[0].path.parent)))
    server.sent, server.url = [], f"http://127.0.0.1:{server.server_port}/{made[0].path.name}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown(); server.server_close()


def test_through_http(made, web):
    remote = Cohort.open(web.url)
    pd.testing.assert_frame_equal(remote.table, made[0].table)
    web.sent.clear()
    a, b = remote[[69, 0, 5]], made[0][[69, 0, 5]]
    assert all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)
    assert sum(web.sent) < 3 * (F * 84 * 84 + 12 * 5000 * 2) + 6 * 1100  # these patients and an index for each read, no more
    with pytest.raises(PtaclError, match="nothing: no such cohort"): Cohort.open(web.url.replace("noise", "nothing"))


def test_from_several_processes(made):
    cohort, _, cine, _ = made
    rows = np.random.default_rng(0).integers(0, N, (8, 9))
    with multiprocessing.get_context("fork").Pool(3) as pool: got = pool.map(cohort.batch, rows)
    for r, batch in zip(rows, got): np.testing.assert_array_equal(batch["cine"], cine[r])


def test_pickled_it_is_a_path(made):
    assert len(pickle.dumps(made[0])) < 1000
    assert torch.equal(pickle.loads(pickle.dumps(made[0]))[[2]]["cine"], made[0][[2]]["cine"])


def test_stream_is_pairs(made):
    stream = Stream(made[0], [68, 4, 9, 1, 33])
    assert [b["index"].tolist() for b in stream.batches(2)] == [[0, 1], [2, 3], [4]]
    batches = list(stream.batches(2, train=True, seed=3, workers=2))
    assert len(batches) == 2 and [b["index"].tolist() for b in batches] == [b["index"].tolist() for b in stream.batches(2, train=True, seed=3)]
    for b in batches: np.testing.assert_array_equal(b["cine"], made[2][np.array([68, 4, 9, 1, 33])[b["index"]]])
    assert stream[1]["ecg"].shape == (12, 5000)


# damage

def spots(folder):
    "Every data file of the store, and a byte in the middle of what is in use."
    for f, raw in files(folder).items():
        if f.name != "zarr.json" and len(raw): yield f, raw


def sound(path) -> bool:
    "Whether a store opens and verifies."
    try: return not len(Cohort.open(path).verify())
    except PtaclError: return False


def test_verify_finds_a_flipped_byte_in_any_file(copy):
    rng, missed, tried = np.random.default_rng(0), [], 0
    for f, raw in spots(copy):
        bad = bytearray(raw); bad[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        (copy / f).write_bytes(bad); tried += 1
        if sound(copy): missed.append(str(f))
        (copy / f).write_bytes(raw)
    assert not missed and tried == 4 + 11 and sound(copy)


def test_a_damaged_record_is_never_given(copy):
    shard = copy / "cine/c/1/0/0/0"; raw = bytearray(shard.read_bytes())
    raw[3 * (F * 84 * 84 + 4) + 17] ^= 8; shard.write_bytes(raw)
    cohort = Cohort.open(copy)
    for read in (lambda: cohort[67], lambda: cohort.load(), lambda: cohort[[1, 67]], lambda: Stream(cohort)[67]):
        with pytest.raises(PtaclError, match="sim-00067: cine is damaged"): read()
    assert cohort[66].id == "sim-00066"
    found = cohort.verify()
    assert found["where"].tolist() == ["cine"] and found.patient.tolist() == ["sim-00067"]


@pytest.mark.parametrize("harm, why", [
    (lambda c: (c / "ecg/c/0/0/0").unlink(), "ecg cannot be read"), (lambda c: (c / "ecg/c/0/0/0").write_bytes(b""), "ecg cannot be read|damaged"),
    (lambda c: (c / "ecg/c/0/0/0").write_bytes((c / "ecg/c/0/0/0").read_bytes()[:-5]), "ecg is damaged")], ids=["gone", "empty", "short"])
def test_missing_and_short_shards(copy, harm, why):
    harm(copy)
    with pytest.raises(PtaclError, match=f"sim-00002: {why}") as e: Cohort.open(copy)[2]
    assert str(copy.parent) not in str(e.value)


def test_attributes_cannot_be_changed_unseen(copy):
    about = copy / "zarr.json"; about.write_text(about.read_text().replace('"kit": "', '"kit": "9'))
    assert Cohort.open(copy).verify()["where"].tolist() == ["attributes"]
    scale = copy / "ecg/zarr.json"; scale.write_text(scale.read_text().replace("0.001", "0.002"))
    assert len(Cohort.open(copy).verify())


def attribute(old, new):
    "A change to the attributes of a store."
    return lambda c: (c / "zarr.json").write_text((c / "zarr.json").read_text().replace(old, new))


@pytest.mark.parametrize("harm, why", [
    (lambda c: (c / "zarr.json").write_text("{"), "zarr.json is damaged"), (lambda c: (c / "zarr.json").unlink(), "no cohort in it"),
    (lambda c: shutil.rmtree(c / "table"), "its arrays cannot be read"), (lambda c: shutil.rmtree(c / "cine"), "its arrays cannot be read"),
    (attribute('"format": 1', '"format": 2'), "has format 2, this kit reads up to 1: update"), (lambda c: shutil.rmtree(c), "no such cohort"),
    (attribute('"patients": 70', '"patients": 0'), "without patients"), (attribute("ptacl cohort", "weather"), "no cohort of this kit")])
def test_what_is_no_cohort(copy, harm, why):
    harm(copy)
    with pytest.raises(PtaclError, match=why) as e: Cohort.open(copy)
    assert given_path(copy) in str(e.value)                                              # whole, as it was given


def test_a_path_of_somebody_is_whole_but_for_the_number():
    with pytest.raises(PtaclError, match="a/#######/cohort: no such cohort"): Cohort.open("a/" + "12345" + "67/cohort")


# writing

def test_never_overwrites_what_is_no_cohort(made, copy, tmp_path):
    (tmp_path / "mine").mkdir(); (tmp_path / "mine" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(PtaclError): Cohort.create(tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(PtaclError, match="copy exists already"): Cohort.create(copy)
    Cohort.create(copy, overwrite=True)
    with pytest.raises(PtaclError, match="without patients"): Cohort.open(copy)


@pytest.mark.parametrize("ecg, cine, rows, why", [
    (np.zeros((1, 12, 4999), np.int16), np.zeros((1, F, 84, 84), np.uint8), [{"id": "a"}], "ecg of shape"),
    (np.zeros((1, 12, 5000)), np.zeros((1, F, 84, 84), np.uint8), [{"id": "a"}], "float64"),
    (np.zeros((1, 12, 5000), np.int16), np.zeros((1, F + 1, 84, 84), np.uint8), [{"id": "a"}], "cine of shape"),
    (np.zeros((2, 12, 5000), np.int16), np.zeros((2, F, 84, 84), np.uint8), [{"id": "a"}, {"id": "a"}], "a is in the cohort already"),
    (np.zeros((1, 12, 5000), np.int16), np.zeros((1, F, 84, 84), np.uint8), [{"id": "a", "phenotypes": [1]}], "a: phenotypes of shape")])
def test_wrong_parts_leave_the_cohort_as_it_was(copy, ecg, cine, rows, why):
    cohort = Cohort.open(copy, write=True)
    with pytest.raises(PtaclError, match=why): cohort.extend([(ecg, cine, rows)])
    again = Cohort.open(copy)
    assert len(again) == N and len(again.verify()) == 0
    pd.testing.assert_frame_equal(again.table, cohort.table)


def test_replacing_one(copy, made):
    cohort = Cohort.open(copy, write=True); cohort.set_splits()
    split, other = cohort.table.split, np.roll(made[1][5], 3, -1)
    cohort = Cohort.open(copy, write=True)
    cohort.replace(5, other, made[2][6], made[3][5] | {"quality": "flat: V1"}); cohort.extend([])
    again = Cohort.open(copy)
    np.testing.assert_array_equal(again.batch([5, 6], None)["ecg"], np.stack([other, made[1][6]]) * np.float32(MV))
    assert again.table.quality.tolist() == ["good"] * 5 + ["flat: V1"] + ["good"] * 64 and again.table.split.equals(split)
    assert len(again.verify()) == 0


# leaving

def inside(path, record): return any(record.tobytes() in raw for raw in files(path).values())


@pytest.mark.parametrize("gone", [[5], [69], [0, 3, 64, 69], list(range(3, 9)), list(range(2, N)), list(range(N))], ids=len)
def test_who_is_removed_is_gone(copy, made, gone):
    _, ecg, cine, rows = made
    cohort = Cohort.open(copy, write=True); before = cohort.table
    cohort.remove([rows[k]["id"] for k in gone])
    cohort = Cohort.open(copy, write=True); stay = [k for k in range(N) if k not in gone]
    assert len(cohort) == N - len(gone) and len(cohort.verify()) == 0
    for k in gone: assert not inside(copy, ecg[k]) and not inside(copy, cine[k]) and not inside(copy, np.array(rows[k]["id"], "U9"))
    if not stay: return
    pd.testing.assert_frame_equal(cohort.table.sort_index(), before.iloc[stay])
    at = [list(cohort.table.index).index(rows[k]["id"]) for k in stay]
    np.testing.assert_array_equal(cohort.batch(at, None)["cine"], cine[stay])
    np.testing.assert_array_equal(cohort.batch(at, None)["ecg"], ecg[stay] * np.float32(MV))
    cohort.extend([(ecg[gone], cine[gone], [rows[k] for k in gone])])  # and back again
    assert len(cohort) == N and len(cohort.verify()) == 0 and inside(copy, ecg[gone[0]])


class Cut(Exception): "A process that dies."


def cut_at(monkeypatch, write):
    "From now on the store's n-th write fails, and all after it."
    real, count = zarr.storage.LocalStore.set, [0]
    async def set_(self, *args, **more):
        count[0] += 1
        if count[0] >= write: raise Cut
        return await real(self, *args, **more)
    monkeypatch.setattr(zarr.storage.LocalStore, "set", set_)


@pytest.mark.parametrize("what", ["replace", "remove"])
def test_an_interrupted_change_is_never_read(tmp_path, monkeypatch, what):
    "Cut at each write: either the old store, or the new one, or words; and the same again completes it."
    whole, ecg, cine, rows = make(tmp_path / "whole", 8)
    copy = Path(shutil.copytree(whole.path, tmp_path / "copy"))
    ids, refused = [r["id"] for r in rows], 0
    def change():
        cohort = Cohort.open(copy, write=True); cohort.tidy()
        if what == "replace":
            for k in (1, 7): cohort.replace(k, ecg[k][::-1], cine[k][::-1], rows[k] | {"quality": "new"})
            cohort.extend([])
        else: cohort.remove({ids[k] for k in (1, 7)} & set(cohort.ids))
    def check(cohort):
        at = [i for i in range(len(cohort)) if cohort.table.quality.iloc[i] == "new"]
        assert cohort.table.index.isin(ids).all() and len(cohort.verify()) == 0 and len(at) in (0, 2)
        order = [ids.index(i) for i in cohort.table.index]
        expected = np.stack([cine[k][::-1] if i in at else cine[k] for i, k in enumerate(order)])
        np.testing.assert_array_equal(cohort.batch(None, None)["cine"], expected)
    for write in range(2, 99, 3):
        shutil.rmtree(copy); shutil.copytree(whole.path, copy)
        with monkeypatch.context() as m:
            cut_at(m, write)
            try: change(); done = True
            except Cut: done = False
        try: check(Cohort.open(copy))
        except PtaclError as e:
            assert "was interrupted" in str(e) and Cohort.open(copy, write=True).verify()["where"].tolist() == ["store"]; refused += 1
        if done: break
        change(); check(Cohort.open(copy))
        if what == "remove": assert not any(inside(copy, x[k]) for k in (1, 7) for x in (ecg, cine))
    assert done and refused >= 4


# splits

people = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["F", "M", None]), st.floats(40, 85) | st.just(np.nan)), min_size=1, max_size=80)

@given(people, st.integers(0, 99))
def test_nobody_lies_in_two_splits_and_nobody_moves(rows, seed):
    frame = pd.DataFrame(rows, columns=["participant", "sex", "age"]).assign(participant=lambda t: t.participant.map("p{}".format), split="")
    first = frame[: len(frame) // 2 + 1].assign(split=lambda t: assign_splits(t, seed=seed))
    whole = pd.concat([first, frame[len(frame) // 2 + 1:]], ignore_index=True)
    whole["split"] = assign_splits(whole, seed=seed)
    assert whole.groupby("participant").split.nunique().max() == 1 and set(whole.split) <= set(SPLITS)
    assert whole.split[: len(first)].tolist() == first.split.tolist()
    alone = assign_splits(frame, seed=seed)
    counts = pd.Series(alone).groupby(frame.participant).first().value_counts()
    for s, share in SHARES.items(): assert abs(counts.get(s, 0) - share * frame.participant.nunique()) <= 2


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"participant": [f"p{k}" for k in range(300)], "sex": rng.choice(["F", "M"], 300), "split": ""})
    frame["age"] = rng.uniform(45, 80, 300)
    mixed = frame.sample(frac=1, random_state=1)
    a, b = dict(zip(frame.participant, assign_splits(frame))), dict(zip(mixed.participant, assign_splits(mixed)))
    assert a == b != dict(zip(frame.participant, assign_splits(frame, seed=1)))
    for sex, part in frame.assign(split=assign_splits(frame)).groupby("sex"):
        shares = part.split.value_counts(normalize=True)
        assert all(abs(shares[s] - SHARES[s]) < 0.03 for s in SPLITS)


def test_constants(): assert module._FORMAT == 1 and [p.stop - p.start for p in shard_parts(60, 200)] == [4, 64, 64, 8]


def measure_training(folder, queue):
    "Peak memory of a joint epoch that reads every patient."
    import resource
    import steps
    from ptacl.train.loop import fit
    from ptacl.train.steps import joint_step
    torch.set_num_threads(1)
    fit(steps.start(), joint_step, Stream(Cohort.open(folder)), steps.tiny, 1, 1e-3)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.mark.long
def test_memory_of_training_does_not_grow_with_the_cohort(tmp_path):
    from ptacl.bench.data import repeated_cohort
    peaks, fresh = [], multiprocessing.get_context("spawn")  # a fork begins with what other tests left in memory
    for n in (64, 1024): repeated_cohort(tmp_path / str(n), n)
    for n in (64, 1024):
        queue = fresh.Queue()
        process = fresh.Process(target=measure_training, args=(tmp_path / str(n), queue))
        process.start(); peaks.append(queue.get(timeout=300)); process.join()
    assert peaks[1] - peaks[0] < 60  # MB; the recordings are 450 MB more


# R-peaks that are doubtful

def test_training_sees_no_beat_at_a_doubtful_peak(made, tmp_path):
    _, ecg, cine, rows = made
    known = {"r_peaks": [0.5, 1.5, 2.5, 3.5], "agreement": [1, 1, 0.2, 1], "rhythm": "regular", "beat_quality": "good"}
    doubt = known | {"agreement": [1, 1, 1, 1], "beat_quality": "doubtful: 4.0 s without a beat"}
    cohort = Cohort.create(tmp_path / "new", F)
    cohort.extend([(ecg[:3], cine[:3], [rows[0] | known, rows[1] | doubt, rows[2] | {"r_peaks": known["r_peaks"]}])])
    cohort = Cohort.open(cohort.path)
    nan = float("nan")
    for got in (cohort.batch([0, 1, 2]), cohort.load([0, 1, 2])):
        np.testing.assert_allclose(got["r_peaks"][:, :5], [[0.5, 1.5, nan, 3.5, nan], [nan] * 5, [0.5, 1.5, 2.5, 3.5, nan]])
    assert cohort.table.beats.tolist() == [4, 4, 4]           # what was found is kept
    assert cohort.table.beat_quality.tolist() == ["good", "doubtful: 4.0 s without a beat", ""]
    np.testing.assert_allclose(cohort.agreement[0, :4], [1, 1, 0.2, 1])


def test_a_store_from_before_the_verdicts_opens(copy):
    generation = Cohort.open(copy).attributes["generation"]
    for name in module._LATER: shutil.rmtree(copy / "table" / str(generation) / name)
    cohort = Cohort.open(copy)
    assert not len(cohort.verify()) and set(cohort.table.rhythm) == {""} and np.isnan(cohort.agreement).all()
    Cohort.open(copy, write=True).extend([])                  # and is as new after the next change
    assert Cohort.open(copy).table.rhythm.tolist() == [""] * N
