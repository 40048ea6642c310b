"""Excerpts below the results of a search, on a site that is opened as files, where no page may be fetched.

Sphinx's own script shows them where it can fetch the page. `write_texts` puts the text of all pages into one script, which the search
page alone loads, and which answers in the place of the network.
"""
import json
from html import escape
from html.parser import HTMLParser
from pathlib import Path

ASIDE = {"script", "style", "svg", "details"}   # folded are imports and tests: nobody looks for their lines
ANSWERS = """window.fetch = async function (address) {
  const page = String(address).replace(document.documentElement.dataset.content_root, "").replace(/[.]html$/, "");
  return {text: async () => PAGES[page] || ""};
};
"""


class Article(HTMLParser):
    "The text of a page's article, with its sections and their anchors."
    def __init__(self):
        super().__init__()
        self.parts, self.open = [], []

    @property
    def inside(self) -> bool:
        "In the article, and in nothing that is no text."
        return "article" in self.open and not ASIDE & set(self.open)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if tag in ("article", "section") or tag in ASIDE: self.open.append(tag)
        if tag == "section" and self.inside: self.parts.append(f'<section id="{escape(about.get("id") or "")}">')

    def handle_endtag(self, tag):
        if tag == "section" and self.inside: self.parts.append("</section>")
        if self.open and self.open[-1] == tag: self.open.pop()

    def handle_data(self, data):
        words = " ".join(data.replace("¶", " ").split())
        if self.inside and words: self.parts.append(escape(words) + " ")


def text_of_article(page: str) -> str:  # HTML -> HTML of sections and text alone
    parser = Article()
    parser.feed(page)
    return f'<div role="main">{"".join(parser.parts)}</div>'


def write_texts(site: Path) -> Path:
    "All pages' texts as `_static/texts.js`."
    pages = {f.relative_to(site).with_suffix("").as_posix(): text_of_article(f.read_text(encoding="utf-8"))
             for f in sorted(site.rglob("*.html")) if f.stem not in ("search", "genindex")}
    out = site / "_static" / "texts.js"
    out.write_text(f"const PAGES = {json.dumps(pages, ensure_ascii=False)};\n{ANSWERS}", encoding="utf-8")
    return out
