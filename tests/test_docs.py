"The site: every notebook has its page, and no page asks another host for anything."
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
# what a browser fetches on its own: not the links that a reader may follow
FETCHED = re.compile(r"""<(?:script|img|iframe|source|video|link)\b[^>]*\s(?:src|href)="(?:https?:)?//[^"]+"""
                     r"""|url\(\s*['"]?(?:https?:)?//[^)]+|@import\s+['"](?:https?:)?//\S+""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from build import site
    top = tmp_path_factory.mktemp("site")
    site(top / "html", top / "work")
    return top / "html"


def test_every_notebook_has_a_page(site):
    missing = [f.name for f in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts
               and not (site / f.relative_to(ROOT / "nbs")).with_suffix(".html").exists()]
    assert not missing


def test_pages_show_code_and_pictures_but_no_directives(site):
    page = (site / "40_losses.html").read_text(encoding="utf-8")
    assert "alignment_matrix" in page and "<img" in page
    assert "#|" not in re.sub(r"<[^>]+>", "", page)


def test_nothing_is_fetched_from_another_host(site):
    found = {f"{f.relative_to(site)}: {m[0][:120]}" for f in site.rglob("*") if f.suffix in (".html", ".css")
             for m in FETCHED.finditer(f.read_text(encoding="utf-8"))}
    assert not found
    assert (site / "_static" / "tex-svg.js").exists()
    assert 'src="_static/tex-svg.js' in (site / "40_losses.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text, fetched", [
    ('<script src="https://cdn.example/x.js">', True), ('<link rel="stylesheet" href="//fonts.example/x">', True),
    ("url(https://fonts.example/x.woff)", True), ('<a href="https://arxiv.org">', False), ('<script src="_static/x.js">', False)])
def test_what_counts_as_fetched(text, fetched):
    assert bool(FETCHED.search(text)) == fetched
