"""The reference: for each module a page with the signatures, parameter comments and docstrings of its public names.

Signatures are shown by fastcore's docments, as the chapters write them, and each name links to the section that defines it.
"""
import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
from fastcore.docments import DocmentText
from typer.main import get_command
from typer.testing import CliRunner

COMMANDS = "app.cli"  # has a page of its own kind
HEADING = re.compile(r"^#{2,4} +(.+)$")
CODE = re.compile(r"(?<![\[`])`([\w.]+?)(\([^`]*\))?`(?!`)")


def lines_of(text: str):
    "Pairs (line, whether it is text and not code) of Markdown."
    fenced = False
    for line in text.split("\n"):
        mark = line.lstrip().startswith("```")
        yield line, not (fenced or mark)
        fenced ^= mark


def with_labels(nb, stem: str):
    "The notebook with a label in front of each heading, `52_losses-1` and so on, for links from anywhere."
    count = 0
    for cell in (c for c in nb.cells if c.cell_type == "markdown"):
        lines = []
        for line, is_text in lines_of(cell.source):
            if is_text and HEADING.match(line):
                count += 1
                lines.append(f"({stem}-{count})=")
            lines.append(line)
        cell.source = "\n".join(lines)
    return nb


def defined(source: str):
    "Pairs (name, source of a constant or None) of what an exported cell defines: functions, classes, methods, constants."
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            patch = any("patch" in ast.unparse(d) for d in node.decorator_list)
            yield (ast.unparse(node.args.args[0].annotation) + "." if patch else "") + node.name, None
        if isinstance(node, ast.ClassDef):
            yield node.name, None
            yield from ((f"{node.name}.{m.name}", None) for m in node.body if isinstance(m, ast.FunctionDef))
        if isinstance(node, ast.Assign):
            names = (n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name))
            yield from ((name, ast.get_source_segment(source, node)) for name in names)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, ast.get_source_segment(source, node)


@cache
def definitions(file: Path) -> tuple:
    "The module of a chapter, and where it defines what: name -> (label and title of the section, source of a constant or None)."
    count, section, module, found = 0, None, None, {}
    for cell in nbformat.read(file, 4).cells:
        if cell.cell_type == "markdown":
            for line, is_text in lines_of(cell.source):
                if is_text and (heading := HEADING.match(line)):
                    count += 1
                    section = f"{file.stem}-{count}", heading[1]
        elif named := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.MULTILINE): module = named[1]
        elif re.search(r"^#\|\s*export\b", cell.source, re.MULTILINE):
            public = ((n, what) for n, what in defined(cell.source) if not re.search(r"(^|\.)_", n))
            for name, what in public: found.setdefault(name, (section, what))
    return module, found


def find(module, name: str):
    "The object of that name; of a property or class method, its function."
    for part in name.split("."): module = vars(module)[part]
    return getattr(module, "fget", None) or getattr(module, "__func__", None) or module


def entry(module, name: str, section, found: dict) -> str:
    "One name of the reference, as Markdown; a method under its class, where that is of the same chapter."
    thing = find(module, name)
    shown = re.sub(r"\b\d{5,}\b", lambda n: f"{int(n[0]):_}", str(DocmentText(thing, docstring=False)))  # counts as the kit writes them
    if isinstance(thing, type): shown = "class " + shown.removeprefix("def ")
    doc = re.sub(r"\n +", "\n", (thing.__doc__ or "").strip())
    if doc.startswith(f"{name}("): doc = ""  # what `dataclass` writes where nobody else did
    where = f"*[{section[1]}](#{section[0]})*" if section else ""
    level = "###" if "." in name and name.split(".")[0] in found else "##"
    return f"({module.__name__}.{name})=\n{level} {name}\n\n```python\n{shown}\n```\n\n{doc}\n\n{where}\n"


def constants(found: dict) -> str:
    "What a module defines besides functions and classes; long tables are only named."
    sources = dict.fromkeys(what for _, what in found.values() if what)
    shown = [s if s.count("\n") < 12 else f"{s.split('=')[0]}= ...  # {s.count(chr(10)) + 1} lines: see the chapter" for s in sources]
    return "\n".join(["## Constants\n", "```python", *shown, "```\n"]) if shown else ""


def module_page(file: Path) -> str:
    "The page of a chapter's module: classes with their methods and functions, in the order of the chapter."
    module, found = definitions(file)
    place = {name: i for i, name in enumerate(n for n, (_, what) in found.items() if what is None)}
    names = sorted(place, key=lambda n: (place.get(n.split(".")[0], -1), place[n]))
    first = next(c.source for c in nbformat.read(file, 4).cells if c.cell_type == "markdown")
    title, what = re.match(r"# (.+)\n+> (.+)", first).groups()
    head = f"# ptacl.{module}\n\n{what}\n\nThe chapter that defines it: [{title}](../{file.name})."
    loaded = import_module(f"ptacl.{module}")
    return "\n\n".join([head, constants(found), *(entry(loaded, n, found[n][0], found) for n in names)])


def face() -> str:
    "The names that `ptacl` itself offers, by the room that they come from."
    import ptacl
    rows = [f"| `{home}` | {', '.join(shown(name, home) for name in names)} |" for home, names in ptacl._HOMES.items()]
    words = "`from ptacl import …` takes these, and other people's scripts may rely on it:"
    return "\n".join([f"## The face\n\n{words}\n", "| home | names |", "|---|---|", *rows])


def shown(name: str, home: str) -> str:
    "A name that links to its entry; a constant to the page of its module."
    thing = getattr(import_module(f"ptacl.{home}"), name)
    return f"[`{name}`](#ptacl.{home}.{name})" if callable(thing) else f"[`{name}`]({home}.md)"


def commands_page() -> str:
    "What each subcommand of `ptacl` says of itself."
    from ptacl.app.cli import app
    parts = ["# The ptacl command\n\nWhat `ptacl COMMAND --help` prints. The chapter: [Command line](../99_cli.ipynb)."]
    for name in get_command(app).commands:
        shown = CliRunner().invoke(app, [name, "--help"], prog_name="ptacl", terminal_width=110).output.strip()
        parts.append(f"(ptacl.{name})=\n## ptacl {name}\n\n```text\n{shown}\n```")
    return "\n\n".join(parts)


def linker(chapters: list):
    "A function that links the names of the kit in a text to the reference: those written in full, as calls, or unmistakably."
    known = {}
    for module, found in map(definitions, chapters):
        for name, (_, what) in found.items():
            if what is None and module != COMMANDS:
                known.setdefault(f"ptacl.{module}.{name}", f"ptacl.{module}.{name}")
                known.setdefault(name, f"ptacl.{module}.{name}")
    def link(match):
        name, call = match[1], match[2]
        clear = call or name.startswith("ptacl.") or "_" in name or "." in name or re.fullmatch(r"([A-Z]+[a-z]+){2,}|PTACL|MAE", name)
        return f"[{match[0]}](#{known[name]})" if clear and name in known else match[0]
    def linked(text: str) -> str:
        lines = ((line, is_text and not HEADING.match(line)) for line, is_text in lines_of(text))
        return "\n".join(CODE.sub(link, line) if plain else line for line, plain in lines)
    return linked
