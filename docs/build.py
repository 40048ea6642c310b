"""The site and the README, from the executed notebooks: python docs/build.py [site|readme]

`site` writes _docs/index.html; `readme` brings the list of chapters in nbs/index.ipynb up to date and writes README.md from it.
No notebook is run.

The order of the book stands in docs/pages/index.md: each of its sections names the pages that belong to it.
"""
import os
import re
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import build_main

sys.path.insert(0, str(Path(__file__).parent))
from reference import COMMANDS, commands_page, definitions, face, linker, module_page, with_labels

from search import write_texts

from ptacl.course.sessions import SOLUTION, YOURS, session_version

ROOT = Path(__file__).resolve().parents[1]
NBS, PAGES = ROOT / "nbs", ROOT / "docs" / "pages"
TEXTS = ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")  # outside nbs/, and yet on the site
MOVED = re.compile(rf"\]\((?:(?:\.\./)*(?:nbs|docs/pages)/|(?:\.\./)+(?={'|'.join(map(re.escape, TEXTS))}))")  # what lies side by side there
DIRECTIVES = re.compile(r"^#\|.*\n?", re.MULTILINE)
ASIDE = {"contents", "guide", "wrong"}  # tags of cells for JupyterLab, for the teacher, and for testing the checks
TESTING = re.compile(r"^\s*(assert\b|test_\w+\()", re.MULTILINE)
SECTION = re.compile(r"^## (.+)\n+<!-- pages: (.+) -->\n", re.MULTILINE)


def tidy(file: Path):
    "A notebook as a reader wants it: without hidden cells and those set aside, directives, solutions and traces of its execution."
    nb = nbformat.read(file, 4)
    nb.metadata.pop("execution", None)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            hidden = re.search(r"^#\|\s*hide\b", cell.source, re.MULTILINE)
            cell.source = "" if hidden else SOLUTION.sub(YOURS, DIRECTIVES.sub("", cell.source)).strip()
            for output in cell.outputs: output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # needs a kernel
    nb.cells = [cell for cell in nb.cells if cell.source and not ASIDE & set(cell.metadata.get("tags", ()))]
    return nb


def folded(cell) -> str:
    "What a code cell is that most readers pass by: Imports, or Test, an example that shows nothing; empty where it is neither."
    lines = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
    if all(re.match(r"(from \S+ )?import ", line) for line in lines): return "Imports"
    return "Test" if TESTING.search(cell.source) and not cell.outputs and not cell.metadata.get("tags") else ""


def fold(nb, exported: set):
    "The notebook with imports and tests behind a line to click at, but for the cells of the module itself; exported: their ids."
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        name = folded(cell)
        if name == "Imports" or name and cell.id not in exported:
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": name, "code_prompt_hide": name}
    return nb


def exported_cells(file: Path) -> set:  # ids
    "The cells of a notebook that make up its module."
    return {c.id for c in nbformat.read(file, 4).cells if re.search(r"^#\|\s*exporti?\b", c.source, re.MULTILINE)}


def keep_notebook(file: Path, folder: Path) -> str:  # Markdown
    "Puts a notebook beside the pages, without solutions where learners write them; the line that offers it."
    place = file.relative_to(NBS)
    copy = folder / "notebooks" / place
    copy.parent.mkdir(parents=True, exist_ok=True)
    nb = nbformat.read(file, 4)
    nbformat.write(session_version(nb, file.stem, True) if place.parts[0] == "workshop" else nb, copy)
    link = f"{{download}}`Open this notebook </notebooks/{place.as_posix()}>`"
    return f"{link}, or from the checkout: `jupyter lab nbs/{place.as_posix()}`"


def readme() -> str:
    "The text of README.md. Links that are relative to nbs/ become relative to the top folder."
    text = MarkdownExporter().from_notebook_node(tidy(NBS / "index.ipynb"))[0]
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text).replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def chapters_table() -> str:
    "All chapters with their numbers, titles, modules, and what they turn into what."
    rows = []
    for file in sorted(filter(is_chapter, NBS.glob("*.ipynb"))):
        title, said = opening(file)
        what = f"{said[:1].lower()}{said[1:]}".rstrip(".")
        rows.append(f"| [{file.stem[:2]} {title}]({file.name}) | `{definitions(file)[0]}` | {what} |")
    return "\n".join(["| chapter | module | from … to … |", "|---|---|---|", *rows])


def list_chapters():
    "Writes the table of chapters into nbs/index.ipynb."
    index = NBS / "index.ipynb"
    nb = nbformat.read(index, 4)
    for cell in nb.cells:
        head, table, _ = cell.source.partition("| chapter |")
        if table: cell.source = head + chapters_table()
    nbformat.write(nb, index)


def is_chapter(file: Path) -> bool:
    "Whether a notebook is a chapter: it has a module."
    return file.parent == NBS and definitions(file)[0] is not None


def opening(page: Path) -> tuple:
    "Title and the sentence `> From … to …` of a page, empty where it has none."
    if page.suffix == ".ipynb": text = "\n".join(c.source for c in nbformat.read(page, 4).cells if c.cell_type == "markdown")
    else: text = page.read_text(encoding="utf-8")
    said = re.search(r"^> (From .+)$", text, re.MULTILINE)
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1], said[1] if said else ""


