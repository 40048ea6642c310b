"The book: every notebook and every public name has its place, links lead somewhere, and no page asks another host for anything."
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from ptacl.app.audit import audit, describe_findings

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "docs"))
# what a browser fetches on its own: not the links that a reader may follow
FETCHED = re.compile(r"""<(?:script|img|iframe|source|video|link)\b[^>]*\s(?:src|href)="(?:https?:)?//[^"]+"""
                     r"""|url\(\s*['"]?(?:https?:)?//[^)]+|@import\s+['"](?:https?:)?//\S+""")
# where a reader may be sent; who adds a link looks at it once, and adds its pattern here
KNOWN = re.compile(r"""https://(numba\.readthedocs\.io|arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.\d{4,}/\S+|github\.com/(pradyunsg/furo|nf-core/\w+)
                       |nbdev\.fast\.ai|docs\.astral\.sh/uv|semver\.org|zarr-specs\.readthedocs\.io|pradyunsg\.me
                       |physionet\.org/content/ptb-xl|nbgrader\.readthedocs\.io)/$""", re.VERBOSE)
LOOKED_AT = ("index", "start", "own_cohort", "differences", "52_losses", "63_scoreboard", "experiments/quickstart", "reference/data.cohort")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from build import site
    top = tmp_path_factory.mktemp("site")
    site(top / "html", top / "work", strict=True)  # a link to nowhere is a warning, and so an error
    return top / "html"


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def notebooks():
    return [f for f in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts]


# --- everything has its place --------------------------------------------------------------------------------------------

def test_every_notebook_has_a_page(site):
    pages = {f: site / f.relative_to(NBS) for f in notebooks()} | {NBS / "index.ipynb": site / "start.ipynb"}
    assert not [f.name for f, page in pages.items() if not page.with_suffix(".html").exists()]


def test_the_arrows_lead_through_all_pages(site):
    page, seen = site / "index.html", []
    while page:
        seen.append(page)
        after = re.search(r'<a class="next-page" href="([^"#]+)', page.read_text(encoding="utf-8"))
        page = after and (page.parent / after[1]).resolve()
        assert page not in seen
    left = {f for f in site.rglob("*.html") if not f.name.startswith(("search", "genindex"))} - set(seen)
    assert not left, f"no arrow leads to {sorted(f.name for f in left)}"
    chapters = [f.stem for f in seen if f.parent == site and f.stem[0].isdigit()]
    assert chapters == sorted(chapters)


def test_sections_appear_with_their_pages_and_not_before(tmp_path):
    from build import table_of_contents
    shutil.copy(ROOT / "docs" / "pages" / "index.md", tmp_path)
    (tmp_path / "start.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Start")])))
    assert "The workshop" not in table_of_contents(tmp_path)
    (tmp_path / "workshop").mkdir()
    shutil.copy(tmp_path / "start.ipynb", tmp_path / "workshop" / "1_views.ipynb")
    contents = table_of_contents(tmp_path)
    assert "- [Start](workshop/1_views.ipynb)" in contents and ":caption: The workshop\n\nworkshop/1_views" in contents


def test_every_public_name_is_in_the_reference(site):
    from importlib import import_module
    for page in (site / "reference").glob("*.html"):
        if page.stem in ("index", "commands"): continue
        text = text_of(page)
        missing = [n for n in import_module(f"ptacl.{page.stem}").__all__ if not re.search(rf"\b{n}\b", text)]
        assert not missing, f"{page.stem}: {missing}"
    modules = {f"{f.parent.name}.{f.stem}" for f in (ROOT / "ptacl").glob("*/*.py") if f.stem != "__init__"} - {"app.cli"}
    assert modules == {f.stem for f in (site / "reference").glob("*.html")} - {"index", "commands"}


