"""The site and the README, from the executed notebooks: python docs/build.py [site|readme]

`site` writes _docs/index.html, `readme` writes README.md from nbs/index.ipynb. No notebook is run.
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

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
TEXTS = ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")  # outside nbs/, and yet on the site
DIRECTIVES = re.compile(r"^#\|.*\n?", re.MULTILINE)


def tidy(file: Path):
    "A notebook as a reader wants it: without hidden cells, directives and the traces of its execution."
    nb = nbformat.read(file, 4)
    nb.metadata.pop("execution", None)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            hidden = re.search(r"^#\|\s*hide\b", cell.source, re.MULTILINE)
            cell.source = "" if hidden else DIRECTIVES.sub("", cell.source).strip()
            for output in cell.outputs: output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # needs a kernel
    nb.cells = [cell for cell in nb.cells if cell.source]
    return nb


def readme() -> str:
    "The text of README.md. Links that are relative to nbs/ become relative to the top folder."
    text = MarkdownExporter().from_notebook_node(tidy(NBS / "index.ipynb"))[0]
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text).replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def toctree(caption: str, pages: list) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])


def stage(folder: Path):
    "Everything that Sphinx reads: the notebooks, their pictures and the texts of the top folder."
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "_static").mkdir(parents=True)
    files = sorted(f for f in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in f.relative_to(NBS).parts))
    for picture in (f for f in NBS.rglob("*") if f.suffix in (".png", ".svg", ".jpg")):
        target = folder / picture.relative_to(NBS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    groups = {}
    for file in files:
        page = file.relative_to(NBS)
        if page.name == "index.ipynb": continue
        groups.setdefault(page.parent.name or "chapters", []).append(page.with_suffix("").as_posix())
    for file in files:
        nb, page = tidy(file), folder / file.relative_to(NBS)
        if file == NBS / "index.ipynb":
            trees = [toctree(name.capitalize(), pages) for name, pages in groups.items()]
            nb.cells.append(new_markdown_cell("\n\n".join([*trees, toctree("The project", ["CONTRIBUTING", "CHANGELOG"])])))
        for cell in nb.cells:
            if cell.cell_type == "markdown": cell.source = re.sub(rf"\]\(\.\./({'|'.join(TEXTS)})\)", r"](\1)", cell.source)
        page.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, page)
    for name in TEXTS: shutil.copy(ROOT / name, folder)


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
    shutil.copy(mathjax(), work / "html" / "_static" / "tex-svg.js")
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(work / "html", out)
    print(f"the site: {os.path.relpath(out / 'index.html')}")


if __name__ == "__main__":
    if sys.argv[1:] == ["readme"]: (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    elif sys.argv[1:] in ([], ["site"]): site()
    else: sys.exit(__doc__)
