"""The project itself: modules and notebooks in step, notebooks clean and well formed, dependencies declared and pinned.

Each test gathers every violation before it fails, so that one run names them all.
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from nbdev.clean import clean_nb
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ptacl.app.audit import audit, describe_findings

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
DIRECTIVES = {"default_exp", "export", "exporti", "hide", "eval:"}
LONGEST_CELL, LONGEST_LINE, LARGEST_NOTEBOOK = 40, 110, 1_000_000
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:root|home|work|tmp|Users|mnt|opt|private|scratch)/\w[^\s'\"]*|[A-Z]:\\Users\\\w+")

notebooks = sorted(f for f in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
chapters = [f for f in notebooks if f.parent == NBS and f.stem[0].isdigit()]
settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]


def cells(file, kind="code"):
    "Pairs (where, source) of a notebook's cells of one kind."
    for i, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == kind: yield f"{file.relative_to(NBS)} cell {i}", "".join(cell["source"])


def directives(source):
    "The directives of a cell as nbdev would read them, wherever they stand."
    return [m[1] for m in re.finditer(r"^\s*#\s*\|\s*(\S+)", source, re.MULTILINE)]


def code(source):
    "A cell as syntax tree, without notebook magics."
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)).body


def exported(file):
    return [(where, source) for where, source in cells(file) if {"export", "exporti"} & set(directives(source))]


def default_exp(file):
    "The modules that a notebook names as its own."
    return [m[1] for _, source in cells(file) for m in re.finditer(r"^#\|\s*default_exp\s+(\S+)", source, re.MULTILINE)]


def texts(file):
    "Pairs (where, text) of all that a notebook says: sources, and outputs other than pictures."
    for i, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        where = f"{file.relative_to(NBS)} cell {i}"
        yield where, "".join(cell["source"])
        for output in cell.get("outputs", []):
            if "text" in output: yield where + " output", "".join(output["text"])
            for mime, data in output.get("data", {}).items():
                if mime.startswith("image/"): continue
                yield f"{where} {mime}", "".join(data) if isinstance(data, list) else json.dumps(data)


def none_of(problems):
    problems = list(problems)
    assert not problems, "\n" + "\n".join(problems)


# --- in step -------------------------------------------------------------------------------------------------------------

def test_modules_are_what_the_notebooks_export(tmp_path):
    for name in ("settings.ini", "setup.py", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(NBS, tmp_path / "nbs")
    for init in (ROOT / "ptacl").rglob("__init__.py"):
        (tmp_path / init.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(init, tmp_path / init.relative_to(ROOT))
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True)
    def modules(top): return {str(f.relative_to(top / "ptacl")): f.read_text(encoding="utf-8") for f in (top / "ptacl").rglob("*.py")}
    ours, fresh = modules(ROOT), modules(tmp_path)
    none_of(f"ptacl/{name}: {'differs from' if name in ours and name in fresh else 'is in only one of the tree and'} the export. "
            "Run nbdev_export, or nbdev_update if the module was edited by hand"
            for name in sorted(ours.keys() | fresh.keys()) if ours.get(name) != fresh.get(name))


def test_readme_is_made_from_the_index():
    sys.path.insert(0, str(ROOT / "docs"))
    from build import readme
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), "run make readme"


def test_index_lists_every_chapter():
    text = (NBS / "index.ipynb").read_text(encoding="utf-8")
    none_of(f"nbs/index.ipynb does not list {f.name}" for f in chapters if f"({f.name})" not in text)


def test_only_quiet_tests_assert_on_seconds():
    "A slow or loaded machine is no fault: what asserts on the clock runs where it is asked for."
    clock = re.compile(r"\b(?:process_time|perf_counter|monotonic|time)\(\) - \w+ < \d")
    def loud(file):
        for test in ast.parse(file.read_text(encoding="utf-8")).body:
            marks = [ast.unparse(mark) for mark in getattr(test, "decorator_list", ())]
            if getattr(test, "name", "").startswith("test") and "pytest.mark.quiet" not in marks and clock.search(ast.unparse(test)): yield test.name
    none_of(f"tests/{file.name}: {name} asserts on seconds without pytest.mark.quiet"
            for file in sorted((ROOT / "tests").glob("test_*.py")) for name in loud(file))


# --- clean ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("file", notebooks, ids=lambda f: f.stem)
def test_notebook_is_clean(file):
    raw = file.read_text(encoding="utf-8")
    nb, cleaned = json.loads(raw), json.loads(raw)
    clean_nb(cleaned, allowed_cell_metadata_keys=settings["allowed_cell_metadata_keys"].split())
    assert nb == cleaned, "run nbdev_clean"
    assert "widgets" not in nb["metadata"], "widget state is stored: clear the outputs that show widgets"
    shown = [kind for c in nb["cells"] for o in c.get("outputs", []) for kind in o.get("data", {})]
    assert "application/vnd.jupyter.widget-view+json" not in shown, "a widget without its state is an error on the page: keep its picture alone"
    assert len(raw.encode()) < LARGEST_NOTEBOOK
    kinds = [output["output_type"] for cell in nb["cells"] for output in cell.get("outputs", [])]
    assert "error" not in kinds
    none_of(f"{where}: path of one machine: {m[0]}" for where, text in texts(file) for m in MACHINE_PATH.finditer(text))


def test_no_participant_in_the_files_or_their_history():
    findings = audit(ROOT)
    assert not len(findings), "\n" + describe_findings(findings)


# --- well formed ---------------------------------------------------------------------------------------------------------

def test_directives_are_known():
    none_of(f"{where}: unknown directive {d!r}" for f in notebooks for where, source in cells(f)
            for d in directives(source) if d not in DIRECTIVES)


def test_directives_stand_at_the_top_of_their_cell():
    def late(source):
        lines = [line for line in source.splitlines() if line.strip()]
        head = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
        return any(re.match(r"\s*#\s*\|", line) for line in lines[head:])
    none_of(f"{where}: a directive below other lines, or not written '#| …', does nothing"
            for f in notebooks for where, source in cells(f) if late(source))


def test_directives_are_not_comments():
    none_of(f"{where}: a comment that was meant as a directive?" for f in notebooks for where, source in cells(f)
            if re.search(r"^#\s*(export|exporti|exports|hide|default_exp)\b", source, re.MULTILINE))


def test_every_chapter_has_a_module_of_its_own():
    named = {f: default_exp(f) for f in chapters}
    none_of(f"{f.name}: names {len(modules)} modules, expected one" for f, modules in named.items() if len(modules) != 1)
    flat = [m for modules in named.values() for m in modules]
    assert len(set(flat)) == len(flat)
    others = set(notebooks) - set(chapters)
    none_of(f"{f.relative_to(NBS)}: only chapters export" for f in others if default_exp(f) or exported(f))


def test_every_chapter_says_what_it_turns_into_what():
    def opening(f): return next((source for _, source in cells(f, "markdown")), "")
    none_of(f"{f.name}: the first text is to be '# Title' and '> From … to …'" for f in chapters
            if not re.match(r"# .+\n+> From .+ to .+", opening(f)))


def test_imports_have_cells_of_their_own():
    def mixed(source): return len({isinstance(node, ast.Import | ast.ImportFrom) for node in code(source)}) > 1
    none_of(f"{where}: imports and other code in one cell" for f in chapters for where, source in cells(f) if mixed(source))


def test_exported_cells_are_short():
    def table(source): return all(isinstance(node, ast.Assign) for node in code(source))
    def fields(source):
        return sum(isinstance(n, ast.AnnAssign) for c in code(source) if isinstance(c, ast.ClassDef) for n in c.body)
    def length(source):
        return sum(bool(line.strip()) and not line.startswith("#|") for line in source.splitlines()) - fields(source)
    none_of(f"{where}: {length(source)} lines, at most {LONGEST_CELL}" for f in chapters for where, source in exported(f)
            if length(source) > LONGEST_CELL and not table(source))


def test_exported_lines_are_short():
    none_of(f"{where}: a line of {len(line)} characters, at most {LONGEST_LINE}" for f in chapters for where, source in exported(f)
            for line in source.splitlines() if len(line) > LONGEST_LINE)


def inside(module):
    "The modules of the kit that one imports, wherever it does so."
    file = ROOT / "ptacl" / f"{module.replace('.', '/')}.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1: yield f"{module.split('.')[0]}.{node.module}"
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module: yield node.module


def test_chapters_import_only_from_earlier_ones():
    number = {module: f.stem for f in chapters for module in default_exp(f)}
    none_of(f"{chapter}: imports {other} of {number[other]}, a later chapter" for module, chapter in number.items()
            for other in inside(module) if other in number and number[other] > chapter)


def test_every_room_says_what_it_turns_into_what():
    rooms = sorted(f.parent for f in (ROOT / "ptacl").glob("*/__init__.py"))
    none_of(f"ptacl/{room.name}/__init__.py: the docstring is to be 'From … to …'" for room in rooms
            if not re.match(r"From .+ to .+", ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""))


def test_public_names_are_documented():
    def names(f):
        for where, source in exported(f):
            for node in code(source):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"): yield where, node
    none_of(f"{where}: {node.name} has no docstring" for f in chapters for where, node in names(f) if not ast.get_docstring(node))


# --- dependencies --------------------------------------------------------------------------------------------------------

requirements = [Requirement(r) for r in settings["requirements"].split()]
optional = [Requirement(r) for extra in ("app", "course", "cluster", "export") for r in settings[f"{extra}_requirements"].split()]
development = [Requirement(r) for r in settings["dev_requirements"].split()] + optional
pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")]


def imported(trees):
    "Top-level names of the packages that some code imports."
    for node in (n for tree in trees for n in ast.walk(tree)):
        if isinstance(node, ast.Import): yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0: yield node.module.split(".")[0]


def undeclared(trees, declared, local=()):
    declared, sources = {canonicalize_name(r.name) for r in declared}, packages_distributions()
    for name in sorted(set(imported(trees)) - set(sys.stdlib_module_names) - {"ptacl", *local}):
        if not declared & {canonicalize_name(d) for d in sources.get(name, [])}:
            yield f"{name} is imported, but not in settings.ini"


def test_modules_import_what_is_declared():
    none_of(undeclared([ast.parse(f.read_text(encoding="utf-8")) for f in ROOT.glob("ptacl/**/*.py")], requirements + optional))


def test_everything_else_imports_what_is_declared():
    folders = ("tests", "docs", "data_samples")
    scripts = [ast.parse(f.read_text(encoding="utf-8")) for folder in folders for f in ROOT.glob(f"{folder}/*.py")]
    examples = [ast.Module(code(source), []) for f in notebooks for _, source in cells(f)]
    ours = ("build", "conftest", "course_checks", "makers", "pages", "reference", "search", "steps")
    none_of(undeclared(scripts + examples, requirements + development, ours))


def test_pins_are_exact_and_within_the_declared_ranges():
    none_of(f"constraints.txt: {p} is not one exact version" for p in pins
            if p.url or not re.fullmatch(r"==[\w.]+", str(p.specifier)))
    pinned = {canonicalize_name(p.name): str(p.specifier)[2:] for p in pins}
    none_of(f"constraints.txt lacks {r.name}" for r in requirements + development if canonicalize_name(r.name) not in pinned)
    none_of(f"constraints.txt pins {r.name} {pinned[canonicalize_name(r.name)]}, settings.ini wants {r.specifier}"
            for r in requirements + development if not r.specifier.contains(pinned[canonicalize_name(r.name)], prereleases=True))


def promised(): # -> 3.11, 3.12, …
    low, high = re.search(r"\(3, (\d+)\) <= sys\.version_info < \(3, (\d+)\)", (ROOT / "Makefile").read_text(encoding="utf-8")).groups()
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def test_what_is_installed_takes_every_promised_python():
    assert promised()[0] == settings["min_python"]
    pythons, wanted = [f"{v}.{patch}" for v in promised() for patch in (0, 99)], []
    for r in [*pins, *requirements, *development]:
        try: installed = distribution(r.name)
        except PackageNotFoundError: continue  # of another system, or of another Python
        if r.specifier.contains(installed.version, prereleases=True): wanted.append((r, installed.metadata.get("Requires-Python", "")))
    assert len(wanted) > len(requirements + development)
    none_of(f"{r} requires Python {takes}, and Python {python} is promised: choose another version, or say for which Python it is (;python_version<…)"
            for r, takes in wanted for python in pythons
            if not (r.marker and not r.marker.evaluate({"python_version": python.rpartition(".")[0], "python_full_version": python}))
            and python not in SpecifierSet(takes))


def test_version_is_one():
    init = (ROOT / "ptacl" / "__init__.py").read_text(encoding="utf-8")
    version = settings["version"]
    assert re.search(r'__version__ = "(.+)"', init)[1] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