def test_the_reference_shows_comments_and_links_to_the_section(site):
    page = (site / "reference" / "nets.losses.html").read_text(encoding="utf-8")
    order = [m[1] for m in re.finditer(r"<h[23]>([\w.]+)<", (site / "reference" / "data.cohort.html").read_text(encoding="utf-8"))]
    assert order.index("Cohort") < order.index("Cohort.verify") < order.index("Stream")  # methods stand with their class
    assert "width as a fraction of the beat" in page and "Target weights P of eq. 2" in page
    assert re.search(r'href="\.\./52_losses\.html#id\d+|href="\.\./52_losses\.html#\w', page)
    commands = text_of(site / "reference" / "commands.html")
    assert "ptacl ingest [OPTIONS]" in commands and "--quarantine" in commands


def test_names_in_the_text_link_to_the_reference(site):
    assert 'href="reference/data.ecg_files.html#' in (site / "own_cohort.html").read_text(encoding="utf-8")


def test_pages_show_code_and_pictures_but_no_directives(site):
    page = (site / "52_losses.html").read_text(encoding="utf-8")
    assert "alignment_matrix" in page and "<img" in page
    assert "#|" not in text_of(site / "52_losses.html")


def test_imports_and_tests_are_folded_and_the_module_is_not(site):
    page = (site / "52_losses.html").read_text(encoding="utf-8")
    folded = re.findall(r'<details class="[^"]*hide[^"]*".*?</details>', page, re.DOTALL)
    text = [re.sub(r"<[^>]+>", "", part) for part in folded]
    assert any("Imports" in part and "import torch" in part for part in text)
    assert any("Test" in part and "test_" in part for part in text)
    assert not any(re.search(r"^\s*def alignment_matrix", part, re.MULTILINE) for part in text)
    assert "def alignment_matrix" in text_of(site / "52_losses.html")


@pytest.mark.parametrize("source, outputs, name", [
    ("import os\nfrom pathlib import Path", 0, "Imports"), ("# why\nimport os", 0, "Imports"), ("import os\nos.getcwd()", 0, ""),
    ("test_eq(f(1), 2)", 0, "Test"), ("with open(x) as f:\n    assert f", 0, "Test"), ("assert f\nf", 1, ""), ("f(1)", 0, ""),
    ("my_test_eq = 3", 0, "")])
def test_what_is_folded(source, outputs, name):
    from build import folded
    output = nbformat.v4.new_output("stream", text="1")
    assert folded(nbformat.v4.new_code_cell(source, outputs=[output] * outputs)) == name


def test_every_notebook_can_be_taken_from_its_page(site):
    for file in notebooks():
        page = (site / ("start" if file == NBS / "index.ipynb" else file.relative_to(NBS).with_suffix(""))).with_suffix(".html")
        link = re.search(r'<a class="reference download internal"[^>]*href="([^"]+)"[^>]*>', page.read_text(encoding="utf-8"))
        assert link and "download" in link[0], page.name
        taken, source = nbformat.read(page.parent / link[1], 4), nbformat.read(file, 4)
        if file.parent.name == "workshop": assert "### BEGIN SOLUTION" not in str(taken) and "raise NotImplementedError()" in str(taken)
        else: assert taken == source


def test_solutions_of_exercises_are_left_out(tmp_path):
    from build import tidy
    cell = nbformat.v4.new_code_cell("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\nf()")
    aside = [nbformat.v4.new_markdown_cell("for the teacher", metadata={"tags": [tag]}) for tag in ("guide", "wrong")]
    file = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[*aside, cell]), file)
    assert [c.source for c in tidy(file).cells] == ["def f():\n    # YOUR CODE HERE\n    raise NotImplementedError()\nf()"]


def test_the_site_names_no_participant(site):
    findings = audit(site, history=False)
    assert not len(findings), "\n" + describe_findings(findings)


def test_the_text_of_a_page_is_its_article_in_sections():
    from search import text_of_article
    inner = '<h1>T<a>¶</a></h1><script>x</script><details><summary>Imports</summary>import x</details><p>a &amp; b</p><section id="b">c</section>'
    page = f'<p>menu</p><article><section id="a">{inner}</section></article>end'
    assert text_of_article(page) == '<div role="main"><section id="a">T a &amp; b <section id="b">c </section></section></div>'


# --- links and pictures --------------------------------------------------------------------------------------------------

