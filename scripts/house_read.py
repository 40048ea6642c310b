"What scripts/house.py reads: the text of modules, notebooks and tests, now or at a revision."
import ast
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

PACKAGE = "ptacl"
FOLDERS = (PACKAGE, "nbs", "tests", "scripts", "docs")
GENERATED = {"__pycache__", "_build", "_docs"}


def wanted(path: PurePosixPath) -> bool:
    "Modules and notebooks of the project's folders; nothing generated or hidden."
    above = path.parts[:-1]
    ours = path.parts[0] in FOLDERS and path.suffix in (".py", ".ipynb")
    shown = not GENERATED & set(above) and not any(part.startswith(".") for part in above)
    return ours and shown and path.name != "_modidx.py"


def working_tree(root: Path) -> dict[str, str]:
    "The text of every file as it lies in the folders now."
    found = (f for folder in FOLDERS for f in sorted((root / folder).rglob("*")) if f.is_file())
    paths = {f.relative_to(root).as_posix(): f for f in found}
    return {name: f.read_text("utf-8") for name, f in paths.items() if wanted(PurePosixPath(name))}


def revision(root: Path, name: str) -> dict[str, str]:
    "The text of every file as git keeps it; no file is written."
    command = ["git", "-C", str(root), "archive", "--format=tar", name]
    answer = subprocess.run(command, capture_output=True)
    if answer.returncode:
        raise SystemExit(f"{name}: {answer.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(answer.stdout)) as tar:
        members = [m for m in tar if m.isfile() and wanted(PurePosixPath(m.name))]
        return {m.name: tar.extractfile(m).read().decode("utf-8") for m in members}


@dataclass
class Module:
    "One file of the package."
    path: str
    text: str
    names: list[str]                     # as in an import: ["ptacl", "room", "module"]
    is_package: bool                     # an __init__.py
    tree: ast.Module = field(repr=False)

    @property
    def name(self) -> str:
        "As in an import."
        return ".".join(self.names)

    @property
    def short(self) -> str:
        "Without the package that all share."
        return ".".join(self.names[1:]) or PACKAGE

    @property
    def room(self) -> str:
        "The sub-package that holds it, or itself where it lies flat."
        return self.names[1] if len(self.names) > 1 else PACKAGE

    @property
    def home(self) -> list[str]:
        "The package that its relative imports start from."
        return self.names if self.is_package else self.names[:-1]

    @property
    def in_sub_package(self) -> bool:
        "Whether it does not lie flat."
        return len(self.home) > 1

    def lines(self) -> int:
        "All lines of the file, blank ones too."
        return len(self.text.splitlines())

    def notebooks(self) -> set[str]:
        "Those that its comments say it was written from."
        named = re.findall(r"^# %% \S*?nbs/(\S+\.ipynb)", self.text, re.MULTILINE)
        return {"nbs/" + name for name in named}


def modules_of(files: dict[str, str]) -> dict[str, Module]:
    "Every module of the package by its dotted name."
    modules = {}
    for path, text in files.items():
        parts = list(PurePosixPath(path).with_suffix("").parts)
        if parts[0] != PACKAGE or not path.endswith(".py"):
            continue
        is_package = parts[-1] == "__init__"
        names = parts[:-1] if is_package else parts
        module = Module(path, text, names, is_package, ast.parse(text))
        modules[module.name] = module
    return modules


def cells_of(text: str) -> list[tuple[str, str, list[str]]]:
    "Triples (kind, source, directives) of a notebook's cells."
    sources = [(c["cell_type"], "".join(c["source"])) for c in json.loads(text)["cells"]]
    return [(kind, s, re.findall(r"^#\|\s*(\w+)", s, re.MULTILINE)) for kind, s in sources]


@cache
def cell_tree(source: str) -> ast.Module:
    "A cell without its magics; an empty one if what is left is no Python."
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))
    except SyntaxError:
        return ast.parse("")


def tree_of(path: str, text: str) -> ast.Module:
    "The code of a module, or of all code cells of a notebook."
    if path.endswith(".py"):
        return ast.parse(text)
    cells = [cell_tree(source) for kind, source, _ in cells_of(text) if kind == "code"]
    return ast.Module([node for cell in cells for node in cell.body], [])


def code_of(path: str, text: str) -> str:
    "The text of a module, or of all code cells of a notebook."
    if path.endswith(".py"):
        return text
    return "\n".join(source for kind, source, _ in cells_of(text) if kind == "code")
