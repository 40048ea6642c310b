"""Labels of any kind: tables, PTB-XL's layout, splits, scores, model cards, the loader that stands alone, the shell."""
import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import ID
from sklearn.metrics import r2_score, roc_auc_score
from typer.testing import CliRunner

from ptacl.app.cli import app
from ptacl.core.errors import PtaclError
from ptacl.core.presets import workshop
from ptacl.data.labels import Labelled, Target, read_labels, _target_of
from ptacl.data.ptbxl import TASKS, read_ptbxl, scp_codes
from ptacl.inference import benchmark
from ptacl.inference.benchmark import _auroc, probe_labels, probe_text, _r_squared, _split_recordings, _untrained
from ptacl.inference.cards import Card, Score, card_of_result, card_text, save_pretrained
from ptacl.inference.embedding import ECGFeatures
from ptacl.inference.export import FilmFeatures
from ptacl.nets.encoders import CMREncoder, ECGEncoder, EchoEncoder
from ptacl.nets.joint import JointModel, PTACL
from ptacl.nets.mae import MAE
from ptacl.nets.weights import from_pretrained
from ptacl.nets.weights import save_weights
from ptacl.simulate.ecg_tasks import write_ecg_task, write_like_ptbxl
from ptacl.train.finetune import Tuned

tiny = replace(workshop, width=16, heads=2, proj_dim=8)
shell = CliRunner()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PTACL(tiny).eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory): return save_weights(model, tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def task(tmp_path_factory): return write_ecg_task(tmp_path_factory.mktemp("task") / "task", 40, seed=1)


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory): return write_like_ptbxl(tmp_path_factory.mktemp("ptb") / "ptb-xl", 40, seed=1)


# scores

@given(st.integers(0, 10**6))
def test_weighted_scores_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    y, p = np.r_[0, 1, rng.integers(2, size=30)].astype(float), rng.integers(5, size=32) + 0.0
    W = rng.integers(1, 4, size=(2, 32)).astype(float)
    np.testing.assert_allclose(_auroc(y, p, W), [roc_auc_score(y, p, sample_weight=w) for w in W])
    np.testing.assert_allclose(_r_squared(p, y, W), [r2_score(p, y, sample_weight=w) for w in W], atol=1e-9)


def test_a_score_that_is_none():
    assert np.isnan(_auroc(np.zeros(3), np.arange(3.0), np.ones((1, 3))))[0]
    assert np.isnan(_r_squared(np.ones(3), np.arange(3.0), np.ones((1, 3))))[0]


# splits

def made(patients, splits=None, targets=()):
    splits = [""] * len(patients) if splits is None else splits
    return Labelled([], np.array(patients), np.array(splits), list(targets), pd.DataFrame(index=range(len(patients))))


@given(st.lists(st.integers(0, 15), min_size=40, max_size=80), st.integers(0, 99))
def test_no_patient_is_on_two_sides(patients, seed):
    patients = [*range(12), *patients]
    sides = pd.DataFrame({"p": patients, "s": _split_recordings(made(patients), seed)})
    assert (sides.groupby("p").s.nunique() == 1).all() and set(sides.s) == {"train", "val", "test"}