def test_links_out_are_known(site):
    links = {(m[1], f.stem) for f in site.rglob("*.html")
             for m in re.finditer(r'<a\b[^>]*\shref="(https?:[^"]+)"', f.read_text(encoding="utf-8"))}
    assert not sorted(link for link in links if not KNOWN.match(link[0].rstrip("/") + "/"))


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_nothing_is_fetched_from_another_host(site):
    found = {f"{f.relative_to(site)}: {m[0][:120]}" for f in site.rglob("*") if f.suffix in (".html", ".css")
             for m in FETCHED.finditer(f.read_text(encoding="utf-8"))}
    assert not found
    assert (site / "_static" / "tex-svg.js").exists()
    assert 'src="_static/tex-svg.js' in (site / "52_losses.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text, fetched", [
    ('<script src="https://cdn.example/x.js">', True), ('<link rel="stylesheet" href="//fonts.example/x">', True),
    ("url(https://fonts.example/x.woff)", True), ('<a href="https://arxiv.org">', False), ('<script src="_static/x.js">', False)])
def test_what_counts_as_fetched(text, fetched):
    assert bool(FETCHED.search(text)) == fetched


def test_every_figure_has_a_caption():
    bare = []
    for file in notebooks():
        cells = nbformat.read(file, 4).cells
        for i, cell in enumerate(cells):
            below = next((c for c in cells[i + 1:] if not drawn(c)), None)
            if drawn(cell) and (below is None or below.cell_type != "markdown" or below.source.startswith("#")): bare.append(f"{file.name} cell {i}")
    assert not bare, "a text cell below the figure says what is to be seen, and in which units"


def test_reports_are_read_without_a_program_for_formulas():
    "A report of an experiment loads nothing, so that what stands between dollars would be shown as it is typed."
    texts = {f.stem: "".join(c.source for c in nbformat.read(f, 4).cells if c.cell_type == "markdown") for f in (NBS / "experiments").glob("*.ipynb")}
    assert texts and [name for name, text in texts.items() if "$" in text] == []


def drawn(cell) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


# --- commands ------------------------------------------------------------------------------------------------------------

def commands(text: str) -> list:
    "The `ptacl …` lines of a text's code blocks, as lists of words."
    blocks = re.findall(r"```\n(.+?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [shlex.split(line, comments=True) for line in lines if line.startswith("ptacl ")]


@pytest.mark.parametrize("file", ["README.md", "docs/pages/own_cohort.md", "CONTRIBUTING.md"])
def test_commands_in_the_texts_exist(file):
    from typer.main import get_command

    from ptacl.app.cli import app, _named
    from ptacl.studies.experiments import check_parameters, find_experiment
    known = get_command(app).commands
    for _, name, *words in commands((ROOT / file).read_text(encoding="utf-8")):
        options = {o for p in known[name].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= options
        given = [words[i:i + 3] for i, w in enumerate(words) if w == "-p"]
        if name == "run": check_parameters(find_experiment(words[0]), _named(sum(given, [])))


def test_commands_are_found_in_a_text():
    found = commands("```\nptacl run x -p a 1 \\\n   -p b 2  # so\n```\nptacl no\n```\nmake demo\nptacl audit .\n```")
    assert found == [["ptacl", "run", "x", "-p", "a", "1", "-p", "b", "2"], ["ptacl", "audit", "."]]


# --- in a browser --------------------------------------------------------------------------------------------------------

SHAPE = """() => {
  const width = document.documentElement.clientWidth, inside = e => e.getBoundingClientRect().right <= width + 1;
  const scrolls = e => e && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) && inside(e) || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll('article *')].filter(e => e.offsetWidth && !inside(e) && !scrolls(e.parentElement));
  return {page: document.documentElement.scrollWidth - width, wide: wide.slice(0, 3).map(e => e.outerHTML.slice(0, 80)),
          broken: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)} }"""


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium)
        yield browser
        browser.close()


def visit(browser, width):
    "A page of that width, and the lists of what it asked for beside files, and of its errors."
    page, asked, errors = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else asked.append(r.url))
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    return page, asked, errors