def table_of_contents(folder: Path) -> str:
    "The opening page with the pages of each section below its text, and the navigation. A section without pages is left out."
    text, trees, seen = (folder / "index.md").read_text(encoding="utf-8"), [], set()
    heads = list(SECTION.finditer(text))
    parts = [text[:heads[0].start()]]
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(text)]):
        found = dict.fromkeys(f.relative_to(folder) for pattern in head[2].split() for f in sorted(folder.glob(pattern)))
        pages = [p for p in found if p not in seen and f"!{p.as_posix()}" not in head[2].split()]
        seen |= set(pages)
        if not pages: continue
        rows = [(p, *opening(folder / p)) for p in pages]
        items = [f"- [{title}]({p.as_posix()})" + (f": {said[0].lower()}{said[1:]}" if said else "") for p, title, said in rows]
        parts.append("\n".join([f"## {head[1]}\n", text[head.end():end].strip(), "", *items, ""]))
        trees.append(toctree(head[1], [p.with_suffix("").as_posix() for p in pages]))
    return "\n".join([*parts, *trees])


def toctree(caption: str, pages: list) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def reference(folder: Path, chapters: list):
    "The pages of all modules, and of the command."
    folder.mkdir()
    modules = {definitions(file)[0]: file for file in chapters if definitions(file)[0] != COMMANDS}
    for name, file in modules.items():
        (folder / f"{name}.md").write_text(module_page(file), encoding="utf-8")
    (folder / "commands.md").write_text(commands_page(), encoding="utf-8")
    items = [f"- [ptacl.{name}]({name}.md): {opening(file)[1]}" for name, file in modules.items()]
    head = (
        f"# Reference\n\n{face()}\n\n## Modules\n\n"
        "In the order of their chapters; beside them stands [the ptacl command](commands.md).\n")
    text = "\n".join([head, *items, "", toctree("Reference", ["commands", *modules])])
    (folder / "index.md").write_text(text, encoding="utf-8")


def stage(folder: Path):
    "Everything that Sphinx reads: the notebooks, their pictures, the pages of docs/, the reference and the texts of the top folder."
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "_static").mkdir(parents=True)
    files = sorted(f for f in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in f.relative_to(NBS).parts))
    for picture in (f for f in NBS.rglob("*") if f.suffix in (".png", ".svg", ".jpg")):
        target = folder / picture.relative_to(NBS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    chapters = list(filter(is_chapter, files))
    linked = linker(chapters)
    for file in files:
        nb, page = tidy(file), folder / file.relative_to(NBS)
        if file == NBS / "index.ipynb":  # the README; the site has an opening page of its own
            page = folder / "start.ipynb"
            nb.cells[0].source = nb.cells[0].source.replace("# ptacl", "# First steps", 1)
        for cell in (c for c in nb.cells if c.cell_type == "markdown"):
            cell.source = MOVED.sub("](", linked(cell.source)).replace("](index.ipynb)", "](index.md)")  # the chapters
        offer = keep_notebook(file, folder)
        if file in chapters:
            module = definitions(file)[0]
            where = "commands" if module == COMMANDS else module
            offer = f"Module [`ptacl.{module}`](reference/{where}.md). {offer}"
        nb.cells.insert(1, new_markdown_cell(offer))
        fold(nb, exported_cells(file))
        page.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(with_labels(nb, file.stem), page)
    for text in (*map(ROOT.joinpath, TEXTS), *PAGES.glob("*.md")):
        words = text.read_text(encoding="utf-8")
        if text.suffix == ".md": words = MOVED.sub("](", linked(words)).replace("](index.ipynb)", "](start.ipynb)")
        (folder / text.name).write_text(words, encoding="utf-8")
    reference(folder / "reference", chapters)
    (folder / "index.md").write_text(table_of_contents(folder), encoding="utf-8")


def mathjax() -> Path:
    "MathJax as one file, from the package that carries it."
    mathjax = distribution("django-static-mathjax")
    return Path(mathjax.locate_file(next(f for f in mathjax.files if f.match("es5/tex-svg.js"))))


def site(out: Path = ROOT / "_docs", work: Path = ROOT / "_build", strict: bool = False):
    "Builds the site in a work folder and puts it into another; strict makes a warning an error."
    stage(work / "staged")
    shutil.rmtree(work / "html", ignore_errors=True)
    options = ["-q", "-b", "html", "-c", str(ROOT / "docs"), "-d", str(work / "doctrees"), *["-W", "--keep-going"] * strict]
    if build_main([*options, str(work / "staged"), str(work / "html")]):
        raise SystemExit("the site was not built: see the messages above")
    write_texts(work / "html")
    shutil.copy(mathjax(), work / "html" / "_static" / "tex-svg.js")
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(work / "html", out)
    print(f"the site: {os.path.relpath(out / 'index.html')}")


if __name__ == "__main__":
    if sys.argv[1:] == ["readme"]:
        list_chapters()
        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    elif sys.argv[1:] in ([], ["site"]): site()
    else: sys.exit(__doc__)
