"Who imports whom, and which public names are used where: the drawings behind scripts/house.py."
import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from house_read import Module, code_of, tree_of

DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Arrows = dict[str, set[str]]


# --- arrows ------------------------------------------------------------------------------------

def imports(tree: ast.Module, modules: dict[str, Module], home: list[str]) -> Iterator[tuple]:
    """Pairs (module, name) of what is imported from the package, wherever in the code; the name is
    None for a module as a whole. `home` is the package that relative imports start from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = home[:len(home) - node.level + 1] if node.level else []
            base = ".".join(above + (node.module.split(".") if node.module else []))
            for alias in node.names:
                if f"{base}.{alias.name}" in modules:
                    yield f"{base}.{alias.name}", None
                elif base in modules:
                    yield base, alias.name


def module_arrows(modules: dict[str, Module]) -> Arrows:
    "Whom each module imports. That an import also runs the `__init__` above it is not counted."
    arrows = {}
    for name, module in modules.items():
        arrows[name] = {other for other, _ in imports(module.tree, modules, module.home)} - {name}
    return arrows


def room_arrows(modules: dict[str, Module]) -> Arrows:
    "The same between rooms; within a room there are none."
    arrows = {module.room: set() for module in modules.values()}
    for name, others in module_arrows(modules).items():
        arrows[modules[name].room] |= {modules[other].room for other in others}
    return {room: others - {room} for room, others in arrows.items()}


def reachable(arrows: Arrows) -> Arrows:
    "Whom each one reaches over any number of arrows."
    reached = {}
    for start in arrows:
        seen = set()
        waiting = list(arrows[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += arrows[node]
        reached[start] = seen
    return reached


def circles(arrows: Arrows) -> list[list[str]]:
    "Groups of two or more of which each reaches every other."
    reached = reachable(arrows)
    groups = {frozenset({a} | {b for b in reached[a] if a in reached[b]}) for a in arrows}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def floors(arrows: Arrows) -> int:
    "How many stand on the longest chain of arrows; a circle stands on one floor."
    reached = reachable(arrows)
    height = {}
    for node in sorted(arrows, key=lambda n: len(reached[n] | {n})):
        below = [n for n in reached[node] if node not in reached[n]]
        height[node] = 1 + max((height[n] for n in below), default=0)
    return max(height.values(), default=0)


# --- public names ------------------------------------------------------------------------------

def assigned(node: ast.AST) -> list[str]:
    "The names that an assignment gives a value."
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    names = [n for target in targets if target is not None for n in ast.walk(target)]
    return [n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def public_names(module: Module) -> dict[str, ast.AST]:
    """Functions, classes and constants defined at the top of a module: those of `__all__`, or,
    where there is none, those without an underscore. What is only imported is no name of it."""
    defined = {}
    listed = None
    for node in module.tree.body:
        if isinstance(node, DEFINITIONS):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            defined |= dict.fromkeys(assigned(node), node)
            if "__all__" in assigned(node) and isinstance(node.value, ast.List | ast.Tuple):
                listed = ast.literal_eval(node.value)
    if listed is None:
        listed = [name for name in defined if not name.startswith("_")]
    return {name: defined[name] for name in listed if name in defined}


def two_meanings(modules: dict[str, Module]) -> dict[str, list[str]]:
    "Public names, constants too, that more than one module defines, and these modules."
    where = defaultdict(list)
    for module in modules.values():
        for name in public_names(module):
            where[name].append(module.short)
    return {name: homes for name, homes in sorted(where.items()) if len(homes) > 1}


def read_names(tree: ast.Module) -> set[str]:
    "What code may take out of a module it holds: attributes, and strings, as for `getattr`."
    nodes = list(ast.walk(tree))
    attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    strings = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return attributes | strings


def importers(files: dict[str, str], modules: dict[str, Module]) -> dict[tuple, set[str]]:
    """The files that use a (module, name): that import it by name, read it out of an imported
    module, or write it after a star import. An `__init__` only passes names on."""
    users = defaultdict(set)
    for path, text in files.items():
        if path.endswith("__init__.py"):
            continue
        tree = tree_of(path, text)
        written = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        for module, name in imports(tree, modules, list(PurePosixPath(path).parts[:-1])):
            names = read_names(tree) if name is None else written if name == "*" else {name}
            for used in names:
                users[module, used].add(path)
    return users


def never_imported(files: dict[str, str], modules: dict[str, Module]) -> list[str]:
    """Public names that no module, notebook, test, script or page imports but their own module
    and its notebook. An import from the package above counts as one from the module itself.
    Names that stand only in code within strings, or that a command line calls, are among them."""
    users = importers(files, modules)
    unused = []
    for module in modules.values():
        own = {module.path} | module.notebooks()
        above = [".".join(module.names[:i + 1]) for i in range(len(module.names))]
        for name in public_names(module):
            if not set().union(*(users[package, name] for package in above)) - own:
                unused.append(f"{module.short}.{name}")
    return unused


def never_mentioned(files: dict[str, str], modules: dict[str, Module]) -> list[str]:
    """The same, but any word of the same letters is a use, even in a comment or of another
    meaning: a floor under the number, where `never_imported` is nearer to the truth."""
    users = defaultdict(set)
    for path, text in files.items():
        for word in set(re.findall(r"\w+", code_of(path, text))):
            if not path.endswith("__init__.py"):
                users[word].add(path)
    unused = []
    for module in modules.values():
        own = {module.path} | module.notebooks()
        unused += [f"{module.short}.{n}" for n in public_names(module) if not users[n] - own]
    return unused