def fits(site, browser, width, names):
    page, asked, errors = visit(browser, width)
    wrong = {}
    for name in names:
        page.goto((site / f"{name}.html").as_uri())
        shape = page.evaluate(SHAPE)
        if shape["page"] > 0 or shape["wide"] or shape["broken"]: wrong[name] = shape
    page.close()
    assert not wrong and not asked and not errors


@pytest.mark.parametrize("width", [1440, 390])
def test_pages_fit_desktop_and_phone(site, browser, width):
    fits(site, browser, width, LOOKED_AT)


@pytest.mark.long
@pytest.mark.parametrize("width", [1440, 768, 390])
def test_all_pages_fit(site, browser, width):
    fits(site, browser, width, [f.relative_to(site).with_suffix("").as_posix() for f in site.rglob("*.html")])


def test_search_works_from_a_file(site, browser):
    page, asked, errors = visit(browser, 1440)
    page.goto((site / "index.html").as_uri())
    page.fill("input.sidebar-search", "wavelet")
    page.press("input.sidebar-search", "Enter")
    page.wait_for_selector("ul.search li a:text-is('The ECG, cleaned')")       # the list fills bit by bit
    page.wait_for_selector("ul.search li p.context")
    said = page.inner_text("ul.search li:has(a:text-is('The ECG, cleaned')) p.context")
    assert "wavelet" in said.lower() and len(said) > 60
    page.click("ul.search li a")
    page.wait_for_selector("article h1")
    page.close()
    assert not asked and not errors


# --- what the texts tell people to type -----------------------------------------------------------------------------------

def python_blocks(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    return [m[1] for m in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


TEXTS = [str(f.relative_to(ROOT)) for f in (ROOT / "README.md", ROOT / "data_samples" / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md")))
         if python_blocks(f.relative_to(ROOT))]


@pytest.fixture(scope="module")
def samples_cohort(tmp_path_factory, data_samples):
    from ptacl.data.ingest import ingest
    top = tmp_path_factory.mktemp("samples")
    ingest(data_samples, top / "cohort", key=top / "key")
    return top / "cohort"


@pytest.mark.parametrize("file", TEXTS)
def test_python_in_the_texts_runs_as_printed(file, samples_cohort, data_samples, tmp_path, monkeypatch):
    "In an empty folder that holds the samples and what the texts call path/to/…"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shutil.copytree(data_samples, "data_samples")
    for place in ("path/to/cohort", "cohort"): shutil.copytree(samples_cohort, place)
    names = {}
    for block in python_blocks(file): exec(compile(block, file, "exec"), names)
    def contents(folder): return {f.relative_to(folder): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}
    assert contents("data_samples") == contents(data_samples), "nothing is written beside raw files"


def test_the_first_lines_of_python_are_among_them():
    assert {"README.md", "data_samples/README.md"} <= set(TEXTS)
    assert 'Cohort.open("data_samples")' in "".join(python_blocks("data_samples/README.md"))


def test_all_say_the_same_of_what_the_alignment_shows(root):
    "One sentence in findings, differences and README, and README's numbers are those that the stored quickstart opens with."
    said = "what chance gives, so nothing of the alignment is owed to the number of a frame"
    texts = {name: "\n".join("".join(c["source"]) for c in json.loads((root / name).read_text(encoding="utf-8"))["cells"])
             for name in ("nbs/findings.ipynb", "nbs/index.ipynb")}
    texts |= {name: (root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/pages/differences.md")}
    assert [name for name, text in texts.items() if f"ilms that stand still score {said}" not in text] == []
    cells = json.loads((root / "nbs/experiments/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    opening = "".join(text for c in cells for o in c.get("outputs", []) for text in o.get("data", {}).get("text/markdown", ""))
    assert f"Films that stand still score {said}" in opening
    for number in (r"(\d\.\d+) of the moments within one frame", r"Of (\d+) films", r"gallery for PTACL and at (\d+) ?%"):
        assert re.search(number, opening)[1] == re.search(number, texts["README.md"])[1], number
