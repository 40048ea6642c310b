"""The audit: what counts, where it is looked for, what may be excused, and that it never says what it found."""
import base64
import json
import os
import random
import subprocess
import time
import uuid
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ptacl.app.ids
from ptacl.app.audit import _excused, audit, describe_findings
from ptacl.app.ids import _ID, _blocks, _find_ids, search_text
from ptacl.core.errors import PtaclError

ROOT = Path(__file__).resolve().parents[1]
SOMEONE, ANOTHER = str(10**6 + 234_567), str(4 * 10**6 + 321)

OPTIONS = ("user.name=a", "user.email=a@b", "init.defaultBranch=main", "commit.gpgsign=false", "tag.gpgsign=false")
DATES = {f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")}  # a stash is called by a hash, and some are seven digits


def commands(top, *lines):
    for line in lines:
        subprocess.run(["git", "-C", top, *(x for o in OPTIONS for x in ("-c", o)), *line],
                       check=True, capture_output=True, env=os.environ | DATES)


@pytest.fixture
def repo(tmp_path):
    commands(tmp_path, ["init"])
    (tmp_path / "README.md").write_text("nothing\n")
    commands(tmp_path, ["add", "."], ["commit", "-m", "Start"])
    return tmp_path


def wipe(repo, *files):
    for file in files: (repo / file).unlink()
    commands(repo, ["add", "-A"], ["commit", "-m", "Gone"])


def found(text):
    slow, quick = ([m[0] for m in how(text.encode())] for how in (_ID.finditer, _find_ids))
    assert slow == quick
    return slow


# what counts

@pytest.mark.parametrize("text", [
    "eid #", "#", "#_20205_2_0.xml", "sub-#/", "#.", "#.0", "#.00 ", "[#]", "#,#", '{"eid":#}', "<td>#</td>", "eid#", "EID:#", "id_#",
    "patient.#.csv", r'"a\n#\tb"', r"\u003ctd\u003e#\u003c/td\u003e", "q=%20#", "%2F#%2F", "\x1b[0m#", "\x1b[31m#", "é#é", "- #", "\t#"])
def test_found(text):
    assert search_text(text.replace("#", SOMEONE).encode()) and len(found(text.replace("#", SOMEONE))) == text.count("#")


@pytest.mark.parametrize("text", [
    "3_152_384", "3,152,384", "0.#", "-0.#", "#.8", "#.01", "8#", "#8", "c#", "#c", "#e-3", "0x#", "1.2.840.#.1", "#.2.1", ".#",
    "x=-#", "[-#]", ", -#", "#+someone@users.noreply.github.com", "#+dependabot[bot]@users.noreply.github.com", "sim-00001"])
def test_passed_over(text):
    assert not found(text.replace("#", SOMEONE))


@pytest.mark.parametrize("number, counts", [(10**6 - 1, 0), (10**6, 1), (7 * 10**6 - 1, 1), (7 * 10**6, 0), (10**7, 0)])
def test_range(number, counts):
    assert len(found(f" {number:07d} ")) == counts


def test_floating_point_forms():
    assert found(f"[{float(SOMEONE):e}, 1.0]") and found(f"{float(SOMEONE)}") and not found("1.234567e-06 1.234567e+07 1.23456e+06")


@given(st.integers(10**6, 7 * 10**6 - 1), st.text("0123456789abcdefABCDEF", min_size=1, max_size=30))
def test_never_within_a_word(number, around):
    hidden = f"{around}{number}"
    alone = hidden[-8].isdigit() or hidden[-8].isalpha()
    assert not alone or not found(hidden + "9")
    assert not found(f"{number}{around}"[:8] + "x") or around[0].isdigit() is False


PIECES = [SOMEONE, ANOTHER, " ", ",", "\n", "a", "-", ".0 ", "\\n", "%20", "%2F", "id", "é", "\x1b[0m", "/", "1", ".", "[", "1.2", "\\u0031", "e+06"]


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_the_quick_way_finds_what_the_slow_one_finds(parts):
    found("".join(parts))


def test_no_false_alarm_in_what_projects_are_full_of():
    r = random.Random(1)
    lines = [f"{r.random()} {r.gauss(0, 1e3):.7f} {r.getrandbits(160):040x} {uuid.UUID(int=r.getrandbits(128))} {r.randrange(10**9, 2 * 10**9)} "
             f"1.2.840.{r.randrange(10**7)}.{r.randrange(10**7)}.3 20{r.randrange(10**6):06d} {r.random():e}" for _ in range(20_000)]
    assert list(search_text("\n".join(lines).encode())) == []


@pytest.mark.parametrize("form", [
    '<img src="data:image/png;base64,{}">', '{{"image/png": "{}"}}', '{{"bdata":"{}"}}', "integrity sha512-{}"])
@pytest.mark.parametrize("slash", ["/", r"\u002f", r"\/"])
def test_no_false_alarm_in_base64(form, slash):
    noise = base64.b64encode(random.Random(2).randbytes(300)).decode()
    for at in (30, 150, 390):
        text = form.format((noise[:at] + f"/{SOMEONE}+" + noise[at:]).replace("/", slash))
        assert _ID.search(text.encode()) and list(search_text(text.encode())) == []
    lines = base64.encodebytes(random.Random(3).randbytes(300)).decode().splitlines()
    lines[1] = lines[1][:40] + f"+{SOMEONE}/" + lines[1][49:]
    assert list(search_text(r"\n".join(lines).encode())) == list(search_text("\n".join(lines).encode())) == []


def test_paths_and_lists_are_no_base64():
    assert list(search_text(f"/mnt/storage/UKBiobank/projects/cardiac/imaging/shortaxis/{SOMEONE}/unpacked/dicom/files".encode()))
    ids = [str(10**6 + 37 * k) for k in range(200)]
    for separator in (",", "/", "+", "\n", r"\n"): assert len(list(search_text(separator.join(ids).encode()))) == 200


@pytest.mark.parametrize("include", [True, False])
def test_interactive_figures(include):
    clean = go.Figure(go.Scatter(x=[0.5, 1.5], y=[1, 2])).to_html(include_plotlyjs=include)
    assert list(search_text(clean.encode())) == []
    assert (len(clean) > 3e6) == include
    for fig in (go.Scatter(x=[1, 2], y=[1, 2], text=[SOMEONE, "b"]), go.Scatter(x=[int(SOMEONE), 2], y=[1, 2])):
        html = go.Figure(fig).to_html(include_plotlyjs=include)
        assert len(list(search_text(html.encode()))) == 1


# notebooks

def notebook(source="", outputs=(), metadata=None, attachments=None):
    cell = {"cell_type": "code", "id": "1", "metadata": metadata or {}, "source": source.splitlines(True), "outputs": list(outputs)}
    markdown = {"cell_type": "markdown", "id": "2", "metadata": {}, "source": "text", "attachments": attachments or {}}
    return json.dumps({"cells": [markdown, cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def shown(mime, data): return {"output_type": "display_data", "metadata": {}, "data": {mime: data}}


@pytest.mark.parametrize("content, place", [
    (notebook(f"a\neid = {SOMEONE}"), "cell 1 source line 2"),
    (notebook(outputs=[shown("text/plain", ["   eid\n", f"0  {SOMEONE}"])]), "cell 1 text/plain line 2"),
    (notebook(outputs=[shown("text/html", f"<table>\n<td>{SOMEONE}</td>")]), "cell 1 text/html line 2"),
    (notebook(outputs=[shown("application/vnd.plotly.v1+json", {"data": [{"x": [int(SOMEONE)]}]})]), "cell 1 application/vnd.plotly.v1+json line 1"),
    (notebook(outputs=[shown("image/svg+xml", f"<text>{SOMEONE}</text>")]), "cell 1 image/svg+xml line 1"),
    (notebook(outputs=[{"output_type": "stream", "name": "stdout", "text": f"{SOMEONE}\n"}]), "cell 1 stdout line 1"),
    (notebook(outputs=[{"output_type": "error", "ename": "KeyError", "evalue": SOMEONE, "traceback": []}]), "cell 1 output line 1"),
    (notebook(metadata={"note": SOMEONE}), "cell 1 metadata line 1"),
    (notebook(attachments={f"{SOMEONE}.png": {"image/png": "aa"}}), "cell 0 metadata line 1"),
    (notebook(f"\n\n# {SOMEONE}")[:-3], "line"),  # broken JSON
    (json.dumps([SOMEONE]), "line 1"),
])
def test_notebooks(tmp_path, content, place):
    (tmp_path / "a.ipynb").write_text(content)
    findings = audit(tmp_path)
    assert len(findings) == 1 and findings.place[0].startswith(place)


def test_notebooks_without_any(tmp_path):
    png = base64.b64encode(random.Random(4).randbytes(10**6)).decode()
    (tmp_path / "a.ipynb").write_text(notebook("n = 1_234_567", [shown("image/png", png)]))
    assert len(audit(tmp_path)) == 0


# files

def test_files_of_all_kinds(tmp_path):
    for name, text in {"a.html": f"<b>{SOMEONE}</b>", "b.json": f'{{"eid": {SOMEONE}}}', "c.csv": f"eid\n{SOMEONE}", "d.md": f"- {SOMEONE}",
                       "e.py": f"x = {SOMEONE}", "reports/deep/f.txt": SOMEONE, ".hidden": SOMEONE}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes(f"name,eid\nJosé,{SOMEONE}\n".encode("latin-1"))
    (tmp_path / "wide.csv").write_bytes(f"name,eid\nJosé,{SOMEONE}\n".encode("utf-16"))
    findings = audit(tmp_path)
    assert len(findings) == 9 and set(findings.place) == {"line 1", "line 2"} and not findings.attrs["unread"]


def test_binary_files_are_named(tmp_path):
    (tmp_path / f"{SOMEONE}_20209_2_0.zip").write_bytes(b"PK\0\0" + SOMEONE.encode())
    (tmp_path / "model.pt").write_bytes(bytes(10) + SOMEONE.encode())
    findings = audit(tmp_path)
    assert list(findings.place) == ["name"] and findings.attrs["unread"] == ["#######_20209_2_0.zip", "model.pt"]
    assert "Not searched, binary (2): #######_20209_2_0.zip, model.pt" in describe_findings(findings)


def test_names_of_folders_and_links(tmp_path):
    (tmp_path / SOMEONE).mkdir()
    (tmp_path / SOMEONE / "sa.txt").write_text("")
    os.symlink(f"/data/{ANOTHER}/sa.nii.gz", tmp_path / "link")
    os.symlink(".", tmp_path / "loop")
    findings = audit(tmp_path)
    assert sorted(zip(findings.file, findings.place)) == [("#######/sa.txt", "name"), ("link", "link")]


def test_caches_and_packages_are_left_out(tmp_path):
    for folder, mark in (("env", "pyvenv.cfg"), ("cache", "CACHEDIR.TAG"), ("node_modules", "x"), ("a/__pycache__", "x")):
        (tmp_path / folder).mkdir(parents=True)
        for name in (mark, "t.csv"): (tmp_path / folder / name).write_text(SOMEONE)
    assert len(audit(tmp_path)) == 0


def test_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(ptacl.app.ids, "_BLOCK", 2**14)
    lines = [f"{k},{k / 7}" for k in range(100_000)]
    for at in (0, 55_555, 99_999): lines[at] += f",{SOMEONE}"
    (tmp_path / "t.csv").write_text("\n".join(lines))
    (tmp_path / "wide.csv").write_bytes("\n".join(lines).encode("utf-16"))
    (tmp_path / "one.json").write_text(", ".join(lines))
    findings = audit(tmp_path)
    assert [p for f, p in zip(findings.file, findings.place) if f == "t.csv"] == ["line 1", "line 55556", "line 100000"]
    assert findings.file.value_counts().to_dict() == {"t.csv": 3, "wide.csv": 3, "one.json": 3}


@given(st.binary(max_size=300), st.integers(70, 100))
def test_blocks_lose_nothing(content, size):
    at, old = [0], ptacl.app.ids._BLOCK
    def read(n): at[0] += n; return content[at[0] - n:at[0]]
    ptacl.app.ids._BLOCK = size
    try: assert b"".join(_blocks(read, len(content))) == content
    finally: ptacl.app.ids._BLOCK = old


def test_a_table_of_half_a_million(tmp_path):
    (tmp_path / "t.csv").write_text("eid\n" + "\n".join(str(10**6 + k) for k in range(500_000)))
    findings = audit(tmp_path)
    assert len(findings) == 1000
    assert "… and 995 more" in describe_findings(findings)


@pytest.mark.quiet
def test_half_a_million_lines_are_quickly_searched(tmp_path):
    (tmp_path / "t.csv").write_text("eid\n" + "\n".join(str(10**6 + k) for k in range(500_000)))
    start = time.process_time()
    audit(tmp_path)
    assert time.process_time() - start < 5


def test_one_file(tmp_path):
    (tmp_path / "a.txt").write_text(SOMEONE)
    assert audit(tmp_path / "a.txt").file[0] == "a.txt" and not audit(tmp_path / "a.txt").attrs["history"]


# history

def test_committed_then_deleted(repo):
    (repo / "t.csv").write_text(f"eid\n{SOMEONE}\n")
    commands(repo, ["add", "."], ["commit", "-m", "Data"])
    wipe(repo, "t.csv")
    findings = audit(repo)
    version = subprocess.run(["git", "-C", repo, "rev-parse", "HEAD~1:t.csv"], capture_output=True, text=True).stdout
    assert findings.values.tolist() == [["t.csv", f"history {version[:10]} line 2", "eid #######"]]
    assert len(audit(repo, history=False)) == 0 and "No git history" in describe_findings(audit(repo, history=False))


def test_names_in_history(repo):
    (repo / SOMEONE).mkdir()
    for name in (f"{ANOTHER}.xml", f"{SOMEONE}/sa.txt"): (repo / name).write_text("same")
    commands(repo, ["add", "."], ["commit", "-m", "Data"])
    wipe(repo, f"{ANOTHER}.xml", f"{SOMEONE}/sa.txt")
    assert sorted(audit(repo).file) == ["#######", "#######.xml"] and set(audit(repo).place) == {"name in history"}


def test_a_rename_of_the_same_content_is_seen(repo):
    (repo / f"{SOMEONE}.md").write_text("nothing\n")  # the same blob as README.md
    commands(repo, ["add", "."], ["commit", "-m", "Copy"])
    wipe(repo, f"{SOMEONE}.md")
    assert list(audit(repo).file) == ["#######.md"]


def test_messages_branches_tags_and_stashes(repo):
    commands(repo, ["checkout", "-b", f"patient-{SOMEONE}"], ["commit", "--allow-empty", "-m", f"Look\n\nat {SOMEONE}"], ["checkout", "main"],
             ["tag", "-a", "v1", "-m", f"With {SOMEONE}"])
    (repo / "README.md").write_text(SOMEONE)
    commands(repo, ["stash"])
    assert sorted(audit(repo).file) == ["README.md", "message of a commit", "message of a tag", "names of branches and tags"]


def test_history_of_notebooks_and_binaries(repo):
    (repo / "a.ipynb").write_text(notebook(outputs=[shown("text/plain", f"{SOMEONE}")]))
    (repo / "x.bin").write_bytes(bytes(9))
    commands(repo, ["add", "."], ["commit", "-m", "Look"])
    wipe(repo, "a.ipynb", "x.bin")
    findings = audit(repo)
    assert len(findings) == 1 and findings.place[0].endswith("cell 1 text/plain line 1") and findings.attrs["unread"] == ["x.bin"]


def test_authors_are_no_participants(repo):
    commands(repo, ["-c", f"user.email={SOMEONE}+a@users.noreply.github.com", "commit", "--allow-empty",
                    "-m", f"Work\n\nCo-authored-by: b <{SOMEONE}+b@users.noreply.github.com>"])
    assert len(audit(repo)) == 0


def test_names_beyond_ascii(repo):
    (repo / f"é {SOMEONE}.txt").write_text("ü")
    commands(repo, ["add", "."], ["commit", "-m", "ß"])
    assert set(audit(repo).file) == {"é #######.txt"}


def test_another_repository_in_the_environment(repo, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    commands(other, ["init"], ["commit", "--allow-empty", "-m", SOMEONE])
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert len(audit(repo)) == 0


def test_a_shallow_clone_says_so(repo, tmp_path_factory):
    commands(repo, ["commit", "--allow-empty", "-m", "More"])
    clone = tmp_path_factory.mktemp("clone") / "c"
    subprocess.run(["git", "clone", "--depth", "1", f"file://{repo}", clone], check=True, capture_output=True)
    assert audit(clone).attrs["shallow"] and "shallow" in describe_findings(audit(clone)) and not audit(repo).attrs["shallow"]


def test_a_broken_history_is_no_clean_one(repo):
    blob = subprocess.run(["git", "-C", repo, "rev-parse", "HEAD:README.md"], capture_output=True, text=True).stdout.strip()
    (repo / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(PtaclError, match="history"): audit(repo)
    (repo / ".git" / "HEAD").unlink()
    with pytest.raises(PtaclError, match="history"): audit(repo)


def test_without_git(repo, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PtaclError, match="git is not installed"): audit(repo)
    assert len(audit(repo, history=False)) == 0


def test_no_such_folder(tmp_path):
    with pytest.raises(PtaclError, match="#######: no such"): audit(tmp_path / SOMEONE)


def test_an_empty_repository(tmp_path):
    commands(tmp_path, ["init"])
    assert len(audit(tmp_path)) == 0 and audit(tmp_path).attrs["history"]


# exceptions

def test_a_line_may_be_excused(repo):
    (repo / "a.py").write_text(f"n = {SOMEONE}  # audit: ok, a constant\nm = {SOMEONE}\n")
    (repo / "b.ipynb").write_text(notebook(f"n = {SOMEONE}  # audit: ok\nm = 2"))
    commands(repo, ["add", "."], ["commit", "-m", "Code"])
    findings = audit(repo)
    assert len(findings) == 2 and set(findings.file) == {"a.py"} and all(p.endswith("line 2") for p in findings.place)


def test_files_and_versions_may_be_excused(repo):
    (repo / "raw").mkdir()
    (repo / "raw" / f"{SOMEONE}.txt").write_text(SOMEONE)
    (repo / "a.svg").write_text(SOMEONE)
    (repo / ".auditignore").write_text("# why\nraw/   # ours\n*.svg\n")
    commands(repo, ["add", "."], ["commit", "-m", "Data"])
    (repo / "old.txt").write_text(SOMEONE)
    commands(repo, ["add", "."], ["commit", "-m", "Old"])
    wipe(repo, "old.txt")
    findings = audit(repo)
    assert list(findings.file) == ["old.txt"]  # of the same content as the one in raw/
    with open(repo / ".auditignore", "a") as f: f.write(findings.place[0].split()[1] + "  # made up\n")
    assert len(audit(repo)) == 0


def test_only_what_is_named_is_excused():
    assert _excused("a/uv.lock", ()) and _excused("plotly.min.js", ()) and _excused("raw/a/b", ("raw",))
    assert not _excused("rawer/a", ("raw",)) and not _excused("x", ("abcdef",), "abcdef0123") and not _excused("x.js", ())


# it never says what it found

@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_excerpts_are_masked(parts):
    for _, what in search_text("".join(parts).encode()):
        assert SOMEONE not in what and ANOTHER not in what and len(what) <= 60


def test_nothing_that_is_said_holds_an_id(repo, capsys):
    (repo / f"{SOMEONE}_{ANOTHER}").mkdir()
    (repo / f"{SOMEONE}_{ANOTHER}" / "a.csv").write_text(f"{SOMEONE},{ANOTHER};id{SOMEONE}%20{ANOTHER} {float(ANOTHER):e}\n" * 3)
    (repo / f"{SOMEONE}.bin").write_bytes(bytes(9))
    commands(repo, ["add", "."], ["commit", "-m", f"{SOMEONE} and {ANOTHER}"])
    findings = audit(repo)
    said = findings.to_csv() + findings.to_html() + repr(findings.attrs) + describe_findings(findings, rows=99) + "".join(capsys.readouterr())
    assert len(findings) >= 30 and not any(x in said for x in (SOMEONE, ANOTHER, f"{float(ANOTHER):e}"))


# this project

@pytest.mark.quiet
def test_this_project_is_quickly_searched():   # that it is clean: test_project
    start = time.process_time()
    audit(ROOT)
    assert time.process_time() - start < 10