def test_splits_of_the_table():
    with pytest.raises(PtaclError, match="1 patients are on two sides"): _split_recordings(made([0, 0, 1, 2], ["train", "test", "val", "test"]))
    sides = _split_recordings(made([k // 2 for k in range(60)], ["train"] * 40 + ["test"] * 18 + [""] * 2))
    assert (sides[40:58] == "test").all() and (sides[58:] == "").all() and set(sides[:40]) == {"train", "val"}
    assert all(sides[k] == sides[k + 1] for k in range(0, 60, 2))


def test_intervals_are_of_patients_not_of_recordings():
    y, p = np.tile([0.0, 1.0, 2.0, 3.0], 8), np.tile([0.1, 1.2, 1.5, 3.1], 8)
    p = p + np.repeat(np.random.default_rng(0).normal(0, 1, 8), 4)
    few = benchmark._draws(_r_squared, y, p, np.repeat(np.arange(8), 4), 400, 0)[1:]
    many = benchmark._draws(_r_squared, y, p, np.arange(32), 400, 0)[1:]
    assert np.std(few) > np.std(many)


# tables

def test_kinds_of_targets():
    def kind(cells): return _target_of("x", pd.Series(cells)).kind
    assert [kind(c) for c in (["1", "2.5", "NA"], ["0", "1", "n/a"], ["yes", "No"], ["a", "b;c"])] == ["number", "classes", "classes", "classes"]
    assert _target_of("x", pd.Series(["a|b", "b", ""])).classes == ["a", "b"]
    with pytest.raises(PtaclError, match="x is empty"): _target_of("x", pd.Series(["", " "]))
    with pytest.raises(PtaclError, match="no classes"): _target_of("x", pd.Series([f"w{k}" for k in range(101)]))
    with pytest.raises(PtaclError, match="infinity"): _target_of("x", pd.Series(["1", "inf", "3"]))


@pytest.mark.parametrize("text, words", [("a,b\n1,2\n", "no column file"), ("file,x\n", "no rows"), ("file\na.hea\n", "nothing to tell"),
    ("file,x\n/etc/a.hea,1\n", "outside"), ("file,x\n..\\a.hea,1\n", "outside"),
    ("file,split,x\na,smith,1\n", "another word in row 2: expected train"),
    ("file,sex,x\na,F,1\nb,2,1\n", "neither F nor M .*in row 3"), ("file,age,x\na,old,1\n", "age holds no number in row 2"),
    ("file,x\na,1\na,0\n", "names a recording twice"), ("file,lvef\na,55,2\nb,61,5\n", "row 2 has 3 cells, and the first 2"),
    ("file,lvef\na,55\n\nb,61,5\n", "row 4 has 3 cells"), ("file,x,y\na,1,2\nb,1\n", "row 3 has 2 cells, and the first 3"), ("", "is empty"),
    ("file,File,x\na,b,1\n", "the column file more"), ("file,split,Split,x\na,test,test,1\n", "the column split more"),
    ("file,age,Age,x\na,1,1,1\n", "the column age more"), ("file,x, x\na,1,0\n", "the column x more than once. Keep one"),
    ("file,age,x\na,50,1\nb,-3,0\nc,300,1\n", "not from 0 to 130 years in row 3, 4"), ('file,x\na,"1\n', "cannot be read as CSV")])
def test_tables_that_do_not_say_what_is_meant(tmp_path, text, words):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(PtaclError, match=words): read_labels(tmp_path / "l.csv")


@pytest.mark.parametrize("text", ["file\tlvef\na\t55,2\nb\t61,5\nc\t48,0\n", 'file,lvef\na,"55,2"\nb,"61,5"\nc,"48,0"\n',
    "file;lvef;release\na;55,2;1.0\nb;61,5;1.1\nc;48,0;2.0\n", 'file\tlvef\na\t"55,2"\nb\t"61,5"\nc\t"48,0"\n'])
def test_decimal_commas_whatever_separates(tmp_path, text):
    (tmp_path / "l.csv").write_text(text)
    target, = read_labels(tmp_path / "l.csv", targets=["lvef"]).targets
    assert target.kind == "number" and target.y[:, 0].tolist() == [55.2, 61.5, 48.0]


def test_commas_of_words_stay(tmp_path):
    (tmp_path / "l.csv").write_text('file,age,found,note\na,"50,5","af,lbbb","1,5"\nb,40,af,2.5\nc,,"1,5",\n')
    read = read_labels(tmp_path / "l.csv", targets=["found"])
    assert read.targets[0].classes == ["1,5", "af", "af,lbbb"] and read.demographics.age[0] == 50.5
    with pytest.raises(PtaclError, match="decimal comma .row 2. and a decimal point .row 3"): read_labels(tmp_path / "l.csv", targets=["note"])


@pytest.mark.parametrize("same", ["./a.hea", "a.hea ", ".//a.hea", "a.dat", "a", r".\a.HEA"])
def test_one_recording_has_one_row(tmp_path, same):
    (tmp_path / "l.csv").write_text(f"file,split,x\na.hea,train,1\nb.hea,test,1\n{same},test,0\n")
    with pytest.raises(PtaclError, match="l.csv: names a recording twice, in row 2, 4"): read_labels(tmp_path / "l.csv")


def test_names_of_files_have_no_spaces_around(tmp_path):
    (tmp_path / "l.csv").write_text("file,x\n a.hea ,1\n1.2.3,0\n1.2.4,1\n")
    assert read_labels(tmp_path / "l.csv").files == [tmp_path / name for name in ("a.hea", "1.2.3", "1.2.4")]


@pytest.mark.parametrize("text", ["sep=;\nfile;lvef\na;55,2\n", "sep=,\r\nlvef,file\r\n55.2,a\r\n", "\ufeffsep=\t\nfile\tlvef\na\t55,2\n",
    'file,lvef,note,note\na,55.2,"in two\nlines, quoted",\n\n', "age,file,lvef\n130,a,55.2\n", "age,file,lvef\n0,a,55.2\n"])
def test_tables_as_programs_write_them(tmp_path, text):
    (tmp_path / "l.csv").write_bytes(text.encode())
    read = read_labels(tmp_path / "l.csv", targets=["lvef"])
    assert read.files == [tmp_path / "a"] and read.targets[0].y.tolist() == [[55.2]]


def test_tables_that_are_cut_off(tmp_path):
    table = gzip.compress(b"file,x\n" + b"".join(b"%d,%d\n" % (k, k**3 % 7) for k in range(5000)))
    for broken in (table[:len(table) // 2], table[:40] + bytes(200) + table[240:]):
        (tmp_path / "l.csv.gz").write_bytes(broken)
        with pytest.raises(PtaclError, match="l.csv.gz: cannot be read as CSV .(EOFError|error)"): read_labels(tmp_path / "l.csv.gz")


# PTB-XL

@pytest.mark.parametrize("text", ["__import__('os').system('true')", "{'a': open('x')}", "{1: 2}", "[]", "", "{'a': 1", "(" * 4000, "{" * 90])
def test_codes_are_parsed_and_never_run(text):
    with pytest.raises(PtaclError, match="no dictionary of codes"): scp_codes(text)


def test_layout_of_ptbxl(ptbxl):
    found = {name: read_ptbxl(ptbxl, name).targets[0] for name in TASKS}
    assert found["superclass"].classes == ["CD", "NORM"] and found["rhythm"].classes == ["AFIB", "PACE", "SR"] and found["form"].classes == ["PVC"]
    assert found["subclass"].classes == found["diagnosis"].classes == ["CLBBB", "CRBBB", "NORM"] and len(found["all"].classes) == 7
    one = read_ptbxl(ptbxl)
    table = pd.read_csv(ptbxl / "ptbxl_database.csv")
    assert ((table.strat_fold == 10) == (one.splits == "test")).all() and ((table.strat_fold == 9) == (one.splits == "val")).all()
    assert (one.demographics.male == 1 - table.sex).all() and all(f.is_file() for f in one.files)
    rhythm_alone = table.scp_codes.str.contains("AFIB|PACE")  # fibrillation or a pacemaker is no diagnosis here
    assert (np.isnan(one.targets[0].y).all(1) == rhythm_alone).all() and rhythm_alone.any()
    assert all("records100" in str(f) and f.is_file() for f in read_ptbxl(ptbxl, rate=100).files)


def test_ptbxl_that_is_not_whole(ptbxl, tmp_path):
    table = pd.read_csv(ptbxl / "ptbxl_database.csv", dtype=str)
    statements = (ptbxl / "scp_statements.csv").read_text()
    def attempt(changed):
        changed.to_csv(tmp_path / "ptbxl_database.csv", index=False)
        return read_ptbxl(tmp_path)
    with pytest.raises(PtaclError, match="cannot be read"): attempt(table)
    (tmp_path / "scp_statements.csv").write_text(statements)
    for changed, words in ((table.drop(columns="strat_fold"), "no column strat_fold"), (table.assign(strat_fold="11"), "something else than 1 to 10"),
                           (table.assign(filename_lr="../../x", filename_hr="../x"), "outside"), (table.assign(scp_codes="x"), "no dictionary")):
        with pytest.raises(PtaclError, match=words): attempt(changed)
    with pytest.raises(PtaclError, match="no task"): read_ptbxl(ptbxl, "everything")
    with pytest.raises(PtaclError, match="100 and of 500"): read_ptbxl(ptbxl, rate=250)


# the benchmark

def test_every_kind_beside_untrained_and_demographics(model, task):
    module, labelled = ECGFeatures(model), read_labels(task)
    table, refused = probe_labels(module, labelled, n_boot=50, workers=1)
    assert len(refused) == 0 and set(table.method) == {"model", "untrained", "demographics"}
    assert set(table[table.score == "R2"].target) == {"heart_rate"} and {"mean", "af", "lbbb"} <= set(table[table.target == "rhythm"]["class"])
    told = table[table.value.notna()]
    assert (told.lo <= told.hi).all() and table[table.method == "model"].behind.isna().all()
    again, _ = probe_labels(module, labelled, n_boot=50, workers=1)
    pd.testing.assert_frame_equal(table, again)
    assert "95 % intervals" in probe_text(table)
    assert not any(name in table.to_csv() for name in ("sim-", "records/"))


def test_recordings_that_cannot_be_read_are_named_by_their_line(model, task, tmp_path):
    table = pd.read_csv(task).drop(columns=["age", "sex"])
    table.loc[3, "file"] = f"records/{ID}.hea"
    table.to_csv(task.parent / "holed.csv", index=False)
    scores, refused = probe_labels(ECGFeatures(model), read_labels(task.parent / "holed.csv", targets=["heart_rate"]), n_boot=20, workers=1)
    assert refused.line.tolist() == [5] and ID not in refused.to_csv() and "demographics" not in set(scores.method)
    assert "No column age or sex" in probe_text(scores)
    nothing = made([0, 1, 2], ["train", "val", "test"], [Target("x", "number", np.ones((3, 1)), ["x"])])
    nothing.files = [tmp_path / "none.hea"] * 3
    with pytest.raises(PtaclError, match="none of 3 recordings can be read"): probe_labels(ECGFeatures(model), nothing, workers=1)


def test_untrained_is_another_encoder_of_the_same_kind(model):
    module = ECGFeatures(model)
    before = torch.random.get_rng_state()
    x = torch.randn(1, 12, 5000)
    torch.random.set_rng_state(before)
    other, again = _untrained(module, 7), _untrained(module, 7)  # the model's own seed would start it alike
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad(): assert torch.equal(other(x), again(x)) and not torch.allclose(other(x), module(x))


def test_the_shell_reads_ptbxl_with_one_line(saved, ptbxl, task, tmp_path):
    out = tmp_path / "scores.csv"
    done = shell.invoke(app, ["probe", str(ptbxl), "--model", str(saved), "--out", str(out), "--workers", "1"])
    assert done.exit_code == 0 and "superclass" in done.output, done.output
    assert {"CD", "NORM", "mean"} == set(pd.read_csv(out)["class"])
    refused = shell.invoke(app, ["probe", str(tmp_path), "--model", str(saved), "--out", str(out)])
    assert refused.exit_code and "nothing to probe" in refused.output
    wrong = shell.invoke(app, ["probe", "--labels", str(task), "--targets", "rythm", "--model", str(saved), "--out", str(out)])
    assert wrong.exit_code and "Did you mean rhythm?" in wrong.output


# cards

def test_a_card_holds_what_it_was_given_and_nothing_else(model):
    empty = card_text(model, Card())
    assert "Not measured." in empty and "Not stated." in empty and "model-index" not in empty
    scores = [Score("LVEDV", "R²", 0.5, 0.4, 0.6, 32), Score("LVESV", "R²", 0.25), Score("x", "R²", float("nan"))]
    text = card_text(model, Card(f"cohort {ID}", (0, 1), scores, ("Old hearts only.",), "cc-by-4.0"), "m")
    assert ID not in text and "| LVEDV | R² | 0.500 | 0.400 to 0.600 | 32 |" in text
    assert "| LVESV | R² | 0.250 | not measured | not stated |" in text and "| x | R² | not measured | not measured |" in text


def test_hubs_can_read_the_header(model):
    cards = pytest.importorskip("huggingface_hub")
    data = cards.ModelCard(card_text(model, Card("virtual: patients", (0,), [Score("LVEDV", "R²", 0.5)], licence="apache-2.0"), "m")).data
    assert data.license == "apache-2.0" and data.pipeline_tag == "feature-extraction" and data.model_name == "m"
    assert [r.metric_value for r in data.eval_results] == [0.5]


def test_figures_of_a_stored_run(root):
    result = json.loads((root / "nbs" / "results" / "quickstart.json").read_text(encoding="utf-8"))
    card = card_of_result(result)
    kept = result["regression"]["PTACL"]["LVEDV"]
    first = card.scores[0]
    assert (first.what, first.value, first.lo, first.hi) == ("linear probe of LVEDV", kept["R2"], kept["R2_lo"], kept["R2_hi"])
    assert card.seeds == (result["seed"],) and str(result["cohort"]["n_train"]) in card.data and len(card.scores) == 11
    assert card_of_result({}) == Card()


ALONE = """
import sys
for name in ("ptacl", "torch", "pandas", "scipy", "sklearn", "wfdb", "pydicom"): sys.modules[name] = None
import numpy as np
from load_ecg_encoder import load, weights
np.save(sys.argv[2], load()(np.load(sys.argv[1])))
try: import ptacl
except ImportError: print("alone", len(weights()))
"""


def alone(folder, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_loader_stands_alone_and_gives_the_same(model, tmp_path):
    folder = save_pretrained(model, tmp_path / "shared", Card(licence="apache-2.0"), export=True)
    assert len([line for line in (folder / "load_ecg_encoder.py").read_text().splitlines() if line.strip()]) <= 30
    ecg = np.random.default_rng(0).normal(size=(3, 12, 5000)).astype(np.float32)
    np.save(tmp_path / "in.npy", ecg)
    done = alone(folder, tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("alone"), done.stderr
    with torch.no_grad(): expected = ECGFeatures(model)(torch.from_numpy(ecg)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)
    assert torch.equal(from_pretrained(folder).ecg.pos, model.ecg.pos)
    other = save_weights(PTACL(tiny), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert "is of another training" in alone(folder, tmp_path).stderr


@pytest.mark.parametrize("names", [("cmr", "echo"), ("echo", "ecg")], ids="+".join)
def test_any_set_of_modalities_is_handed_on(names, tmp_path):
    "Each encoder runs without the kit; the loader and the card speak of those that there are."
    model = JointModel(tiny, names).eval()
    folder = save_pretrained(model, tmp_path / "shared", export=True)
    assert {f.name for f in folder.glob("*.onnx")} == {f"{name}_encoder.onnx" for name in names}
    first = "ecg" if "ecg" in names else names[0]
    shapes = {"ecg": (12, 5000), "cmr": (26, 48, 48), "echo": (32, 48, 48)}
    x = np.random.default_rng(0).random((2, *shapes[first]), np.float32)
    np.save(tmp_path / "in.npy", x)
    done = alone(folder, tmp_path)  # what the loader gives unasked
    assert done.returncode == 0, done.stderr
    given = torch.from_numpy(x)
    with torch.no_grad(): expected = ECGFeatures(model)(given) if first == "ecg" else model.features_of(first, {"cine": given})
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f'load("{first}")(recordings)' in card and ("resting ECGs" in card) == ("ecg" in names) == ("denoised" in card)
    assert ("short-axis" in card) == ("cmr" in names) and 'load("echo")' in card and from_pretrained(folder).names == names


@pytest.mark.parametrize("kind, encoder, name", [("autoencoder", CMREncoder, "cmr"), ("autoencoder", EchoEncoder, "echo"),
                                                 ("fine-tuned", CMREncoder, "cmr"), ("fine-tuned", ECGEncoder, "ecg")])
def test_an_encoder_alone_is_handed_on(kind, encoder, name, tmp_path):
    model = (MAE(encoder(tiny)) if kind == "autoencoder" else Tuned(encoder(tiny), ["LVEF", "LVM"])).eval()
    folder = save_pretrained(model, tmp_path / "shared", export=True)
    assert [f.name for f in folder.glob("*.onnx")] == [f"{name}_encoder.onnx"]
    module = ECGFeatures(model) if name == "ecg" else FilmFeatures(model, name)
    x = np.random.default_rng(0).random((2, *module.shape), np.float32)
    np.save(tmp_path / "in.npy", x)
    done = alone(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad(): np.testing.assert_allclose(np.load(tmp_path / "out.npy"), module(torch.from_numpy(x)), atol=1e-4)


def test_a_model_is_replaced_and_nothing_else_is(model, tmp_path):
    folder = save_pretrained(model, tmp_path / "m")
    assert sorted(f.name for f in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    save_pretrained(PTACL(tiny), folder, Card("other"))
    assert "other." in (folder / "README.md").read_text() and not torch.equal(from_pretrained(folder).ecg.pos, model.ecg.pos)
    (folder / "thesis.txt").touch()
    with pytest.raises(PtaclError, match="something else"): save_pretrained(model, folder)
    assert [f.name for f in tmp_path.iterdir()] == ["m"]


def test_share_in_the_shell(saved, tmp_path, root):
    result = root / "nbs" / "results" / "quickstart.json"
    done = shell.invoke(app, ["share", "--model", str(saved), "--out", str(tmp_path / "s"), "--result", str(result), "--licence", "apache-2.0"])
    assert done.exit_code == 0, done.output
    assert "linear probe of LVEDV" in (tmp_path / "s" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text, why", [(None, "typo.json: the result cannot be read"), ("{", "typo.json: the result is no JSON"),
    (b"\xff", "is no JSON"), ("[1]", "no result of a run"), ('{"cohort": 3, "regression": {"PTACL": 3}}', "no result of a run"),
    ('{"alignment": {"ptacl": 3}}', "no result of a run")])
def test_share_of_a_result_that_is_none(saved, tmp_path, text, why):
    result = tmp_path / "typo.json"
    if text is not None: result.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = shell.invoke(app, ["share", "--model", str(saved), "--out", str(tmp_path / "s"), "--result", str(result)])
    assert done.exit_code == 1 and why in done.output and "a fault of the kit" not in done.output and not (tmp_path / "s").exists()


@pytest.mark.parametrize("cell", ["<50", "pending", "not done"])
def test_a_word_among_measured_numbers_makes_no_classes(tmp_path, cell):
    rows = ["file,lvm", *(f"{k}.csv,{100.5 + k}" for k in range(6)), f"6.csv,{cell}"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    with pytest.raises(PtaclError, match="the column lvm holds numbers, and something else in row 8. Leave the cell empty"):
        read_labels(tmp_path / "l.csv")


def test_grades_with_a_word_stay_classes(tmp_path):
    (tmp_path / "l.csv").write_text("file,nyha\na.csv,1\nb.csv,2\nc.csv,3\nd.csv,3b\n")
    target, = read_labels(tmp_path / "l.csv").targets
    assert (target.kind, target.classes) == ("classes", ["1", "2", "3", "3b"])
